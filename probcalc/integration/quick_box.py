"""One look at one easy box: a pair of product rules of fixed orders, with nothing around them.

What they do not settle may be of low rank, and in many dimensions only that is looked for.

The grids, the checks and the bar are those of `products`; what one look does not settle goes on
there. All is computed with NumPy on the host, whose small arrays are the fastest to call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probcalc._random import draw_seed
from probcalc.integration.goal import Goal
from probcalc.integration.grids import CPU, grid
from probcalc.integration.integrand import CHANGED, version_of
from probcalc.integration.low_rank import Train, fibres, places, train
from probcalc.integration.measure import FAINT
from probcalc.integration.orthogonal import LEGENDRE, prediction
from probcalc.integration.problem import DEFAULT_RTOL, Tolerance
from probcalc.integration.products import DOUBT, FEWEST_MISSES, PAIRS, products
from probcalc.integration.sampled_train import MOST_DIM, sampled_train
from probcalc.result import Estimate

METHOD, BY_DRAWS = "adaptive cubature", "low-rank train, the rest by draws"
_SURE = 0.999  # confidence of a bar that draws can be asked for here
MAX_EVALS = 2**20  # of a box
_LOOKS = {**PAIRS, 6: (3, 4)}  # points an axis of the coarse grid and of the fine one
_LESS = 2  # points an axis
_PAIRED = 4  # axes from which on both ends are two axes at a time
_CAUTION = 3.0  # on what a step gains, which is taken to be the same again
_LEAST_GAIN = 0.01
_UNSEEN = 0.5  # of the error allowed: what a fit may leave anywhere of the values that it sees
_ROUNDING = 4.0  # units in the last place of the integral of |f|
_TINY = torch.finfo(torch.float64).tiny


class _Hard(Exception):
    """Not for one look."""


@dataclass(frozen=True, eq=False)
class _Grids:
    """A fine grid of the unit cube, a coarse one, and one that is coarser than either.

    Args:
        orders: Points an axis of each.
        points: Of all three, one after the other.
        table: Those of the fine one, on the host, axis by axis.
        mass: Weights of each.
        squares: Of the fine one's weights.
        predict: From values on the coarse grid to its interpolant on the fine one along one axis
            and along two, and the same from the coarsest to the coarse one.
    """

    orders: tuple[int, int, int]
    points: Float[Tensor, "_ d"]
    table: Float[np.ndarray, "d _"]
    mass: tuple[Float[np.ndarray, " _"], ...]
    squares: Float[np.ndarray, " f"]
    predict: tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

    @property
    def dim(self) -> int:
        """Of the cube."""
        return self.points.shape[1]

    def missed(
        self,
        predict: tuple[Float[np.ndarray, "m n"], Float[np.ndarray, "m_squared n_squared"]],
        values: Float[np.ndarray, " n_to_the_d"],
        at: Float[np.ndarray, " m_to_the_d"],
    ) -> Float[np.ndarray, " m_to_the_d"]:
        """What the interpolant of values on one grid misses at another."""
        one, two = predict
        front, back = two if self.dim >= _PAIRED else one, two if self.dim >= _PAIRED - 1 else one
        values = front @ values.reshape(front.shape[1], -1)
        if self.dim > 1:
            values = values.reshape(-1, back.shape[1]) @ back.T
        if self.dim > _PAIRED:  # what lies between
            middle = two if self.dim == _PAIRED + 2 else one
            values = middle @ values.reshape(len(front), -1, len(back))
        return np.abs(values.reshape(-1) - at)


@lru_cache
def _grids(dim: int, orders: tuple[int, int, int], device: torch.device) -> _Grids:
    weights, (fine, coarse, coarsest) = (LEGENDRE,) * dim, orders
    grids = [grid(weights, (order,) * dim, CPU) for order in orders]
    mass = [g.mass.numpy() for g in grids]
    points = _axis_by_axis(torch.cat([g.points for g in grids])).to(device)
    alone = prediction(LEGENDRE, coarse, fine), prediction(LEGENDRE, coarsest, coarse)
    predict = tuple((one, np.kron(one, one)) for one in alone)
    table = grids[0].points.T.numpy().copy()
    return _Grids(orders, points, table, tuple(mass), mass[0] ** 2, predict)


def _axis_by_axis(points: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The same in memory that holds one axis after the other.

    A function of them then runs along thousands of points and not along a handful of axes.
    """
    return points.T.contiguous().T


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
    if not 1 <= dim <= MOST_DIM:
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
        try:
            f = fn(x, *args)
        except (
            RuntimeError
        ):  # perhaps at how the points lie in memory: elsewhere they do so plainly
            raise _Hard from None
        if version_of(x) != version:
            raise ValueError(CHANGED)
        plain = torch.is_tensor(f) and f.shape == x.shape[:1] and not f.is_complex()
        if not plain or f.requires_grad:
            raise _Hard
        f = f.double()
        return f if volume == 1 else f * volume

    rtol = (tolerance.rtol or 0.0) if tolerance.asked else DEFAULT_RTOL
    settle = _settled if dim in _LOOKS else partial(_sampled, tolerance)
    goal = Goal(rtol, tolerance.atol or 0.0, tolerance.max_evals or MAX_EVALS)
    try:
        value, error, num = settle(asked, dim, device, goal, torch.finfo(dtype).eps)
    except _Hard:
        return None
    if tolerance.asked and error > max(rtol * abs(value), tolerance.atol or 0.0):
        return None
    result = [torch.from_numpy(np.asarray(v)) for v in (value, error)]
    if dtype is not torch.float64 or device.type != "cpu":
        result = [t.to(device, dtype) for t in result]
    method = METHOD if dim in _LOOKS else BY_DRAWS
    return Estimate(*result, confidence=tolerance.confidence, num_evals=num, method=method)


