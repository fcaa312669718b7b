"""A batch of integrals, as the methods see it: flat, checked, in ascending order."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Inexact, Int
from torch import Tensor

from probcalc.integration.integrand import Integrand
from probcalc.integration.orthogonal import Weight
from probcalc.result import Estimate, half_width
from probcalc.status import EstimateWarning, Status

Limit = Tensor | float | int
DEFAULT_RTOL = 1e-8  # of deterministic rules, where the caller names no tolerance


@dataclass(frozen=True, eq=False)
class Tolerance:
    """What the caller asked for, and what is tried for where nothing was asked.

    Args:
        rtol: Relative tolerance, or None.
        atol: Absolute tolerance, or None.
        max_evals: Budget of each element, or None.
        confidence: Level of a random method's bar.
        generator: Where a random method's seed is drawn from.
    """

    rtol: float | None = None
    atol: float | None = None
    max_evals: int | None = None
    confidence: float = 0.99
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("rtol", "atol"):
            asked = getattr(self, name)
            if asked is not None and not 0 <= asked < math.inf:
                raise ValueError(f"`{name}` must be a finite number ≥ 0, got {asked}.")
        if self.max_evals is not None and self.max_evals < 1:
            raise ValueError(f"`max_evals` must be at least 1, got {self.max_evals}.")
        if not 0 < self.confidence < 1:
            raise ValueError(f"`confidence` must lie between 0 and 1, got {self.confidence}.")

    @property
    def asked(self) -> bool:
        """Whether there is a tolerance that can be missed."""
        return self.rtol is not None or self.atol is not None

    def missed(self, value: Tensor, error: Tensor) -> Bool[Tensor, " ..."]:
        """Where the error is above both tolerances."""
        allowed = ((self.rtol or 0.0) * value.abs()).clamp(min=self.atol or 0.0)
        return ~(error <= allowed)


@dataclass(frozen=True, eq=False)
class Problem:
    """Integrals of one function over intervals or boxes.

    Args:
        fn: The caller's function.
        args: Its further arguments; tensors carry the batch in front.
        lower: Lower limits, ``(b)`` or ``(b, d)``, never above the upper ones.
        upper: Upper limits.
        sign: −1 where the limits came in reverse.
        breaks: Further points where the integrand may be rough, ``(b, s)``.
        batch: Shape of the batch.
        dtype: In which the function is evaluated.
        rounding: Relative rounding error of its values.
        weights: Of a box whose coordinates are not uniform but have these weights, else None.
    """

    fn: Callable[..., Tensor]
    args: tuple[Any, ...]
    lower: Float[Tensor, " b *event"]
    upper: Float[Tensor, " b *event"]
    sign: Float[Tensor, " b"]
    breaks: Float[Tensor, "b s"]
    batch: tuple[int, ...]
    dtype: torch.dtype
    rounding: float
    weights: tuple[Weight, ...] | None = None

    @property
    def size(self) -> int:
        """Number of integrals."""
        return math.prod(self.batch)

    @property
    def event(self) -> tuple[int, ...]:
        """Shape of a point."""
        return tuple(self.lower.shape[1:])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those among the arguments."""
        return tuple(a for a in self.args if torch.is_tensor(a))

    @property
    def padded(self) -> bool:
        """Whether every call of the function sees the whole batch."""
        return bool(self.batch) and not self.tensors

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> Problem:
        """The same problem with other tensors among the arguments."""
        rest = iter(tensors)
        args = tuple(next(rest) if torch.is_tensor(a) else a for a in self.args)
        return replace(self, args=args)

    def integrand(self) -> Integrand:
        """The function of points and their elements."""
        filler = torch.where(self.lower.isfinite(), self.lower, self.upper)
        both = self.lower.isfinite() & self.upper.isfinite()
        filler = torch.where(both, 0.5 * (self.lower + self.upper), filler)
        filler = torch.where(filler.isfinite(), filler, 0.0).detach()
        return Integrand(self.fn, self.args, self.batch, self.event, self.dtype, filler)


