"""Adaptive cubature of the cells of all elements at once, breadth first.

Cells with more than their share of their element's error are halved along the axis of the largest
fourth difference. Genz & Malik (1980); Arumugam, Sakiotis & Paterno (2021), PAGANI.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probcalc.integration.box_rules import BoxRule, genz_malik
from probcalc.integration.cells import POINTS, Box, Cells
from probcalc.integration.goal import Goal
from probcalc.integration.grids import scattered
from probcalc.integration.measure import FAINT, Sums, grouped
from probcalc.status import Status

_TINY = torch.finfo(torch.float64).tiny
_LATER = 1e-2  # of the present error, for cells whose turn has not come
_SHARE = 0.5  # of the tolerance, for the cells that are left as they are
_TWO_LEVELS = 0.125  # of the distance between a cell and its halves, as an error of each half
_WIDEST = 1e-8  # weight of an axis' width where fourth differences do not tell axes apart
_MISSED = 1.0  # weight of the squared relative miss of the cubic, as a relative error
_SEARCHED = 2**13  # points in an element that is zero so far
_AROUND = 0.02  # half width of the cell around what was found there
_NARROW = 1e-12  # half-width below which a cell is not halved
_SPECK = 1e-3  # share of the volume with all mass, below which some of it may be missing
_DENSE = 0.1  # density, relative to the mean one, of what counts as holding mass
_HOPELESS = 0.1  # error relative to the integral of |f| at which a divergence is suspected
_WIDE = 1e-2  # the same, where the error is as large as the value
_FIRST = {2: 8, 3: 4, 4: 3}  # cells an axis at first; 2 in more dimensions, 1 in many
_HALVED_UP_TO = 7
_MOST_CELLS = 2**16  # at first, over all elements


def regions(
    box: Box, left: Tensor, dim: int, goal: Goal, spent: Tensor, status: Tensor
) -> tuple[Cells, Sums, Tensor, Tensor]:
    """Halve regions, all of all elements at once, until each has converged or spent its budget."""
    rule = genz_malik(dim, left.device)
    cells = _first_cells(left, dim)
    sums, axis = _measured(box, cells, rule)
    cells, sums, axis = _searched(box, cells, sums, axis, rule)
    b, first = len(spent), True
    spent = spent + grouped(torch.ones_like(axis), cells.elem, b) * len(rule.points)
    while True:
        total = sums.grouped(cells.elem, b)
        tolerance = goal.tolerance(total)
        met = (total.error <= tolerance).all(dim=1) & (not first)
        count = grouped(torch.ones_like(axis, dtype=torch.float64), cells.elem, b)[:, None]
        share = torch.maximum(_SHARE * tolerance, _LATER * total.error) / count.clamp(min=1)
        wide = cells.half.gather(1, axis[:, None])[:, 0] > _NARROW
        chosen = (sums.error > share[cells.elem]).any(dim=1) & ~met[cells.elem] & wide
        if first:  # one level alone may be lucky
            chosen, first = wide, False
        cost = grouped(chosen.long(), cells.elem, b) * (2 * len(rule.points))
        over = spent + cost > goal.max_evals
        chosen &= ~over[cells.elem]
        if not bool(chosen.any()):
            wide = (total.error > 0.5 * total.value.abs()) & (total.error > _WIDE * total.size)
            hopeless = (wide | (total.error > _HOPELESS * total.size)).any(dim=1) & ~met
            narrow = _volume_of_mass(cells, sums, total) < _SPECK
            status = status | torch.where(hopeless, int(Status.DIVERGENT), 0)
            return cells, sums, spent, status | torch.where(narrow, int(Status.UNRESOLVED_MASS), 0)
        spent = spent + torch.where(over, 0, cost)
        cells, sums, axis = _halved(box, cells, sums, axis, chosen, rule)


def _first_cells(elem: Int[Tensor, " k"], dim: int) -> Cells:
    """Every cube in equal cells: enough of them to notice what one rule would not."""
    per_axis = _FIRST.get(dim, 2 if dim <= _HALVED_UP_TO else 1)
    while per_axis > 1 and len(elem) * per_axis**dim > _MOST_CELLS:
        per_axis -= 1
    step = (torch.arange(per_axis, dtype=torch.float64, device=elem.device) + 0.5) / per_axis
    centre = torch.cartesian_prod(*[step] * dim).reshape(-1, dim)
    owner = elem.repeat_interleave(len(centre))
    centre = centre.repeat(len(elem), 1)
    half = torch.full_like(centre, 0.5 / per_axis)
    return Cells(owner, centre, half, torch.zeros_like(owner))


def _measured(box: Box, cells: Cells, rule: BoxRule) -> tuple[Sums, Int[Tensor, " k"]]:
    """Genz and Malik's rule on every cell, and the axis along which each is roughest."""
    sums, axes = [], []
    every = torch.arange(len(cells.elem), device=cells.elem.device)
    for index in every.split(max(1, POINTS // len(rule.points))):
        f, num_bad = box.on(cells[index], rule)
        n, k, o = f.shape
        p = rule.weights.shape[1]
        flat, at_checks = f.reshape(n, k * o).split([p, n - p])
        seven, five = rule.weights.to(f.dtype) @ flat
        spread = (flat - flat.mean(dim=0)).abs().mean(dim=0)
        missed = (at_checks - rule.prediction.to(f.dtype) @ flat).abs().mean(dim=0)
        share = (_MISSED * (missed / spread.clamp(min=_TINY)).square()).clamp(max=1.0)
        error = (seven - five).abs().maximum(spread.maximum(missed) * share)
        error = torch.where(num_bad.flatten() > 0, torch.inf, error)
        size = rule.weights[0].abs() @ flat.abs()
        noise = box.rounding * size
        sums.append(Sums(*(t.view(k, o) for t in (seven, error, size, noise))))
        rough = (rule.fourth.to(f.dtype) @ flat).abs().view(-1, k, o).amax(dim=2)
        # where no axis is rougher than another, the widest
        axes.append(
            (rough + _WIDEST * rough.amax(dim=0) * cells.half[index].mT + _TINY).argmax(dim=0)
        )
    return Sums.joined(sums), torch.cat(axes)


def _halved(
    box: Box, cells: Cells, sums: Sums, axis: Tensor, chosen: Tensor, rule: BoxRule
) -> tuple[Cells, Sums, Tensor]:
    parents, along = cells[chosen], axis[chosen]
    unit = torch.nn.functional.one_hot(along, cells.centre.shape[1])
    step = 0.5 * parents.half * unit
    pair = [
        replace(parents, centre=parents.centre + s * step, half=parents.half - step)
        for s in (-1, 1)
    ]
    fresh = Cells.joined(pair)
    measured, fresh_axis = _measured(box, fresh, rule)
    k = len(along)
    # two levels of one rule disagree by what the coarser one missed
    jump = (measured.value[:k] + measured.value[k:] - sums.value[chosen]).abs()
    error = measured.error.maximum(_TWO_LEVELS * jump.repeat(2, 1))
    kept = ~chosen
    return (
        Cells.joined([cells[kept], fresh]),
        Sums.joined([sums[kept], replace(measured, error=error)]),
        torch.cat([axis[kept], fresh_axis]),
    )


def _volume_of_mass(cells: Cells, sums: Sums, total: Sums) -> Float[Tensor, " b"]:
    """Share of each element's cube in cells that hold a fair part of its integral of |f|.

    A peak on a face that the checks straddle would be seen from one side only: where all mass
    lies in a speck, no neighbour has said that it is alone.
    """
    share = (sums.size / total.size[cells.elem].clamp(min=_TINY)).amax(dim=1)
    volume = (2 * cells.half).prod(dim=1)
    dense = share > _DENSE * volume
    inside = grouped(torch.where(dense, volume, 0.0), cells.elem, len(total.size))
    present = grouped(torch.ones_like(volume), cells.elem, len(total.size)) > 0
    return torch.where(present, inside, 1.0)


def _searched(
    box: Box, cells: Cells, sums: Sums, axis: Tensor, rule: BoxRule
) -> tuple[Cells, Sums, Tensor]:
    """Elements that are zero so far, cut around the largest value of many more points."""
    b = int(cells.elem.max()) + 1
    size = grouped(sums.size, cells.elem, b).amax(dim=1)
    present = grouped(torch.ones_like(axis), cells.elem, b) > 0
    elem = ((size <= FAINT) & present).nonzero()[:, 0]
    if not len(elem):
        return cells, sums, axis
    dim = cells.centre.shape[1]
    t = scattered(dim, _SEARCHED, cells.centre.device)[:, None].expand(-1, len(elem), -1)
    height = box.at(t, elem).abs().nan_to_num(nan=0.0).amax(dim=2)
    top, where = height.max(dim=0)
    place = t[where, torch.arange(len(where), device=where.device)]
    found = top > 0
    if not bool(found.any()):
        return cells, sums, axis
    fresh = _around(elem[found], place[found])
    more, more_axis = _measured(box, fresh, rule)
    kept = ~torch.isin(cells.elem, elem[found])
    return (
        Cells.joined([cells[kept], fresh]),
        Sums.joined([sums[kept], more]),
        torch.cat([axis[kept], more_axis]),
    )


def _around(elem: Int[Tensor, " k"], place: Float[Tensor, "k d"]) -> Cells:
    """The unit cube in 3^d cells, the middle one around a place."""
    k, dim = place.shape
    low, high = (place - _AROUND).clamp(min=0.0), (place + _AROUND).clamp(max=1.0)
    edges = torch.stack([0 * place, low, high, 0 * place + 1])  # (4, k, d)
    index = torch.cartesian_prod(*[torch.arange(3, device=place.device)] * dim).view(-1, dim)
    axis = torch.arange(dim, device=place.device)
    low, high = (edges[index + i, :, axis].permute(2, 0, 1) for i in (0, 1))  # (k, 3^d, d)
    centre, half = 0.5 * (low + high).reshape(-1, dim), 0.5 * (high - low).reshape(-1, dim)
    owner = elem.repeat_interleave(len(index))
    proper = (half > 0).all(dim=1)
    return Cells(owner, centre, half, torch.zeros_like(owner))[proper]
