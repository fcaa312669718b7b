from __future__ import annotations

import pytest
import torch

import probcalc as pc
from probcalc.inference.gradient_noise import gradient_noise
from probcalc.inference.objectives import ELBO, ClosedEntropy, StickTheLanding, TotalGradient

F64 = torch.float64


def target() -> pc.Target:
    return pc.Target.from_log_density(lambda x: -0.5 * x.square().sum(), 2)


def at(loc: float, log_scale: float) -> dict[str, torch.Tensor]:
    return {k: torch.full((2,), v, dtype=F64) for k, v in (("loc", loc), ("log_scale", log_scale))}


def test_at_the_optimum_the_landing_sticks(generator: torch.Generator):
    rows = gradient_noise(target(), pc.MeanField(), at(0.0, 0.0), generator=generator)
    assert rows[0].objective == ELBO(StickTheLanding())
    assert rows[0].variance < 1e-28
    total = next(r for r in rows if r.objective == ELBO(TotalGradient()))
    assert total.variance > 0.1


def test_far_away_the_closed_entropy_is_as_quiet(generator: torch.Generator):
    """loc: derivative −z, of sd σ/√n for both; the landing adds −(log q)′ of the draws."""
    rows = gradient_noise(target(), pc.MeanField(), at(1.0, -2.0), generator=generator)
    by = {type(r.objective.gradient): r for r in rows}
    assert by[ClosedEntropy].variance < by[StickTheLanding].variance
    assert by[pc.ScoreFunction].variance > by[ClosedEntropy].variance
    expected = torch.exp(torch.tensor(-2.0, dtype=F64)) / 16**0.5
    ratio = by[ClosedEntropy].std["loc"] / expected
    assert bool((ratio - 1).abs().max() < 0.25)  # six sds of a standard deviation of 256
    torch.testing.assert_close(
        by[ClosedEntropy].signal_to_noise["loc"],
        by[ClosedEntropy].mean["loc"].abs() / by[ClosedEntropy].std["loc"],
    )


def test_what_a_guide_does_not_have_stands_last_with_the_reason(generator: torch.Generator):
    rows = gradient_noise(target(), pc.StudentT(), generator=generator, num_repeats=8)
    assert "no entropy in closed form" in rows[-1].refused
    assert "refused" in repr(rows[-1])
    assert "signal to noise" in repr(rows[0])
    with pytest.raises(ValueError, match="at least 2, got 1"):
        gradient_noise(target(), pc.StudentT(), num_repeats=1)


def test_a_single_objective_is_a_list_of_one(generator: torch.Generator):
    rows = gradient_noise(
        target(), pc.MeanField(), at(0.0, 0.0), objectives=pc.ELBO(), generator=generator
    )
    assert [row.objective for row in rows] == [ELBO()]


def test_an_estimator_is_no_objective():
    with pytest.raises(TypeError, match=r"no objective: `ELBO\(StickTheLanding\(\)\)`"):
        gradient_noise(target(), pc.MeanField(), objectives=[StickTheLanding()])
    with pytest.raises(TypeError, match=r"no objective: `ELBO\(ClosedEntropy\(\)\)`"):
        pc.elbo(target(), pc.MeanField(), objective=ClosedEntropy())
    with pytest.raises(TypeError, match=r"such as `ELBO\(\)` is needed, got int"):
        pc.elbo(target(), pc.MeanField(), objective=3)
