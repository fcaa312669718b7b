"""Which integers a sum over a countable support needs, and a bound on what the others add.

    Σ_k |f(k)| p(k)  ≤  Σ_cells width · sup |f| p

Every integer between the outermost quantiles is taken. Beyond, |f| and p are looked at in points
that spread geometrically to the ends of the support, wherever the logarithms may take them, so
that mass, growth and jumps far out are met. Cells between such points are halved until those that
add something are few, and these are summed as well.

Inside a cell p is taken to be monotone, as it is beyond the mode of a unimodal family, and |f| to
lie below the larger of its ends; where the product bends slowly, the lines through neighbouring
points bound it better.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_FARTHEST = 2.0**53  # integers beyond which float64 has gaps
_STEPS = sorted({int(2 ** (j / 4)) for j in range(4 * 53)})  # spread of the points
_STEPS_OF_ENDS = sorted({int(2 ** (j / 2)) for j in range(2 * 53)})
_INNER = 64  # cells between the outermost quantiles
_RTOL = 1e-15  # of the largest term: what is left out, all cells together
_NO_MASS = -1490.0  # log of p below which nothing adds to a zero: the smallest float, squared
_ROUNDS, _SPLIT, _PARTS = (
    16,
    32,
    8,
)  # of the search: cells of an element that are cut, into how many
_FEW = 2**12  # terms below which no cell is worth cutting
_ELEMENTS = 2**22  # points of a look that are evaluated together

Look = Callable[[Float[Tensor, "m b"]], tuple[Float[Tensor, "m b o"], Float[Tensor, "m b"]]]


@dataclass(frozen=True, eq=False)
class Span:
    """Ends of the support, and the outermost quantiles, between which everything is summed.

    Args:
        lower: First integer, or −∞.
        upper: Last integer, or ∞.
        first: First integer that is surely summed.
        last: Last one.
    """

    lower: Float[Tensor, " b"]
    upper: Float[Tensor, " b"]
    first: Float[Tensor, " b"]
    last: Float[Tensor, " b"]


@dataclass(frozen=True, eq=False)
class Grid:
    """Points in ascending order, and log|f| and log p there; cells begin at points.

    Args:
        x: Integers; the last is the support's, or the farthest that there is.
        log_f: Logarithms of |f|, −∞ where p is zero.
        log_p: Logarithms of p.
    """

    x: Float[Tensor, "m b"]
    log_f: Float[Tensor, "m b o"]
    log_p: Float[Tensor, "m b"]

    @property
    def log_terms(self) -> Float[Tensor, "m b o"]:
        """Logarithms of |f| p at the points."""
        return self.log_f + self.log_p[..., None]

    @property
    def width(self) -> Float[Tensor, "m b"]:
        """Integers in each cell: from its point to before the next; one in the last."""
        return torch.cat([self.x.diff(dim=0), torch.ones_like(self.x[:1])])

    @property
    def top(self) -> Float[Tensor, "b o"]:
        """Largest of the logarithms of |f| p."""
        return self.log_terms.amax(dim=0)

    def joined(self, other: Grid) -> Grid:
        """Points of both."""
        x, order = torch.cat([self.x, other.x]).sort(dim=0)
        log_f = torch.cat([self.log_f, other.log_f])
        log_p = torch.cat([self.log_p, other.log_p]).gather(0, order)
        return Grid(x, log_f.gather(0, order[..., None].expand_as(log_f)), log_p)

    def log_bound(self) -> Float[Tensor, "m b o"]:
        """Logarithms of what the cells can add."""
        terms, width = self.log_terms, self.width[..., None]
        ends = torch.maximum(self.log_f, _next(self.log_f))
        ends = ends + torch.maximum(self.log_p, _next(self.log_p))[..., None]
        slope = _next(terms).sub(terms) / width
        before = torch.cat([slope[:1], slope[:-1]])
        lines = torch.maximum(terms + before * width, _next(terms) - _next(slope) * width)
        smooth = torch.maximum(torch.maximum(terms, _next(terms)), lines)
        sup = torch.where(smooth.isnan(), ends, torch.minimum(ends, smooth))
        return torch.where(width > 1, sup, terms) + width.log()


@dataclass(frozen=True, eq=False)
class Windows:
    """Runs of integers to be summed.

    Args:
        start: First integer of each run.
        length: How many; zero pads.
        rest: Bound on what is left out.
        missing: Whether mass between the outermost quantiles is left out.
        endless: Whether terms do not vanish towards the end of the support.
    """

    start: Float[Tensor, "c b"]
    length: Float[Tensor, "c b"]
    rest: Float[Tensor, "b o"]
    missing: Bool[Tensor, " b"]
    endless: Bool[Tensor, " b"]

    @property
    def count(self) -> Int[Tensor, " b"]:
        """Integers of each element."""
        return self.length.sum(dim=0).long()

    def points(self, start: int, stop: int) -> tuple[Float[Tensor, "n b"], Bool[Tensor, "n b"]]:
        """The integers numbered so, and which of them are no padding."""
        ends = self.length.cumsum(dim=0).mT.contiguous()  # (b, c)
        step = torch.arange(start, stop, dtype=ends.dtype, device=ends.device)
        step = step.expand(len(ends), -1).contiguous()
        inside = step < ends[:, -1:]
        run = torch.searchsorted(ends, step, right=True).clamp(max=ends.shape[1] - 1)
        k = self.start.mT.gather(1, run) + step - (ends - self.length.mT).gather(1, run)
        return torch.where(inside, k, self.start[0, :, None]).mT, inside.mT


def explored(look: Look, span: Span, further: Float[Tensor, "k b"] | None = None) -> Grid:
    """Points dense enough that cells which add something hold few integers.

    Args:
        look: Gives log|f| and log p.
        span: Where to look.
        further: Points that are to be among them, such as where f overflows.
    """
    points = first_points(span)
    if further is not None:
        points = torch.cat([points, torch.minimum(further, points[-1])]).sort(dim=0).values
    grid = _looked(look, points)
    for _ in range(_ROUNDS):
        width = torch.where(_core(grid.x, span), 0.0, grid.width)
        width = torch.where(_needed(grid), width, 0.0)
        width = torch.where(width.sum(dim=0) > _FEW, width, 0.0)
        width, index = width.topk(min(_SPLIT, len(width)), dim=0)
        wide = width >= 2 * _PARTS
        if not bool(wide.any()):
            break
        part = torch.arange(1, _PARTS, dtype=width.dtype, device=width.device) / _PARTS
        x = grid.x.gather(0, index) + (part[:, None, None] * width).floor()
        x = torch.where(wide, x, grid.x[-1]).flatten(0, 1)
        grid = grid.joined(_looked(look, x))
    return grid


def windows(grid: Grid, span: Span, most: int) -> Windows:
    """The cells that add most, with all between the outermost quantiles, up to `most` terms."""
    bound, width = grid.log_bound(), grid.width
    core, needed = _core(grid.x, span) & (width > 0), _needed(grid)
    share = torch.where(grid.top.isneginf(), grid.log_p[..., None], bound - grid.top)
    density = share.amax(dim=-1) - width.log()
    density = torch.where(core, math.inf, torch.where(needed, density, -math.inf))
    order = density.argsort(dim=0, descending=True, stable=True)
    wanted = torch.where(core | needed, width, 0.0).gather(0, order)
    fits = wanted.cumsum(dim=0) <= most
    chosen = torch.zeros_like(core).scatter(0, order, fits & (wanted > 0))
    left = torch.where(chosen[..., None], -math.inf, bound).logsumexp(dim=0)
    missing = (core & ~chosen).any(dim=0)
    # where nothing was met there is no scale on which what is left out is little
    missing |= (needed & ~chosen).any(dim=0) & grid.top.isneginf().any(dim=-1)
    endless = needed[-1] & (grid.x[-1] < span.upper)
    length = torch.where(fits, wanted, 0.0)
    kept = int((length > 0).sum(dim=0).max().clamp(min=1))
    start = grid.x.gather(0, order)
    return Windows(start[:kept], length[:kept], left.exp(), missing, endless)


def _next(t: Tensor) -> Tensor:
    return torch.cat([t[1:], t[-1:]])


def _core(x: Tensor, span: Span) -> Bool[Tensor, "m b"]:
    return (x >= span.first) & (x <= span.last)


def _needed(grid: Grid) -> Bool[Tensor, "m b"]:
    """Cells that may add something; where f is zero at every point, all with mass."""
    top, width = grid.top, grid.width
    seen = grid.log_bound() > top + math.log(_RTOL / len(grid.x))
    mass = torch.maximum(grid.log_p, _next(grid.log_p)) + width.log() > _NO_MASS
    return torch.where(top.isneginf(), mass[..., None], seen).any(dim=-1) & (width > 0)


def _looked(look: Look, x: Float[Tensor, "m b"]) -> Grid:
    rows = max(1, _ELEMENTS // max(1, x.shape[1]))
    parts = [look(part) for part in x.split(rows)]
    log_f, log_p = (torch.cat(column) for column in zip(*parts, strict=True))
    return Grid(x, log_f, log_p)


def first_points(span: Span) -> Float[Tensor, "m b"]:
    """Between the quantiles, outwards from them, and inwards from the ends of the support."""
    low, high = span.lower.clamp(min=-_FARTHEST), span.upper.clamp(max=_FARTHEST)
    share = torch.linspace(0, 1, _INNER + 1, dtype=low.dtype, device=low.device)
    inner = torch.lerp(span.first, span.last, share[:, None]).floor()
    steps, steps_of_ends = (
        torch.tensor(s, dtype=low.dtype, device=low.device)[:, None]
        for s in (_STEPS, _STEPS_OF_ENDS)
    )
    above = torch.cat([span.last + steps, high - steps_of_ends])
    below = torch.cat([span.first - steps, low + steps_of_ends - 1])
    above = torch.where((above > span.last) & (above < high), above, high)
    below = torch.where((below >= low) & (below < span.first), below, high)
    return torch.cat([below, inner, above, high[None]]).sort(dim=0).values
