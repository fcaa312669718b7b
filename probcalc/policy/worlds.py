"""Environments in torch: thousands of copies in a few tensors, on any device.

A world says how states begin, how one step changes them and what of them is seen; clocks, ends and
new episodes are the same for all. On a GPU nothing is read on the host. The equations of the cart
and the pole: Barto, Sutton & Anderson (1983), with the constants of CartPole-v1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probcalc._random import child
from probcalc.policy.environments import Actions, Choices, Transition
from probcalc.policy.tabular import Tabular


class World:
    """Copies whose states are one tensor ``(n, ...)``; final.

    Args:
        dynamics: What begins, steps and shows states.
        num_envs: Copies.
        device: Where.
    """

    def __init__(
        self, dynamics: Any, num_envs: int = 8, device: torch.device | str = "cpu"
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"`num_envs` must be at least 1, got {num_envs}.")
        self.dynamics = dynamics.to(device)
        self.num_envs, self.device = num_envs, torch.device(device)
        self.name = type(dynamics).__name__
        self.actions: Actions = dynamics.actions
        self.observation_shape: tuple[int, ...] = dynamics.observation_shape
        self.reset(0)

    def reset(self, seed: int) -> Tensor:
        """Begin an episode in every copy."""
        self._generator = child(seed, 0, self.device)
        self._state = self.dynamics.begin(self.num_envs, self._generator)
        self._clock = torch.zeros(self.num_envs, dtype=torch.int32, device=self.device)
        return self.dynamics.show(self._state)

    def step(self, actions: Tensor) -> Transition:
        """One step of every copy."""
        state, reward, terminated = self.dynamics.advance(self._state, actions, self._generator)
        clock = self._clock + 1
        truncated = clock >= self.dynamics.max_steps
        ended = terminated | truncated
        seen = self.dynamics.show(state)
        if self.device.type == "cpu" and not bool(ended.any()):
            self._state, self._clock = state, clock
            return Transition(seen, reward, terminated, truncated)
        self._state = self._renewed(state, ended)
        self._clock = clock.masked_fill(ended, 0)
        return Transition(self.dynamics.show(self._state), reward, terminated, truncated, seen)

    def _renewed(self, state: Tensor, ended: Bool[Tensor, " n"]) -> Tensor:
        if self.device.type == "cpu":
            rows = ended.nonzero()[:, 0]
            return state.index_copy(0, rows, self.dynamics.begin(len(rows), self._generator))
        fresh = self.dynamics.begin(self.num_envs, self._generator)
        return torch.where(ended.reshape(-1, *[1] * (state.ndim - 1)), fresh, state)

    def copies(self, num: int) -> World:
        """Others like these."""
        return World(self.dynamics, num, self.device)

    def state(self) -> dict[str, Any]:
        """States, clocks and the generator."""
        generator = self._generator.get_state()
        return {"world": self._state, "clock": self._clock, "chance": generator}

    def restore(self, state: dict[str, Any]) -> None:
        """Go there."""
        self._state = state["world"].to(self.device)
        self._clock = state["clock"].to(self.device)
        self._generator.set_state(state["chance"])


class Bandit:
    """One choice of arms a whole episode; the only observation is a one.

    Args:
        means: Mean reward of every arm.
        noise: Standard deviation of rewards around it.
    """

    max_steps = 1
    observation_shape = (1,)

    def __init__(self, means: Float[Tensor, " k"], noise: float | int = 0.0) -> None:
        self.means, self.noise = means.detach().to(torch.get_default_dtype()), noise
        self.actions = Choices(len(means))

    def to(self, device: torch.device | str) -> Bandit:
        """On a device."""
        return Bandit(self.means.to(device), self.noise)

    def begin(self, n: int, generator: torch.Generator) -> Tensor:
        """Nothing to know."""
        return self.means.new_ones(n, 1)

    def advance(
        self, state: Tensor, actions: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The reward of the arms drawn."""
        reward = self.means[actions]
        if self.noise:
            eps = torch.empty_like(reward).normal_(generator=generator)
            reward = reward + self.noise * eps
        return state, reward, torch.ones_like(actions, dtype=torch.bool)

    def show(self, state: Tensor) -> Tensor:
        """A one."""
        return state


class Gridworld:
    """States and actions in tables, such as FrozenLake; an observation is one of as many ones.

    Args:
        table: Probabilities, rewards and ends.
        max_steps: Of an episode, after which it is truncated.
    """

    def __init__(self, table: Tabular, max_steps: int = 100) -> None:
        self.table, self.max_steps = table, max_steps
        self.actions = Choices(table.num_actions)
        self.observation_shape = (table.num_states,)
        self._reach = table.probability.cumsum(dim=-1)
        self._start = table.start.cumsum(dim=0)
        self._ones = torch.eye(table.num_states, device=table.start.device)

    def to(self, device: torch.device | str) -> Gridworld:
        """On a device."""
        return Gridworld(self.table.to(device), self.max_steps)

    def begin(self, n: int, generator: torch.Generator) -> Tensor:
        """States from the start's probabilities."""
        return self._drawn(self._start.expand(n, -1), generator)

    def advance(
        self, state: Tensor, actions: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next states."""
        after = self._drawn(self._reach[state, actions], generator)
        reward = self.table.reward[state, actions, after].to(torch.get_default_dtype())
        return after, reward, self.table.ends[state, actions, after]

    def show(self, state: Tensor) -> Tensor:
        """Which state it is."""
        return self._ones[state]

    @staticmethod
    def _drawn(reach: Float[Tensor, "n s"], generator: torch.Generator) -> Tensor:
        u = torch.rand(len(reach), 1, generator=generator, dtype=reach.dtype, device=reach.device)
        return (u >= reach[:, :-1]).sum(dim=-1)


class CartPole:
    """A pole on a cart that is pushed left or right; one for every step that it stands.

    Args:
        max_steps: Of an episode, after which it is truncated.
    """

    actions = Choices(2)
    observation_shape = (4,)

    def __init__(self, max_steps: int = 500) -> None:
        self.max_steps = max_steps

    def to(self, device: torch.device | str) -> CartPole:
        """The same everywhere."""
        self._device = torch.device(device)
        return self

    def begin(self, n: int, generator: torch.Generator) -> Tensor:
        """Near the upright rest."""
        empty = torch.empty(n, 4, device=generator.device)
        return empty.uniform_(-_START, _START, generator=generator)

    def advance(
        self, state: Tensor, actions: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A fiftieth of a second by Euler's rule."""
        x, v, angle, turn = state.unbind(dim=1)
        sine, cosine = angle.sin(), angle.cos()
        push = actions * (2 * _FORCE) - _FORCE
        thrust = (push + _POLE_MOMENT * turn.square() * sine) / _MASS
        denominator = _HALF_LENGTH * (4 / 3 - _POLE_MASS / _MASS * cosine.square())
        spin = (_GRAVITY * sine - cosine * thrust) / denominator
        drift = thrust - _POLE_MOMENT / _MASS * spin * cosine
        after = state + _TICK * torch.stack([v, drift, turn, spin], dim=1)
        fallen = (after[:, 0].abs() > _EDGE) | (after[:, 2].abs() > _TILT)
        return after, torch.ones_like(x), fallen

    def show(self, state: Tensor) -> Tensor:
        """All of it."""
        return state


_GRAVITY, _POLE_MASS, _MASS, _HALF_LENGTH = 9.8, 0.1, 1.1, 0.5
_POLE_MOMENT, _FORCE, _TICK = 0.05, 10.0, 0.02
_EDGE, _TILT, _START = 2.4, 12 * 2 * math.pi / 360, 0.05
