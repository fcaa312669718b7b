"""Data in parallel: the processes that `torchrun` starts share every batch.

Each takes its rows of the global batch, and gradients are summed by numbers of rows, so that the
steps are those of one process with the same batch, but for the order of sums. Buffers that
differ, such as running statistics, are averaged in the same way. Random numbers of
rows come from `rows_randn` and `rows_rand`, which draw for the whole batch from the generator that
all processes share and keep the own rows.
"""

from __future__ import annotations

import os
import warnings
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Share:
    """The part of a process.

    Args:
        rank: Its number.
        world: How many there are.
    """

    rank: int = 0
    world: int = 1

    def rows(self, n: int) -> slice:
        """Its rows of a batch of n; neighbours, and as many as the others' or one more."""
        return slice(n * self.rank // self.world, n * (self.rank + 1) // self.world)

    def of(self, batch: Any) -> Any:
        """Its rows of a batch of tensors."""
        if self.world == 1:
            return batch
        return pytree.tree_map(lambda t: t[self.rows(len(t))], batch)


ALONE = Share()
_current: ContextVar[tuple[Share, int | None]] = ContextVar("share", default=(ALONE, None))


def joined(device: torch.device) -> Share:
    """The share of this process; joins the others where `torchrun` started it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 and not (dist.is_available() and dist.is_initialized()):
        return ALONE
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Share(dist.get_rank(), dist.get_world_size())


def sum_gradients(leaves: list[Tensor], share: float) -> None:
    """Gradients weighed by the share of the rows, summed over the processes, in one message.

    A parameter without one in any process stays without: an optimiser is to pass over it.
    """
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in leaves]
    has = grads[0].new_tensor([p.grad is not None for p in leaves])
    flat = torch.cat([*(g.reshape(-1) * share for g in grads), has])
    dist.all_reduce(flat)
    *parts, has = flat.split([*(g.numel() for g in grads), len(leaves)])
    for p, part, some in zip(leaves, parts, has.tolist(), strict=True):
        p.grad = part.reshape_as(p) if some else None


def sum_scalars(values: Tensor, share: float) -> Tensor:
    """The same for losses and metrics."""
    total = values.detach() * share
    dist.all_reduce(total)
    return total


def sync_buffers(buffers: list[Tensor], weight: float) -> None:
    """Where buffers differ, the mean over processes by rows; whole numbers are the first's.

    What is the same in all processes stays as it is, to the bit.

    Args:
        buffers: In the same order everywhere.
        weight: Share of the rows that this process saw.
    """
    real = [b for b in buffers if b.is_floating_point()]
    whole = [b for b in buffers if not b.is_floating_point()]
    for kind, dtype in ((real, torch.float64), (whole, torch.int64)):
        if not kind:
            continue
        own = torch.cat([b.detach().reshape(-1).to(dtype) for b in kind])
        first = own.clone()
        dist.broadcast(first, 0)
        if dtype.is_floating_point:
            away = weight * (own - first)
            dist.all_reduce(away)
            first = first + away
        for b, part in zip(kind, first.split([b.numel() for b in kind]), strict=True):
            b.copy_(part.reshape(b.shape))


def largest(value: int, device: torch.device) -> int:
    """Of the numbers of all processes."""
    most = torch.tensor(value, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


def warn_of_norms(module: nn.Module | None, share: Share) -> None:
    """Say that layers which normalise by the rows at hand do not see those of other processes."""
    if share.world == 1 or share.rank or module is None:
        return
    names = [
        name
        for name, m in module.named_modules()
        if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm)
    ]
    if names:
        warnings.warn(
            f"{', '.join(names)} normalises by the rows of its own process, so steps are not "
            "those of one process; its running statistics are averaged. On GPUs "
            "`torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)` sees all rows; "
            "`torch.nn.GroupNorm` and `LayerNorm` need none but one.",
            stacklevel=2,
        )


def rows_randn(n: int, *shape: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Standard normal numbers ``(n, *shape)`` of n rows of a batch."""
    return _drawn(torch.randn, n, shape, generator, like)


def rows_rand(n: int, *shape: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Uniform numbers ``(n, *shape)`` of n rows of a batch."""
    return _drawn(torch.rand, n, shape, generator, like)


def among(n: int) -> tuple[int, slice]:
    """Rows of the whole batch that n rows at hand are a part of, and which of them these are."""
    share, whole = _current.get()
    if whole is None or n != len(range(whole)[share.rows(whole)]):
        return n, slice(None)
    return whole, share.rows(whole)


def _drawn(
    draw: Any, n: int, shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor
) -> Tensor:
    whole, own = among(n)
    kind = {"dtype": like.dtype, "device": like.device, "generator": generator}
    return draw(whole, *shape, **kind)[own]


class sharing:  # noqa: N801 (a context, written as a function is)
    """Evaluate a batch of `whole` rows, of which this process has its share."""

    def __init__(self, share: Share, whole: int | None) -> None:
        self.now = (share, whole if share.world > 1 else None)

    def __enter__(self) -> None:
        self.token = _current.set(self.now)

    def __exit__(self, *error: object) -> None:
        _current.reset(self.token)
