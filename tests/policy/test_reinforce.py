"""The trainer: it learns, goes on to the bit, names what is wrong, and keeps the best."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import laws
import pytest
import torch
from ignite.engine import Events
from torch import nn

import probcalc as pc
from probcalc.integration.gradient_estimators import LeaveOneOut, NoBaseline
from probcalc.policy import (
    GAE,
    Bandit,
    CartPole,
    Clipped,
    Critic,
    EnvironmentFault,
    Evaluation,
    NaturalGradient,
    PlainGradient,
    Reinforce,
    RewardToGo,
    TimeMean,
    WholeReturn,
    World,
)
from probcalc.policy.rollout import episodes

gym = pytest.importorskip("gymnasium")
POLE = World(CartPole(), 16)
ARMS = World(Bandit(torch.tensor([0.0, 1.0, 0.3]), 0.1), 64)
SMALL = Reinforce(POLE, rollout_steps=32, hidden=(16,), update=PlainGradient(3), noise_every=2)
HISTORY = {
    "episodic_return",
    "episode_length",
    "env_steps",
    "entropy",
    "kl",
    "explained_variance",
    "signal_to_noise",
    "signal_to_noise_error",
}


class Broken(gym.Env):
    """Raises, or gives a number that is none, at a step of its second episode."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, kind: str = "") -> None:
        self.kind, self.episode, self.clock = kind, -1, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.clock = (self.episode + 1 if seed is None else 0), 0
        return self.observation_space.low * 0, {}

    def step(self, action):
        self.clock += 1
        now = self.episode == 1 and self.clock == 3
        if now and self.kind == "raises":
            raise RuntimeError("the gear is stuck")
        seen = self.observation_space.low * (math.nan if now and self.kind == "seen" else 0)
        reward = math.nan if now and self.kind == "reward" else 1.0
        return seen, reward, self.clock == 5, False, {}


@pytest.mark.parametrize(
    "weights",
    [WholeReturn(), RewardToGo(), RewardToGo(LeaveOneOut()), RewardToGo(Critic()), GAE()],
    ids=["whole return", "time mean", "others' mean", "critic", "GAE"],
)
def test_every_rung_finds_the_best_arm(weights):
    update = PlainGradient(3, optimizer=pc.Adam(0.1))
    trainer = Reinforce(ARMS, rollout_steps=1, hidden=(), weights=weights, update=update)
    fit = trainer.train(64 * 60, generator=laws.generator(0))
    assert fit.act(torch.ones(1, 1)).tolist() == [1]
    assert fit.ok
    assert HISTORY <= fit.training.history[-1].keys()


@pytest.mark.parametrize(
    "update",
    [PlainGradient(), Clipped(num_minibatches=2, optimizer=pc.Adam(1e-2)), NaturalGradient()],
    ids=["plain", "clipped", "natural"],
)
def test_every_update_learns_to_balance(update):
    trainer = Reinforce(POLE, rollout_steps=64, hidden=(32,), update=update)
    start = trainer.train(1, generator=laws.generator(1))
    fit = trainer.train(15_000, generator=laws.generator(1))
    before, after = (f.evaluate(64, best=False, generator=laws.generator(2)) for f in (start, fit))
    assert float(after.value - after.error) > float(before.value + before.error)
    assert fit.training.history[-1]["kl"] >= 0


def test_a_natural_step_changes_the_policy_by_its_kl():
    trainer = dataclasses.replace(SMALL, update=NaturalGradient(0.01, damping=1e-4), anneals=False)
    fit = trainer.train(16 * 32 * 2, generator=laws.generator(0))
    assert 0.003 < fit.training.history[1]["kl"] < 0.0151


RESUMED = {
    "world": SMALL,
    "clipped": dataclasses.replace(SMALL, update=Clipped(epochs=2, num_minibatches=2)),
    "normalised": dataclasses.replace(
        SMALL, normalizes_observations=True, normalizes_rewards=True
    ),
    "whole episodes": dataclasses.replace(SMALL, weights=RewardToGo(Critic())),
    "native copies": dataclasses.replace(SMALL, environment="CartPole-v1", num_envs=4),
    "copies in turn": dataclasses.replace(
        SMALL, environment="FrozenLake-v1", num_envs=3, rollout_steps=20
    ),
}


