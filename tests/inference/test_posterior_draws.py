"""Draws for the upper end: blocks, weights, and refusals."""

from __future__ import annotations

import pytest
import torch
from laws import generator
from torch.distributions import constraints

import probcalc as pc
from probcalc import Target
from probcalc.inference.posterior_draws import from_caller, resampled
from probcalc.status import Status


@pytest.fixture(scope="module")
def target() -> Target:
    log_normal = lambda v: -0.5 * v["rate"].log().square() - v["rate"].log()
    return Target.from_function(log_normal, {"rate": ()}, {"rate": constraints.positive})


@pytest.fixture(scope="module")
def posterior(target: Target) -> pc.Posterior:
    return pc.laplace(target, generator=generator(0))


def test_blocks_are_neighbours_and_log_ratios_those_of_the_guide(target, posterior):
    rate = torch.linspace(0.1, 3.5, 35, dtype=torch.float64)
    draws = from_caller(target, posterior, {"rate": rate})
    assert draws.are_exact
    assert draws.z.shape == (16, 2, 1)  # the last three fill no block
    torch.testing.assert_close(draws.z.flatten().exp(), rate[:32])
    exact = target.log_density(draws.z) - posterior.guide.log_prob(posterior.params, draws.z)
    torch.testing.assert_close(draws.log_ratios, exact)
    assert float(draws.weights.sum()) == pytest.approx(1.0)


def test_picked_draws_follow_the_weights(target, posterior):
    draws = from_caller(target, posterior, {"rate": torch.rand(320).double() + 0.5})
    weights = torch.zeros_like(draws.weights)
    weights[:, 3], weights[:, 7] = 0.75, 0.25
    picked = type(draws)(**{**vars(draws), "weights": weights / 16}).picked(8, generator(0))
    assert picked.shape == (16, 8, 1)
    counts = (picked == draws.z[:, 3:4]).sum(dim=1).flatten()
    assert bool((counts == 6).all())


def test_resampled_draws_carry_the_posterior_and_its_flag(posterior):
    draws = resampled(posterior)
    assert not draws.are_exact
    assert torch.equal(draws.z, posterior.z)
    assert float(draws.weights.sum()) == pytest.approx(1.0)
    assert draws.status == posterior.status & Status.UNRELIABLE_WEIGHTS


def test_values_outside_the_support_are_refused(target, posterior):
    rate = torch.ones(32, dtype=torch.float64)
    with pytest.raises(ValueError, match="rate"):
        from_caller(target, posterior, {"rate": -rate})
    rate[20] = -1.0
    with pytest.raises(ValueError, match="draw 20 does not"):
        from_caller(target, posterior, {"rate": rate})
    rate[20] = float("nan")
    with pytest.raises(ValueError, match="`posterior_draws"):
        from_caller(target, posterior, {"rate": rate})
