"""Named tensors as one flat vector, and back; trees of tensors moved as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Layout:
    """Where each named tensor lies in a flat vector.

    >>> layout = Layout({"a": (), "b": (2,)})
    >>> layout.size, layout.labels
    (3, ('a', 'b[0]', 'b[1]'))
    >>> layout.unflatten(torch.arange(3.0))["b"]
    tensor([1., 2.])
    """

    shapes: dict[str, tuple[int, ...]]

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def labels(self) -> tuple[str, ...]:
        """One label an entry: ``mu``, ``theta[0]``, ``omega[1,0]``."""
        return tuple(
            name + (f"[{','.join(map(str, index))}]" if index else "")
            for name, shape in self.shapes.items()
            for index in _indices(shape)
        )

    def flatten(self, values: dict[str, Tensor]) -> Shaped[Tensor, "*batch size"]:
        """Concatenate along the last axis; leading axes of the values are kept and broadcast."""
        parts = []
        for name, shape in self.shapes.items():
            batch = values[name].shape[: values[name].ndim - len(shape)]
            parts.append(values[name].reshape((*batch, math.prod(shape))))
        batch = torch.broadcast_shapes(*(p.shape[:-1] for p in parts))
        return torch.cat([p.expand(*batch, p.shape[-1]) for p in parts], dim=-1)

    def unflatten(self, flat: Shaped[Tensor, "*batch size"]) -> dict[str, Tensor]:
        """Split the last axis into the named tensors."""
        values, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            values[name] = flat[..., start:stop].reshape((*flat.shape[:-1], *shape))
            start = stop
        return values


def _indices(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    indices: list[tuple[int, ...]] = [()]
    for size in shape:
        indices = [(*index, i) for index in indices for i in range(size)]
    return indices


def moved(tree: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The tree with its tensors on the device, floating ones in the dtype; the rest as it is."""

    def move(x: Any) -> Any:
        if not torch.is_tensor(x):
            return x
        return x.to(device, dtype) if x.is_floating_point() else x.to(device)

    return pytree.tree_map(move, tree)


def device_of(tree: Any, given: torch.device | str | None = None) -> torch.device:
    """The device given, else the one device of the tree's tensors, else the CPU.

    Raises:
        ValueError: If the tensors lie on several devices.
    """
    if given is not None:
        return torch.device(given)
    devices = {t.device for t in pytree.tree_leaves(tree) if torch.is_tensor(t)}
    if len(devices) > 1:
        raise ValueError(f"the data lie on several devices: {sorted(map(str, devices))}.")
    return devices.pop() if devices else torch.device("cpu")
