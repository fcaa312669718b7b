from __future__ import annotations

import pytest
import torch
from problems.posteriors import PROBLEMS

import probcalc as pc
from probcalc import Status
from probcalc.inference.sample_average import runs_away

F64 = torch.float64
P = torch.tensor([[2.0, 0.9], [0.9, 1.0]], dtype=F64)
GAUSSIAN = pc.Target.from_log_density(lambda x: -0.5 * (x - 1) @ P @ (x - 1), 2)
LOG_Z = torch.log(torch.tensor(2 * torch.pi, dtype=F64)) - 0.5 * P.logdet()
EXACT = {  # guides that contain a Gaussian of two dimensions
    "full rank": pc.FullRank(),
    "low rank": pc.LowRank(rank=1),
}


def solved(guide: object, target: pc.Target, **settings: object) -> object:
    params = guide.init(target, torch.Generator().manual_seed(1))
    return pc.SampleAverage(**settings).solve(target, guide, params, seed=2)


@pytest.mark.parametrize("name", EXACT)
def test_a_guide_that_contains_the_density_finds_it(name: str):
    found = solved(EXACT[name], GAUSSIAN)
    loc, covariance = EXACT[name].moments(found.params)
    torch.testing.assert_close(loc, torch.ones(2, dtype=F64), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(covariance, P.inverse(), rtol=2e-2, atol=2e-2)
    assert abs(float(found.trace[-1] - LOG_Z)) < 1e-2
    assert found.status == Status.OK


def test_mean_field_finds_the_conditional_variances():
    found = solved(pc.MeanField(), GAUSSIAN)
    sd = found.params["log_scale"].exp()
    torch.testing.assert_close(sd, P.diagonal().rsqrt(), rtol=1e-3, atol=0)


def test_draws_are_doubled_until_fresh_ones_agree():
    """A tight tolerance takes more draws, and ends with a smaller gap."""
    target = PROBLEMS["proportions"]().target()
    loose = solved(pc.MeanField(), target, num_draws=8, tolerance=10.0)
    tight = solved(pc.MeanField(), target, num_draws=8, max_draws=1024, tolerance=1e-3)
    assert loose.diagnostics["num_draws"] == 8
    assert tight.diagnostics["num_draws"] > 8
    assert tight.num_gradients > loose.num_gradients


def test_an_improper_density_is_called_so():
    found = solved(pc.MeanField(), pc.Target.from_log_density(lambda x: 0.0 * x.sum(), 2))
    assert found.status == Status.IMPROPER
    assert "no maximum" in found.reasons[0]


def test_a_scale_runs_away_by_its_logarithm():
    assert not runs_away({"loc": torch.zeros(2), "log_scale": torch.full((2,), 10.0)})
    assert runs_away({"loc": torch.zeros(2), "log_scale": torch.full((2,), 30.0)})
    assert runs_away({"loc": torch.tensor([torch.nan])})


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="`num_sets` must be at least 1"):
        pc.SampleAverage(num_sets=0)
