"""Rollouts as batches of `train`: what is collected, what is counted, and where it goes on."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc._random import child
from probcalc.policy.environments import Environment, EnvironmentFault
from probcalc.policy.failures import Watch
from probcalc.policy.losses import Batch
from probcalc.policy.networks import ActorCritic
from probcalc.policy.rollout import Rollout, episodes, steps
from probcalc.policy.weights import Values, Weighted

if TYPE_CHECKING:
    from probcalc.policy.reinforce import Reinforce

_ACTIONS, _ENVIRONMENT, _SHUFFLE = range(10, 13)  # streams of the seed


@dataclass(eq=False)
class Tally:
    """What has been counted since the beginning."""

    steps: int = 0
    rollouts: int = 0
    episodes: int = 0
    latest: float = math.nan  # mean return of the episodes that ended last
    length: float = math.nan
    evaluations: list[list[float]] = field(default_factory=list)  # steps, mean, standard error


class Rollouts:
    """A source of batches: every rollout is seen in several passes, then another is made."""

    length: int | None = None
    rows: Tensor | None = None

    def __init__(
        self, policy: ActorCritic, environment: Environment, settings: Reinforce, seed: int
    ) -> None:
        self.policy, self.environment, self.settings, self.seed = (
            policy,
            environment,
            settings,
            seed,
        )
        self.passes = settings.update.num_passes(policy.critic is not None)
        self.turn = self.passes
        self.tally, self.watch = Tally(), Watch()
        self.rollout: Rollout | None = None
        self.weighted: Weighted | None = None
        self.best: dict[str, Tensor] = {}
        self.generator = child(seed, _ACTIONS, environment.device)
        self.exact = True  # whether the copies can be put back where they were
        self.observation = environment.reset(self._environment_seed())
        n = environment.num_envs
        zeros = torch.zeros(n, device=environment.device)
        self.running = {name: zeros.clone() for name in ("return", "length", "discounted")}

    def __next__(self) -> Batch:
        if self.turn == self.passes:
            self._collect()
        settings, turn = self.settings, self.turn
        self.turn += 1
        return Batch(
            self.rollout,
            self.weighted.weights,
            self.weighted.targets,
            self.weighted.explained,
            turn,
            self._shuffled(turn),
            settings.weights.whole_episodes,
            self.tally.rollouts % settings.noise_every == 1 or settings.noise_every == 1,
            self._reported(),
        )

    @property
    def is_done_with_rollout(self) -> bool:
        """Whether the next batch is of a new one."""
        return self.turn == self.passes

    def state(self) -> dict[str, Any]:
        """Where it is."""
        tensors = {"observation": self.observation, "actions": self.generator.get_state()}
        tensors |= {f"running.{name}": t for name, t in self.running.items()}
        tensors |= {f"best.{name}": t for name, t in self.best.items()}
        if self.rollout is not None:
            tensors |= {f"rollout.{name}": t for name, t in self.rollout.tensors().items()}
            own = {f.name: getattr(self.weighted, f.name) for f in dataclasses.fields(Weighted)}
            tensors |= {f"weighted.{k}": t for k, t in own.items() if t is not None}
        numbers = {"turn": self.turn, "tally": _plain(self.tally), "watch": self.watch.state()}
        place = self.environment.state() if self.exact else None
        where = {f"at.{name}": value for name, value in (place or {}).items()}
        return {**tensors, **numbers, **where, "seed": self.seed}

    def restore(self, state: dict[str, Any]) -> None:
        """Go there; copies whose state is hidden begin new episodes."""
        device = self.environment.device
        self.seed, self.turn = state["seed"], state["turn"]
        self.tally = Tally(**_numbers(state["tally"]))
        self.watch.restore(state["watch"])
        self.generator.set_state(state["actions"])
        self.running = {k: t.to(device) for k, t in _below("running", state).items()}
        self.best = {k: t.to(device) for k, t in _below("best", state).items()}
        kept = {k: t.to(device) for k, t in _below("rollout", state).items()}
        self.rollout = Rollout(**kept) if kept else None
        kept = {k: t.to(device) for k, t in _below("weighted", state).items()}
        self.weighted = Weighted(**{"targets": None, **kept}) if kept else None
        place = _below("at", state)
        if place:
            self.environment.restore(place)
            self.observation = state["observation"].to(device)
        else:
            self.observation = self.environment.reset(self._environment_seed())
            for t in self.running.values():
                t.zero_()

    def _environment_seed(self) -> int:
        return child(self.seed, _ENVIRONMENT + 10 * (1 + self.tally.rollouts)).initial_seed()

    def _collect(self) -> None:
        """The next rollout, or, where the environment fails, the state before it.

        Raises:
            EnvironmentFault: Naming where.
        """
        before = self.state(), {k: b.clone() for k, b in self.policy.named_buffers()}
        if self.policy.normalizes and self.rollout is not None:
            self.policy.see(self.rollout.observations[self.rollout.valid])
        try:
            rollout = self._rolled()
        except EnvironmentFault:
            self.restore(before[0])
            for name, b in self.policy.named_buffers():
                b.copy_(before[1][name])
            raise
        self.turn = 0
        self.tally.rollouts += 1
        self.tally.steps += rollout.num_steps
        self._count(rollout)
        self.rollout = rollout
        self.weighted = self._weighed(rollout)
        self.watch.look(self, rollout)

    def _rolled(self) -> Rollout:
        settings = self.settings
        if settings.weights.whole_episodes:
            return episodes(self.policy, self.environment, self.generator)
        rollout, self.observation = steps(
            self.policy,
            self.environment,
            self.observation,
            settings.rollout_steps,
            self.generator,
        )
        return rollout

    @torch.no_grad()
    def _weighed(self, rollout: Rollout) -> Weighted:
        settings = self.settings
        if settings.normalizes_rewards:
            rollout = dataclasses.replace(rollout, rewards=self._scaled(rollout))
        values = values_of(self.policy, rollout) if settings.weights.needs_critic else None
        return settings.weights.of(rollout, settings.discount, values)

    def _scaled(self, rollout: Rollout) -> Float[Tensor, "n t"]:
        """Rewards over the standard deviation of discounted sums of them so far."""
        total, sums = self.running["discounted"], []
        ended = rollout.terminated | rollout.truncated
        for t in range(rollout.rewards.shape[1]):
            total = total * self.settings.discount + rollout.rewards[:, t]
            sums.append(total)
            total = total.masked_fill(ended[:, t], 0.0)
        self.running["discounted"] = total
        seen = torch.stack(sums, dim=1)[rollout.valid].double()
        n, m = float(self.policy.return_count), len(seen)
        var = (float(self.policy.return_var) * n + float(seen.var(correction=0)) * m) / (n + m)
        self.policy.return_var.fill_(var)
        self.policy.return_count.fill_(n + m)
        return rollout.rewards / math.sqrt(var + 1e-8)

    def _count(self, rollout: Rollout) -> None:
        """Returns and lengths of the episodes that ended."""
        ends = (rollout.terminated | rollout.truncated) & rollout.valid
        alone = self.settings.weights.whole_episodes
        found = {}
        for name, what in (("return", rollout.rewards * rollout.valid), ("length", rollout.valid)):
            before = torch.zeros_like(self.running[name]) if alone else self.running[name]
            ended, self.running[name] = _sums(what.to(before.dtype), ends, before)
            found[name] = ended
        if len(found["return"]):
            self.tally.latest = float(found["return"].mean())
            self.tally.length = float(found["length"].mean())
            self.tally.episodes += len(found["return"])

    def _reported(self) -> dict[str, Tensor]:
        tally = self.tally
        names = {
            "episodic_return": tally.latest,
            "episode_length": tally.length,
            "env_steps": tally.steps,
        }
        values = torch.tensor(list(names.values()), dtype=torch.float64).unbind()
        return dict(zip(names, values, strict=True))

    def _shuffled(self, turn: int) -> Tensor | None:
        """Rows of this pass, from an order that the epoch's number decides."""
        parts = self.settings.update.minibatches()
        if parts == 1:
            return None
        epoch, part = divmod(turn, parts)
        seed = child(self.seed, _SHUFFLE + 10 * self.tally.rollouts).initial_seed()
        valid = self.rollout.valid.flatten().nonzero()[:, 0]
        order = torch.randperm(len(valid), generator=child(seed, epoch)).to(valid.device)
        return valid[order[part::parts]]


