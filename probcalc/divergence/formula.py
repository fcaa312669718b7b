"""A closed form of a divergence, its bar, and how it is evaluated for large batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.special import postponed, readable, tracked
from probcalc.result import Estimate

_BLOCK = 2**16  # elements whose tensors stay in a core's cache from one operation to the next
_ROUNDING = 64 * torch.finfo(torch.float64).eps
_MOST = 1e38  # that single precision holds

Parameters = Callable[[Any], tuple[Tensor, ...]]
Terms = Tensor | list[Tensor]
Picked = Callable[[Terms], Tensor]  # value or bar


@dataclass(frozen=True, eq=False)
class Formula:
    """KL(p‖q) from the parameters of p and then those of q, in float64.

    Args:
        compute: Of tensors of the batch's shape, and of the events' where there are any.
        parameters: Of a distribution, the same for p and for q.
        of_q: Those of q, where they are not.
        events: Axes of every parameter behind those of the batch, 0 or 1, which is the first that
            `compute` sees; 2 where they are matrices, or differ.
        cancels: Whether it is a list of terms that add up to the divergence, and may cancel.
        applies: Whether it holds for these two.
    """

    compute: Callable[..., Terms]
    parameters: Parameters
    of_q: Parameters | None = None
    events: int = 0
    cancels: bool = False
    applies: Callable[[Any, Any], bool] = lambda p, q: True

    def kl(
        self, p: td.Distribution, q: td.Distribution, dtype: torch.dtype = torch.float64
    ) -> Estimate:
        """Of the batches, broadcast, in that precision."""
        given = [*self.parameters(p), *(self.of_q or self.parameters)(q)]
        batch = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
        large = self.events < 2 and batch.numel() > _BLOCK and _cut(given)
        fill = self._in_blocks if large else self._at_once
        value = fill(given, batch, lambda terms: _total(terms).to(dtype))
        if not self.cancels:
            return Estimate.barred_later(value, _bar, method="closed form")
        bar = lambda: fill(given, batch, lambda terms: _bar_of_sum(terms, dtype))  # noqa: E731
        if not large:
            return Estimate(value, bar(), method="closed form")
        return Estimate.barred_later(value, _unless_changed(given, bar), method="closed form")

    def _terms(self, given: Iterable[Tensor]) -> Terms:
        doubles = [t.double() for t in given]
        if self.events == 1:
            doubles = [t.movedim(-1, 0).contiguous() for t in doubles]
        return self.compute(*doubles)

    def _at_once(self, given: list[Tensor], batch: torch.Size, of: Picked) -> Tensor:
        return of(self._terms(given)).expand(batch)

    def _in_blocks(self, given: list[Tensor], batch: torch.Size, of: Picked) -> Tensor:
        """What few elements need besides is computed in the end, for all of them."""
        events = [t.shape[t.ndim - self.events :] for t in given]
        flat = [t.expand(*batch, *e).reshape(-1, *e) for t, e in zip(given, events, strict=True)]
        size = max(1, _BLOCK // max(e.numel() for e in events))
        blocks = [slice(i, i + size) for i in range(0, batch.numel(), size)]
        whole: Tensor | None = None
        late: list[Tensor] = []
        for block in blocks:
            with postponed() as masks:
                some = of(self._terms(t[block] for t in flat))
            whole = some.new_empty(batch.numel()) if whole is None else whole
            whole[block].copy_(some)
            if masks:
                rows = [mask.reshape(-1, some.numel()).any(dim=0) for mask in masks]
                late.append(torch.stack(rows).any(dim=0).nonzero()[:, 0] + block.start)
        assert whole is not None
        for index in torch.cat(late).split(size) if late else ():
            whole[index] = of(self._terms(t[index] for t in flat))
        return whole.reshape(batch)


def _cut(given: list[Tensor]) -> bool:
    """Whether to go block by block: on a GPU, or with derivatives asked for, it would cost."""
    usual = (t.device.type == "cpu" and readable(t) and not t.is_inference() for t in given)
    return all(usual) and not tracked(*given)


def _unless_changed(given: list[Tensor], bar: Callable[[], Tensor]) -> Callable[[Tensor], Tensor]:
    """The bar, from parameters that are what they were; as autograd asks of what it saves."""
    before = [t._version for t in given]

    def read(value: Tensor) -> Tensor:
        del value
        if [t._version for t in given] != before:
            raise RuntimeError(
                "parameters of a large batch were changed in place since its divergence was "
                "taken, before its `error` was read for the first time."
            )
        return bar()

    return read


def _total(terms: Terms) -> Tensor:
    return sum(terms[1:], terms[0]).clamp(min=0.0) if isinstance(terms, list) else terms


def _bar_of_sum(terms: Terms, dtype: torch.dtype) -> Float[Tensor, "*batch"]:
    """Off by the rounding of the largest term."""
    value = _total(terms).detach()
    size = sum((t.detach().abs() for t in terms), torch.zeros_like(value))
    error = _ROUNDING * size + _of_precision(dtype) * value
    return _exact_where_infinite(error, value).to(dtype)


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
    known = readable(error) and error.device.type == "cpu"
    if known and (not error.numel() or math.isfinite(float(error.amax()))):
        return error
    return torch.where(value.detach().isinf(), 0.0, error)
