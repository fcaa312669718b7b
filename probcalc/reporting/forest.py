"""Intervals of every entry, and how far its moments lie from the reference."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes

from probcalc.reporting.style import BAD, GOOD, INK, MUTED, POSTERIOR, REFERENCE, RULE, dress, key

_MOST_ROWS = 40
_BAND = 0.05  # within which a mean (in sds) or a standard deviation (relative) counts as right
_SIGMAS = 3.0

Entry = dict[str, Any]


def shown(result: dict[str, Any]) -> list[Entry]:
    """Entries worth a row: those of the reference where there is one, else the first forty."""
    entries = [entry for entry in result["parameters"] if float(entry["sd"]["value"]) > 0]
    if result["reference"] is None:
        return entries[:_MOST_ROWS]
    rows = {row["name"]: row for row in result["reference"]["rows"]}
    return [e | {"reference": rows[e["name"]]} for e in entries if e["name"] in rows]


def draw_forest(ax: Axes, entries: list[Entry]) -> None:
    """Mean, 50 % and 90 % interval of each entry; below it the reference's mean ± sd."""
    _rows(ax, entries)
    for y, entry in enumerate(entries):
        low, left, right, high = (float(entry[q]["value"]) for q in ("q05", "q25", "q75", "q95"))
        known = entry.get("reference")
        up = y - 0.14 if known else y
        ax.plot([low, high], [up, up], color=POSTERIOR, lw=1.3, solid_capstyle="round")
        ax.plot([left, right], [up, up], color=POSTERIOR, lw=4.0, solid_capstyle="round")
        mean = float(entry["mean"]["value"])
        ax.plot([mean], [up], "o", color="white", mec=POSTERIOR, mew=1.5, ms=5.5, zorder=3)
        if known:
            ends = [known["mean"] - known["std"], known["mean"] + known["std"]]
            ax.plot(ends, [y + 0.24] * 2, color=REFERENCE, lw=1.3, solid_capstyle="round")
            ax.plot([known["mean"]], [y + 0.24], "D", color=REFERENCE, ms=4.0, zorder=3)
    dress(ax, "Posterior", "value")
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    words = {"posterior": "mean, 50 % and 90 % interval"}
    if any("reference" in e for e in entries):
        words["reference"] = "reference mean ± sd"
    key(ax, **words)


def draw_mean_errors(ax: Axes, entries: list[Entry]) -> None:
    """Mean minus reference in reference sds, with both error bars; the band is what is asked."""
    _rows(ax, entries, labels=False)
    for y, entry in enumerate(entries):
        known = entry["reference"]
        bar = float(entry["mean"]["error"]) / known["std"]
        room = _SIGMAS * known["mean_error"] / known["std"]
        _error_row(ax, y, float(known["distance"]), bar, room)
    _band(ax, entries, "Mean − reference", "reference standard deviations")


def draw_std_errors(ax: Axes, entries: list[Entry]) -> None:
    """Standard deviation over the reference's, minus one, with both error bars."""
    _rows(ax, entries, labels=False)
    for y, entry in enumerate(entries):
        known = entry["reference"]
        bar = float(entry["sd"]["error"]) / known["std"]
        room = _SIGMAS * known["std_error"] / known["std"]
        _error_row(ax, y, float(known["ratio"]) - 1.0, bar, room)
    _band(ax, entries, "Sd ÷ reference − 1", "relative")


def _rows(ax: Axes, entries: list[Entry], *, labels: bool = True) -> None:
    for y in range(len(entries)):
        ax.axhline(y, color=RULE, lw=0.6, zorder=0)
    ax.set_ylim(len(entries) - 0.4, -0.6)
    ax.set_yticks(range(len(entries)), [e["name"] for e in entries] if labels else [])


def _error_row(ax: Axes, y: int, value: float, bar: float, room: float) -> None:
    ax.plot([-room, room], [y + 0.24] * 2, color=REFERENCE, lw=2.0, solid_capstyle="round")
    if math.isfinite(bar):
        ax.plot([value - bar, value + bar], [y - 0.1] * 2, color=POSTERIOR, lw=1.3)
    colour = POSTERIOR if abs(value) <= _BAND + room else BAD
    ax.plot([value], [y - 0.1], "o", color="white", mec=colour, mew=1.5, ms=5.0, zorder=3)


def _band(ax: Axes, entries: list[Entry], title: str, x: str) -> None:
    ax.axvspan(-_BAND, _BAND, color=GOOD, alpha=0.10, lw=0, zorder=0)
    ax.axvline(0.0, color=MUTED, lw=0.8, zorder=1)
    reach = 1.05 * max(abs(end) for end in (*ax.get_xlim(), 2.1 * _BAND))
    ax.set_xlim(-reach, reach)
    dress(ax, title, x)
    has_bars = all(math.isfinite(float(e["mean"]["error"])) for e in entries)
    words = "with its error bar" if has_bars else "without error bar"
    key(ax, posterior=words, reference="3 standard errors")
    ax.tick_params(axis="y", length=0)