@pytest.mark.parametrize("trainer", RESUMED.values(), ids=RESUMED.keys())
def test_a_run_goes_on_to_the_bit_in_the_middle_of_a_rollout(trainer, tmp_path: Path):
    """Stopped between two passes over a rollout, while episodes are under way."""
    num = 4 * 32 * 16 if trainer.environment is POLE else 4 * trainer.rollout_steps * 4
    whole = trainer.train(num, folder=tmp_path / "whole", generator=laws.generator(0))
    calls = {"folder": tmp_path / "part", "save_every": 1, "generator": laws.generator(0)}

    def halt(engine) -> None:
        @engine.on(Events.ITERATION_COMPLETED)
        def _(engine) -> None:
            if engine.state.iteration == 5:
                engine.terminate()

    trainer.train(num, callbacks=[halt], **calls)
    other = trainer
    if trainer.environment is POLE:  # copies of another process, wherever they are
        other = dataclasses.replace(trainer, environment=World(CartPole(), 16))
    part = other.train(num, resume=True, **calls | {"generator": laws.generator(99)})
    assert part.diagnostics["exact_resume"]
    assert part.diagnostics["steps"] == whole.diagnostics["steps"]
    for name, t in whole.policy.state_dict().items():
        assert torch.equal(part.policy.state_dict()[name], t), name
    drop = lambda record: {k: repr(v) for k, v in record.items() if k != "seconds"}
    assert list(map(drop, part.training.history)) == list(map(drop, whole.training.history))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("raises", r"raised RuntimeError \(the gear is stuck\) in step.*episode 1, step 3"),
        ("seen", "observation that is not finite in copy 0, episode 1, step 3"),
        ("reward", "reward that is not finite in copy 0, episode 1, step 3"),
    ],
)
def test_a_broken_environment_is_named_and_the_state_is_saved(kind, words, tmp_path: Path):
    made = lambda: Broken(kind)
    trainer = dataclasses.replace(SMALL, environment=made, num_envs=1, rollout_steps=4)
    with pytest.raises(EnvironmentFault, match=words):
        trainer.train(1_000, folder=tmp_path, generator=laws.generator(0))
    tensors, record = pc.load_checkpoint(tmp_path)
    assert record["step"] == 3  # the passes over the one rollout that was whole
    assert "params.actor.weights.0" in tensors


def test_the_best_policy_by_evaluation_is_kept_and_comes_back(tmp_path: Path):
    fit = SMALL.train(
        4_096, evaluation=Evaluation(1_000, num_episodes=32), generator=laws.generator(0)
    )
    steps, means, errors = zip(*fit.evaluations, strict=True)
    assert len(fit.evaluations) >= 4
    assert list(steps) == sorted(steps)
    assert min(errors) >= 0
    found = fit.evaluate(64, generator=laws.generator(1))
    laws_gap = abs(float(found.value) - max(means))
    assert laws_gap < 6 * float(found.std_error) + 6 * errors[means.index(max(means))] + 1
    fit.save(tmp_path)
    back = SMALL.load(tmp_path)
    x = torch.randn(50, 4, generator=laws.generator(2))
    assert torch.equal(back.policy.outputs(x), fit.policy.outputs(x))
    with pytest.raises(ValueError, match="another policy: actor.biases.0"):
        dataclasses.replace(SMALL, hidden=(8,)).load(tmp_path)


def test_a_target_ends_the_training():
    fit = SMALL.train(
        50_000,
        evaluation=Evaluation(512, num_episodes=16, target=12.0),
        generator=laws.generator(0),
    )
    assert "a mean return of" in fit.training.reason
    assert fit.diagnostics["steps"] < 50_000


