r"""Many posteriors against reference draws: how far off, how many, and which misses are flagged.

The error of a posterior is that of its worst entry: max |mean − reference| in reference standard
deviations, and max |log(sd / reference)|. n draws know a mean to 1/√n standard deviations and a
log standard deviation to √((κ − 1)/4n), κ the kurtosis; the largest of p such errors has median
z/√n where the p-th root of a half is the probability that one stays within z. Nothing is better
known than that floor.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc._table import text_table
from probcalc.inference.posterior import Posterior

MEAN_WITHIN = 0.05  # reference standard deviations
STD_WITHIN = 0.05  # of the log of the ratio
REFUSED = "refused"  # the fit raised
_HEADER = [
    "posterior",
    "dim",
    "mean off",
    "log sd off",
    "verdict",
    "k̂",
    "gradients",
    "densities",
    "seconds",
    "method",
]


@dataclass(frozen=True)
class Score:
    """One fit of one posterior.

    Args:
        name: Of the posterior.
        seed: Of the fit.
        dim: Unconstrained dimension.
        verdict: Of the posterior, or `REFUSED` where the fit raised.
        reasons: Of the verdict.
        mean_off: Of the worst entry, in reference standard deviations; None without reference.
        std_off: Largest |log(sd / reference)|.
        worst: Names of those two entries.
        floor: What the reference itself knows, of the mean and of the log sd.
        khat: Of the posterior.
        num_gradients: Evaluations with gradient.
        num_evals: All evaluations.
        seconds: Of the fit, on a target that is traced.
        method: What was done.
    """

    name: str
    seed: int
    dim: int
    verdict: str
    reasons: tuple[str, ...] = ()
    mean_off: float | None = None
    std_off: float | None = None
    worst: tuple[str, str] | None = None
    floor: tuple[float, float] | None = None
    khat: float = math.nan
    num_gradients: int = 0
    num_evals: int = 0
    seconds: float = 0.0
    method: str = ""

    @property
    def is_flagged(self) -> bool:
        """The verdict warns of the numbers."""
        return self.verdict not in {"good", "corrected"}

    @property
    def is_known(self) -> bool:
        """There is a reference."""
        return self.floor is not None

    @property
    def is_right(self) -> bool:
        """Worst mean and worst standard deviation within their limits."""
        if self.mean_off is None or self.std_off is None:
            return False
        return self.mean_off <= MEAN_WITHIN and self.std_off <= STD_WITHIN


def scored(
    posterior: Posterior,
    mean: Float[Tensor, " p"],
    std: Float[Tensor, " p"],
    reference: Float[Tensor, "n p"] | None,
    columns: Sequence[str],
    **known: Any,
) -> Score:
    """Score moments against reference draws.

    Args:
        posterior: Whose verdict and costs are noted.
        mean: Its means of the reference's columns.
        std: Its standard deviations of them.
        reference: Independent draws.
        columns: Names of the columns.
        **known: `name`, `seed` and `seconds` of the score.
    """
    noted = {
        "dim": posterior.z.shape[-1],
        "verdict": posterior.verdict,
        "reasons": posterior.reasons,
        "khat": float(posterior.khat),
        "num_gradients": int(posterior.num_gradients),
        "num_evals": int(posterior.num_evals),
        "method": posterior.method,
    }
    errors = {} if reference is None else errors_against(reference, mean, std, columns)
    return Score(**noted, **known, **errors)


def errors_against(
    reference: Float[Tensor, "n p"],
    mean: Float[Tensor, " p"],
    std: Float[Tensor, " p"],
    columns: Sequence[str],
) -> dict[str, Any]:
    """The fields `mean_off`, `std_off`, `worst` and `floor` of a score; NaN is infinitely off."""
    centre, spread = reference.mean(dim=0), reference.std(dim=0)
    mean_off = ((mean - centre) / spread).abs().nan_to_num(nan=math.inf)
    std_off = (std / spread).log().abs().nan_to_num(nan=math.inf)
    return {
        "mean_off": float(mean_off.max()),
        "std_off": float(std_off.max()),
        "worst": (columns[int(mean_off.argmax())], columns[int(std_off.argmax())]),
        "floor": noise_floor(reference),
    }


def noise_floor(draws: Float[Tensor, "n p"]) -> tuple[float, float]:
    """Median of the largest error of the draws' own p means, in sds, and of their p log sds."""
    n, p = draws.shape
    inside = torch.tensor(0.5, dtype=torch.float64) ** (1.0 / p)
    z = float(torch.special.ndtri((1.0 + inside) / 2.0))
    centred = draws - draws.mean(dim=0)
    kurtosis = centred.pow(4).mean(dim=0) / centred.square().mean(dim=0).square()
    return z / n**0.5, z * float(((kurtosis - 1.0) / (4.0 * n)).sqrt().median())


