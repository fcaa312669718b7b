"""One rule on many panels: integral, error estimate, size and rounding of each.

Piessens, de Doncker, Überhuber & Kahaner (1983), QUADPACK, for the error estimate. Further to it
a panel counts as resolved only if its interpolant predicts the integrand between the nodes: a
kink or a needle that hides from the rule shows there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Inexact, Int, Num
from torch import Tensor

from probcalc.integration.panels import Ends, Panels, numbered
from probcalc.integration.rules import PanelRule

_EPS = torch.finfo(torch.float64).eps
_TINY = torch.finfo(torch.float64).tiny
FAINT = 1e-250  # integrals of |f| this small are far tails, or nothing
_REGION = 3  # bad points in one panel that are not isolated
_RESOLVED = 1e-3  # relative error by the rule's own account, below which a miss is a needle
_APART = 0.2  # of the integral of |f|: by so much a rule fed by one point is off
_FEW = 0.02  # share of all bends that one point of a needle has
_SHARP = 0.02  # of the panel's variation, that it bends at least
_MOST_NEEDLES = 8  # in a panel: more are no needles
_AT_END = 0.1  # share of a panel that belongs to its end
_NEAR_EDGE = 0.02  # share of a panel next to an edge, where its parts will look closely
_MANY_POINTS = 60  # in a panel, among which few can be told

# values(x, elem): points (n, k) of the elements (k) to (n, k, o)
Values = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Sums:
    """What the rule makes of panels, or of elements.

    Args:
        value: Integral.
        error: Estimate of its error; inf where the integrand is not finite.
        size: Integral of |f|.
        noise: Error from rounding; inf where there is no use in going on.
    """

    value: Inexact[Tensor, "k o"]
    error: Float[Tensor, "k o"]
    size: Float[Tensor, "k o"]
    noise: Float[Tensor, "k o"]

    @property
    def columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four tensors."""
        return self.value, self.error, self.size, self.noise

    def __getitem__(self, index: Tensor) -> Sums:
        at = numbered(index)
        return Sums(*(t.index_select(0, at) for t in self.columns))

    def where(self, kept: Bool[Tensor, " k"]) -> Sums:
        """Zero in the other rows."""
        return Sums(*(torch.where(kept[:, None], t, 0.0) for t in self.columns))

    @staticmethod
    def joined(parts: list[Sums]) -> Sums:
        """All rows of all parts."""
        if len(parts) == 1:
            return parts[0]
        return Sums(*(torch.cat(c) for c in zip(*(p.columns for p in parts), strict=True)))

    def grouped(self, group: Int[Tensor, " k"], num: int) -> Sums:
        """Totals of the rows of each group."""
        return Sums(*(grouped(t, group, num) for t in self.columns))


@dataclass(frozen=True, eq=False)
class Applied:
    """A rule on the columns of a matrix of values.

    Args:
        value: Integral.
        error: Its estimated error.
        size: Integral of |f|.
        spread: Integral of |f − mean|.
        hidden: Where the rule alone would see nothing of what the checks see.
    """

    value: Inexact[Tensor, " c"]
    error: Float[Tensor, " c"]
    size: Float[Tensor, " c"]
    spread: Float[Tensor, " c"]
    hidden: Bool[Tensor, " c"]


def applied(rule: PanelRule, f: Inexact[Tensor, "n c"]) -> Applied:
    """The rule with QUADPACK's error estimate, or the interpolant's where that is larger."""
    at_nodes, at_checks = f.split([rule.weights.shape[1], len(rule.interpolation)])
    real, predict = rule.weights, rule.interpolation
    weights = real
    if f.is_complex():
        weights, predict = real.to(f.dtype), predict.to(f.dtype)
    value, difference = weights @ at_nodes
    size = real[0] @ at_nodes.abs()
    spread = real[0] @ (at_nodes - value).abs()
    missed = (at_checks - predict @ at_nodes).abs()
    mean_missed = missed.mean(dim=0)
    unit = spread.clamp(min=_TINY)
    own = (200.0 * difference.abs() / unit) ** 1.5
    share = own.maximum(10.0 * (mean_missed / unit).square()).clamp(max=1.0)
    hidden = (own < _RESOLVED) & (share > own)
    return Applied(value, spread.maximum(mean_missed) * share, size, spread, hidden)


@dataclass(frozen=True, eq=False)
class Measured:
    """Sums of panels, and where a needle shows in a panel that the rule calls resolved.

    Args:
        sums: Of every panel.
        needles: Places u where a few points stand out from their neighbours; NaN for none.
    """

    sums: Sums
    needles: Float[Tensor, "k m"]


