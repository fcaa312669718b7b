"""A trained policy: what it does, what it is worth, and how training went."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc._random import child, draw_seed
from probcalc.policy.environments import Environment
from probcalc.policy.evaluation import expected_return
from probcalc.policy.failures import Failure
from probcalc.policy.networks import ActorCritic
from probcalc.result import Estimate
from probcalc.training.checkpoint import load_checkpoint, save_checkpoint
from probcalc.training.loop import TrainResult


@dataclass(frozen=True, eq=False)
class PolicyFit:
    """A policy with its values.

    Args:
        policy: Networks, and moments of observations and rewards.
        environment: Where it was trained.
        training: How it went; None for a policy from a file.
        evaluations: Environment steps, mean return and its standard error of each.
        failures: Modes that were met on the way.
        diagnostics: `steps` of the environment, and whether a resumed run is `exact_resume`.
    """

    policy: ActorCritic
    environment: Environment
    training: TrainResult | None
    evaluations: tuple[tuple[float, ...], ...] = ()
    failures: tuple[Failure, ...] = ()
    diagnostics: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether training met nothing that is not finite."""
        return self.training is None or self.training.ok

    @torch.no_grad()
    def act(
        self,
        observation: Float[Tensor, " n *o"],
        *,
        best: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Actions, the most probable ones or drawn."""
        outputs = self.policy.outputs(observation)
        if best:
            return self.policy.head.best(outputs)
        stream = child(draw_seed(generator), 0, outputs.device)
        return self.policy.head.draw(outputs, stream)

    def evaluate(
        self,
        num_episodes: int = 100,
        *,
        best: bool = True,
        environment: Environment | None = None,
        confidence: float = 0.99,
        generator: torch.Generator | None = None,
    ) -> Estimate:
        """Mean return over new episodes, undiscounted, with its bar.

        Args:
            num_episodes: At least 2.
            best: Whether the most probable actions are taken, or actions are drawn.
            environment: Copies to act in; None: others like those of the training.
            confidence: Of the bar.
            generator: Source of starts and actions.

        Returns:
            Estimate with `returns` and `lengths` in its diagnostics.
        """
        where = environment or self.environment.copies(num_episodes)
        seed = draw_seed(generator)
        return expected_return(
            self.policy, where, num_episodes, seed, best=best, confidence=confidence
        )

    def save(self, folder: Path | str) -> Path:
        """Write the values to a folder, checked by sums, without code in it."""
        record = {"environment": self.environment.name}
        return save_checkpoint(Path(folder), 0, self.policy.state_dict(), record)

    def __repr__(self) -> str:
        told = [] if self.training is None else [repr(self.training)]
        if self.evaluations:
            at, mean, error = max(self.evaluations, key=lambda e: e[1])
            told.append(f"best {mean:.4g} ± {error:.2g} after {at:,.0f} environment steps")
        return "; ".join([self.environment.name, *told, *(f.name for f in self.failures)])


def read(path: Path | str, policy: ActorCritic) -> None:
    """Put the values of a file into a policy.

    Raises:
        ValueError: If it is of another one.
    """
    tensors, _ = load_checkpoint(path)
    own = policy.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        shapes = [tuple(t[name].shape) if name in t else None for t in (tensors, own)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the file is of another policy: {name} has the shape {shapes[0]} there and "
                f"{shapes[1]} here."
            )
    policy.load_state_dict(tensors)
