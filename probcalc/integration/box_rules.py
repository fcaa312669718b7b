"""Fixed rules on the cube [−1, 1]^d: points, and weights that add up to one.

Genz & Malik (1980), An adaptive algorithm for numerical integration over an N-dimensional
rectangular region, for the pair of degrees 7 and 5.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_EDGE = 1e-7  # distance of checks from the surface
# squares of the generators of Genz & Malik
_NEAR2, _FAR2, _CORNER2 = 9 / 70, 9 / 10, 9 / 19


@dataclass(frozen=True, eq=False)
class BoxRule:
    """A rule on [−1, 1]^d.

    Args:
        points: Where the integrand is evaluated: the rule's points, then checks.
        weights: First row the rule's, second (if there) that of a rule of lower degree.
        fourth: Fourth differences along each axis, as combinations of values; or None.
        prediction: From values at the rule's points to the checks, by the cubic polynomial that
            fits them best; or None.
    """

    points: Float[Tensor, "n d"]
    weights: Float[Tensor, "r p"]
    fourth: Float[Tensor, "d p"] | None = None
    prediction: Float[Tensor, "m p"] | None = None


@lru_cache
def genz_malik(dim: int, device: torch.device) -> BoxRule:
    """Degree 7 with an embedded degree 5, d ≥ 2: 2^d + 2d² + 2d + 1 points.

    The checks are the corners and the middles of the faces: what crosses from a neighbour shows
    there, while the rule's points keep their distance.
    """
    near, far, corner = _NEAR2**0.5, _FAR2**0.5, _CORNER2**0.5
    eye = np.eye(dim)
    pairs = [
        far * (s * eye[i] + t * eye[j])
        for i, j in itertools.combinations(range(dim), 2)
        for s, t in itertools.product((1, -1), repeat=2)
    ]
    corners = [corner * np.array(signs) for signs in itertools.product((1, -1), repeat=dim)]
    points = np.concatenate(
        [np.zeros((1, dim)), near * eye, -near * eye, far * eye, -far * eye, pairs, corners]
    )
    counts = (1, 2 * dim, 2 * dim, 2 * dim * (dim - 1), 2**dim)
    seven = (
        (12824 - 9120 * dim + 400 * dim**2) / 19683,
        980 / 6561,
        (1820 - 400 * dim) / 19683,
        200 / 19683,
        6859 / 19683 / 2**dim,
    )
    five = (
        (729 - 950 * dim + 50 * dim**2) / 729,
        245 / 486,
        (265 - 100 * dim) / 1458,
        25 / 729,
        0.0,
    )
    weights = np.stack([np.repeat(seven, counts), np.repeat(five, counts)])
    signs = np.array(list(itertools.product((1, -1), repeat=dim)))
    checks = (1 - _EDGE) * np.concatenate([signs, eye, -eye])
    prediction = _cubics(checks) @ np.linalg.pinv(_cubics(points))
    arrays = np.concatenate([points, checks]), weights, _fourth(dim, counts), prediction
    return BoxRule(*(torch.from_numpy(a).to(device) for a in arrays))


def _cubics(points: np.ndarray) -> np.ndarray:
    """All monomials up to degree 3."""
    columns = [
        points[:, list(axes)].prod(axis=1)
        for degree in range(4)
        for axes in itertools.combinations_with_replacement(range(points.shape[1]), degree)
    ]
    return np.stack(columns, axis=1)


def _fourth(dim: int, counts: tuple[int, ...]) -> np.ndarray:
    """Second difference with the near points less that with the far ones, axis by axis."""
    combination = np.zeros((dim, sum(counts)))
    for axis in range(dim):
        near = [1 + axis, 1 + dim + axis]
        far = [1 + 2 * dim + axis, 1 + 3 * dim + axis]
        combination[axis, near] = 1.0
        combination[axis, far] = -_NEAR2 / _FAR2
        combination[axis, 0] = -2 * (1 - _NEAR2 / _FAR2)
    return combination
