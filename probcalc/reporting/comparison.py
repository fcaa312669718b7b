r"""A posterior against a reference of known accuracy.

The distance of a mean is |mean − reference| in reference standard deviations, and it passes
below 0.05 + 3 standard errors of the reference; a standard deviation passes within 5 per cent
+ 3 standard errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from probcalc._table import text_table
from probcalc.inference.posterior import Posterior
from probcalc.result import format_with_error

_MEAN_WITHIN = 0.05  # posterior standard deviations
_STD_WITHIN = 0.05  # relative
_SIGMAS = 3.0


class Row(NamedTuple):
    """Reference moments of one entry, each with its Monte Carlo standard error."""

    mean: float
    mean_error: float
    std: float
    std_error: float


@dataclass(frozen=True)
class Reference:
    """Moments to compare with.

    Args:
        source: Where they come from.
        rows: By the posterior's names; entries without a row are not compared.
    """

    source: str
    rows: dict[str, Row]


@dataclass(frozen=True)
class Comparison:
    """One entry against its reference row.

    Args:
        name: Of the entry.
        mean: Of the posterior.
        std: Of the posterior.
        row: Of the reference.
    """

    name: str
    mean: float
    std: float
    row: Row

    @property
    def distance(self) -> float:
        """Mean minus reference, in reference standard deviations."""
        return (self.mean - self.row.mean) / self.row.std

    @property
    def ratio(self) -> float:
        """Standard deviation over the reference's."""
        return self.std / self.row.std

    @property
    def ok(self) -> bool:
        """Mean and standard deviation both within their limits."""
        _, mean_error, std, std_error = self.row
        mean_limit = _MEAN_WITHIN + _SIGMAS * mean_error / std
        std_limit = _STD_WITHIN + _SIGMAS * std_error / std
        return abs(self.distance) <= mean_limit and abs(self.ratio - 1.0) <= std_limit


def compare(posterior: Posterior, reference: Reference) -> tuple[Comparison, ...]:
    """Compare every entry that the reference knows.

    Raises:
        ValueError: If the reference names an entry that the posterior has not.
    """
    moments = zip(
        posterior.names,
        posterior.layout.flatten({k: e.value for k, e in posterior.mean.items()}).tolist(),
        posterior.layout.flatten({k: e.value for k, e in posterior.std.items()}).tolist(),
        strict=True,
    )
    found = {name: (mean, std) for name, mean, std in moments}
    missing = [name for name in reference.rows if name not in found]
    if missing:
        raise ValueError(f"the posterior has no entry {missing[0]!r}; it has {list(found)}.")
    return tuple(Comparison(name, *found[name], row) for name, row in reference.rows.items())


def comparison_lines(rows: tuple[Comparison, ...], source: str) -> list[str]:
    """Table of a comparison for the terminal, with its source and outcome."""
    header = ["", "mean", "reference", "off by, sd", "sd", "reference", "ratio", ""]
    cells = [
        [
            c.name,
            f"{c.mean:.4g}",
            format_with_error(c.row.mean, c.row.mean_error),
            f"{c.distance:+.3f}",
            f"{c.std:.4g}",
            format_with_error(c.row.std, c.row.std_error),
            f"{c.ratio:.3f}",
            "ok" if c.ok else "OFF",
        ]
        for c in rows
    ]
    good = sum(c.ok for c in rows)
    return [
        text_table(header, cells),
        "",
        f"reference     {source}",
        f"agreement     {good} of {len(rows)} within {_MEAN_WITHIN} sd and {_STD_WITHIN:.0%} "
        f"+ {_SIGMAS:.0f} standard errors",
    ]


def reference_block(reference: Reference) -> str:
    """The reference as it stands in an experiment's file, numbers to a tenth of their error."""
    rows = [f'        "{name}": Row({_digits(row)}),' for name, row in reference.rows.items()]
    return "\n".join(
        ["REFERENCE = Reference(", f'    "{reference.source}",', "    {", *rows, "    },", ")"]
    )


def _digits(row: Row) -> str:
    error = min(row.mean_error, row.std_error) or 1.0
    places = max(0, 1 - math.floor(math.log10(error)))
    return ", ".join(f"{number:.{places}f}" for number in row)
