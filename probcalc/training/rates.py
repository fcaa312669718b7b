"""A learning rate from one short run in which it grows from tiny to too large.

Smith (2017), Cyclical learning rates for training neural networks, section 3.3.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from probcalc.optimization.first_order import Adam, FirstOrder
from probcalc.optimization.schedule import ExponentialSchedule
from probcalc.training.loop import Objective, train

_SMOOTHING = 0.9  # share of the mean loss that stays
_TOO_FAR = 4.0  # times the least mean loss: there the run ends
_EDGE = 5  # steps at which the mean is of too few


@dataclass(frozen=True, eq=False)
class LearningRates:
    """Losses by learning rate.

    Args:
        rates: Of the steps, shape ``(n)``.
        losses: Moving means of the losses, corrected for their start, same shape.
        suggestion: The rate at which the loss falls fastest.
    """

    rates: Tensor
    losses: Tensor
    suggestion: float


def find_learning_rate(
    objective: Objective,
    params_or_module: dict[str, Tensor] | nn.Module,
    data: Any = None,
    *,
    optimizer: FirstOrder | None = None,
    batch_size: int | None = None,
    low: float = 1e-6,
    high: float = 10.0,
    num_steps: int = 200,
    generator: torch.Generator | None = None,
) -> LearningRates:
    """Let the rate grow by equal factors, and see where the loss falls fastest.

    Parameters and module stay as they are.

    Args:
        objective: As of `train`.
        params_or_module: As of `train`.
        data: As of `train`.
        optimizer: Default `Adam()`; its own rate does not matter.
        batch_size: As of `train`.
        low: The first rate.
        high: The last one; the run ends before if the loss grows fourfold.
        num_steps: Steps from one to the other.
        generator: Source of randomness.

    Raises:
        ValueError: If the rates are not in order.
    """
    if not 0 < low < high:
        raise ValueError(f"rates must satisfy 0 < low < high, got {low}, {high}.")
    losses: list[float] = []

    def attach(engine: Engine) -> None:
        @engine.on(Events.ITERATION_COMPLETED)
        def watch(engine: Engine) -> None:
            mean = _moving([*losses, float(engine.state.output)])
            losses.append(float(engine.state.output))
            if not math.isfinite(mean[-1]) or mean[-1] - mean[0] > _TOO_FAR * abs(
                mean[0] - min(mean)
            ) + abs(mean[0]):
                engine.terminate()

    train(
        objective,
        copy.deepcopy(params_or_module),
        data,
        optimizer=replace(optimizer or Adam(), lr=low),
        batch_size=batch_size,
        max_steps=num_steps,
        schedule=ExponentialSchedule(num_steps, final=high / low),
        progress=False,
        callbacks=[attach],
        generator=generator,
    )
    mean = torch.tensor(_moving(losses), dtype=torch.float64)
    mean = mean[mean.isfinite()]
    steps = torch.arange(len(mean), dtype=torch.float64)
    rates = low * (high / low) ** (steps / num_steps)
    falls = mean.diff()
    falls[: min(_EDGE, len(falls) - 1)] = math.inf
    return LearningRates(rates, mean, float(rates[int(falls.argmin()) + 1]))


def _moving(losses: list[float]) -> list[float]:
    mean, found = 0.0, []
    for k, loss in enumerate(losses, start=1):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        found.append(mean / (1 - _SMOOTHING**k))
    return found
