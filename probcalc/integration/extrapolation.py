"""Limits of slowly convergent series: what is left of an integral beyond its last shell.

Shells that shrink towards a singular end by a constant ratio have integrals a_0, a_1, ... whose
sum converges linearly for an algebraic singularity and logarithmically for 1/(t log² t); Levin's
u-transformation accelerates both. Levin (1973); Weniger (1989), sections 7.3 and 8.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

_FEWEST = 8  # terms, below which two transforms that agree prove nothing
_STEP = 4
_MOST = 18  # terms, above which rounding eats what acceleration gains
_SAFETY = 10.0  # on the distance between transforms


def levin_limit(
    terms: Inexact[Tensor, "n p"], noise: Float[Tensor, "n p"]
) -> tuple[Inexact[Tensor, " p"], Float[Tensor, " p"]]:
    """Sum of a series, with an estimate of its error: the best from its first 8, 12, 16 ... terms.

    Late terms do not always help: next to an end other than zero they drown in rounding.

    Args:
        terms: First terms of p series.
        noise: Size of the error of each.

    Returns:
        Sum and its error; inf where the terms are too few or do not settle.
    """
    n = len(terms)
    counts = sorted({n, *range(_FEWEST, min(n, 2 * _MOST), _STEP)})
    found = [_limit(terms[:m], noise[:m]) for m in counts]
    error, best = torch.stack([e for _, e in found]).min(dim=0)
    return torch.stack([v for v, _ in found]).gather(0, best[None])[0], error


def _limit(terms: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    r"""From the first n terms, by the best order.

    The transform of order k is Σ c_j S_j/ω_j / Σ c_j/ω_j with ω_j = (j + 1) a_j. Of all orders
    the one is taken that agrees best with the order below and with itself one term earlier.
    """
    n = len(terms)
    sums = terms.cumsum(dim=0)
    if n < _FEWEST:
        return sums[-1], torch.full_like(sums[-1].abs(), math.inf)
    c = _coefficients(n).to(terms.device)
    place = torch.arange(1, n + 1, dtype=torch.float64, device=terms.device)[:, None]
    inverse = 1.0 / (place * terms)
    signed = c.to(terms.dtype)
    eps = torch.finfo(torch.float64).eps
    inexact = noise.cumsum(dim=0) + eps * sums.abs()
    bottom = signed @ inverse
    values = ((signed @ (sums * inverse)) / bottom).unflatten(0, (2, -1))
    rounding = ((c.abs() @ (inexact * inverse.abs())) / bottom.abs()).unflatten(0, (2, -1))[0]
    now, before = values
    change = torch.maximum((now - before).abs(), (now - now.roll(1, dims=0)).abs())
    error = (_SAFETY * change + rounding)[1:].nan_to_num(nan=math.inf, posinf=math.inf)
    least, order = error.min(dim=0)
    best = now[1:].gather(0, order[None])[0]
    return torch.where(least.isfinite(), best, sums[-1]), least


@lru_cache
def _coefficients(n: int) -> Float[Tensor, "k n"]:
    """Rows of c: every order that fits n terms, ending at the last term, then one before it."""
    rows = torch.zeros(2, min(n, _MOST) - 3, n, dtype=torch.float64)
    for before in range(2):
        for row, k in enumerate(range(2, min(n, _MOST) - 1)):
            first = n - 1 - k - before
            for j in range(k + 1):
                ratio = (first + j + 1) / (first + k + 1)
                rows[before, row, first + j] = (-1) ** j * math.comb(k, j) * ratio ** (k - 1)
    return rows.flatten(0, 1)
