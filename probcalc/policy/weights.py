r"""What every decision's score is weighted with: the ladder of estimators, from loud to quiet.

    ∇J = E Σ_t w_t ∇ ln π(a_t|s_t)

    whole return      w_t = Σ_j γʲ r_j − b
    reward-to-go      w_t = Σ_{j≥t} γ^{j−t} r_j − b_t,      b_t a mean of others, or V(s_t)
    GAE(λ)            w_t = Σ_{j≥t} (γλ)^{j−t} δ_j,         δ_j = r_j + γ V(s_{j+1}) − V(s_j)

The first two see whole episodes, with a time limit as part of the task: a return ends where the
clock ended the episode. GAE sees any steps; where they end without the task ending (a clock, the
end of the rollout) the critic's value of what was seen last stands for the rest: biased, as far
as the critic is wrong. Of the discount, γᵗ for the time at which a state is met belongs to
the gradient of the discounted return; `discounts_states=False` drops it, as is common: late
decisions then count like early ones. Williams (1992); Kool, van Hoof & Welling (2019); Schulman et
al. (2016), High-dimensional continuous control using generalized advantage estimation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probcalc.integration.gradient_estimators import (
    Baseline,
    Fixed,
    LeaveOneOut,
    NoBaseline,
    score_weights,
)
from probcalc.policy.rollout import Rollout

_TINY = 1e-8  # standard deviation below which weights are not scaled


@dataclass(frozen=True)
class Critic:
    """V(s) as baseline, learned on the side."""


@dataclass(frozen=True)
class TimeMean:
    """The mean return-to-go, at the same time, of the other episodes that have come so far."""


@dataclass(frozen=True, eq=False)
class Weighted:
    """Weights of scores, and what a critic should have said.

    Args:
        weights: Zero where there was no step.
        targets: For the critic; None where there is none.
        explained: 1 − Var(target − V)/Var(target); NaN without a critic, or where returns are
            all the same.
    """

    weights: Float[Tensor, "n t"]
    targets: Float[Tensor, "n t"] | None
    explained: Float[Tensor, ""]


@runtime_checkable
class Weights(Protocol):
    """A rung of the ladder."""

    @property
    def needs_critic(self) -> bool:
        """Whether values are needed."""
        ...

    @property
    def whole_episodes(self) -> bool:
        """Whether rollouts are to be whole episodes."""
        ...

    def of(self, rollout: Rollout, discount: float | int, values: Values | None) -> Weighted:
        """Weights of a rollout."""
        ...


@dataclass(frozen=True, eq=False)
class Values:
    """What a critic says.

    Args:
        here: Of the states acted on.
        after: Of what followed each step, whatever it was.
    """

    here: Float[Tensor, "n t"]
    after: Float[Tensor, "n t"]


EpisodeBaseline = NoBaseline | LeaveOneOut | TimeMean | Critic | Fixed


@dataclass(frozen=True, eq=False)
class WholeReturn:
    """The return of the episode, for each of its decisions.

    Args:
        baseline: `NoBaseline()`, `LeaveOneOut()`, or `Fixed(value)`.
    """

    baseline: Baseline = LeaveOneOut()  # noqa: RUF009 (frozen)

    needs_critic = False
    whole_episodes = True

    def of(self, rollout: Rollout, discount: float | int, values: Values | None) -> Weighted:
        """Weights of whole episodes."""
        rewards = rollout.rewards * _powers(rollout, discount)
        t = rewards.shape[1]
        everything = torch.ones(t, t, dtype=torch.bool, device=rewards.device)
        w = score_weights(rewards, baseline=self.baseline, downstream=everything)
        return Weighted(w * rollout.valid, None, w.new_tensor(torch.nan))


@dataclass(frozen=True, eq=False)
class RewardToGo:
    """What came after the decision: its past it did not cause.

    Args:
        baseline: `NoBaseline()`, `LeaveOneOut()`, `TimeMean()`, `Critic()`, or `Fixed(value)`.
        discounts_states: Whether decisions at time t count γᵗ.
    """

    baseline: EpisodeBaseline = TimeMean()  # noqa: RUF009 (frozen)
    discounts_states: bool = True

    whole_episodes = True

    @property
    def needs_critic(self) -> bool:
        """For the baseline."""
        return isinstance(self.baseline, Critic)

    def of(self, rollout: Rollout, discount: float | int, values: Values | None) -> Weighted:
        """Weights of whole episodes."""
        reach = _triangle(rollout, discount)
        plain = score_weights(rollout.rewards, baseline=NoBaseline(), downstream=reach)
        w = score_weights(rollout.rewards, baseline=self._known(rollout, values), downstream=reach)
        if self.discounts_states:
            w = w * _powers(rollout, discount)
        if values is None:
            return Weighted(w * rollout.valid, None, w.new_tensor(torch.nan))
        return Weighted(w * rollout.valid, plain, explained(plain, values.here, rollout.valid))

    def _known(self, rollout: Rollout, values: Values | None) -> Baseline:
        if isinstance(self.baseline, Critic):
            return Fixed(values.here)
        if isinstance(self.baseline, TimeMean):
            return _AmongAlive(rollout.valid)
        return self.baseline


@dataclass(frozen=True)
class GAE:
    """Sums of the critic's surprises: the further ahead, the less they count.

    Args:
        trace: λ: at 1 returns less the critic's value, at 0 one step's surprise; between them
            bias of the critic against noise of returns.
        whiten: Whether the weights of a rollout are brought to mean 0 and variance 1. More than
            a baseline: it scales the step, and hides the scale of rewards.
    """

    trace: float | int = 0.95
    whiten: bool = True

    needs_critic = True
    whole_episodes = False

    def __post_init__(self) -> None:
        """Check the trace.

        Raises:
            ValueError: If it is not a share.
        """
        if not 0 <= self.trace <= 1:
            raise ValueError(f"`GAE(trace=...)` must lie in [0, 1], got {self.trace}.")

    def of(self, rollout: Rollout, discount: float | int, values: Values | None) -> Weighted:
        """Weights of any steps."""
        w = generalized_advantages(
            rollout.rewards,
            values.here,
            values.after,
            rollout.terminated,
            rollout.terminated | rollout.truncated | ~rollout.valid,
            discount,
            self.trace,
        )
        w = w * rollout.valid
        targets = w + values.here
        told = explained(targets, values.here, rollout.valid)
        return Weighted(whitened(w, rollout.valid) if self.whiten else w, targets, told)


def generalized_advantages(
    rewards: Float[Tensor, "n t"],
    here: Float[Tensor, "n t"],
    after: Float[Tensor, "n t"],
    terminated: Bool[Tensor, "n t"],
    cut: Bool[Tensor, "n t"],
    discount: float | int,
    trace: float | int,
) -> Float[Tensor, "n t"]:
    """A_t = δ_t + γλ A_{t+1}, begun anew behind every cut.

    Args:
        rewards: Of the steps.
        here: V of the states acted on.
        after: V of what followed, which does not count where the task ended.
        terminated: Where that was.
        cut: Where the episode ended, for whatever reason.
        discount: γ.
        trace: λ.
    """
    surprise = rewards + discount * after * ~terminated - here
    keeps = (~cut).to(rewards.dtype) * (discount * trace)
    rows, keeps = surprise.T.contiguous(), keeps.T.contiguous()
    for t in range(len(rows) - 2, -1, -1):
        rows[t].addcmul_(keeps[t], rows[t + 1])
    return rows.T


def whitened(w: Float[Tensor, "n t"], valid: Bool[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """Mean 0 and variance 1 over the steps of the task; only centred where all are the same."""
    count = valid.sum()
    centred = (w - w.sum() / count) * valid
    std = (centred.square().sum() / count).sqrt()
    return centred / torch.where(std > _TINY * (1 + w.abs().max()), std, 1.0)


def explained(
    targets: Float[Tensor, "n t"], values: Float[Tensor, "n t"], valid: Bool[Tensor, "n t"]
) -> Float[Tensor, ""]:
    """Share of the variance of returns that the critic foresaw; below 0 it is worse than none."""
    count = valid.sum()

    def variance(x: Tensor) -> Tensor:
        return ((x - (x * valid).sum() / count).square() * valid).sum() / count

    whole = variance(targets)
    return torch.where(whole > 0, 1 - variance(targets - values) / whole, torch.nan)


@dataclass(frozen=True, eq=False)
class _AmongAlive:
    """Means over the other draws that have this step."""

    valid: Bool[Tensor, "n t"]

    def values(self, signal: Tensor) -> Tensor:
        others = self.valid.sum(dim=0) - self.valid.to(signal.dtype)
        total = (signal * self.valid).sum(dim=0) - signal
        return torch.where(others > 0, total / others.clamp(min=1), 0.0)


def _powers(rollout: Rollout, discount: float | int) -> Float[Tensor, " t"]:
    t = torch.arange(rollout.rewards.shape[1], device=rollout.rewards.device)
    return torch.as_tensor(float(discount), dtype=rollout.rewards.dtype, device=t.device) ** t


def _triangle(rollout: Rollout, discount: float | int) -> Float[Tensor, "t t"]:
    """γ^{j−i} where j is not before i."""
    t = torch.arange(rollout.rewards.shape[1], device=rollout.rewards.device)
    ahead = t - t[:, None]
    base = torch.as_tensor(float(discount), dtype=rollout.rewards.dtype, device=t.device)
    return torch.where(ahead >= 0, base ** ahead.clamp(min=0), 0.0)
