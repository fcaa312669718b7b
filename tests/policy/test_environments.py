"""Copies of environments: autoreset modes, states that come back, dynamics in tensors."""

from __future__ import annotations

import json

import laws
import numpy as np
import pytest
import torch

from probcalc.policy.environments import Choices, Environment, EnvironmentFault, Interval
from probcalc.policy.gymnasium_envs import Gymnasium
from probcalc.policy.tabular import Tabular
from probcalc.policy.worlds import Bandit, CartPole, Gridworld, World

gym = pytest.importorskip("gymnasium")
MODES = gym.vector.AutoresetMode


class Counter(gym.Env):
    """Shows its clock; ends by itself at 3, or by a clock."""

    observation_space = gym.spaces.Box(0.0, 10.0, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, clocked: bool = False) -> None:
        self.clocked, self.clock = clocked, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.clock = 0
        return self._seen(), {}

    def step(self, action):
        self.clock += 1
        over = self.clock == 3
        return (
            self._seen(),
            float(self.clock),
            over and not self.clocked,
            over and self.clocked,
            {},
        )

    def _seen(self):
        return np.array([self.clock], dtype=np.float32)


def in_mode(mode, clocked: bool, n: int = 2) -> Gymnasium:
    made = [lambda: Counter(clocked)] * n
    return Gymnasium(gym.vector.SyncVectorEnv(made, autoreset_mode=mode))


@pytest.mark.parametrize("clocked", [False, True])
@pytest.mark.parametrize("mode", list(MODES), ids=lambda m: m.name)
def test_every_autoreset_mode_tells_the_same_steps(mode, clocked: bool):
    """Of valid steps: what was acted on, the reward, the end, and what followed."""
    copies = in_mode(mode, clocked)
    seen, told = copies.reset(0), []
    for _ in range(9):
        done = copies.step(torch.zeros(2, dtype=torch.long))
        after = done.observation if done.final is None else done.final
        if done.void is None or not bool(done.void[0]):
            ended = bool(done.terminated[0]), bool(done.truncated[0])
            told.append((float(seen[0, 0]), float(done.reward[0]), *ended, float(after[0, 0])))
        seen = done.observation
    cycle = [
        (float(i), i + 1.0, i == 2 and not clocked, i == 2 and clocked, i + 1.0) for i in range(3)
    ]
    assert told == [cycle[i % 3] for i in range(len(told))]
    assert len(told) == (7 if mode == MODES.NEXT_STEP else 9)


@pytest.mark.parametrize("name", ["CartPole-v1", "FrozenLake-v1", "Acrobot-v1", "Pendulum-v1"])
def test_states_come_back_through_json(name: str):
    copies, others = (Gymnasium(name, 3) for _ in range(2))
    g = laws.generator(0)
    kind = copies.actions

    def act(x):
        if isinstance(kind, Choices):
            return torch.randint(kind.num, (3,), generator=g)
        return kind.low + (kind.high - kind.low) * torch.rand(3, len(kind.low), generator=g)

    assert copies.is_restorable(1, act)
    copies.reset(2)
    others.reset(3)
    for _ in range(30):
        copies.step(act(None))
    others.restore(json.loads(json.dumps(copies.state())))
    for _ in range(60):
        a = act(None)
        x, y = copies.step(a), others.step(a)
        assert torch.equal(x.observation, y.observation)
        assert torch.equal(x.reward, y.reward)
        assert torch.equal(x.terminated, y.terminated)


def test_hidden_state_is_found_out():
    class Hidden(Counter):
        def __init__(self) -> None:
            super().__init__()
            self.past = {"steps": 0}  # no number, no array

        def step(self, action):
            self.past["steps"] += 1
            seen, reward, *rest = super().step(action)
            return seen, reward + self.past["steps"], *rest

    copies = Gymnasium(Hidden, 2)
    zeros = lambda x: torch.zeros(2, dtype=torch.long)
    copies.reset(0)
    copies.is_restorable(0, zeros)
    assert copies.state() is None


def test_the_pole_in_tensors_is_that_of_gymnasium():
    world, copies = World(CartPole(), 64), Gymnasium("CartPole-v1", 64)
    copies.reset(0)
    g = laws.generator(0)
    state = 0.05 * torch.randn(4, 64, generator=g, dtype=torch.float64)
    copies.vector.state = state.numpy().copy()
    world._state = state.T.float().contiguous()
    for _ in range(8):
        a = torch.randint(2, (64,), generator=g)
        ours, theirs = world.step(a), copies.step(a)
        torch.testing.assert_close(ours.observation, theirs.observation, rtol=1e-4, atol=1e-5)
        assert torch.equal(ours.terminated, theirs.terminated)


