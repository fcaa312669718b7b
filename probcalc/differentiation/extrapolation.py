r"""Values at halving distances, extrapolated to none: Richardson's table, and when to believe it.

    S(h) = S + c₁ h^p + c₂ h^2p + …,    T_j(h) = (2^(pj) T_{j−1}(h/2) − T_{j−1}(h)) / (2^(pj) − 1)

Each column takes one power off. Where the next column moves less than rounding does, or there are
other powers in the expansion, further columns are worse: the entry that moved least is taken, and
the best entries of other columns have to agree with it.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_COLUMNS, _WITNESSES = 12, 4  # of the table, and of them
_SAFETY = 3.0  # for expansions in other powers
_VAGUE = 0.01  # of the values: an error that says that there is nothing to converge to
_SEEN, _LATE = 8.0, 6  # noise above which a step tells something, and how many of these do
_RISING = -0.1  # powers of two by which steps change and do not fall


def extrapolated(
    quotients: Float[Tensor, " k *out"], noise: Float[Tensor, " k *out"], powers: int
) -> tuple[Tensor, Tensor]:
    """Richardson's table of quotients at halving steps: its best entry, and how good that is.

    The best entries of other columns have to agree with it.
    """
    column, spoilt = quotients, noise
    values, errors = [], []
    for j in range(1, min(len(quotients), _COLUMNS)):
        ratio = 2.0 ** (powers * j)
        finer = (ratio * column[1:] - column[:-1]) / (ratio - 1)
        spoilt = (ratio * spoilt[1:] + spoilt[:-1]) / (ratio - 1)
        # how far it moved, from both entries that made it
        moved = torch.maximum((finer - column[1:]).abs(), (finer - column[:-1]).abs())
        smallest, at = (moved + spoilt).nan_to_num(math.inf, math.inf).min(dim=0)
        values.append(finer.gather(0, at[None])[0])
        errors.append(smallest)
        column = finer
    error, order = torch.stack(errors).sort(dim=0)
    value = torch.stack(values).gather(0, order)
    apart = (value[1:_WITNESSES] - value[0]).abs().amax(dim=0)
    return value[0], _SAFETY * torch.maximum(error[0], apart)


def grows(
    quotients: Float[Tensor, " k *out"],
    noise: Float[Tensor, " k *out"],
    rising: float = _RISING,
) -> Bool[Tensor, "*out"]:
    """Whether what a halved step adds does not fall, as at a root or a logarithm.

    Args:
        quotients: At halving steps.
        noise: Of each.
        rising: Powers of two by which a step has to change at least to count as not falling.
    """
    moved = (quotients[1:] - quotients[:-1]).abs()
    seen = (moved > _SEEN * (noise[1:] + noise[:-1])) & moved.isfinite()
    both = seen[1:] & seen[:-1]
    ratio = torch.where(both, moved[1:] / torch.where(both, moved[:-1], 1.0), 1.0)
    rises = torch.where(both, ratio.log2(), 0.0)
    late = both.flip(0).cumsum(dim=0).flip(0) <= _LATE  # the last of them
    count = (both & late).sum(dim=0)
    slope = torch.where(late & both, rises, 0.0).sum(dim=0) / count.clamp(min=1)
    return (count >= _LATE) & (slope > rising)


def vague(
    values: Float[Tensor, " k *out"], noise: Float[Tensor, " k *out"], error: Float[Tensor, "*out"]
) -> Bool[Tensor, "*out"]:
    """Whether the error is of the size of what is to be found, though it is no noise."""
    size = torch.where(values.isfinite() & (values.abs() > _SEEN * noise), values.abs(), 0.0)
    largest = size.amax(dim=0)
    return (largest > 0) & (error > _VAGUE * largest)
