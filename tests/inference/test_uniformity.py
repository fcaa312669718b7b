"""Ranks that are uniform stay quiet; every departure is named for what it is."""

from __future__ import annotations

import pytest
import torch
from laws import ALPHA, assert_covers
from torch.distributions import Normal

from probcalc.inference.uniformity import judged

NUM = 500
LEVEL = 2 * ALPHA  # of a false verdict of one call


def ranks_of(shift: float, scale: float, generator: torch.Generator, num: int = NUM):
    """Probabilities below the truth where the fit is N(shift, scale²) and the truth N(0, 1)."""
    truth = torch.randn(num, 1, generator=generator, dtype=torch.float64)
    return Normal(shift, scale).cdf(truth).clamp(1e-12, 1 - 1e-12)


DEPARTURES = {
    "narrow": (0.0, 0.6, "too narrow"),
    "wide": (0.0, 1.6, "too wide"),
    "upward": (0.6, 1.0, "biased upward"),
    "downward": (-0.6, 1.0, "biased downward"),
    "both": (0.6, 0.5, "biased upward and too narrow"),
}


@pytest.mark.parametrize("case", DEPARTURES)
def test_a_departure_is_named(case: str, generator: torch.Generator):
    shift, scale, words = DEPARTURES[case]
    found = judged(("a",), ranks_of(shift, scale, generator), LEVEL, 0, "by hand")
    assert not found.ok
    assert found.verdicts["a"] == words
    assert words in repr(found)
    assert "NOT CALIBRATED" in repr(found)


def test_a_wrong_shape_with_the_right_location_and_width_is_seen(generator: torch.Generator):
    """Normal scores of two points ±1: mean 0 and variance 1, and no normal."""
    sign = torch.where(torch.rand(NUM, 1, generator=generator) < 0.5, -1.0, 1.0).double()
    near = sign + 0.01 * torch.randn(NUM, 1, generator=generator, dtype=torch.float64)
    found = judged(("a",), Normal(0.0, 1.0).cdf(near), LEVEL, 0, "by hand")
    assert found.verdicts["a"] == "of the wrong shape"


def test_uniform_ranks_stay_quiet(generator: torch.Generator):
    pit = torch.rand(NUM, 3, generator=generator, dtype=torch.float64)
    found = judged(("a", "b", "c"), pit, LEVEL, 7, "by hand")
    assert found.ok
    assert "CALIBRATED" in repr(found)
    assert "7 more left out" in repr(found)


def test_all_p_values_hold_their_level(generator: torch.Generator):
    """Of uniform ranks at most 5 % lie below 0.05, by each of the four tests."""
    columns = 4_000
    pit = torch.rand(200, columns, generator=generator, dtype=torch.float64)
    found = judged(tuple(map(str, range(columns))), pit, LEVEL, 0, "by hand")
    for p in (found.location_p, found.width_p, found.symmetry_p):
        assert_covers(p >= 0.05, 0.95, caught=0.915)
    # the law of χ² is that of many counts in a bin, ten here
    assert_covers(found.uniform_p >= 0.05, 0.94, caught=0.9)


def test_the_asymmetry_test_sees_bias_and_not_width(generator: torch.Generator):
    narrow = judged(("a",), ranks_of(0.0, 0.5, generator), LEVEL, 0, "by hand")
    biased = judged(("a",), ranks_of(0.5, 1.0, generator), LEVEL, 0, "by hand")
    assert float(narrow.symmetry_p[0]) > LEVEL
    assert float(biased.symmetry_p[0]) < LEVEL


def test_too_few_fits_say_nothing():
    with pytest.raises(ValueError, match="only 20 fits succeeded, and 480 did not"):
        judged(("a",), torch.rand(20, 1).double(), LEVEL, 480, "by hand")
