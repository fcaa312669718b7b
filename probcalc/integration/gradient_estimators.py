"""Gradients of expectations from draws: the one home of their surrogates.

    ∇ E_p[f] = E_p[(f − b) ∇ log p] + E_p[∇ f]            score function
    ∇ E_p[f] = E_ε[∇ f(T(ε; θ))]                            pathwise
    ∇ E_p[f] = c (E_{p⁺}[f] − E_{p⁻}[f])                    measure-valued

A surrogate has the right value and, in the mean over draws, right derivatives of first and second
order. Foerster et al. (2018), DiCE: the infinitely differentiable Monte Carlo estimator; Kool, van
Hoof & Welling (2019), Buy 4 REINFORCE samples, get a baseline for free; Mohamed, Rosca, Figurnov &
Mnih (2020), Monte Carlo gradient estimation in machine learning, sections 4-6.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch import distributions as td
from torch.distributions import Distribution

from probcalc.distributions.support import support_of

Fn = Callable[..., Tensor]
_PROBES = 64  # draws that show whether a function moves with them


@runtime_checkable
class Baseline(Protocol):
    """What is taken from the signal of every draw, and does not depend on that draw."""

    def values(self, signal: Float[Tensor, " k *s"]) -> Float[Tensor, " k *s"]:
        """One for every draw."""
        ...


@dataclass(frozen=True)
class NoBaseline:
    """Nothing is taken."""

    def values(self, signal: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(signal)


@dataclass(frozen=True)
class LeaveOneOut:
    """The mean of the other draws: unbiased; needs two."""

    def values(self, signal: Tensor) -> Tensor:
        """Means of the others.

        Raises:
            ValueError: If there is only one draw.
        """
        if len(signal) < 2:
            raise ValueError("a leave-one-out baseline needs at least 2 draws, got 1.")
        return (signal.sum(dim=0) - signal) / (len(signal) - 1)


@dataclass(frozen=True, eq=False)
class Fixed:
    """Values that come from elsewhere: a moving average, a critic, a control variate.

    Args:
        value: Broadcast with the signal; must not depend on the draws that it is taken from.
    """

    value: Tensor | float

    def values(self, signal: Tensor) -> Tensor:
        """As given."""
        return torch.as_tensor(self.value, dtype=signal.dtype, device=signal.device).detach()


def surrogate(
    log_prob: Float[Tensor, " k *s"],
    signal: Float[Tensor, " k *s"],
    pathwise: Float[Tensor, " k *s"] | None = None,
    *,
    baseline: Baseline | None = None,
    downstream: Bool[Tensor, "t t"] | Float[Tensor, "t t"] | None = None,
) -> Float[Tensor, " k *s"]:
    """Terms whose mean over draws has the value and the derivatives of the expectation.

    Args:
        log_prob: Log probabilities of what was drawn, differentiable.
        signal: What is to be expected; its own derivatives are ignored.
        pathwise: The same with derivatives of its own, or a part of it; None for none.
        baseline: Default `LeaveOneOut()`.
        downstream: Of a last axis of steps: whether signal j depends on draw i, ``[i, j]``; an
            upper triangle makes rewards-to-go, powers of a discount in it discounted ones.
            Default: each on its own alone.

    Returns:
        Terms; their value is the signal.

    Raises:
        ValueError: If shapes differ.
    """
    if log_prob.shape != signal.shape or (pathwise is not None and pathwise.shape != signal.shape):
        raise ValueError(
            "`log_prob`, `signal` and `pathwise` must have one shape (draws, *steps), got "
            f"{tuple(log_prob.shape)}, {tuple(signal.shape)} and "
            f"{None if pathwise is None else tuple(pathwise.shape)}."
        )
    signal = signal.detach()
    own = torch.zeros_like(signal) if pathwise is None else pathwise - pathwise.detach()
    causes = log_prob if downstream is None else log_prob @ downstream.to(signal.dtype)
    taken = (baseline or LeaveOneOut()).values(_reached(signal, downstream)).detach()
    # one and zero, whose derivatives of every order are those of p
    moved, alone = (torch.expm1(t - t.detach()) for t in (causes, log_prob))
    return signal + own + moved * (signal + own) - alone * taken


def score_weights(
    signal: Float[Tensor, " k *s"],
    *,
    baseline: Baseline | None = None,
    downstream: Bool[Tensor, "t t"] | Float[Tensor, "t t"] | None = None,
) -> Float[Tensor, " k *s"]:
    """What the score of every draw is multiplied by in the gradient of `surrogate`.

    All that lies downstream of the draw, less the baseline: in decisions over time an advantage.

    Args:
        signal: As of `surrogate`.
        baseline: Default `LeaveOneOut()`.
        downstream: As of `surrogate`.
    """
    returns = _reached(signal.detach(), downstream)
    return returns - (baseline or LeaveOneOut()).values(returns).detach()


def clipped_surrogate(
    log_ratio: Float[Tensor, " *s"], weights: Float[Tensor, " *s"], limit: float | int
) -> Float[Tensor, " *s"]:
    """min(ρ w, clip(ρ, 1 − c, 1 + c) w), with ρ the ratio of new to old probabilities.

    At ρ = 1 its gradient is that of `surrogate`; where a ratio has gone further than the limit
    in the direction that pays, there is none. Biased away from there. Schulman et al. (2017),
    Proximal policy optimization algorithms, equation 7.

    Args:
        log_ratio: ln ρ, differentiable.
        weights: Of `score_weights`.
        limit: c.
    """
    ratio = log_ratio.exp()
    return torch.minimum(ratio * weights, ratio.clamp(1 - limit, 1 + limit) * weights)


def _reached(signal: Tensor, downstream: Tensor | None) -> Tensor:
    return signal if downstream is None else signal @ downstream.to(signal.dtype).T


@runtime_checkable
class GradientEstimator(Protocol):
    """A way to the gradient of an expectation."""

    def refused(self, fn: Fn, dist: Distribution) -> str:
        """Why it would be wrong here, in words that say what to use; empty where it is not."""
        ...

    def terms(self, fn: Fn, dist: Distribution, num: int) -> Float[Tensor, " n"]:
        """Terms from draws of torch's default generator, differentiable in the parameters."""
        ...


