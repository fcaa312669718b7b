"""Long runs: right moments, honest standard errors, and refusal where the chains are no good."""

from __future__ import annotations

import pytest
import torch

from probcalc.inference.target import Target
from probcalc.reference import LongRun, long_run

LOC = torch.tensor([1.0, -2.0], dtype=torch.float64)
STD = torch.tensor([0.5, 3.0], dtype=torch.float64)
SHORT = LongRun(min_effective=200, num_draws=200, num_warmup=100)


@pytest.fixture(scope="module")
def gaussian() -> Target:
    distribution = torch.distributions.Independent(torch.distributions.Normal(LOC, STD), 1)
    return Target.from_distribution(distribution)


def test_moments_of_a_gaussian_within_their_standard_errors(gaussian: Target):
    """Five standard errors, which NUTS' own autocorrelation must not have made too small."""
    stages = []
    reference = long_run(
        gaussian, seed=1, settings=SHORT, progress=lambda stage, n: stages.append((stage, n))
    )
    for row, loc, std in zip(reference.rows.values(), LOC, STD, strict=True):
        assert abs(row.mean - loc) < 5 * row.mean_error
        assert abs(row.std - std) < 5 * row.std_error
        assert 0.3 < row.mean_error / (std / 800**0.5) < 3.0
    assert reference.source.startswith("Pyro's NUTS, ")
    assert stages[0] == ("chain 1", 100)
    assert "chain 4" in dict(stages)


def test_one_seed_one_reference_and_no_trace_in_the_global_stream(gaussian, monkeypatch):
    monkeypatch.setattr("probcalc.reference._MAX_RHAT", 2.0)  # short chains will do here
    before = torch.get_rng_state()
    settings = LongRun(min_effective=20, num_draws=60, num_warmup=60)
    first, second = (long_run(gaussian, seed=2, settings=settings) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)


def test_chains_that_mix_too_slowly_are_refused(gaussian: Target, monkeypatch):
    monkeypatch.setattr("probcalc.reference._MAX_CHAINS", 4)
    settings = LongRun(min_effective=10**6, num_draws=50, num_warmup=50)
    with pytest.raises(ArithmeticError, match=r"effective draws \(wanted 1000000\)"):
        long_run(gaussian, seed=0, settings=settings)
