"""Independent randomisations of a point set: their means, and when there are enough points.

The bar is Student's t of the replicates' means, never the scatter within one of them, made wider
where these are skewed, as where a tail decides: Hall (1992), On the removal of skewness by
transformation, the wider side on both. Points are doubled until it is small enough; as many looks
as there may be share the confidence, so that stopping early does not spoil it (Bonferroni 1936).
Jumps along an axis, which all replicates may miss alike, are looked for apart (see `steps`).
L'Ecuyer, Nakayama, Owen & Tuffin (2023), Confidence intervals for randomized quasi-Monte Carlo
estimators.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from probcalc.integration.replay import piecewise
from probcalc.integration.running import Running, tail_length
from probcalc.integration.steps import binned, keeps, largest_jump
from probcalc.result import half_width

_SYMMETRIC = 1e-4  # skewness of a mean that changes nothing
_TOO_LOW = 1.4  # times, that the skewness of a dozen numbers shows of that of many
_BLOCK = 2**14  # points of all replicates that are made together


Bins = tuple[Tensor, ...]


@runtime_checkable
class Points(Protocol):
    """Randomised points, replicate by replicate."""

    def points(self, start: int, num: int) -> Float[Tensor, "r n d"]:
        """Some of the points, inside (0, 1)."""
        ...


@dataclass(frozen=True, eq=False)
class Averages:
    """What replicates say.

    Args:
        value: Mean of all, differentiable, ``(b, *out)``.
        std_error: Of the mean.
        bar: Half width of its interval.
        terms: What the values were like.
        num: Points of a replicate.
    """

    value: Inexact[Tensor, " b *out"]
    std_error: Float[Tensor, " b *out"]
    bar: Float[Tensor, " b *out"]
    terms: Running
    num: int


@dataclass(frozen=True, eq=False)
class Replicates:
    """A function averaged over the points of every replicate.

    Args:
        at: From points ``(n, d)`` to values ``(n, b, *out)``.
        points: The points.
        num_replicates: How many sets of them.
        slopes: Of a map of every axis through which the points went, bin by bin (see `steps`).
    """

    at: Callable[[Float[Tensor, "n d"]], Inexact[Tensor, "n b *out"]]
    points: Points
    num_replicates: int
    slopes: Float[Tensor, "d bins"] | None = None

    def averaged(
        self,
        first: int,
        last: int,
        confidence: float,
        enough: Callable[[Tensor, Tensor], Bool[Tensor, ""]],
    ) -> Averages:
        """Averages over 2^first, 2^(first + 1), ..., at most 2^last points of each replicate.

        Args:
            first: Binary logarithm of the least number.
            last: Of the largest.
            confidence: Of the bar at whichever number it ends.
            enough: Whether value and bar are good enough.
        """
        looks = last - first + 1
        shared = 1 - (1 - confidence) / looks
        top = tail_length(self.num_replicates * 2**last) + 1
        means, terms, bins, log = *self._between(0, 2**first, top), first
        while True:
            found = self._summary(means, terms, bins, 2**log, shared)
            if log == last or bool(enough(found.value.detach(), found.bar)):
                return found
            more, further, others = self._between(2**log, 2 ** (log + 1), top)
            means, terms, log = 0.5 * (means + more), terms.joined(further, top), log + 1
            bins = tuple(a + b for a, b in zip(bins, others, strict=True))

    def _between(self, start: int, stop: int, top: int) -> tuple[Tensor, Running, Bins]:
        step = max(1, min(stop - start, 2 ** int(math.log2(_BLOCK / self.num_replicates))))
        total: Tensor | float = 0.0
        terms: Running | None = None
        bins: Bins = ()
        for at in range(start, stop, step):
            part, of_bins, *stats = piecewise(total, self._block, at, step, top)
            own = Running(self.num_replicates * step, *stats)
            terms = own if terms is None else terms.joined(own, top)
            bins = tuple(a + b for a, b in zip(bins, of_bins, strict=True)) if bins else of_bins
            total = total + part
        assert terms is not None
        assert torch.is_tensor(total)
        return total / (stop - start), terms, bins

    def _block(self, start: int, num: int, top: int) -> tuple[Any, ...]:
        u = self.points.points(start, num).flatten(0, 1)
        f = self.at(u)
        own = Running.of(f.detach(), top)
        bins = binned(u, f, self.slopes) if keeps(u.shape[1], f[0].numel()) else ()
        sums = f.unflatten(0, (self.num_replicates, num)).sum(dim=1)
        return (sums, bins, *list(vars(own).values())[1:])

    def _summary(
        self, means: Tensor, terms: Running, bins: Bins, num: int, confidence: float
    ) -> Averages:
        value, r = means.mean(dim=0), self.num_replicates
        gap = means.detach() - value.detach()
        std_error = (gap.abs().square().sum(dim=0) / (r - 1) / r).sqrt()
        bar = half_width(std_error * _widened(gap, confidence), r - 1, confidence)
        if bins:
            # so many of r points may lie on one side, and the others would at this confidence
            agreed = 1 - (1 - confidence) ** (1 / r)
            bar = bar + agreed / num * _shaped(largest_jump(*bins, self.slopes), gap)
        return Averages(value, std_error, bar, terms, num)


def _shaped(jump: Float[Tensor, " c"], like: Inexact[Tensor, "r b *out"]) -> Float[Tensor, " ..."]:
    shape = like.shape[1:]
    if like.is_complex():
        return jump.reshape(*shape, 2).norm(dim=-1)
    return jump.reshape(shape)


def _widened(gap: Inexact[Tensor, "r b *out"], confidence: float) -> Float[Tensor, " b *out"]:
    """How much wider an interval is that knows the skewness of what was averaged."""
    r = len(gap)
    level = float(half_width(torch.ones(()), r - 1, confidence))
    if gap.is_complex():
        return _widened(gap.real, confidence).maximum(_widened(gap.imag, confidence))
    variance = gap.square().mean(dim=0).clamp(min=torch.finfo(gap.dtype).tiny)
    skew = _TOO_LOW * (gap / variance.sqrt()).pow(3).mean(dim=0).abs() / r**0.5
    small = skew < _SYMMETRIC
    skew = torch.where(small, _SYMMETRIC, skew)
    ends = [1 + skew * (sign * level - skew / 6) for sign in (-1, 1)]
    roots = [(end.sign() * end.abs() ** (1 / 3) - 1) * 3 / skew for end in ends]
    widest = torch.maximum(roots[0].abs(), roots[1].abs()) / level
    return torch.where(small, 1.0, widest.clamp(min=1.0))
