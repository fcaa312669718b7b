"""Annealing: weights of the right mean in both directions, moves that leave a density as it is."""

from __future__ import annotations

import math

import pytest
import torch
from laws import assert_mean_is, generator

from probcalc import Target
from probcalc.inference.annealed import (
    AnnealedImportance,
    Bridge,
    Schedule,
    find_schedule,
    forward,
    hamiltonian,
    reverse,
)
from probcalc.inference.guides import FullRank, GaussianMixture

F64 = torch.float64
LOG_Z = 0.7
# near enough to the guide of scale 1 for weights and their inverses to have light tails
MEAN, SD = torch.tensor([0.2, -0.2], dtype=F64), torch.tensor([0.9, 1.1], dtype=F64)


def normal_target(log_z: float = LOG_Z) -> Target:
    constant = log_z - math.log(2 * math.pi) - float(SD.log().sum())
    return Target.from_log_density(lambda x: constant - 0.5 * ((x - MEAN) / SD).square().sum(), 2)


def bridge(scale: float = 1.0, target: Target | None = None) -> Bridge:
    params = {"loc": torch.zeros(2, dtype=F64), "scale_tril": scale * torch.eye(2, dtype=F64)}
    z = scale * torch.randn(2000, 2, generator=generator(0), dtype=F64)
    return Bridge.between(target or normal_target(), FullRank(), params, z)


def test_weights_have_mean_z_and_their_inverses_one_over_z(seed: int):
    """Whatever the schedule: the one here is coarse and its steps are no good."""
    stream = generator(seed)
    schedule = Schedule((0.0, 0.2, 0.7, 1.0), (1.1, 0.5), 0.8, True, 0)
    settings = AnnealedImportance(num_particles=30_000, num_leapfrog=2, num_moves=1)
    log_w, _ = forward(bridge(), schedule, settings, 1, stream)
    assert_mean_is((log_w[0] - LOG_Z).exp(), 1.0, bias=0.05)
    z = MEAN + SD * torch.randn(1, 30_000, 2, generator=stream, dtype=F64)
    log_w = reverse(bridge(), schedule, settings, z, stream)
    assert_mean_is((LOG_Z - log_w[0]).exp(), 1.0, bias=0.05)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_moves_leave_the_bridge_as_it_is(beta: float, seed: int):
    """Between two Gaussians the bridge is one: precisions and weighted means add."""
    stream, ends = generator(seed), bridge()
    precision = (1 - beta) + beta / SD.square()
    mean, sd = beta * MEAN / SD.square() / precision, precision.rsqrt()
    start = ends.at(mean + sd * torch.randn(30_000, 2, generator=stream, dtype=F64))
    moved, rate = hamiltonian(ends, start, beta, 0.8, 4, stream)
    u = torch.special.ndtr((moved.z - mean) / sd)  # uniform
    assert 0.3 < float(rate.mean()) < 0.999
    moments = torch.cat([u, u.square(), u.prod(dim=1, keepdim=True)], dim=1)
    exact = torch.tensor([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 4], dtype=F64)
    assert_mean_is(moments, exact, bias=0.06)
    assert float((moved.z - start.z).abs().mean()) > 0.3 * float(sd.min())


def test_the_target_itself_as_the_guide_takes_one_step(seed: int):
    params = {"loc": MEAN, "scale_tril": torch.diag(SD)}
    z = MEAN + SD * torch.randn(2000, 2, generator=generator(0), dtype=F64)
    ends = Bridge.between(normal_target(), FullRank(), params, z)
    settings = AnnealedImportance(num_particles=4)
    schedule = find_schedule(ends, settings, generator(seed))
    assert schedule.betas == (0.0, 1.0)
    assert schedule.gradients(settings) == 1
    log_w, _ = forward(ends, schedule, settings, 3, generator(seed))
    torch.testing.assert_close(log_w, torch.full((3, 4), LOG_Z, dtype=F64))


def test_finer_steps_give_more_temperatures_and_quieter_weights(seed: int):
    spreads, counts = [], []
    for share in (0.7, 0.99):
        settings = AnnealedImportance(num_particles=500, conditional_ess=share)
        ends = bridge(3.0)
        schedule = find_schedule(ends, settings, generator(seed))
        betas = torch.tensor(schedule.betas)
        assert bool((betas.diff() > 0).all())
        assert betas[0] == 0.0
        assert betas[-1] == 1.0
        assert schedule.is_complete
        assert len(schedule.steps) == len(betas) - 2
        log_w, _ = forward(ends, schedule, settings, 1, generator(seed))
        spreads.append(float(log_w.std()))
        counts.append(schedule.num_temperatures)
    assert counts[1] > 2 * counts[0]
    assert spreads[1] < 0.7 * spreads[0]


def test_too_few_temperatures_are_said(seed: int):
    settings = AnnealedImportance(max_temperatures=3, conditional_ess=0.99)
    schedule = find_schedule(bridge(6.0), settings, generator(seed))
    assert schedule.num_temperatures == 3
    assert not schedule.is_complete


def test_particles_outside_the_support_have_no_weight_and_spoil_none(seed: int):
    """Half of a normal: log p is NaN on the other half."""
    target = Target.from_log_density(lambda x: -0.5 * x.square().sum() + 0 * x[0].log(), 1)
    params = {"loc": torch.ones(1, dtype=F64), "scale_tril": torch.ones(1, 1, dtype=F64)}
    z = 1 + torch.randn(500, 1, generator=generator(0), dtype=F64)
    ends = Bridge.between(target, FullRank(), params, z)
    settings = AnnealedImportance(num_particles=30_000)
    schedule = Schedule((0.0, 0.5, 1.0), (0.4,), 0.8, True, 0)
    log_w, _ = forward(ends, schedule, settings, 1, generator(seed))
    assert not log_w.isnan().any()
    assert_mean_is(log_w[0].exp(), (math.pi / 2) ** 0.5, bias=0.05)


def test_strata_of_a_mixture_are_kept_in_every_block(seed: int):
    params = {
        "loc": torch.tensor([[3.0], [-3.0], [0.0]], dtype=F64),
        "scale_tril": torch.ones(3, 1, 1, dtype=F64),
    }
    target = Target.from_log_density(lambda x: -0.5 * x.square().sum(), 1)
    z = torch.randn(100, 1, generator=generator(0), dtype=F64)
    ends = Bridge.between(target, GaussianMixture(3), params, z)
    settings = AnnealedImportance(num_particles=64, num_pilots=16)
    schedule = find_schedule(ends, settings, generator(seed))
    assert forward(ends, schedule, settings, 5, generator(seed))[0].shape == (5, 66)


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"num_particles": 0}, "`num_particles` must be at least 1, got 0"),
        ({"num_pilots": 4}, "`num_pilots` must be at least 16, got 4"),
        ({"conditional_ess": 1.0}, "`conditional_ess` must lie strictly between 0 and 1, got 1.0"),
        ({"acceptance": 0.0}, "`acceptance` must lie strictly between 0 and 1, got 0.0"),
    ],
)
def test_bad_settings_are_refused(setting, match):
    with pytest.raises(ValueError, match=match):
        AnnealedImportance(**setting)
