"""Sequences of points on an axis, each of which adds one degree to an interpolant.

    h_0 = 1,   h_l(x) = Π_{j<l} (x − x_j) / (x_l − x_j)

Leja points of any classical weight, picked among the nodes of a long Gauss rule by elimination
with pivots: Bos, De Marchi, Sommariva & Vianello (2010), Computing multivariate Fekete and Leja
points by numerical linear algebra.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.linalg import lu

from probcalc.integration.orthogonal import Weight, gauss, polynomials

Array = Any  # np.ndarray or Tensor

LEVELS = 30  # points of a sequence
_NODES = 90  # that they are picked from


@dataclass(frozen=True, eq=False)
class Sequence:
    """Points, and what is known of their Newton polynomials.

    Args:
        points: ``(LEVELS)``.
        at_points: h_l(x_j), ``(l, j)``, zero for j < l.
        mean: E[h_l].
        norm: E[h_l²]^½.
    """

    points: np.ndarray
    at_points: np.ndarray
    mean: np.ndarray
    norm: np.ndarray

    def newton(self, x: Array, num: int) -> list[Array]:
        """The first h_l at an array or a tensor of points."""
        return _newton(self.points, x, num)


@lru_cache(maxsize=64)
def leja(weight: Weight) -> Sequence:
    """The sequence of a weight."""
    x, w = gauss(weight, _NODES)
    # rows of an orthogonal matrix: large where a point is worth taking
    rows = (polynomials(weight, LEVELS, x) * np.sqrt(w)).T
    order = lu(rows, p_indices=True)[0]
    points = x[np.argsort(order)[:LEVELS]]
    h = np.stack(_newton(points, x, LEVELS))
    at_points = np.triu(np.stack(_newton(points, points, LEVELS)))
    return Sequence(points, at_points, h @ w, np.sqrt(h**2 @ w))


def _newton(points: np.ndarray, x: Array, num: int) -> list[Array]:
    product, h = 0 * x + 1, [0 * x + 1]
    for level in range(1, num):
        product = product * (x - float(points[level - 1]))
        h.append(product / float(np.prod(points[level] - points[:level])))
    return h
