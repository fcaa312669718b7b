"""Many short chains: draws of the target, and chains that disagree are seen."""

from __future__ import annotations

import pytest
import torch
from laws import ALPHA, generator
from scipy.stats import norm

from probcalc import Target
from probcalc.inference.annealed import AnnealedImportance, Bridge, find_schedule
from probcalc.inference.guides import FullRank
from probcalc.inference.particles import Ensemble, FromAnnealing

F64 = torch.float64
ANNEALING = AnnealedImportance(num_particles=32, num_leapfrog=4, num_pilots=64)


def ensemble(scale: float, seed: int) -> Ensemble:
    """Draws of N(2, 0.5²) and N(−1, 3²), from a guide of this scale around zero."""
    loc, sd = torch.tensor([2.0, -1.0], dtype=F64), torch.tensor([0.5, 3.0], dtype=F64)
    target = Target.from_log_density(lambda x: -0.5 * ((x - loc) / sd).square().sum(), 2)
    params = {"loc": torch.zeros(2, dtype=F64), "scale_tril": scale * torch.eye(2, dtype=F64)}
    z = scale * torch.randn(500, 2, generator=generator(0), dtype=F64)
    bridge = Bridge.between(target, FullRank(), params, z)
    stream = generator(seed)
    schedule = find_schedule(bridge, ANNEALING, stream)
    return FromAnnealing(num_moves=30).run(bridge, schedule, ANNEALING, 16, stream)


def test_draws_have_the_moments_of_the_target(seed: int):
    """Blocks are independent: their spread is the standard error."""
    found = ensemble(1.5, seed)
    assert found.z.shape == (16, 4, 32, 2)
    assert found.fault == ""
    u = (found.z - torch.tensor([2.0, -1.0], dtype=F64)) / torch.tensor([0.5, 3.0], dtype=F64)
    u = torch.special.ndtr(u).flatten(1, 2)
    for values, exact in ((u, 1 / 2), (u.square(), 1 / 3)):
        blocks = values.mean(dim=1)
        error = norm.isf(ALPHA) * blocks.std(dim=0) / 16**0.5
        # Student's t of 15 degrees has tails twice as far out there
        assert ((blocks.mean(dim=0) - exact).abs() < 2 * error).all()


def test_blocks_that_stay_apart_are_seen():
    apart = torch.randn(16, 4, 32, 2, generator=generator(1), dtype=F64)
    assert Ensemble(apart, 0.8, 1.03, 0).fault == ""
    apart[:4, ..., 1] += 1.0
    assert Ensemble(apart, 0.8, 1.03, 0).fault.startswith("the chains disagree: nested R-hat 1.")


def test_chains_that_stand_still_are_seen():
    still = torch.randn(16, 4, 32, 2, generator=generator(1), dtype=F64)
    assert "only 5% of the moves were accepted" in Ensemble(still, 0.05, 1.03, 0).fault


def test_draws_of_something_narrower_break_the_identity_of_stein():
    """N(0, 1) needs E z² = 1: draws of sd 0.8 are no draws of it, though all blocks agree."""
    z = torch.randn(16, 4, 32, 2, generator=generator(1), dtype=F64)
    assert Ensemble(z, 0.8, 1.03, 0, -z).fault == ""
    assert "Stein's identity fails" in Ensemble(0.8 * z, 0.8, 1.03, 0, -0.8 * z).fault


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="`num_moves` must be at least 8 and"):
        FromAnnealing(num_moves=2)
    with pytest.raises(ValueError, match="`max_rhat` must be above 1, got 1.0"):
        FromAnnealing(max_rhat=1.0)
