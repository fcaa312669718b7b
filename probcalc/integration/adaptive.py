"""Adaptive quadrature of many integrals at once, breadth first.

Every sweep evaluates all new panels of all unfinished elements together, closes the elements
whose error is small enough, and refines, of the others, every panel with more than its share of
the error. Panels that touch an end are refined into shells, whose sum is extrapolated.

Arumugam, Sakiotis & Paterno (2021), PAGANI, for the breadth-first scheme.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Inexact, Int, Num
from torch import Tensor

from probcalc.integration.edges import probed
from probcalc.integration.extrapolation import levin_limit
from probcalc.integration.goal import Goal
from probcalc.integration.measure import Measure, Sums, grouped
from probcalc.integration.needles import with_needles
from probcalc.integration.panels import (
    ATTENTION,
    ATTENTION_OF_ALL,
    CHILDREN,
    SHELLS,
    START,
    START_INFINITE,
    Ends,
    Panels,
    first_panels,
    numbered,
    refined,
)
from probcalc.integration.rules import PanelRule, gauss_kronrod
from probcalc.status import Status

_EPS = torch.finfo(torch.float64).eps
_TINY = torch.finfo(torch.float64).tiny
_SHARE = 0.5  # of the tolerance, for the panels that are left as they are
_LATER = 1e-2  # of the present error, for panels whose turn has not come
_FEWEST_SHELLS = 8  # before they are extrapolated
_SHELLS_OF_A_POLE = 28  # that are opened to judge it
_MOST_SHELLS = 64
_STILL = 1e-5  # loss from shell to shell below which their sum diverges
_NARROW = 8.0 * _EPS  # a panel of this width, relative to its place, is not cut
_TOO_NEAR = 1e-10  # an end is not opened below this, relative to its place
_UNSEEN = 2.0  # error of a panel too narrow to cut, in units of its share
_GROWING = 0.85  # ratio of successive refinements' integrals of |f| above which they diverge
_MOSTLY = 0.1  # share of the integral of |f| in panels too narrow to cut, which is suspicious
_LOCAL = 1e-2  # share of the domain being refined, above which a slow decay proves nothing
_CONSISTENT = 0.3  # of the geometric series' rest, below which an extrapolated one is refused
_MOST_REST = 30.0  # of the geometric series' rest, above which an extrapolated one is refused
_CANCELLED = 0.05  # of the integral of |f| over a shell: less is a wave within the shell
_HARMONIC_FROM = 12  # shells, from which a harmonic series is told from a geometric one
_HARMONIC = 1.1  # exponent p of terms k^-p up to which their sum is called divergent
_SLOWING = 1.4  # of the relative fall from one half of the shells to the other
_MEMORY = 4  # shells over which ratios are taken, and refinements that are too recent
_TRAIL = 20  # refinements that are remembered
_FEWEST_STEPS = 6  # of these, from which their decay is known
_MANY = 8  # ends of an element that count as many
_CHECKS = 6  # of a panel, at least


@dataclass(frozen=True, eq=False)
class Work:
    """Elements, in rows, and all their panels."""

    ids: Int[Tensor, " a"]  # the element of each row, ascending
    panels: Panels
    row: Int[Tensor, " k"]  # the row of each panel
    sums: Sums
    spent: Int[Tensor, " a"]
    trail: Float[Tensor, "a m"]  # log integral of |f| over what each local refinement refined
    poles: Bool[Tensor, " a"]  # whether there seems to be one at an end
    shells: int  # most that an end may have by now

    def only(self, kept: Bool[Tensor, " a"]) -> Work:
        """The rows to go on with."""
        leaf, rows = numbered(kept[self.row]), numbered(kept)
        row = (kept.cumsum(0) - 1)[self.row[leaf]]
        columns = self.spent[rows], self.trail[rows], self.poles[rows], self.shells
        return Work(self.ids[rows], self.panels[leaf], row, self.sums[leaf], *columns)

    def total(self, sums: Sums) -> Sums:
        """Of the panels of each row."""
        return sums.grouped(self.row, len(self.ids))

    def sum_rows(self, of_panels: Num[Tensor, " k"]) -> Num[Tensor, " a"]:
        """Of one figure of the panels of each row."""
        return grouped(of_panels, self.row, len(self.ids))


@dataclass(frozen=True, eq=False)
class Swept:
    """Integrals of all elements with their flags, and the panels that they stand on.

    Args:
        sums: Totals, ``(b, o)``.
        status: Flags, ``(b)``.
        num_evals: Points spent, ``(b)``.
        work: Final panels of all elements, with the sums of each.
        ends: From where these measure.
    """

    sums: Sums
    status: Int[Tensor, " b"]
    num_evals: Int[Tensor, " b"]
    work: Work
    ends: Ends

    def assembled(self, values: Inexact[Tensor, "k o"]) -> Inexact[Tensor, "b o"]:
        """Integrals from other values of the same panels, differentiably."""
        work = replace(self.work, sums=replace(self.work.sums, value=values))
        return work.total(with_limits(work)[0]).value


def adaptive(measure: Measure, num_elements: int, goal: Goal) -> Swept:
    """Integrate every element over its ends.

    Args:
        measure: The integrand, with the ends from where panels start.
        num_elements: Size of the batch; every element has ends.
        goal: Tolerances and budget.
    """
    device = measure.ends.elem.device
    coarse = gauss_kronrod(device, _CHECKS)
    per_end = START_INFINITE if measure.ends.some_infinite else START
    per_end = per_end if len(measure.ends.elem) <= _MANY * num_elements else 1
    panels = first_panels(measure.ends, per_end)
    attention = min(ATTENTION, goal.max_evals // 2) * num_elements
    each = min(attention, ATTENTION_OF_ALL) // max(len(panels.lo), 1)
    rule = gauss_kronrod(device, max(each, _CHECKS))
    first, num_ends = measure(panels, rule), len(measure.ends.elem)
    first_ends = measure.ends.elem[panels.end]
    measure, panels, sums = with_needles(measure, panels, first, num_elements, coarse)
    sums, poles = probed(measure, panels, sums, num_elements)
    spent = _count(first_ends, num_elements) * len(rule.nodes)
    fresh = panels.end >= num_ends
    spent = spent + _count(measure.ends.elem[panels.end[fresh]], num_elements) * len(coarse.nodes)
    work = _started(panels, sums, measure.ends, spent, poles)
    closed: list[Swept] = []
    while True:
        work, chosen = _swept(work, measure.ends, goal, closed, len(coarse.nodes))
        if not len(work.ids):
            return _collected(closed, measure.ends)
        fresh = refined(work.panels[chosen])
        work = _grown(work, chosen, fresh, measure(fresh, coarse).sums, measure.ends, coarse)


def _count(elem: Int[Tensor, " k"], num_elements: int) -> Int[Tensor, " b"]:
    return torch.bincount(elem, minlength=num_elements)


def _started(
    panels: Panels, sums: Sums, ends: Ends, spent: Int[Tensor, " b"], poles: Bool[Tensor, " b"]
) -> Work:
    row = ends.elem[panels.end]
    trail = sums.size.new_full((len(spent), _TRAIL), math.nan)
    ids = torch.arange(len(spent), device=row.device)
    shells = int(panels.shell.max()) + 1 if len(row) else 0
    return Work(ids, panels, row, sums, spent, trail, poles, shells)


def _swept(
    work: Work, ends: Ends, goal: Goal, closed: list[Swept], num_nodes: int
) -> tuple[Work, Bool[Tensor, " k"]]:
    """Close the elements that are done, and choose the panels of the others to refine."""
    sums, endless = with_limits(work)
    total = work.total(sums)
    tolerance = goal.tolerance(total)
    # what seems to have a pole at an end has to open it, however small the residue
    unsure = work.poles & (work.shells < _SHELLS_OF_A_POLE)
    met = (total.error <= tolerance).all(dim=1) & ~unsure
    if bool((met & ~work.poles).all()):  # the common case ends here
        closed.append(_closed(work, total, torch.zeros_like(work.ids), met, ends))
        return work.only(~met), met[:0]
    count = work.sum_rows(torch.ones_like(work.panels.lo))[:, None]
    share = torch.maximum(_SHARE * tolerance, _LATER * total.error) / count
    wanted = (sums.error > share[work.row]).any(dim=1) & ~met[work.row]
    wanted |= unsure[work.row] & work.panels.touching
    divisible = _divisible(work.panels, ends)
    chosen = wanted & divisible
    cost = work.sum_rows(chosen.long()) * (CHILDREN * num_nodes)
    stop = met | (cost == 0) | (work.spent + cost > goal.max_evals)
    work, decay = _followed(work, wanted)
    if bool(stop.any()):
        summed = (sums.error < work.sums.error).any(dim=1)  # to the end, by extrapolation
        narrow = work.total(sums.where(wanted & ~divisible & ~summed)).size
        hidden = _UNSEEN * narrow / (1 - decay.clamp(max=_GROWING))[:, None]
        total = replace(total, error=total.error + hidden)
        mostly = (hidden > _MOSTLY * total.size).any(dim=1)
        ends_diverge = work.sum_rows(endless.long()) > 0
        diverging = ((decay > _GROWING) | mostly | ends_diverge) & ~met
        diverging |= ends_diverge & work.poles
        status = torch.where(diverging, Status.DIVERGENT, Status.OK)
        closed.append(_closed(work, total, status, stop, ends))
        chosen = chosen[~stop[work.row]]
        work = work.only(~stop)
    return work, chosen


def _followed(work: Work, wanted: Bool[Tensor, " k"]) -> tuple[Work, Float[Tensor, " a"]]:
    """How the integral of |f| over what is to be refined decays; 0 while that is not known.

    The slope of its logarithm over the refinements that were local, without the last ones, which
    may be narrow enough to see nothing but rounding.
    """
    inner = wanted & ~work.panels.touching
    size = work.sum_rows(work.sums.size.sum(dim=1) * inner)
    width = work.sum_rows((work.panels.hi - work.panels.lo) * inner)
    local = (width < _LOCAL) & (size > 0)
    now = torch.where(local, size.clamp(min=_TINY).log(), math.nan)
    trail = torch.cat([work.trail[:, 1:], now[:, None]], dim=1)
    past = trail[:, :-_MEMORY]
    known = ~past.isnan()
    count = known.sum(dim=1)
    time = torch.arange(past.shape[1], dtype=past.dtype, device=past.device)
    time = time - (time * known).sum(dim=1, keepdim=True) / count.clamp(min=1)[:, None]
    time = torch.where(known, time, 0.0)
    slope = (time * past.nan_to_num(nan=0.0)).sum(dim=1) / time.square().sum(dim=1).clamp(min=1)
    decay = torch.where(count >= _FEWEST_STEPS, slope.exp(), 0.0)
    return replace(work, trail=trail), decay


def with_limits(work: Work) -> tuple[Sums, Bool[Tensor, " k"]]:
    """Panels' sums with those at ends extrapolated where that is better; which ends diverge."""
    panels, sums = work.panels, work.sums
    endless = torch.zeros_like(panels.touching)
    if work.shells < _FEWEST_SHELLS:
        return sums, endless
    opened = torch.where(panels.touching, panels.shell, -1)
    for last in opened.unique().tolist():
        if last + 1 >= _FEWEST_SHELLS:
            at = (opened == last).nonzero()[:, 0]
            sums, endless = _limits_of(work, sums, endless, at, last + 1)
    return sums, endless


