"""What a policy acts in: many copies of one environment, and what a step of all of them gives.

The end of an episode is one of two things. *Terminated*: the task is over, nothing follows.
*Truncated*: a clock ran out, and what would have followed counts; its value is taken from the last
observation. A copy whose episode has ended begins a new one by itself, either within the step that
ended it (`final` then holds the last observation) or within the next one, which is then no step of
the task at all (`void`). Towers et al. (2024), Gymnasium, section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probcalc.training.batches import SourceFault


class EnvironmentFault(SourceFault):
    """An environment raised, or gave numbers that are none."""


@dataclass(frozen=True)
class Choices:
    """Actions 0 to `num` − 1.

    Args:
        num: How many.
    """

    num: int

    @property
    def num_outputs(self) -> int:
        """Numbers that a policy gives for an observation: a logit each."""
        return self.num


@dataclass(frozen=True, eq=False)
class Interval:
    """Vectors of numbers between bounds, which may be infinite.

    Args:
        low: Least action.
        high: Greatest action.
    """

    low: Float[Tensor, " d"]
    high: Float[Tensor, " d"]

    @property
    def num_outputs(self) -> int:
        """Numbers that a policy gives for an observation: a mean each."""
        return len(self.low)


Actions = Choices | Interval


@dataclass(frozen=True, eq=False)
class Transition:
    """What one step of n copies gave.

    Args:
        observation: What the copies show now, to act on.
        reward: Of the step.
        terminated: Whether the task ended.
        truncated: Whether a clock ended the episode.
        final: Where an episode ended within this step and another began: the last observation of
            the old one. None where `observation` is that.
        void: Copies that only began anew, so that this was no step of theirs; None for none.
    """

    observation: Float[Tensor, " n *o"]
    reward: Float[Tensor, " n"]
    terminated: Bool[Tensor, " n"]
    truncated: Bool[Tensor, " n"]
    final: Float[Tensor, " n *o"] | None = None
    void: Bool[Tensor, " n"] | None = None


@runtime_checkable
class Environment(Protocol):
    """Copies of an environment that are stepped together."""

    name: str
    num_envs: int
    observation_shape: tuple[int, ...]
    actions: Actions
    device: torch.device

    def reset(self, seed: int) -> Float[Tensor, " n *o"]:
        """Begin an episode in every copy; the seed decides all that follows."""
        ...

    def step(self, actions: Tensor) -> Transition:
        """One step of every copy."""
        ...

    def copies(self, num: int) -> Environment:
        """The same with another number of copies, apart from these."""
        ...

    def state(self) -> dict[str, Any] | None:
        """All that decides what follows, as tensors and JSON by name; None where it is hidden."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go there."""
        ...