@dataclass(frozen=True)
class Pathwise:
    """Derivatives through the draws, by reparametrisation, explicit or implicit."""

    def refused(self, fn: Fn, dist: Distribution) -> str:
        """Draws without derivatives, or a function without any in its draws."""
        name = type(dist).__name__
        if not dist.has_rsample:
            return (
                f"{name} has no reparametrised draws: use `ScoreFunction()`, or the exact sum "
                "where the support is finite."
            )
        with torch.enable_grad():
            x = dist.rsample((_PROBES,)).detach().requires_grad_()
            f = fn(x)
            slope = None
            if f.requires_grad:
                (slope,) = torch.autograd.grad(f.sum(), x, allow_unused=True)
        flat = slope is None or bool((slope == 0).all())
        if flat and bool((f != f[:1]).any()):
            return (
                "the function changes with its draws and yet has no derivative in them (a "
                "comparison, rounding or `detach`): use `ScoreFunction()`."
            )
        if flat and slope is None:
            return "the function has no derivative in its draws: use `ScoreFunction()`."
        return ""

    def terms(self, fn: Fn, dist: Distribution, num: int) -> Tensor:
        """The function at reparametrised draws."""
        return fn(dist.rsample((num,)))


@dataclass(frozen=True)
class ScoreFunction:
    """Derivatives of the log density, for any function: REINFORCE, Williams (1992).

    Args:
        baseline: Default `LeaveOneOut()`.
    """

    baseline: Baseline | None = None

    def refused(self, fn: Fn, dist: Distribution) -> str:
        """A support that moves with the parameters."""
        if moves(dist):
            return (
                f"the support of {type(dist).__name__} moves with its parameters, which the "
                "density's derivative does not see: use `Pathwise()`."
            )
        return ""

    def terms(self, fn: Fn, dist: Distribution, num: int) -> Tensor:
        """Surrogates at draws held still."""
        x = dist.sample((num,)).detach()  # of forward derivatives as well, which `no_grad` keeps
        f = fn(x)
        path = f if f.requires_grad else None
        return surrogate(dist.log_prob(x), f, path, baseline=self.baseline)


