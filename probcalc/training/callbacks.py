"""What watches a run: when to stop it, what to average, and what broke."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when the loss that is watched no longer falls, and keep the best parameters.

    The loss is that of the validation data where there are any, else the mean of the epoch.

    Args:
        patience: Epochs without a better loss after which the run ends.
        min_delta: A loss is better if it is lower by more than this.
    """

    patience: int = 10
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If the patience is not positive, or the difference negative.
        """
        if self.patience < 1 or not self.min_delta >= 0:
            raise ValueError(
                "`EarlyStopping` needs patience >= 1 and min_delta >= 0, got "
                f"{self.patience}, {self.min_delta}."
            )


class Best:
    """The least loss so far, and the parameters that had it."""

    def __init__(self, settings: EarlyStopping) -> None:
        self.settings, self.loss, self.waited = settings, math.inf, 0
        self.tensors: dict[str, Tensor] = {}

    def exhausted(self, loss: float, tensors: dict[str, Tensor]) -> bool:
        """Digest the loss of an epoch; whether patience is at an end."""
        if loss < self.loss - self.settings.min_delta:
            self.loss, self.waited = loss, 0
            self.tensors = {name: t.detach().clone() for name, t in tensors.items()}
        else:
            self.waited += 1
        return self.waited >= self.settings.patience


class Averaged:
    r"""Exponential moving average of parameters: ā ← d ā + (1 − d) θ.

    Polyak & Juditsky (1992), SIAM J. Control Optim. 30, with weights that forget.
    """

    def __init__(self, decay: float, params: dict[str, Tensor]) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"`ema` is a decay between 0 and 1, such as 0.999, got {decay}.")
        self.tensors = {name: p.detach().clone() for name, p in params.items()}
        self._current = [p.detach() for p in params.values()]
        self._average = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """After a step."""
        self._average(list(self.tensors.values()), self._current, None)


def broken_tensors(loss: Tensor, params: dict[str, Tensor]) -> list[str]:
    """Names of what is not finite: the loss, gradients, parameters."""
    names = [] if bool(loss.isfinite().all()) else ["loss"]
    for name, p in params.items():
        if p.grad is not None and not bool(p.grad.isfinite().all()):
            names.append(f"gradient of {name}")
        if not bool(p.isfinite().all()):
            names.append(name)
    return names


def first_broken_module(module: nn.Module, run: Any) -> str | None:
    """The first submodule whose output is not finite when `run()` is called, by name."""
    found: list[str] = []

    def hook(name: str) -> Any:
        def look(_: nn.Module, __: Any, output: Any) -> None:
            leaves = output if isinstance(output, (tuple, list)) else [output]
            if any(torch.is_tensor(t) and not bool(t.isfinite().all()) for t in leaves):
                found.append(name)

        return look

    handles = [m.register_forward_hook(hook(name)) for name, m in module.named_modules() if name]
    try:
        with torch.enable_grad():  # an objective may differentiate itself
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
