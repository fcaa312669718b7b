"""Predictions against closed forms: moments, quantiles, p-values, their bars and their flags."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from laws import ALPHA, assert_within
from problems import linear_model
from scipy.stats import binom
from torch.distributions import Normal

import probcalc as pc
from probcalc import Status, Target
from probcalc.inference.predictive import Prediction, predict

X, Y = linear_model.data()
EXACT = linear_model.Exact(X, Y)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


TARGETS = {
    "functions": lambda: linear_model.target(X, Y),
    "pyro": lambda: Target.from_pyro(linear_model.model, X, Y),
}


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return TARGETS[request.param]()


@pytest.fixture(scope="module")
def posterior(target: Target) -> pc.Posterior:
    return pc.fit(target, generator=seeded())


def outcome(prediction: Prediction) -> str:
    return "y" if "y" in prediction.draws else "data[1]"


def test_posterior_predictions_have_the_exact_moments(target: Target, posterior: pc.Posterior):
    found = predict(target, posterior, generator=seeded(1))
    site, exact = outcome(found), EXACT.predictive(X)
    assert_within(found.mean[site], exact.mean)
    assert_within(found.std[site], exact.stddev)
    assert float(found.mean[site].error.max()) < 0.2
    wide = predict(target, posterior, confidence=1 - ALPHA, generator=seeded(1))
    q = wide.quantile(0.9)[site]
    assert (exact.cdf(q.value - q.error) < 0.9).all()
    assert (exact.cdf(q.value + q.error) > 0.9).all()
    assert found.num_draws == 4096
    assert found.ok


def test_prior_predictions_have_the_exact_moments(target: Target):
    found = predict(target, generator=seeded(1), num_draws=16_384)
    site = outcome(found)
    variance = 1 + linear_model.PRIOR_SD**2 * X.square().sum(dim=1)
    assert_within(found.mean[site], torch.zeros_like(Y))
    assert_within(found.std[site], variance.sqrt())
    assert found.method == "prior"


def test_a_prior_without_a_sampler_is_fitted():
    found = predict(linear_model.target(X, Y, has_prior=False), generator=seeded(1))
    variance = 1 + linear_model.PRIOR_SD**2 * X.square().sum(dim=1)
    assert_within(found.std["data[1]"], variance.sqrt())


def test_new_inputs_give_new_outcomes():
    target = TARGETS["pyro"]()
    new = torch.tensor([[3.0, 0.0], [0.0, -3.0], [1.0, 1.0]], dtype=torch.float64)
    posterior = pc.fit(target, generator=seeded())
    found = predict(target, posterior, new_data={"X": new, "y": None}, generator=seeded(1))
    exact = EXACT.predictive(new)
    assert_within(found.mean["y"], exact.mean)
    assert_within(found.std["y"], exact.stddev)
    assert found.values["mu"].shape == (4096, 3)
    with pytest.raises(ValueError, match="of other rows"):
        found.checks()


def test_p_values_are_the_exact_ones(target: Target, posterior: pc.Posterior):
    """The mean of predicted outcomes is normal: its p-value is known."""
    found = predict(target, posterior, num_draws=16_384, generator=seeded(1))
    a = X.mean(dim=0)
    law = Normal(a @ EXACT.mean, (1 / len(Y) + a @ EXACT.covariance @ a).sqrt())
    (check,) = found.checks({"mean": lambda y: y.mean(dim=0)})
    assert_within(check.p_value, 1 - law.cdf(Y.mean()))
    assert float(check.p_value.error) < 0.05
    assert check.observed == pytest.approx(float(Y.mean()))
    assert check.site == outcome(found)


def test_bars_of_p_values_cover(target: Target, posterior: pc.Posterior):
    a = X.mean(dim=0)
    law = Normal(a @ EXACT.mean, (1 / len(Y) + a @ EXACT.covariance @ a).sqrt())
    exact, repeats, hits = float(1 - law.cdf(Y.mean())), 60, 0
    for seed in range(repeats):
        found = predict(target, posterior, num_draws=1024, generator=seeded(seed))
        (check,) = found.checks({"mean": lambda y: y.mean(dim=0)})
        hits += int(abs(float(check.p_value.value) - exact) <= float(check.p_value.error))
    assert hits >= binom.ppf(ALPHA, repeats, 0.99)


def test_data_that_the_model_does_not_make_are_extreme():
    """Outcomes with six times the spread that the model knows of: sd and ends stand out."""
    y = X @ EXACT.mean + 6 * torch.randn(20, generator=seeded(3), dtype=torch.float64)
    target = linear_model.target(X, y)
    found = predict(target, pc.fit(target, generator=seeded()), generator=seeded(1))
    by_name = {check.name: check for check in found.checks()}
    assert by_name["sd"].is_extreme
    assert float(by_name["sd"].p_value.value) < 0.01
    assert not by_name["mean"].is_extreme
    assert "sd" in repr(found)
    assert float(by_name["sd"].p_value.error) >= 4.6 / 4096  # none in so many says no more


def test_statistics_are_the_users_own(target: Target, posterior: pc.Posterior):
    """One that `vmap` refuses gives the same as one that it takes."""
    found = predict(target, posterior, num_draws=64, generator=seeded(1))
    by_vmap, by_loop = (
        found.checks({"largest": statistic})[0]
        for statistic in (lambda y: y.abs().max(), lambda y: max(y.abs().tolist()))
    )
    assert torch.equal(by_vmap.replicated, by_loop.replicated)


def test_inputs_are_not_checked():
    target = TARGETS["functions"]()
    found = predict(target, pc.fit(target, generator=seeded()), generator=seeded(1))
    assert set(found.draws) == {"data[0]", "data[1]"}
    assert {check.site for check in found.checks()} == {"data[1]"}


def test_a_flagged_posterior_makes_flagged_predictions(target: Target, posterior: pc.Posterior):
    flagged = replace(posterior, status=Status.UNRELIABLE_WEIGHTS, reasons=("because",))
    found = predict(target, flagged, generator=seeded(1))
    assert not found.ok
    assert found.mean[outcome(found)].error.isinf().all()
    assert found.checks()[0].p_value.error.isinf()
    assert "because" in repr(found)


def test_weights_are_resampled(target: Target, posterior: pc.Posterior):
    """All the weight on draws with b[0] above its mean: predictions follow."""
    above = posterior.x[..., 0] > float(EXACT.mean[0])
    tilted = replace(posterior, log_weights=torch.where(above, 0.0, -torch.inf).double())
    found = predict(target, tilted, generator=seeded(1))
    assert (found.values["b"][:, 0] > float(EXACT.mean[0])).all()


def test_the_same_seed_gives_the_same_predictions(target: Target, posterior: pc.Posterior):
    one, two, other = (
        predict(target, posterior, num_draws=64, generator=seeded(s)) for s in (1, 1, 2)
    )
    site = outcome(one)
    assert torch.equal(one.draws[site], two.draws[site])
    assert not torch.equal(one.draws[site], other.draws[site])


def test_bad_arguments_are_refused(target: Target, posterior: pc.Posterior):
    with pytest.raises(ValueError, match="`num_draws` must be at least 32, two for each of 16"):
        predict(target, posterior, num_draws=10)
    with pytest.raises(ValueError, match="`level` must lie strictly between 0 and 1, got 0.0"):
        predict(target, posterior, num_draws=64).quantile(0.0)
