"""One look at one easy box: a pair of product rules of fixed orders, with nothing around them.

The grids, the checks and the bar are those of `products`; what one look does not settle goes on
there. All is computed with NumPy on the host, whose small arrays are the fastest to call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.integration.goal import Goal
from probcalc.integration.grids import CPU, grid
from probcalc.integration.integrand import CHANGED, version_of
from probcalc.integration.measure import FAINT
from probcalc.integration.orthogonal import LEGENDRE, prediction
from probcalc.integration.problem import DEFAULT_RTOL, Tolerance
from probcalc.integration.products import DOUBT, FEWEST_MISSES, PAIRS, products
from probcalc.result import Estimate

METHOD = "adaptive cubature"
MAX_EVALS = 2**20  # of a box
_LESS = 2  # points an axis
_BETWEEN = {2: 24}  # order of a coarse grid for the same fine one, where the first does not settle
_CAUTION = 3.0  # on what a step gains, which is taken to be the same again
_LEAST_GAIN = 0.03
_ROUNDING = 4.0  # units in the last place of the integral of |f|
_TINY = torch.finfo(torch.float64).tiny


class _Hard(Exception):
    """Not for one look."""


@dataclass(frozen=True, eq=False)
class _Grids:
    """A fine grid of the unit cube, a coarse one, and one that is coarser than either.

    Args:
        points: Of each.
        mass: Weights of the fine and of the coarse one.
        squares: Of the fine one's weights.
        predict: Along each axis, from values on the coarse grid to its interpolant on the fine
            one, and from the coarsest to the coarse one.
    """

    points: tuple[Float[Tensor, "_ d"], ...]
    mass: tuple[Float[np.ndarray, " f"], Float[np.ndarray, " c"]]
    squares: Float[np.ndarray, " f"]
    predict: tuple[Float[np.ndarray, "m n"], Float[np.ndarray, "n o"]]

    @property
    def dim(self) -> int:
        """Of the cube."""
        return self.points[0].shape[1]

    def missed(
        self,
        predict: Float[np.ndarray, "m n"],
        values: Float[np.ndarray, " n_to_the_d"],
        at: Float[np.ndarray, " m_to_the_d"],
    ) -> Float[np.ndarray, " m_to_the_d"]:
        """What the interpolant of values on one grid misses at another."""
        for _ in range(self.dim):  # the axis in front goes to the end
            values = (predict @ values.reshape(predict.shape[1], -1)).T
        return np.abs(values.reshape(-1) - at)


@lru_cache
def _grids(dim: int, orders: tuple[int, int, int], device: torch.device) -> _Grids:
    weights, (fine, coarse, coarsest) = (LEGENDRE,) * dim, orders
    grids = [grid(weights, (order,) * dim, CPU) for order in orders]
    points, mass = tuple(g.points.to(device) for g in grids), [g.mass.numpy() for g in grids]
    predict = prediction(LEGENDRE, coarse, fine), prediction(LEGENDRE, coarsest, coarse)
    return _Grids(points, (mass[0], mass[1]), mass[0] ** 2, predict)


@lru_cache
def _all_points(dim: int, orders: tuple[int, int, int], device: torch.device) -> Tensor:
    return torch.cat(_grids(dim, orders, device).points)


def quick_box(
    fn: Callable[..., Tensor],
    lower: Float[Tensor, " d"],
    upper: Float[Tensor, " d"],
    args: tuple[Any, ...],
    dtype: torch.dtype,
    tolerance: Tolerance,
) -> Estimate | None:
    """The integral if products of Gauss rules give it; None where it takes more, or gradients."""
    width, dim, device = (upper - lower).double(), len(lower), lower.device
    if dim not in PAIRS:
        return None
    widths = width.tolist()
    volume = math.prod(widths)
    if not 0 < volume < math.inf or min(widths) <= 0:
        return None

    def asked(points: Tensor) -> Tensor:
        x = torch.addcmul(lower, width, points)
        if dtype is not torch.float64:
            x = x.to(dtype)
        version = version_of(x)
        f = fn(x, *args)
        if version_of(x) != version:
            raise ValueError(CHANGED)
        plain = torch.is_tensor(f) and f.shape == x.shape[:1] and not f.is_complex()
        if not plain or f.requires_grad:
            raise _Hard
        return f.double() * volume

    rtol = (tolerance.rtol or 0.0) if tolerance.asked else DEFAULT_RTOL
    goal = Goal(rtol, tolerance.atol or 0.0, tolerance.max_evals or MAX_EVALS)
    try:
        value, error, num = _settled(asked, dim, device, goal, torch.finfo(dtype).eps)
    except _Hard:
        return None
    if tolerance.asked and error > max(rtol * abs(value), tolerance.atol or 0.0):
        return None
    result = [torch.from_numpy(np.asarray(v)) for v in (value, error)]
    if dtype is not torch.float64 or device.type != "cpu":
        result = [t.to(device, dtype) for t in result]
    return Estimate(*result, confidence=tolerance.confidence, num_evals=num, method=METHOD)


def _settled(
    asked: Callable[[Tensor], Tensor], dim: int, device: torch.device, goal: Goal, rounding: float
) -> tuple[float, float, int]:
    """Integral, error and evaluations; one look, where it helps another, then `products`."""
    n, m = PAIRS[dim]
    orders = m, n, n - _LESS
    points = _all_points(dim, orders, device)
    num = len(points)
    if num > goal.max_evals:
        raise _Hard
    found = asked(points).numpy(force=True)
    fine, coarse = m**dim, n**dim
    values = found[:fine], found[fine : fine + coarse], found[fine + coarse :]
    value, error, settled = _looked_at(_grids(dim, orders, device), values, goal, rounding)
    if not settled and dim in _BETWEEN:
        grids = _grids(dim, (m, _BETWEEN[dim], n), device)
        between = asked(grids.points[1]).numpy(force=True)
        num += len(between)
        values = values[0], between, values[1]
        value, error, settled = _looked_at(grids, values, goal, rounding, alike=True)
    if settled:
        return value, error, num
    tried: Any = values[0][:, None, None]
    if device.type != "cpu":
        tried = torch.from_numpy(tried).to(device)
    at = lambda points, elem: asked(points)[:, None, None]  # noqa: E731
    further = products(at, (LEGENDRE,) * dim, _one(device), goal, rounding, tried)
    if not further.done:
        raise _Hard
    sums = further.done[0].sums
    num += sum(count for _, count in further.spent)
    return float(sums.value), float(sums.error + sums.noise), num


def _looked_at(
    grids: _Grids,
    values: tuple[np.ndarray, np.ndarray, np.ndarray],
    goal: Goal,
    rounding: float,
    alike: bool = False,
) -> tuple[float, float, bool]:
    """Integral and error, and whether they stand: the judgement of `products`.

    Grids whose orders are alike may agree by chance: then the misses count, but for what a step
    gains, instead of their square.
    """
    (mass, first), (f, g, h), (fine, coarse) = grids.mass, values, grids.predict
    with np.errstate(all="ignore"):  # what is not finite ends as a NaN
        missed, value = grids.missed(fine, g, f), float(mass @ f)
        size, miss = float(mass @ np.abs(f)), float(mass @ missed)
        spread, noise = float(mass @ np.abs(f - value)), _ROUNDING * rounding * size
        alone = float(grids.squares @ (missed * missed))
        earlier = float(first @ grids.missed(coarse, h, g))
        step = miss / (earlier + _TINY)
    error = DOUBT * abs(value - float(first @ g))
    if alike:
        error += miss * min(step, 1.0)
    else:
        error += miss * miss / (spread + _TINY)
        # that is the coarse rule's error, and goes with the square of its interpolant's
        error *= min(max(_CAUTION * step * step, _LEAST_GAIN), 1.0)
    allowed = goal.allowed_of(value, noise)
    settled = error <= allowed and size > FAINT
    # a needle between the coarse points is one miss among thousands
    settled = settled and (miss <= allowed or miss * miss >= FEWEST_MISSES * alone)
    return value, error + noise, settled


@lru_cache
def _one(device: torch.device) -> Tensor:
    return torch.zeros(1, dtype=torch.long, device=device)
