r"""Learning rates that change: factors of the step, without a state to lose.

    warm-up     k/w over the first w steps, then the rest of the schedule
    cosine      f + (1 − f) (1 + cos πt)/2,   linear  1 − (1 − f) t,   exponential  fᵗ

with t the share of the steps after the warm-up that is done, and f the factor at the end.
Loshchilov & Hutter (2017), SGDR, section 3; Goyal et al. (2017), section 2.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """A constant rate after a linear warm-up, and the base of the others.

    Args:
        num_steps: Length of the run; None for a rate that stays.
        warmup: Steps over which the rate rises from nothing.
        final: Factor at the end.

    >>> [round(CosineSchedule(10, warmup=2)(k), 3) for k in (0, 1, 2, 6, 10, 11)]
    [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    """

    num_steps: int | None = None
    warmup: int = 0
    final: float = 1.0

    def __post_init__(self) -> None:
        """Check the lengths.

        Raises:
            ValueError: If they are negative, or the warm-up is longer than the run.
        """
        if self.warmup < 0 or (self.num_steps is not None and self.num_steps <= self.warmup):
            raise ValueError(
                f"a schedule needs 0 <= warmup < num_steps, got {self.warmup}, {self.num_steps}."
            )
        if not self.final >= 0:
            raise ValueError(f"`final` must be a factor of at least 0, got {self.final}.")

    def __call__(self, step: int) -> float:
        """The factor of step number `step`, from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.num_steps is None:
            return 1.0
        return self.shape(min((step - self.warmup) / (self.num_steps - self.warmup), 1.0))

    def shape(self, done: float) -> float:
        """The factor at a share of the steps after the warm-up."""
        return 1.0


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """Half a wave from one down to `final`."""

    final: float = 0.0

    def shape(self, done: float) -> float:
        """The factor at a share of the steps after the warm-up."""
        return self.final + 0.5 * (1 - self.final) * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """A straight line from one down to `final`."""

    final: float = 0.0

    def shape(self, done: float) -> float:
        """The factor at a share of the steps after the warm-up."""
        return 1 - (1 - self.final) * done


@dataclass(frozen=True)
class ExponentialSchedule(Schedule):
    """Equal factors a step, `final` of them all; above one it grows."""

    final: float = 0.01

    def shape(self, done: float) -> float:
        """The factor at a share of the steps after the warm-up."""
        return self.final**done
