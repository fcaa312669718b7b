"""Gauss rules of the classical weights, from the recurrences of their orthogonal polynomials.

    b_{k+1} p_{k+1}(x) = (x − a_k) p_k(x) − b_k p_{k−1}(x),   ∫ p_j p_k w = δ_jk,   ∫ w = 1

The nodes of n points are the eigenvalues of the matrix with the a on its diagonal and the b beside
it. Golub & Welsch (1969); Gautschi (2004), Orthogonal polynomials, table 1.1 and section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.linalg import eigh_tridiagonal

Array = Any  # np.ndarray or Tensor


@dataclass(frozen=True)
class Weight:
    """A probability density with known orthogonal polynomials.

    Args:
        name: ``legendre`` (uniform on [0, 1]), ``hermite`` (standard normal), ``laguerre``
            (gamma of unit rate) or ``jacobi`` (beta on [0, 1]).
        shape: The shape parameters of the gamma and the beta distribution.
    """

    name: str
    shape: tuple[float, ...] = ()

    def recurrence(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The first n of a, and the first n − 1 of b."""
        a, squared = RECURRENCES[self.name](np.arange(n, dtype=float), *self.shape)
        return a, np.sqrt(squared[1:])


def _legendre(k: Array) -> tuple[Array, Array]:
    return 0.0 * k + 0.5, k**2 / (4 * (4 * k**2 - 1))


def _hermite(k: Array) -> tuple[Array, Array]:
    return 0.0 * k, k


def _laguerre(k: Array, alpha: Array) -> tuple[Array, Array]:
    return 2 * k + alpha, k * (k + alpha - 1)


def _jacobi(k: Array, alpha: Array, beta: Array) -> tuple[Array, Array]:
    """On [0, 1] with x^(α−1) (1 − x)^(β−1)."""
    total = alpha + beta
    # k = 0 and 1 apart: the general formulas are 0/0 there for some shapes
    high, higher = k + 2 * (k == 0), k + 2 * (k < 2)
    both = 2 * high + total - 2
    a = 0.5 * (1 + (alpha - beta) * (total - 2) / (both * (both + 2)))
    a = (k > 0) * a + (k == 0) * (alpha / total)
    both = 2 * higher + total - 2
    b = higher * (higher + alpha - 1) * (higher + beta - 1) * (higher + total - 2)
    b = b / (both**2 * (both**2 - 1))
    return a, (k > 1) * b + (k == 1) * (alpha * beta / (total**2 * (total + 1)))


# degrees k and shape parameters, NumPy's arrays or tensors, to a_k and b_k²
RECURRENCES: dict[str, Callable[..., tuple[Array, Array]]] = {
    "legendre": _legendre,
    "hermite": _hermite,
    "laguerre": _laguerre,
    "jacobi": _jacobi,
}
LEGENDRE, HERMITE = Weight("legendre"), Weight("hermite")


@lru_cache(maxsize=1024)
def gauss(weight: Weight, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes, ascending, and weights that add up to one."""
    if weight == LEGENDRE:
        x, w = np.polynomial.legendre.leggauss(n)  # polished by a Newton step
        return 0.5 * (1 + x), 0.5 * w
    x = eigh_tridiagonal(*weight.recurrence(n), eigvals_only=True)
    # 1 / Σ p_k(x)²: relative accuracy even where weights are tiny
    return x, 1.0 / np.square(polynomials(weight, n, x)).sum(axis=0)


def polynomials(weight: Weight, n: int, x: np.ndarray) -> np.ndarray:
    """The first n orthonormal polynomials at points, ``(n, len(x))``."""
    a, b = weight.recurrence(n)
    p = np.ones((n, len(x)))
    for k in range(n - 1):
        before = b[k - 1] * p[k - 1] if k else 0.0
        p[k + 1] = ((x - a[k]) * p[k] - before) / b[k]
    return p


@lru_cache(maxsize=1024)
def modes(weight: Weight, n: int) -> np.ndarray:
    """From values at the nodes of n points to the coefficients of the polynomials, ``(n, n)``."""
    x, w = gauss(weight, n)
    return polynomials(weight, n, x) * w


@lru_cache(maxsize=1024)
def prediction(weight: Weight, n: int, m: int) -> np.ndarray:
    """From values at the nodes of n points to the interpolant at those of m, ``(m, n)``."""
    return polynomials(weight, n, gauss(weight, m)[0]).T @ modes(weight, n)
