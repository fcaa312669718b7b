"""Figures of one posterior: marginals, pairs, the solver's trace, and the weights.

Every function returns a matplotlib `Figure`; no state of pyplot is used.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from probcalc._check import unknown_name
from probcalc.inference.posterior import Posterior
from probcalc.inference.predictive import Prediction
from probcalc.integration.tails import khat_limit
from probcalc.reporting.density import (
    Array,
    Axis,
    axis_of,
    finite_draws,
    joint_density,
    marginal_density,
    region_levels,
)
from probcalc.reporting.joint import axis_scale
from probcalc.reporting.style import (
    DENSITY,
    GUIDE,
    INK,
    MUTED,
    PAPER,
    POSTERIOR,
    RULE,
    bare,
    dress,
    headline,
    key,
    say,
)
from probcalc.reporting.trust import draw_gauge, draw_ratios, draw_tail

_MOST_MARGINALS = 12
_MOST_PAIRS = 6
_COLUMNS = 4
_MASSES = (0.95, 0.8, 0.5, 0.2)
_PANEL = (2.9, 2.5)  # inches
_LEAST_ROOM = 0.5  # nats above and below a trace
_FAR = 10.0  # times the room

Prior = Prediction | dict[str, Tensor] | None


def plot_marginals(posterior: Posterior, *names: str, prior: Prior = None) -> Figure:
    """Density of every entry: posterior, its uncorrected guide, and the prior where given.

    Args:
        posterior: What to draw.
        *names: Sites or entries; none: the first twelve entries.
        prior: Draws of the prior by site, or a prior `predict`.

    Raises:
        ValueError: For an unknown name.
    """
    chosen = _chosen(posterior, names)[:_MOST_MARGINALS]
    before = prior.values if isinstance(prior, Prediction) else prior or {}
    columns = min(_COLUMNS, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    figure = _figure(max(_PANEL[0] * columns, 3.4), _PANEL[1] * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax, name in zip(axes, chosen, strict=False):
        _marginal(ax, posterior, name, _column(posterior, name, before))
    for ax in axes[len(chosen) :]:
        bare(ax)
    words = {"posterior": "posterior", "guide": "guide"}
    key(axes[0], **words | ({"muted": "prior"} if before else {}))
    return figure


def plot_pairs(posterior: Posterior, *names: str) -> Figure:
    """Joint densities of pairs of entries, with marginals on the diagonal.

    Args:
        posterior: What to draw.
        *names: Sites or entries, two to six; none: the first entries.

    Raises:
        ValueError: For an unknown name.
    """
    chosen = _chosen(posterior, names)[:_MOST_PAIRS]
    columns, weights = finite_draws(posterior, tuple(chosen))
    lines = [axis_of(n, c, weights) for n, c in zip(chosen, columns, strict=True)]
    k = len(chosen)
    figure = _figure(max(2.0 * k, 4.0), max(1.9 * k, 3.6))
    axes = figure.subplots(k, k, squeeze=False)
    for i in range(k):
        for j in range(k):
            _pair(axes[i, j], lines[j], lines[i], weights, (i, j, k))
    headline(axes[0, 0], "Pairs")
    key(axes[0, 0], posterior="20, 50, 80 and 95 % of the posterior")
    return figure


def plot_trace(posterior: Posterior) -> Figure:
    """ELBO by step of the solver, and the ELBO of the guide with its bar."""
    figure = _figure(5.6, 3.4)
    ax = figure.add_subplot()
    trace = posterior.trace
    if trace is None or not len(trace):
        say(ax, "this solver kept no trace")
        return figure
    values = trace.detach().cpu().double().numpy()
    steps = np.arange(1, len(values) + 1)
    ax.plot(steps, values, color=INK, lw=1.2, marker="o" if len(values) < 30 else "", ms=3)
    late = values[len(values) // 4 :]
    late = late[np.isfinite(late)]
    low, high = (late.min(), late.max()) if late.size else (0.0, 1.0)
    room = max(0.3 * (high - low), _LEAST_ROOM)
    words = {"ink": "as the solver saw it"}
    value, error = float(posterior.elbo.value), float(posterior.elbo.error)
    # the ELBO of a heavy-tailed proposal may be far below, and says nothing of the solver
    if low - _FAR * room < value < high + _FAR * room:
        ax.axhline(value, color=POSTERIOR, lw=0.9, ls=(0, (4, 3)))
        ax.axhspan(value - error, value + error, color=POSTERIOR, alpha=0.15, lw=0)
        low, high = min(low, value), max(high, value)
        words["posterior"] = "of the guide, fresh draws"
    ax.set_ylim(low - room, high + room)
    ax.xaxis.get_major_locator().set_params(integer=True)
    dress(ax, "ELBO", "step", "nats")
    key(ax, **words)
    return figure


def plot_weights(posterior: Posterior) -> Figure:
    """Ratios of posterior and guide, their tail, and k̂."""
    limit = khat_limit(posterior.log_ratios.numel())
    numbers = {"khat": posterior.khat, "khat_limit": limit}
    figure = _figure(9.0, 4.4)
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 3.4))
    draw_gauge(figure.add_subplot(grid[0, :]), numbers)
    draw_ratios(figure.add_subplot(grid[1, 0]), posterior)
    draw_tail(figure.add_subplot(grid[1, 1]), posterior, numbers)
    return figure


def _marginal(ax: Axes, posterior: Posterior, name: str, before: Array | None) -> None:
    (column,), weights = finite_draws(posterior, (name,))
    axis = axis_of(name, column, weights)
    if axis is None:
        say(ax, f"{name}: no spread")
        return
    curve = marginal_density(axis, weights)
    guide = posterior.x[..., posterior.names.index(name)].flatten().cpu().numpy()
    ax.fill_between(axis.centres, curve, color=POSTERIOR, alpha=0.25, lw=0)
    if before is not None:
        ax.plot(axis.centres, _on(axis, before), color=MUTED, lw=1.2)
    ax.plot(axis.centres, _on(axis, guide), "--", color=GUIDE, lw=1.1)
    ax.plot(axis.centres, curve, color=POSTERIOR, lw=1.6)
    axis_scale(ax, "x", axis)
    ax.set_ylim(bottom=0.0)
    ax.set_yticks([])
    dress(ax, name)
    ax.spines["left"].set_visible(False)


def _on(axis: Axis, x: Array) -> Float[Array, " g"]:
    """Density of other draws on the grid of an axis, as mass in each cell.

    Such draws may reach far beyond the axis: the bandwidth is that of their middle half
    (Silverman 1986, Density estimation, section 3.4.2).
    """
    values = np.log10(x[x > 0]) if axis.is_log else x
    values = values[np.isfinite(values)]
    if values.size < 2:
        return np.zeros(len(axis.edges) - 1)
    cell, g = axis.edges[1] - axis.edges[0], len(axis.edges) - 1
    wider = axis.edges[0] + cell * np.arange(-g, 2 * g + 1)  # what lies beyond smooths into it
    counts, _ = np.histogram(values, bins=wider)
    low, high = np.quantile(values, (0.25, 0.75))
    width = 0.9 * (high - low) / 1.34 * values.size**-0.2 / cell
    smooth = gaussian_filter1d(counts / len(x), min(max(width, 0.5), g / 4), mode="nearest")
    return smooth[g : 2 * g]


def _pair(
    ax: Axes, x: Axis | None, y: Axis | None, weights: Array, place: tuple[int, int, int]
) -> None:
    i, j, k = place
    if j > i or x is None or y is None:
        bare(ax)
        return
    if i == j:
        curve = marginal_density(x, weights)
        ax.fill_between(x.centres, curve, color=POSTERIOR, alpha=0.25, lw=0)
        ax.plot(x.centres, curve, color=POSTERIOR, lw=1.4)
        ax.set_ylim(bottom=0.0)
    else:
        density = joint_density(x, y, weights)
        levels = [*region_levels(density, _MASSES), density.max()]
        ax.contourf(x.centres, y.centres, density.T, levels=levels, cmap=DENSITY)
        axis_scale(ax, "y", y)
    axis_scale(ax, "x", x)
    dress(ax, "", x.name if i == k - 1 else "", y.name if j == 0 and i else "")
    if i != k - 1:
        ax.tick_params(axis="x", labelbottom=False)
    if j or not i:
        ax.tick_params(axis="y", labelleft=False)
    if i == j:
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
    ax.grid(color=RULE, lw=0.4)


def _chosen(posterior: Posterior, names: tuple[str, ...]) -> list[str]:
    """Entries of sites and entries named; all where none is."""
    if not names:
        return list(posterior.names)
    found: list[str] = []
    for name in names:
        entries = [n for n in posterior.names if name in (n, n.split("[")[0])]
        if not entries:
            known = {*posterior.names, *posterior.layout.shapes}
            raise ValueError(unknown_name("site or entry", name, known))
        found.extend(n for n in entries if n not in found)
    return found


def _column(posterior: Posterior, name: str, values: dict[str, Tensor]) -> Array | None:
    """Draws of one entry from a dict of draws by site."""
    site = name.split("[")[0]
    if site not in values:
        return None
    position = [n for n in posterior.names if n.split("[")[0] == site].index(name)
    draws = values[site].detach().cpu().double()
    return draws.reshape(len(draws), -1)[:, position].numpy()


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), facecolor=PAPER, layout="constrained")
