"""A closed form of a divergence, its bar, and how it is evaluated for large batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.special import readable, tracked
from probcalc.result import Estimate

_BLOCK = 2**15  # elements whose tensors stay in a core's cache from one operation to the next
_ROUNDING = 64 * torch.finfo(torch.float64).eps
_MOST = 1e38  # that single precision holds

Parameters = Callable[[Any], tuple[Tensor, ...]]
Terms = Tensor | list[Tensor]
Rounded = tuple[Tensor, ...]  # a value, and perhaps its bar


@dataclass(frozen=True, eq=False)
class Formula:
    """KL(p‖q) from the parameters of p and then those of q, in float64.

    Args:
        compute: Of tensors of the batch's shape, and of the events' where there are any; either
            the divergence itself, of which nothing cancels, or terms that add up to it.
        parameters: Of a distribution, the same for p and for q.
        of_q: Those of q, where they are not.
        events: Axes of every parameter behind those of the batch, 0 or 1, which is the first that
            `compute` sees; 2 where they are matrices, or differ.
        applies: Whether it holds for these two.
    """

    compute: Callable[..., Terms]
    parameters: Parameters
    of_q: Parameters | None = None
    events: int = 0
    applies: Callable[[Any, Any], bool] = lambda p, q: True

    def kl(
        self, p: td.Distribution, q: td.Distribution, dtype: torch.dtype = torch.float64
    ) -> Estimate:
        """Of the batches, broadcast, in that precision."""
        given = [*self.parameters(p), *(self.of_q or self.parameters)(q)]
        batch = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
        if self.events > 1 or batch.numel() <= _BLOCK or not _cut(given):
            found = [t.expand(batch) for t in _rounded(self._terms(given), dtype)]
        else:
            found = [t.reshape(batch) for t in self._in_blocks(given, batch, dtype)]
        if len(found) == 1:
            return Estimate.barred_later(found[0], _bar, method="closed form")
        return Estimate(*found, method="closed form")

    def _terms(self, given: Iterable[Tensor]) -> Terms:
        doubles = [t.double() for t in given]
        if self.events == 1:
            doubles = [t.movedim(-1, 0).contiguous() for t in doubles]
        return self.compute(*doubles)

    def _in_blocks(self, given: list[Tensor], batch: torch.Size, dtype: torch.dtype) -> Rounded:
        whole: Rounded = ()
        events = [t.shape[t.ndim - self.events :] for t in given]
        flat = [t.expand(*batch, *e).reshape(-1, *e) for t, e in zip(given, events, strict=True)]
        size = max(1, _BLOCK // max(e.numel() for e in events))
        for start in range(0, batch.numel(), size):
            block = slice(start, start + size)
            some = _rounded(self._terms(t[block] for t in flat), dtype)
            if not whole:
                whole = tuple(torch.empty(batch.numel(), dtype=dtype) for _ in some)
            for out, part in zip(whole, some, strict=True):
                out[block].copy_(part)
        return whole


def _cut(given: list[Tensor]) -> bool:
    """Whether to go block by block: on a GPU, or with derivatives asked for, it would cost."""
    return all(t.device.type == "cpu" and readable(t) and not tracked(t) for t in given)


def _rounded(terms: Terms, dtype: torch.dtype) -> Rounded:
    """The value; and its bar where it is a sum of terms, which is off by that of the largest."""
    if not isinstance(terms, list):
        return (terms.to(dtype),)
    value = sum(terms[1:], terms[0]).clamp(min=0.0)
    size = sum((t.detach().abs() for t in terms[1:]), terms[0].detach().abs())
    error = _ROUNDING * size + _of_precision(dtype) * value.detach()
    return value.to(dtype), _exact_where_infinite(error, value).to(dtype)


def _bar(value: Tensor) -> Float[Tensor, "*batch"]:
    """Of a divergence of which nothing cancels: rounding, its own and that of the arguments.

    These are under functions as flat at zero as a square. The root is in single precision, which
    costs a fourth: bars need no more digits.
    """
    root = value.clamp(max=_MOST).float().sqrt().to(value.dtype)
    error = (_ROUNDING + _of_precision(value.dtype)) * value + _ROUNDING * root
    return _exact_where_infinite(error, value)


def _of_precision(dtype: torch.dtype) -> float:
    """Of a result in less than double precision."""
    return 0.0 if dtype == torch.float64 else torch.finfo(dtype).eps


def _exact_where_infinite(error: Tensor, value: Tensor) -> Tensor:
    return torch.where(value.detach().isinf(), 0.0, error)
