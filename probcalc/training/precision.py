"""Lower precision where it is safe: autocast, and the scale that keeps float16 gradients alive.

Micikevicius et al. (2018), Mixed precision training. Gradients are brought back to their own scale
before anything looks at them or shortens them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_KINDS = (torch.bfloat16, torch.float16)


class Precision:
    """Autocast and its scaler.

    Args:
        dtype: `torch.bfloat16`, `torch.float16`, or None for the precision of the parameters.
        device: Where the parameters are.
    """

    def __init__(self, dtype: torch.dtype | None, device: torch.device) -> None:
        if dtype is not None and dtype not in _KINDS:
            raise ValueError(f"`autocast` is torch.bfloat16 or torch.float16, got {dtype}.")
        if dtype == torch.float16 and device.type == "cpu":
            raise ValueError("a CPU has no use for float16: take torch.bfloat16.")
        self.dtype, self.device = dtype, device
        self.scaler = torch.amp.GradScaler(device.type) if dtype == torch.float16 else None

    def active(self) -> AbstractContextManager[Any]:
        """Compute in it."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring gradients back to their scale."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update, or skip it and lower the scale where float16 overflowed."""
        if self.scaler is None:
            optimizer.step()
            return
        self.scaler.step(optimizer)
        self.scaler.update()

    def state(self) -> dict[str, Any]:
        """What the next steps depend on."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Put it back."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)
