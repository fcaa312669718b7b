"""The user's function, seen by the rules as one that takes any points of any elements.

Points come as ``(n, k)``: column j belongs to batch element ``elem[j]``. Tensors in `args` are
gathered to those columns, so that finished elements cost nothing. Without `args` the function may
close over tensors of the full batch shape, and sees full batches, padded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Integrand:
    """A function of points and their elements.

    Args:
        fn: ``fn(x, *args)``: x ``(n, *batch, *event)`` to values ``(n, *batch, *out)``.
        args: Tensors ``(b, ...)``, the batch flattened, and anything else as it is.
        batch: Shape of the batch.
        event: Shape of one point: ``()``, or ``(d,)`` for boxes.
        dtype: In which the function is evaluated.
        filler: A point of every element inside its domain, ``(b, *event)``, for padding.
    """

    fn: Callable[..., Tensor]
    args: tuple[Any, ...]
    batch: tuple[int, ...]
    event: tuple[int, ...]
    dtype: torch.dtype
    filler: Float[Tensor, " b *event"]

    def __call__(
        self, x: Float[Tensor, "n k *event"], elem: Int[Tensor, " k"]
    ) -> Inexact[Tensor, "n k *out"]:
        """Values at the points, in float64 or complex128."""
        x = x.to(self.dtype)
        if not self.batch:
            return self._on_one(x)
        if any(torch.is_tensor(a) for a in self.args):
            return self._on_rows(x, elem)
        return self._on_full_batches(x, elem)

    def _on_one(self, x: Tensor) -> Tensor:
        n, k = x.shape[:2]
        values = called(self.fn, x.reshape(n * k, *self.event), self.args, ())
        return values.reshape(n, k, *values.shape[1:])

    def _on_rows(self, x: Tensor, elem: Tensor) -> Tensor:
        own = tuple(a[elem] if torch.is_tensor(a) else a for a in self.args)
        return called(self.fn, x, own, elem.shape)

    def _on_full_batches(self, x: Tensor, elem: Tensor) -> Tensor:
        n, b = x.shape[0], math.prod(self.batch)
        if not len(elem):
            nothing = self.filler.to(x.dtype).expand(n, b, *self.event)
            values = called(
                self.fn, nothing.reshape(n, *self.batch, *self.event), self.args, self.batch
            )
            return values.reshape(n, b, *values.shape[1 + len(self.batch) :])[:, :0]
        order = elem.argsort(stable=True)
        counts = elem.bincount(minlength=b)
        first = counts.cumsum(0) - counts
        place = torch.empty_like(elem)
        place[order] = torch.arange(len(elem), device=elem.device) - first[elem[order]]
        deep = int(counts.max())
        full = self.filler.to(x.dtype).expand(n, deep, b, *self.event).clone()
        full[:, place, elem] = x
        values = called(
            self.fn, full.reshape(n * deep, *self.batch, *self.event), self.args, self.batch
        )
        return values.reshape(n, deep, b, *values.shape[1 + len(self.batch) :])[:, place, elem]


def called(
    fn: Callable[..., Tensor], x: Tensor, args: tuple[Any, ...], batch: tuple[int, ...]
) -> Inexact[Tensor, " n *batch_and_out"]:
    """The function's values, checked, in float64 or complex128.

    Raises:
        ValueError: If it does not return a tensor of shape ``(n, *batch, *out)``, or changes its
            argument.
    """
    version = version_of(x)
    values = fn(x, *args)
    if version_of(x) != version:
        raise ValueError(CHANGED)
    return checked_values(values, (x.shape[0], *batch), tuple(x.shape))


def checked_values(
    values: Any, lead: tuple[int, ...], shape: tuple[int, ...]
) -> Inexact[Tensor, " ..."]:
    """Values of the right shape, in float64 or complex128.

    Raises:
        ValueError: If the shape does not start with `lead`.
    """
    if not torch.is_tensor(values) or values.shape[: len(lead)] != lead:
        got = tuple(values.shape) if torch.is_tensor(values) else type(values).__name__
        raise ValueError(
            f"the function must return shape (n, *batch, *out), here {lead} and any further axes, "
            f"for points of shape {shape}; got {got}."
        )
    if values.dtype == torch.float64:
        return values
    return values.to(torch.complex128 if values.is_complex() else torch.float64)


CHANGED = (
    "the integrand must not change its argument in place: write `x = x + 1` for `x += 1`, "
    "or clone."
)


def version_of(x: Tensor) -> int:
    """How often a tensor has been changed in place."""
    untracked = torch.compiler.is_compiling() or x.is_inference()
    return 0 if untracked else x._version
