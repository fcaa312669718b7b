"""Guides as a name and JSON settings, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any


def record_of(guide: Any, table: Mapping[str, type]) -> dict[str, Any]:
    """Name and settings of a guide, as JSON can hold them.

    Args:
        guide: The guide.
        table: Names of the families that can be rebuilt.

    Raises:
        ValueError: If it is none of the table's: a guide with a module, or one written by a user.
    """
    for name, family in table.items():
        if type(guide) is family:
            settings = asdict(guide)
            return {"guide": name, "settings": json.loads(json.dumps(settings))}
    raise ValueError(
        f"{type(guide).__name__} cannot be saved by its settings; families that can: "
        f"{', '.join(sorted(table))}. Keep its parameters instead (`posterior.params`, a dict of "
        "tensors), for example by `safetensors.torch.save_file`."
    )


def guide_of(record: Mapping[str, Any], table: Mapping[str, type]) -> Any:
    """The guide of a record.

    Raises:
        ValueError: If its name is not in the table.
    """
    name = record["guide"]
    if name not in table:
        raise ValueError(f"unknown guide {name!r}; known guides: {', '.join(sorted(table))}.")
    return table[name](**{key: _tuples(value) for key, value in record["settings"].items()})


def _tuples(value: Any) -> Any:
    """JSON has lists only."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
