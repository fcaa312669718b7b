"""One look at one easy integral.

The panels and checks of the first sweep of `adaptive`, with nothing around them: most integrals
that are asked for one at a time are smooth, and end here. The bar is the plain difference of the
two rules and the mean miss of the interpolant where that is small enough, else QUADPACK's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.integration.measure import FAINT, applied
from probcalc.integration.panels import START, ends_of, first_panels
from probcalc.integration.problem import DEFAULT_RTOL, Tolerance
from probcalc.integration.rules import PanelRule, gauss_kronrod
from probcalc.result import Estimate

METHOD = "adaptive Gauss–Kronrod"
_CHECKS = 2**12  # of the interpolants, over all panels
_EPS = torch.finfo(torch.float64).eps


@lru_cache
def _layout(
    left: bool, right: bool, device: torch.device
) -> tuple[Float[Tensor, " pn"], Float[Tensor, "p n"], PanelRule, Float[Tensor, "k m"]]:
    """Points of a domain of unit size, |dx/du| of its panels, the rule and its interpolant.

    The domain is [0, 1], [0, ∞), (−∞, 0] or the line; points come panel by panel.
    """
    inner = 0.0 if left or right else 1.0
    edges = [-math.inf if left else 0.0, *[0.0] * (left and right), math.inf if right else inner]
    ends = ends_of(torch.tensor([edges], dtype=torch.float64, device=device))
    panels = first_panels(ends, START)
    rule = gauss_kronrod(device, _CHECKS // len(panels.lo))
    width = panels.hi - panels.lo
    u = torch.addcmul(panels.lo, width, rule.nodes[:, None])
    x, slope = ends.points(u, panels.end)
    slope = (slope * width).expand_as(u).mT.contiguous()
    return x.mT.flatten(), slope, rule, rule.interpolation.mT.contiguous()


def quick(
    fn: Callable[..., Tensor],
    lower: float,
    upper: float,
    args: tuple[Any, ...],
    dtype: torch.dtype,
    device: torch.device,
    tolerance: Tolerance,
) -> Estimate | None:
    """The integral if one look is enough; None where it takes more, or gradients."""
    left, right = lower == -math.inf, upper == math.inf
    around_zero = left != right and lower < 0 < upper
    if around_zero or not lower < upper:
        return None
    unit, slope, rule, predict = _layout(left, right, device)
    shift = upper if left and not right else 0.0 if left else lower
    scale = 1.0 if left or right else upper - lower
    x = torch.add(shift, unit, alpha=scale).to(dtype)
    f = fn(x, *args)
    if not torch.is_tensor(f) or f.shape != x.shape or f.requires_grad or f.is_complex():
        return None
    f = f.double().view(slope.shape)
    if left or right:
        f = f * slope
    else:
        scale = scale / slope.shape[0]  # all panels are equally wide
    tables = f, rule.weights, predict
    if f.device.type == "cpu":
        tables = tuple(t.numpy() for t in tables)
    value, distance, miss, size = (scale * figure for figure in _looked_at(*tables))
    error = distance + miss
    # points of a narrow interval far from zero are rounded
    blur = 1.0 if left or right else max(abs(lower), abs(upper)) / scale
    noise = (torch.finfo(dtype).eps + _EPS * blur) * size
    rtol = (tolerance.rtol or 0.0) if tolerance.asked else DEFAULT_RTOL
    allowed = max(rtol * abs(value), tolerance.atol or 0.0)
    if error > allowed:  # what the sharper estimate says
        error = scale * float(applied(rule, f.mT).error.sum())
    if not (error + noise <= allowed and size > FAINT):
        return None  # NaN included
    result = torch.tensor([value, error + noise], dtype=dtype, device=device)
    return Estimate(
        result[0],
        result[1],
        confidence=tolerance.confidence,
        num_evals=f.numel(),
        method=METHOD,
    )


def _looked_at(f: Any, weights: Any, predict: Any) -> list[float]:
    """Integral, distance of the two rules, mean miss of the interpolant, integral of |f|.

    Of tensors, or of NumPy's arrays, which are twice as fast to call.
    """
    k, m = predict.shape
    at_nodes, at_checks = f[:, :k], f[:, k:]
    value, difference = weights @ at_nodes.T
    missed = abs(at_nodes @ predict - at_checks)
    figures = value.sum(), abs(difference).sum(), missed.sum() / m, abs(at_nodes) @ weights[0]
    return [float(figure.sum()) for figure in figures]
