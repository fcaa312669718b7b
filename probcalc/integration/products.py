"""Products of Gauss rules whose orders follow the integrand, axis by axis.

How fast the coefficients of the integrand's polynomials decay along some lines says how many
points each axis needs. An integral stands when a grid of so many points agrees with one that has
one more along every axis, and when its interpolant predicts the values there: a rule that is
fooled by a kink, a needle or an aliased wave does not predict them. Where they do not agree, the
decay on the last grid plans the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from probcalc.integration.goal import Goal
from probcalc.integration.grids import (
    BASES,
    LINE,
    Array,
    dot,
    grid,
    lines,
    predicted,
    spectrum,
)
from probcalc.integration.measure import FAINT, Sums
from probcalc.integration.orthogonal import Weight

# at(points, elem): points (n, d) of the unit measure, elements (k), to values (n, k, o)
At = Callable[[Tensor, Tensor], Tensor]
Orders = tuple[int, ...]

_FIRST = {1: (12, 64), 2: (12, 32)}  # orders that are tried at once in few dimensions
_ATTENTION = {1: 64, 2: 32, 3: 12, 4: 7, 5: 5}  # points an axis at least of a grid that checks
_LARGEST = {1: 2**9, 2: 2**13, 3: 2**15, 4: 2**16, 5: 2**17, 6: 2**17, 7: 2**17}
_TOGETHER = 2**16  # values that are asked for at once
_HELD = 2**23  # values that are held at once
_FEWEST_MISSES = 5.0  # effective number of points that miss: one alone is a needle
_MANY = 100  # points of a grid that shows needles
_ROOM = 0.2  # of the tolerance, that a grid is planned to reach
_DOUBT = 2.0  # on the distance of two grids
_CAUTION = 3.0  # on the decay that is foreseen
_LEAST_GAIN = {4: 0.1, 5: 0.1, 6: 0.1, 7: 0.1}  # of an error, that is left in its estimate
_FINER = 1.25  # points along an axis of a grid that checks
_MOST = 100  # points along an axis
_ROUNDS = 5
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, eq=False)
class Finished:
    """Elements whose integral stands, and on which grid.

    Args:
        elem: Elements.
        orders: Of the grid.
        sums: Their integrals.
    """

    elem: Int[Tensor, " k"]
    orders: Orders
    sums: Sums


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of the elements.

    Args:
        done: Those whose integral stands.
        left: The others.
        spent: How many points went into which elements.
    """

    done: list[Finished]
    left: Int[Tensor, " l"]
    spent: list[tuple[Tensor, int]]