@dataclass(frozen=True)
class MeasureValued:
    """Differences of means under two other distributions, for functions without derivatives.

    For normal, exponential, Poisson and Bernoulli draws and independent ones; the function is
    evaluated twice for every parameter of every coordinate.
    """

    def refused(self, fn: Fn, dist: Distribution) -> str:
        """A family whose parts are not known."""
        base = dist.base_dist if isinstance(dist, td.Independent) else dist
        if type(base) not in _PARTS or len(dist.event_shape) > 1:
            known = ", ".join(sorted(family.__name__ for family in _PARTS))
            return (
                f"no measure-valued derivative of {type(base).__name__} is known, but of {known}."
            )
        return ""

    def terms(self, fn: Fn, dist: Distribution, num: int) -> Tensor:
        """Values, and zeros with the derivatives."""
        base = dist.base_dist if isinstance(dist, td.Independent) else dist
        x = dist.sample((num,)).detach()  # of forward derivatives as well, which `no_grad` keeps
        total = fn(x).detach()
        for parameter, factor, upper, lower in _PARTS[type(base)](base, num):
            for place in _places(dist):
                ends = [fn(_replaced(x, t, place)).detach() for t in (upper, lower)]
                slope = factor.expand(base.batch_shape)[place] * (ends[0] - ends[1])
                own = parameter.expand(base.batch_shape)[place]
                total = total + slope * (own - own.detach())
        return total


def moves(dist: Distribution) -> bool:
    """Whether the support depends on what is differentiated."""
    try:
        support = support_of(dist.base_dist if isinstance(dist, td.Independent) else dist)
    except NotImplementedError:
        return False
    return support.lower.requires_grad or support.upper.requires_grad


def _places(dist: Distribution) -> list[Any]:
    return [(i,) for i in range(dist.event_shape[0])] if dist.event_shape else [()]


def _replaced(x: Tensor, by: Tensor, place: Any) -> Tensor:
    if not place:
        return by
    changed = x.clone()
    changed[..., place[0]] = by[..., place[0]]
    return changed


# of each parameter: the parameter, the factor, and draws of the two parts
Part = tuple[Tensor, Tensor, Tensor, Tensor]


def _normal_parts(d: td.Normal, num: int) -> list[Part]:
    shape = (num, *d.batch_shape)
    loc, scale = d.loc.detach(), d.scale.detach()
    z = torch.randn(shape, dtype=loc.dtype, device=loc.device)
    w = (-2 * torch.rand(shape, dtype=loc.dtype, device=loc.device).clamp(min=1e-300).log()).sqrt()
    # a double-sided Maxwell variable, and a normal one coupled with it
    sign = torch.where(torch.rand(shape, device=loc.device) < 0.5, -1.0, 1.0).to(loc.dtype)
    maxwell = sign * (z**2 + w**2).sqrt()
    normal = maxwell * torch.rand(shape, dtype=loc.dtype, device=loc.device)
    factor = 1 / (scale * math.sqrt(2 * math.pi))
    return [
        (d.loc, factor, loc + scale * w, loc - scale * w),
        (d.scale, 1 / scale, loc + scale * maxwell, loc + scale * normal),
    ]


def _exponential_parts(d: td.Exponential, num: int) -> list[Part]:
    rate = d.rate.detach()
    one, two = (
        torch.empty((num, *d.batch_shape), dtype=rate.dtype, device=rate.device) for _ in "ab"
    )
    one, two = one.exponential_(), two.exponential_()
    return [(d.rate, 1 / rate, one / rate, (one + two) / rate)]


def _poisson_parts(d: td.Poisson, num: int) -> list[Part]:
    x = d.sample((num,)).detach()
    return [(d.rate, torch.ones_like(d.rate.detach()), x + 1, x)]


def _bernoulli_parts(d: td.Bernoulli, num: int) -> list[Part]:
    ones = torch.ones((num, *d.batch_shape), dtype=d.probs.dtype, device=d.probs.device)
    return [(d.probs, ones[0], ones, 0 * ones)]


_PARTS: dict[type[Distribution], Callable[[Any, int], list[Part]]] = {
    td.Normal: _normal_parts,
    td.Exponential: _exponential_parts,
    td.Poisson: _poisson_parts,
    td.Bernoulli: _bernoulli_parts,
}
