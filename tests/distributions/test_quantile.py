"""Quantiles of extreme shapes and levels, and under vmap."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from problems.expectations import mixture, number
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.cdf import cdf
from probcalc.distributions.quantile import quantile


def _mixture(logits: Tensor, loc: Tensor, df: Tensor) -> td.Distribution:
    parts = td.StudentT(df.expand(2), torch.stack([loc, -loc]), torch.ones_like(loc))
    weights = torch.stack([logits, torch.zeros_like(logits)])
    return td.MixtureSameFamily(td.Categorical(logits=weights), parts)


# name -> (family, parameters)
CONTINUOUS: dict[str, tuple[Callable, tuple[float, ...]]] = {
    "normal": (td.Normal, (1.0, 0.5)),
    "gamma": (td.Gamma, (0.3, 2.0)),
    "large gamma": (td.Gamma, (70.0, 0.1)),
    "beta": (td.Beta, (0.5, 2.0)),
    "Student": (td.StudentT, (3.3, 1.0, 2.0)),
    "F": (td.FisherSnedecor, (3.0, 7.0)),
    "Gumbel": (td.Gumbel, (1.0, 2.0)),
    "mixture": (_mixture, (0.4, 2.0, 3.5)),
}
both_tails = pytest.mark.parametrize("upper", [False, True])


def _parameters(name: str) -> list[Tensor]:
    return [number(v).requires_grad_() for v in CONTINUOUS[name][1]]


# shapes for which SciPy's inverses give NaN, lose digits or stop at the smallest number
EXTREME = {
    "beta(2.5, 3)": td.Beta(number(2.5), number(3.0)),
    "beta(30, 7)": td.Beta(number(30.0), number(7.0)),
    "beta(100, 100)": td.Beta(number(100.0), number(100.0)),
    "Student(1)": td.StudentT(number(1.0)),
    "Student(1e6)": td.StudentT(number(1e6)),
    "F(0.2, 300)": td.FisherSnedecor(number(0.2), number(300.0)),
    "F(300, 3)": td.FisherSnedecor(number(300.0), number(3.0)),
    "gamma(1e5)": td.Gamma(number(1e5), number(1.0)),
}


@pytest.mark.parametrize("name", EXTREME)
@both_tails
def test_levels_of_extreme_shapes(name: str, upper: bool):
    dist = EXTREME[name]
    p = number(1e-300, 1e-250, 1e-150, 1e-20, 0.2, 0.5, 0.9)
    x = quantile(dist, p, upper=upper)
    one = (x <= 0) | (x == 1) if not dist.support.check(number(-1.0)) else x.isinf()
    tail = cdf(dist, x, upper=upper)
    inside = torch.where(one, quantile(dist, number(0.5)), x)
    slope = dist.log_prob(inside).exp()
    rounding = 4e-16 * x.abs() * slope
    assert ((tail - p).abs() <= 1e-9 * p + rounding)[~one].all()


@pytest.mark.parametrize("name", ["normal", "large gamma", "Student", "F", "mixture", "Gumbel"])
def test_quantiles_far_out_have_derivatives(name: str):
    """Where products of densities are no numbers: dx/dp = 1/p(x)."""
    parameters = _parameters(name)
    p = number(1e-120).requires_grad_()
    dist = CONTINUOUS[name][0](*parameters)
    x = quantile(dist, p, upper=True)
    slopes = torch.autograd.grad(x, [p, *parameters], create_graph=True)
    density = dist.log_prob(x.detach()).exp().detach()
    assert float((slopes[0].detach() * density + 1).abs()) < 1e-9
    step, size = 1e-5, float(x.detach().abs())
    for i, value in enumerate(CONTINUOUS[name][1]):
        moved = [
            float(quantile(CONTINUOUS[name][0](*_shifted(name, i, s)), p.detach(), upper=True))
            for s in (value * step, -value * step)
        ]
        slope = (moved[0] - moved[1]) / (2 * value * step)
        assert float(slopes[i + 1].detach()) == pytest.approx(slope, rel=1e-5, abs=1e-9 * size)
    second = torch.autograd.grad(
        sum(slopes[1:]), parameters, allow_unused=True, materialize_grads=True
    )
    assert all(bool(s.isfinite()) for s in second)


def _shifted(name: str, i: int, by: float) -> list[Tensor]:
    return [number(v + by * (i == j)) for j, v in enumerate(CONTINUOUS[name][1])]


@pytest.mark.parametrize("name", ["normal", "gamma", "Student", "F", "beta"])
def test_quantiles_under_vmap(name: str):
    make, values = CONTINUOUS[name]
    theta = tuple(map(number, values))
    p = number(0.1, 0.5, 0.97)

    def level(p: Tensor, *theta: Tensor) -> Tensor:
        return quantile(make(*theta, validate_args=False), p)

    dims = (0, *[None] * len(theta))
    torch.testing.assert_close(torch.func.vmap(level, dims)(p, *theta), level(p, *theta))
    slopes = torch.func.vmap(torch.func.grad(level, 1), dims)(p, *theta)
    leaf = theta[0].clone().requires_grad_()
    rest = theta[1:]
    expected = [torch.autograd.grad(level(v, leaf, *rest), leaf)[0] for v in p]
    torch.testing.assert_close(slopes, torch.stack(expected))


def test_quantiles_of_mixtures_with_gaps_and_different_sizes():
    parts = td.Uniform(number(0.0, 2.0), number(1.0, 3.0))
    gap = td.MixtureSameFamily(td.Categorical(number(0.5, 0.5)), parts)
    torch.testing.assert_close(quantile(gap, number(0.25, 0.5, 0.75)), number(0.5, 1.0, 2.5))
    wide = mixture((0.5, 0.5), (0.0, 0.0), (1e-12, 1e12))
    p = number(0.1, 0.3, 0.499, 0.7)
    torch.testing.assert_close(cdf(wide, quantile(wide, p)), p, rtol=1e-13, atol=0)