@dataclass(frozen=True, eq=False)
class Measure:
    """A rule, an integrand and its ends.

    Args:
        values: The integrand.
        ends: From where panels measure their points.
        rounding: Relative rounding error of the integrand's values.
        points: How many points are evaluated together.
    """

    values: Values
    ends: Ends
    rounding: float
    points: int

    def __call__(self, panels: Panels, rule: PanelRule) -> Measured:
        """The rule on every panel."""
        k, together = len(panels.lo), max(1, self.points // len(rule.nodes))
        if k <= together:
            return self._measured(panels, rule)
        starts = torch.arange(k, device=panels.lo.device).split(together)
        parts = [self._measured(panels[i], rule) for i in starts]
        sums = Sums.joined([part.sums for part in parts])
        return Measured(sums, torch.cat([part.needles for part in parts]))

    def at(self, u: Float[Tensor, "n k"], panels: Panels) -> tuple[Tensor, Tensor]:
        """Points x, and the integrand there per unit of the panel."""
        x, slope = self.ends.points(u, panels.end)
        f = self.values(x, self.ends.elem[panels.end])
        return x, f * (slope * (panels.hi - panels.lo))[..., None]

    def _measured(self, panels: Panels, rule: PanelRule) -> Measured:
        u = torch.addcmul(panels.lo, panels.hi - panels.lo, rule.nodes[:, None])
        x, f = self.at(u, panels)
        n, k, o = f.shape
        f, num_bad = self._finite(f, u, panels)
        of = applied(rule, f.reshape(n, k * o))
        noise = (
            self.rounding * of.size
            + self._blur(x[rule.weights.shape[1] // 2], panels, o) * of.spread
        )
        error = of.error
        if num_bad is not None:
            error = torch.where(num_bad > 0, math.inf, of.error)
            noise = torch.where(num_bad >= _REGION, math.inf, noise)
        sums = Sums(*(t.view(k, o) for t in (of.value, error, of.size, noise)))
        return Measured(sums, _needles(rule, f.reshape(n, k * o), of, u, panels.touching))

    def _blur(self, middle: Tensor, panels: Panels, o: int) -> Float[Tensor, " ko"]:
        """Rounding of x relative to the panel: it matters next to an end other than zero."""
        ends = self.ends
        width = (ends.reach[panels.end] * (panels.hi - panels.lo)).abs()
        place = middle.abs() / width
        if ends.some_infinite:
            place = torch.where(ends.infinite[panels.end], 1.0, place)
        return (self.rounding * place)[:, None].expand(-1, o).reshape(-1)

    def _finite(self, f: Tensor, u: Tensor, panels: Panels) -> tuple[Tensor, Tensor | None]:
        """Values, and how many are not finite, which become zero.

        A point where the integrand is not finite is stepped off: a removable singularity on a
        node is nobody's fault.
        """
        good = f.isfinite()
        if bool(good.all()):
            return f, None
        beside = self.ends.points_beside(u, panels.end)
        slope = self.ends.points(u, panels.end)[1] * (panels.hi - panels.lo)
        other = self.values(beside, self.ends.elem[panels.end]) * slope[..., None]
        f = torch.where(good, f, other)
        good = f.isfinite()
        return torch.where(good, f, 0.0), (~good).sum(dim=0).flatten()


def _needles(
    rule: PanelRule,
    f: Inexact[Tensor, "n c"],
    of: Applied,
    u: Float[Tensor, "n k"],
    touching: Bool[Tensor, " k"],
) -> Float[Tensor, "k m"]:
    """Places where a panel is rough that is smooth elsewhere; NaN where there are none.

    Points whose distance from the line between their neighbours is a fair share of all such
    distances, and no small one next to the panel's variation: needles, jumps, poles. Only where
    the rule misses them, or lives by one of them, as the sum over all points shows.
    """
    n, k = u.shape
    none = u.new_full((k, _MOST_NEEDLES), math.nan)
    if n < _MANY_POINTS or not k:
        return none
    f = f[rule.order]
    line = torch.lerp(f[:-2], f[2:], rule.between.to(f.dtype)[:, None])
    bend = (f[1:-1] - line).abs()
    sharp = (bend > _FEW * bend.sum(dim=0)) & (bend > _SHARP * of.spread)
    x = rule.nodes[rule.order]
    share = torch.cat([x[1:2] + x[:1], x[2:] - x[:-2], 2 - x[-1:] - x[-2:-1]]) / 2
    fair = share.to(f.dtype) @ f
    sharp &= of.hidden | ((of.value - fair).abs() > _APART * (share @ f.abs()))
    # what is rough at an end is left to its shells
    t = rule.nodes[rule.order[1:-1], None]
    inside = (t > torch.where(touching, _AT_END, _NEAR_EDGE)) & (t < 1 - _NEAR_EDGE)
    sharp = sharp.view(n - 2, k, -1).any(dim=2) & inside
    count = sharp.sum(dim=0)
    few = (count > 0) & (count <= _MOST_NEEDLES)
    if not bool(few.any()):
        return none
    height = torch.where(sharp & few, bend.view(n - 2, k, -1).amax(dim=2), 0.0)
    top, where = height.topk(_MOST_NEEDLES, dim=0)
    place = u[rule.order[1:-1]].gather(0, where)
    return torch.where(top > 0, place, math.nan).mT


def grouped(rows: Num[Tensor, " k *o"], group: Int[Tensor, " k"], num: int) -> Tensor:
    """Sums of the rows with the same group."""
    if num == 1:
        return rows.sum(dim=0, keepdim=True)
    return rows.new_zeros(num, *rows.shape[1:]).index_add(0, group, rows)