def test_the_same_seed_is_the_same_run_and_leaves_shared_generators_alone():
    before = torch.get_rng_state()
    a, b = (SMALL.train(2_000, generator=laws.generator(5)) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    for x, y in zip(a.policy.parameters(), b.policy.parameters(), strict=True):
        assert torch.equal(x, y)


def test_rewards_that_do_not_vary_are_named():
    flat = World(Bandit(torch.ones(3)), 16)
    trainer = Reinforce(flat, weights=WholeReturn(), hidden=())
    fit = trainer.train(16 * 10, generator=laws.generator(0))
    assert [f.name for f in fit.failures] == ["no signal"]
    assert "rewards do not vary" in str(fit.failures[0])


def test_premature_determinism_and_a_bad_critic_are_named():
    rash = PlainGradient(1, optimizer=pc.Adam(2.0))
    fit = dataclasses.replace(SMALL, update=rash).train(10_000, generator=laws.generator(3))
    names = {f.name for f in fit.failures}
    assert names & {"premature determinism", "critic worse than the mean"}
    assert all(f.first <= f.last and f.count >= 1 for f in fit.failures)


def test_continuous_actions_are_learned_and_clipped_to_their_bounds():
    trainer = Reinforce(
        "Pendulum-v1", num_envs=4, rollout_steps=50, hidden=(8,), normalizes_rewards=True
    )
    fit = trainer.train(600, generator=laws.generator(0))
    x = torch.randn(7, 3, generator=laws.generator(1))
    assert fit.act(x).shape == (7, 1)
    drawn = fit.act(x.expand(500, 7, 3).flatten(0, 1), best=False, generator=laws.generator(2))
    assert 0.5 < float(drawn.std()) < 3.0
    assert math.isfinite(float(fit.evaluate(4, generator=laws.generator(3)).value))


BAD = [
    (lambda: Reinforce("CartPol-v1").train(10), "did you mean 'CartPole-v1'"),
    (lambda: Reinforce("CartPole-v1", discount=1.5), "discount"),
    (lambda: Reinforce("CartPole-v1", num_envs=0), "num_envs"),
    (lambda: Reinforce("CartPole-v1", entropy_bonus=-1.0), "entropy_bonus"),
    (lambda: SMALL.train(0), "num_steps"),
    (lambda: PlainGradient(0), "critic_steps"),
    (lambda: Clipped(limit=2.0), "limit"),
    (lambda: NaturalGradient(0.0), "positive"),
    (lambda: Evaluation(num_episodes=1), "num_episodes"),
    (
        lambda: Reinforce("CartPole-v1", num_envs=1, weights=WholeReturn()).train(10),
        "there is one: give `num_envs` of at least 2",
    ),
    (
        lambda: dataclasses.replace(SMALL, actor=nn.Linear(4, 3)).train(10),
        r"the policy must give 2 numbers an observation, shape \(16, 2\), got \(16, 3\)",
    ),
    (
        lambda: dataclasses.replace(SMALL, critic=nn.Linear(4, 3)).train(10),
        "the critic must give one number",
    ),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_mistakes_are_named(call, words: str):
    with pytest.raises(ValueError, match=words):
        call()


def test_an_episode_without_an_end_is_named():
    endless = World(CartPole(10**6), 2)
    policy = SMALL.built(endless, 0)
    with pytest.raises(EnvironmentFault, match="did not end within 2 steps"):
        episodes(policy, endless, laws.generator(0), longest=2)


def test_one_copy_and_episodes_longer_than_a_rollout_train():
    trainer = dataclasses.replace(SMALL, environment=World(CartPole(), 1), rollout_steps=8)
    fit = trainer.train(400, generator=laws.generator(0))
    assert fit.ok
    assert fit.diagnostics["steps"] == 400


def test_whole_episodes_need_no_baseline():
    trainer = dataclasses.replace(SMALL, weights=RewardToGo(NoBaseline(), discounts_states=False))
    fit = trainer.train(1_000, generator=laws.generator(0))
    assert fit.policy.critic is None
    assert math.isnan(float(fit.training.history[-1]["explained_variance"]))
    assert isinstance(RewardToGo().baseline, TimeMean)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_cartpole_is_solved(seed: int):
    """Mean return of 475 over 100 new episodes, within 100,000 steps."""
    fit = Reinforce("CartPole-v1", rollout_steps=125).train(
        100_000, evaluation=Evaluation(5_000, target=490), generator=laws.generator(seed)
    )
    assert fit.diagnostics["steps"] <= 100_000
    assert float(fit.evaluate(100, generator=laws.generator(1_000 + seed)).value) >= 475
