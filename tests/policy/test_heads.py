"""Distributions of actions against torch's."""

from __future__ import annotations

import laws
import pytest
import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from probcalc.policy.heads import CategoricalHead, NormalHead
from probcalc.policy.networks import QuadraticCritic


def pair(kind: str, seed: int):
    g = laws.generator(seed)
    outputs = torch.randn(5, 4, generator=g, dtype=torch.float64)
    if kind == "choices":
        return CategoricalHead(4), outputs, Categorical(logits=outputs)
    loc, log_scale = outputs.chunk(2, dim=-1)
    return NormalHead(2), outputs, Independent(Normal(loc, log_scale.exp()), 1)


@pytest.mark.parametrize("kind", ["choices", "vectors"])
def test_heads_are_the_distributions_of_torch(kind: str):
    head, outputs, dist = pair(kind, 0)
    _, other, second = pair(kind, 1)
    actions = head.draw(outputs, laws.generator(2))
    torch.testing.assert_close(head.log_prob(outputs, actions), dist.log_prob(actions))
    torch.testing.assert_close(head.entropy(outputs), dist.entropy())
    torch.testing.assert_close(head.kl(outputs, other), kl_divergence(dist, second))
    assert torch.equal(head.best(outputs), dist.mode)
    assert bool((head.entropy(outputs) <= head.most_entropy).all())


@pytest.mark.parametrize("num", [2, 4])
def test_choices_are_drawn_by_their_probabilities(num: int, request):
    outputs = torch.randn(num, generator=laws.generator(3))
    g = laws.generator(request.config.option.base_seed)
    drawn = CategoricalHead(num).draw(outputs.expand(400_000, num), g)
    counts = torch.bincount(drawn, minlength=num) / 400_000
    p = outputs.softmax(dim=0)
    assert bool(((counts - p).abs() < 5.4 * (p * (1 - p) / 400_000).sqrt()).all())


def test_a_quadratic_critic_finds_a_quadratic():
    critic, x = QuadraticCritic(3), torch.randn(50, 3, generator=laws.generator(4))
    values = 2 - x[:, 0] + 3 * x[:, 1] * x[:, 2]
    critic.fit(x, values)
    torch.testing.assert_close(critic(x).detach(), values)
