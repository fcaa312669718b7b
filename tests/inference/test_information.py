"""Leave-one-out and WAIC against closed forms of a conjugate regression."""

from __future__ import annotations

import re
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import ALPHA, assert_within
from problems import linear_model
from problems.eight_schools import schools_centred, schools_data
from scipy.stats import binom
from torch.distributions import Normal

import probcalc as pc
from probcalc import Status, Target
from probcalc.inference.guides import MeanField
from probcalc.inference.importance import weighted_draws
from probcalc.inference.information import compare_scores, loo, waic
from probcalc.inference.pointwise import pointwise_log_likelihood
from probcalc.result import half_width

X, Y = linear_model.data()
EXACT = linear_model.Exact(X, Y)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def target() -> Target:
    return linear_model.target(X, Y)


@pytest.fixture(scope="module")
def posterior(target: Target) -> pc.Posterior:
    return pc.fit(target, generator=seeded())


def test_rows_are_those_of_the_likelihood(target: Target):
    """Functions and the Pyro model agree with the formula."""
    b = torch.randn(7, 2, generator=seeded(), dtype=torch.float64)
    exact = Normal(b @ X.mT, 1.0).log_prob(Y)
    for own in (target, Target.from_pyro(linear_model.model, X, Y)):
        torch.testing.assert_close(pointwise_log_likelihood(own, {"b": b}), exact)


def test_rows_of_a_mixture_are_summed_over_its_components():
    y = torch.tensor([-1.0, 0.3, 4.0], dtype=torch.float64)

    def model(y: torch.Tensor) -> None:
        gap = pyro.sample("gap", dist.Normal(3.0, 1.0))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.25))
            pyro.sample("y", dist.Normal(z * gap, 1.0), obs=y)

    gap = torch.tensor([2.0, 5.0]).double()
    rows = pointwise_log_likelihood(Target.from_pyro(model, y), {"gap": gap})
    parts = [
        w.log() + Normal(m[:, None], 1.0).log_prob(y)
        for w, m in ((torch.tensor(0.75), 0 * gap), (torch.tensor(0.25), gap))
    ]
    torch.testing.assert_close(rows, torch.logaddexp(*parts))


def test_rows_that_share_a_discrete_site_are_refused():
    def model(y: torch.Tensor) -> None:
        gap = pyro.sample("gap", dist.Normal(3.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.25))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(z * gap, 1.0), obs=y)

    target = Target.from_pyro(model, torch.zeros(3))
    with pytest.raises(ValueError, match="depend on each other through the discrete site 'z'"):
        pointwise_log_likelihood(target, {"gap": torch.zeros(2).double()})


def test_a_target_without_rows_is_refused(posterior: pc.Posterior):
    bare = Target.from_log_density(lambda x: -x.square().sum(), 2)
    with pytest.raises(ValueError, match="does not know its data"):
        pointwise_log_likelihood(bare, {"x": torch.zeros(3, 2).double()})


@pytest.mark.parametrize("guide", [None, MeanField()], ids=["exact guide", "mean field"])
def test_leave_one_out_is_the_exact_one(target: Target, guide: MeanField | None):
    """The weights correct the guide and leave the row out at once."""
    score = loo(target, pc.fit(target, guide=guide, generator=seeded(1)))
    assert score.ok
    assert_within(score.elpd, EXACT.left_out().sum())
    assert float(score.elpd.error) < 0.5
    spread = len(Y) ** 0.5 * EXACT.left_out().std()
    assert score.std_error == pytest.approx(float(spread), rel=0.02)
    seen = EXACT.predictive(X).log_prob(Y).sum()
    bar = float(score.elpd.error)
    exact = float(seen - EXACT.left_out().sum())
    assert score.num_effective == pytest.approx(exact, abs=3 * bar)


