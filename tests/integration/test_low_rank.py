"""Boxes whose integrands are sums of few products: exact where they are, refused where not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from probcalc import integrate
from probcalc.integration.grids import CPU, grid
from probcalc.integration.low_rank import FIBRE, Places, Train, fibres, places, train
from probcalc.integration.orthogonal import LEGENDRE, gauss
from probcalc.integration.problem import Tolerance
from probcalc.integration.quick_box import quick_box

ORDER = 8
COARSE = 5
LEAST = 1e-12

# f, its dimension, the pivots between its axes, and its integral over the unit cube
SUMS = {
    "one product": (lambda x: x.exp().prod(1), 3, [1, 1], (math.e - 1) ** 3),
    "a sum of squares": (lambda x: (x**2).sum(1), 4, [2, 2, 2], 4 / 3),
    "a wave along the diagonal": (
        lambda x: (x.sum(1) / 2).cos(),
        3,
        [2, 2],
        math.cos(3 / 4) * (4 * math.sin(1 / 4)) ** 3,
    ),
    "two axes together": (lambda x: (1 + x[:, 0] * x[:, 1]) * x[:, 2] ** 6, 3, [2, 1], 5 / 28),
    "two dimensions": (lambda x: x[:, 0] ** 3 + x[:, 0] * x[:, 1] ** 2, 2, [2], 5 / 12),
}


def fitted(fn: Callable[[Tensor], Tensor], dim: int) -> tuple[Places, Train]:
    points = grid((LEGENDRE,) * dim, (ORDER,) * dim, CPU).points
    table = fn(points).numpy()
    at = places(table, ORDER, dim, LEAST)
    assert at is not None
    values = fn(torch.from_numpy(fibres(at, points.T.numpy())).T).numpy()
    return at, train(at, table, values)


@pytest.mark.parametrize(("fn", "dim", "ranks", "truth"), SUMS.values(), ids=SUMS.keys())
def test_a_sum_of_few_products_is_exact_everywhere(fn, dim: int, ranks: list[int], truth: float):
    at, found = fitted(fn, dim)
    assert [len(one) for one in at.before] == [1, *ranks]
    assert at.count == found.count
    value, (fine, coarse) = found.integral_and_tables((ORDER, COARSE))
    assert value == pytest.approx(truth, rel=1e-13)
    for order, table in ((ORDER, fine), (COARSE, coarse)):
        points = grid((LEGENDRE,) * dim, (order,) * dim, CPU).points
        np.testing.assert_allclose(table, fn(points).numpy(), atol=1e-12)


def test_fibres_run_along_one_axis():
    dim = 3
    points = grid((LEGENDRE,) * dim, (ORDER,) * dim, CPU).points
    at = places((points**2).sum(1).numpy(), ORDER, dim, LEAST)
    runs = fibres(at, points.T.numpy())
    start, x = 0, gauss(LEGENDRE, FIBRE)[0]
    for k, (front, back) in enumerate(zip(at.before, at.after, strict=True)):
        shape = (dim, len(front), FIBRE, len(back))
        part = runs[:, start : (start := start + math.prod(shape[1:]))].reshape(shape)
        for axis in range(dim):
            if axis == k:
                assert (part[axis] == x[None, :, None]).all()
            else:
                assert (np.ptp(part[axis], axis=1) == 0).all()
    assert start == runs.shape[1]


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: (8 * x[:, 0] * x[:, 1]).sin(),  # of more terms than are looked for
        lambda x: torch.zeros(len(x), dtype=torch.float64),
        lambda x: torch.full((len(x),), math.nan, dtype=torch.float64),
    ],
    ids=["many terms", "nothing", "NaN"],
)
def test_what_is_not_a_sum_of_few_products_is_refused(fn):
    points = grid((LEGENDRE,) * 2, (16, 16), CPU).points
    assert places(fn(points).numpy(), 16, 2, LEAST) is None


def unit(dim: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(dim, dtype=torch.float64), torch.ones(dim, dtype=torch.float64)


SHARP = 12.0
PLACE = 0.37


@pytest.mark.parametrize("dim", [2, 3, 4, 5])
@pytest.mark.parametrize("tilt", [0.0, 0.3], ids=["along the axes", "along a diagonal"])
def test_ridges_and_peaks_take_hardly_more_than_the_first_look(dim: int, tilt: float):
    """A peak too sharp for the first look: rank one, or two with a ridge across two axes."""
    peak = lambda x: (-SHARP * (x - PLACE) ** 2).sum(-1).exp()  # noqa: E731
    first = lambda x: peak(x) * (1 + tilt * x[..., 0] * x[..., -1])  # noqa: E731
    result = integrate(first, *unit(dim), event_dim=1, rtol=1e-8)
    root = math.sqrt(SHARP)
    whole = (
        math.sqrt(math.pi) / (2 * root) * (math.erf(root * (1 - PLACE)) + math.erf(root * PLACE))
    )
    edge = (math.exp(-SHARP * PLACE**2) - math.exp(-SHARP * (1 - PLACE) ** 2)) / (2 * SHARP)
    mean = edge / whole + PLACE
    truth = whole**dim * (1 + tilt * mean**2)
    assert float(result.value) == pytest.approx(truth, rel=1e-12)
    assert result.ok
    assert int(result.num_evals) < 14_000


ROUGH = {
    "a kink": lambda x: (x[..., 0] - 0.4123).abs() + x[..., 1],
    "a step": lambda x: (x[..., 0] > 0.4123).double() * x[..., 1],
    "a kink aslant": lambda x: (x.sum(-1) - 0.9).abs(),
    # a thousandth of the box
    "a needle": lambda x: (
        x.prod(-1) + 50 * (-math.pi * 1e3 ** (2 / x.shape[-1]) * (x - 0.4123) ** 2).sum(-1).exp()
    ),
}


@pytest.mark.parametrize("dim", [2, 3, 4, 5])
@pytest.mark.parametrize("fn", ROUGH.values(), ids=ROUGH.keys())
@pytest.mark.filterwarnings("ignore::probcalc.EstimateWarning")
def test_a_rough_box_is_not_settled_by_what_fits_it_badly(fn, dim: int):
    """The bar covers a value found with a hundred times the points, or the box is flagged."""
    rough = integrate(fn, *unit(dim), event_dim=1, rtol=1e-6, max_evals=2**17)
    finer = integrate(fn, *unit(dim), event_dim=1, rtol=1e-9, max_evals=2**20)
    distance = (rough.value - finer.value).abs()
    bars = rough.error + finer.error
    assert not rough.ok or distance <= torch.maximum(bars, 1e-6 * finer.value.abs())


def test_a_function_that_insists_on_contiguous_points_gets_them():
    flat = lambda x: x.view(-1).reshape(x.shape).prod(-1)  # noqa: E731
    result = integrate(flat, *unit(3), event_dim=1, rtol=1e-8)
    assert result.ok
    assert float(result.value) == pytest.approx(1 / 8, rel=1e-12)


def test_an_error_of_the_callers_function_is_the_callers():
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("no such thing")

    with pytest.raises(RuntimeError, match="no such thing"):
        integrate(broken, *unit(2), event_dim=1)


def test_a_budget_below_the_fibres_is_kept():
    asked = [0]

    def peak(x: Tensor) -> Tensor:
        asked[0] += len(x)
        return (-40 * (x - PLACE) ** 2).sum(-1).exp()

    assert quick_box(peak, *unit(3), (), torch.float64, Tolerance(1e-12, max_evals=1900)) is None
    assert asked[0] <= 1900
    assert (
        quick_box(peak, *unit(3), (), torch.float64, Tolerance(1e-12, max_evals=2000)) is not None
    )


def test_one_look_serves_what_has_gradients_elsewhere():
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    fn = lambda x, w: (w * x).prod(-1)  # noqa: E731
    asked = Tolerance(1e-6)
    assert quick_box(fn, *unit(2), (weight,), torch.float64, asked) is None
    assert quick_box(fn, *unit(2), (weight.detach(),), torch.float64, asked) is not None
