"""The joint density of two entries: the guide's, and what the importance weights make of it.

Both are densities of the same draws, one with equal weights and one with the posterior's.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from probcalc.inference.posterior import Posterior
from probcalc.reporting.density import (
    Array,
    Axis,
    axis_of,
    finite_draws,
    joint_density,
    marginal_density,
    region_levels,
)
from probcalc.reporting.style import (
    DENSITY,
    GUIDE,
    INK,
    POSTERIOR,
    REFERENCE,
    bare,
    dress,
    headline,
    key,
    say,
)

_MASSES = (0.95, 0.8, 0.5, 0.2)  # of the highest-density regions drawn
_DOTS = 250
_TICKS = (1.0, 2.0, 5.0)  # in a decade, on an axis of less than two


def draw_joint(
    figure: Figure,
    place: SubplotSpec,
    posterior: Posterior,
    pair: tuple[str, str],
    known: dict[str, float],
) -> None:
    """Joint density in the middle, marginals at the top and the right.

    Args:
        figure: Where to draw.
        place: Its cell.
        posterior: With its weighted draws.
        pair: Names of the entries along x and y.
        known: Reference means of entries, where there are any.
    """
    columns, weights = finite_draws(posterior, pair)
    x, y = (axis_of(name, c, weights) for name, c in zip(pair, columns, strict=True))
    grid = place.subgridspec(
        2, 2, width_ratios=(5, 1), height_ratios=(1, 5), wspace=0.04, hspace=0.04
    )
    main, top = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[0, 0])
    headline(top, f"{pair[0]} and {pair[1]}")
    if x is None or y is None:
        bare(top)
        say(main, "the draws have no spread\nto show")
        return
    _draw_density(main, x, y, weights, known)
    right = figure.add_subplot(grid[1, 1], sharey=main)
    top.sharex(main)
    _draw_marginal(top, x, weights, known, upright=True)
    _draw_marginal(right, y, weights, known, upright=False)
    words = {"posterior": "posterior: 20, 50, 80, 95 %", "guide": "guide, uncorrected"}
    key(top, **words | ({"reference": "reference mean"} if known else {}))


def _draw_density(ax: Axes, x: Axis, y: Axis, weights: Array, known: dict[str, float]) -> None:
    density, guide = joint_density(x, y, weights), joint_density(x, y, _equal(weights))
    levels = [*region_levels(density, _MASSES), density.max()]
    ax.contourf(x.centres, y.centres, density.T, levels=levels, cmap=DENSITY)
    ax.contour(
        x.centres,
        y.centres,
        guide.T,
        levels=region_levels(guide, _MASSES),
        colors=[GUIDE],
        linewidths=0.9,
        linestyles="dashed",
    )
    rows = np.random.default_rng(0).choice(weights.size, _DOTS, p=weights)
    dots = [a.unscaled(a.values[rows]) for a in (x, y)]
    ax.plot(*dots, ".", color=INK, ms=2.6, alpha=0.6, mew=0)
    if x.name in known and y.name in known:
        place = [known[x.name]], [known[y.name]]
        ax.plot(*place, "D", color=REFERENCE, ms=6, mec="white", mew=0.8)
    for which, axis in (("x", x), ("y", y)):
        axis_scale(ax, which, axis)
    dress(ax, "", *(a.name + (" (log scale)" if a.is_log else "") for a in (x, y)))


def axis_scale(ax: Axes, which: str, axis: Axis) -> None:
    """Limits of an axis, and its ticks where it is logarithmic; `which` is x or y."""
    if axis.is_log:
        getattr(ax, f"set_{which}scale")("log")
        ticks = getattr(ax, f"{which}axis")
        ticks.set_major_locator(LogLocator(subs=_TICKS if np.ptp(axis.edges) < 2 else (1.0,)))
        ticks.set_major_formatter(StrMethodFormatter("{x:g}"))
        ticks.set_minor_formatter(NullFormatter())
    getattr(ax, f"set_{which}lim")(*axis.unscaled(axis.edges[[0, -1]]))


def _draw_marginal(
    ax: Axes, axis: Axis, weights: Array, known: dict[str, float], *, upright: bool
) -> None:
    posterior, guide = (marginal_density(axis, w) for w in (weights, _equal(weights)))
    fill = ax.fill_between if upright else ax.fill_betweenx
    fill(axis.centres, posterior, color=POSTERIOR, alpha=0.25, lw=0)
    for curve, colour, style in ((posterior, POSTERIOR, "-"), (guide, GUIDE, "--")):
        points = (axis.centres, curve) if upright else (curve, axis.centres)
        ax.plot(*points, style, color=colour, lw=1.2)
    if axis.name in known:
        line = ax.axvline if upright else ax.axhline
        line(known[axis.name], color=REFERENCE, lw=1.2)
    bare(ax)


def _equal(weights: Array) -> Array:
    return np.full_like(weights, 1.0 / weights.size)
