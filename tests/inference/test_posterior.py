from __future__ import annotations

import pytest
import torch
from laws import assert_within
from problems.posteriors import PROBLEMS

import probcalc as pc
from probcalc import Target

GAUSSIAN, SKEWED = "linear_regression", "poisson_rate"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def skewed() -> pc.Posterior:
    return pc.fit(PROBLEMS[SKEWED]().target(), generator=seeded())


@pytest.fixture(scope="module")
def gaussian() -> pc.Posterior:
    return pc.fit(PROBLEMS[GAUSSIAN]().target(), generator=seeded())


def test_samples_have_the_reported_moments(skewed: pc.Posterior, gaussian: pc.Posterior):
    """Independent draws for an exact guide; a systematic resample, closer still, otherwise."""
    for p, site, n in ((skewed, "rate", 20_000), (gaussian, "beta", 200_000)):
        x = p.sample(n, seeded(3))[site].reshape(n, -1)
        mean, std = p.mean[site].value.reshape(-1), p.std[site].value.reshape(-1)
        assert ((x.mean(0) - mean).abs() < 6 * std / n**0.5).all()
        torch.testing.assert_close(x.std(0), std, rtol=0.02, atol=0.0)


def test_quantiles_are_those_of_the_exact_posterior(skewed: pc.Posterior):
    exact = torch.distributions.Gamma(torch.tensor(16.0).double(), torch.tensor(6.0).double())
    for level in (0.01, 0.05, 0.5, 0.95, 0.99):
        q = skewed.quantile(level)["rate"]
        low, high = q.value - q.error, q.value + q.error
        assert float(exact.cdf(low)) <= level <= float(exact.cdf(high))
        assert float(q.error) < float(exact.stddev) / 4


def test_expect_is_an_estimate_of_the_function(skewed: pc.Posterior):
    """E[rate²] = Var + mean², and a vector of functions at once."""
    e = skewed.expect(lambda v: torch.stack([v["rate"] ** 2, v["rate"]], dim=-1))
    exact = torch.tensor([16 / 36 + (16 / 6) ** 2, 16 / 6]).double()
    assert_within(e, exact)
    assert e.value.shape == (2,)
    torch.testing.assert_close(e.value[1], skewed.mean["rate"].value)


def test_expect_refuses_a_function_that_loses_the_draws(skewed: pc.Posterior):
    with pytest.raises(ValueError, match=r"must return shape \(\d+, \*out\) .* got \(\)"):
        skewed.expect(lambda v: v["rate"].mean())


def test_covariance_is_the_exact_one(gaussian: pc.Posterior):
    sd = PROBLEMS[GAUSSIAN]().std["beta"]
    torch.testing.assert_close(gaussian.covariance.value.diagonal().sqrt(), sd, rtol=1e-6, atol=0)
    assert gaussian.covariance.value.shape == (3, 3)
    torch.testing.assert_close(gaussian.covariance.value, gaussian.covariance.value.mT)


def test_log_prob_is_a_density_of_constrained_values(skewed: pc.Posterior):
    """It integrates to one over the constrained values."""
    rate = torch.linspace(1e-4, 40.0, 100_001).double()
    density = skewed.log_prob({"rate": rate}).exp()
    assert float(torch.trapezoid(density, rate)) == pytest.approx(1.0, abs=1e-4)


def test_raw_draws_are_those_of_the_guide(skewed: pc.Posterior):
    draws = skewed.sample_guide(50_000, seeded(1))["rate"].log()
    loc, scale = float(skewed.params["loc"]), float(skewed.params["scale_tril"])
    assert float(draws.mean()) == pytest.approx(loc, abs=6 * scale / 50_000**0.5)
    assert float(draws.std()) == pytest.approx(scale, rel=0.02)


