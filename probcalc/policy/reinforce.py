r"""REINFORCE: the expected return is an expectation, its gradient that of the score function.

    J(θ) = E_π Σ_t γᵗ r_t,      ∇J = E Σ_t w_t ∇ ln π_θ(a_t|s_t)

Rollouts are batches of the one loop for noisy objectives, weights and surrogates those of
`integration.gradient_estimators`. Williams (1992), Simple statistical gradient-following
algorithms for connectionist reinforcement learning; Sutton et al. (2000), Policy gradient methods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from probcalc._random import child, draw_seed
from probcalc.integration.gradient_estimators import LeaveOneOut
from probcalc.policy.environments import Environment
from probcalc.policy.evaluation import expected_return
from probcalc.policy.fitted import PolicyFit, read
from probcalc.policy.gymnasium_envs import Gymnasium
from probcalc.policy.networks import ActorCritic
from probcalc.policy.source import Rollouts
from probcalc.policy.updates import PlainGradient, Update
from probcalc.policy.weights import GAE, Weights
from probcalc.training.loop import train

_POLICY, _TRAINING, _EVALUATION = range(3)  # streams of the seed


@dataclass(frozen=True)
class Evaluation:
    """Whole episodes apart from training, after which the best policy so far is kept.

    Args:
        every: Environment steps from one to the next, at least a rollout.
        num_episodes: Of each.
        best: Whether the most probable actions are taken, or actions are drawn.
        target: Mean return that ends the training.
    """

    every: int = 5_000
    num_episodes: int = 100
    best: bool = True
    target: float | int | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If one is too small.
        """
        if self.every < 1 or self.num_episodes < 2:
            raise ValueError(
                "`Evaluation` needs every >= 1 and num_episodes >= 2, got "
                f"{self.every}, {self.num_episodes}."
            )


