"""Jumps along an axis, which replicates of a net may all miss in the same way.

A net has one point in each of n cells of an axis. Where f jumps by J inside a cell, all replicates
may have their point on the same side of it: then they agree, and are all wrong by up to J/n. From
the means m_k over bins of an axis,

    2 (m_{k+1} − m_k) − ½ (m_{k+2} + m_{k+1} − m_k − m_{k−1})

is zero where f is smooth and at least J/4 at a jump.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

BINS = 256
_MOST = 2**21  # numbers that are kept of an integrand
_FAR = 6.0  # standard errors, from which a jump is one
_LEAST = 0.25  # part of a jump that is seen at least


def keeps(dim: int, outputs: int) -> bool:
    """Whether so many means are worth their memory."""
    return dim * outputs * BINS <= _MOST


def binned(
    u: Float[Tensor, "n d"], f: Inexact[Tensor, " n *out"], slopes: Float[Tensor, "d bins"] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Number, sum and sum of squares in the bins of every axis, ``(d, bins, c)``.

    Args:
        u: Points.
        f: Values there, times the slopes of all axes' maps.
        slopes: Of the map of each axis, bin by bin, which are taken out along that axis.
    """
    f = f.detach()
    f = torch.view_as_real(f).flatten(1) if f.is_complex() else f.reshape(len(f), -1)
    place = (u * BINS).long().clamp(max=BINS - 1) + BINS * torch.arange(
        u.shape[1], device=u.device
    )
    d = u.shape[1]
    kept = [
        torch.zeros(d * BINS, c, dtype=f.dtype, device=f.device) for c in (1, *f.shape[1:] * 2)
    ]
    for axis in range(d):
        own = f if slopes is None else f / slopes.flatten()[place[:, axis], None]
        for total, values in zip(
            kept, (torch.ones_like(f[:, :1]), own, own.square()), strict=True
        ):
            total.index_add_(0, place[:, axis], values)
    count, total, squares = (t.reshape(d, BINS, -1) for t in kept)
    return count, total, squares


def largest_jump(
    count: Tensor, total: Tensor, squares: Tensor, slopes: Float[Tensor, "d bins"] | None
) -> Float[Tensor, " c"]:
    """Of every output over all axes, times the slope; zero where none can be told from noise."""
    number = count.clamp(min=1.0)
    mean = total / number
    variance = (squares / number - mean.square()).clamp(min=0.0) / number
    near = mean[:, 2:-1] - mean[:, 1:-2]
    wide = 0.5 * (mean[:, 3:] + mean[:, 2:-1] - mean[:, 1:-2] - mean[:, :-3])
    jump = (2 * near - wide).abs()
    noise = (
        2.25 * (variance[:, 2:-1] + variance[:, 1:-2])
        + 0.25 * (variance[:, 3:] + variance[:, :-3])
    ).sqrt()
    full = (count[:, 3:] > 1) & (count[:, 2:-1] > 1) & (count[:, 1:-2] > 1) & (count[:, :-3] > 1)
    found = torch.where(full & (jump > _FAR * noise), jump, 0.0)
    if slopes is not None:
        found = found * torch.maximum(slopes[:, 2:-1], slopes[:, 1:-2])[..., None]
    return found.amax(dim=(0, 1)) / _LEAST
