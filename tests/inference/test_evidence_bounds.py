"""Bounds by blocks: bars that hold for any weights, and a choice that does not flatter itself."""

from __future__ import annotations

import math

import pytest
import torch
from laws import assert_covers, assert_mean_is, generator

from probcalc.inference.evidence_bounds import Bound, chosen, log_mean_ratio, point_estimate
from probcalc.status import Status

F64 = torch.float64


def test_the_bar_is_never_wider_than_the_exponential_one():
    wild = torch.tensor([[100.0], [-100.0], [0.0], [0.0]], dtype=F64)
    bound = Bound("wild", wild, num_independent=4)
    assert float(bound.estimate(0.99, 0.0).error) == pytest.approx(math.log(2 / 0.01) / 4)
    assert float(Bound("wild", wild).estimate(0.99, 0.0).error) > 100
    quiet = Bound("quiet", wild / 1e6, num_independent=4)
    assert float(quiet.estimate(0.99, 0.0).error) < 1e-3


def test_heavy_weights_never_pass_the_exponential_bar(seed: int):
    """Weights U^(−0.9)/10 have mean one and no variance; a lower bound of log 1 = 0."""
    u = torch.rand(700, 8, 20, generator=generator(seed), dtype=F64)
    values = [
        log_mean_ratio(-0.9 * row.log() - math.log(10), "heavy", 0).estimate(0.95, 0.0)
        for row in u
    ]
    hits = torch.stack([e.value - e.error <= 0.0 for e in values])
    assert_covers(hits, 0.95, caught=0.86)


def test_an_infinite_bound_says_nothing_and_terms_without_weight_do_not_count():
    terms = torch.tensor([[0.5, -math.inf], [0.5, -math.inf]], dtype=F64)
    nothing = Bound("x", terms).estimate(0.99, 0.0)
    assert float(nothing.value) == -math.inf
    assert float(nothing.error) == 0.0
    weights = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=F64)
    assert float(Bound("x", terms, weights).estimate(0.99, 0.0).value) == 0.5


def test_choosing_between_equal_bounds_has_no_bias(seed: int):
    """The better looking of two equal ones is no better in the blocks that speak."""
    noise = torch.randn(600, 2, 16, 1, generator=generator(seed), dtype=F64)
    picked = [
        chosen([Bound("a", a), Bound("b", b)], highest=True).terms.flatten() for a, b in noise
    ]
    assert {len(p) for p in picked} == {12}
    assert_mean_is(torch.cat(picked), 0.0, bias=0.1)


def test_the_tighter_bound_is_chosen():
    low, high = torch.zeros(16, 2, dtype=F64), torch.ones(16, 2, dtype=F64)
    bounds = [Bound("low", low, num_independent=16), Bound("high", high, num_independent=16)]
    assert chosen(bounds, highest=True).name == "high"
    assert chosen(bounds, highest=False).name == "low"
    assert chosen(bounds, highest=False).num_independent == 12
    assert chosen(bounds[:1], highest=True) is bounds[0]
    noisy = Bound("noisy", high + 10 * torch.randn(16, 2, generator=generator(0), dtype=F64))
    assert chosen([bounds[0], noisy], highest=True).name == "low"


def test_the_point_estimate_is_the_log_mean_and_heavy_weights_have_no_bar(seed: int):
    z = torch.randn(16, 500, generator=generator(seed), dtype=F64)
    light = point_estimate(0.3 * z - 0.045, 0.99, 0.0, Status.OK)
    assert abs(float(light.value)) < 2 * float(light.error)
    assert light.ok
    heavy = point_estimate(3.0 * z, 0.99, 0.0, Status.OK)
    assert heavy.error.isinf()
    assert heavy.flags == Status.UNRELIABLE_WEIGHTS
