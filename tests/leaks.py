"""Global state that no test and no call of the library may leave changed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch
from pyro.poutine import runtime


def _filters() -> list[tuple]:
    # packages add filters for their own warnings, or their own modules, when first imported
    ours = "builtins", "probcalc"
    return [
        (action, message, category, module, line)
        for action, message, category, module, line in warnings.filters
        if message is None and module is None and category.__module__.startswith(ours)
    ]


WATCHED: dict[str, Callable[[], Any]] = {
    "torch default dtype": torch.get_default_dtype,
    "torch default device": torch.get_default_device,
    "torch gradient mode": torch.is_grad_enabled,
    "torch inference mode": torch.is_inference_mode_enabled,
    "torch anomaly mode": torch.is_anomaly_enabled,
    "torch deterministic algorithms": torch.are_deterministic_algorithms_enabled,
    "torch number of threads": torch.get_num_threads,
    "distribution validation": lambda: torch.distributions.Distribution._validate_args,
    "Pyro settings": pyro.settings.get,
    "Pyro parameter store": lambda: sorted(pyro.get_param_store().keys()),
    "Pyro handler stack": lambda: len(runtime._PYRO_STACK),
    "NumPy error state": np.geterr,
    "warnings filters": _filters,
    "root logger": lambda: (logging.root.level, list(logging.root.handlers)),
}


def snapshot() -> dict[str, Any]:
    """The state now."""
    return {name: read() for name, read in WATCHED.items()}


def changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two snapshots, by name."""
    return {name: (old, after[name]) for name, old in before.items() if after[name] != old}
