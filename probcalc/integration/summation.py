"""Sums of f p over given points, with a bound on their rounding.

Masses that sum to one but for rounding are divided by their sum, which takes out the error that
they share: with ε_k the rounding of log p(k), what is left is at most Σ ε_k |f(k) − E f| p(k).
That of log p is taken from the size of its terms, such as log Γ(k + 1) and k log λ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor
from torch.distributions import Distribution

from probcalc.distributions.rebuild import copied, taken_apart
from probcalc.integration.expectation import Expectation
from probcalc.integration.problem import Solved
from probcalc.integration.replay import piecewise
from probcalc.status import Status

_ROUNDING = 4.0  # units in the last place: of f, and as many of √p twice and products
_UNACCOUNTED = 1e-4  # mass whose absence is no rounding
_TINY = torch.finfo(torch.float64).tiny
_SHARE = 1e-8  # of Σ |f p|: what is left out is more than a bar can say
METHOD = "enumeration"

# points, and which of them count (None: all); made when they are needed, so as not to be kept
Block = Callable[[], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, eq=False)
class Sums:
    """Over points: ``(*batch, *out)``, but for `mass` and the noises ``(*batch)``.

    Args:
        value: Σ f p, differentiable.
        mass: Σ p, differentiable.
        size: Σ |f| p.
        scatter: Σ |f − E f|² p, E f being that of these points alone.
        noise: Σ ε p.
        noise_square: Σ ε² p.
        noise_size: Σ ε |f| p.
        ratio: Largest |f| / (1 + |k|)^growth, or zero.
    """

    value: Inexact[Tensor, " ..."]
    mass: Float[Tensor, " ..."]
    size: Float[Tensor, " ..."]
    scatter: Float[Tensor, " ..."]
    noise: Float[Tensor, " ..."]
    noise_square: Float[Tensor, " ..."]
    noise_size: Float[Tensor, " ..."]
    ratio: Float[Tensor, " ..."]

    def plus(self, other: Sums) -> Sums:
        """Over the points of both: Chan, Golub & LeVeque (1983) for the scatter."""
        names = [f.name for f in fields(self) if f.name not in {"ratio", "scatter"}]
        added = {n: getattr(self, n) + getattr(other, n) for n in names}
        a, b = self.mass.detach(), other.mass.detach()
        share = _beside(a * b / (a + b).clamp(min=_TINY), self.value)
        scatter = self.scatter + other.scatter + share * (self.mean - other.mean).abs().square()
        return Sums(**added, scatter=scatter, ratio=torch.maximum(self.ratio, other.ratio))

    @property
    def mean(self) -> Inexact[Tensor, " ..."]:
        """Of these points alone, without gradients; zero where there is no mass."""
        mass = _beside(self.mass.detach(), self.value)
        return torch.where(mass > 0, self.value.detach() / mass.clamp(min=_TINY), 0.0)


@dataclass(frozen=True, eq=False)
class Summand:
    """The function, the distribution in float64, and what bounds them.

    Args:
        posed: The expectation.
        dist: Its distribution in float64.
        growth: Power of 1 + |k| that the function's ratio to is asked for, or None.
    """

    posed: Expectation
    dist: Distribution
    growth: float | None = None

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values f p, the function itself without gradients, and p and log p, at points."""
        log_p = copied(self.dist).log_prob(x)
        f = self.posed.values(_where_mass_is(x, log_p.detach()))
        axes = [*log_p.shape, *[1] * (f.ndim - log_p.ndim)]
        if self.posed.shift is not None:
            exponent = log_p - self.posed.shift
            size = (f.detach() - self.posed.shift.reshape(axes[1:])).exp()
            return (f + exponent.reshape(axes)).exp(), size, log_p.exp(), log_p.detach()
        # by halves: p may underflow where f p does not
        half = (0.5 * log_p).exp().reshape(axes)
        return f * half * half, f.detach(), log_p.exp(), log_p.detach()

    def logs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log p and log|f|, −∞ where p is zero, without gradients."""
        with torch.no_grad():
            log_p = self.dist.log_prob(x)
            f = self.posed.values(_where_mass_is(x, log_p))
        axes = [*log_p.shape, *[1] * (f.ndim - log_p.ndim)]
        shift = self.posed.shift
        log_f = f.abs().log() if shift is None else f - shift.reshape(axes[1:])
        return log_p, torch.where(log_p.isneginf().reshape(axes), -math.inf, log_f)

    def over(self, blocks: Iterable[Block]) -> Sums:
        """Sums over blocks of points."""
        scale = self._scale()
        total: Sums | None = None
        for block in blocks:
            so_far = self.posed.moving if total is None else total.value
            part = Sums(*piecewise(so_far, self._sums, block, scale))
            total = part if total is None else total.plus(part)
        assert total is not None
        return total

    def _sums(self, block: Block, scale: Tensor) -> tuple[Tensor, ...]:
        x, inside = block()
        terms, f, p, log_p = self.terms(x)
        axes = [*p.shape, *[1] * (terms.ndim - p.ndim)]
        if inside is not None:
            p = torch.where(inside, p, 0.0)
            terms = torch.where(inside.reshape(axes), terms, 0.0)
        k = torch.zeros_like(p) if self.posed.event else x.abs().expand(p.shape)
        noise = _noise(k + scale, log_p)
        mass, wide = (p.detach(), noise.reshape(axes))
        size = terms.detach().abs()
        ratio = torch.zeros_like(size[0])
        if self.growth is not None:
            alive = (mass > 0).reshape(axes)
            ratio = torch.where(alive, f.abs() / (1 + k.reshape(axes)) ** self.growth, 0.0).amax(
                dim=0
            )
        own = mass.sum(dim=0)
        total = terms.detach().sum(dim=0)
        mean = total / _beside(own.clamp(min=_TINY), total)
        away = torch.where(size > 0, f - mean, 0.0).abs() * mass.sqrt().reshape(axes)
        scatter = away.square().sum(dim=0)
        noises = [(noise**j * mass).sum(dim=0) for j in (1, 2)]
        sums = [t.sum(dim=0) for t in (terms, p, size)]
        return (*sums, scatter, *noises, (wide * size).sum(dim=0), ratio)

    def _scale(self) -> Float[Tensor, " *batch"]:
        """Sizes of the parameters, those of an element where they can be told apart."""
        total = torch.zeros(self.posed.batch, dtype=torch.float64, device=self.posed.device)
        try:
            tensors = taken_apart(self.dist)[0]
        except NotImplementedError:
            return total
        for t in tensors:
            size = t.detach().double().abs().nan_to_num(0.0, 0.0, 0.0)
            own = size.ndim <= total.ndim and self.posed.batch[-size.ndim :] == tuple(size.shape)
            if size.numel():
                total = total + (size if own or not size.ndim else size.amax())
        return total


def _beside(per_element: Tensor, like: Tensor) -> Tensor:
    """With axes for the function's outputs."""
    return per_element.reshape([*per_element.shape, *[1] * (like.ndim - per_element.ndim)])


