"""CartPole solved: time and steps against Stable-Baselines3; and copies of it stepped in tensors.

Solved is a mean return of 475 over 100 episodes by the most probable actions, looked at every
5,000 environment steps by everyone, on the same kind of copies; the looks are in the time. Peers
run at the settings of their zoo for this environment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch

from benchmarks.harness import Case, Clocked, Contestant, Skipped
from probcalc.policy import CartPole, Evaluation, Reinforce, World
from probcalc.policy.gymnasium_envs import Gymnasium
from probcalc.policy.rollout import steps

SOLVED, LOOK, EPISODES = 475.0, 5_000, 100
MOST = 300_000  # environment steps, after which it is given up
COPIES = 4_096
_NATIVE = (64, 512, 4_096)  # counts of copies of gymnasium's, of which the best is the peer
_ROLLED, _HIDDEN = 100, (16,)

NOTES = (
    "Zoo: PPO with 8 copies, 32 steps, 20 epochs, λ 0.8, γ 0.98, step and clip falling from 1e-3 "
    "and 0.2 over 100,000 steps; A2C with 8 copies and its defaults.",
    "Steps a second: a rollout of 100 steps is collected as for training, the policy a perceptron "
    "with 16 hidden units in both, actions drawn; seconds are for 4,096 × 100 steps.",
)


def cases(device: str) -> Iterator[Case]:
    """Time to solve, and steps a second.

    Yields:
        Cases, the first contestant ours.
    """
    if device == "cpu":
        ours = Contestant("probcalc: Reinforce, GAE", _ours, score=_told)
        yield Case("CartPole-v1 solved", [ours, *(_peer(name) for name in ("PPO", "A2C"))])
    world = World(CartPole(), COPIES, device)
    ours = f"probcalc: {COPIES:,} copies in tensors"
    native = (
        Contestant(f"gymnasium: {n:,} native copies", partial(_rolled, _native(n)))
        for n in _NATIVE
    )
    rolled = Contestant(ours, partial(_rolled, lambda: world))
    yield Case("4,096 × 100 steps with a policy", [rolled, *native])


def _ours(seed: int) -> Any:
    trainer = Reinforce("CartPole-v1", num_envs=8, rollout_steps=125)
    return trainer.train(
        MOST // 3,
        evaluation=Evaluation(LOOK, num_episodes=EPISODES, target=SOLVED),
        generator=torch.Generator().manual_seed(seed),
    )


def _told(fit: Any) -> dict[str, float]:
    return {
        "environment steps": float(fit.diagnostics["steps"]),
        "last look": float(fit.evaluations[-1][1]),
    }


def _peer(name: str) -> Contestant | Skipped:
    try:
        import stable_baselines3
    except ImportError:
        return Skipped(f"Stable-Baselines3 {name}", "stable-baselines3 is not installed")
    algorithm = getattr(stable_baselines3, name)
    score = lambda found: {"environment steps": found[0], "last look": found[1]}  # noqa: E731
    return Contestant(
        f"Stable-Baselines3 {name}, zoo", partial(_theirs, algorithm, name), "warm", score, 0
    )


def _theirs(algorithm: Any, name: str, seed: int) -> tuple[float, float]:
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class Look(BaseCallback):
        last, mean = 0, 0.0

        def _on_step(self) -> bool:
            if self.num_timesteps - self.last < LOOK:
                return True
            self.last = self.num_timesteps
            self.mean = _greedy(lambda x: self.model.predict(x, deterministic=True)[0], seed)
            return self.mean < SOLVED

    copies = make_vec_env("CartPole-v1", n_envs=8, seed=seed)
    settings: dict[str, Any] = {}
    if name == "PPO":
        settings = {
            "n_steps": 32,
            "batch_size": 256,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "n_epochs": 20,
            "ent_coef": 0.0,
            "learning_rate": lambda left: 1e-3 * left,
            "clip_range": lambda left: 0.2 * left,
        }
    look = Look()
    model = algorithm("MlpPolicy", copies, seed=seed, device="cpu", **settings)
    model.learn(100_000 if name == "PPO" else MOST, callback=look)
    return float(model.num_timesteps), look.mean


def _greedy(act: Callable[[np.ndarray], np.ndarray], seed: int) -> float:
    """Mean return of one episode of each of a hundred copies."""
    copies = gymnasium.make_vec("CartPole-v1", EPISODES, vectorization_mode="vector_entry_point")
    seen, _ = copies.reset(seed=seed)
    alive, total = np.ones(EPISODES, dtype=bool), np.zeros(EPISODES)
    while alive.any():
        seen, reward, terminated, truncated, _ = copies.step(act(seen))
        total += reward * alive
        alive &= ~(terminated | truncated)
    return float(total.mean())


def _native(n: int) -> Callable[[], Gymnasium]:
    copies = Gymnasium("CartPole-v1", n)
    return lambda: copies


def _rolled(made: Callable[[], Any], seed: int) -> Clocked:
    """Seconds for as many steps as 4,096 copies take in a hundred."""
    environment = made()
    policy = Reinforce(environment, hidden=_HIDDEN).built(environment, seed)
    generator = torch.Generator(environment.device).manual_seed(seed)
    seen = environment.reset(seed)
    _, seen = steps(policy, environment, seen, 10, generator)
    if environment.device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    steps(policy, environment, seen, _ROLLED, generator)
    if environment.device.type == "cuda":
        torch.cuda.synchronize()
    spent = time.perf_counter() - begun
    return Clocked(spent * COPIES / environment.num_envs, None)