@dataclass(frozen=True, eq=False)
class Solved:
    """What a method found for a flat problem: ``(b, *out)``, flags and costs ``(b)``.

    Random methods give the standard error and its degrees of freedom as well; a method that was
    chosen comes with the reason; one that says so has taken the bars from values that are none.
    Whatever else is worth telling goes to the diagnostics.
    """

    value: Inexact[Tensor, " b *out"]
    error: Float[Tensor, " b *out"]
    status: Int[Tensor, " b"]
    num_evals: Int[Tensor, " b"]
    method: str
    std_error: Float[Tensor, " b *out"] | None = None
    dof: float | None = None
    reason: str = ""
    flagged: bool = False
    diagnostics: dict[str, Any] = field(default_factory=dict)

    def or_better(self, other: Solved, better: Bool[Tensor, " b"], confidence: float) -> Solved:
        """The other's elements where it is better; what they cost together."""
        spent = self.num_evals + other.num_evals
        if not bool(better.any()):
            return replace(self, num_evals=spent)
        if bool(better.all()):
            return replace(other, num_evals=spent)
        wide = better.reshape(-1, *[1] * (self.value.ndim - 1))
        random = self.std_error is not None or other.std_error is not None
        names = dict.fromkeys([self.method, other.method])
        return Solved(
            torch.where(wide, other.value, self.value),
            torch.where(wide, other.error, self.error),
            torch.where(better, other.status, self.status),
            spent,
            " and ".join(names),
            torch.where(wide, other._scatter(confidence), self._scatter(confidence))
            if random
            else None,
            math.inf if random else None,
            self.reason,
            diagnostics=self.diagnostics | other.diagnostics,
        )

    def _scatter(self, confidence: float) -> Float[Tensor, " b *out"]:
        """Standard error, or the one that would give the bar."""
        width = half_width(torch.ones_like(self.error), None, confidence)
        return self.error / width if self.std_error is None else self.std_error

    def _without_bars(self) -> tuple[Tensor, Tensor]:
        """Errors and flags; whatever the method says, a value that is none has no bar."""
        undefined = self.value.detach().isnan()
        error = torch.where(undefined, math.inf, self.error)
        unseen = _any_output(undefined) & (self.status == 0)
        return error, self.status | torch.where(unseen, int(Status.NON_FINITE), int(Status.OK))

    def estimate(
        self,
        batch: tuple[int, ...],
        dtype: torch.dtype,
        tolerance: Tolerance,
        stacklevel: int,
        reads: bool = True,
    ) -> Estimate:
        """In the caller's shape and precision; flagged where a tolerance asked for is missed.

        Warned of where a flag stands, unless nothing may be read from the device.
        """
        shape = (*batch, *self.value.shape[1:])
        kind = dtype.to_complex() if self.value.is_complex() else dtype
        error, status = (self.error, self.status) if self.flagged else self._without_bars()
        if dtype != torch.float64:
            rounding = torch.finfo(dtype).eps * self.value.detach().abs()
            error = error + torch.where(self.value.isfinite(), rounding, 0.0)
        if tolerance.asked:
            missed = tolerance.missed(self.value.detach(), error)
            status = status | torch.where(
                _any_output(missed), Status.TOLERANCE_NOT_REACHED, Status.OK
            )
        std_error = None if self.std_error is None else self.std_error.to(dtype).reshape(shape)
        result = Estimate(
            self.value.to(kind).reshape(shape),
            error.to(dtype).reshape(shape),
            std_error,
            self.dof,
            tolerance.confidence,
            status.reshape(batch),
            self.num_evals.reshape(batch),
            self.method,
            {**({"reason": self.reason} if self.reason else {}), **self.diagnostics},
        )
        if reads and not result.ok:
            advice = f"{result!r}: {result.flags.advice}"
            warnings.warn(advice, EstimateWarning, stacklevel=stacklevel + 1)
        return result


def _any_output(where: Bool[Tensor, " b *out"]) -> Bool[Tensor, " b"]:
    return where.flatten(1).any(dim=1) if where.ndim > 1 else where


def problem(
    fn: Callable[..., Tensor],
    lower: Limit,
    upper: Limit,
    *,
    args: tuple[Any, ...],
    event_dim: int,
    breaks: Tensor | Sequence[float] | None,
    dtype: torch.dtype | None,
    reads: bool = True,
) -> Problem:
    """Check and flatten what the caller gave; limits only where they may be read.

    Raises:
        TypeError: If a limit or the function is not one.
        ValueError: If limits are NaN, shapes do not fit or devices differ.
    """
    if not callable(fn):
        raise TypeError(f"the integrand must be a function, got {type(fn).__name__}.")
    if event_dim not in (0, 1):
        raise ValueError(f"`event_dim` must be 0 (intervals) or 1 (boxes), got {event_dim}.")
    if not isinstance(args, tuple):
        raise TypeError(f"`args` must be a tuple of tensors, got {type(args).__name__}.")
    if event_dim and breaks is not None:
        raise ValueError("`breaks` are for intervals: cut a box into a batch of boxes instead.")
    device = common_device({"lower": lower, "upper": upper, "breaks": breaks}, args)
    evaluated = dtype or common_dtype((lower, upper, *args))
    lo, hi = (_limit(n, t, device, reads) for n, t in (("lower", lower), ("upper", upper)))
    try:
        lo, hi = torch.broadcast_tensors(lo, hi)
    except RuntimeError:
        raise ValueError(
            f"`lower` of shape {tuple(lo.shape)} and `upper` of shape {tuple(hi.shape)} must "
            "broadcast."
        ) from None
    batch = _batch(lo, event_dim)
    flat = tuple(flattened(i, a, batch) for i, a in enumerate(args))
    b = math.prod(batch)
    lo, hi = lo.reshape(b, *lo.shape[len(batch) :]), hi.reshape(b, *hi.shape[len(batch) :])
    flipped = hi < lo
    sign = 1.0 - 2.0 * flipped.double()
    sign = sign.prod(dim=1) if event_dim else sign
    lo, hi = torch.where(flipped, hi, lo), torch.where(flipped, lo, hi)
    points = _breaks(breaks, batch, device)
    rounding = torch.finfo(evaluated).eps
    return Problem(fn, flat, lo, hi, sign, points, batch, evaluated, rounding)