def _limits_of(
    work: Work, sums: Sums, endless: Tensor, at: Int[Tensor, " e"], num_shells: int
) -> tuple[Sums, Tensor]:
    panels, o = work.panels, sums.value.shape[1]
    slot = torch.full((int(panels.end.max()) + 1,), -1, device=at.device)
    slot[panels.end[at]] = torch.arange(len(at), device=at.device)
    inside = (slot[panels.end] >= 0) & (panels.shell >= 0) & ~panels.touching
    group = slot[panels.end[inside]] * num_shells + panels.shell[inside]
    shells = work.sums[inside].grouped(group, len(at) * num_shells)
    terms, error, size, noise = (
        t.view(len(at), num_shells, o).transpose(0, 1).reshape(num_shells, -1)
        for t in shells.columns
    )
    limit, limit_error = levin_limit(terms, error + noise)
    beyond = work.sums.size[at].reshape(-1)
    rest, trusted, still = _judged(terms, size, limit - terms.sum(dim=0), beyond)
    rest, rest_error = rest.view(-1, o), torch.where(trusted, limit_error, math.inf).view(-1, o)
    better = rest_error < sums.error[at]
    value = sums.value.index_put((at,), torch.where(better, rest, sums.value[at]))
    error = sums.error.index_put((at,), torch.where(better, rest_error, sums.error[at]))
    endless = endless.index_put((at,), still.view(-1, o).any(dim=1))
    return replace(sums, value=value, error=error), endless


