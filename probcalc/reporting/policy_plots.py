"""Pictures of policies: learning curves of several seeds, variances of estimators, an episode.

Every function returns a matplotlib `Figure`; no state of pyplot is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from probcalc.reporting.style import INK, MUTED, PAPER, POSTERIOR, REFERENCE, SMALL, dress

_POINTS = 200  # of a curve


def plot_learning(
    curves: Sequence[Sequence[tuple[float, float]]], *, wanted: float | int | None = None
) -> Figure:
    """Return by environment steps: every seed, their median, and the band of their quartiles.

    Median and band end where fewer than half of the runs go on: those are the slow ones.

    Args:
        curves: Of every seed, pairs of steps and returns.
        wanted: A line.
    """
    figure = _figure(5.8, 3.3)
    ax = figure.add_subplot()
    dress(ax, f"learning, {len(curves)} seeds", "environment steps", "return of an episode")
    runs = [np.array(c, dtype=float).reshape(-1, 2) for c in curves]
    runs = [r[np.isfinite(r[:, 1])] for r in runs]
    runs = [r for r in runs if len(r)]
    if not runs:  # no episode has ended
        return figure
    end = float(np.median([r[-1, 0] for r in runs]))
    grid = np.linspace(max(r[0, 0] for r in runs), end, _POINTS)
    rows = np.stack([np.interp(grid, r[:, 0], r[:, 1], right=np.nan) for r in runs])
    for r in runs:
        ax.plot(r[:, 0], r[:, 1], color=POSTERIOR, lw=0.7, alpha=0.35)
        ax.plot(r[-1, 0], r[-1, 1], "o", color=POSTERIOR, ms=3, alpha=0.6)
    low, middle, high = np.nanquantile(rows, [0.25, 0.5, 0.75], axis=0)
    ax.fill_between(grid, low, high, color=POSTERIOR, alpha=0.2, linewidth=0)
    ax.plot(grid, middle, color=POSTERIOR, lw=1.8)
    if wanted is not None:
        ax.axhline(wanted, color=REFERENCE, lw=1.0, ls="--")
        ax.annotate(
            f"wanted {wanted:g}", (0.0, wanted), color=REFERENCE, fontsize=SMALL, va="bottom"
        )
    ax.set_xlim(left=0)
    return figure


def plot_ladder(reductions: Mapping[str, tuple[float, float]]) -> Figure:
    """How many times less variance than the first rung, with bars.

    Args:
        reductions: Value and half-width by name.
    """
    names = list(reductions)
    values, errors = np.array(list(reductions.values()), dtype=float).T
    figure = _figure(6.4, 0.42 * len(names) + 1.1)
    ax = figure.add_subplot()
    dress(ax, "variance of an episode's gradient", "times less than the whole return")
    y = np.arange(len(names))[::-1]
    ax.barh(y, values, xerr=errors, color=POSTERIOR, ecolor=INK, height=0.62, alpha=0.85)
    for at, value, error in zip(y, values, errors, strict=True):
        ax.annotate(f" {value:.1f} ×", (value + error, at), color=INK, fontsize=SMALL, va="center")
    ax.set_yticks(y, names)
    ax.tick_params(axis="y", length=0, labelsize=SMALL, colors=MUTED)
    ax.set_xlim(0, 1.15 * float((values + errors).max()))
    return figure


def plot_gradients(
    exact: Float[Tensor, " p"], found: Mapping[str, tuple[Tensor, Tensor]]
) -> Figure:
    """Estimates of every component, less the exact one, in their standard errors.

    Args:
        exact: Gradient.
        found: Means and standard errors by name of the estimator.
    """
    figure = _figure(6.4, 3.2)
    ax = figure.add_subplot()
    dress(ax, "estimates less the exact gradient", "component", "standard errors")
    ax.axhspan(-4, 4, color=REFERENCE, alpha=0.08, linewidth=0)
    ax.axhline(0, color=REFERENCE, lw=0.8)
    room = np.linspace(-0.3, 0.3, len(found))
    for (name, (mean, error)), shift in zip(found.items(), room, strict=True):
        some = error > 0
        z = ((mean - exact)[some] / error[some]).numpy()
        ax.plot(np.flatnonzero(some.numpy()) + shift, z, "o", ms=2.6, alpha=0.7, label=name)
    ax.legend(fontsize=SMALL, frameon=False, ncols=2, loc="upper right")
    ax.set_ylim(-7, 7)
    return figure


def plot_frames(frames: Sequence[Any], titles: Sequence[str]) -> Figure:
    """Moments of an episode side by side."""
    figure = _figure(1.9 * len(frames), 1.7)
    for ax, frame, title in zip(
        np.atleast_1d(figure.subplots(1, len(frames))), frames, titles, strict=True
    ):
        ax.imshow(np.asarray(frame))
        ax.set_axis_off()
        ax.set_title(title, fontsize=SMALL, color=MUTED)
    return figure


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), facecolor=PAPER, layout="constrained")
