"""What a coarse look overlooks: needles in panels that look resolved, mass where all is zero.

Where one turns up, the panel is cut there and the place treated as a singular end, so that shells
close in on it from both sides.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probcalc.integration.measure import FAINT, Measure, Measured, Sums, grouped
from probcalc.integration.panels import START, Panels, ends_of, first_panels, joined_ends, refined
from probcalc.integration.rules import PanelRule

_OPENINGS = 3  # of an end at a needle before anything is judged
_SEARCHED = 2**12  # points of each of two grids in a panel of an element that is zero so far
_MOST_SEARCHED = 2**21  # points over all elements
_CLOSEST = 1e-12  # to an end, of the geometric grid


def with_needles(
    measure: Measure, panels: Panels, first: Measured, num_elements: int, rule: PanelRule
) -> tuple[Measure, Panels, Sums]:
    """Panels after the first look, those with a needle cut there and measured anew."""
    needle = first.needle
    size = grouped(first.sums.size, measure.ends.elem[panels.end], num_elements)
    empty = size.amax(dim=1) < FAINT
    if len(panels.lo) and bool(empty.any()):
        needle = _searched(measure, panels, needle, empty)
    found = ~needle.isnan()
    if not bool(found.any()):
        return measure, panels, first.sums
    edges = _edges(measure, panels[found], needle[found])
    ends = ends_of(edges)
    fresh = first_panels(ends, START)
    for _ in range(_OPENINGS):
        touching = fresh.touching
        fresh = Panels.joined([fresh[~touching], refined(fresh[touching])])
    owner = measure.ends.elem[panels.end[found]]
    fresh = replace(fresh, end=fresh.end + len(measure.ends.elem))
    ends = joined_ends([measure.ends, replace(ends, elem=owner[ends.elem])])
    measure = replace(measure, ends=ends)
    sums = Sums.joined([first.sums[~found], measure(fresh, rule).sums])
    return measure, Panels.joined([panels[~found], fresh]), sums


def _searched(
    measure: Measure, panels: Panels, needle: Float[Tensor, " k"], empty: Bool[Tensor, " b"]
) -> Float[Tensor, " k"]:
    """The largest value of elements that were zero at every node."""
    mine = empty[measure.ends.elem[panels.end]].nonzero()[:, 0]
    some = panels[mine]
    many = min(_SEARCHED, max(1, _MOST_SEARCHED // (2 * len(mine))))
    step = torch.arange(many, dtype=torch.float64, device=needle.device)
    grid = torch.cat([(step + 0.5) / many, _CLOSEST ** ((step + 0.5) / many)])[:, None]
    u = torch.addcmul(some.lo, some.hi - some.lo, grid)
    parts = torch.arange(len(mine), device=mine.device).split(max(1, measure.points // len(u)))
    peaks = [
        measure.at(u[:, i], some[i])[1].abs().nan_to_num(nan=0.0).amax(dim=2).max(dim=0)
        for i in parts
    ]
    height = torch.cat([peak.values for peak in peaks])
    place = u.gather(0, torch.cat([peak.indices for peak in peaks])[None])[0]
    best = grouped_max(height, measure.ends.elem[some.end], len(empty))
    top = (height > 0) & (height == best[measure.ends.elem[some.end]])
    return needle.index_put((mine,), torch.where(top, place, math.nan))


def grouped_max(
    height: Float[Tensor, " k"], group: Int[Tensor, " k"], num: int
) -> Float[Tensor, " b"]:
    """Largest of each group, at least 0."""
    return height.new_zeros(num).scatter_reduce(0, group, height, "amax")


def _edges(measure: Measure, panels: Panels, needle: Float[Tensor, " k"]) -> Float[Tensor, "k 3"]:
    u = torch.stack([panels.lo, needle, panels.hi])
    x = measure.ends.points(u, panels.end)[0]
    return x.mT.sort(dim=1).values
