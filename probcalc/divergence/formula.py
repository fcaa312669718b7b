"""A closed form of a divergence, and how it is evaluated for large batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.special import readable

_BLOCK = 2**15  # elements whose tensors stay in a core's cache from one operation to the next

Parameters = Callable[[Any], tuple[Tensor, ...]]


@dataclass(frozen=True, eq=False)
class Formula:
    """KL(p‖q) from the parameters of p and then those of q, in float64.

    Args:
        compute: Of tensors of the batch's shape, and of the events' where there are any.
        parameters: Of a distribution, the same for p and for q.
        events: Axes of a parameter behind those of the batch; any number but zero where these
            differ.
        applies: Whether it holds for these two.
    """

    compute: Callable[..., Tensor]
    parameters: Parameters
    events: int = 0
    applies: Callable[[Any, Any], bool] = lambda p, q: True

    def kl(self, p: td.Distribution, q: td.Distribution) -> Float[Tensor, "*batch"]:
        """Of the batches, broadcast."""
        given = [t.double() for d in (p, q) for t in self.parameters(d)]
        batch = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
        large = batch.numel() > _BLOCK and given[0].device.type == "cpu"
        if self.events or not large or not all(map(readable, given)):
            return self.compute(*given).expand(batch)
        flat = [t.expand(batch).reshape(-1) for t in given]
        blocks = zip(*(t.split(_BLOCK) for t in flat), strict=True)
        return torch.cat([self.compute(*block) for block in blocks]).reshape(batch)