@dataclass(frozen=True)
class Scoreboard:
    """All scores, and what they come to."""

    scores: tuple[Score, ...]

    @property
    def known(self) -> tuple[Score, ...]:
        """Those with a reference."""
        return tuple(s for s in self.scores if s.is_known)

    @property
    def misses(self) -> tuple[Score, ...]:
        """Those with a reference that are off."""
        return tuple(s for s in self.known if not s.is_right)

    @property
    def silent(self) -> tuple[Score, ...]:
        """Misses that no flag warns of."""
        return tuple(s for s in self.misses if not s.is_flagged)

    @property
    def false_flags(self) -> tuple[Score, ...]:
        """Flags on what is right."""
        return tuple(s for s in self.known if s.is_right and s.is_flagged)

    @property
    def ok(self) -> bool:
        """Nothing is silently wrong."""
        return not self.silent

    def lines(self) -> list[str]:
        """Table and sums for the terminal."""
        return [text_table(_HEADER, [_cells(s) for s in self.scores]), "", *self.sums()]

    def markdown(self) -> str:
        """The same as Markdown, with the reasons of every flag."""
        table = [_HEADER, ["---", *["---:"] * (len(_HEADER) - 1)], *map(_cells, self.scores)]
        rows = "\n".join(f"| {' | '.join(row)} |" for row in table)
        flags = [f"- {s.name}: {'; '.join(s.reasons)}" for s in self.scores if s.is_flagged]
        parts = [rows, "\n".join(f"- {line}" for line in self.sums())]
        return "\n\n".join([*parts, *(["Flags:\n\n" + "\n".join(flags)] if flags else [])]) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Every number, as plain values."""
        return {
            "within": {"mean": MEAN_WITHIN, "log sd": STD_WITHIN},
            "sums": self.sums(),
            "scores": [asdict(s) | {"flagged": s.is_flagged} for s in self.scores],
        }

    def sums(self) -> list[str]:
        """How many are right, which are silently wrong, and what it cost."""
        known, misses = self.known, self.misses
        right = len(known) - len(misses)
        lines = [f"within {MEAN_WITHIN} sd and {STD_WITHIN} log sd: {right} of {len(known)}"]
        if known:
            floors = zip(*(s.floor for s in known if s.floor), strict=True)
            mean, std = (statistics.median(values) for values in floors)
            lines.append(f"floor of the references: {mean:.3f} sd and {std:.3f} log sd, medians")
        silent = ", ".join(s.name for s in self.silent)
        lines += [
            f"misses flagged: {len(misses) - len(self.silent)} of {len(misses)}"
            + (f"; silent: {silent}" if silent else ""),
            f"false flags: {len(self.false_flags)} of {right}" + _named(self.false_flags),
        ]
        return [*lines, *self._medians()]

    def _medians(self) -> list[str]:
        ran = [s for s in self.scores if s.verdict != REFUSED]
        if not ran:
            return []
        columns: dict[str, Callable[[Score], float]] = {
            "gradient evaluations": lambda s: s.num_gradients,
            "density evaluations": lambda s: s.num_evals,
        }
        counts = [f"{statistics.median(map(f, ran)):,.0f} {n}" for n, f in columns.items()]
        seconds = statistics.median(s.seconds for s in ran)
        return [f"medians: {', '.join(counts)}, {seconds:.2f} seconds"]


def _named(scores: Sequence[Score]) -> str:
    return f": {', '.join(s.name for s in scores)}" if scores else ""


def _cells(score: Score) -> list[str]:
    return [
        score.name,
        str(score.dim),
        _off(score.mean_off, MEAN_WITHIN),
        _off(score.std_off, STD_WITHIN),
        score.verdict,
        f"{score.khat:.2f}",
        f"{score.num_gradients:,}",
        f"{score.num_evals:,}",
        f"{score.seconds:.2f}",
        score.method,
    ]


def _off(value: float | None, limit: float) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" + ("!" if value > limit else "")
