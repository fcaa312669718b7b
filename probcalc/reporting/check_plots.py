"""Figures of checks: predictions against data, calibration by simulation, rows left out.

Every function returns a matplotlib `Figure`; no state of pyplot is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from probcalc.inference.information import PredictiveScore
from probcalc.inference.predictive import Prediction, PredictiveCheck, Statistic
from probcalc.inference.uniformity import Calibration
from probcalc.integration.tails import khat_limit
from probcalc.reporting.style import (
    BAD,
    FAIR,
    GOOD,
    INK,
    MUTED,
    PAPER,
    POSTERIOR,
    REFERENCE,
    SMALL,
    bare,
    dress,
    key,
    say,
)

_MOST = 12
_COLUMNS = 4
_PANEL = (2.7, 2.4)  # inches
_BINS = 40
_RANK_BINS = 20
_BAND = 0.99  # of a bar, were the fit calibrated


def plot_checks(
    prediction: Prediction, statistics: Mapping[str, Statistic] | None = None
) -> Figure:
    """Statistics of predictions, and those of the data among them.

    Args:
        prediction: Result of `predict` for the rows of the data.
        statistics: See `Prediction.checks`.

    Raises:
        ValueError: If the predictions are of other rows than the data.
    """
    checks = prediction.checks(statistics)[:_MOST]
    if not checks:
        figure = _figure(4.0, 2.5)
        say(figure.add_subplot(), "no statistic differs\nfrom draw to draw")
        return figure
    figure, axes = _panels(len(checks))
    for ax, check in zip(axes, checks, strict=False):
        _check(ax, check)
    key(axes[0], posterior="predictions", reference="data")
    return figure


def plot_calibration(calibration: Calibration) -> Figure:
    """Histograms of ranks: flat where the fits are calibrated, within the band of chance."""
    figure, axes = _panels(min(len(calibration.names), _MOST))
    n = calibration.num_simulations
    band = stats.binom.interval(_BAND, n, 1 / _RANK_BINS)
    verdicts = calibration.verdicts
    for j, (ax, name) in enumerate(zip(axes, calibration.names, strict=False)):
        colour = GOOD if verdicts[name] == "calibrated" else BAD
        ax.axhspan(*band, color=MUTED, alpha=0.18, lw=0)
        ax.axhline(n / _RANK_BINS, color=MUTED, lw=0.8)
        p = calibration.pit[:, j].cpu().numpy()
        ax.hist(p, bins=np.linspace(0, 1, _RANK_BINS + 1), color=colour, alpha=0.75, rwidth=0.92)
        ax.set_ylim(0, max(ax.get_ylim()[1], 1.25 * band[1]))
        ax.set_yticks([])
        ax.set_xticks([0, 0.5, 1])
        dress(ax, name, "rank of the truth")
        ax.spines["left"].set_visible(False)
        key(ax, **{"good" if colour == GOOD else "bad": verdicts[name]})
    return figure


def plot_khat(score: PredictiveScore) -> Figure:
    """k̂ of every row that was left out by weights.

    Raises:
        ValueError: For a score without k̂, such as WAIC.
    """
    if score.khat is None:
        raise ValueError(f"{score.method} has no k-hat by row; use `loo`.")
    khat = score.khat.detach().cpu().numpy()
    shown = np.where(np.isfinite(khat), khat, np.where(khat > 0, 1.5, -0.5))
    limit = khat_limit(max(score.elpd.num_evals, 11))
    figure = _figure(6.4, 3.2)
    ax = figure.add_subplot()
    for low, high, colour in ((-9.0, 0.5, GOOD), (0.5, limit, FAIR), (limit, 9.0, BAD)):
        ax.axhspan(low, high, color=colour, alpha=0.08, lw=0)
        inside = (shown > low) & (shown <= high)
        ax.plot(np.flatnonzero(inside), shown[inside], "o", color=colour, ms=4, mew=0)
    worst = np.argsort(shown)[::-1][:3]
    for i in worst[shown[worst] > limit]:
        ax.annotate(
            str(i),
            (i, shown[i]),
            textcoords="offset points",
            xytext=(4, 3),
            fontsize=SMALL,
            color=INK,
        )
    ax.set_ylim(min(-0.1, shown.min() - 0.1), max(1.0, shown.max() + 0.1))
    ax.set_xlim(-0.02 * len(shown) - 0.5, 1.02 * len(shown) - 0.5)
    dress(ax, "Rows left out by weights", "row", r"$\hat{k}$")
    key(ax, good="error bars hold", fair="values hold", bad="too influential: fit without it")
    return figure


def _check(ax: Axes, check: PredictiveCheck) -> None:
    t = check.replicated.cpu().numpy()
    low, high = np.quantile(t, (0.001, 0.999))
    low, high = min(low, check.observed), max(high, check.observed)
    values = np.unique(t)
    whole = bool((values == np.round(values)).all())  # counts get a bar each
    step = max(1.0, math.ceil((high - low) / _BINS))
    bins = (
        np.arange(low - 0.5, high + step + 0.5, step) if whole else np.linspace(low, high, _BINS)
    )
    ax.hist(t, bins=bins, color=POSTERIOR, alpha=0.55)
    colour = BAD if check.is_extreme else REFERENCE
    ax.axvline(check.observed, color=colour, lw=2.0)
    ax.set_yticks([])
    p = float(check.p_value.value)
    dress(ax, f"{check.site} {check.name}", f"p = {p:.3f}")
    ax.spines["left"].set_visible(False)


def _panels(num: int) -> tuple[Figure, list[Axes]]:
    columns = min(_COLUMNS, num)
    rows = math.ceil(num / columns)
    figure = _figure(max(_PANEL[0] * columns, 3.4), _PANEL[1] * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for ax in axes[num:]:
        bare(ax)
    return figure, axes[:num]


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), facecolor=PAPER, layout="constrained")
