"""One look at one easy integral.

The panels and checks of the first sweep of `adaptive`, with nothing around them: most integrals
that are asked for one at a time are smooth, and end here. The bar is the plain difference of the
two rules and the mean miss of the interpolant where that is small enough, else QUADPACK's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probcalc.integration.edges import CLEAR, SHARE, STEADY
from probcalc.integration.integrand import CHANGED, version_of
from probcalc.integration.measure import FAINT, applied
from probcalc.integration.panels import START, START_INFINITE, ends_of, first_panels
from probcalc.integration.problem import DEFAULT_RTOL, Tolerance
from probcalc.integration.rules import PanelRule, barycentric, gauss_kronrod
from probcalc.result import Estimate

METHOD = "adaptive Gauss–Kronrod"
_CHECKS = 5632  # of the interpolants, over all panels
_APPROACH = (4e-3, 1.6e-5, 6e-8)  # to an end, relative to its panel
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, eq=False)
class _Layout:
    """Points of a domain of unit size: [0, 1], [0, ∞), (−∞, 0] or the line.

    Args:
        points: Panel by panel, then those that approach the ends.
        slope: |dx/du| times the panel's width.
        rule: On every panel.
        predict: Its interpolant.
        ends: Panels at the ends.
        distance: Of the approaching points, relative to the panel.
        near_slope: Like `slope`, at these.
        near_predict: From values at a panel's nodes to the interpolant there.
    """

    points: Float[Tensor, " all"]
    slope: Float[Tensor, "p n"]
    rule: PanelRule
    predict: Float[Tensor, "k m"]
    ends: Int[Tensor, " e"]
    distance: Float[Tensor, " q"]
    near_slope: Float[Tensor, "e q"]
    near_predict: Float[Tensor, "k q"]


@lru_cache
def _layout(left: bool, right: bool, device: torch.device) -> _Layout:
    inner = 0.0 if left or right else 1.0
    edges = [-math.inf if left else 0.0, *[0.0] * (left and right), math.inf if right else inner]
    ends = ends_of(torch.tensor([edges], dtype=torch.float64, device=device))
    panels = first_panels(ends, START_INFINITE if left or right else START)
    rule = gauss_kronrod(device, _CHECKS // len(panels.lo))
    width = panels.hi - panels.lo
    u = torch.addcmul(panels.lo, width, rule.nodes[:, None])
    x, slope = ends.points(u, panels.end)
    slope = (slope * width).expand_as(u).mT.contiguous()
    touching = panels.touching.nonzero()[:, 0]
    t = torch.tensor(_APPROACH, dtype=torch.float64, device=device)
    near, near_slope = ends.points(t[:, None] * panels.hi[touching], panels.end[touching])
    near_slope = (near_slope * width[touching]).expand_as(near).mT.contiguous()
    points = torch.cat([x.mT.flatten(), near.mT.flatten()])
    tables = slope, rule, rule.interpolation.mT.contiguous(), touching, t, near_slope
    return _Layout(points, *tables, barycentric(t).mT.contiguous())


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
    layout = _layout(left, right, device)
    if len(layout.points) > (tolerance.max_evals or math.inf):
        return None
    shift = upper if left and not right else 0.0 if left else lower
    scale = 1.0 if left or right else upper - lower
    x = torch.add(shift, layout.points, alpha=scale).to(dtype)
    version = version_of(x)
    f = fn(x, *args)
    if version_of(x) != version:
        raise ValueError(CHANGED)
    if not torch.is_tensor(f) or f.shape != x.shape or f.requires_grad or f.is_complex():
        return None
    f, near = f.double().tensor_split([layout.slope.numel()])
    f, near = f.view(layout.slope.shape), near.view(layout.near_slope.shape)
    if left or right:
        f, near = f * layout.slope, near * layout.near_slope
    else:
        scale = scale / layout.slope.shape[0]  # all panels are equally wide
    value, distance, miss, size, beside, pole = _looked_at(layout, f, near)
    if pole:
        return None
    value, size = scale * value, scale * size
    error = scale * (distance + miss + beside)
    # points of a narrow interval far from zero are rounded
    blur = 1.0 if left or right else max(abs(lower), abs(upper)) / max(scale, _TINY)
    noise = torch.finfo(dtype).eps * (1 + blur) * size
    rtol = (tolerance.rtol or 0.0) if tolerance.asked else DEFAULT_RTOL
    allowed = max(rtol * abs(value), tolerance.atol or 0.0)
    if error > allowed:  # what the sharper estimate says
        error = scale * (beside + float(applied(layout.rule, f.mT).error.sum()))
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


def _looked_at(
    layout: _Layout, f: Float[Tensor, "p n"], near: Float[Tensor, "e q"]
) -> list[float]:
    """Figures of one look, with NumPy's arrays on the CPU, which are twice as fast to call.

    Integral, distance of the two rules, mean miss of the interpolant, integral of |f|, mass near
    the ends, and whether there is a pole.
    """
    tables = layout.rule.weights, layout.predict, layout.near_predict, layout.distance, layout.ends
    if f.device.type == "cpu":
        f, near, *tables = (t.numpy() for t in (f, near, *tables))
    weights, predict, near_predict, t, ends = tables
    k, m = predict.shape
    at_nodes, at_checks = f[:, :k], f[:, k:]
    value, difference = weights @ at_nodes.T
    missed = abs(at_nodes @ predict - at_checks)
    expected = at_nodes[ends] @ near_predict
    apart = abs(expected - near)
    mass = apart * t
    clear = apart[:, -2:] > CLEAR * (abs(near) + abs(expected))[:, -2:]
    pole = (mass[:, -1] >= STEADY * mass[:, -2]) & clear.all(1)
    size = abs(at_nodes) @ weights[0]
    figures = value, abs(difference), missed / m, size, SHARE * mass, pole
    return [float(figure.sum()) for figure in figures]
