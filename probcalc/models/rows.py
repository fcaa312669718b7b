"""Rows that a generative model is given, and models that are read back from files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probcalc._check import require_finite
from probcalc._random import forked
from probcalc.training.checkpoint import load_checkpoint


def checked(name: str, x: Tensor, kind: Any) -> Tensor:
    """Rows that a likelihood, or a kind of data, takes.

    Raises:
        ValueError: If there are none, or numbers are not finite or of another kind.
    """
    if x.ndim < 2 or not len(x):
        raise ValueError(f"`{name}` must be rows (n, *event), n at least 1: got {tuple(x.shape)}.")
    if not x.is_floating_point():
        x = x.to(torch.get_default_dtype())
    require_finite(name, x)
    kind.check(x)
    return x


def joined(x: Tensor, condition: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
    """Rows and their conditions, as `train` takes them.

    Raises:
        ValueError: If their numbers differ.
    """
    if condition is None:
        return x
    if condition.ndim != 2 or len(condition) != len(x):
        raise ValueError(
            f"`condition` must have shape ({len(x)}, c), got {tuple(condition.shape)}."
        )
    return x, condition.to(x)


def loaded(
    path: Path | str, sample: str, build: Callable[[Tensor, int], nn.Module]
) -> tuple[nn.Module, dict[str, Any]]:
    """A module with the values of a file, and what the file says beside them.

    Args:
        path: Folder or file.
        sample: Name of a tensor that has the model's precision.
        build: From two rows of zeros and the width of conditions to the structure.

    Raises:
        CheckpointError: If the file is damaged, or no file of ours.
        ValueError: If it is of another model.
    """
    tensors, record = load_checkpoint(path)
    if sample not in tensors or "event" not in record:
        raise ValueError(f"the file is of another model: it holds {', '.join(tensors)}.")
    example = torch.zeros(2, *record["event"], dtype=tensors[sample].dtype)
    module = build(example, record["condition"])
    own = module.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        shapes = [tuple(t[name].shape) if name in t else None for t in (tensors, own)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the file is of another model: {name} has the shape {shapes[0]} there and "
                f"{shapes[1]} here."
            )
    module.load_state_dict(tensors)
    return module, record


def seeded(build: Callable[[], Any], seed: int) -> Any:
    """What a function builds whose modules draw their values from torch's default generator."""
    with forked(seed):
        return build()
