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
    r"""Sum of a series, with an estimate of its error.

    The transform of order k is Σ c_j S_j/ω_j / Σ c_j/ω_j with ω_j = (j + 1) a_j. Of all orders,
    from the first 8, 12, 16, ... terms (late ones may drown in rounding), the one is taken that
    agrees best with the order below and with itself one term earlier.

    Args:
        terms: First terms of p series.
        noise: Size of the error of each.

    Returns:
        Sum, differentiable in the terms, and its error; inf where the terms are too few or do
        not settle.
    """
    n, (total, least) = len(terms), _no_limit(terms)
    if n < _FEWEST:
        return total, least
    with torch.no_grad():
        rows, errors = zip(*(_orders(terms, noise, m) for m in _counts(n)), strict=True)
        least, best = torch.cat(errors).min(dim=0)
    settled = least.isfinite()
    c = torch.where(settled, torch.cat(rows)[best].mT, 0.0).to(terms.dtype)
    # only what enters is divided by, so that nothing else spoils the gradient
    omega = _places(terms) * torch.where(c != 0, terms, 1.0)
    bottom = torch.where(settled, (c / omega).sum(dim=0), 1.0)
    limit = (c / omega * terms.cumsum(dim=0)).sum(dim=0) / bottom
    return torch.where(settled, limit, total), least


def _no_limit(terms: Tensor) -> tuple[Tensor, Tensor]:
    total = terms.sum(dim=0)
    return total, torch.full_like(total.detach().abs(), math.inf)


def _counts(n: int) -> list[int]:
    return sorted({n, *range(_FEWEST, min(n, 2 * _MOST), _STEP)})


def _places(terms: Tensor) -> Float[Tensor, "n 1"]:
    return torch.arange(1, len(terms) + 1, dtype=torch.float64, device=terms.device)[:, None]


def _orders(terms: Tensor, noise: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Coefficients c of every order on the first m terms, and the errors of their sums."""
    n, terms, noise = len(terms), terms[:m], noise[:m]
    sums = terms.cumsum(dim=0)
    c = _coefficients(m).to(terms.device)
    signed, inverse = c.to(terms.dtype), 1.0 / (_places(terms) * terms)
    eps = torch.finfo(torch.float64).eps
    inexact = noise.cumsum(dim=0) + eps * sums.abs()
    bottom = signed @ inverse
    values = ((signed @ (sums * inverse)) / bottom).unflatten(0, (2, -1))
    rounding = ((c.abs() @ (inexact * inverse.abs())) / bottom.abs()).unflatten(0, (2, -1))[0]
    now, before = values
    change = torch.maximum((now - before).abs(), (now - now.roll(1, dims=0)).abs())
    error = (_SAFETY * change + rounding)[1:].nan_to_num(nan=math.inf, posinf=math.inf)
    rows = c.unflatten(0, (2, -1))[0, 1:]
    return torch.nn.functional.pad(rows, (0, n - m)), error


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
