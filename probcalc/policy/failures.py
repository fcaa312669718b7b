"""What goes wrong with policy gradients, named when it happens."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from probcalc.policy.rollout import Rollout

if TYPE_CHECKING:
    from probcalc.policy.source import Rollouts

_DETERMINED = 0.05  # share of the greatest entropy
_BELOW_BEST = 0.9  # of the range of returns so far
_PATIENCE = 5  # rollouts in a row

ADVICE = {
    "premature determinism": (
        "The policy hardly tries anything else, while its return is below the best it had: take "
        "a smaller step, or an `entropy_bonus`."
    ),
    "critic worse than the mean": (
        "The critic foresees less than a constant would: give it more steps, a larger step or "
        "more capacity; until then it adds noise and bias."
    ),
    "no signal": (
        "All weights are zero: rewards do not vary, so that no action is better than another."
    ),
}


@dataclass(frozen=True)
class Failure:
    """One mode, and when it was seen.

    Args:
        name: Of the mode.
        first: Environment steps at which it was seen first.
        last: And last.
        count: Rollouts in which it was seen.
    """

    name: str
    first: int
    last: int
    count: int

    @property
    def advice(self) -> str:
        """What it means and what to try."""
        return ADVICE[self.name]

    def __str__(self) -> str:
        when = f"{self.first:,} to {self.last:,}" if self.last > self.first else f"{self.first:,}"
        return f"{self.name} (environment steps {when}, {self.count} rollouts): {self.advice}"


class Watch:
    """Looks at every rollout."""

    def __init__(self) -> None:
        self.seen: dict[str, Failure] = {}
        self.running: dict[str, int] = {}
        self.most, self.least = -math.inf, math.inf

    @property
    def failures(self) -> tuple[Failure, ...]:
        """All that were seen."""
        return tuple(self.seen.values())

    def look(self, source: Rollouts, rollout: Rollout) -> None:
        """Note what is wrong with a rollout, where it is so for several in a row."""
        policy, tally = source.policy, source.tally
        if math.isfinite(tally.latest):
            self.most = max(self.most, tally.latest)
            self.least = min(self.least, tally.latest)
        with torch.no_grad():
            entropy = policy.head.entropy(rollout.outputs)
            entropy = float((entropy * rollout.valid).sum() / rollout.valid.sum())
        determined = entropy < _DETERMINED * policy.head.most_entropy < math.inf
        enough = self.least + _BELOW_BEST * (self.most - self.least)
        explained = float(source.weighted.explained)
        wrong = {
            "premature determinism": determined and tally.latest < enough,
            "critic worse than the mean": explained < 0,
            "no signal": not bool(source.weighted.weights.any()),
        }
        for name, is_so in wrong.items():
            self.running[name] = self.running.get(name, 0) + 1 if is_so else 0
            if self.running[name] >= _PATIENCE:
                self._note(name, tally.steps)

    def _note(self, name: str, steps: int) -> None:
        old = self.seen.get(name)
        self.seen[name] = (
            Failure(name, steps, steps, 1)
            if old is None
            else Failure(name, old.first, steps, old.count + 1)
        )

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "seen": [asdict(f) for f in self.seen.values()],
            "running": self.running,
            "range": [self.least, self.most] if self.most >= self.least else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As it was."""
        self.seen = {f["name"]: Failure(**f) for f in state["seen"]}
        self.running = dict(state["running"])
        self.least, self.most = state["range"] or (math.inf, -math.inf)
