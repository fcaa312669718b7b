r"""What convex functions are above their tangents: the terms that divergences are sums of.

    D_f(a, b) = f(b) − f(a) − f′(a) (b − a) ≥ 0

Differences of large numbers where a and b are near each other, unless they are written otherwise.
Banerjee, Merugu, Dhillon & Ghosh (2005), Clustering with Bregman divergences, JMLR 6, section 4:
the KL divergence of two members of an exponential family is that of its log-partition function.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from scipy.special import roots_jacobi
from torch import Tensor

from probcalc.distributions.special import computed_where

_NEAR = 0.02  # of the smaller argument: distances from which a difference keeps its digits
_POINTS = 8
_STIRLING_FROM = 12.0  # where Stirling's series has its digits
# B_2k / (2k (2k − 1)): of ln Γ beyond its leading terms
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)


def exp_gap(x: Float[Tensor, "*x"]) -> Float[Tensor, "*x"]:
    """e^x − 1 − x; its relative error is that of x, times 1/x."""
    return (torch.expm1(x) - x).clamp(min=0.0)


def ratio_gap(t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
    """The value t − 1 − ln t of positive numbers; its relative error is that of t over t − 1."""
    return ((t - 1) - t.log()).clamp(min=0.0)


def mass_gap(p: Float[Tensor, "*p"], log_ratio: Float[Tensor, "*p"]) -> Float[Tensor, "*p"]:
    """The value p ln(p/q) − p + q, from p > 0 and ln(q/p)."""
    return p * exp_gap(log_ratio)


def lgamma_gap(a: Float[Tensor, "*a"], b: Float[Tensor, "*b"]) -> Float[Tensor, "*out"]:
    """Of ln Γ, at positive numbers."""
    return _gap(
        a, b, lambda a, b: torch.lgamma(b) - torch.lgamma(a) - torch.digamma(a) * (b - a), trigamma
    )


def shape_gap(a: Float[Tensor, "*a"], b: Float[Tensor, "*b"]) -> Float[Tensor, "*out"]:
    """Of ln Γ(a) − a ln a + a, which is what two gamma distributions of one mean differ by."""

    def apart(a: Tensor, b: Tensor) -> Tensor:
        return lgamma_excess(b) - lgamma_excess(a) - digamma_excess(a) * (b - a)

    return _gap(a, b, apart, trigamma_excess)


def scaled_gap(a: Float[Tensor, "*a"], b: Float[Tensor, "*b"]) -> Float[Tensor, "*out"]:
    """Of a ln a − a, at positive numbers: b ln(b/a) − b + a."""
    return b * ratio_gap(a / b)


def lgamma_excess(a: Float[Tensor, "*a"]) -> Float[Tensor, "*a"]:
    """The value ln Γ(a) − a ln a + a."""

    def series(a: Tensor) -> Tensor:
        large = _large(a)
        return 0.5 * (math.log(2 * math.pi) - large.log()) + _series(large, lambda k, c: c, 1)

    return computed_where(a >= _STIRLING_FROM, series, torch.lgamma(a) - a * a.log() + a, a)


def digamma_excess(a: Float[Tensor, "*a"]) -> Float[Tensor, "*a"]:
    """ψ(a) − ln a."""

    def series(a: Tensor) -> Tensor:
        large = _large(a)
        return -0.5 / large + _series(large, lambda k, c: -(2 * k - 1) * c, 2)

    return computed_where(a >= _STIRLING_FROM, series, torch.digamma(a) - a.log(), a)


def trigamma_excess(a: Float[Tensor, "*a"]) -> Float[Tensor, "*a"]:
    """ψ′(a) − 1/a."""
    small = torch.where(a < _STIRLING_FROM, a, 1.0)
    shifted = trigamma(small) - 1 / small
    return torch.where(a < _STIRLING_FROM, shifted, _trigamma_series(_large(a)))


def trigamma(a: Float[Tensor, "*a"]) -> Float[Tensor, "*a"]:
    """ψ′(a), which torch has to ten digits only; by its recurrence and Stirling's series."""
    steps = int(_STIRLING_FROM)
    passed = torch.stack([(a + k).square().reciprocal() for k in range(steps)]).sum(dim=0)
    return passed + 1 / (a + steps) + _trigamma_series(a + steps)


def _trigamma_series(a: Tensor) -> Tensor:
    return 0.5 / a.square() + _series(a, lambda k, c: (2 * k - 1) * 2 * k * c, 3)


def _large(a: Tensor) -> Tensor:
    """Arguments of the series, moved to where it and its derivatives have values."""
    return torch.where(a >= _STIRLING_FROM, a, _STIRLING_FROM)


def _series(a: Tensor, coefficient: Callable[[int, float], float], power: int) -> Tensor:
    """Σ c_k a^−(2k − 2 + power), the first largest."""
    inverse = a.square().reciprocal()
    total: Tensor | float = 0.0
    for k in range(len(_STIRLING), 0, -1):
        total = total * inverse + coefficient(k, _STIRLING[k - 1])
    return total * a**-power


def _gap(
    a: Tensor,
    b: Tensor,
    apart: Callable[[Tensor, Tensor], Tensor],
    second: Callable[[Tensor], Tensor],
) -> Tensor:
    """From the second derivative where a and b are near each other."""
    a, b = torch.broadcast_tensors(a, b)
    near = (b - a).abs() <= _NEAR * torch.minimum(a, b)
    return computed_where(near, lambda a, b: near_gap(a, b, second), apart(a, b), a, b)


def near_gap(a: Tensor, b: Tensor, second: Callable[[Tensor], Tensor]) -> Float[Tensor, "*out"]:
    """(b − a)² ∫ (1 − s) f″(a + s (b − a)) ds over [0, 1], by Gauss's rule for that weight."""
    step = b - a
    total: Tensor | float = 0.0
    for node, weight in _RULE:
        total = total + weight * second(torch.lerp(a, b, node))
    return step.square() * total


def _rule() -> list[tuple[float, float]]:
    nodes, weights = roots_jacobi(_POINTS, 1, 0)
    return list(zip((0.5 * (nodes + 1)).tolist(), (weights / 4).tolist(), strict=True))


_RULE = _rule()
