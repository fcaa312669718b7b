"""Mini-batches without end, from tensors in memory or from a loader, at a place one can return to.

In memory the order of an epoch is a permutation that only the run's seed and the epoch's number
decide. A loader draws its order from torch's default generator: the state of that at the start of
the epoch is kept, and going back means to pass over the batches that were seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from probcalc._check import require_finite
from probcalc._random import child, restore_global_states


class SourceFault(RuntimeError):
    """A source cannot make its next batch; the run saves its state, and passes this on."""


@runtime_checkable
class Source(Protocol):
    """Batches that are made while training goes on, such as rollouts of a policy.

    Where `__next__` raises `SourceFault`, the source is to be as it was before.
    """

    length: int | None  # of an epoch; None where there are none
    rows: Tensor | None  # of the batch at hand, for reports

    def __next__(self) -> Any:
        """The next batch, on the device of the parameters."""
        ...

    def state(self) -> dict[str, Any]:
        """Where it is: tensors by name, and what JSON can hold."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go there; tensors come on the CPU."""
        ...


def batches_of(
    data: Any, batch_size: int | None, seed: int, device: torch.device
) -> Nothing | InMemory | Loaded | Source:
    """Mini-batches of whatever data there are.

    Args:
        data: None; tensors (one, or a tuple, list or dict of them) with the observations along
            the first axis; an iterable of batches, such as a `DataLoader`; or a `Source`.
        batch_size: Of tensors; None for all of them at once.
        seed: Of the order.
        device: Where batches are needed.

    Raises:
        ValueError: If there are no observations, tensors differ in their number, a number is not
            finite, or the batch size is not positive.
        TypeError: If the data are none of these.
    """
    if data is None:
        return Nothing()
    if isinstance(data, Source):
        return data
    leaves = pytree.tree_leaves(data) if isinstance(data, (Tensor, tuple, list, dict)) else []
    if leaves and all(torch.is_tensor(leaf) for leaf in leaves):
        return InMemory(data, batch_size, seed, device)
    if not isinstance(data, Iterable):
        raise TypeError(
            "`data` must be tensors (one, or a tuple or dict of them) or an iterable of batches, "
            f"got {type(data).__name__}."
        )
    if batch_size is not None:
        raise ValueError("`batch_size` is for tensors: a loader has its own.")
    return Loaded(data, device)


class Nothing:
    """No data: every batch is None."""

    length: int | None = None
    rows: Tensor | None = None

    def __next__(self) -> None:
        return None

    def state(self) -> dict[str, Any]:
        """Where it is: nowhere."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """There is nothing to restore."""


class InMemory:
    """Tensors, shuffled anew every epoch; the last batch of an epoch may be smaller."""

    def __init__(self, data: Any, batch_size: int | None, seed: int, device: torch.device) -> None:
        leaves = pytree.tree_leaves(data)
        sizes = {tuple(leaf.shape): leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}
        if len(set(sizes.values())) != 1:
            raise ValueError(
                "tensors of `data` must have the same number of rows, got the shapes "
                f"{', '.join(map(str, sizes))}."
            )
        self.n = next(iter(sizes.values()))
        if self.n == 0:
            raise ValueError("`data` has no rows: there is nothing to learn from.")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        require_finite("data", data)
        self.data, self.seed, self.device = data, seed, device
        self.size = min(batch_size or self.n, self.n)
        self.length: int | None = math.ceil(self.n / self.size)
        self.epoch, self.index = 0, 0
        self.order: Tensor | None = None
        self.rows: Tensor | None = None
        self.pick: Callable[[Tensor], Tensor] = self._picked

    def __next__(self) -> Any:
        if self.size == self.n:
            self._advance()
            return self._on_device(self.data)
        if self.order is None:
            generator = child(self.seed, self.epoch)
            self.order = torch.randperm(self.n, generator=generator)
        self.rows = self.order[self.index * self.size : (self.index + 1) * self.size]
        self._advance()
        if torch.is_tensor(self.data):
            return self.pick(self.data)
        if isinstance(self.data, (tuple, list)):
            return type(self.data)(map(self.pick, self.data))
        return pytree.tree_map(self.pick, self.data)

    def _picked(self, t: Tensor) -> Tensor:
        rows = self.rows if t.device.type == "cpu" else self.rows.to(t.device)
        found = t.index_select(0, rows)
        return found if found.device == self.device else found.to(self.device)

    def _on_device(self, tree: Any) -> Any:
        return pytree.tree_map(lambda t: t.to(self.device), tree)

    def _advance(self) -> None:
        self.index += 1
        if self.index == self.length:
            self.epoch, self.index, self.order = self.epoch + 1, 0, None

    def state(self) -> dict[str, Any]:
        """Where it is."""
        return {"epoch": self.epoch, "index": self.index, "rows": self.n, "size": self.size}

    def restore(self, state: dict[str, Any]) -> None:
        """Go there.

        Raises:
            ValueError: If the data or the batch size are not those of that run.
        """
        if (state.get("rows"), state.get("size")) != (self.n, self.size):
            raise ValueError(
                f"the run had batches of {state.get('size')} of {state.get('rows')} rows, and now "
                f"there are {self.size} of {self.n}: it cannot go on."
            )
        self.epoch, self.index, self.order = state["epoch"], state["index"], None


class Loaded:
    """Batches of a `DataLoader` or another iterable, which is begun anew when it ends."""

    rows: Tensor | None = None

    def __init__(self, data: Iterable[Any], device: torch.device) -> None:
        self.data, self.device = data, device
        self.length = len(data) if isinstance(data, Sized) else None
        self.index, self.source = 0, None
        self.begun: list[int] | None = None  # state of torch's generator at the epoch's start

    def __next__(self) -> Any:
        if self.source is None:
            self._begin()
        try:
            batch = next(self.source)
        except StopIteration:
            if self.index == 0:
                raise ValueError(
                    "`data` yields no batches, or cannot be iterated twice."
                ) from None
            self._begin()
            return next(self)
        self.index += 1
        if self.index == self.length:
            self.source = None
        return pytree.tree_map(lambda t: t.to(self.device) if torch.is_tensor(t) else t, batch)

    def _begin(self) -> None:
        self.begun = torch.get_rng_state().tolist()
        self.source, self.index = iter(self.data), 0

    source: Iterator[Any] | None

    def state(self) -> dict[str, Any]:
        """Where it is."""
        ended = self.source is None
        return {"index": 0 if ended else self.index, "begun": None if ended else self.begun}

    def restore(self, state: dict[str, Any]) -> None:
        """Go there, past what was seen."""
        if state["begun"] is None:
            return
        now = torch.get_rng_state()
        restore_global_states({"cpu": torch.tensor(state["begun"], dtype=torch.uint8)}, {})
        self._begin()
        for _ in range(state["index"]):
            next(self)
        restore_global_states({"cpu": now}, {})
