"""Gradients of policies against exact ones, with their own standard errors."""

from __future__ import annotations

import dataclasses
import math

import laws
import pytest
import torch
from torch import Tensor, nn

import probcalc as pc
from probcalc.integration.gradient_estimators import Fixed, LeaveOneOut, NoBaseline, ScoreFunction
from probcalc.policy.losses import Batch, policy_gradient
from probcalc.policy.networks import ActorCritic
from probcalc.policy.noise import signal_to_noise
from probcalc.policy.rollout import episodes
from probcalc.policy.source import values_of
from probcalc.policy.tabular import Tabular
from probcalc.policy.weights import GAE, Critic, RewardToGo, TimeMean, WholeReturn
from probcalc.policy.worlds import Bandit, Gridworld, World

gymnasium = pytest.importorskip("gymnasium")
DISCOUNT = 0.9
UNBIASED = {
    "whole return": WholeReturn(NoBaseline()),
    "whole return, others' mean": WholeReturn(LeaveOneOut()),
    "whole return, given baseline": WholeReturn(Fixed(0.3)),
    "reward-to-go": RewardToGo(NoBaseline()),
    "reward-to-go, mean by time": RewardToGo(TimeMean()),
    "reward-to-go, others' mean": RewardToGo(LeaveOneOut()),
    "reward-to-go, critic": RewardToGo(Critic()),
}


def table() -> Tabular:
    return Tabular.from_gymnasium(gymnasium.make("FrozenLake-v1"))


def chain() -> Tabular:
    """Two states, two actions; of either state an action may end it."""
    p = torch.zeros(2, 2, 2, dtype=torch.float64)
    p[:, 0, 0], p[:, 0, 1], p[:, 1, 0], p[:, 1, 1] = 0.7, 0.3, 0.2, 0.8
    reward = torch.tensor([[[1.0, 0.5], [0.0, 2.0]], [[0.3, 0.0], [1.0, -1.0]]]).double()
    ends = torch.zeros(2, 2, 2, dtype=torch.bool)
    ends[0, 1, 1] = ends[1, 0, 0] = ends[1, 1, :] = ends[0, 0, 1] = True
    return Tabular(p, reward, ends, torch.tensor([0.6, 0.4], dtype=torch.float64))


def linear(states: int, actions: int, logits: Tensor | None = None) -> nn.Module:
    """A table of logits."""
    made = nn.Linear(states, actions, bias=False)
    with torch.no_grad():
        made.weight.copy_(torch.zeros(actions, states) if logits is None else logits.T)
    return made


def gradients(policy: ActorCritic, world: World, weights, discount: float, seed: int) -> Tensor:
    """One a group of episodes; groups are independent of each other."""
    rollout = episodes(policy, world, laws.generator(seed))
    values = values_of(policy, rollout) if weights.needs_critic else None
    weighted = weights.of(rollout, discount, values)
    x = rollout.observations
    probs = policy.outputs(x.flatten(0, 1)).softmax(dim=-1).reshape(*x.shape[:2], -1)
    chosen = torch.nn.functional.one_hot(rollout.actions, probs.shape[-1]).to(probs)
    # score of a table of logits: (1[a] − π) ⊗ x
    away = weighted.weights[..., None] * (chosen - probs)
    return torch.einsum("nta,nts->nas", away, x).detach()


@pytest.mark.parametrize("weights", UNBIASED.values(), ids=UNBIASED.keys())
def test_gradients_of_a_small_world_are_exact_in_the_mean(weights, request):
    """Against derivatives through the linear solve.

    Episodes that are each other's baseline depend on one another by a share of 1/n of it.
    """
    size = 400_000 if isinstance(weights, WholeReturn) else 200_000  # by their skewness
    world, seed = World(Gridworld(chain(), 10_000), size), request.config.option.base_seed
    logits = torch.tensor([[0.4, -0.2], [-0.5, 0.3]])
    policy = ActorCritic(world, (), 0, actor=linear(2, 2, logits))
    theta = logits.double().T.clone().requires_grad_()
    (truth,) = torch.autograd.grad(table_return(chain(), theta), theta)
    each = gradients(policy, world, weights, DISCOUNT, seed).double()
    laws.assert_mean_is(each, truth, bias=0.03)


def table_return(world: Tabular, theta: Tensor, discount: float = DISCOUNT) -> Tensor:
    return world.expected_return(theta.T.softmax(dim=-1), discount)


def test_arms_of_a_bandit_have_the_known_gradient(request):
    """π_a (r_a − r̄), and the bar of the estimator's own groups holds it."""
    means = torch.tensor([1.0, 0.2, -0.5])
    world = World(Bandit(means, 0.5), 20_000)
    logits = torch.tensor([[0.3, 0.0, -0.4]])
    policy = ActorCritic(world, (), 0, actor=linear(1, 3, logits), has_critic=False)
    p = logits[0].softmax(dim=0)
    truth = p * (means - p @ means)
    for i, name in enumerate(("whole return", "whole return, others' mean", "reward-to-go")):
        seed = request.config.option.base_seed + i
        each = gradients(policy, world, UNBIASED[name], 1.0, seed)[..., 0]
        laws.assert_mean_is(each, truth, bias=0.06)


@pytest.mark.parametrize("name", ["whole return", "reward-to-go", "reward-to-go, mean by time"])
def test_standard_errors_cover(name: str, request):
    """Intervals of 95 per cent from one batch of episodes hold the exact gradient as often."""
    groups, batches, weights = 128, 500, UNBIASED[name]
    world = World(Gridworld(chain(), 10_000), groups * batches)
    policy = ActorCritic(world, (), 0, actor=linear(2, 2), has_critic=False)
    theta = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    (truth,) = torch.autograd.grad(table_return(chain(), theta), theta)
    each = gradients(policy, world, weights, DISCOUNT, request.config.option.base_seed).double()
    rows = each[:, 0, 0].reshape(batches, groups)
    bar = pc.Estimate.from_replicates(rows.T, confidence=0.95)
    laws.assert_covers((bar.value - truth[0, 0]).abs() <= bar.error, 0.93, caught=0.8)


