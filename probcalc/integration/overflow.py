"""Where a function of counts overflows, and whether that matters.

Beyond the last integer at which f is finite its terms are bounded by a geometric series,

    Σ_{j > k} |f| p  ≤  t e^d / (1 − e^d),   t = |f(k)| p(k),   e^d = the ratio of terms,

if they go on bending as they did: the slopes of log |f| at k, k/2 and k/4 must not differ by more
and more, as they do where a power of k above one is in the exponent. If d rises, its rises from
k/4 to k/2 and to k must shrink to three quarters, and three times the last is added for those to
come. A function that jumps to infinity is infinite, however small the mass is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probcalc.integration.windows import Look, Span, first_points

_STEP = 16  # of k: over which slopes are taken
_BEND, _ROUNDING = 1e-9, 64.0  # what rounding does to slopes, that of f in units in the last place
_SHRINK = 0.75  # of a rise to the one before, each over a doubling of k
_NOTHING = 1e-16  # term of a function that is not a number there, were it the largest there is


@dataclass(frozen=True, eq=False)
class Overflow:
    """Where a function stops being finite.

    Args:
        reach: Last integer at which it is finite, where what follows is known to be little.
        rest: Bound on what follows; zero where nothing does.
        infinite: Whether it is not finite elsewhere, or what follows is not known to be little.
        rising: Whether that is because the terms do not fall.
    """

    reach: Float[Tensor, " b"]
    rest: Float[Tensor, "b o"]
    infinite: Bool[Tensor, " b"]
    rising: Bool[Tensor, " b"]


def overflow_of(look: Look, span: Span, eps: float, log_max: float) -> Overflow:
    """Of a function, from |log f| and log p in points that spread over the support.

    Args:
        look: Gives log|f|, infinite or NaN as it may be, and log p.
        span: Where to look.
        eps: Unit in the last place of the function's precision.
        log_max: Logarithm of the largest number of that precision.
    """
    x = first_points(span)
    log_f, log_p = look(x)
    bad = ~(log_f < torch.inf).all(dim=-1)
    above = x > span.last
    elsewhere = (bad & ~above).any(dim=0)
    none = torch.full_like(span.last, torch.inf)
    if not bool((bad & above).any()):
        return Overflow(none, torch.zeros_like(log_f[0]), elsewhere, torch.zeros_like(elsewhere))
    far = torch.where(bad & above, x, torch.inf).amin(dim=0)
    reach = _last_finite(look, span.last, far)
    found = far.isfinite()
    start = torch.where(found, reach, span.last)
    known, rising, rest = _continued(look, start, eps, log_max)
    reach = torch.where(found & known, reach, torch.inf)
    rest = torch.where((found & known)[:, None], rest, 0.0)
    return Overflow(reach, rest, elsewhere | found & ~known, found & rising)


def _last_finite(look: Look, low: Tensor, high: Tensor) -> Float[Tensor, " b"]:
    """By bisection between integers where f is finite and where it is not."""
    while bool((high.isfinite() & (high - low > 1)).any()):
        middle = torch.where(high.isfinite(), (0.5 * (low + high)).floor(), low)
        finite = (look(middle[None])[0][0] < torch.inf).all(dim=-1)
        low, high = torch.where(finite, middle, low), torch.where(finite, high, middle)
    return low


def _continued(
    look: Look, k: Float[Tensor, " b"], eps: float, log_max: float
) -> tuple[Tensor, ...]:
    """Whether the terms beyond k are known to be few, whether they rise, and their sum."""
    places = torch.stack([k, (0.5 * k).floor(), (0.25 * k).floor()])
    step = (k / _STEP).ceil()
    log_f, log_p = look(torch.cat([places, places - step, k[None] + 1]))
    terms = log_f + log_p[..., None]
    slope, fall = ((t[:3] - t[3:6]) / step[:, None] for t in (log_f, terms))
    zero = log_f[0].isneginf()  # nothing to continue
    overflows = (log_f[0] + 2 * slope[0] >= log_max) | zero
    most = (log_p[6] + log_max)[:, None]  # of the term after k, were it finite
    artefact = log_f[6].isnan() & (most < math.log(_NOTHING))
    bend = _BEND + _ROUNDING * eps / step[:, None]
    even = slope[0] - slope[1] <= (slope[1] - slope[2]).clamp(min=0.0) + bend
    rise, before = fall[0] - fall[1], fall[1] - fall[2]
    shrinks = (rise <= bend) | (rise <= _SHRINK * before)
    last = fall[0] + _SHRINK / (1 - _SHRINK) * rise.clamp(min=0.0)
    known = ((overflows | artefact) & even & shrinks & (last < 0)) | (artefact & zero)
    rest = (terms[0] + last - torch.log(-torch.expm1(last))).exp()
    rest = torch.where(zero, 0.0, rest) + torch.where(artefact, most.exp(), 0.0)
    enough = k >= 2 * _STEP
    rising = (overflows & (fall[0] >= -bend)).any(dim=-1)
    fine = log_f[6].isnan() | log_f[6].isposinf()
    return (known | ~fine).all(dim=-1) & enough, rising, rest
