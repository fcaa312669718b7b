"""The honesty suite with each random method forced upon it, at a confidence of 99.9 %."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import torch

import probcalc as pc
from benchmarks.honesty import SEEDS, measured, summary
from benchmarks.record import machine

CONFIDENCE = 0.999
METHODS: dict[str, Any] = {
    "plain": pc.MonteCarlo(),
    "antithetic": pc.MonteCarlo(antithetic=True),
    "stratified": pc.Stratified(),
    "scrambled Sobol": pc.QuasiMonteCarlo(),
    "Vegas": pc.Vegas(),
}


def run(out: Path, seeds: int = SEEDS) -> list[Path]:
    """Measure, print and write."""
    tables, figures = {}, {}
    for name, method in METHODS.items():

        def how(seed: int, method: Any = method) -> dict[str, Any]:
            generator = torch.Generator().manual_seed(seed)
            return {"method": method, "confidence": CONFIDENCE, "generator": generator}

        tables[name] = measured(seeds, how)
        sharp = [
            row["bar / error"]
            for suite in tables[name].values()
            for row in suite.values()
            if row["bar / error"] is not None
        ]
        figures[name] = {**summary(tables[name]), "median bar / error": statistics.median(sharp)}
    text = _markdown(tables, figures, seeds)
    print(text)
    paths = out / "honesty_random.md", out / "honesty_random.json"
    paths[0].write_text(text, encoding="utf-8")
    record = {"machine": machine("cpu"), "seeds": seeds, "summary": figures, "cases": tables}
    paths[1].write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")
    return list(paths)


def _markdown(
    tables: dict[str, dict[str, dict[str, dict[str, object]]]],
    figures: dict[str, dict[str, object]],
    seeds: int,
) -> str:
    names = list(next(iter(figures.values())))
    lines = [
        "# honesty of random methods: no silent wrong answer",
        "",
        f"{seeds} seeds, every case of the suite by each method, bars of {CONFIDENCE:.1%}.",
        "",
        f"| method | {' | '.join(names)} |",
        f"| --- | {' | '.join('---' for _ in names)} |",
    ]
    for method, row in figures.items():
        cells = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values())
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines += ["", "Cases with a silent answer:", ""]
    for method, suites in tables.items():
        for suite, rows in suites.items():
            for name, row in rows.items():
                count = row["outcomes"].get("SILENT", 0)
                if count:
                    lines.append(f"- {method}, {suite}, {name}: {count} of {seeds}")
    return "\n".join([*lines, ""])
