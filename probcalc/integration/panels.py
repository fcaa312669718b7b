"""Where the points lie: ends, and panels that measure their distance from an end.

A domain is cut at `breaks` into segments, and each segment in the middle into two ends. A panel
is an interval [lo, hi] of the relative distance u from its end, so that a singular end can be
approached down to the smallest float: x = anchor + reach·u, or anchor + reach/u where the end is
infinite. The panel with lo = 0 touches the end; refined, it leaves shells [hi/4, hi], [hi/16,
hi/4], ..., whose integrals `extrapolation` sums to the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SHELL_RATIO = 4.0
ATTENTION = 2**13  # checks that an integral gets at first
ATTENTION_OF_ALL = 2**19  # that a large batch shares
START = 4  # panels of an end at first
START_INFINITE = 14  # the same where some end is infinite: octaves on the way there
SHELLS = 4  # opened at once when an end is refined
_HALVES = 2  # panels of a shell
_SECTIONS = 4  # of any other panel
CHILDREN = SHELLS * _HALVES + 1  # at most, of one panel
_NUDGE = 1e-7  # relative step off a point where the integrand is not finite
_FALL = 1 / 2  # of the first panels towards an infinite end


@dataclass(frozen=True, eq=False)
class Ends:
    """Two for each segment.

    Args:
        elem: Batch element of each.
        anchor: The end itself; of an infinite one the point from which distance is measured.
        reach: Signed distance that u = 1 stands for.
        infinite: Whether u → 0 is infinity.
        some_infinite: Whether any is, known without asking the device.
    """

    elem: Int[Tensor, " e"]
    anchor: Float[Tensor, " e"]
    reach: Float[Tensor, " e"]
    infinite: Bool[Tensor, " e"]
    some_infinite: bool

    def points(
        self, u: Float[Tensor, "n k"], end: Int[Tensor, " k"]
    ) -> tuple[Float[Tensor, "n k"], Float[Tensor, "#n k"]]:
        """Points of the integration variable and |dx/du|."""
        reach, anchor = self.reach[end], self.anchor[end]
        if not self.some_infinite:
            return torch.addcmul(anchor, reach, u), reach.abs()[None]
        infinite = self.infinite[end]
        inverse = u.reciprocal()
        x = torch.addcmul(anchor, reach, torch.where(infinite, inverse, u))
        return x, reach.abs() * torch.where(infinite, inverse.square(), 1.0)

    def points_beside(
        self, u: Float[Tensor, "n k"], end: Int[Tensor, " k"]
    ) -> Float[Tensor, "n k"]:
        """Points a little nearer to their end, but never rounded onto it."""
        x, anchor = self.points(u * (1 - _NUDGE), end)[0], self.anchor[end]
        inside = torch.nextafter(anchor, anchor + self.reach[end])
        return torch.where(x == anchor, inside, x)


@dataclass(frozen=True, eq=False)
class Panels:
    """Intervals [lo, hi] of u; `shell` is −1 before any refinement of the end."""

    end: Int[Tensor, " k"]
    lo: Float[Tensor, " k"]
    hi: Float[Tensor, " k"]
    shell: Int[Tensor, " k"]

    @property
    def touching(self) -> Bool[Tensor, " k"]:
        """Which reach down to their end."""
        return self.lo == 0

    def __getitem__(self, index: Tensor) -> Panels:
        at = numbered(index)
        return Panels(*(t.index_select(0, at) for t in (self.end, self.lo, self.hi, self.shell)))

    @staticmethod
    def joined(parts: list[Panels]) -> Panels:
        """All panels of all parts."""
        columns = zip(*((p.end, p.lo, p.hi, p.shell) for p in parts), strict=True)
        return Panels(*(torch.cat(c) for c in columns))


def numbered(index: Bool[Tensor, " k"] | Int[Tensor, " l"]) -> Int[Tensor, " l"]:
    """A mask's places, found once for all columns that are picked by it."""
    return index.nonzero()[:, 0] if index.dtype == torch.bool else index


