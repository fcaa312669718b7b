"""An expectation, as its methods see it, and the integral that it is where there is a density.

E_p[f] = ∫ f(x) p(x) dx
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from probcalc.distributions.rebuild import copied, taken_apart
from probcalc.integration.gradient_estimators import GradientEstimator, ScoreFunction
from probcalc.integration.integrand import checked_values
from probcalc.integration.problem import as_double, common_device, flattened


@dataclass(frozen=True, eq=False)
class Expectation:
    """Of a function under a distribution.

    Args:
        fn: ``fn(x, *args)``: draws ``(n, *batch, *event)`` to ``(n, *batch, *out)``.
        args: Further arguments; tensors carry the batch in front.
        dist: The distribution.
        breaks: Points where the function is rough, ``(s)`` or ``(*batch, s)``, or None.
        dtype: In which the function is evaluated.
        shift: Where the function is the logarithm of the one that is meant: ``(*batch)``, to be
            taken from it before exponentiating. Else None.
        gradient: How random methods differentiate; None: through the draws where these are
            reparametrised, else by the score.
    """

    fn: Callable[..., Tensor]
    args: tuple[Any, ...]
    dist: Distribution
    breaks: Tensor | None
    dtype: torch.dtype
    shift: Float[Tensor, "*batch"] | None = None
    gradient: GradientEstimator | None = None

    @property
    def moving(self) -> bool:
        """Whether derivatives may be asked for, as far as the arguments and parameters tell."""
        try:
            parameters = taken_apart(self.dist)[0]
        except NotImplementedError:
            parameters = []
        given = (*self.args, *parameters, self.shift)
        return any(t.requires_grad for t in given if torch.is_tensor(t))

    @property
    def by_score(self) -> bool:
        """Whether random methods differentiate the density."""
        if self.gradient is None:
            return not self.dist.has_rsample
        return isinstance(self.gradient, ScoreFunction)

    @property
    def batch(self) -> tuple[int, ...]:
        """Shape of the batch."""
        return tuple(self.dist.batch_shape)

    @property
    def device(self) -> torch.device:
        """Where draws live."""
        return sample_like(self.dist).device

    @property
    def event(self) -> tuple[int, ...]:
        """Shape of a draw."""
        return tuple(self.dist.event_shape)

    def values(self, x: Tensor) -> Tensor:
        """The function at draws ``(n, *batch, *event)``, checked, in float64 or complex128."""
        values = self.fn(x.to(self.dtype) if x.is_floating_point() else x, *self.args)
        lead = (x.shape[0], *self.batch)
        return checked_values(values, lead, tuple(x.shape))

    def weighted(
        self, values: Tensor, log_p: Tensor, shift: Float[Tensor, "*batch"] | None
    ) -> Tensor:
        """Function times density or mass, or exp(function + log density − shift).

        Where the density underflows, a function that overflows has long been cut off by it.
        """
        axes = [1] * (values.ndim - log_p.ndim)
        if shift is not None:
            exponent = log_p - shift
            return (values + exponent.reshape([*exponent.shape, *axes])).exp()
        p = log_p.exp().reshape([*log_p.shape, *axes])
        return torch.where(p == 0, 0.0, values) * p


def expectation(
    fn: Callable[..., Tensor],
    dist: Distribution,
    *,
    args: tuple[Any, ...],
    breaks: Tensor | Sequence[float] | None,
    dtype: torch.dtype | None,
) -> Expectation:
    """Check what the caller gave.

    Raises:
        TypeError: If the function or the distribution is not one.
        ValueError: If arguments do not start with the distribution's batch shape.
    """
    if not callable(fn):
        raise TypeError(f"the function must be callable, got {type(fn).__name__}.")
    if not isinstance(dist, Distribution):
        raise TypeError(f"`dist` must be a torch Distribution, got {type(dist).__name__}.")
    if not isinstance(args, tuple):
        raise TypeError(f"`args` must be a tuple of tensors, got {type(args).__name__}.")
    batch = tuple(dist.batch_shape)
    for i, arg in enumerate(args):
        flattened(i, arg, batch)  # for its refusal
    like = sample_like(dist)
    device = common_device({"dist": like}, args)
    points = None if breaks is None else as_double(breaks, device)
    if points is not None and bool(points.isnan().any()):
        raise ValueError(f"`breaks` must not be NaN, got {breaks!r}.")
    precision = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    return Expectation(fn, args, dist, points, dtype or precision)


# value(x, args, dist, shift): a function of points, further arguments, and a distribution
Valued = Callable[[Tensor, tuple[Any, ...], Distribution, Tensor | None], Tensor]


def over_parameters(
    posed: Expectation, dist: Distribution, value: Valued
) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    """A function of points, with the distribution's parameters among its arguments.

    But for a batch whose function may close over it: then the function sees all of the batch.
    """
    gathered = bool(posed.batch) and any(torch.is_tensor(a) for a in posed.args)
    args = tuple(flattened(i, a, posed.batch) for i, a in enumerate(posed.args))
    if posed.batch and not gathered:
        return lambda x, *own: value(x, own, copied(dist), posed.shift), args
    try:
        tensors, build = taken_apart(dist.expand(posed.batch) if gathered else dist)
    except NotImplementedError:
        tensors, build = [], lambda _: dist
    own_shift = [] if posed.shift is None else [posed.shift]
    if gathered:
        own_shift = [t.reshape(-1) for t in own_shift]
        tensors = [t.reshape(-1, *t.shape[len(posed.batch) :]) for t in tensors]
    parts = len(args), len(own_shift)

    def fn(x: Tensor, *own: Any) -> Tensor:
        rest = own[parts[0] :]
        shift = rest[0] if parts[1] else None
        return value(x, own[: parts[0]], build(rest[parts[1] :]), shift)

    return fn, (*args, *own_shift, *tensors)


def sample_like(dist: Distribution) -> Tensor:
    """A tensor with the dtype and device of the distribution's parameters."""
    try:
        floating = [t for t in taken_apart(dist)[0] if t.is_floating_point()]
    except NotImplementedError:
        floating = [t for t in vars(dist).values() if torch.is_tensor(t) and t.is_floating_point()]
    return floating[0] if floating else torch.zeros(())


def alive(x: Tensor, log_p: Tensor) -> Tensor:
    """Points without mass moved to where there is most, so that no function overflows there."""
    if not len(x):
        return x
    where = log_p.detach().argmax(dim=0)
    axes = [1] * (x.ndim - log_p.ndim)
    index = where.reshape([1, *where.shape, *axes]).expand(1, *x.shape[1:])
    dead = (log_p.detach().exp() == 0).reshape([*log_p.shape, *axes])
    return torch.where(dead, x.gather(0, index), x)
