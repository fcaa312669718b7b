"""Random numbers from one seed a call.

A public function draws one seed from its `generator` (None: torch's default one) and derives
every stream that it needs from that seed, so that the caller's generator advances by one draw
whatever the work's size, and the same seed gives the same answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SEED_RANGE = 2**62  # stays inside int64 after the stream number is mixed in
_MIX = 0x9E3779B97F4A7C15  # golden-ratio increment of SplitMix64 (Steele et al. 2014)


def draw_seed(generator: torch.Generator | None) -> int:
    """One seed, taken from the generator (None: torch's default generator)."""
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(_SEED_RANGE, (), generator=generator, device=device))


def child(seed: int, stream: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Generator number `stream` of a seed; different streams are unrelated."""
    mixed = (seed + (stream + 1) * _MIX) % 2**64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % 2**64
    return torch.Generator(device).manual_seed((mixed ^ (mixed >> 31)) % 2**63)


@contextmanager
def forked(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run code that draws from torch's default generator, leaving that generator untouched.

    The only place in the library that seeds it: for user models whose samplers take no
    generator.
    """
    device = torch.device(device)
    devices = [device] if device.type != "cpu" else []
    with torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"):
        # not `torch.manual_seed`, which formats a stack trace for devices that nobody uses yet
        torch.default_generator.manual_seed(seed % 2**63)
        if devices:
            backend = getattr(torch, device.type)
            with backend.device(device):  # the one that draws, which need not be the current one
                backend.manual_seed(seed % 2**63)
        yield


def global_states() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """States of the generators that everybody shares: torch's, NumPy's and Python's.

    Returns:
        Those of torch by device, as tensors, and the others in what JSON can hold.
    """
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        tensors |= {f"cuda{i}": t for i, t in enumerate(torch.cuda.get_rng_state_all())}
    version, numbers, spare = random.getstate()
    legacy = np.random.get_state(legacy=False)
    legacy["state"] = {**legacy["state"], "key": legacy["state"]["key"].tolist()}
    return tensors, {"python": [version, list(numbers), spare], "numpy": legacy}


def restore_global_states(tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Put back what `global_states` returned, or a part of it: a run goes on where it stopped."""
    for device, state in tensors.items():
        if device == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, int(device.removeprefix("cuda")))
    if "python" in record:
        version, numbers, spare = record["python"]
        random.setstate((version, tuple(numbers), spare))
    if "numpy" in record:
        legacy = record["numpy"]
        key = np.array(legacy["state"]["key"], dtype=np.uint32)
        np.random.set_state({**legacy, "state": {**legacy["state"], "key": key}})