def _judged(
    terms: Inexact[Tensor, "n p"],
    size: Float[Tensor, "n p"],
    rest: Inexact[Tensor, " p"],
    beyond: Float[Tensor, " p"],
) -> tuple[Inexact[Tensor, " p"], Bool[Tensor, " p"], Bool[Tensor, " p"]]:
    """Whether an extrapolated rest of shells can be true, and whether there is a finite one.

    Terms of one sign leave a rest of that sign, about as large as a geometric series would, and
    not much less than what the points beyond the last shell show. A sum diverges if shells do not
    get smaller, or hardly faster than 1/k.
    """
    last, before = terms[-1].abs(), terms[-1 - _MEMORY].abs()
    loss = 1 - _MEMORY * _STILL
    falling = last < before * loss
    flat = (size[-1] > 0) & (size[-1] >= size[-1 - _MEMORY] * loss)
    # waves that cancel within a shell may converge, waves of shells do not
    wavy = terms[-_MEMORY:].abs().amax(dim=0) > _CANCELLED * size[-1]
    ratio = (last / before.clamp(min=_TINY)).clamp(max=loss) ** (1 / _MEMORY)
    geometric = last * ratio / (1 - ratio)
    one_sign = terms.abs().sum(dim=0) <= terms.sum(dim=0).abs() * (1 + _STILL)
    sign = terms[-1] / last.clamp(min=_TINY)
    along = (rest * sign.conj()).real
    consistent = torch.where(
        one_sign,
        (along >= _CONSISTENT * geometric)
        & (along <= _MOST_REST * geometric)
        & (beyond <= _MOST_REST * along),
        rest.abs() >= _CONSISTENT * geometric,
    )
    endless = (flat & (~falling | wavy)) | (one_sign & _harmonic(size))
    return rest, falling & consistent & ~endless, endless


