"""Refusals: what must hold, what came, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Message for a name that is not in a table, nearest names first.

    >>> unknown_name("rule", "simpsn", ["simpson", "gauss"])
    "unknown rule 'simpsn'; did you mean 'simpson'? Known: gauss, simpson."
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"unknown {kind} {name!r};{hint} Known: {', '.join(known)}."


def require_finite(name: str, data: Any) -> None:
    """Refuse NaN and infinity in a tensor or a tree of tensors, naming row and column.

    Args:
        name: How the caller knows the data, for the message.
        data: Tensor or array, or a list, tuple or mapping of them; anything else is ignored.

    Raises:
        ValueError: Naming the first bad entry.
    """
    if isinstance(data, Mapping):
        for key, value in data.items():
            require_finite(f"{name}[{key!r}]", value)
    elif isinstance(data, (list, tuple)):
        for i, value in enumerate(data):
            require_finite(f"{name}[{i}]", value)
    elif isinstance(data, np.ndarray):
        if data.dtype.kind == "f":
            require_finite(name, torch.from_numpy(data))
    elif torch.is_tensor(data) and data.is_floating_point() and not data.isfinite().all():
        raise ValueError(_non_finite_message(name, data))


def _non_finite_message(name: str, data: Tensor) -> str:
    bad = (~data.isfinite()).nonzero()
    where = bad[0].tolist()
    value = data[tuple(where)].item()
    place = {0: "", 1: f" at row {where[0]}" if where else ""}.get(
        len(where), f" at row {where[0]}, column {where[1]}" if len(where) > 1 else ""
    )
    if len(where) > 2:
        place += f" (index {tuple(where)})"
    count = f"{len(bad)} such entries" if len(bad) > 1 else "1 such entry"
    return (
        f"`{name}` must be finite, got {value}{place}; {count} in shape {tuple(data.shape)}. "
        "Drop or impute the missing values before fitting."
    )
