"""How far to trust the fit: the importance ratios, their tail, and its shape k̂."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from probcalc.inference.posterior import Posterior
from probcalc.reporting.style import (
    BAD,
    FAIR,
    GOOD,
    GUIDE,
    INK,
    MUTED,
    POSTERIOR,
    SMALL,
    bare,
    dress,
    headline,
    key,
    say,
)

_KHAT = r"$\hat{k}$"
_BINS = 80
_CUT = 0.03  # share of the draws left out at the left of the histogram
_DOTS = 400
_EQUAL = 1e-6
_GAUGE = (-0.2, 1.2)


def draw_ratios(ax: Axes, posterior: Posterior) -> None:
    """Histogram of the log ratios p/q; a perfect guide would put them all at zero."""
    log_ratios, _ = _centred(posterior)
    if _is_flat(log_ratios):
        say(ax, _no_tail(log_ratios))
    else:
        low, high = np.quantile(log_ratios, _CUT), log_ratios.max()
        ax.hist(log_ratios, bins=np.linspace(low, high, _BINS), color=POSTERIOR, alpha=0.75)
        ax.axvline(0.0, color=INK, lw=0.9)
        key(ax, posterior=f"{log_ratios.size:,} draws", ink="all here, were the guide exact")
    ax.set_yticks([])
    dress(ax, "Importance ratios", "log of ratio / mean ratio, nats")
    ax.spines["left"].set_visible(False)


def draw_tail(ax: Axes, posterior: Posterior, result: dict[str, Any]) -> None:
    """Share of the draws whose ratio is larger, on log scales, and the Pareto tail fitted."""
    ratios, smoothed = (np.exp(np.sort(logs)[::-1]) for logs in _centred(posterior))
    if _is_flat(ratios):
        say(ax, _no_tail(ratios))
    else:
        _draw_tail(ax, ratios, smoothed, math.isfinite(float(result["khat"])))
        key(ax, guide="draws", posterior="fitted Pareto tail")
    dress(ax, "Tail of the ratios", "ratio / mean ratio", "share of draws above")


def _draw_tail(ax: Axes, ratios: np.ndarray, smoothed: np.ndarray, is_fitted: bool) -> None:
    share = (np.arange(ratios.size) + 0.5) / ratios.size
    tail = min(ratios.size // 5, math.ceil(3 * ratios.size**0.5))  # as the smoothing has it
    at = np.unique(np.geomspace(1, ratios.size, _DOTS).astype(int)) - 1
    ax.loglog(ratios[at], share[at], ".", color=GUIDE, ms=4, mew=0)
    if is_fitted:
        at = at[at < tail]
        ax.loglog(smoothed[at], share[at], color=POSTERIOR, lw=2.0, solid_capstyle="round")
    ax.set_xlim(max(ratios[int(0.6 * ratios.size)], 1e-3), max(2.0 * ratios[0], 3.0))
    ax.axvline(1.0, color=MUTED, lw=0.8, ls=(0, (2, 2)))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def draw_gauge(ax: Axes, result: dict[str, Any]) -> None:
    """k̂ on its scale: below 1/2 the error bars hold, below the limit the moments do."""
    khat, limit = float(result["khat"]), float(result["khat_limit"])
    low, high = _GAUGE
    for left, right, colour, word in (
        (low, 0.5, GOOD, "error bars hold"),
        (0.5, limit, FAIR, "means hold"),
        (limit, high, BAD, "no trust"),
    ):
        ax.barh(0, right - left, left=left, height=0.34, color=colour, alpha=0.85, lw=0)
        ax.text(
            (left + right) / 2, -0.42, word, ha="center", va="center", color=MUTED, fontsize=SMALL
        )
    here = min(max(khat, low), high)
    ax.plot([here], [0.34], "v", color=INK, ms=8, clip_on=False)
    ax.text(
        here, 0.55, f"{_KHAT} = {_words(khat)}", ha="center", va="bottom", color=INK, fontsize=11
    )
    ax.set_xlim(low - 0.02, high + 0.02)
    ax.set_ylim(-0.7, 1.1)
    bare(ax)
    headline(ax, "How far to trust it")


def _centred(posterior: Posterior) -> tuple[np.ndarray, np.ndarray]:
    """Log ratios over their mean, raw and smoothed, of the draws where they are finite."""
    raw, smoothed = posterior.log_ratios.flatten(), posterior.log_weights.flatten()
    keep = raw.isfinite() & smoothed.isfinite()
    mean = raw[keep].logsumexp(dim=0) - math.log(max(int(keep.sum()), 1))
    return (raw[keep] - mean).numpy(), (smoothed[keep] - mean).numpy()


def _is_flat(values: np.ndarray) -> bool:
    return values.size < 2 or float(np.ptp(values)) < _EQUAL


def _no_tail(values: np.ndarray) -> str:
    return "all ratios are equal:\nthe guide is exact" if values.size else "no ratio is finite"


def _words(khat: float) -> str:
    if khat == -math.inf:
        return "−∞ (exact guide)"
    return "∞" if khat == math.inf else f"{khat:.2f}"
