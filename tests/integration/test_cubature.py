"""Integrals over boxes: right, or flagged; batched; differentiable."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from laws import assert_within
from problems.boxes import GOLDEN, SMOOTH, TOTALS, drawn, exact, integrand
from torch import Tensor

from probcalc import EstimateWarning, Status, integrate
from probcalc.integration.box_rules import genz_malik
from probcalc.result import Estimate

INF = math.inf
CPU = torch.device("cpu")


def box(fn, lower, upper, **kwargs: object) -> Estimate:
    return integrate(fn, number(*lower), number(*upper), event_dim=1, **kwargs)


def number(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("family", TOTALS)
def test_golden_values(family: str):
    c, w = number(1, 2, 3), number(0.3, 0.6, 0.45)
    result = box(lambda x: integrand(family)(x, c, w), [0] * 3, [1] * 3, rtol=1e-6)
    assert result.ok
    assert abs(float(result.value) - GOLDEN[family]) <= 1e-6 * GOLDEN[family]


@pytest.mark.parametrize("family", TOTALS)
@pytest.mark.parametrize("d", [2, 3, 5])
def test_random_difficulties_at_once(family: str, d: int, generator: torch.Generator):
    """A batch with its parameters gathered; the bar covers the error, met or not."""
    drawings = [drawn(family, d, generator) for _ in range(8)]
    c, w = (torch.stack(t) for t in zip(*drawings, strict=True))
    truth = number(*[exact(family, *one) for one in drawings])
    lower, upper = torch.zeros_like(c), torch.ones_like(c)
    budget = 2**20 if family in SMOOTH else 2**16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EstimateWarning)
        result = integrate(
            integrand(family), lower, upper, args=(c, w), event_dim=1, rtol=1e-6, max_evals=budget
        )
    error = (result.value - truth).abs()
    assert (error <= torch.maximum(result.error, 1e-6 * truth.abs())).all()
    assert result.ok or family not in SMOOTH or d == 5  # where the budget may end


INFINITE = {
    "Gauss": (lambda x: (-(x**2).sum(-1)).exp(), [-INF] * 2, [INF] * 2, math.pi),
    "half": (lambda x: (-(x**2).sum(-1)).exp(), [-INF, 0.0], [INF, INF], math.pi / 2),
    "left": (lambda x: (x[..., 0] - x[..., 1]).exp(), [-INF, 0.0], [0.0, INF], 1.0),
    "mixed": (
        lambda x: (-x[..., 0]).exp() / (1 + x[..., 1] ** 2),
        [0.0, -1.0],
        [INF, 1.0],
        math.pi / 2,
    ),
    "four": (
        lambda x: x[..., 0] * x[..., 1].sqrt() * (-x[..., 1:].pow(number(1, 2, 2)).sum(-1)).exp(),
        [0.0, 0.0, -INF, -INF],
        [1.0, INF, INF, INF],
        math.pi**1.5 / 4,
    ),
}


@pytest.mark.parametrize(("fn", "lower", "upper", "truth"), INFINITE.values(), ids=INFINITE.keys())
@pytest.mark.filterwarnings("ignore::probcalc.EstimateWarning")
def test_infinite_boxes(fn, lower, upper, truth: float):
    result = box(fn, lower, upper, rtol=1e-5)
    assert abs(float(result.value) - truth) <= max(float(result.error), 1e-5 * truth)
    assert float(result.error) < 5e-3


def test_a_disc_has_an_honest_bar(generator: torch.Generator):
    """A jump along a curve, which no cells fit: within the bar, in bounded time."""
    for radius in 0.2 + 0.25 * torch.rand(10, generator=generator, dtype=torch.float64):
        result = box(
            lambda x, r=radius: ((x - 0.5).square().sum(-1) < r**2).double(),
            [0, 0],
            [1, 1],
            max_evals=2**15,
        )
        assert_within(result, math.pi * float(radius) ** 2)
        assert int(result.num_evals) <= 2**15


@pytest.mark.parametrize("d", [2, 3])
def test_narrow_peaks_are_never_missed_in_silence(d: int, generator: torch.Generator):
    mean = torch.rand(10, d, generator=generator, dtype=torch.float64)
    sd = 1e-3
    scale = (sd * math.sqrt(2 * math.pi)) ** d

    def peak(x: Tensor, mean: Tensor) -> Tensor:
        return (-0.5 * ((x - mean) / sd).square().sum(-1)).exp() / scale

    lower, upper = torch.zeros_like(mean), torch.ones_like(mean)
    with pytest.warns(EstimateWarning, match="mass may lie where nobody looked"):
        result = integrate(peak, lower, upper, args=(mean,), event_dim=1, rtol=1e-3)
    root = sd * math.sqrt(2)
    truth = (0.5 * (torch.erf((1 - mean) / root) + torch.erf(mean / root))).prod(-1)
    silent = (result.status == 0) & ((result.value - truth).abs() > result.error)
    assert not silent.any()


FLAGGED = {
    "zero": (lambda x: 0 * x.sum(-1), Status.UNRESOLVED_MASS),
    "NaN": (lambda x: (x.sum(-1) - 0.5).sqrt(), Status.NON_FINITE),
    "infinite": (lambda x: x.square().sum(-1).reciprocal() ** 2, Status.DIVERGENT),
}


@pytest.mark.parametrize(("fn", "flag"), FLAGGED.values(), ids=FLAGGED.keys())
def test_what_cannot_be_trusted_is_flagged(fn, flag: Status):
    with pytest.warns(EstimateWarning):
        result = box(fn, [0, 0], [1, 1], max_evals=2**16)
    assert flag in result.flags
    assert result.error == INF


def test_vectors_and_complex_numbers():
    result = box(lambda x: torch.stack([x.sum(-1), x.prod(-1)], -1), [0, 0], [1, 2])
    torch.testing.assert_close(result.value, number(3.0, 1.0))
    turn = box(lambda x: (1j * x.sum(-1)).exp(), [0, 0], [1, 1])
    side = (np.exp(1j) - 1) / 1j
    assert abs(complex(turn.value.item()) - side**2) <= float(turn.error) + 1e-14


def test_sides_of_no_width_and_reversed_ones():
    assert float(box(lambda x: x.sum(-1).exp(), [0, 1], [1, 1]).value) == 0.0
    reversed_once = box(lambda x: x.sum(-1), [1, 0], [0, 1])
    assert float(reversed_once.value) == pytest.approx(-1.0)


def test_one_dimension_is_an_interval():
    result = box(lambda x: x[..., 0] ** -0.5, [0], [1])
    assert float(result.value) == pytest.approx(2.0, rel=1e-9)


def gauss(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return (-a * x[..., 0] ** 2 - b * x[..., 1] ** 2).exp()


def test_gradients_in_parameters():
    a, b = number(0.7, 1.1).requires_grad_(), number(0.6, 1.3).requires_grad_()
    lower, upper = torch.zeros(2, 2).double(), torch.ones(2, 2).double()

    def gathered(a: Tensor, b: Tensor) -> Tensor:
        return integrate(gauss, lower, upper, args=(a, b), event_dim=1).value

    def closed(a: Tensor, b: Tensor) -> Tensor:
        return integrate(lambda x: gauss(x, a, b), lower, upper, event_dim=1).value

    for value in (gathered, closed):
        assert torch.autograd.gradcheck(value, (a, b))
        assert torch.autograd.gradgradcheck(value, (a, b))


def test_gradients_in_limits():
    lower = torch.tensor([[0.0, 0.1], [-0.2, 0.0]], dtype=torch.float64, requires_grad=True)
    upper = torch.tensor([[1.0, 0.8], [0.5, 1.0]], dtype=torch.float64, requires_grad=True)
    a = number(0.7, 1.1).requires_grad_()

    def value(lower: Tensor, upper: Tensor, a: Tensor) -> Tensor:
        return integrate(gauss, lower, upper, args=(a, a), event_dim=1).value

    assert torch.autograd.gradcheck(value, (lower, upper, a))
    assert torch.autograd.gradgradcheck(value, (lower, upper, a))


def test_gradients_through_regions():
    """A kink that the products cannot resolve."""
    a = number(0.3).requires_grad_()
    lower, upper = torch.zeros(1, 2).double(), torch.ones(1, 2).double()
    value = integrate(
        lambda x, a: (x.sum(-1) - a).abs(), lower, upper, args=(a,), event_dim=1, rtol=1e-6
    ).value
    (slope,) = torch.autograd.grad(value.sum(), a)
    assert float(slope) == pytest.approx(0.3**2 - 1, abs=1e-3)  # P(sum < a) − P(sum > a)


@pytest.mark.parametrize("d", [2, 3, 4, 6])
def test_genz_and_malik_are_exact_to_their_degrees(d: int):
    rule = genz_malik(d, CPU)
    num_points = 2**d + 2 * d * d + 2 * d + 1
    assert rule.weights.shape[1] == num_points
    points = rule.points[:num_points]
    powers = torch.randint(0, 8, (200, d), generator=torch.Generator().manual_seed(0))
    for power in powers:
        degree = int(power.sum())
        exact_mean = math.prod(0.0 if p % 2 else 1 / (p + 1) for p in power.tolist())
        seven, five = rule.weights @ (points**power).prod(dim=1)
        if degree <= 7:
            assert abs(float(seven) - exact_mean) < 1e-13
        if degree <= 5:
            assert abs(float(five) - exact_mean) < 1e-13
    quartic = rule.fourth @ points[:, 0] ** 4
    assert quartic[0].abs() > 1e-3
    assert quartic[1:].abs().max() < 1e-12
    assert (rule.fourth @ (points**2).sum(dim=1)).abs().max() < 1e-12


def test_checks_are_predicted_for_cubics():
    rule = genz_malik(3, CPU)
    p = rule.weights.shape[1]
    f = lambda x: 1 + x[:, 0] ** 3 - x[:, 0] * x[:, 1] * x[:, 2] + x[:, 2] ** 2  # noqa: E731
    torch.testing.assert_close(rule.prediction @ f(rule.points[:p]), f(rule.points[p:]))


def test_boxes_need_boxes():
    with pytest.raises(ValueError, match=r"must have shape \(\*batch, d\)"):
        integrate(torch.exp, 0.0, 1.0, event_dim=1)
