"""`Bracket`: two ends with the log evidence between them, and what they rest on."""

from __future__ import annotations

from dataclasses import dataclass, field

from probcalc._table import text_table
from probcalc.inference.posterior import Posterior
from probcalc.result import Estimate
from probcalc.status import Status


@dataclass(frozen=True, eq=False, repr=False)
class Bracket:
    """Lower and upper end of the log evidence, in nats.

    Each end is a bound in expectation, and its error the noise of its estimate: the log evidence
    lies between ``lower.value - lower.error`` and ``upper.value + upper.error`` with probability
    `confidence`, provided that draws called the posterior's are (see `upper_is_bound`).

    Args:
        lower: The tightest lower bound found.
        upper: The tightest upper one.
        estimate: The log evidence itself by importance sampling.
        bounds: Every bound that was computed, by name.
        symmetric_kl: KL(guide‖posterior) + KL(posterior‖guide), the distance between ELBO and
            evidence upper bound: how far the guide is from the posterior.
        upper_is_bound: Whether the upper end comes from draws of the posterior; where it comes
            from weighted draws of the guide, it is an estimate of a bound and no bound.
        confidence: Of both ends together.
        status: Flags.
        reasons: In words.
        notes: What was chosen and why.
        num_evals: Evaluations of the log density, with or without gradient.
        posterior: Whose guide was used.
    """

    lower: Estimate
    upper: Estimate
    estimate: Estimate
    bounds: dict[str, Estimate]
    symmetric_kl: Estimate
    upper_is_bound: bool
    confidence: float
    status: Status
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    num_evals: int
    posterior: Posterior = field(repr=False)

    @property
    def ok(self) -> bool:
        """No flag stands."""
        return self.status == Status.OK

    @property
    def gap(self) -> Estimate:
        """Upper minus lower end: between the ELBO and its upper twin, the symmetric KL."""
        return self.upper - self.lower

    @property
    def interval(self) -> tuple[float, float]:
        """The two ends with their errors."""
        lower, upper = self.lower, self.upper
        return float(lower.value - lower.error), float(upper.value + upper.error)

    def contains(self, log_evidence: float) -> bool:
        """Whether a value lies between the ends, their errors included."""
        low, high = self.interval
        return low <= float(log_evidence) <= high

    def __repr__(self) -> str:
        low, high = self.interval
        rows = [["lower end", *_cells(self.lower)], ["upper end", *_cells(self.upper)]]
        rows.append(["estimate", *_cells(self.estimate)])
        words = "a bound" if self.upper_is_bound else "an estimate of a bound"
        verdict = "ok" if self.ok else f"FLAGGED: {self.status.words}"
        lines = [
            f"Bracket: log evidence in [{low:.6g}, {high:.6g}] "
            f"({self.confidence:.0%}; the upper end is {words})",
            text_table(["", "nats", "by"], rows),
            f"symmetric KL of guide and posterior: {self.symmetric_kl._numbers()}",
            f"{self.num_evals:,} evaluations, verdict: {verdict}",
        ]
        return "\n".join([*lines, *self.reasons, *self.notes])


def _cells(estimate: Estimate) -> tuple[str, str]:
    return estimate._numbers(), estimate.method
