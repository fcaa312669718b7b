"""How many points along each axis a product of Gauss rules needs, and who shares a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

Orders = tuple[int, ...]

FINER = 1.25  # points along an axis of a grid that checks
_ATTENTION = {1: 64, 2: 32, 3: 12, 4: 7, 5: 5}  # points an axis at least of a grid that checks
_ROOM = 0.2  # of the tolerance, that a grid is planned to reach
_CAUTION = 3.0  # on the decay that is foreseen
_MOST = 100  # points along an axis
_WORTH = 2**13  # values that cost as much as one more group of elements
_TINY = torch.finfo(torch.float64).tiny


def checking(orders: Orders) -> Orders:
    """A grid that is finer along every axis, and fine enough to see needles."""
    least = _ATTENTION.get(len(orders), 0)
    return tuple(max(n + 1, int(FINER * n), least) for n in orders)


def needed(
    amplitudes: Sequence[Float[np.ndarray, "_ k"]], spread: Float[np.ndarray, " k"]
) -> tuple[Int[np.ndarray, "d k"], Float[np.ndarray, " k"]]:
    """Points that each axis needs, and what one more point leaves of the error.

    From the coefficients of its first degrees: a rule of N points misses what is beyond degree
    2N − 1, an interpolant of N points what is beyond N − 1.

    Args:
        amplitudes: Axis by axis the sizes of the coefficients of each degree, in units of the
            tolerance.
        spread: Mean absolute deviation of the values, in these units.

    Returns:
        The numbers, 0 where the decay is too slow, and the gains.
    """
    d, k = len(amplitudes), len(spread)
    tail = np.stack([_tails(a) for a in amplitudes], axis=1)
    rule = tail[2 : 2 * _MOST : 2]
    gain = np.minimum(_CAUTION * tail[4 : 2 * _MOST + 2 : 2] / (rule + _TINY), 1.0)
    enough = rule * gain <= _ROOM / d
    enough &= tail[1:_MOST] ** 2 * gain <= np.maximum(spread, 1.0) / d**2
    first = enough.argmax(0)
    at = first, *np.ogrid[:d, :k]
    finite = np.isfinite(tail[0]) & np.isfinite(tail[-1]) & np.isfinite(spread)
    return np.where(finite & enough[at], first + 1, 0), gain[at].max(0)


def _tails(amplitude: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "m k"]:
    """Size of the coefficients from each degree on, extrapolated where it was not seen."""
    n = len(amplitude)
    gap = max(2, n // 4)
    # two at a time: of even and odd functions every other coefficient vanishes
    pairs = amplitude.copy()
    pairs[1:] = np.maximum(amplitude[1:], amplitude[:-1])
    before = pairs[max(n - 1 - gap, 0)]
    ratio = np.minimum((pairs[-1] / np.maximum(before, _TINY)) ** (1 / gap), 1.0)
    beyond = np.arange(1, 2 * _MOST + 4 - n)[:, None]
    return np.concatenate([pairs[1:], pairs[-1] * ratio**beyond])


def alike(orders: Int[np.ndarray, "d k"], columns: list[int]) -> list[list[int]]:
    """Columns in groups whose common grid costs less than grids of their own."""
    rows = orders.T.tolist()
    groups: list[list[int]] = []
    common: list[int] = []
    for column in sorted(columns, key=lambda c: (math.prod(rows[c]), rows[c])):
        joint = [max(pair) for pair in zip(common, rows[column], strict=True)] if groups else []
        if groups and _joined(joint, common, rows[column], len(groups[-1])):
            groups[-1].append(column)
            common = joint
        else:
            groups.append([column])
            common = rows[column]
    return groups


def _joined(joint: list[int], common: list[int], own: list[int], members: int) -> bool:
    """Whether one more member is worth a grid for all."""
    return _cost(joint) * (members + 1) <= _cost(common) * members + _cost(own) + _WORTH


def _cost(orders: list[int]) -> int:
    """Points of a grid and of the one that checks it."""
    return math.prod(orders) + math.prod(checking(tuple(orders)))
