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
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from probcalc.integration.goal import Goal
from probcalc.integration.grids import (
    BASES,
    LINE,
    Array,
    Grid,
    dot,
    grid,
    lines,
    predicted,
    spectrum,
)
from probcalc.integration.measure import FAINT, Sums
from probcalc.integration.orders import FINER, Orders, alike, checking, needed
from probcalc.integration.orthogonal import Weight

# at(points, elem): points (n, d) of the unit measure, elements (k), to values (n, k, o)
At = Callable[[Tensor, Tensor], Tensor]
# orders that are tried at once, which tell enough of the decay in few dimensions
PAIRS = {1: (12, 64), 2: (12, 32), 3: (8, 10), 4: (6, 7), 5: (5, 6)}
_TELLING = 3
_LARGEST = {1: 2**9, 2: 2**13, 3: 2**15, 4: 2**16, 5: 2**17, 6: 2**17, 7: 2**17}
_TOGETHER = 2**16  # values that are asked for at once
_HELD = 2**23  # values that are held at once
FEWEST_MISSES = 5.0  # effective number of points that miss: one alone is a needle
_MANY = 100  # points of a grid that shows needles
DOUBT = 2.0  # on the distance of two grids
_LEAST_GAIN = {4: 0.1, 5: 0.1, 6: 0.1, 7: 0.1}  # of an error, that is left in its estimate
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
    at: At,
    weights: tuple[Weight, ...],
    elem: Int[Tensor, " k"],
    goal: Goal,
    rounding: float,
    tried: Array | None = None,
) -> Outcome:
    """Integrate elements that are smooth enough.

    Args:
        at: The integrand at points of the unit measure.
        weights: Of the measure, axis by axis.
        elem: Elements to try.
        goal: Tolerances and budget.
        rounding: Relative rounding error of the integrand's values.
        tried: Values ``(n, k, o)`` on the finer grid of `PAIRS`, which has settled nothing.
    """
    if len(weights) not in _LARGEST or not len(elem):
        return Outcome([], elem, [])
    ladder = _Ladder(at, weights, goal, rounding)
    if tried is not None:
        plan = _pair(len(weights))
        ladder.climb(ladder.onward(plan, tried, elem, plan.count, 1))
    else:
        ladder.climb(ladder.first(elem))
    left = torch.cat(ladder.left) if ladder.left else elem[:0]
    return Outcome(ladder.done, left, ladder.spent)


@dataclass(frozen=True)
class _Plan:
    """A pair of grids to compare.

    Args:
        coarse: Points an axis of the one.
        fine: Points an axis of the other, whose integral is taken.
        gain: What the finer leaves of the coarser's error.
    """

    coarse: Orders
    fine: Orders
    gain: float

    @property
    def count(self) -> int:
        """Points of both."""
        return math.prod(self.coarse) + math.prod(self.fine)


@lru_cache
def _pair(dim: int) -> _Plan:
    coarse, fine = PAIRS[dim]
    return _Plan((coarse,) * dim, (fine,) * dim, 1.0)


@dataclass(frozen=True, eq=False)
class _Branch:
    """Elements that need about the same grids.

    Args:
        elem: Which.
        used: Points that each of them has spent.
        rounds: Pairs of grids that were compared.
        plan: The next one.
        fine: Values on its finer grid, where they are there, ``(n, k, o)``.
    """

    elem: Int[Tensor, " k"]
    used: int
    rounds: int
    plan: _Plan
    fine: Array | None = None


