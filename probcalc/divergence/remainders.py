r"""What convex functions are above their tangents: the terms that divergences are sums of.

    D_f(a, b) = f(b) − f(a) − f′(a) (b − a) ≥ 0

Differences of large numbers where a and b are near each other, unless they are written otherwise.
Banerjee, Merugu, Dhillon & Ghosh (2005), Clustering with Bregman divergences, JMLR 6, section 4:
the KL divergence of two members of an exponential family is that of its log-partition function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import roots_jacobi, zeta
from torch import Tensor

from probcalc.distributions.special import computed_where
from probcalc.divergence.gamma_functions import shape_tangent_gap, trigamma, trigamma_excess

_NEAR = 0.02  # of the smaller argument: distances from which a difference keeps its digits
_NEAR_ONE, _ZETA_TERMS = 1e-3, 6  # where ln Γ is as small as its argument's distance
_POINTS = 4  # which over such distances leave 1e-15


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


def lgamma_gap_at_one(b: Float[Tensor, "*b"], log_gamma: Float[Tensor, "*b"]) -> Tensor:
    """Of ln Γ at one, given what that is at b."""
    x = b - 1
    apart = log_gamma + np.euler_gamma * x

    def series(x: Tensor) -> Tensor:
        """Σ ζ(k) (−x)^k/k from the second term on; Abramowitz & Stegun (1964), 6.1.33."""
        total: Tensor | float = 0.0
        for k in range(_ZETA_TERMS, 1, -1):
            total = total * -x + float(zeta(k)) / k
        return x.square() * total

    return computed_where(x.abs() <= _NEAR_ONE, series, apart, x)


def shape_gap(a: Float[Tensor, "*a"], b: Float[Tensor, "*b"]) -> Float[Tensor, "*out"]:
    """Of ln Γ(a) − a ln a + a, which is what two gamma distributions of one mean differ by."""
    return _gap(a, b, shape_tangent_gap, trigamma_excess)


def scaled_gap(a: Float[Tensor, "*a"], b: Float[Tensor, "*b"]) -> Float[Tensor, "*out"]:
    """Of a ln a − a, at positive numbers: b ln(b/a) − b + a."""
    return b * ratio_gap(a / b)


def _gap(
    a: Tensor,
    b: Tensor,
    apart: Callable[[Tensor, Tensor], Tensor],
    second: Callable[[Tensor], Tensor],
) -> Tensor:
    """From the second derivative where a and b are near each other."""
    a, b = torch.broadcast_tensors(a, b)
    near = (b - a).abs() <= _NEAR * torch.minimum(a, b)
    return computed_where(near, lambda a, b: near_gap(a, b, second, _POINTS), apart(a, b), a, b)


def near_gap(
    a: Tensor, b: Tensor, second: Callable[[Tensor], Tensor], points: int = 8
) -> Float[Tensor, "*out"]:
    """(b − a)² ∫ (1 − s) f″(a + s (b − a)) ds over [0, 1], by Gauss's rule for that weight."""
    nodes, weights = (
        torch.as_tensor(t, dtype=a.dtype, device=a.device).reshape(-1, *[1] * a.ndim)
        for t in _rule(points)
    )
    return (b - a).square() * (weights * second(torch.lerp(a, b, nodes))).sum(dim=0)


@cache
def _rule(points: int) -> tuple[list[float], list[float]]:
    nodes, weights = roots_jacobi(points, 1, 0)
    return (0.5 * (nodes + 1)).tolist(), (weights / 4).tolist()