def products(
    at: At, weights: tuple[Weight, ...], elem: Int[Tensor, " k"], goal: Goal, rounding: float
) -> Outcome:
    """Integrate elements that are smooth enough.

    Args:
        at: The integrand at points of the unit measure.
        weights: Of the measure, axis by axis.
        elem: Elements to try.
        goal: Tolerances and budget.
        rounding: Relative rounding error of the integrand's values.
    """
    largest = _LARGEST.get(len(weights))
    if largest is None or not len(elem):
        return Outcome([], elem, [])
    parts = elem.split(max(1, _HELD // largest))
    outcomes = [_Ladder(at, weights, goal, rounding).climbed(some) for some in parts]
    if len(outcomes) == 1:
        return outcomes[0]
    return Outcome(
        [one for outcome in outcomes for one in outcome.done],
        torch.cat([outcome.left for outcome in outcomes]),
        [one for outcome in outcomes for one in outcome.spent],
    )


@dataclass(frozen=True)
class _Plan:
    """A pair of grids to compare.

    Args:
        coarse: Points an axis of the one.
        fine: Points an axis of the other, whose integral is taken.
        gain: What the finer leaves of the coarser's error.
        fresh: Whether the fine one has yet to be evaluated.
    """

    coarse: Orders
    fine: Orders
    gain: float
    fresh: bool = True


@dataclass(frozen=True, eq=False)
class _Ladder:
    """Grids of growing order for elements that go on together."""

    at: At
    weights: tuple[Weight, ...]
    goal: Goal
    rounding: float

    def climbed(self, elem: Int[Tensor, " k"]) -> Outcome:
        """Grids in pairs, a coarse one and a fine one to check it."""
        done: list[Finished] = []
        spent: list[tuple[Tensor, int]] = []
        plan, f = self._first(elem, spent), None
        while plan is not None and self._affordable(plan, spent):
            coarse, f = self._evaluated(plan, f, elem, spent)
            sums, met = self._compared((plan.coarse, coarse), (plan.fine, f), plan.gain)
            if met.all():
                return Outcome([*done, Finished(elem, plan.fine, sums)], elem[:0], spent)
            if met.any():
                kept, settled = ~met, torch.as_tensor(met)
                done.append(Finished(elem[settled], plan.fine, sums[settled]))
                elem, f = elem[~settled], f[:, kept]
            plan = self._next(plan, f)
        return Outcome(done, elem, spent)

    def _affordable(self, plan: _Plan, spent: list[tuple[Tensor, int]]) -> bool:
        new = [plan.coarse, plan.fine] if plan.fresh else [plan.coarse]
        count = sum(math.prod(orders) for orders in new)
        total = sum(n for _, n in spent)
        largest = math.prod(plan.fine) <= _LARGEST[len(self.weights)]
        return largest and total + count <= self.goal.max_evals and len(spent) <= _ROUNDS

    def _evaluated(
        self, plan: _Plan, f: Array | None, elem: Tensor, spent: list[tuple[Tensor, int]]
    ) -> tuple[Array, Array]:
        """Values on the coarse and on the fine grid, ``(n, k, o)``; the latter may be there."""
        orders = [plan.coarse, plan.fine] if plan.fresh else [plan.coarse]
        grids = [grid(self.weights, one, elem.device) for one in orders]
        points = torch.cat([g.points for g in grids]) if plan.fresh else grids[0].points
        values = _called(self.at, points, elem)
        spent.append((elem, len(points)))
        n = len(grids[0].points)
        return values[:n], values[n:] if plan.fresh else f

    def _first(self, elem: Tensor, spent: list[tuple[Tensor, int]]) -> _Plan | None:
        dim = len(self.weights)
        if dim in _FIRST:
            coarse, fine = ((n,) * dim for n in _FIRST[dim])
            return _Plan(coarse, fine, 1.0)
        line = lines(self.weights, elem.device)
        if len(line.points) > self.goal.max_evals:
            return None
        f = _called(self.at, line.points, elem)
        spent.append((elem, len(line.points)))
        mass = line.mass if torch.is_tensor(f) else line.mass.numpy()
        f = f.reshape(len(mass), -1)
        along = f.reshape(dim, BASES, LINE, -1)
        parts = [(w, LINE, part) for w, part in zip(self.weights, along, strict=True)]
        needed, gain = self._needed(f, mass, parts)
        return _Plan(needed, _checking(needed), gain) if needed else None

    def _next(self, last: _Plan, f: Array) -> _Plan | None:
        """A coarse grid that the last fine one may check, or a new pair."""
        mass = grid(self.weights, last.fine, f).mass
        f, ahead, parts = f.reshape(len(f), -1), 1, []
        for weight, n in zip(self.weights, last.fine, strict=True):
            parts.append((weight, n, f.reshape(ahead, n, -1)))
            ahead *= n
        needed, gain = self._needed(f, mass, parts)
        if not needed:
            return None
        coarse = tuple(max(n, m + 1) for n, m in zip(needed, last.coarse, strict=True))
        if all(_FINER * n <= m for n, m in zip(coarse, last.fine, strict=True)):
            return _Plan(coarse, last.fine, gain, fresh=False)
        return _Plan(coarse, _checking(coarse), gain)

    def _needed(
        self, f: Array, mass: Array, parts: list[tuple[Weight, int, Array]]
    ) -> tuple[Orders, float]:
        """As many points as the decay along each axis asks for; none where it is too slow."""
        value, size = dot(mass, f), mass @ abs(f)
        allowed = self._allowed(value, size) + FAINT
        spread = max((mass @ abs(f - value) / allowed).tolist())
        rows = (spectrum(w, n, part, f.shape[1]) / allowed for w, n, part in parts)
        share = 1.0 / len(parts)
        needed = [_needed([max(row) for row in of.tolist()], spread, share) for of in rows]
        if None in needed:
            return (), 1.0
        gain = max(_LEAST_GAIN.get(len(parts), 1.0), *(left for _, left in needed))
        return tuple(n for n, _ in needed), gain

    def _compared(
        self, before: tuple[Orders, Array], after: tuple[Orders, Array], gain: float
    ) -> tuple[Sums, Array]:
        """What the later grid says, and which elements it settles."""
        (coarse, g), (orders, f) = before, after
        n, k, o = f.shape
        f, g = f.reshape(n, -1), g.reshape(len(g), -1)
        mass, first = grid(self.weights, orders, f).mass, grid(self.weights, coarse, f).mass
        value, missed = dot(mass, f), abs(f - predicted(self.weights, coarse, orders, g))
        size, miss, spread = mass @ abs(f), mass @ missed, mass @ abs(f - value)
        # the error of a rule is about the square of its interpolant's
        error = gain * (_DOUBT * abs(value - dot(first, g)) + miss * miss / (spread + _TINY))
        allowed = self._allowed(value, size)
        met = (error <= allowed) & (size > FAINT)
        if n >= _MANY:
            # a needle between the coarse points is one miss among thousands
            alone = miss * miss < _FEWEST_MISSES * ((mass * mass) @ (missed * missed))
            met &= ~(alone & (miss > allowed))
        columns = (value, error, size, self.rounding * size)
        return Sums(*(torch.as_tensor(t.reshape(k, o)) for t in columns)), met.reshape(k, o).all(1)

    def _allowed(self, value: Array, size: Array) -> Array:
        """The tolerance of every column, as `Goal.tolerance`."""
        return self.goal.allowed(abs(value), self.rounding * size)


def _checking(orders: Orders) -> Orders:
    """A grid that is finer along every axis, and fine enough to see needles."""
    least = _ATTENTION.get(len(orders), 0)
    return tuple(max(n + 1, int(_FINER * n), least) for n in orders)


def _called(at: At, points: Tensor, elem: Tensor) -> Array:
    """Values in NumPy's arrays on the CPU, where small ones are faster, else tensors."""
    step = max(1, _TOGETHER // len(points))
    parts = [at(points, some) for some in elem.split(step)] if len(elem) > step else None
    f = torch.cat(parts, dim=1) if parts else at(points, elem)
    return f.numpy() if f.device.type == "cpu" else f


def _needed(amplitude: list[float], spread: float, share: float) -> tuple[int, float] | None:
    """Points that an axis needs, and what one more point leaves of the error.

    From the coefficients of its first degrees: a rule of N points misses what is beyond degree
    2N − 1, an interpolant of N points what is beyond N − 1.
    """
    if not all(map(math.isfinite, [*amplitude, spread])):
        return None
    tail, spread = _tail(amplitude), max(spread, 1.0)
    for n in range(1, _MOST):
        rule = tail(2 * n)
        gain = min(_CAUTION * tail(2 * n + 2) / (rule + _TINY), 1.0)
        if rule * gain <= _ROOM * share and tail(n) ** 2 * gain <= spread * share**2:
            return n, gain
    return None


def _tail(amplitude: list[float]) -> Callable[[int], float]:
    """Size of the coefficients from a degree on, extrapolated where it was not seen."""
    n = len(amplitude)
    gap = max(2, n // 4)
    # two at a time: of even and odd functions every other coefficient vanishes
    pairs = [max(amplitude[max(k - 1, 0) : k + 1]) for k in range(n)]
    before = pairs[max(n - 1 - gap, 0)]
    ratio = min((pairs[-1] / before) ** (1 / gap), 1.0) if before else 0.0

    def tail(degree: int) -> float:
        return pairs[degree + 1] if degree < n - 1 else pairs[-1] * ratio ** (degree - n + 2)

    return tail