def test_frozen_lake_has_the_known_return_and_gradient():
    lake = table()
    theta = torch.zeros(4, 16, dtype=torch.float64, requires_grad=True)
    value = table_return(lake, theta, 0.99)
    (slope,) = torch.autograd.grad(value, theta)
    assert float(value.detach()) == pytest.approx(0.01235614, abs=5e-9)
    assert float(slope.norm()) == pytest.approx(0.00602172, abs=5e-9)
    assert torch.autograd.gradcheck(lambda t: table_return(lake, t, 0.99), theta)


def test_the_loss_differentiates_these_weights():
    """What `train` sees is the mean of weight times score, over episodes."""
    world = World(Gridworld(chain(), 10_000), 32)
    policy = ActorCritic(world, (), 0, actor=linear(2, 2), has_critic=False)
    weights = UNBIASED["reward-to-go, mean by time"]
    rollout = episodes(policy, world, laws.generator(3))
    weighted = weights.of(rollout, DISCOUNT, None)
    for noisy in (False, True):
        batch = Batch(
            rollout, weighted.weights, None, weighted.explained, 0, None, True, noisy, {}
        )
        _, grads = policy_gradient(policy, batch, 0.0)
        expected = -gradients(policy, world, weights, DISCOUNT, 3).mean(dim=0)
        torch.testing.assert_close(grads["actor.weight"], expected, rtol=1e-4, atol=1e-6)
    assert float(policy.measured[4]) > 0


def test_an_elbo_is_episodes_of_one_step():
    """Bernoulli latents: the trainer's gradient at the draws of `discrete_elbo` is its own."""
    logit = torch.tensor([0.4], dtype=torch.float64)

    def log_joint(draws: dict[str, Tensor]) -> Tensor:
        return torch.where(draws["k"] > 0, -0.3, -1.2).to(torch.float64)

    def guide(params: dict[str, Tensor]) -> dict:
        return {"k": torch.distributions.Bernoulli(logits=params["logit"][0])}

    n = 512
    leaf = logit.clone().requires_grad_()
    seen = []
    spy = lambda d: (seen.append(d["k"]), log_joint(d))[1]
    bound = pc.discrete_elbo(
        spy,
        guide,
        {"logit": leaf},
        gradient=ScoreFunction(),
        num_draws=n,
        generator=laws.generator(0),
    )
    (theirs,) = torch.autograd.grad(bound.value, leaf)
    draws = seen[-1]
    world = World(Bandit(torch.zeros(2)), n)
    table_ = torch.stack([torch.zeros(1), logit.float()], dim=1)
    policy = ActorCritic(world, (), 0, actor=linear(1, 2, table_), has_critic=False).double()
    rollout = episodes(policy.float(), world, laws.generator(0))
    policy = policy.double()
    log_q = guide({"logit": logit})["k"].log_prob(draws)
    rollout = dataclasses.replace(
        rollout,
        observations=rollout.observations.double(),
        actions=draws.long()[:, None],
        rewards=(log_joint({"k": draws}) - log_q)[:, None],
    )
    weighted = WholeReturn(LeaveOneOut()).of(rollout, 1.0, None)
    batch = Batch(rollout, weighted.weights, None, weighted.explained, 0, None, True, False, {})
    _, grads = policy_gradient(policy, batch, 0.0)
    torch.testing.assert_close(-grads["actor.weight"][1], theirs, rtol=1e-6, atol=1e-9)
    exact = pc.discrete_elbo(log_joint, guide, {"logit": leaf}, gradient=pc.Enumerate())
    (truth,) = torch.autograd.grad(exact.value, leaf)
    assert float((theirs - truth).abs()) < 0.2


def test_signal_to_noise_is_that_of_normal_gradients(request):
    g = laws.generator(request.config.option.base_seed)
    mean = torch.tensor([0.6, -0.3, 0.0])
    grads = mean + torch.randn(4_000, 16, 3, generator=g)
    found = torch.stack([torch.stack(signal_to_noise(rows)) for rows in grads])
    truth = 16 * float(mean.square().sum()) / 3  # |∇J|² over the variance of the mean
    # the mean of a ratio is that of its parts times E[1/χ²] of 45 degrees of freedom
    assert float(found[:, 0].mean()) == pytest.approx((truth + 1) * 45 / 43 - 1, rel=0.12)
    assert float(found[:, 1].mean() / found[:, 0].std()) == pytest.approx(1.0, abs=0.35)
    assert math.isinf(float(signal_to_noise(grads[0, :2])[1]))


def test_gae_of_a_perfect_critic_is_unbiased_at_any_trace(request):
    """With V exact every λ has the exact gradient; only its noise differs."""
    lake = chain()
    theta = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    (truth,) = torch.autograd.grad(table_return(lake, theta, 1.0), theta)
    v = lake.values(torch.full((2, 2), 0.5), 1.0)
    critic = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        critic.weight.copy_(v[None])
    world = World(Gridworld(lake, 10_000), 200_000)
    policy = ActorCritic(world, (), 0, actor=linear(2, 2), critic=critic)
    for trace in (0.0, 0.9):
        seed = request.config.option.base_seed
        each = gradients(policy, world, GAE(trace, whiten=False), 1.0, seed).double()
        laws.assert_mean_is(each, truth, bias=0.05)
