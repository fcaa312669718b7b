r"""Distributions on the line, given that the draw falls into an interval.

    p(x | low < X ≤ high) = p(x) / P(low < X ≤ high),   low < x ≤ high

All probabilities are taken from whichever tail is the smaller, so that an interval far out in a
tail keeps its digits as long as its mass is a number (about 1e-300).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Real
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints

from probcalc.distributions.cdf import cdf
from probcalc.distributions.log_density import log_density
from probcalc.distributions.quantile import quantile, searched
from probcalc.distributions.rebuild import Builder, in_double, taken_apart
from probcalc.distributions.support import device_of, support_of

_LEAST_UNIFORM = 2.0**-54  # half the spacing of torch's uniform numbers, instead of zero


class Truncated(td.Distribution):
    """A distribution conditioned on ``low < X ≤ high``.

    For a continuous distribution it does not matter whether the ends belong to the interval; for
    counts `low` does not and `high` does: ``Truncated(Poisson(rate), low=0)`` is the
    zero-truncated Poisson distribution. Draws invert the distribution function, so that those of
    continuous distributions are differentiable in all parameters and in the ends.

    Args:
        base: A distribution on the line that `cdf` and `quantile` know.
        low: Lower end, broadcast with the batch; None: none.
        high: Upper end; None: none.
        validate_args: Whether to check the ends, which looks at their numbers.

    Raises:
        NotImplementedError: If the family is unknown.
        ValueError: If draws are not numbers, an end is NaN, `low` is not below `high`, or float64
            sees no mass between them.

    >>> tail = Truncated(td.Normal(torch.tensor(0.0), torch.tensor(1.0)), low=30.0)
    >>> tail.icdf(torch.tensor(0.5))
    tensor(30.0231)
    """

    arg_constraints = {"low": constraints.dependent, "high": constraints.dependent}

    def __init__(
        self,
        base: td.Distribution,
        low: Real[Tensor, "*low"] | float | int | None = None,
        high: Real[Tensor, "*high"] | float | int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if base.event_shape:
            raise ValueError(
                f"`base` must be a distribution of numbers, got {type(base).__name__} with event "
                f"shape {tuple(base.event_shape)}; truncate its coordinates one by one."
            )
        low, high = (
            torch.as_tensor(
                end if given is None else given, dtype=torch.float64, device=device_of(base)
            )
            for given, end in ((low, -math.inf), (high, math.inf))
        )
        batch = torch.broadcast_shapes(base.batch_shape, low.shape, high.shape)
        self.base = base if batch == base.batch_shape else base.expand(batch)
        self.low, self.high = low.expand(batch), high.expand(batch)
        super().__init__(batch, validate_args=validate_args)
        if self._validate_args:
            self._check()

    def _check(self) -> None:
        if bool((self.low.isnan() | self.high.isnan()).any()):
            raise ValueError("`low` and `high` must not be NaN.")
        if not bool((self.low < self.high).all()):
            raise ValueError(
                f"`low` must be below `high`, got {self.low.tolist()} and {self.high.tolist()}."
            )
        if not bool((self._mass(self.low, self.high) > 0).all()):
            raise ValueError(
                f"`base` must have mass between `low` and `high`, got none that float64 can tell "
                f"from zero between {self.low.tolist()} and {self.high.tolist()}."
            )

    @property
    def has_rsample(self) -> bool:
        """Whether draws have gradients: those of continuous distributions."""
        return not support_of(self.base).discrete

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The part of the base's support between the ends."""
        own = support_of(self.base)
        if own.discrete:
            lower = torch.maximum(own.lower, self.low.floor() + 1)
            return constraints.integer_interval(lower, torch.minimum(own.upper, self.high.floor()))
        lower, upper = torch.maximum(own.lower, self.low), torch.minimum(own.upper, self.high)
        return constraints.interval(lower, upper)

    @property
    def mean(self) -> Tensor:
        """Not known in closed form."""
        raise NotImplementedError("no closed form; use `pc.expect(lambda x: x, dist)`.")

    @property
    def variance(self) -> Tensor:
        """Not known in closed form."""
        raise NotImplementedError(
            "no closed form; use `pc.expect` of x and x², or of (x − mean)²."
        )

    def log_prob(self, value: Real[Tensor, "*x"]) -> Float[Tensor, "*x"]:
        """Log density or mass; −∞ outside the interval."""
        dist, x = in_double(self.base), value.double()
        above = (x > self.low) if support_of(dist).discrete else (x >= self.low)
        inside = above & (x <= self.high)
        safe = torch.where(inside, x, quantile(dist, 0.5 * torch.ones_like(x)).detach())
        log_p = log_density(dist, safe) - self._mass(self.low, self.high).log()
        log_p = torch.where(inside, log_p, torch.where(x.isnan(), math.nan, -math.inf))
        return log_p.to(self._dtype())

    def cdf(self, value: Real[Tensor, "*x"]) -> Float[Tensor, "*x"]:
        """P(X ≤ x)."""
        return self.tail(value.double(), False).to(self._dtype())

    def icdf(self, value: Float[Tensor, "*p"]) -> Float[Tensor, "*p"]:
        """Smallest x with P(X ≤ x) ≥ p."""
        return self.level(value.double(), False).to(self._dtype())

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws with gradients; `draw` takes a generator."""
        if not self.has_rsample:
            raise NotImplementedError(
                f"draws of a truncated {type(self.base).__name__} have no gradient; use `sample`."
            )
        return self._drawn(sample_shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws without gradients; `draw` takes a generator."""
        with torch.no_grad():
            return self._drawn(sample_shape)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> Truncated:
        """The same distribution with a larger batch."""
        batch = tuple(batch_shape)
        ends = self.low.expand(batch), self.high.expand(batch)
        return Truncated(self.base.expand(batch), *ends, validate_args=False)

    def tail(self, x: Float[Tensor, "*x"], upper: bool) -> Float[Tensor, "*x"]:
        """P(X > x) or P(X ≤ x) in float64."""
        place = torch.maximum(self.low, torch.minimum(x, self.high))
        part = self._mass(place, self.high) if upper else self._mass(self.low, place)
        return torch.where(x.isnan(), math.nan, part / self._mass(self.low, self.high))

    def level(self, p: Float[Tensor, "*p"], upper: bool) -> Float[Tensor, "*p"]:
        """Quantiles from either tail, in float64."""
        if not self.has_rsample:
            return self._counted(p, upper)
        mass = self._mass(self.low, self.high)
        below, above = (1 - p, p) if upper else (p, 1 - p)
        left = cdf(self.base, self.low) + below * mass
        right = cdf(self.base, self.high, upper=True) + above * mass
        small = left <= right
        sides = [quantile(self.base, torch.where(small, left, 0.5))]
        sides.append(quantile(self.base, torch.where(small, 0.5, right), upper=True))
        x = torch.where(small, *sides)
        x = torch.maximum(self.low, torch.minimum(x, self.high))
        return torch.where((p >= 0) & (p <= 1), x, math.nan)

    def taken_apart(self) -> tuple[list[Tensor], Builder]:
        """Parameters of the base and the ends, and what makes the distribution of them again."""
        tensors, build = taken_apart(self.base)

        def truncated(given: Sequence[Tensor]) -> Truncated:
            return Truncated(build(given[:-2]), given[-2], given[-1], validate_args=False)

        return [*tensors, self.low, self.high], truncated

    def _counted(self, p: Tensor, upper: bool) -> Tensor:
        ends = support_of(self)
        shape = torch.broadcast_shapes(p.shape, self.batch_shape)
        middle = quantile(self.base, p.new_full(self.batch_shape, 0.5))
        return searched(
            self, p, upper, *(t.expand(shape) for t in (ends.lower, ends.upper, middle))
        )

    def _drawn(self, sample_shape: Sequence[int]) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        u = torch.rand(shape, dtype=torch.float64, device=self.low.device)
        return self.icdf(u.clamp(min=_LEAST_UNIFORM))

    def _mass(self, low: Tensor, high: Tensor) -> Tensor:
        """P(low < X ≤ high), from the side where the probabilities are small."""
        beyond, up_to = cdf(self.base, low, upper=True), cdf(self.base, high)
        far = beyond - cdf(self.base, high, upper=True)
        return torch.where(beyond <= up_to, far, up_to - cdf(self.base, low))

    def _dtype(self) -> torch.dtype:
        try:
            kinds = [t.dtype for t in taken_apart(self.base)[0] if t.is_floating_point()]
        except NotImplementedError:
            kinds = []
        return kinds[0] if kinds else torch.float64