def ends_of(edges: Float[Tensor, "b s"]) -> Ends:
    """Ends of the segments between ascending edges; one edge of a segment may be infinite.

    Empty segments (equal edges) are left out.
    """
    b, s = edges.shape
    lo, hi = edges[:, :-1], edges[:, 1:]
    far_left, far_right = lo.isneginf(), hi.isposinf()
    far = far_left | far_right
    reach = (
        torch.where(far, _scale(edges), 0.5 * (hi - lo)) if bool(far.any()) else 0.5 * (hi - lo)
    )
    left = torch.stack([torch.where(far_left, hi, lo), torch.where(far_left, -reach, reach)])
    right = torch.stack([torch.where(far_right, lo, hi), torch.where(far_right, reach, -reach)])
    infinite = torch.stack([far_left, far_right])
    anchor, reach = torch.stack([left, right], dim=1)  # (2 sides, b, s)
    elem = torch.arange(b, device=edges.device)[:, None].expand(2, b, s - 1)
    some = (lo < hi).expand(2, b, s - 1)
    if bool(some.all()):
        picked = (t.flatten() for t in (elem, anchor, reach, infinite))
    else:
        picked = (t[some] for t in (elem, anchor, reach, infinite))
    elem, anchor, reach, infinite = picked
    return Ends(elem, anchor, reach, infinite, bool(infinite.any()))


def _scale(edges: Float[Tensor, "b s"]) -> Float[Tensor, "b 1"]:
    """Where tails begin, as a distance from the last finite edge: the span of all of these."""
    finite = edges.isfinite()
    least = torch.where(finite, edges, math.inf).amin(dim=1, keepdim=True)
    most = torch.where(finite, edges, -math.inf).amax(dim=1, keepdim=True)
    alone = torch.maximum(least.abs(), most.abs()).clamp(min=1.0)
    span = most - least
    return torch.where(span > 0, span, alone)


def first_panels(ends: Ends, per_end: int) -> Panels:
    """Every end in a few panels: equal ones, or growing ones where the end is infinite."""
    e, device = len(ends.elem), ends.elem.device
    step = torch.arange(per_end + 1, dtype=torch.float64, device=device)
    edges = (step / per_end).expand(e, -1)
    if ends.some_infinite:
        growing = torch.where(step > 0, _FALL ** (per_end - step), 0.0)
        edges = torch.where(ends.infinite[:, None], growing, edges)
    end = torch.arange(e, device=device).repeat_interleave(per_end)
    lo, hi = edges[:, :-1].flatten(), edges[:, 1:].flatten()
    return Panels(end, lo, hi, torch.full_like(end, -1))


def joined_ends(parts: list[Ends]) -> Ends:
    """All ends of all parts, in order."""
    columns = zip(*((e.elem, e.anchor, e.reach, e.infinite) for e in parts), strict=True)
    return Ends(*(torch.cat(c) for c in columns), any(e.some_infinite for e in parts))


def refined(panels: Panels) -> Panels:
    """Children of panels: shells and a new panel at the end, or equal sections."""
    touching = panels.touching
    parts = []
    if bool(touching.any()):
        parts.append(_opened(panels[touching]))
        panels = panels[~touching]
    if len(panels.lo):
        parts.append(_cut(panels))
    return Panels.joined(parts) if len(parts) > 1 else parts[0]


def _opened(panels: Panels) -> Panels:
    k, device = len(panels.lo), panels.lo.device
    count = torch.arange(SHELLS * _HALVES + 1, device=device)
    powers = SHELL_RATIO ** (-count.double() / _HALVES)
    hi = panels.hi[:, None] * powers
    lo = torch.cat([hi[:, 1:], torch.zeros_like(hi[:, :1])], dim=1)
    # the panel at the end bears the number of the last shell opened
    number = (1 + count // _HALVES).clamp(max=SHELLS)
    shell = panels.shell[:, None] + number
    end = panels.end[:, None].expand(k, CHILDREN)
    return Panels(end.flatten(), lo.flatten(), hi.flatten(), shell.flatten())


def _cut(panels: Panels) -> Panels:
    share = torch.arange(_SECTIONS + 1, dtype=torch.float64, device=panels.lo.device) / _SECTIONS
    edges = torch.lerp(panels.lo[:, None], panels.hi[:, None], share)
    end, shell = (t.repeat_interleave(_SECTIONS) for t in (panels.end, panels.shell))
    return Panels(end, edges[:, :-1].flatten(), edges[:, 1:].flatten(), shell)
