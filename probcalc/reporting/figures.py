"""The figures of a run: intervals against the reference, a joint density, and the weights.

Everything is drawn on matplotlib `Figure` objects; no state of pyplot and no global setting is
used or changed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from probcalc.inference.posterior import Posterior
from probcalc.reporting.forest import draw_forest, draw_mean_errors, draw_std_errors, shown
from probcalc.reporting.joint import draw_joint
from probcalc.reporting.style import BAD, INK, PAPER, TITLE
from probcalc.reporting.trust import draw_gauge, draw_ratios, draw_tail

Result = dict[str, Any]
_ROW_HEIGHT = 0.3  # inches


def forest(posterior: Posterior, result: Result) -> Figure:
    """Every entry's interval, and its distance from the reference where there is one."""
    del posterior
    entries = shown(result)
    compared = result["reference"] is not None
    height = 1.5 + _ROW_HEIGHT * len(entries)
    figure = _figure(9.0 if compared else 6.0, height)
    columns = (1.6, 1, 1) if compared else (1,)
    grid = figure.add_gridspec(1, len(columns), width_ratios=columns)
    draw_forest(figure.add_subplot(grid[0]), entries)
    if compared:
        draw_mean_errors(figure.add_subplot(grid[1]), entries)
        draw_std_errors(figure.add_subplot(grid[2]), entries)
    return figure


def joint(posterior: Posterior, result: Result) -> Figure:
    """Joint density of the experiment's pair."""
    figure = _figure(5.6, 5.2)
    grid = figure.add_gridspec(1, 1)
    draw_joint(figure, grid[0], posterior, tuple(result["pair"]), _known(result))
    return figure


def weights(posterior: Posterior, result: Result) -> Figure:
    """Ratios, their tail, and k̂."""
    figure = _figure(9.0, 4.4)
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 3.4))
    draw_gauge(figure.add_subplot(grid[0, :]), result)
    draw_ratios(figure.add_subplot(grid[1, 0]), posterior)
    draw_tail(figure.add_subplot(grid[1, 1]), posterior, result)
    return figure


def hero(posterior: Posterior, result: Result) -> Figure:
    """Claim, evidence and trust on one sheet."""
    figure = _figure(13.0, 5.0)
    grid = figure.add_gridspec(2, 3, width_ratios=(1.25, 1.25, 1), height_ratios=(1, 2.2))
    draw_forest(figure.add_subplot(grid[:, 0]), shown(result)[:12])
    draw_joint(figure, grid[:, 1], posterior, tuple(result["pair"]), _known(result))
    draw_gauge(figure.add_subplot(grid[0, 2]), result)
    draw_tail(figure.add_subplot(grid[1, 2]), posterior, result)
    cost = f"{result['num_evals']:,} evaluations, {result['seconds']:.1f} s"
    figure.suptitle(
        f"{result['experiment']}: {result['verdict']} ({cost})",
        x=0.01,
        ha="left",
        color=INK if result["ok"] else BAD,
        fontsize=TITLE + 4,
        fontweight="bold",
    )
    return figure


# file name -> how it is drawn; the report shows them in this order
FIGURES: dict[str, Callable[[Posterior, Result], Figure]] = {
    "forest.svg": forest,
    "joint.svg": joint,
    "weights.svg": weights,
    "hero.png": hero,
}


def save_figures(folder: Path, posterior: Posterior, result: Result) -> dict[str, Path]:
    """Draw all figures into a folder; returns their paths by file name."""
    paths = {}
    for name, draw in FIGURES.items():
        paths[name] = folder / name
        metadata = {"Date": None} if name.endswith(".svg") else {}
        draw(posterior, result).savefig(paths[name], dpi=160, metadata=metadata)
    return paths


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), facecolor=PAPER, layout="constrained")


def _known(result: Result) -> dict[str, float]:
    reference = result["reference"]
    return {row["name"]: row["mean"] for row in reference["rows"]} if reference else {}
