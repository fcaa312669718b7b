r"""Environments whose probabilities are known: the return, its gradient and its optimum, exactly.

    V = (I − γ P_π)⁻¹ r_π,      J = μ·V,      ∇J by derivatives through the solution
    V*(s) = max_a Σ_s' p(s'|s, a) (r + γ V*(s'))

P_π counts only steps after which the episode goes on. Sutton & Barto (2018), Reinforcement
learning, sections 3.5 and 4.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Tabular:
    """A finite environment.

    Args:
        probability: Of the next state, ``[state, action, next]``.
        reward: Of that step.
        ends: Whether it ends the episode.
        start: Probabilities of first states.
    """

    probability: Float[Tensor, "s a s"]
    reward: Float[Tensor, "s a s"]
    ends: Bool[Tensor, "s a s"]
    start: Float[Tensor, " s"]

    def __post_init__(self) -> None:
        """Check the sums.

        Raises:
            ValueError: If probabilities do not add up to one.
        """
        sums = torch.cat([self.probability.sum(dim=-1).flatten(), self.start.sum().reshape(1)])
        if not torch.allclose(sums, torch.ones_like(sums)):
            raise ValueError("probabilities of next states and of starts must each add up to 1.")

    @classmethod
    def from_gymnasium(cls, environment: Any) -> Tabular:
        """Of an environment with a table `P`, such as FrozenLake, CliffWalking or Taxi.

        Raises:
            ValueError: If there is no table.
        """
        bare = environment.unwrapped
        table = getattr(bare, "P", None)
        if table is None:
            raise ValueError(
                f"{environment} has no table `P` of its probabilities: only environments such as "
                "FrozenLake have."
            )
        s, a = len(table), len(table[0])
        p, r = (torch.zeros(s, a, s, dtype=torch.float64) for _ in range(2))
        ends = torch.zeros(s, a, s, dtype=torch.bool)
        for i, choices in table.items():
            for j, ways in choices.items():
                for chance, k, reward, ended in ways:
                    p[i, j, k] += chance
                    r[i, j, k], ends[i, j, k] = float(reward), bool(ended)
        start = torch.as_tensor(bare.initial_state_distrib, dtype=torch.float64)
        return cls(p, r, ends, start)

    @property
    def num_states(self) -> int:
        """States."""
        return len(self.start)

    @property
    def num_actions(self) -> int:
        """Actions in each."""
        return self.probability.shape[1]

    def to(self, device: torch.device | str) -> Tabular:
        """On a device."""
        fields = (self.probability, self.reward, self.ends, self.start)
        return Tabular(*(t.to(device) for t in fields))

    def values(self, policy: Float[Tensor, "s a"], discount: float | int) -> Float[Tensor, " s"]:
        """Expected return from every state, differentiable.

        Args:
            policy: Probabilities of actions.
            discount: γ.
        """
        way = policy.double().unsqueeze(-1) * self.probability
        onwards = (way * ~self.ends).sum(dim=1)
        gain = (way * self.reward).sum(dim=(1, 2))
        identity = torch.eye(self.num_states, dtype=way.dtype, device=way.device)
        return torch.linalg.solve(identity - discount * onwards, gain)

    def expected_return(
        self, policy: Float[Tensor, "s a"], discount: float | int
    ) -> Float[Tensor, ""]:
        """J: from the start."""
        return self.start @ self.values(policy, discount)

    def optimal_values(
        self, discount: float | int, *, horizon: int | None = None, tolerance: float = 1e-12
    ) -> Float[Tensor, " s"]:
        """The best expected return from every state.

        Args:
            discount: γ.
            horizon: Steps that are left; None for as many as it takes.
            tolerance: Change of a sweep at which it ends.
        """
        value = torch.zeros_like(self.start)
        sweep = 0
        while horizon is None or sweep < horizon:
            after = torch.where(self.ends, 0.0, value)
            new = (self.probability * (self.reward + discount * after)).sum(-1).amax(dim=1)
            still = bool((new - value).abs().max() <= tolerance)
            value, sweep = new, sweep + 1
            if still and horizon is None:
                break
        return value
