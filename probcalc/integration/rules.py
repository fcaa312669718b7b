"""Fixed rules: nodes and weights, and what else their nodes can tell.

Kronrod (1965); Piessens, de Doncker, Überhuber & Kahaner (1983), QUADPACK, for the pair of 7 and
15 points and its error estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

# Kronrod's 15 points on [-1, 1] (the right half, ascending) and the weights of both rules there
_NODES = (
    0.0,
    0.207784955007898467600689403773245,
    0.405845151377397166906606412076961,
    0.586087235467691130294144691693370,
    0.741531185599394439863864773280788,
    0.864864423359769072789712788640926,
    0.949107912342758524526189684047851,
    0.991455371120812639206854697526329,
)
_KRONROD = (
    0.209482141084727828012999174891714,
    0.204432940075298892414161999234649,
    0.190350578064785409913256402421014,
    0.169004726639267902826583426598550,
    0.140653259715525918745189590510238,
    0.104790010322250183839876322541518,
    0.063092092629978553290700663189204,
    0.022935322010529224963732008058970,
)
_GAUSS = (
    0.417959183673469387755102040816327,
    0.0,
    0.381830050505118944950369775488975,
    0.0,
    0.279705391489276667901467771423780,
    0.0,
    0.129484966168869693270611432679082,
    0.0,
)
_EDGE = 1e-7
_MANY, _LITTLE = 40, 0.1  # checks, and their jitter within a cell
_GOLDEN = 0.5 * (5**0.5 - 1)


@dataclass(frozen=True, eq=False)
class PanelRule:
    """Kronrod's rule on the panel [0, 1], and points at which its interpolant is checked.

    Args:
        nodes: The rule's nodes, then the checks.
        weights: Of the nodes, adding up to one; first row Kronrod's, second Kronrod's minus
            Gauss's.
        interpolation: From values at the nodes to the checks.
        order: Of all points, ascending.
        between: Where each inner one of these lies between its neighbours, from 0 to 1.
    """

    nodes: Float[Tensor, " n"]
    weights: Float[Tensor, "2 k"]
    interpolation: Float[Tensor, "m k"]
    order: Int[Tensor, " n"]
    between: Float[Tensor, " i"]


@lru_cache
def gauss_kronrod(device: torch.device, num_checks: int) -> PanelRule:
    """The pair of 7 and 15 points (float64), with that many checks and two at the edges."""
    nodes, kronrod, gauss = _mirrored(_NODES, -1.0), _mirrored(_KRONROD), _mirrored(_GAUSS)
    j = np.arange(num_checks)
    # one check in each of equal cells, without symmetry and without a common spacing; where they
    # are many, with no gap that is much wider than a cell
    jitter = 1.0 if num_checks < _MANY else _LITTLE
    inner = 2 * (j + 0.5 + jitter * ((j + 1) * _GOLDEN % 1 - 0.5)) / num_checks - 1
    # what crosses an edge from a neighbour shows there
    checks = np.concatenate([[-1 + _EDGE], inner, [1 - _EDGE]])
    weights = np.stack([kronrod, kronrod - gauss]) / 2
    points = (1 + np.concatenate([nodes, checks])) / 2
    order = np.argsort(points)
    x = points[order]
    between = (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
    arrays = points, weights, _interpolation(nodes, checks), order, between
    return PanelRule(*(torch.from_numpy(a).to(device) for a in arrays))


def _mirrored(half: tuple[float, ...], sign: float = 1.0) -> np.ndarray:
    right = np.array(half)
    return np.concatenate([sign * right[:0:-1], right])


def _interpolation(nodes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Lagrange polynomials of the nodes at the points: Berrut & Trefethen (2004), section 4."""
    gaps = nodes[:, None] - nodes
    np.fill_diagonal(gaps, 1.0)
    terms = 1.0 / (gaps.prod(axis=1) * (points[:, None] - nodes))
    return terms / terms.sum(axis=1, keepdims=True)


def barycentric(t: Float[Tensor, " *t"]) -> Float[Tensor, "*t n"]:
    """Lagrange polynomials of Kronrod's nodes on [0, 1] at points: Berrut & Trefethen (2004)."""
    nodes, weights = _barycentric_table(t.device)
    terms = weights / (t[..., None] - nodes)
    return terms / terms.sum(dim=-1, keepdim=True)


@lru_cache
def _barycentric_table(device: torch.device) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    nodes = (1 + _mirrored(_NODES, -1.0)) / 2
    gaps = nodes[:, None] - nodes
    np.fill_diagonal(gaps, 1.0)
    return tuple(torch.from_numpy(a).to(device) for a in (nodes, 1.0 / gaps.prod(axis=1)))