def _noise(size: Tensor, log_p: Tensor) -> Tensor:
    """Rounding of log p whose terms are of the size of m log m, and its own."""
    eps = torch.finfo(log_p.dtype).eps
    own = log_p.abs().clamp(max=-math.log(torch.finfo(torch.float64).tiny))
    return eps * (2 * size * (2 + size).log() + own + 2)


def _where_mass_is(x: Tensor, log_p: Tensor) -> Tensor:
    """Points without mass moved to where there is most: the function may not be defined there."""
    dead = log_p.isneginf()
    if not bool(dead.any()):
        return x
    axes = [1] * (x.ndim - log_p.ndim)
    where = log_p.argmax(dim=0).reshape([1, *log_p.shape[1:], *axes]).expand(1, *x.shape[1:])
    return torch.where(dead.reshape([*dead.shape, *axes]), x.gather(0, where), x)


def solved(
    posed: Expectation,
    sums: Sums,
    rest: Float[Tensor, " ..."],
    status: Int[Tensor, " b"],
    count: Int[Tensor, " b"],
    num_blocks: int,
) -> Solved:
    """The expectation and its bar.

    Args:
        posed: The expectation.
        sums: Over all points that count.
        rest: Bound on what was left out.
        status: Flags so far; where there are some, masses may not sum to one.
        count: Points.
        num_blocks: Blocks that were added one by one.
    """
    b, batch = math.prod(posed.batch), posed.batch
    axes = [*batch, *[1] * (sums.value.ndim - len(batch))]
    eps = torch.finfo(torch.float64).eps
    lacking = (1 - sums.mass.detach()).abs()
    whole = lacking <= sums.noise + eps * (_ROUNDING + num_blocks)
    value = torch.where(
        whole.reshape(axes), sums.value / sums.mass.clamp(min=0.5).reshape(axes), sums.value
    )
    rounding = (_ROUNDING * (torch.finfo(posed.dtype).eps + eps) + num_blocks * eps) * sums.size
    raw = sums.noise_size + lacking.reshape(axes) * sums.size
    noise = torch.where(whole.reshape(axes), _noise_about(value.detach(), sums, axes), raw)
    error = (rounding + noise + rest.reshape(sums.size.shape)).reshape(
        b, *value.shape[len(batch) :]
    )
    value = value.reshape(error.shape)
    flags = {
        Status.NON_FINITE: ~value.detach().isfinite().reshape(b, -1).all(dim=1),
        Status.ROUNDOFF: (whole & (lacking > _UNACCOUNTED)).reshape(b),
        Status.UNRESOLVED_MASS: (~whole & (lacking > _UNACCOUNTED)).reshape(b)
        | (rest.reshape(b, -1) > _SHARE * sums.size.reshape(b, -1)).any(dim=1),
    }
    for flag, where in flags.items():
        status = status | torch.where(where, int(flag), 0)
    bad = (status != 0).reshape([b, *[1] * (error.ndim - 1)])
    return Solved(value, torch.where(bad, math.inf, error), status, count, METHOD)


def _noise_about(mean: Tensor, sums: Sums, axes: list[int]) -> Tensor:
    """Σ ε |f − E f| p, by the triangle's or by Schwarz's inequality."""
    triangle = sums.noise_size + mean.abs() * sums.noise.reshape(axes)
    schwarz = sums.noise_square.reshape(axes).sqrt() * sums.scatter.sqrt()
    return torch.minimum(triangle, schwarz.nan_to_num(nan=math.inf))
