"""Integrals over a cube of functions that are nearly sums of few products of one axis each.

    f(x) ≈ F_1(x_1) P_1⁻¹ F_2(x_2) P_2⁻¹ … F_d(x_d)

where F_k(x_k) is the matrix of the values of f at some places before axis k and some after it, and
P_k is f at these places themselves. The places are pivots of a table of f on a product of Gauss
points; the fibres between them are as fine as a product never could be. Goreinov, Tyrtyshnikov &
Zamarashkin (1997); Oseledets & Tyrtyshnikov (2010), TT-cross approximation for multidimensional
arrays, Linear Algebra Appl. 432, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from probcalc.integration.orthogonal import LEGENDRE, gauss, prediction

FIBRE = 64  # points of a fibre
_START = np.zeros(1, dtype=np.intp)  # the one point of no axes
_RANK = 6  # places at most between two axes


@dataclass(frozen=True, eq=False)
class Places:
    """Where the fibres run, as places in the table of a product of rules.

    Args:
        before: For each axis, points of the product of the axes in front of it.
        after: For each axis, points of the product of the axes behind it.
        order: Points an axis.
    """

    before: list[Int[np.ndarray, " _"]]
    after: list[Int[np.ndarray, " _"]]
    order: int

    @property
    def count(self) -> int:
        """Points of all fibres."""
        pairs = zip(self.before, self.after, strict=True)
        return FIBRE * sum(len(front) * len(back) for front, back in pairs)

    def behind(self, k: int) -> int:
        """Points of the product of the axes from k on."""
        return self.order ** (len(self.before) - k)


def places(table: Float[np.ndarray, " _"], order: int, dim: int, least: float) -> Places | None:
    """Pivots of a table, until what they leave is less than a number everywhere; None if many."""
    before, after = [_START], []
    rest = table.reshape(1, -1)
    for k in range(dim - 1):
        rest = rest.reshape(len(rest) * order, -1)
        pivots = _pivots(rest, least)
        if pivots is None:
            return None
        rows, columns = (np.array(column) for column in pivots)
        before.append(before[k][rows // order] * order + rows % order)
        after.append(columns)
        rest = rest[rows]
    return Places(before, [*after, _START], order)


def _pivots(matrix: Float[np.ndarray, "m n"], least: float) -> tuple[list[int], list[int]] | None:
    rest, rows, columns = matrix, [], []
    size = np.abs(rest)
    while True:
        i, j = divmod(int(size.argmax()), rest.shape[1])
        top = rest[i, j]
        if len(rows) == _RANK or not abs(top) > 0:
            return None
        rows.append(i)
        columns.append(j)
        rest = rest - (rest[:, j, None] / top) * rest[i]
        size = np.abs(rest)
        if size.max() <= least:
            return rows, columns


def fibres(at: Places, points: Float[np.ndarray, "d _"]) -> Float[np.ndarray, "d _"]:
    """Points of all fibres, fibre after fibre, after the points of the table."""
    dim, start = len(points), 0
    x = gauss(LEGENDRE, FIBRE)[0][:, None]
    found = np.empty((dim, at.count))
    for k, (front, back) in enumerate(zip(at.before, at.after, strict=True)):
        r, s = len(front), len(back)
        part = found[:, start : start + r * FIBRE * s].reshape(dim, r, FIBRE, s)
        start += r * FIBRE * s
        part[:k] = points[:k, front * at.behind(k)][..., None, None]
        part[k] = x
        part[k + 1 :] = points[k + 1 :, None, None, back]
    return found


@dataclass(frozen=True, eq=False)
class Train:
    """The function that the fibres make.

    Args:
        cores: F_1, then P_{k-1}⁻¹ F_k, each ``(r, FIBRE, s)``.
    """

    cores: list[np.ndarray]

    @property
    def count(self) -> int:
        """Values that it was made of."""
        return sum(core.size for core in self.cores)

    def integral_and_tables(
        self, orders: tuple[int, ...]
    ) -> tuple[float, list[Float[np.ndarray, " _"]]]:
        """Over the unit cube, and the values on the products of Gauss rules of some orders."""
        onto = _onto(orders)
        parts = [onto @ core for core in self.cores]
        edges = [0, 1, *(1 + n for n in np.cumsum(orders).tolist())]
        whole, *tables = (
            _product([part[:, start:end] for part in parts]) for start, end in pairwise(edges)
        )
        return float(whole[0]), tables


@lru_cache
def _onto(orders: tuple[int, ...]) -> Float[np.ndarray, "n f"]:
    """From values along a fibre to their integral and to the nodes of some rules."""
    rows = [prediction(LEGENDRE, FIBRE, order) for order in orders]
    return np.concatenate([gauss(LEGENDRE, FIBRE)[1][None], *rows])


def _product(cores: list[np.ndarray]) -> Float[np.ndarray, " _"]:
    """Values of a train on a product of points."""
    total = cores[0][0]
    for core in cores[1:]:
        r, _, s = core.shape
        total = (total @ core.reshape(r, -1)).reshape(-1, s)
    return total[:, 0]


def train(at: Places, table: Float[np.ndarray, " n"], values: Float[np.ndarray, " m"]) -> Train:
    """The function through the values on the fibres of some places."""
    cores, start = [], 0
    for k, (front, back) in enumerate(zip(at.before, at.after, strict=True)):
        r, s = len(front), len(back)
        core = values[start : start + r * FIBRE * s].reshape(r, -1)
        start += r * FIBRE * s
        if k:
            crossing = table[front[:, None] * at.behind(k) + at.after[k - 1]]
            core = core / crossing if r == 1 else np.linalg.solve(crossing, core)
        cores.append(core.reshape(r, FIBRE, s))
    return Train(cores)
