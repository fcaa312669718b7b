"""What a network's numbers mean: distributions of actions.

    choices     π(a|s) = softmax(f(s))_a
    vectors     π(a|s) = N(a; f(s), σ²),  σ learned and of no observation

An action beyond the bounds of an interval is drawn and scored as it is, and clipped where it is
given to the environment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.policy.environments import Actions, Choices

_FLAT = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class CategoricalHead:
    """One of `num` choices, from logits ``(..., num)``."""

    num: int

    def draw(self, outputs: Float[Tensor, "n k"], generator: torch.Generator) -> Tensor:
        """Actions ``(n)``: the least of exponential waiting times with rates π.

        Of two choices the second where a logistic variate is below the difference of logits.
        """
        if self.num == 2:
            u = torch.empty_like(outputs[:, 0]).uniform_(generator=generator)
            return (u.logit() < outputs[:, 1] - outputs[:, 0]).long()
        waits = torch.empty_like(outputs).exponential_(generator=generator)
        return (outputs - waits.log()).argmax(dim=-1)

    def best(self, outputs: Float[Tensor, "n k"]) -> Tensor:
        """The most probable actions."""
        return outputs.argmax(dim=-1)

    def log_prob(self, outputs: Float[Tensor, "*n k"], actions: Tensor) -> Float[Tensor, "*n"]:
        """Ln π(a|s)."""
        return outputs.log_softmax(dim=-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self, outputs: Float[Tensor, "*n k"]) -> Float[Tensor, "*n"]:
        """Of every distribution, in nats."""
        log_p = outputs.log_softmax(dim=-1)
        return -(log_p.exp() * log_p).sum(dim=-1)

    def kl(self, old: Float[Tensor, "*n k"], new: Float[Tensor, "*n k"]) -> Float[Tensor, "*n"]:
        """KL(old ‖ new)."""
        log_p, log_q = old.log_softmax(dim=-1), new.log_softmax(dim=-1)
        return (log_p.exp() * (log_p - log_q)).sum(dim=-1)

    @property
    def most_entropy(self) -> float:
        """Of the flat distribution, against which determinism is measured."""
        return math.log(self.num)


@dataclass(frozen=True)
class NormalHead:
    """Vectors, from means and log scales side by side ``(..., 2 d)``."""

    dim: int

    def draw(self, outputs: Float[Tensor, "n k"], generator: torch.Generator) -> Tensor:
        """Actions ``(n, d)``."""
        loc, log_scale = outputs.chunk(2, dim=-1)
        noise = torch.empty_like(loc).normal_(generator=generator)
        return loc + log_scale.exp() * noise

    def best(self, outputs: Float[Tensor, "n k"]) -> Tensor:
        """Means."""
        return outputs.chunk(2, dim=-1)[0]

    def log_prob(self, outputs: Float[Tensor, "*n k"], actions: Tensor) -> Float[Tensor, "*n"]:
        """Ln π(a|s)."""
        loc, log_scale = outputs.chunk(2, dim=-1)
        z = (actions - loc) * (-log_scale).exp()
        return (-0.5 * z.square() - log_scale - _FLAT).sum(dim=-1)

    def entropy(self, outputs: Float[Tensor, "*n k"]) -> Float[Tensor, "*n"]:
        """Of every distribution, in nats."""
        return (outputs.chunk(2, dim=-1)[1] + 0.5 + _FLAT).sum(dim=-1)

    def kl(self, old: Float[Tensor, "*n k"], new: Float[Tensor, "*n k"]) -> Float[Tensor, "*n"]:
        """KL(old ‖ new)."""
        (loc, log_scale), (other, log_other) = old.chunk(2, dim=-1), new.chunk(2, dim=-1)
        ratio = (2 * (log_scale - log_other)).exp()
        away = ((loc - other) * (-log_other).exp()).square()
        return 0.5 * (ratio + away - 1 - ratio.log()).sum(dim=-1)

    @property
    def most_entropy(self) -> float:
        """None: the entropy of densities has no scale."""
        return math.inf


Head = CategoricalHead | NormalHead


def head_of(actions: Actions) -> Head:
    """The distributions over what can be done."""
    if isinstance(actions, Choices):
        return CategoricalHead(actions.num)
    return NormalHead(len(actions.low))