@dataclass(frozen=True, eq=False)
class _Ladder:
    """Grids of growing order; elements that need others part.

    Args:
        at: The integrand.
        weights: Of the axes.
        goal: Tolerances and budget.
        rounding: Relative, of values.
        done: Elements whose integral stands.
        left: Those that are given up.
        spent: How many points went into which.
    """

    at: At
    weights: tuple[Weight, ...]
    goal: Goal
    rounding: float
    done: list[Finished] = field(default_factory=list)
    left: list[Tensor] = field(default_factory=list)
    spent: list[tuple[Tensor, int]] = field(default_factory=list)

    def climb(self, branches: list[_Branch]) -> None:
        """Grids in pairs, a coarse one and a fine one to check it."""
        while branches:
            branch = branches.pop()
            if not self._affordable(branch):
                self.left.append(branch.elem)
                continue
            plan, used = branch.plan, branch.used
            coarse, fine, count = self._evaluated(branch)
            sums, met = self._compared((plan.coarse, coarse), (plan.fine, fine), plan.gain)
            rest = branch.elem
            if met.all():
                self.done.append(Finished(rest, plan.fine, sums))
                continue
            if met.any():
                kept, settled = ~met, torch.as_tensor(met)
                self.done.append(Finished(rest[settled], plan.fine, sums[settled]))
                rest, fine = rest[~settled], fine[:, kept]
            branches += self.onward(plan, fine, rest, used + count, branch.rounds + 1)

    def first(self, elem: Tensor) -> list[_Branch]:
        """A pair for all, or what a few lines tell."""
        dim = len(self.weights)
        if dim not in PAIRS:
            return self._by_lines(elem, 0)
        plan = _pair(dim)
        return [_Branch(some, 0, 0, plan) for some in elem.split(_HELD // plan.count)]

    def onward(self, last: _Plan, f: Array, elem: Tensor, used: int, rounds: int) -> list[_Branch]:
        """After a pair that has settled nothing: its finer grid tells what to try, or lines do."""
        if rounds == 1 and len(self.weights) > _TELLING and len(self.weights) in PAIRS:
            return self._by_lines(elem, used)
        return self._next(last, f, elem, used, rounds)

    def _affordable(self, branch: _Branch) -> bool:
        plan = branch.plan
        count = plan.count if branch.fine is None else math.prod(plan.coarse)
        largest = math.prod(plan.fine) <= _LARGEST[len(self.weights)]
        return largest and branch.used + count <= self.goal.max_evals and branch.rounds < _ROUNDS

    def _evaluated(self, branch: _Branch) -> tuple[Array, Array, int]:
        """Values on the coarse and on the fine grid, ``(n, k, o)``, and how many are new."""
        plan, elem = branch.plan, branch.elem
        orders = [plan.coarse, plan.fine] if branch.fine is None else [plan.coarse]
        grids = [grid(self.weights, one, elem.device) for one in orders]
        points = torch.cat([g.points for g in grids]) if len(grids) > 1 else grids[0].points
        values = _called(self.at, points, elem)
        self.spent.append((elem, len(points)))
        n = len(grids[0].points)
        return values[:n], values[n:] if branch.fine is None else branch.fine, len(points)

    def _by_lines(self, elem: Tensor, used: int) -> list[_Branch]:
        """Groups of elements, after the decay along lines through scattered places."""
        line = lines(self.weights, elem.device)
        num = len(line.points)
        if used + num > self.goal.max_evals:
            self.left.append(elem)
            return []
        step = _HELD // num
        return [b for some in elem.split(step) for b in self._along(line, some, used + num)]

    def _along(self, line: Grid, elem: Tensor, used: int) -> list[_Branch]:
        dim = len(self.weights)
        f = _called(self.at, line.points, elem)
        self.spent.append((elem, len(line.points)))
        mass = line.mass if torch.is_tensor(f) else line.mass.numpy()
        along = f.reshape(dim, BASES, LINE, -1)
        parts = [(w, LINE, part) for w, part in zip(self.weights, along, strict=True)]
        branches = []
        for some, orders, gain in self._grouped(f, mass, parts, elem):
            plan = _Plan(orders, checking(orders), gain)
            step = max(1, _HELD // plan.count)
            branches += [_Branch(part, used, 1, plan) for part in elem[some].split(step)]
        return branches

    def _next(self, last: _Plan, f: Array, elem: Tensor, used: int, rounds: int) -> list[_Branch]:
        """For each group a coarse grid that the last fine one may check, or a new pair."""
        mass = grid(self.weights, last.fine, f).mass
        ahead, parts, branches = 1, [], []
        for weight, n in zip(self.weights, last.fine, strict=True):
            parts.append((weight, n, f.reshape(ahead, n, -1)))
            ahead *= n
        for some, orders, gain in self._grouped(f, mass, parts, elem):
            coarse = tuple(max(n, m + 1) for n, m in zip(orders, last.coarse, strict=True))
            if all(FINER * n <= m for n, m in zip(coarse, last.fine, strict=True)):
                plan, fine = _Plan(coarse, last.fine, gain), f[:, some]
            else:
                plan, fine = _Plan(coarse, checking(coarse), gain), None
            branches.append(_Branch(elem[some], used, rounds, plan, fine))
        return branches

    def _grouped(
        self, f: Array, mass: Array, parts: list[tuple[Weight, int, Array]], elem: Tensor
    ) -> list[tuple[list[int], Orders, float]]:
        """Columns that need about the same orders, these, and what one point more leaves.

        From the decay of the coefficients along each axis; where it is too slow, elements are
        given up.
        """
        n, k, o = f.shape
        f = f.reshape(n, -1)
        value, size = dot(mass, f), mass @ abs(f)
        allowed = self._allowed(value, size) + FAINT
        spread = mass @ abs(f - value) / allowed
        sizes = [spectrum(w, m, part, f.shape[1]) / allowed for w, m, part in parts]
        spread, *sizes = (_host(t).reshape(-1, k, o).max(-1) for t in (spread, *sizes))
        orders, gains = needed(sizes, spread[0])
        slow = (orders == 0).any(0)
        if slow.any():
            self.left.append(elem[torch.from_numpy(slow)])
        least = _LEAST_GAIN.get(len(parts), 1.0)
        return [
            (some, tuple(orders[:, some].max(1).tolist()), max(least, float(gains[some].max())))
            for some in alike(orders, np.flatnonzero(~slow).tolist())
        ]

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
        error = gain * (DOUBT * abs(value - dot(first, g)) + miss * miss / (spread + _TINY))
        allowed = self._allowed(value, size)
        met = (error <= allowed) & (size > FAINT)
        if n >= _MANY:
            # a needle between the coarse points is one miss among thousands
            alone = miss * miss < FEWEST_MISSES * ((mass * mass) @ (missed * missed))
            met &= ~(alone & (miss > allowed))
        columns = (value, error, size, self.rounding * size)
        return Sums(*(torch.as_tensor(t.reshape(k, o)) for t in columns)), met.reshape(k, o).all(1)

    def _allowed(self, value: Array, size: Array) -> Array:
        """The tolerance of every column, as `Goal.tolerance`."""
        return self.goal.allowed(abs(value), self.rounding * size)


def _called(at: At, points: Tensor, elem: Tensor) -> Array:
    """Values in NumPy's arrays on the CPU, where small ones are faster, else tensors."""
    step = max(1, _TOGETHER // len(points))
    parts = [at(points, some) for some in elem.split(step)] if len(elem) > step else None
    f = torch.cat(parts, dim=1) if parts else at(points, elem)
    return f.numpy() if f.device.type == "cpu" else f


def _host(values: Array) -> np.ndarray:
    return values.cpu().numpy() if torch.is_tensor(values) else values
