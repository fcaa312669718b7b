"""What an experiment found: claims with figures, each held or not, and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from probcalc._table import text_table
from probcalc.result import Estimate


@dataclass(frozen=True, eq=False)
class Finding:
    """One number and what it should be.

    Args:
        name: What it is, with its unit.
        value: The number, or an estimate with its bar.
        wanted: In words; empty where nothing is claimed.
        holds: Whether the claim does; None where there is none.
    """

    name: str
    value: Estimate | float | int | str
    wanted: str = ""
    holds: bool | None = None

    @property
    def words(self) -> str:
        """The number as text."""
        if isinstance(self.value, Estimate):
            return f"{float(self.value.value):.4f} ± {float(self.value.error):.4f}"
        return f"{self.value:.4g}" if isinstance(self.value, float) else f"{self.value}"

    def as_json(self) -> dict[str, Any]:
        """Its parts."""
        number: dict[str, Any] = {"value": self.value}
        if isinstance(self.value, Estimate):
            number = {"value": float(self.value.value), "error": float(self.value.error)}
        return {"name": self.name, **number, "wanted": self.wanted, "holds": self.holds}


def at_most(name: str, value: Estimate | float | int, limit: float | int) -> Finding:
    """A finding that should not be above a limit, its bar apart."""
    number = float(value.value) if isinstance(value, Estimate) else value
    return Finding(name, value, f"at most {limit:g}", number <= limit)


def at_least(name: str, value: Estimate | float | int, limit: float | int) -> Finding:
    """A finding that should not be below a limit, its bar apart."""
    number = float(value.value) if isinstance(value, Estimate) else value
    return Finding(name, value, f"at least {limit:g}", number >= limit)


@dataclass(frozen=True, eq=False)
class Study:
    """Findings and pictures of one experiment.

    Args:
        findings: In the order of the table.
        figures: By the name of the file.
        notes: Lines below the table.
    """

    findings: tuple[Finding, ...]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every claim holds."""
        return all(f.holds is not False for f in self.findings)

    def lines(self) -> list[str]:
        """The table for the terminal."""
        return [*text_table(("", "found", "wanted", ""), self._rows()).splitlines(), *self.notes]

    def markdown(self) -> str:
        """The table, notes and pictures."""
        rows = ["|  | found | wanted |  |", "| --- | ---: | ---: | --- |"]
        rows += [f"| {' | '.join(row)} |" for row in self._rows()]
        pictures = [f"![{name}]({name}.png)\n" for name in self.figures]
        return "\n".join([*rows, "", *self.notes, "", *pictures])

    def as_json(self) -> dict[str, Any]:
        """Numbers."""
        return {"findings": [f.as_json() for f in self.findings], "notes": list(self.notes)}

    def _rows(self) -> list[tuple[str, str, str, str]]:
        verdict = {True: "holds", False: "MISSED", None: ""}
        return [(f.name, f.words, f.wanted, verdict[f.holds]) for f in self.findings]