@dataclass(frozen=True, eq=False)
class Reinforce:
    """Settings of a policy-gradient trainer.

    Args:
        environment: Id of an environment of gymnasium, a function that makes one, a
            `gymnasium.vector.VectorEnv`, or a `World` of torch.
        num_envs: Copies that are stepped together.
        rollout_steps: Steps of each copy in a rollout, for weights that need no whole episodes.
        weights: `GAE(trace)`, `RewardToGo(baseline)` or `WholeReturn(baseline)`; see `weights`.
        update: `PlainGradient()`, `Clipped()` or `NaturalGradient()`.
        discount: γ.
        entropy_bonus: Weight of the entropy, which keeps a policy from deciding too early.
        hidden: Widths of both networks.
        actor: A module from observations ``(n, *o)`` to a logit for every choice, or to a mean
            for every coordinate, in place of a perceptron.
        critic: A module from observations to a number each.
        normalizes_observations: Whether they are brought to mean 0 and variance 1, by moments
            that are part of the policy.
        normalizes_rewards: Whether they are divided by the standard deviation of discounted
            returns so far.
        anneals: Whether the step falls to nothing over the training.
        clip_norm: Longer gradients are shortened to this.
        noise_every: Rollouts from one look at the gradient's noise to the next.
        options: Of the environment, such as ``{"is_slippery": False}``.

    >>> from probcalc.policy import Bandit, RewardToGo, World
    >>> arms = World(Bandit(torch.tensor([0.0, 1.0])), 64)
    >>> trainer = Reinforce(arms, hidden=(), weights=RewardToGo())
    >>> fit = trainer.train(64 * 30, generator=torch.Generator().manual_seed(0))
    >>> float(fit.evaluate(100).value)
    1.0
    """

    environment: Any
    num_envs: int = 8
    rollout_steps: int = 128
    weights: Weights = GAE(0.97)  # noqa: RUF009 (frozen)
    update: Update = PlainGradient()  # noqa: RUF009
    discount: float | int = 0.99
    entropy_bonus: float | int = 0.0
    hidden: tuple[int, ...] = (64, 64)
    actor: nn.Module | None = None
    critic: nn.Module | None = None
    normalizes_observations: bool = False
    normalizes_rewards: bool = False
    anneals: bool = True
    clip_norm: float | None = None
    noise_every: int = 10
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If a number is out of range.
        """
        if not 0 <= self.discount <= 1:
            raise ValueError(f"`discount` must lie in [0, 1], got {self.discount}.")
        for name in ("num_envs", "rollout_steps", "noise_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not self.entropy_bonus >= 0:
            raise ValueError(f"`entropy_bonus` must be at least 0, got {self.entropy_bonus}.")

    def train(
        self,
        num_steps: int,
        *,
        evaluation: Evaluation | None = None,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> PolicyFit:
        """Train for so many steps of the environment, all copies together.

        Args:
            num_steps: The last rollout may go beyond them.
            evaluation: When to evaluate; None: not before the end.
            generator: Source of starts, actions and parameters; one seed is drawn from it.
            **settings: Of `train`: `folder`, `save_every`, `resume`, `max_seconds`, `progress`,
                `csv`, ... A step there is an update: of the critic too.

        Returns:
            The policy: the best by evaluation, where there was one, else the last.

        Raises:
            ValueError: If settings do not fit the environment.
            EnvironmentFault: If it raises or gives numbers that are none; where there is a
                `folder` the state before that rollout is in it.
        """
        if num_steps < 1:
            raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")
        seed = draw_seed(generator)
        environment = self.made()
        policy = self.built(environment, seed)
        source = Rollouts(policy, environment, self, seed)
        if settings.get("folder") is not None and hasattr(environment, "is_restorable"):
            self._try_out(source, seed)
        judge = _Judge(source, evaluation, num_steps, seed)
        result = train(
            lambda module, batch, _: self.update.gradients(module, batch, self.entropy_bonus),
            policy,
            source,
            **self._chosen(source, judge, num_steps),
            **settings,
            generator=child(seed, _TRAINING),
        )
        if source.best:
            policy.load_state_dict({**policy.state_dict(), **source.best})
        return PolicyFit(
            policy.eval().requires_grad_(False),
            environment,
            result,
            tuple(map(tuple, source.tally.evaluations)),
            source.watch.failures,
            {"steps": source.tally.steps, "exact_resume": source.exact},
        )

    def load(self, path: Path | str) -> PolicyFit:
        """What `PolicyFit.save` wrote of a policy with these settings.

        Raises:
            CheckpointError: If the file is damaged, or no file of ours.
            ValueError: If it is of other settings.
        """
        environment = self.made()
        policy = self.built(environment, 0)
        read(path, policy)
        return PolicyFit(policy.eval().requires_grad_(False), environment, None, (), (), {})

    def made(self) -> Environment:
        """The copies.

        Raises:
            ValueError: If there is one copy, and the baseline is a mean of others.
        """
        made = self.environment
        if not isinstance(made, Environment):
            made = Gymnasium(made, self.num_envs, **(self.options or {}))
        needs = isinstance(getattr(self.weights, "baseline", None), LeaveOneOut)
        if needs and made.num_envs < 2:
            raise ValueError(
                "`LeaveOneOut()` is the mean of other copies, and there is one: give `num_envs` "
                "of at least 2, or another baseline."
            )
        return made

    def built(self, environment: Environment, seed: int) -> ActorCritic:
        """A policy at its start.

        Raises:
            ValueError: If a network gives other numbers than are needed.
        """
        policy = ActorCritic(
            environment,
            self.hidden,
            child(seed, _POLICY).initial_seed(),
            actor=self.actor,
            critic=self.critic,
            has_critic=self.weights.needs_critic,
            normalizes=self.normalizes_observations,
        ).to(environment.device)
        policy.check(environment.reset(0))
        return policy

    def _chosen(self, source: Rollouts, judge: _Judge, num_steps: int) -> dict[str, Any]:
        """Arguments of `train`."""
        least = source.environment.num_envs
        if not self.weights.whole_episodes:
            least *= self.rollout_steps
        falls = lambda _: max(1 - source.tally.steps / num_steps, 0.0)  # noqa: E731
        return {
            "optimizer": self.update.optimizer,
            "max_steps": math.ceil(num_steps / least) * source.passes,
            "schedule": falls if self.anneals else None,
            "clip_norm": self.clip_norm,
            "allow_unused": True,
            "log_every": source.passes,
            "stop": judge,
        }

    def _try_out(self, source: Rollouts, seed: int) -> None:
        """Whether copies can be put back where they were, so that a run goes on to the bit."""
        head, stream = source.policy.head, child(seed, _EVALUATION)
        act = lambda x: head.draw(source.policy.outputs(x), stream)  # noqa: E731
        with torch.no_grad():
            source.exact = source.environment.is_restorable(seed, act)
        source.observation = source.environment.reset(source._environment_seed())


class _Judge:
    """Ends the training, and evaluates on the way."""

    def __init__(
        self, source: Rollouts, settings: Evaluation | None, num_steps: int, seed: int
    ) -> None:
        self.source, self.settings = source, settings
        self.num_steps, self.seed = num_steps, seed
        self.environment: Environment | None = None

    def __call__(self, _: int) -> str:
        source, settings = self.source, self.settings
        if not source.is_done_with_rollout:
            return ""
        tally = source.tally
        over = tally.steps >= self.num_steps
        if settings is not None:
            done = tally.evaluations[-1][0] if tally.evaluations else 0
            if over or tally.steps - done >= settings.every:
                mean = self._evaluated()
                if settings.target is not None and mean >= settings.target:
                    return f"a mean return of {mean:.4g} after {tally.steps:,} steps"
        return f"all {tally.steps:,} environment steps made" if over else ""

    def _evaluated(self) -> float:
        source, settings = self.source, self.settings
        if self.environment is None:
            self.environment = source.environment.copies(settings.num_episodes)
        found = expected_return(
            source.policy,
            self.environment,
            settings.num_episodes,
            child(self.seed, _EVALUATION + 10 * (1 + source.tally.rollouts)).initial_seed(),
            best=settings.best,
        )
        mean, error = float(found.value), float(found.std_error)
        best = max((e[1] for e in source.tally.evaluations), default=-math.inf)
        source.tally.evaluations.append([float(source.tally.steps), mean, error])
        if mean >= best:
            own = source.policy.state_dict()
            source.best = {name: t.detach().clone() for name, t in own.items()}
        return mean
