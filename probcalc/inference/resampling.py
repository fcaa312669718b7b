"""Draws without weights: taken from weighted ones, each replicate on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils import _pytree as pytree

from probcalc.inference.parameters import Values

if TYPE_CHECKING:
    from probcalc.inference.posterior import Posterior


def resampled(posterior: Posterior, num: int, generator: torch.Generator) -> Values:
    """Draws without weights, `num` from each replicate by its own weights, one after the other."""
    index = resampled_rows(posterior, num, generator)
    rows = posterior.x.gather(1, index[..., None].expand(-1, -1, posterior.x.shape[-1]))
    return posterior.layout.unflatten(rows.flatten(0, 1))


def resampled_rows(
    posterior: Posterior, num: int, generator: torch.Generator
) -> Int[Tensor, "r num"]:
    """Which draws of each replicate: one of weight w is taken num · w times, rounded at random.

    Systematic resampling, in random order.
    """
    r, n = posterior.log_weights.shape
    device = posterior.x.device
    start, shuffle = (torch.rand(r, k, generator=generator).to(device) for k in (1, num))
    points = (torch.arange(num, device=device) + start.double()) / num
    cumulative = posterior.log_weights.double().softmax(dim=1).cumsum(dim=1)
    index = torch.searchsorted(cumulative, points * cumulative[:, -1:]).clamp(max=n - 1)
    return index.gather(1, shuffle.argsort(dim=1))


def named(data: Any) -> dict[str, Tensor]:
    """A tree of data as a dict: a dict's own keys, ``data``, or ``data[0]``, ``data[1]``, ..."""
    if isinstance(data, dict) and all(torch.is_tensor(t) for t in data.values()):
        return dict(data)
    leaves = pytree.tree_leaves(data)
    return {"data" if len(leaves) == 1 else f"data[{i}]": t for i, t in enumerate(leaves)}