def _harmonic(size: Float[Tensor, "n p"]) -> Bool[Tensor, " p"]:
    """Whether terms fall like k^−p with p hardly above 1, rather than geometrically."""
    n = len(size)
    if n < _HARMONIC_FROM:
        return torch.zeros_like(size[0], dtype=torch.bool)

    def fall(k: int) -> Tensor:
        return 1 - (size[k] / size[k - _MEMORY].clamp(min=_TINY)) ** (1 / _MEMORY)

    late, early = fall(n - 1), fall(n // 2)
    return (late > 0) & (early > _SLOWING * late) & (late * n < _HARMONIC)


def _divisible(panels: Panels, ends: Ends) -> Bool[Tensor, " k"]:
    """Which are wide enough to be refined, next to the rounding of their points."""
    width = panels.hi - panels.lo
    place = ends.anchor[panels.end].abs() / ends.reach[panels.end].abs()
    place = torch.where(ends.infinite[panels.end], 0.0, place)
    wide = width > _NARROW * torch.maximum(place, panels.hi)
    touching = (panels.shell < _MOST_SHELLS - 1) & (width > _TOO_NEAR * place)
    return torch.where(panels.touching, touching, wide)


def _grown(
    work: Work,
    chosen: Bool[Tensor, " k"],
    fresh: Panels,
    sums: Sums,
    ends: Ends,
    rule: PanelRule,
) -> Work:
    """Refined panels replaced by their children."""
    row = torch.searchsorted(work.ids, ends.elem[fresh.end])
    kept = numbered(~chosen)
    return replace(
        work,
        panels=Panels.joined([work.panels[kept], fresh]),
        row=torch.cat([work.row[kept], row]),
        sums=Sums.joined([work.sums[kept], sums]),
        spent=work.spent + torch.bincount(row, minlength=len(work.ids)) * len(rule.nodes),
        shells=work.shells + SHELLS,
    )


def _closed(
    work: Work, total: Sums, status: Int[Tensor, " a"], stop: Bool[Tensor, " a"], ends: Ends
) -> Swept:
    undefined = (total.error.isinf() | total.value.isnan()).any(dim=1)
    status = status | torch.where(undefined, Status.NON_FINITE, Status.OK)
    if bool(stop.all()):
        return Swept(total, status, work.spent, work, ends)
    return Swept(total[stop], status[stop], work.spent[stop], work.only(stop), ends)


def _collected(closed: list[Swept], ends: Ends) -> Swept:
    """In the order of the elements."""
    if len(closed) == 1:
        return closed[0]
    works = [c.work for c in closed]
    ids = torch.cat([w.ids for w in works])
    order = ids.argsort()
    panels = Panels.joined([w.panels for w in works])
    work = Work(
        ids[order],
        panels,
        ends.elem[panels.end],
        Sums.joined([w.sums for w in works]),
        torch.cat([w.spent for w in works])[order],
        torch.cat([w.trail for w in works])[order],
        torch.cat([w.poles for w in works])[order],
        max(w.shells for w in works),
    )
    total = Sums.joined([c.sums for c in closed])[order]
    return Swept(total, torch.cat([c.status for c in closed])[order], work.spent, work, ends)