def _settled(
    asked: Callable[[Tensor], Tensor], dim: int, device: torch.device, goal: Goal, rounding: float
) -> tuple[float, float, int]:
    """Integral, error and evaluations; one look, then fibres, then `products`."""
    n, m = _LOOKS[dim]
    orders = m, n, n - _LESS
    grids = _grids(dim, orders, device)
    num = len(grids.points)
    if num > goal.max_evals:
        raise _Hard
    found = asked(grids.points).numpy(force=True)
    fine, coarse = m**dim, n**dim
    values = found[:fine], found[fine : fine + coarse], found[fine + coarse :]
    with np.errstate(all="ignore"):  # what is not finite ends as a NaN
        size = float(grids.mass[0] @ np.abs(values[0]))
        value, error, settled = _looked_at(grids, values, size, goal, rounding)
    if settled:
        return value, error, num
    fibred = _trained(asked, grids, values, goal, value, num)
    if fibred:
        num += fibred.count
        with np.errstate(all="ignore"):
            value, error, settled = _checked(fibred, grids, values, size, goal, rounding)
        if settled:
            return value, error, num
    if dim not in PAIRS:
        raise _Hard
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


def _sampled(
    tolerance: Tolerance,
    asked: Callable[[Tensor], Tensor],
    dim: int,
    device: torch.device,
    goal: Goal,
    rounding: float,
) -> tuple[float, float, int]:
    """The same in many dimensions, from pivots among random points."""
    if tolerance.confidence > _SURE:
        raise _Hard

    def at(points: Float[np.ndarray, "d n"]) -> Float[np.ndarray, " n"]:
        return asked(torch.from_numpy(points).T.to(device)).numpy(force=True)

    seed = draw_seed(tolerance.generator)
    found = sampled_train(at, dim, lambda value: goal.allowed_of(value, 0.0), seed, rounding)
    if found is None or found[2] > goal.max_evals:
        raise _Hard
    return found


def _looked_at(
    grids: _Grids,
    values: tuple[np.ndarray, np.ndarray, np.ndarray],
    size: float,
    goal: Goal,
    rounding: float,
) -> tuple[float, float, bool]:
    """Integral and error, and whether they stand: the judgement of `products`."""
    (mass, first, _), (f, g, h), (fine, coarse) = grids.mass, values, grids.predict
    value, noise = float(mass @ f), _ROUNDING * rounding * size
    error, allowed = DOUBT * abs(value - float(first @ g)), goal.allowed_of(value, noise)
    if _LEAST_GAIN * error > allowed:
        return value, error + noise, False
    missed = grids.missed(fine, g, f)
    miss, spread = float(mass @ missed), float(mass @ np.abs(f - value))
    error += miss * miss / (spread + _TINY)
    if error > allowed >= _LEAST_GAIN * error:
        # that is the coarse rule's error, and goes with the square of its interpolant's
        step = miss / (float(first @ grids.missed(coarse, h, g)) + _TINY)
        error *= min(max(_CAUTION * step * step, _LEAST_GAIN), 1.0)
    settled = error <= allowed and size > FAINT
    if settled and miss > allowed:
        # a needle between the coarse points is one miss among thousands
        settled = miss * miss >= FEWEST_MISSES * float(grids.squares @ (missed * missed))
    return value, error + noise, settled


def _trained(
    asked: Callable[[Tensor], Tensor],
    grids: _Grids,
    values: tuple[np.ndarray, np.ndarray, np.ndarray],
    goal: Goal,
    value: float,
    spent: int,
) -> Train | None:
    """The function of low rank that fits the values on the fine grid, where there is one."""
    order, allowed = grids.orders[0], goal.allowed_of(value, 0.0)
    if grids.dim == 1 or not 0 < allowed < math.inf:
        return None
    at = places(values[0], order, grids.dim, _UNSEEN * allowed)
    if at is None or spent + at.count > goal.max_evals:
        return None
    points = torch.from_numpy(fibres(at, grids.table)).T.to(grids.points.device)
    return train(at, values[0], asked(points).numpy(force=True))


def _checked(
    fibred: Train,
    grids: _Grids,
    values: tuple[np.ndarray, np.ndarray, np.ndarray],
    size: float,
    goal: Goal,
    rounding: float,
) -> tuple[float, float, bool]:
    """Integral and error of a function of low rank, and whether they stand.

    The error is what that function misses on the grids, as if it never cancelled.
    """
    value, tables = fibred.integral_and_tables(grids.orders[:2])
    triples = zip(grids.mass, tables, values, strict=False)
    missed = max(float(mass @ np.abs(table - f)) for mass, table, f in triples)
    noise = _ROUNDING * rounding * size
    error = DOUBT * missed
    return value, error + noise, error <= goal.allowed_of(value, noise) and size > FAINT


@lru_cache
def _one(device: torch.device) -> Tensor:
    return torch.zeros(1, dtype=torch.long, device=device)