def test_the_pole_ends_and_begins_like_gymnasium(request):
    """Lengths of episodes of random pushes have one distribution."""
    seed, found = request.config.option.base_seed, []
    for copies in (World(CartPole(), 2_000), Gymnasium("CartPole-v1", 2_000)):
        copies.reset(seed)
        g, alive = laws.generator(seed + 1), torch.ones(2_000, dtype=torch.bool)
        length = torch.zeros(2_000)
        while bool(alive.any()):
            done = copies.step(torch.randint(2, (2_000,), generator=g))
            length += alive
            alive = alive & ~(done.terminated | done.truncated)
        found.append(length.double())
    apart = (found[0].mean() - found[1].mean()).abs()
    assert float(apart) < 5.1 * float(sum(f.var() for f in found) / 2_000) ** 0.5


def test_clocks_truncate_and_copies_begin_anew():
    world = World(CartPole(5), 3)
    world.reset(0)
    for i in range(1, 11):
        done = world.step(torch.tensor([0, 1, i % 2]))
        assert bool(done.truncated.all()) == (i % 5 == 0)
    assert float(done.observation.abs().max()) <= 0.05
    assert float(done.final.abs().max()) > 0.05


def test_tables_know_their_optimum():
    lake = Tabular.from_gymnasium(gym.make("FrozenLake-v1"))
    best = lambda **kw: float(lake.start @ lake.optimal_values(**kw))
    assert best(discount=0.99) == pytest.approx(0.54202593, abs=5e-9)
    assert best(discount=1.0, tolerance=1e-14) == pytest.approx(14 / 17, abs=1e-9)
    assert best(discount=1.0, horizon=100) == pytest.approx(0.744190, abs=5e-7)


def test_a_grid_in_tensors_moves_by_its_table(request):
    lake = Tabular.from_gymnasium(gym.make("FrozenLake-v1"))
    world = World(Gridworld(lake), 100_000)
    world.reset(request.config.option.base_seed)
    done = world.step(torch.full((100_000,), 2))
    to = done.observation.mean(dim=0).double()
    p = lake.probability[0, 2]
    spread = (p * (1 - p) / 100_000).sqrt()
    assert bool(((to - p).abs() <= 6 * spread + 1e-12).all())


def test_worlds_are_environments_and_come_back():
    for world in (World(CartPole(), 4), World(Bandit(torch.ones(2), 1.0), 4)):
        assert isinstance(world, Environment)
        other = world.copies(4)
        world.step(torch.ones(4, dtype=torch.long))
        other.restore(world.state())
        a, b = (w.step(torch.zeros(4, dtype=torch.long)) for w in (world, other))
        assert torch.equal(a.reward, b.reward)
    assert isinstance(Gymnasium("CartPole-v1", 2), Environment)


class Odd(Counter):
    action_space = gym.spaces.MultiBinary(3)


class Nested(Counter):
    observation_space = gym.spaces.Dict({"a": gym.spaces.Discrete(2)})


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Gymnasium("FrozenLak-v1"), ValueError, "did you mean 'FrozenLake-v1'"),
        (lambda: Gymnasium(Odd), ValueError, r"MultiBinary\(3\), which is not supported"),
        (lambda: Gymnasium(Nested), ValueError, "observations of .* not supported"),
        (lambda: Gymnasium(3), TypeError, "an id, a function"),
        (lambda: Gymnasium("CartPole-v1", 0), ValueError, "num_envs"),
        (lambda: World(CartPole(), 0), ValueError, "num_envs"),
        (lambda: Tabular.from_gymnasium(gym.make("CartPole-v1")), ValueError, "no table"),
        (
            lambda: Tabular(
                torch.ones(1, 1, 1) / 2,
                torch.ones(1, 1, 1),
                torch.ones(1, 1, 1, dtype=torch.bool),
                torch.ones(1),
            ),
            ValueError,
            "add up to 1",
        ),
    ],
)
def test_mistakes_are_named(call, error, words: str):
    with pytest.raises(error, match=words):
        call()


def test_bounds_are_those_of_the_box():
    kind = Gymnasium("Pendulum-v1", 2).actions
    assert isinstance(kind, Interval)
    assert kind.low.tolist() == [-2.0]
    assert issubclass(EnvironmentFault, RuntimeError)
