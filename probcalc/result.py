"""What every computation returns: a number with its error bar, and a verdict in words.

`Estimate` is for integrals, expectations and anything else that is a number; `Solution` is for
optimisers; the flags of both are in `status`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Inexact, Int
from scipy.special import ndtri, stdtrit
from torch import Tensor
from torch.utils import _pytree as pytree

from probcalc.status import EstimateWarning, Status


def half_width(
    std_error: Float[Tensor, "*shape"], dof: float | int | None, confidence: float
) -> Float[Tensor, "*shape"]:
    """Half-width of the central interval of a Student t (normal where `dof` is None or inf)."""
    tail = 0.5 * (1.0 + confidence)
    normal = dof is None or math.isinf(dof)
    quantile = float(ndtri(tail)) if normal else float(stdtrit(dof, tail))
    return std_error * quantile


@dataclass(frozen=True, eq=False, repr=False)
class Estimate:
    r"""A number, the error that it may have, and whether to believe it.

    The claim is |truth − value| ≤ error, elementwise, with probability at least `confidence`;
    for a deterministic rule `error` is the rule's own error estimate.

    Sums, differences, products, quotients, `exp` and `log` carry the error bar by interval
    arithmetic: nothing is assumed about dependence, so bars add and confidences combine by the
    union bound. Anything else needs `.value`, and with it the decision to drop the bar.

    Args:
        value: The estimate, shape ``(*batch, *out)``; differentiable where the method is.
        error: Half-width, same shape, detached; inf where no bar can be given.
        std_error: Standard error (random methods), else None.
        dof: Degrees of freedom behind `std_error`, None for a deterministic rule.
        confidence: Level of the claim.
        status: Bit flags of `Status`, shape ``(*batch)``.
        num_evals: Evaluations of the integrand or log density.
        method: What was done, in words.
        diagnostics: Further figures, by name.
        covariance: Covariance between few output components, or None.
    """

    value: Inexact[Tensor, " ..."]
    error: Float[Tensor, " ..."]
    std_error: Float[Tensor, " ..."] | None = None
    dof: float | None = None
    confidence: float = 0.99
    status: Int[Tensor, " ..."] | int = 0
    num_evals: int | Int[Tensor, " ..."] = 0
    method: str = ""
    diagnostics: dict[str, Any] = field(default_factory=dict)
    covariance: Float[Tensor, " ..."] | None = None

    @classmethod
    def exact(cls, value: Inexact[Tensor, " ..."] | float | int, **kwargs: Any) -> Estimate:
        """A number known without error, such as a closed form or a given constant."""
        value = torch.as_tensor(value, dtype=None if torch.is_tensor(value) else torch.float64)
        return cls(value, torch.zeros_like(value.detach()), **kwargs)

    @classmethod
    def from_replicates(
        cls, values: Float[Tensor, " r *out"], *, confidence: float = 0.99, **kwargs: Any
    ) -> Estimate:
        """Mean of independent replicates of one estimate, with a Student t error bar.

        Raises:
            ValueError: With fewer than two replicates, which have no error bar.
        """
        r = values.shape[0]
        if r < 2:
            raise ValueError(f"an error bar needs at least 2 replicates, got {r}.")
        mean = values.mean(dim=0)
        std_error = values.detach().std(dim=0) / r**0.5
        # rounding of the sum, so that equal replicates do not claim to be exact
        rounding = mean.detach().abs() * torch.finfo(values.dtype).eps * r**0.5
        error = half_width(std_error, r - 1, confidence) + rounding
        bad = ~values.detach().isfinite().all(dim=0)
        error = torch.where(bad, math.inf, error)
        status = torch.where(bad, Status.NON_FINITE, Status.OK) | kwargs.pop("status", 0)
        return cls(mean, error, std_error, float(r - 1), confidence, status, **kwargs)

    @classmethod
    def barred_later(
        cls, value: Float[Tensor, " ..."], bar: Callable[[Tensor], Tensor], *, method: str
    ) -> Estimate:
        """A value whose bar, which may cost as much, is computed when it is first read."""
        result = object.__new__(cls)
        rest = {f.name: f.default for f in fields(cls) if f.default is not MISSING}
        rest |= {"value": value, "method": method, "diagnostics": {}, "_bar": bar}
        result.__dict__.update(rest)
        return result

    def __getattr__(self, name: str) -> Any:
        bar = self.__dict__.get("_bar") if name == "error" else None
        if bar is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self.__dict__["error"] = bar(self.value.detach())
        return self.__dict__["error"]

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def ok(self) -> bool:
        """True where no element carries a flag (reads from the device)."""
        return self.flags == Status.OK

    @property
    def flags(self) -> Status:
        """All flags of all elements, joined (reads from the device)."""
        return Status.joined(self.status)

    def interval(self, level: float | None = None) -> tuple[Tensor, Tensor]:
        """Lower and upper end at `level`; None keeps the estimate's own confidence.

        Raises:
            ValueError: If `level` is not inside (0, 1), or is above the confidence of a
                deterministic rule, whose bar has no scale.
        """
        error = self.error if level is None else self._error_at(level)
        value = self.value.detach()
        return value - error, value + error

    def _error_at(self, level: float) -> Tensor:
        if not 0.0 < level < 1.0:
            raise ValueError(f"`level` must lie strictly between 0 and 1, got {level}.")
        if self.std_error is None:
            if level > self.confidence and bool((self.error != 0).any()):
                raise ValueError(
                    f"this error bar was made for {self.confidence:.0%} and has no standard "
                    f"error to widen it to {level:.1%}; ask the method for that `confidence`."
                )
            return self.error
        # what is not sampling noise (rounding, truncation) stays in the bar at every level
        fixed = self.error - half_width(self.std_error, self.dof, self.confidence)
        return half_width(self.std_error, self.dof, level) + fixed.clamp(min=0.0)

    def raise_if_failed(self) -> Estimate:
        """Return self, or raise where a flag stands.

        Raises:
            ArithmeticError: With the advice of every flag.
        """
        if not self.ok:
            raise ArithmeticError(f"{self!r}: {self.flags.advice}")
        return self

    def exp(self) -> Estimate:
        """Exponential; the bar is the larger side of the interval's image."""
        return self._monotone(torch.exp, "exp")

    def log(self) -> Estimate:
        """Logarithm; an interval that reaches zero gets an infinite bar, one below it a flag."""
        impossible = (self.value + self.error < 0).detach()
        logarithm = self._monotone(lambda x: x.clamp(min=0.0).log(), "log")
        return replace(
            logarithm,
            value=torch.where(impossible, math.nan, logarithm.value),
            error=torch.where(impossible, math.inf, logarithm.error),
            status=_with_flag(logarithm.status, impossible, Status.NON_FINITE),
        )

    def _monotone(self, fn: Any, name: str) -> Estimate:
        value, low, high = fn(self.value), *map(fn, self.interval())
        centre = value.detach()
        error = torch.maximum((centre - low).abs(), (high - centre).abs())
        return self._derived(value, error, self.confidence, f"{name} of {self.method}")

    def _derived(
        self, value: Tensor, error: Tensor, confidence: float, method: str, *others: Estimate
    ) -> Estimate:
        status: Any = self.status
        num_evals: Any = self.num_evals
        for other in others:
            status = status | other.status
            num_evals = num_evals + other.num_evals
        # 0 · inf: nothing is known of it
        error = torch.where(error.isnan(), math.inf, error)
        return Estimate(value, error, None, None, confidence, status, num_evals, method)

    def _scaled(self, factor: Any) -> Estimate:
        size = factor.detach().abs() if torch.is_tensor(factor) else abs(factor)
        std_error = None if self.std_error is None else self.std_error * size
        error = self.error * size
        error = torch.where(error.isnan(), math.inf, error)
        value = self.value * factor
        return replace(self, value=value, error=error, std_error=std_error, covariance=None)

    def __neg__(self) -> Estimate:
        return self._scaled(-1.0)

    def __add__(self, other: Any) -> Estimate:
        if not isinstance(other, Estimate):
            value = self.value + other
            ones = torch.ones_like(value, requires_grad=False)  # the sum may have more axes
            std_error = None if self.std_error is None else self.std_error * ones
            return replace(self, value=value, error=self.error * ones, std_error=std_error)
        both = _union_bound(self, other)
        return self._derived(
            self.value + other.value, self.error + other.error, both, "sum", other
        )

    __radd__ = __add__

    def __sub__(self, other: Any) -> Estimate:
        return self + (-other)

    def __rsub__(self, other: Any) -> Estimate:
        return (-self) + other

    def __mul__(self, other: Any) -> Estimate:
        if not isinstance(other, Estimate):
            return self._scaled(other)
        a, b = self.value.detach().abs(), other.value.detach().abs()
        error = a * other.error + b * self.error + self.error * other.error
        both = _union_bound(self, other)
        return self._derived(self.value * other.value, error, both, "product", other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Estimate:
        return self * (other._reciprocal() if isinstance(other, Estimate) else 1.0 / other)

    def __rtruediv__(self, other: Any) -> Estimate:
        return self._reciprocal() * other

    def _reciprocal(self) -> Estimate:
        b = self.value.detach().abs()
        room = b - self.error
        error = torch.where(room > 0, self.error / (b * room), math.inf)
        method = f"reciprocal of {self.method}"
        return self._derived(1.0 / self.value, error, self.confidence, method)

    def __float__(self) -> float:
        if self.value.numel() != 1:
            raise TypeError(
                f"only an estimate of one number converts to float, this one has shape "
                f"{tuple(self.value.shape)}; use `.value`."
            )
        if not self.ok:
            warnings.warn(f"{self!r}: {self.flags.advice}", EstimateWarning, stacklevel=2)
        return float(self.value.detach())

    def __bool__(self) -> bool:
        raise TypeError("an Estimate has no truth value; use `.ok`, or compare `.value`.")

    def __getitem__(self, index: Any) -> Estimate:
        shape = self.value.shape

        def pick(x: Any) -> Any:
            if not torch.is_tensor(x) or x.shape != shape[: x.ndim]:
                return x
            # flags and counts may belong to the batch alone
            return x.reshape(x.shape + (1,) * (len(shape) - x.ndim)).expand(shape)[index]

        picked = {f.name: pick(getattr(self, f.name)) for f in fields(self)}
        return replace(self, **{**picked, "covariance": None})

    def __repr__(self) -> str:
        how = f"{self.method}, " if self.method else ""
        count = self.num_evals
        total = int(count.sum()) if torch.is_tensor(count) else count
        flagged = "" if self.ok else f"  [{self.flags.words}]"
        return f"{self._numbers()} ({how}{total:,} evaluations){flagged}"

    def _numbers(self) -> str:
        value, error = self.value.detach(), self.error
        if value.numel() == 1:
            return format_with_error(value.item(), float(error))
        if value.numel() <= 8 and value.ndim == 1:
            pairs = zip(value.tolist(), error.tolist(), strict=True)
            return "[" + ", ".join(format_with_error(v, e) for v, e in pairs) + "]"
        widest = float(error.max()) if error.numel() else 0.0
        return f"{tuple(value.shape)} values, each ± at most {widest:.1e}"


_DIGITS = 15  # of a float64 that mean anything
_WIDEST = 12  # digits before the point that are still written out
_PLAIN = (1e-4, 1e5)  # error bars written without an exponent


def _with_flag(status: Tensor | int, where: Tensor, flag: Status) -> Tensor:
    """Join a flag of single elements to a status that may belong to the batch alone."""
    if torch.is_tensor(status) and status.ndim < where.ndim:
        where = where.flatten(status.ndim).any(dim=-1)
    return status | torch.where(where, flag, Status.OK)


def _union_bound(a: Estimate, b: Estimate) -> float:
    return max(0.0, a.confidence + b.confidence - 1.0)


def format_with_error(value: float | complex, error: float) -> str:
    """`value ± error` with as many digits as the error justifies, one more to be seen.

    >>> format_with_error(0.0691516012, 3.2e-9)
    '0.0691516012 ± 3e-09'
    >>> format_with_error(4.4098, 0.0123)
    '4.410 ± 0.012'
    """
    if isinstance(value, complex):
        real, imag = (
            format_with_error(x, error).split(" ± ")[0] for x in (value.real, value.imag)
        )
        return f"{real}{imag if imag[0] == '-' else '+' + imag}j ± {error:.1g}"
    if not (math.isfinite(value) and math.isfinite(error)):
        return f"{value:.6g} ± {error:.2g}"
    if error == 0.0:
        return f"{value:.10g} ± 0"
    last = math.floor(math.log10(error)) - 1  # power of ten of the last digit worth printing
    first = math.floor(math.log10(max(abs(value), error)))
    if not -5 <= first < _WIDEST:
        return f"{value:.{min(first - last, _DIGITS)}e} ± {error:.0e}"
    decimals = max(0, min(-last, _DIGITS - first))
    bar = f"{error:.{decimals}f}" if _PLAIN[0] <= error < _PLAIN[1] else f"{error:.0e}"
    return f"{value:.{decimals}f} ± {bar}"


@dataclass(frozen=True, eq=False)
class Solution:
    """Where an optimiser stopped; every shape starts with ``(*batch)``.

    Args:
        x: The best point met, tensor or dict as the start was.
        value: Objective there.
        grad_norm: Largest absolute gradient entry there.
        num_iterations: Accepted steps.
        num_evals: Evaluations of the objective with its gradient, per problem.
        status: Bit flags of `Status`.
        method: Name of the method.
        trajectory: Points evaluated and their values, if asked for, steps in front.
    """

    x: Any
    value: Float[Tensor, "*batch"]
    grad_norm: Float[Tensor, "*batch"]
    num_iterations: Int[Tensor, "*batch"]
    num_evals: Int[Tensor, "*batch"]
    status: Int[Tensor, "*batch"]
    method: str = ""
    trajectory: dict[str, Any] | None = None

    @property
    def flags(self) -> Status:
        """All flags of all problems, joined (reads from the device)."""
        return Status.joined(self.status)

    @property
    def ok(self) -> bool:
        """True where every problem of the batch converged (reads from the device)."""
        return self.flags == Status.OK


def _register(cls: type) -> None:
    """Make a result a pytree: tensors (and trees of them) are leaves, the rest is context."""
    names = [f.name for f in fields(cls)]

    def flatten(result: Any) -> tuple[list[Any], Any]:
        values = [getattr(result, name) for name in names]
        leaf = getattr(result, "_leaf", None)
        if leaf is None:
            leaf = tuple(torch.is_tensor(v) or isinstance(v, dict) for v in values)
        static = tuple(None if is_leaf else v for v, is_leaf in zip(values, leaf, strict=True))
        return [v for v, is_leaf in zip(values, leaf, strict=True) if is_leaf], (
            leaf,
            static,
        )

    def unflatten(leaves: Any, context: Any) -> Any:
        leaf, static = context
        rest = iter(leaves)
        values = [next(rest) if is_leaf else v for is_leaf, v in zip(leaf, static, strict=True)]
        # torch.func also fills trees with other things than tensors: nothing may be checked, and
        # which fields are leaves must not change
        result = object.__new__(cls)
        result.__dict__.update(zip(names, values, strict=True), _leaf=leaf)
        return result

    pytree.register_pytree_node(
        cls, flatten, unflatten, serialized_type_name=f"probcalc.result.{cls.__name__}"
    )


_register(Estimate)
_register(Solution)