@torch.no_grad()
def values_of(policy: ActorCritic, rollout: Rollout) -> Values:
    """What the critic says of where the steps began and of what followed."""
    n, t = rollout.rewards.shape
    seen = torch.cat([rollout.observations, rollout.last[:, None]], dim=1)
    value = policy.value(seen.flatten(0, 1)).reshape(n, t + 1)
    after = value[:, 1:]
    if rollout.final is not None:
        cut = rollout.truncated & ~rollout.terminated
        rows = cut.nonzero(as_tuple=True)
        if len(rows[0]):
            after = after.clone()
            after[rows] = policy.value(rollout.final[rows])
    return Values(value[:, :-1], after)


def _sums(
    what: Float[Tensor, "n t"], ends: Tensor, before: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " e"], Float[Tensor, " n"]]:
    """Of every episode that ended, and of those that go on."""
    total = before[:, None] + what.cumsum(dim=1)
    rows, cols = ends.nonzero(as_tuple=True)
    at = total[rows, cols]
    follows = torch.zeros_like(at)
    if len(at) > 1:
        follows[1:] = torch.where(rows[1:] == rows[:-1], at[:-1], 0.0)
    last = torch.zeros_like(before)
    if len(rows):
        latest = torch.zeros_like(ends[:, 0], dtype=torch.long)
        latest.scatter_reduce_(0, rows, cols, "amax", include_self=True)
        has = ends.any(dim=1)
        last = torch.where(has, total.gather(1, latest[:, None])[:, 0], 0.0)
    return at - follows, total[:, -1] - last


def _below(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}


def _plain(tally: Tally) -> dict[str, Any]:
    """JSON has no NaN."""
    own = dataclasses.asdict(tally)
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in own.items()}


def _numbers(told: dict[str, Any]) -> dict[str, Any]:
    return {k: math.nan if v is None else v for k, v in told.items()}