def test_waic_is_the_exact_one(target: Target, posterior: pc.Posterior):
    """Σ log N(y; xm, 1 + h) − (r² h + h²/2), with h = x S x the variance of x·b."""
    score = waic(target, posterior)
    h = torch.einsum("ni,ij,nj->n", X, EXACT.covariance, X)
    r = Y - X @ EXACT.mean
    penalty = r.square() * h + 0.5 * h.square()
    exact = EXACT.predictive(X).log_prob(Y) - penalty
    error = half_width(score.elpd.std_error, score.elpd.dof, 1 - ALPHA)
    assert abs(float(score.elpd.value - exact.sum())) < float(error)
    assert score.num_effective == pytest.approx(float(penalty.sum()), abs=2 * float(error))
    assert score.ok == bool((penalty < 0.4).all())


def test_bars_of_the_computation_cover(target: Target, posterior: pc.Posterior):
    """Over fresh draws of the exact guide, 99 % bars hold."""
    repeats, hits = 60, 0
    for seed in range(repeats):
        fresh = weighted_draws(
            posterior.target,
            posterior.guide,
            posterior.params,
            num_replicates=16,
            num_draws=256,
            generator=seeded(seed),
        )
        kept = {k: getattr(fresh, k) for k in ("z", "x", "log_ratios", "log_weights", "khat")}
        score = loo(target, replace(posterior, **kept, seed=seed))
        hits += int((score.elpd.value - EXACT.left_out().sum()).abs() <= score.elpd.error)
    assert hits >= binom.ppf(ALPHA, repeats, 0.99)


def test_an_outlier_that_weights_cannot_leave_out_is_named():
    y = Y.clone()
    y[7] += 12.0
    target = linear_model.target(X, y)
    score = loo(target, pc.fit(target, generator=seeded()))
    assert score.status == Status.UNRELIABLE_WEIGHTS
    assert score.elpd.error.isinf()
    assert int(score.khat.argmax()) == 7
    assert re.search(r"\b7\b.* ha(s|ve) k-hat above", score.reasons[0])
    flagged = waic(target, pc.fit(target, generator=seeded()))
    assert not flagged.ok
    assert "use `loo`" in flagged.reasons[0]
    assert score.reasons[0] in repr(score)


def test_eight_schools_in_the_coordinates_of_its_fit():
    """The known elpd of the hierarchical model, whatever coordinates the fit chose."""
    target = Target.from_pyro(schools_centred, *schools_data())
    score = loo(target, pc.fit(target, generator=seeded()))
    assert float(score.elpd.value) == pytest.approx(-30.8, abs=0.2)  # published figure of ArviZ
    assert score.num_effective == pytest.approx(0.95, abs=0.2)


def test_a_posterior_of_another_target_is_refused(posterior: pc.Posterior):
    other = linear_model.target(X, Y + 1.0)
    with pytest.raises(ValueError, match="one of another target"):
        loo(other, posterior)


def test_models_are_ordered_with_the_error_of_their_difference(
    target: Target, posterior: pc.Posterior
):
    def without(values: dict, row: tuple) -> torch.Tensor:
        return Normal(row[0][0] * values["b"][0], 1.0).log_prob(row[1])

    worse = Target.from_function(
        linear_model.log_prior, {"b": (2,)}, log_likelihood=without, data=(X, Y)
    )
    scores = {
        "one column": loo(worse, pc.fit(worse, generator=seeded())),
        "both": loo(target, posterior),
    }
    found = compare_scores(scores)
    assert list(found.scores) == ["both", "one column"]
    gap = scores["one column"].rows - scores["both"].rows
    assert found.std_error["one column"] == pytest.approx(float(len(Y) ** 0.5 * gap.std()))
    assert float(found.difference["one column"].value) == pytest.approx(float(gap.sum()))
    assert found.std_error["both"] == 0.0
    assert "one column" in repr(found)
    with pytest.raises(ValueError, match="at least 2 scores, got 1"):
        compare_scores({"both": scores["both"]})
    with pytest.raises(ValueError, match="by one method and of the same rows"):
        compare_scores({"a": scores["both"], "b": waic(target, posterior)})


def test_fewer_draws_on_request(target: Target, posterior: pc.Posterior):
    score = loo(target, posterior, max_draws=1024)
    assert score.elpd.num_evals == 1024
    whole = loo(target, posterior)
    assert float(whole.elpd.std_error) < float(score.elpd.std_error)
