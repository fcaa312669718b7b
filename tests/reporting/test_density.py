"""Densities on a grid hold the mass that they should, where they should."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from probcalc.reporting.density import (
    axis_of,
    joint_density,
    marginal_density,
    region_levels,
)


def normal_draws(n: int, seed: int = 0) -> np.ndarray:
    return norm.ppf((np.random.default_rng(seed).permutation(n) + 0.5) / n)


def test_marginal_is_the_normal_density():
    """The estimate is the true density, widened by the kernel."""
    n = 20_000
    x, w = normal_draws(n), np.full(n, 1 / n)
    axis = axis_of("x", x, w)
    cell = axis.edges[1] - axis.edges[0]
    kernel = n ** (-1 / 5)
    expected = norm.pdf(axis.centres, scale=(1 + kernel**2) ** 0.5) * cell
    assert np.abs(marginal_density(axis, w) - expected).max() < 0.02 * expected.max()


def test_a_doubled_weight_is_a_doubled_draw():
    """Weights count as repetitions; only the bandwidth knows the number of draws."""
    x = normal_draws(5_000)
    w = np.where(x > 0, 2.0, 1.0)
    axis = axis_of("x", x, w / w.sum())
    repeated = replace(axis, values=np.concatenate([x, x[x > 0]]))
    equal = np.full(repeated.values.size, 1 / repeated.values.size)
    weighted = marginal_density(axis, w / w.sum())
    assert np.abs(weighted - marginal_density(repeated, equal)).max() < 0.02 * weighted.max()


@pytest.mark.parametrize("mass", [0.2, 0.5, 0.9])
def test_regions_hold_their_mass(mass: float):
    n = 5_000
    x, y, w = normal_draws(n), normal_draws(n, 1), np.full(n, 1 / n)
    density = joint_density(axis_of("x", x, w), axis_of("y", y, w), w)
    (level,) = region_levels(density, (mass,))
    assert density[density >= level].sum() / density.sum() == pytest.approx(mass, abs=0.01)


def test_levels_ascend_and_lie_inside():
    n = 1_000
    x, w = normal_draws(n), np.full(n, 1 / n)
    density = joint_density(axis_of("x", x, w), axis_of("y", -x, w), w)
    levels = region_levels(density, (0.95, 0.5, 0.2))
    assert levels == sorted(levels)
    assert levels[0] > 0
    assert levels[-1] < density.max()


@pytest.mark.parametrize(
    ("x", "is_log"),
    [
        (np.exp(normal_draws(500)), True),  # positive and skewed
        (10 + normal_draws(500), False),  # positive, not skewed
        (np.exp(normal_draws(500)) - 1, False),  # skewed, not positive
    ],
)
def test_logarithmic_axes_are_for_positive_skewed_entries(x: np.ndarray, is_log: bool):
    axis = axis_of("x", x, np.full(500, 1 / 500))
    assert axis.is_log is is_log
    np.testing.assert_allclose(axis.unscaled(axis.values), x)


@pytest.mark.parametrize("x", [np.ones(5), np.ones(1), np.ones(0)])
def test_draws_without_spread_have_no_axis(x: np.ndarray):
    assert axis_of("x", x, np.full(x.size, 1 / max(x.size, 1))) is None


def test_one_draw_with_all_the_weight_keeps_the_range_of_all():
    x, w = np.linspace(-1, 1, 100), np.zeros(100)
    w[30] = 1.0
    axis = axis_of("x", x, w)
    assert axis.edges[0] < -1
    assert axis.edges[-1] > 1
    assert np.isfinite(marginal_density(axis, w)).all()
