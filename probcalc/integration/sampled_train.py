"""Boxes of many dimensions whose integrands are nearly sums of few products of one axis each.

As `low_rank`, but no table holds so many axes: pivots are taken among random points, the one with
the largest miss first, and what the function so found misses is averaged over further points,

    E[f] = E[T] + E[f − T]

so that the bar holds whatever f is like. Savostyanov (2014), Quasioptimality of maximum-volume
cross interpolation of tensors, Linear Algebra Appl. 458, for the pivots; Owen (2013), Monte Carlo
theory, methods and examples, section 8.9, for the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from probcalc.integration.measure import FAINT
from probcalc.integration.orthogonal import LEGENDRE, gauss, polynomials

MOST_DIM = 64
_FIBRE = 32  # points of a fibre
_LOOKED, _DRAWS = 192, (256, 1024, 4096)  # points for pivots, and for what the train misses
_HOPE = 4.0  # times the error allowed: bars that more draws may bring down to it
_RANK = 6
_FALL = 0.5  # of the largest miss, with two more pivots; else it is left
_FEW = 12.0  # effective number of points that miss most: fewer are a tail that was hardly met
_ENOUGH = 0.5  # of the error allowed, as the largest miss
_SINGULAR = 1e-12  # of a crossing's largest singular value
_UNSEEN = 4.6  # −ln 0.01: so many of all points lie where none of them did, at 99 %
_WIDE = 3.5  # standard errors: more than 99 % takes, as the pivots were chosen by their misses
_ROUNDING, _EXACT = 32.0, 8.0  # units in the last place an axis, and what is nothing but these
_HIGH = 6  # coefficients of a fibre that tell whether it is smooth

At = Callable[[Float[np.ndarray, "d n"]], Float[np.ndarray, " n"]]


@dataclass(eq=False)
class _Cross:
    """Fibres through pivots, which grow by one pivot at a time.

    Args:
        at: From points, axis by axis, to values.
        nodes: Points of a fibre.
        index: Of the pivots among the nodes, ``(r, d)``.
        fibres: For each axis, ``(r, n, r)``.
        spent: Values asked for.
    """

    at: At
    nodes: Float[np.ndarray, " n"]
    index: Int[np.ndarray, "r d"]
    fibres: list[np.ndarray] = field(default_factory=list)
    spent: int = 0

    def grow(self, pivot: Int[np.ndarray, " d"]) -> None:
        """Ask for the fibres that one more pivot adds, all at once."""
        self.index = np.concatenate([self.index, pivot[None]])
        r, d, n = len(self.index), len(pivot), len(self.nodes)
        pairs = [(i, r - 1) for i in range(r)] + [(r - 1, j) for j in range(r - 1)]
        front, back = (np.array(side) for side in zip(*pairs, strict=True))
        places = self.nodes[self.index]  # (r, d)
        points = np.empty((d, d, len(pairs), n))  # coordinate, axis of the fibre, pair, node
        before = np.arange(d)[:, None] < np.arange(d)[None, :]
        ahead, behind = places[front].T[:, None, :], places[back].T[:, None, :]
        points[:] = np.where(before[..., None], ahead, behind)[..., None]
        for k in range(d):
            points[k, k] = self.nodes
        values = self.at(points.reshape(d, -1)).reshape(d, len(pairs), n)
        self.spent += values.size
        grown = []
        for k in range(d):
            fibre = np.empty((r, n, r))
            if r > 1:
                fibre[:-1, :, :-1] = self.fibres[k]
            fibre[front, :, back] = values[k]
            grown.append(fibre)
        self.fibres = grown

    def roughness(self) -> float:
        """What the highest coefficients along the fibres are of their values, axis by axis.

        A jump or a kink that all points may miss is seen in these.
        """
        high = _high_coefficients(len(self.nodes))
        tops = [np.abs(high @ f).sum(axis=1).max() / np.abs(f).max() for f in self.fibres]
        return float(sum(tops))

    def cores(self) -> list[np.ndarray]:
        """F_1, P_1⁻¹ F_2, ..., of ranks (1, r), (r, r), ..., (r, 1)."""
        r, d = len(self.index), len(self.fibres)
        first, *rest = self.fibres
        rows = np.arange(r)
        crossings = np.stack([self.fibres[k][rows, self.index[:, k]] for k in range(d - 1)])
        inverses = np.linalg.pinv(crossings, rcond=_SINGULAR)
        solved = [p @ f.reshape(r, -1) for p, f in zip(inverses, rest, strict=True)]
        cores = [first[:1], *(s.reshape(r, -1, r) for s in solved)]
        cores[-1] = cores[-1][..., :1]
        return cores


def sampled_train(
    at: At, dim: int, goal: Callable[[float], float], seed: int, eps: float
) -> tuple[float, float, int] | None:
    """Integral over the unit cube, its bar at 99 %, and evaluations; None if it is not that easy.

    Args:
        at: From points, axis by axis, to values.
        dim: Of the cube.
        goal: The error allowed, of a value.
        seed: Of the points.
        eps: Relative rounding error of the values.
    """
    rng = np.random.default_rng(seed)
    nodes, weights = gauss(LEGENDRE, _FIBRE)
    # half of them as dense towards the corners as the nodes are, where peaks may stand
    index = rng.integers(_FIBRE, size=(_LOOKED, dim))
    index[::2] = rng.choice(_FIBRE, size=(_LOOKED // 2, dim), p=weights / weights.sum())
    f = at(nodes[index].T)
    if not np.isfinite(f).all() or not np.abs(f).max() > FAINT:
        return None
    cross, miss = _Cross(at, nodes, np.empty((0, dim), dtype=int)), f
    largest = [float(np.abs(f).max())] * 2
    while True:
        cross.grow(index[int(np.abs(miss).argmax())])
        if not all(np.isfinite(fibre).all() for fibre in cross.fibres):
            return None
        cores = cross.cores()
        value = float(_chain([weights @ core for core in cores]))
        miss = f - _chain(
            [core[:, index[:, k]].transpose(1, 0, 2) for k, core in enumerate(cores)]
        )
        largest.append(float(np.abs(miss).max()))
        allowed = goal(value)
        if largest[-1] <= _ENOUGH * allowed:
            break
        stalled = len(cross.index) > 1 and not largest[-1] < _FALL * largest[-3]
        if len(cross.index) == _RANK or stalled:
            return None
    size = float(np.abs(f).mean())
    if cross.roughness() * size > allowed:
        return None
    rounding = _ROUNDING * dim * eps * size
    rest = np.empty(0)
    for num in _DRAWS:
        u = rng.random((dim, num - len(rest)))
        rest = np.concatenate([rest, at(u) - _chain(_between(cores, nodes, u))])
        bar, few = _bar(rest, _EXACT * rounding)
        if not few and bar + rounding <= allowed:
            spent = cross.spent + _LOOKED + num
            return value + float(rest.mean()), bar + rounding, spent
        if not bar <= _HOPE * allowed:
            return None
    return None


def _bar(rest: Float[np.ndarray, " n"], exact: float) -> tuple[float, bool]:
    """Of the mean of what was missed, and whether few points decide it."""
    n, extreme = len(rest), float(np.abs(rest).max())
    bar = _WIDE * float(rest.std(ddof=1)) / n**0.5 + _UNSEEN * extreme / n
    squares = rest * rest
    few = squares.sum() ** 2 < _FEW * (squares * squares).sum()
    return bar, bool(few and extreme > exact)


def _chain(parts: list[np.ndarray]) -> Any:
    """Products of matrices ``(*n, r, s)``, those of each point: numbers ``(*n)``."""
    total = parts[0]
    for part in parts[1:]:
        total = total * part if part.shape[-2:] == (1, 1) else total @ part
    return total[..., 0, 0]


def _between(
    cores: list[np.ndarray],
    nodes: Float[np.ndarray, " n"],
    u: Float[np.ndarray, "d m"],
) -> list[np.ndarray]:
    """Matrices ``(m, r, s)`` at points between the nodes, by the barycentric formula."""
    near = _barycentric(len(nodes)) / (u[..., None] - nodes)
    near /= near.sum(axis=-1, keepdims=True)
    parts = []
    for core, weight in zip(cores, near, strict=True):
        r, n, s = core.shape
        parts.append((weight @ core.transpose(1, 0, 2).reshape(n, -1)).reshape(-1, r, s))
    return parts


@lru_cache
def _high_coefficients(n: int) -> Float[np.ndarray, "h n"]:
    """From values at Gauss–Legendre nodes to the highest Legendre coefficients."""
    nodes, weights = gauss(LEGENDRE, n)
    return (polynomials(LEGENDRE, n, nodes) * weights)[-_HIGH:]


@lru_cache
def _barycentric(n: int) -> Float[np.ndarray, " n"]:
    """Weights of Gauss–Legendre nodes, Wang & Xiang (2012), Math. Comp. 81."""
    nodes, weights = gauss(LEGENDRE, n)
    x = 2 * nodes - 1
    return (-1.0) ** np.arange(n) * np.sqrt((1 - x * x) * weights)
