from __future__ import annotations

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems.eight_schools import schools_centred, schools_data, schools_non_centred
from problems.posteriors import GAUSSIAN, PROBLEMS
from torch import Tensor
from torch.distributions import constraints

import probcalc as pc
from probcalc import EstimateWarning, Status, Target


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flagged(target: Target, **options) -> pc.Posterior:
    """The posterior of a target that must not go through in silence."""
    with pytest.warns(EstimateWarning):
        posterior = pc.fit(target, generator=seeded(), **options)
    assert not posterior.ok
    assert posterior.reasons
    assert all(e.error.isinf().all() for e in posterior.mean.values())
    return posterior


@pytest.mark.parametrize("name", GAUSSIAN)
def test_gaussian_posteriors_are_exact(name: str):
    """Mean, sd and evidence to 1e-6, the correction adds no noise, and the verdict is good."""
    problem = PROBLEMS[name]()
    p = pc.fit(problem.target(), generator=seeded())
    assert p.verdict == "good"
    for site, exact in problem.mean.items():
        torch.testing.assert_close(p.mean[site].value, exact, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(p.std[site].value, problem.std[site], rtol=1e-6, atol=0.0)
        assert (p.mean[site].error < 1e-6).all()
        assert (p.std[site].error < 1e-6).all()
    assert float(p.log_evidence) == pytest.approx(problem.log_evidence, abs=1e-6)
    assert p.log_evidence.error < 1e-6
    assert p.khat < 0.5


@pytest.mark.parametrize("name", PROBLEMS)
def test_error_bars_contain_the_truth(name: str):
    """Every mean, sd and the evidence lie within their 99.9999 % bars."""
    problem = PROBLEMS[name]()
    p = pc.fit(problem.target(), generator=seeded(1), confidence=1 - 1e-6)
    assert p.ok
    for site, exact in problem.mean.items():
        assert (_outside(p.mean[site], exact) <= 0).all()
        assert (_outside(p.std[site], problem.std[site]) <= 0).all()
        assert (p.mean[site].error < problem.std[site]).all()
    assert _outside(p.log_evidence, problem.log_evidence) <= 0
    # the ELBO is a lower bound
    assert float(p.elbo) - float(p.elbo.error) <= problem.log_evidence + 1e-9


def _outside(estimate: pc.Estimate, exact: Tensor | float) -> Tensor:
    """How far the truth is from the bar; the closed form has a rounding error of its own."""
    return (estimate.value - exact).abs() - estimate.error - 1e-12


def test_a_second_mode_is_found():
    """Both modes take part, so that the mean is between them and the sd spans them."""
    p = pc.fit(PROBLEMS["two_modes"]().target(), generator=seeded())
    draws = p.sample(4000, seeded(2))["x"]
    assert p.ok
    assert 0.4 < (draws > 0).double().mean() < 0.6


@pytest.mark.parametrize("seed", range(5))
def test_eight_schools(seed: int):
    """The published reference (posteriordb): mu 4.41, tau 3.60, sds 3.31 and 3.20."""
    p = pc.fit(Target.from_pyro(schools_non_centred, *schools_data()), generator=seeded(seed))
    assert p.verdict in ("good", "corrected")
    assert float(p.mean["mu"]) == pytest.approx(4.41, abs=0.1)
    assert float(p.mean["tau"]) == pytest.approx(3.60, abs=0.1)
    assert float(p.std["mu"]) == pytest.approx(3.31, rel=0.05)
    assert float(p.std["tau"]) == pytest.approx(3.20, rel=0.05)
    assert p.mean["theta"].value.shape == (8,)


@pytest.mark.parametrize("seed", range(3))
def test_a_centred_hierarchy_is_explored_in_non_centred_coordinates(seed: int):
    """The density has no mode as it is written; the names stay those of the model."""
    p = pc.fit(Target.from_pyro(schools_centred, *schools_data()), generator=seeded(seed))
    assert p.ok
    assert "non-centred theta" in p.method
    assert float(p.mean["tau"]) == pytest.approx(3.6, abs=0.1)
    assert float(p.std["tau"]) == pytest.approx(3.2, abs=0.16)
    assert float(p.log_evidence) == pytest.approx(-31.315, abs=0.03)
    values = p.sample(5, seeded())
    z = p.target.unconstrain_rows(values)
    for name, value in p.target.constrain(z).items():
        torch.testing.assert_close(value, values[name])


def funnel(v: dict[str, Tensor]) -> Tensor:
    log_v = dist.Normal(0.0, 3.0).log_prob(v["v"])
    return log_v + dist.Normal(0.0, (v["v"] / 2).exp()).log_prob(v["x"]).sum()


def separated(v: dict[str, Tensor]) -> Tensor:
    x = torch.tensor([-2.0, -1.0, 1.0, 2.0]).double()
    y = (x > 0).double()
    return dist.Bernoulli(logits=v["b"] * x).log_prob(y).sum()


def centred(v: dict[str, Tensor]) -> Tensor:
    sigma, y = (t.double() for t in schools_data())
    prior = dist.Normal(0.0, 5.0).log_prob(v["mu"]) + dist.HalfCauchy(5.0).log_prob(v["tau"])
    effects = dist.Normal(v["mu"], v["tau"]).log_prob(v["theta"]).sum()
    return prior + effects + dist.Normal(v["theta"], sigma).log_prob(y).sum()


# targets that no Gaussian with weights can follow, or that have no posterior at all
HARD = {
    "centred eight schools, a function": lambda: Target.from_function(
        centred, {"mu": (), "tau": (), "theta": (8,)}, {"tau": constraints.positive}
    ),
    "funnel": lambda: Target.from_function(funnel, {"v": (), "x": (9,)}),
    "separated logistic regression, flat prior": lambda: Target.from_function(
        separated, {"b": ()}
    ),
    "flat density": lambda: Target.from_log_density(lambda x: 0.0 * x.sum(), 2),
    "half-flat density": lambda: Target.from_log_density(lambda x: -0.5 * x[0] ** 2, 2),
    "growing density": lambda: Target.from_log_density(lambda x: x.sum(), 2),
    "Cauchy": lambda: Target.from_distribution(
        torch.distributions.Cauchy(torch.tensor(0.0), torch.tensor(1.0))
    ),
}


@pytest.mark.parametrize("name", HARD)
def test_what_cannot_be_trusted_is_flagged(name: str):
    p = flagged(HARD[name]())
    assert p.verdict == "unreliable"
    assert p.status.advice


def test_a_posterior_without_a_variance_says_so():
    """Lomax of index 1.3: mean 10/3, no variance."""
    lomax = Target.from_function(
        lambda v: -2.3 * torch.log1p(v["x"]), {"x": ()}, {"x": constraints.positive}
    )
    with pytest.warns(EstimateWarning):
        p = pc.fit(lomax, generator=seeded())
    assert p.status & (Status.INFINITE_VARIANCE | Status.UNRELIABLE_WEIGHTS)
    assert p.std["x"].error.isinf()


@pytest.mark.parametrize("name", ["flat density", "growing density"])
def test_improper_posteriors_are_called_so(name: str):
    p = flagged(HARD[name]())
    assert p.status & Status.IMPROPER
    assert "no maximum" in " ".join(p.reasons)


def test_same_seed_same_answer_and_one_draw_of_the_generator():
    """The caller's generator advances by one draw whatever the work's size."""
    target = PROBLEMS["poisson_rate"]().target()
    streams = [seeded(5), seeded(5), seeded(5)]
    first, second = (pc.fit(target, generator=g) for g in streams[:2])
    assert torch.equal(first.mean["rate"].value, second.mean["rate"].value)
    pc.fit(PROBLEMS["correlated_gaussian"]().target(), generator=streams[2])
    assert torch.equal(streams[0].get_state(), streams[2].get_state())
    other = pc.fit(target, generator=seeded(6))
    assert not torch.equal(first.mean["rate"].value, other.mean["rate"].value)


def test_the_seed_of_the_posterior_reproduces_it():
    target = PROBLEMS["poisson_rate"]().target()
    state = torch.random.get_rng_state()
    with torch.random.fork_rng():
        torch.manual_seed(11)
        first = pc.fit(target)
        torch.manual_seed(11)
        second = pc.fit(target)
    assert first.seed == second.seed
    assert torch.equal(first.z, second.z)
    assert torch.equal(state, torch.random.get_rng_state())


def test_evaluations_are_counted():
    """The count is that of rows handed to the density; gradients count once."""
    count = 0

    def log_prob(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        if x.sum() > 1e300:  # control flow on a value: runs untraced, row by row
            return -x.sum()
        return -0.5 * (x**2).sum() - 0.1 * (x**4).sum()

    target = Target.from_log_density(log_prob, 1)
    assert "untraced" in target.rows.how
    assert any("untraced" in note for note in target.notes)
    count = 0
    p = pc.fit(target, generator=seeded(), max_evals=4096, restarts=2)
    starts, constrained = 2, 2 * 4096  # random starts are tried first; x is read off every draw
    assert count - starts - constrained == p.num_evals
    assert any("untraced" in reason for reason in p.reasons)


def test_budget_is_kept():
    target = Target.from_pyro(schools_non_centred, *schools_data())
    p = pc.fit(target, generator=seeded(), max_evals=8192)
    assert p.log_ratios.numel() <= 8192


def test_progress_is_reported():
    stages: list[tuple[str, int]] = []
    target = Target.from_pyro(schools_non_centred, *schools_data())
    p = pc.fit(target, generator=seeded(), progress=lambda *x: stages.append(x))
    counts = [n for _, n in stages]
    assert counts == sorted(counts)
    assert counts[-1] == p.num_evals


def test_float32_targets_are_computed_in_float64():
    problem = PROBLEMS["far_observation"]()
    p = pc.fit(problem.target().to(dtype=torch.float32), generator=seeded())
    assert p.mean["x"].value.dtype == torch.float64
    assert float(p.mean["x"]) == pytest.approx(8.0, abs=1e-6)


def test_init_is_the_first_start():
    """A start at one mode of a far bimodal density is followed there."""
    starts: list[Tensor] = []

    def log_prob(x: Tensor) -> Tensor:
        return -0.5 * ((x - 100.0) ** 2).sum()

    target = Target.from_log_density(log_prob, 2)
    values = {"x": torch.full((2,), 100.0).double()}
    p = pc.fit(target, init=values, generator=seeded())
    torch.testing.assert_close(p.mean["x"].value, values["x"])
    assert not starts


def test_bad_settings_are_refused():
    target = PROBLEMS["far_observation"]().target()
    with pytest.raises(ValueError, match="`restarts` must be at least 2, got 1"):
        pc.fit(target, restarts=1)
    with pytest.raises(ValueError, match="`num_draws` must be even and at least 2, got 7"):
        pc.SampleAverage(num_draws=7)
    with pytest.raises(ValueError, match=r"init\['x'\].*must have shape \(\), got \(2,\)"):
        pc.fit(target, init={"x": torch.zeros(2).double()})


def test_a_start_that_violates_its_constraint_is_refused():
    target = PROBLEMS["poisson_rate"]().target()
    with pytest.raises(ValueError, match=r"`init\['rate'\]` = -1.0 violates its constraint"):
        pc.fit(target, init={"rate": torch.tensor(-1.0).double()})
    with pytest.raises(ValueError, match="'rate' is missing"):
        pc.fit(target, init={})


def test_a_density_that_is_nowhere_finite_names_its_site():
    """Which site, what value."""

    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, 1.0 + 0.0 * x), obs=torch.tensor(1.0))
        pyro.factor("penalty", torch.log(-(x**2) - 1.0))

    with pytest.raises(ValueError, match=r"site 'penalty' has log density nan .*Pyro says"):
        pc.fit(Target.from_pyro(model))


def test_verdict_corrected_says_what_moved():
    p = pc.fit(PROBLEMS["success_probability"]().target(), generator=seeded())
    assert p.verdict == "corrected"
    assert not math.isclose(float(p.mean["p"]), float(p.x.mean()), rel_tol=1e-6)


def test_no_warning_where_nothing_is_wrong():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pc.fit(PROBLEMS["proportions"]().target(), generator=seeded()).ok