def common_dtype(given: Sequence[Any]) -> torch.dtype:
    """Of the floating tensors among what was given; float64 where there are none.

    Raises:
        TypeError: If that is half precision.
    """
    found = [t.dtype for t in given if torch.is_tensor(t) and t.is_floating_point()]
    if not found:
        return torch.float64
    dtype = found[0]
    for other in found[1:]:
        dtype = torch.promote_types(dtype, other)
    if dtype.itemsize < torch.float32.itemsize:
        raise TypeError(
            f"{dtype} resolves too few points of a domain: convert to float32, or pass `dtype=`."
        )
    return dtype


def common_device(named: dict[str, Any], args: tuple[Any, ...]) -> torch.device:
    """Of all tensors; the CPU where there are none.

    Raises:
        ValueError: If they differ.
    """
    devices = {name: t.device for name, t in named.items() if torch.is_tensor(t)}
    devices |= {f"args[{i}]": a.device for i, a in enumerate(args) if torch.is_tensor(a)}
    if len(set(devices.values())) > 1:
        raise ValueError(f"all tensors must be on one device, got {devices}.")
    return next(iter(devices.values()), torch.device("cpu"))


def _limit(name: str, given: Limit, device: torch.device, reads: bool) -> Float[Tensor, " ..."]:
    if isinstance(given, complex) or (torch.is_tensor(given) and given.is_complex()):
        raise TypeError(f"`{name}` must be real; integrate a complex function along a real path.")
    if not isinstance(given, (Tensor, float, int)) and not _is_numbers(given):
        raise TypeError(f"`{name}` must be a number or a tensor, got {type(given).__name__}.")
    limit = as_double(given, device)
    if reads and bool(limit.isnan().any()):
        raise ValueError(f"`{name}` must not be NaN, got {given!r}.")
    return limit


def _is_numbers(given: Any) -> bool:
    """NumPy's scalars and arrays, and sequences of numbers."""
    return bool(np.issubdtype(np.asarray(given).dtype, np.number))


def as_double(given: Any, device: torch.device) -> Tensor:
    """Number, sequence or tensor in float64."""
    # a Python number would become float32 on its way through the default dtype
    if torch.is_tensor(given):
        return given.double()
    return torch.as_tensor(given, dtype=torch.float64, device=device)


def refuse_transforms() -> None:
    """Refuse to run where numbers cannot be read.

    Raises:
        TypeError: Inside `vmap` or a compiled graph.
    """
    inside = torch._C._functorch.peek_interpreter_stack()
    mapped = inside is not None and inside.key() == torch._C._functorch.TransformType.Vmap
    if mapped or torch.compiler.is_compiling():
        raise TypeError(
            "adaptive methods read numbers and cannot run inside vmap or a compiled graph: pass "
            "`method=GaussQuadrature(n)`, whose cost is fixed, or the batch as limits and `args`."
        )


def _batch(limit: Tensor, event_dim: int) -> tuple[int, ...]:
    if event_dim and not limit.ndim:
        raise ValueError(
            "limits of boxes must have shape (*batch, d); got two numbers. Use event_dim=0 for "
            "intervals."
        )
    if event_dim and not limit.shape[-1]:
        raise ValueError(f"boxes need at least one dimension, got limits {tuple(limit.shape)}.")
    return tuple(limit.shape[: limit.ndim - event_dim])


def flattened(i: int, arg: Any, batch: tuple[int, ...]) -> Any:
    """An argument with its batch axes joined into one.

    Raises:
        ValueError: If it is a tensor that does not start with the batch shape.
    """
    if not torch.is_tensor(arg) or not batch:
        return arg
    if tuple(arg.shape[: len(batch)]) != batch:
        raise ValueError(
            f"`args[{i}]` must start with the batch shape {batch}, got shape {tuple(arg.shape)}; "
            "expand it, or the limits or the distribution."
        )
    return arg.reshape(math.prod(batch), *arg.shape[len(batch) :])


def _breaks(
    given: Tensor | Sequence[float] | None, batch: tuple[int, ...], device: torch.device
) -> Float[Tensor, "b s"]:
    b = math.prod(batch)
    if given is None:
        return torch.zeros(b, 0, dtype=torch.float64, device=device)
    points = as_double(given, device).detach()
    if points.ndim == 0:
        points = points[None]
    if bool(points.isnan().any()):
        raise ValueError(f"`breaks` must not be NaN, got {given!r}.")
    try:
        return points.expand(*batch, points.shape[-1]).reshape(b, -1)
    except RuntimeError:
        raise ValueError(
            f"`breaks` must have shape (s) or (*batch, s) with batch {batch}, got "
            f"{tuple(points.shape)}."
        ) from None
