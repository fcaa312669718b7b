r"""KL(p‖q) in closed form from uniform and truncated normal distributions.

From the uniform distribution on [l, h], of width w,

    KL(p‖q) = −ln w − (1/w) ∫ ln q(x) dx

where −ln q is a sum of logarithms and powers of x, whose means over the interval are written so
that they keep their digits where it is narrow and far from zero. From a normal distribution
between two ends, by its first two moments: Johnson, Kotz & Balakrishnan (1994), section 13.10.1.
Where the ends leave the support of q the divergence is infinite; where they are at a zero of its
density, the derivative in them is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.special import asked, computed_where
from probcalc.distributions.truncated import Truncated
from probcalc.divergence.formula import Formula, Parameters
from probcalc.divergence.line import as_gamma, as_logit, as_weibull, loc_scale, log_partition

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_ROOT_TWO = math.sqrt(2)
_NARROW = 0.01  # in scales of a normal distribution
_NODES = 20  # of a rule that is exact to rounding where half the interval is half as far as ±i


@dataclass(frozen=True, eq=False)
class Interval:
    """Means over the numbers from `low` to `high`."""

    low: Tensor
    high: Tensor

    @property
    def width(self) -> Tensor:
        """From end to end."""
        return self.high - self.low

    @property
    def middle(self) -> Tensor:
        """The mean."""
        return self.low + 0.5 * self.width

    def square(self, about: Tensor, unit: Tensor) -> list[Tensor]:
        """Terms of the mean of ((x − about)/unit)²."""
        return [((self.middle - about) / unit).square(), (self.width / unit).square() / 12]

    def distance(self, to: Tensor) -> Tensor:
        """Mean of |x − to|."""
        left, right = (to - self.low).clamp(min=0.0), (self.high - to).clamp(min=0.0)
        within = (left.square() + right.square()) / (2 * self.width)
        inside = (left > 0) & (right > 0)
        return torch.where(inside, within, (self.middle - to).abs())

    def log(self) -> Tensor:
        """Mean of ln x."""
        return self.high.log() + self._log_share()[0]

    def log_square(self, about: Tensor) -> Tensor:
        """Mean of (ln x − about)²."""
        first, second = self._log_share()
        place = self.high.log() - about
        return second + 2 * place * first + place.square()

    def power(self, k: Tensor) -> Tensor:
        """Mean of x^k, for k > −1."""
        share, log = self._shares()
        rest = torch.where(share < 1, torch.expm1((k + 1) * log), -1.0)
        return self.high**k * -rest / ((k + 1) * share)

    def inverse(self) -> Tensor:
        """Mean of 1/x."""
        share, log = self._shares()
        return torch.where(share < 1, -log / (self.high * share), math.inf)

    def log_one_plus_square(self) -> Tensor:
        """Mean of ln(1 + x²)."""
        middle, half = self.middle, 0.5 * self.width

        def from_nodes(middle: Tensor, half: Tensor) -> Tensor:
            x, w = (t.to(middle) for t in _gauss(_NODES))
            return (w * (middle[..., None] + half[..., None] * x).square().log1p()).sum(dim=-1)

        def primitive(x: Tensor) -> Tensor:
            return x * x.square().log1p() - 2 * x + 2 * x.atan()

        across = (primitive(self.high) - primitive(self.low)) / self.width
        near = half.square() <= 0.25 * (1 + middle.square())
        return computed_where(near, from_nodes, across, middle, half)

    def _shares(self) -> tuple[Tensor, Tensor]:
        """Width as a share of the upper end; the logarithm of the rest, 0 where that is none."""
        share = self.width / self.high
        return share, torch.log1p(-torch.where(share < 1, share, 0.0))

    def _log_share(self) -> tuple[Tensor, Tensor]:
        """Means of the logarithm of x as a share of the upper end, and of its square."""
        share, log = self._shares()
        # r ln r/(1 − r), r the lower end's share; where it is zero, so that its slope is right
        rest = torch.where(
            share < 1,
            (1 - share) * log / share,
            torch.special.xlogy(self.low, self.low) / self.width,
        )
        return -1 - rest, 2 - rest * (log - 2)


@cache
def _gauss(count: int) -> tuple[Tensor, Tensor]:
    """Nodes on [−1, 1], and weights that add up to 1."""
    x, w = np.polynomial.legendre.leggauss(count)
    return torch.as_tensor(x), torch.as_tensor(0.5 * w)


def _normal(x: Interval, m: Tensor, s: Tensor) -> list[Tensor]:
    return [s.log() + _HALF_LOG_TWO_PI, *(0.5 * t for t in x.square(m, s))]


def _half_normal(x: Interval, s: Tensor) -> list[Tensor]:
    return [torch.full_like(s, -math.log(2)), *_normal(x, torch.zeros_like(s), s)]


def _log_normal(x: Interval, m: Tensor, s: Tensor) -> list[Tensor]:
    return [s.log() + _HALF_LOG_TWO_PI, x.log(), 0.5 * x.log_square(m) / s.square()]


def _laplace(x: Interval, m: Tensor, b: Tensor) -> list[Tensor]:
    return [(2 * b).log(), x.distance(m) / b]


def _student(x: Interval, df: Tensor, m: Tensor, s: Tensor) -> list[Tensor]:
    unit, half = s * df.sqrt(), 0.5 * (df + 1)
    scaled = Interval((x.low - m) / unit, (x.high - m) / unit)
    scale = torch.lgamma(0.5 * df) - torch.lgamma(half) + unit.log()
    return [scale + 0.5 * math.log(math.pi), half * scaled.log_one_plus_square()]


def _cauchy(x: Interval, m: Tensor, g: Tensor) -> list[Tensor]:
    scaled = Interval((x.low - m) / g, (x.high - m) / g)
    return [(math.pi * g).log(), scaled.log_one_plus_square()]


def _half_cauchy(x: Interval, g: Tensor) -> list[Tensor]:
    return [torch.full_like(g, -math.log(2)), *_cauchy(x, torch.zeros_like(g), g)]


def _gumbel(x: Interval, m: Tensor, b: Tensor) -> list[Tensor]:
    steps, start = x.width / b, (m - x.low) / b
    return [b.log(), (x.middle - m) / b, start.exp() * -torch.expm1(-steps) / steps]


def _exponential(x: Interval, r: Tensor) -> list[Tensor]:
    return [-r.log(), r * x.middle]


def _gamma(x: Interval, a: Tensor, b: Tensor) -> list[Tensor]:
    return [torch.lgamma(a), -a * b.log(), (1 - a) * x.log(), b * x.middle]


def _inverse_gamma(x: Interval, a: Tensor, b: Tensor) -> list[Tensor]:
    return [torch.lgamma(a), -a * b.log(), (a + 1) * x.log(), b * x.inverse()]


def _weibull(x: Interval, s: Tensor, k: Tensor) -> list[Tensor]:
    return [-k.log(), k * s.log(), (1 - k) * x.log(), s**-k * x.power(k)]


def _pareto(x: Interval, x0: Tensor, a: Tensor) -> list[Tensor]:
    return [-a.log(), -a * x0.log(), (a + 1) * x.log()]


def _beta(x: Interval, a: Tensor, b: Tensor) -> list[Tensor]:
    mirrored = Interval(1 - x.high, 1 - x.low)
    scale = [torch.lgamma(a), torch.lgamma(b), -torch.lgamma(a + b)]
    return [*scale, (1 - a) * x.log(), (1 - b) * mirrored.log()]


def _continuous_bernoulli(x: Interval, logit: Tensor) -> list[Tensor]:
    return [log_partition(logit), -logit * x.middle]


def _from_uniform(
    cost: Callable[..., list[Tensor]],
    of_q: Parameters,
    start: Callable[..., Tensor | float] | None = None,
    end: float = math.inf,
) -> Formula:
    """From E_p[−ln q], and where q starts and ends."""

    def terms(low: Tensor, high: Tensor, *given: Tensor) -> list[Tensor]:
        infinite = torch.zeros_like(low)
        if start is not None:
            first = torch.as_tensor(start(*given), dtype=low.dtype, device=low.device)
            outside = (low < first) | (high > end)
            infinite = infinite.masked_fill(outside, math.inf)
            low, high = torch.where(outside, first, low), torch.where(outside, first + 1, high)
        x = Interval(low, high)
        return [-x.width.log(), *cost(x, *given), infinite]

    return Formula(terms, lambda d: (d.low, d.high), of_q, cancels=True)


def _zero(*given: Tensor) -> float:
    del given
    return 0.0


@dataclass(frozen=True, eq=False)
class _Cut:
    """A standard normal distribution between two ends.

    Args:
        log_mass: Terms of the logarithm of what is between them.
        heights: Density at each, as a share of that.
        rises: The same times the place of the end; 0 where it is at infinity.
    """

    log_mass: list[Tensor]
    heights: list[Tensor]
    rises: list[Tensor]

    @classmethod
    def of(cls, low: Tensor, high: Tensor) -> _Cut:
        """From the ends; on one side of the middle by what both densities have in common."""
        aside = (low > 0) | (high < 0)
        near = torch.where(aside, torch.minimum(low.abs(), high.abs()), 0.0)
        far = torch.where(aside, torch.maximum(low.abs(), high.abs()), 1.0)
        fall = torch.exp(-0.5 * (far - near) * (far + near))
        beyond = torch.special.erfcx(far / _ROOT_TWO)
        tail = torch.special.erfcx(near / _ROOT_TWO) - fall * torch.where(far.isinf(), 0.0, beyond)
        ends = [torch.where(aside, sign, z) for sign, z in ((-1.0, low), (1.0, high))]
        erfs = [torch.erf(z / _ROOT_TWO) for z in ends]
        mass = 0.5 * torch.where(aside, tail, erfs[1] - erfs[0])
        heights = []
        for z in (low, high):
            nearer = z.abs() <= near
            across = (-0.5 * torch.where(aside, 1.0, z).square()).exp()
            share = torch.where(aside, torch.where(nearer, 1.0, fall), across)
            heights.append(share / (math.sqrt(2 * math.pi) * mass))
        rises = [
            torch.where(z.isinf(), 0.0, z) * h for z, h in zip((low, high), heights, strict=True)
        ]
        return cls([mass.log(), -0.5 * near.square()], heights, rises)


def _truncated_normal(
    m1: Tensor, s1: Tensor, low1: Tensor, high1: Tensor, *other: Tensor
) -> list[Tensor]:
    """To a normal distribution, which may be truncated itself."""
    m2, s2, low2, high2 = other
    p = _Cut.of(*(_standard(end, m1, s1) for end in (low1, high1)))
    q = _Cut.of(*(_standard(end, m2, s2) for end in (low2, high2)))
    apart, ratio = (m1 - m2) / s2, s1 / s2
    square, tilt = 0.5 * (ratio.square() - 1), ratio * apart
    outside = (low1 < low2) | (high1 > high2)
    return [
        -ratio.log(),
        *q.log_mass,
        *(-t for t in p.log_mass),
        square,
        square * p.rises[0],
        -square * p.rises[1],
        tilt * p.heights[0],
        -tilt * p.heights[1],
        0.5 * apart.square(),
        torch.zeros_like(square).masked_fill(outside, math.inf),
    ]


def _standard(end: Tensor, m: Tensor, s: Tensor) -> Tensor:
    """In scales from the place; infinity stays, without derivatives."""
    none = end.isinf()
    return torch.where(none, end.detach(), (torch.where(none, 0.0, end) - m) / s)


def _as_truncated(d: Any) -> tuple[Tensor, ...]:
    """Place, scale and ends."""
    if isinstance(d, Truncated):
        return (*loc_scale(d.base), d.low, d.high)
    none = torch.full_like(d.loc, math.inf, dtype=torch.float64)
    return (*loc_scale(d), -none, none)


def _are_normal(*pair: Any) -> bool:
    """And not so narrow that moments have no digits."""
    cut = [d for d in pair if isinstance(d, Truncated)]
    bases = [d.base if isinstance(d, Truncated) else d for d in pair]
    return all(type(base) is td.Normal for base in bases) and not any(
        asked(torch.any, d.high - d.low < _NARROW * d.base.scale) for d in cut
    )


_TRUNCATED = Formula(_truncated_normal, _as_truncated, cancels=True, applies=_are_normal)
_RATE: Parameters = lambda d: (d.rate,)  # noqa: E731
_SCALE: Parameters = lambda d: (d.scale,)  # noqa: E731
FORMULAS = {
    (Truncated, Truncated): _TRUNCATED,
    (Truncated, td.Normal): _TRUNCATED,
    **{
        (td.Uniform, family): formula
        for family, formula in {
            td.Normal: _from_uniform(_normal, loc_scale),
            td.Laplace: _from_uniform(_laplace, loc_scale),
            td.StudentT: _from_uniform(_student, lambda d: (d.df, d.loc, d.scale)),
            td.Cauchy: _from_uniform(_cauchy, loc_scale),
            td.Gumbel: _from_uniform(_gumbel, loc_scale),
            td.HalfNormal: _from_uniform(_half_normal, _SCALE, _zero),
            td.HalfCauchy: _from_uniform(_half_cauchy, _SCALE, _zero),
            td.LogNormal: _from_uniform(_log_normal, loc_scale, _zero),
            td.Exponential: _from_uniform(_exponential, _RATE, _zero),
            td.Gamma: _from_uniform(_gamma, as_gamma, _zero),
            td.InverseGamma: _from_uniform(
                _inverse_gamma, lambda d: (d.concentration, d.rate), _zero
            ),
            td.Weibull: _from_uniform(_weibull, as_weibull, _zero),
            td.Pareto: _from_uniform(_pareto, lambda d: (d.scale, d.alpha), lambda x0, a: x0),
            td.Beta: _from_uniform(
                _beta, lambda d: (d.concentration1, d.concentration0), _zero, 1.0
            ),
            td.ContinuousBernoulli: _from_uniform(_continuous_bernoulli, as_logit, _zero, 1.0),
        }.items()
    },
}
