"""What decides how copies of an environment go on, as JSON, and back: no code, no pickle.

Environments keep their state in attributes: numbers, arrays, generators. Those are taken from
every copy and every wrapper; what is anything else stays where it is. Whether that was all is
found out by trying (`Gymnasium.is_restorable`).
"""

from __future__ import annotations

from typing import Any

import numpy as np


def parts(vector: Any) -> list[Any]:
    """The vector environment, its copies, and their wrappers down to the bare ones."""
    inner = getattr(vector, "env", None)
    below = ([] if inner is None else [inner]) + list(getattr(vector, "envs", None) or ())
    return [vector, *(part for each in below for part in parts(each))]


_NUMBERS = (bool, int, float, str, type(None))


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Of attributes those that are numbers, arrays, generators, or tuples and lists of them."""
    told = {name: _told(value) for name, value in values.items()}
    return {name: value for name, value in told.items() if value is not NotImplemented}


def _told(value: Any) -> Any:
    if isinstance(value, _NUMBERS):
        return value
    if isinstance(value, np.random.Generator):
        return {"generator": _jsonable(value.bit_generator.state)}
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
        rows = np.asarray(value)
        return {"array": rows.tolist(), "dtype": str(rows.dtype), "shape": list(rows.shape)}
    if isinstance(value, (tuple, list)):
        parts = [_told(v) for v in value]
        if any(part is NotImplemented for part in parts):
            return NotImplemented
        return {type(value).__name__: parts} if type(value) in (tuple, list) else NotImplemented
    return NotImplemented


def rebuilt(told: Any, now: Any = None) -> Any:
    """The value, of what `plain` made of it; `now` is what is in its place."""
    if not isinstance(told, dict):
        return told
    if "generator" in told:
        made = now if isinstance(now, np.random.Generator) else np.random.default_rng()
        made.bit_generator.state = told["generator"]
        return made
    if "array" in told:
        made = np.array(told["array"], dtype=told["dtype"]).reshape(told["shape"])
        return made if made.ndim or isinstance(now, np.ndarray) else made[()]
    ((kind, parts),) = told.items()
    return {"tuple": tuple, "list": list}[kind](rebuilt(part) for part in parts)


def _jsonable(state: Any) -> Any:
    if isinstance(state, dict):
        return {k: _jsonable(v) for k, v in state.items()}
    return state.tolist() if isinstance(state, np.ndarray) else state