def test_saved_and_loaded_it_is_the_same(skewed: pc.Posterior, tmp_path):
    path = tmp_path / "posterior.safetensors"
    skewed.save(path)
    bare = pc.load_posterior(path)
    assert bare.summary() == skewed.summary()
    assert bare.status == skewed.status
    assert bare.seed == skewed.seed
    assert torch.equal(bare.sample(10, seeded(2))["rate"], skewed.sample(10, seeded(2))["rate"])
    whole = pc.load_posterior(path, target=skewed.target)
    values = {"rate": torch.tensor([1.0, 2.0]).double()}
    assert torch.equal(whole.log_prob(values), skewed.log_prob(values))
    with pytest.raises(ValueError, match="needs the target; load with"):
        bare.log_prob(values)


def test_a_file_that_is_no_posterior_is_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(2)}, str(path))
    with pytest.raises(ValueError, match="is not a saved posterior of format 2"):
        pc.load_posterior(path)


@pytest.mark.parametrize("guide", ["mixture", "student"])
def test_every_guide_of_a_fit_is_saved(guide: str, tmp_path):
    problem = PROBLEMS["two_modes" if guide == "mixture" else "success_probability"]()
    p = pc.fit(problem.target(), generator=seeded())
    p.save(tmp_path / "p")
    loaded = pc.load_posterior(tmp_path / "p")
    assert loaded.guide == p.guide
    assert loaded.summary() == p.summary()


def test_summary_says_everything(skewed: pc.Posterior):
    text = repr(skewed)
    for word in ("rate", "mean", "sd", "5 %", "95 %", "ELBO", "k-hat", "evaluations", "verdict"):
        assert word in text
    assert "CORRECTED" in text
    assert f"{skewed.num_evals:,}" in text


def test_summary_of_some_sites_and_of_many_values():
    target = Target.from_function(
        lambda v: -0.5 * sum(x.square().sum() for x in v.values()), {"a": (100,), "ab": ()}
    )
    p = pc.fit(target, generator=seeded(), max_evals=8192, restarts=2)
    table = p.summary().split("\n\n")[0]
    assert "... 41 more" in table
    assert len(table.splitlines()) == 2 + 60 + 1
    assert len(p.summary("ab").split("\n\n")[0].splitlines()) == 2 + 1
    with pytest.raises(ValueError, match="unknown site 'abb'; did you mean 'ab'?"):
        p.summary("abb")


def test_bad_arguments_are_refused(skewed: pc.Posterior):
    with pytest.raises(ValueError, match="`level` must lie strictly between 0 and 1, got 1.0"):
        skewed.quantile(1.0)
    with pytest.raises(ValueError, match="`n` must be at least 1, got 0"):
        skewed.sample(0)


def test_a_flagged_posterior_has_no_error_bars_and_says_so():
    with pytest.warns(pc.EstimateWarning, match="Laplace flagged: no mode"):
        p = pc.laplace(Target.from_log_density(lambda x: x.sum(), 1), generator=seeded())
    assert p.mean["x"].error.isinf().all()
    assert not p.mean["x"].ok
    assert "UNRELIABLE" in p.summary()


def test_a_correction_within_its_noise_is_not_applied(gaussian: pc.Posterior):
    """The guide's own moments stay where the weights move them by less than their error."""
    assert gaussian.verdict == "good"
    torch.testing.assert_close(gaussian.mean["beta"].value, gaussian.x.mean(dim=(0, 1)))


def test_coverage_over_seeds():
    """The 99 % bars of a skewed posterior hold in repeated fits, and are not absurdly wide."""
    from laws import ALPHA
    from scipy.stats import binom

    problem = PROBLEMS[SKEWED]()
    target = problem.target()
    repeats, hits, widths = 100, 0, []
    for seed in range(repeats):
        p = pc.fit(target, generator=seeded(seed))
        hits += int((p.mean["rate"].value - 16 / 6).abs() <= p.mean["rate"].error)
        widths.append(float(p.mean["rate"].error))
    assert hits >= binom.ppf(ALPHA, repeats, 0.99)
    assert max(widths) < 0.1 * (16 / 36) ** 0.5
