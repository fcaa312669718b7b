"""A policy and its critic, with what they remember of the scale of observations and rewards."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcalc._random import child
from probcalc.policy.environments import Environment, Interval
from probcalc.policy.heads import Head, head_of

_SMALL = 1e-2  # scale of the policy's last layer: it starts near the flat distribution
_SPREAD = -0.5  # log scale of continuous actions at the start, in units of half their interval
_CLIP = 10.0  # standard deviations beyond which observations are cut
MEASURES = ("entropy", "kl", "clipped", "signal", "signal error")


class Perceptron(nn.Module):
    """Layers with tanh between them, few calls each: small ones are all overhead.

    Args:
        widths: Inputs, hidden layers, outputs.
        generator: Source of the orthogonal starts.
        last: Scale of the last layer's.
    """

    def __init__(
        self, widths: Sequence[int], generator: torch.Generator, last: float | int = 1.0
    ) -> None:
        super().__init__()
        pairs = list(zip(widths, widths[1:], strict=False))
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, (fan_in, fan_out) in enumerate(pairs):
            w = torch.empty(fan_in, fan_out)
            gain = last if i == len(pairs) - 1 else math.sqrt(2.0)
            nn.init.orthogonal_(w, gain, generator=generator)
            self.weights.append(nn.Parameter(w))
            self.biases.append(nn.Parameter(torch.zeros(fan_out)))
        self._layers: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        """Outputs."""
        layers = self._layers or self._listed()
        for w, b in layers[:-1]:
            x = torch.addmm(b, x, w).tanh_()
        w, b = layers[-1]
        return torch.addmm(b, x, w)

    def _listed(self) -> list[tuple[Tensor, Tensor]]:
        """Parameters in a plain list, which is read faster than a module."""
        self._layers = list(zip(self.weights, self.biases, strict=True))
        return self._layers

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Perceptron:
        self._layers = []
        return super()._apply(fn, recurse)

    def __deepcopy__(self, memo: dict) -> Perceptron:
        self._layers = []
        made = self.__class__.__new__(self.__class__)
        memo[id(self)] = made
        made.__dict__ = copy.deepcopy(self.__dict__, memo)
        return made


class QuadraticCritic(nn.Module):
    """A value that is quadratic in the entries of the state, fitted by least squares.

    Args:
        size: Entries.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1 + size + size * (size + 1) // 2))

    def forward(self, x: Float[Tensor, "n i"]) -> Float[Tensor, " n"]:
        """Values."""
        return self._terms(x) @ self.weight

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "n i"], values: Float[Tensor, " n"]) -> None:
        """Take the weights of least squares, found in float64."""
        rows = self._terms(x.double())
        self.weight.copy_(torch.linalg.lstsq(rows, values.double()[:, None]).solution[:, 0])

    @staticmethod
    def _terms(x: Tensor) -> Tensor:
        i, j = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
        return torch.cat([torch.ones_like(x[:, :1]), x, x[:, i] * x[:, j]], dim=1)


class ActorCritic(nn.Module):
    """Outputs of the policy, values of the critic.

    Args:
        environment: Whose observations come and whose actions go.
        hidden: Widths of both networks.
        seed: Of their starts.
        actor: A module from observations to `num_outputs` numbers, in place of a perceptron.
        critic: A module from observations to one number; None for a perceptron.
        has_critic: Whether there is one at all.
        normalizes: Whether observations are brought to mean 0 and variance 1.
    """

    centre: Tensor | None
    observation_mean: Tensor
    observation_var: Tensor
    observation_count: Tensor
    return_var: Tensor
    return_count: Tensor
    measured: Tensor

    def __init__(
        self,
        environment: Environment,
        hidden: Sequence[int],
        seed: int,
        *,
        actor: nn.Module | None = None,
        critic: nn.Module | None = None,
        has_critic: bool = True,
        normalizes: bool = False,
    ) -> None:
        super().__init__()
        self.shape = environment.observation_shape
        self.head: Head = head_of(environment.actions)
        self.normalizes = normalizes
        size = math.prod(self.shape)
        outputs = environment.actions.num_outputs
        stream = child(seed, 0)
        self.actor = copy.deepcopy(actor) or Perceptron((size, *hidden, outputs), stream, _SMALL)
        self.critic = (
            copy.deepcopy(critic) or Perceptron((size, *hidden, 1), stream) if has_critic else None
        )
        self._flat = isinstance(self.actor, Perceptron), isinstance(self.critic, Perceptron)
        self.log_scale, middle = None, None
        if isinstance(environment.actions, Interval):
            low, high = environment.actions.low, environment.actions.high
            half = torch.where((high - low).isfinite(), (high - low) / 2, 1.0)
            self.log_scale = nn.Parameter(half.log() + _SPREAD)
            middle = torch.where((high - low).isfinite(), (high + low) / 2, 0.0)
        self.register_buffer("centre", middle)
        self.register_buffer("observation_mean", torch.zeros(self.shape))
        self.register_buffer("observation_var", torch.ones(self.shape))
        self.register_buffer("observation_count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("return_var", torch.ones(()))
        self.register_buffer("return_count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("measured", torch.zeros(len(MEASURES)))

    def outputs(self, observation: Float[Tensor, " n *o"]) -> Float[Tensor, "n k"]:
        """Numbers of the distributions of actions."""
        x = self.normalized(observation)
        y = self.actor(x.flatten(1) if self._flat[0] else x)
        if self.log_scale is None:
            return y
        return torch.cat([self.centre + y, self.log_scale.expand_as(y)], dim=-1)

    def value(self, observation: Float[Tensor, " n *o"]) -> Float[Tensor, " n"]:
        """The critic's estimates of the return from here on."""
        x = self.normalized(observation)
        return self.critic(x.flatten(1) if self._flat[1] else x).reshape(len(x))

    def normalized(self, observation: Tensor) -> Tensor:
        """Observations as the networks see them."""
        if not self.normalizes:
            return observation
        scale = (self.observation_var + 1e-8).rsqrt()
        return ((observation - self.observation_mean) * scale).clamp(-_CLIP, _CLIP)

    @torch.no_grad()
    def see(self, observations: Float[Tensor, " n *o"]) -> None:
        """Take observations into their mean and variance: Chan, Golub & LeVeque (1983)."""
        m = len(observations)
        n = float(self.observation_count)
        var, mean = torch.var_mean(observations.double(), dim=0, correction=0)
        away = mean - self.observation_mean
        total = n + m
        spread = self.observation_var * n + var * m + away.square() * (n * m / total)
        self.observation_mean.add_((away * (m / total)).to(self.observation_mean))
        self.observation_var.copy_(spread / total)
        self.observation_count.fill_(total)

    def check(self, observation: Float[Tensor, " n *o"]) -> None:
        """Refuse networks that give other numbers than are needed.

        Raises:
            ValueError: Naming what came.
        """
        expected = len(observation), self.head_inputs
        x = observation.flatten(1) if self._flat[0] else observation
        with torch.no_grad():
            came = self.actor(x)
            if tuple(came.shape) != expected:
                raise ValueError(
                    f"the policy must give {expected[1]} numbers an observation, shape "
                    f"{expected}, got {tuple(came.shape)}."
                )
            if self.critic is None:
                return
            came = self.critic(observation.flatten(1) if self._flat[1] else observation)
            if came.numel() != len(observation):
                raise ValueError(
                    f"the critic must give one number an observation, got {tuple(came.shape)} of "
                    f"{len(observation)}."
                )

    @property
    def head_inputs(self) -> int:
        """Numbers that the actor gives for an observation."""
        return self.head.num if hasattr(self.head, "num") else self.head.dim
