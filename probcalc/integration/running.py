"""Moments and tail of a stream of terms, in memory that does not grow with it.

Chan, Golub & LeVeque (1983), Algorithms for computing the sample variance: of two parts with n
and m terms and means that differ by δ, the sums of squares about the mean add up to
S + T + δ² nm/(n + m).
Of the tail, the largest 3√n terms are kept (see `tails`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from probcalc.integration.tails import fit_generalised_pareto

_SMALL_SHARE = 1e-3  # of the sum: a largest term of that size leaves about as much unseen
_FEWEST = 5  # exceedances that say something about a tail
_PART = 3  # of the largest terms' number, whose tail must be as heavy
_MOST_TOP = 2**12
_LONG = ("top", "above", "below")  # what has an axis of its own
_EQUAL = 8.0  # units in the last place by which equal terms may differ


def tail_length(num_terms: int) -> int:
    """How many of the largest terms tell the tail: Vehtari et al. (2024), section 3.1.

    No more of them in longer streams, where these lie further out.
    """
    return min(num_terms // 5, math.ceil(3 * num_terms**0.5), _MOST_TOP)


@dataclass(frozen=True, eq=False)
class Running:
    """What is known of the terms so far, each of shape ``(b, *out)``.

    Args:
        num: How many there were.
        mean: Their mean.
        squares: Σ |f − mean|².
        size: Σ |f|.
        size_squares: Σ |f|².
        low: Smallest; of complex terms the smallest modulus, as below.
        high: Largest.
        top: Largest of |f| in descending order, ``(k, b, *out)``.
        finite: Whether all were finite.
        scatter: Σ |f − mean|, the mean of each part of the stream.
        above: Largest of f in descending order, ``(k, b, *out)``.
        below: Largest of −f.
    """

    num: int
    mean: Inexact[Tensor, " b *out"]
    squares: Float[Tensor, " b *out"]
    size: Float[Tensor, " b *out"]
    size_squares: Float[Tensor, " b *out"]
    low: Float[Tensor, " b *out"]
    high: Float[Tensor, " b *out"]
    top: Float[Tensor, " k b *out"]
    finite: Bool[Tensor, " b *out"]
    scatter: Float[Tensor, " b *out"]
    above: Float[Tensor, " k b *out"]
    below: Float[Tensor, " k b *out"]

    @classmethod
    def of(cls, terms: Inexact[Tensor, " n b *out"], num_top: int) -> Running:
        """One part of the stream."""
        size, mean = terms.abs(), terms.mean(dim=0)
        real = size if terms.is_complex() else terms
        most = min(num_top, len(terms))
        return cls(
            len(terms),
            mean,
            (terms - mean).abs().square().sum(dim=0),
            size.sum(dim=0),
            size.square().sum(dim=0),
            real.amin(dim=0),
            real.amax(dim=0),
            size.topk(most, dim=0).values,
            terms.isfinite().all(dim=0),
            (real - real.mean(dim=0)).abs().sum(dim=0),
            real.topk(most, dim=0).values,
            (-real).topk(most, dim=0).values,
        )

    def shaped(self, shape: tuple[int, ...]) -> Running:
        """The same for terms of another shape."""
        long = {k: getattr(self, k).reshape(-1, *shape) for k in _LONG}
        flat = {k: t.reshape(shape) for k, t in vars(self).items() if k not in {"num", *_LONG}}
        return replace(self, **long, **flat)

    def column(self, i: int) -> Running:
        """One output of several along the last axis."""
        own = {k: t[..., i] for k, t in vars(self).items() if k != "num"}
        return replace(self, **own)

    def joined(self, other: Running, num_top: int) -> Running:
        """Both parts of the stream together."""
        n, m = self.num, other.num
        gap = other.mean - self.mean
        long = (torch.cat([getattr(self, k), getattr(other, k)]) for k in _LONG)
        top, above, below = (t.topk(min(num_top, len(t)), dim=0).values for t in long)
        return Running(
            n + m,
            self.mean + gap * (m / (n + m)),
            self.squares + other.squares + gap.abs().square() * (n * m / (n + m)),
            self.size + other.size,
            self.size_squares + other.size_squares,
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
            top,
            self.finite & other.finite,
            self.scatter + other.scatter,
            above,
            below,
        )

    @property
    def std_error(self) -> Float[Tensor, " b *out"]:
        """Of the mean."""
        return (self.squares / (self.num - 1) / self.num).sqrt()

    @property
    def effective(self) -> Float[Tensor, " b *out"]:
        """Number of equal terms that would say as much: (Σ |f|)² / Σ |f|²; zero of none."""
        peak = self.top[0].clamp(min=torch.finfo(self.size.dtype).tiny)
        # relative to the largest, whose square may be too small for a number
        number = (self.size / peak).square() / (self.size_squares / peak / peak)
        return torch.where(self.size_squares > 0, number, (self.top[0] > 0).to(number.dtype))

    def equal(self, eps: float) -> Bool[Tensor, " b *out"]:
        """Whether all terms are the same but for rounding."""
        return self.squares.sqrt() <= _EQUAL * eps * self.size / self.num**0.5

    def khat(self) -> Float[Tensor, " b *out"]:
        """Shape of the tail of |f − mean|: −∞ where values are met again and again, as in steps.

        About the mean, since a heavy tail far from zero is small beside it, without a variance.
        """
        m = tail_length(self.num)
        if m < _FEWEST:
            return torch.full_like(self.size, math.inf)
        middle = self.size / self.num if self.mean.is_complex() else self.mean
        both = torch.cat([self.above - middle, self.below + middle])
        largest = both.topk(min(m + 1, len(both)), dim=0).values
        peak = largest[0].clamp(min=torch.finfo(largest.dtype).tiny)
        tail = (largest / peak).flip(0).movedim(0, -1)  # ascending
        excess = (tail[..., 1:] - tail[..., :1]).clamp(min=0.0)
        met_again = (excess[..., -_FEWEST] <= 0) | (tail[..., -1] <= tail[..., -_FEWEST])
        # values of a lattice, spread up to the next one
        tail = torch.where(excess[..., m // 4, None] <= 0, _spread(tail), tail)
        excess = (tail[..., 1:] - tail[..., :1]).clamp(min=0.0)
        k = _shape(excess)
        few = m // _PART
        if few > 2 * _FEWEST:
            # a step or a plateau below the largest terms looks like a tail, and they do not
            far = _shape((tail[..., -few:] - tail[..., -few - 1, None]).clamp(min=0.0))
            k = torch.minimum(k, far + (1 + far) / few**0.5)
        khat = torch.where(met_again, -math.inf, k)
        share = peak / self.scatter
        limit = 1 + share.log() / math.log(self.num)
        return torch.where(share <= _SMALL_SHARE, khat.minimum(limit), khat)


def _spread(tail: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch m"]:
    """Ascending numbers; those that are equal drawn apart evenly towards the next larger one."""
    tail = tail.contiguous()
    start = torch.searchsorted(tail, tail)
    stop = torch.searchsorted(tail, tail, right=True)
    beyond = tail.gather(-1, stop.clamp(max=tail.shape[-1] - 1))
    place = torch.arange(tail.shape[-1], device=tail.device) - start
    return tail + (beyond - tail) * place / (stop - start)


def _shape(excess: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch"]:
    """Of a generalised Pareto distribution; infinite where there is none."""
    k = fit_generalised_pareto(excess)[0]
    return torch.where(k.isfinite(), k, math.inf)
