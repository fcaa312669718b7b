"""What a coarse look overlooks: needles in panels that look resolved, mass where all is zero.

Where one turns up, the panel is cut there and the place treated as a singular end, so that shells
close in on it from both sides.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Inexact, Int
from torch import Tensor

from probcalc.integration.measure import FAINT, Measure, Measured, Sums, grouped
from probcalc.integration.panels import (
    START,
    Panels,
    ends_of,
    first_panels,
    joined_ends,
    numbered,
    refined,
)
from probcalc.integration.rules import PanelRule

_OPENINGS = 3  # of an end at a needle before anything is judged
_SEARCHED = 2**12  # points of each of two grids in a panel of an element that is zero so far
_MOST_SEARCHED = 2**21  # points over all elements
_CLOSEST = 1e-12  # to an end, of the geometric grid
_MOST_PEAKS = 4  # in a panel
_FAIR = 1e-6  # of the highest peak, below which one is none


def with_needles(
    measure: Measure, panels: Panels, first: Measured, num_elements: int, rule: PanelRule
) -> tuple[Measure, Panels, Sums]:
    """Panels after the first look, those with a needle cut there and measured anew."""
    needles = first.needles
    size = grouped(first.sums.size, measure.ends.elem[panels.end], num_elements)
    empty = size.amax(dim=1) < FAINT
    if len(panels.lo) and bool(empty.any()):
        needles = _searched(measure, panels, needles, empty)
    found = ~needles.isnan().all(dim=1)
    if not bool(found.any()):
        return measure, panels, first.sums
    edges = _edges(measure, panels[found], needles[found])
    ends = ends_of(edges)
    fresh = first_panels(ends, START)
    whole = numbered(~found)
    for _ in range(_OPENINGS):
        touching = fresh.touching
        fresh = Panels.joined([fresh[~touching], refined(fresh[touching])])
    owner = measure.ends.elem[panels.end[found]]
    fresh = replace(fresh, end=fresh.end + len(measure.ends.elem))
    ends = joined_ends([measure.ends, replace(ends, elem=owner[ends.elem])])
    measure = replace(measure, ends=ends)
    sums = Sums.joined([first.sums[whole], measure(fresh, rule).sums])
    return measure, Panels.joined([panels[whole], fresh]), sums


def _searched(
    measure: Measure, panels: Panels, needles: Float[Tensor, "k m"], empty: Bool[Tensor, " b"]
) -> Float[Tensor, "k l"]:
    """The largest values of elements that were zero at every node."""
    mine = empty[measure.ends.elem[panels.end]].nonzero()[:, 0]
    if not len(mine):
        return needles
    some = panels[mine]
    many = min(_SEARCHED, max(1, _MOST_SEARCHED // (2 * len(mine))))
    step = torch.arange(many, dtype=torch.float64, device=needles.device)
    grid = torch.cat([(step + 0.5) / many, _CLOSEST ** ((step + 0.5) / many)]).sort().values
    u = torch.addcmul(some.lo, some.hi - some.lo, grid[:, None])
    parts = torch.arange(len(mine), device=mine.device).split(max(1, measure.points // len(u)))
    peaks = [_peaks(measure.at(u[:, i], some[i])[1]) for i in parts]
    height = torch.cat([height for height, _ in peaks], dim=1)
    place = u.gather(0, torch.cat([where for _, where in peaks], dim=1))
    best = grouped_max(height[0], measure.ends.elem[some.end], len(empty))
    top = (height > 0) & (height > _FAIR * best[measure.ends.elem[some.end]])
    found = torch.full((len(needles), len(height)), math.nan, dtype=u.dtype, device=u.device)
    found = found.index_put((mine,), torch.where(top, place, math.nan).mT)
    return torch.cat([needles, found], dim=1)


def _peaks(f: Inexact[Tensor, "n k o"]) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """The highest points that are not below their neighbours."""
    height = f.abs().nan_to_num(nan=0.0).amax(dim=2)
    padded = torch.nn.functional.pad(height, (0, 0, 1, 1))
    peak = (height >= padded[:-2]) & (height > padded[2:])
    return torch.where(peak, height, 0.0).topk(min(_MOST_PEAKS, len(f)), dim=0)


def grouped_max(
    height: Float[Tensor, " k"], group: Int[Tensor, " k"], num: int
) -> Float[Tensor, " b"]:
    """Largest of each group, at least 0."""
    return height.new_zeros(num).scatter_reduce(0, group, height, "amax")


def _edges(
    measure: Measure, panels: Panels, needles: Float[Tensor, "k m"]
) -> Float[Tensor, "k s"]:
    """Ends of the panels and the needles in them, ascending."""
    inner = torch.where(needles.isnan(), panels.lo[:, None], needles)
    u = torch.cat([panels.lo[None], inner.mT, panels.hi[None]])
    x = measure.ends.points(u, panels.end)[0]
    return x.mT.sort(dim=1).values
