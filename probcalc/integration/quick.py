"""One look at one easy integral.

The panels and checks of the first sweep of `adaptive`, with nothing around them: most integrals
that are asked for one at a time are smooth, and end here. The bar is the plain difference of the
two rules and the root mean square of the interpolant's misses where that is small enough, else
QUADPACK's. All is computed with NumPy on the host, whose small arrays are the fastest to call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
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
        points: Panel by panel: the rule's nodes, its checks, and some that approach the lower end.
        panels: Their number.
        slope: |dx/du| times the panel's width; None on [0, 1], where panels are equally wide.
        rule: On every panel, on the host.
        weights: Of its two rules.
        each: Of the first on every panel.
        predict: From values at its nodes to its interpolant at all the other points.
        ends: Panels at the ends, where they start.
    """

    points: Float[Tensor, " all"]
    panels: int
    slope: Float[np.ndarray, "p n"] | None
    rule: PanelRule
    weights: Float[np.ndarray, "2 k"]
    each: Float[np.ndarray, "p k"]
    predict: Float[np.ndarray, "k m"]
    ends: slice


@lru_cache
def _layout(left: bool, right: bool, device: torch.device) -> _Layout:
    host = torch.device("cpu")
    inner = 0.0 if left or right else 1.0
    edges = [-math.inf if left else 0.0, *[0.0] * (left and right), math.inf if right else inner]
    ends = ends_of(torch.tensor([edges], dtype=torch.float64))
    panels = first_panels(ends, START_INFINITE if left or right else START)
    rule = gauss_kronrod(host, _CHECKS // len(panels.lo))
    close = torch.tensor(_APPROACH, dtype=torch.float64)
    width = panels.hi - panels.lo
    u = torch.addcmul(panels.lo, width, torch.cat([rule.nodes, close])[:, None])
    x, slope = ends.points(u, panels.end)
    slope = (slope * width).expand_as(u).mT.contiguous().numpy() if left or right else None
    first, *others = panels.touching.nonzero()[:, 0].tolist()
    touching = slice(first, None, others[0] - first if others else len(width))
    predict = torch.cat([rule.interpolation, barycentric(close)]).mT.contiguous().numpy()
    points = x.mT.flatten().to(device)
    weights = rule.weights.numpy()
    each = np.repeat(weights[:1], len(width), axis=0)
    return _Layout(points, len(width), slope, rule, weights, each, predict, touching)


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
    if tolerance.max_evals is not None and len(layout.points) > tolerance.max_evals:
        return None
    shift = upper if left and not right else 0.0 if left else lower
    scale = 1.0 if left or right else upper - lower
    x = torch.add(shift, layout.points, alpha=scale)
    if dtype is not torch.float64:
        x = x.to(dtype)
    version = version_of(x)
    f = fn(x, *args)
    if version_of(x) != version:
        raise ValueError(CHANGED)
    if not torch.is_tensor(f) or f.shape != x.shape or f.requires_grad or f.is_complex():
        return None
    f = f.double().numpy(force=True).reshape(layout.panels, -1)
    with np.errstate(all="ignore"):  # what is not finite ends as a NaN
        f = f if layout.slope is None else f * layout.slope
        value, error, beside, size = _looked_at(layout, f)
    unit = 1.0 if left or right else scale / layout.panels  # all panels are equally wide
    value, error, size = unit * value, unit * error, unit * size
    # points of a narrow interval far from zero are rounded
    blur = 1.0 if left or right else max(abs(lower), abs(upper)) / max(scale, _TINY)
    noise = torch.finfo(dtype).eps * (1 + blur) * size
    rtol = (tolerance.rtol or 0.0) if tolerance.asked else DEFAULT_RTOL
    allowed = max(rtol * abs(value), tolerance.atol or 0.0)
    if allowed < error < math.inf:  # QUADPACK's estimate is sharper
        inside = torch.from_numpy(f[:, : -len(_APPROACH)].T)
        sharper = applied(layout.rule, inside).error
        error = unit * (beside + float(sharper.sum()))
    if not (error + noise <= allowed < math.inf and size > FAINT):
        return None  # NaN included
    found = [torch.from_numpy(np.asarray(v)) for v in (value, error + noise)]
    if dtype is not torch.float64 or device.type != "cpu":
        found = [t.to(device, dtype) for t in found]
    return Estimate(
        *found,
        confidence=tolerance.confidence,
        num_evals=len(layout.points),
        method=METHOD,
    )


def _looked_at(layout: _Layout, f: Float[np.ndarray, "p n"]) -> tuple[float, float, float, float]:
    """Integral, its error, what of that lies near the ends, and integral of |f|.

    The error is infinite where a pole stands at an end.
    """
    k, m = layout.predict.shape
    at_nodes = f[:, :k]
    value, difference = layout.weights @ at_nodes.T
    missed = at_nodes @ layout.predict
    missed -= f[:, k:]
    close = missed[layout.ends, -len(_APPROACH) :]
    beside, pole = 0.0, False
    for near, gap in zip(f[layout.ends, -len(_APPROACH) :].tolist(), close.tolist(), strict=True):
        mass = [t * abs(g) for t, g in zip(_APPROACH, gap, strict=True)]
        beside += SHARE * sum(mass)
        if mass[-1] >= STEADY * mass[-2]:
            sizes = [CLEAR * (abs(x) + abs(x + g)) for x, g in zip(near, gap, strict=True)]
            pole = pole or all(abs(g) > s for g, s in zip(gap[-2:], sizes[-2:], strict=True))
    close[:] = 0.0
    # of all panels at once: no less than the sum of each one's
    miss = math.sqrt(layout.panels * np.vdot(missed, missed) / (m - len(_APPROACH)))
    error = math.inf if pole else sum(map(abs, difference.tolist())) + miss + beside
    return sum(value.tolist()), error, beside, float(np.vdot(np.abs(at_nodes), layout.each))
