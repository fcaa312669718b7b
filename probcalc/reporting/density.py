"""Kernel densities of weighted draws on a grid, in one and two dimensions.

A Gaussian kernel with Scott's bandwidth for the effective number of draws, applied to counts on
a grid. An entry that is positive and skewed is described on a logarithmic axis, and its density
is that of the logarithm. Scott (2015), Multivariate density estimation, section 6.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter

from probcalc.inference.posterior import Posterior

_GRID = 160
_EDGE = 0.004  # probability left out at each end of an axis, before some room is added
_ROOM = 0.15
_SKEWED = 1.0

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Axis:
    """One entry on the scale of its axis.

    Args:
        name: Of the entry.
        values: Its draws on the axis' scale, all finite.
        edges: Of the grid's cells, on the same scale.
        is_log: The scale is that of log10.
    """

    name: str
    values: Float[Array, " n"]
    edges: Float[Array, " g"]
    is_log: bool

    @property
    def centres(self) -> Float[Array, " h"]:
        """Middles of the grid's cells, on the entry's own scale."""
        return self.unscaled(0.5 * (self.edges[1:] + self.edges[:-1]))

    def unscaled(self, values: Float[Array, " m"]) -> Float[Array, " m"]:
        """From the axis' scale to the entry's own."""
        return 10.0**values if self.is_log else values


def finite_draws(
    posterior: Posterior, names: tuple[str, ...]
) -> tuple[list[Float[Array, " n"]], Float[Array, " n"]]:
    """Columns of the entries and the normalised weights, rows that are not finite left out."""
    columns = [posterior.x[..., posterior.names.index(n)].flatten().numpy() for n in names]
    log_weights = posterior.log_weights.flatten().numpy()
    if not np.isfinite(log_weights).any():  # no ratio above zero: the guide's draws as they are
        log_weights = np.zeros_like(log_weights)
    keep = np.isfinite([*columns, log_weights]).all(axis=0)
    if not keep.any():
        return [c[keep] for c in columns], log_weights[keep]
    weights = np.exp(log_weights[keep] - log_weights[keep].max())
    return [c[keep] for c in columns], weights / weights.sum()


def axis_of(name: str, x: Float[Array, " n"], weights: Float[Array, " n"]) -> Axis | None:
    """The axis of an entry; None where its draws have no spread."""
    if x.size < 2 or not np.ptp(x) > 0:
        return None
    is_log = bool(x.min() > 0) and _skewness(x) > _SKEWED
    values = np.log10(x) if is_log else x
    order = np.argsort(values)
    at = np.searchsorted(np.cumsum(weights[order]), (_EDGE, 1 - _EDGE)).clip(max=x.size - 1)
    low, high = values[order][at]
    if not high > low:  # one draw has all the weight
        low, high = values.min(), values.max()
    room = _ROOM * (high - low)
    return Axis(name, values, np.linspace(low - room, high + room, _GRID + 1), is_log)


def joint_density(x: Axis, y: Axis, weights: Float[Array, " n"]) -> Float[Array, "g g"]:
    """Share of the mass in each cell of the grid, x along the first axis."""
    counts, _, _ = np.histogram2d(x.values, y.values, bins=[x.edges, y.edges], weights=weights)
    return gaussian_filter(counts, [_bandwidth(a, weights, 2) for a in (x, y)], mode="constant")


def marginal_density(axis: Axis, weights: Float[Array, " n"]) -> Float[Array, " g"]:
    """Share of the mass in each cell."""
    counts, _ = np.histogram(axis.values, bins=axis.edges, weights=weights)
    return gaussian_filter(counts, _bandwidth(axis, weights, 1), mode="constant")


def region_levels(density: Float[Array, "g g"], masses: tuple[float, ...]) -> list[float]:
    """Heights above which the given shares of the mass lie, ascending and distinct."""
    heights = np.sort(density.ravel())[::-1]
    mass = np.cumsum(heights) / heights.sum()
    found = heights[np.searchsorted(mass, masses).clip(max=heights.size - 1)]
    return sorted({float(h) for h in found if 0 < h < heights[0]})


def _bandwidth(axis: Axis, weights: Float[Array, " n"], dimensions: int) -> float:
    """Scott's rule, in grid cells; at least half of one."""
    mean = weights @ axis.values
    std = float(np.sqrt(weights @ (axis.values - mean) ** 2))
    effective = 1.0 / float(np.square(weights).sum())
    cells = std * effective ** (-1 / (dimensions + 4)) / (axis.edges[1] - axis.edges[0])
    return max(cells, 0.5)


def _skewness(x: Float[Array, " n"]) -> float:
    centred = (x - x.mean()) / x.std()
    return float((centred**3).mean())
