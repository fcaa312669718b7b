"""Silent wrong answers, false flags and the sharpness of error bars, over randomised seeds.

An answer is right if it is within its bar or 1e-8 of the truth; wrong and without a flag it is
silent. An infinite integral is right as inf, a missing one only as a flag.
"""

from __future__ import annotations

import json
import math
import statistics
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.honesty_cases import (
    Case,
    Dice,
    controls,
    hard_expectations,
    hard_integrals,
)
from benchmarks.record import machine
from probcalc import EstimateWarning

SUITES: dict[str, Callable[[Dice], dict[str, Case]]] = {
    "integrals": hard_integrals,
    "expectations": hard_expectations,
    "controls": controls,
}
SEEDS = 20
_RTOL = 1e-8
_NOTED = 3  # seeds with a silent answer from which a case counts as silently wrong


def judged(case: Case, **how: Any) -> tuple[str, float, int]:
    """What became of a question: its outcome, bar over error, evaluations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EstimateWarning)
        try:
            answer = case.run(**how)
        except NotImplementedError:
            return "refused", math.nan, 0
    value, bar = float(answer.value), float(answer.error)
    error = abs(value - case.truth)
    right = value == case.truth or error <= max(bar, _RTOL * abs(case.truth))
    right = right and not math.isnan(case.truth)
    sharpness = bar / error if answer.ok and right and 0 < error < math.inf else math.nan
    outcome = ("right" if right else "SILENT") if answer.ok else "flagged"
    if (
        not answer.ok
        and right
        and math.isfinite(case.truth)
        and abs(value - case.truth) <= (_RTOL * abs(case.truth))
    ):
        outcome = "right, flagged"
    return outcome, sharpness, int(answer.num_evals)


def measured(
    seeds: int, how: Callable[[int], dict[str, Any]] = lambda seed: {}
) -> dict[str, dict[str, dict[str, object]]]:
    """Outcomes of every case of every suite; `how` gives further keywords for a seed."""
    table: dict[str, dict[str, dict[str, object]]] = {}
    for suite, cases in SUITES.items():
        rows: dict[str, list[tuple[str, float, int]]] = {}
        for seed in range(seeds):
            for name, case in cases(Dice(seed)).items():
                rows.setdefault(name, []).append(judged(case, **how(seed)))
        table[suite] = {name: _row(runs) for name, runs in rows.items()}
    return table


def _row(runs: list[tuple[str, float, int]]) -> dict[str, object]:
    sharp = [s for _, s, _ in runs if math.isfinite(s)]
    return {
        "outcomes": dict(Counter(outcome for outcome, _, _ in runs)),
        "bar / error": statistics.median(sharp) if sharp else None,
        "evaluations": statistics.median(n for _, _, n in runs),
    }


def summary(table: dict[str, dict[str, dict[str, object]]]) -> dict[str, object]:
    """The figures that go together."""
    hard = {**table["integrals"], **table["expectations"]}
    count = lambda rows, kind: sum(r["outcomes"].get(kind, 0) for r in rows.values())  # noqa: E731
    runs = lambda rows: sum(sum(r["outcomes"].values()) for r in rows.values())  # noqa: E731
    easy = table["controls"]
    flags = count(easy, "flagged") + count(easy, "right, flagged")
    silent = [n for n, r in hard.items() if r["outcomes"].get("SILENT", 0) >= _NOTED]
    return {
        "cases silently wrong": f"{len(silent)} of {len(hard)}",
        "silent answers": f"{count(hard, 'SILENT')} of {runs(hard)}",
        "silent answers, controls": f"{count(easy, 'SILENT')} of {runs(easy)}",
        "false flags, controls": f"{flags} of {runs(easy)}",
        "right though hard": f"{count(hard, 'right')} of {runs(hard)}",
        "needless flags": f"{count(hard, 'right, flagged')} of {runs(hard)}",
    }


def run(out: Path, seeds: int = SEEDS) -> list[Path]:
    """Measure, print and write."""
    table = measured(seeds)
    figures = summary(table)
    text = _markdown(table, figures, seeds)
    print(text)
    paths = out / "honesty.md", out / "honesty.json"
    paths[0].write_text(text, encoding="utf-8")
    record = {"machine": machine("cpu"), "seeds": seeds, "summary": figures, "cases": table}
    paths[1].write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")
    return list(paths)


def _markdown(
    table: dict[str, dict[str, dict[str, object]]], figures: dict[str, object], seeds: int
) -> str:
    lines = ["# honesty: no silent wrong answer", "", f"{seeds} seeds, defaults everywhere.", ""]
    lines += [f"- {name}: **{figure}**" for name, figure in figures.items()] + [""]
    for suite, rows in table.items():
        lines += [f"## {suite}", "", "| case | outcomes | bar / error | evaluations |"]
        lines += ["| --- | --- | ---: | ---: |"]
        for name, row in rows.items():
            outcomes = ", ".join(f"{n} {kind}" for kind, n in row["outcomes"].items())
            sharp = "" if row["bar / error"] is None else f"{row['bar / error']:.3g}"
            cells = name.replace("|", "¦"), outcomes, sharp, f"{row['evaluations']:,.0f}"
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)
