"""Maximum likelihood: the optima and standard errors of others, coverage, and what has none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats as st
import statsmodels.api as sm
import torch
from laws import assert_covers, assert_within
from scipy.optimize import approx_fprime, minimize
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints

import probcalc as pc
from probcalc import Status, Target, maximum_likelihood

N = 2000


def f64(*values: float) -> Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float64)


def data(name: str, n: int = N) -> np.ndarray:
    rng = np.random.default_rng(len(name))
    return {
        "Gamma": lambda: rng.gamma(2.5, 1 / 1.7, n),
        "Weibull": lambda: 2 * rng.weibull(1.5, n),
        "NegativeBinomial": lambda: rng.negative_binomial(3, 0.4, n).astype(float),
        "StudentT": lambda: 1 + 2 * rng.standard_t(4, n),
        "Beta": lambda: rng.beta(2, 3, n),
        "Gumbel": lambda: rng.gumbel(1, 2, n),
        "Cauchy": lambda: rng.standard_cauchy(n),
        "VonMises": lambda: rng.vonmises(1, 2, n),
    }[name]()


# name -> (family, scipy's fit: data to the same parameters)
FITS = {
    "Gamma": (
        td.Gamma,
        lambda x: (lambda a, _, s: {"concentration": a, "rate": 1 / s})(
            *st.gamma.fit(x, floc=0, method="mle")
        ),
    ),
    "Weibull": (
        td.Weibull,
        lambda x: (lambda k, _, s: {"concentration": k, "scale": s})(
            *st.weibull_min.fit(x, floc=0)
        ),
    ),
    "StudentT": (
        td.StudentT,
        lambda x: dict(zip(("df", "loc", "scale"), st.t.fit(x), strict=True)),
    ),
    "Beta": (
        td.Beta,
        lambda x: dict(
            zip(
                ("concentration1", "concentration0"),
                st.beta.fit(x, floc=0, fscale=1)[:2],
                strict=True,
            )
        ),
    ),
    "Gumbel": (
        td.Gumbel,
        lambda x: dict(zip(("loc", "scale"), st.gumbel_r.fit(x), strict=True)),
    ),
    "Cauchy": (td.Cauchy, lambda x: dict(zip(("loc", "scale"), st.cauchy.fit(x), strict=True))),
}


@pytest.mark.parametrize("name", FITS)
def test_the_optimum_is_scipy_s(name: str):
    """scipy's simplex stops early: what is compared is the height, and the place to its digits."""
    family, theirs = FITS[name]
    x = data(name)
    fit = maximum_likelihood(family, torch.from_numpy(x))
    other = theirs(x)
    height = float(family(**{k: f64(v) for k, v in other.items()}).log_prob(f64(*x)).sum())
    assert fit.ok
    assert fit.reasons == ()
    assert float(fit.log_likelihood) >= height - 1e-9 * abs(height)
    # scipy's own tolerance is 1e-4 of each parameter of its search, Newton's here is rounding
    exact = name in {"Gamma", "Weibull", "Gumbel"}
    for key, value in other.items():
        assert float(fit.params[key]) == pytest.approx(
            value, rel=1e-6 if exact else 2e-4, abs=2e-4
        )
    z = fit.z[0]
    score = fit.likelihood.value_and_grad(fit.z)[1][0]
    assert float(score.abs().max()) / N < 1e-9
    assert z.isfinite().all()


def test_weibull_and_student_from_scipy_s_polished_optimum():
    """Polished by scipy's Newton-CG on its own density, both agree to 1e-6."""
    for name, family, order in (
        ("StudentT", td.StudentT, ("df", "loc", "scale")),
        ("Weibull", td.Weibull, ("concentration", "scale")),
    ):
        x = data(name)

        def loss(p: np.ndarray, name: str = name, x: np.ndarray = x) -> float:
            if name == "StudentT":
                return -st.t.logpdf(x, np.exp(p[0]), p[1], np.exp(p[2])).sum()
            return -st.weibull_min.logpdf(x, np.exp(p[0]), 0, np.exp(p[1])).sum()

        fit = maximum_likelihood(family, torch.from_numpy(x))
        place = np.array(
            [float(fit.params[k]) if k == "loc" else math.log(fit.params[k]) for k in order]
        )
        found = minimize(
            loss, place + 0.01, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-10}
        )
        np.testing.assert_allclose(found.x, place, atol=1e-6)


def test_negative_binomial_is_statsmodels():
    x = data("NegativeBinomial")
    fit = maximum_likelihood(td.NegativeBinomial, torch.from_numpy(x))
    theirs = sm.NegativeBinomial(x, np.ones((N, 1))).fit(
        disp=0, method="newton", maxiter=200, tol=1e-13
    )
    mean, alpha = math.exp(theirs.params[0]), theirs.params[1]
    assert float(fit.params["total_count"]) == pytest.approx(1 / alpha, rel=1e-6)
    ours = fit.estimate(
        lambda p: torch.stack(
            [
                (p["total_count"] * p["probs"] / (1 - p["probs"])).log(),
                1 / p["total_count"],
            ]
        )
    )
    np.testing.assert_allclose(ours.value, theirs.params, rtol=1e-6)
    np.testing.assert_allclose(ours.std_error, theirs.bse, rtol=2e-5)
    assert float(fit.log_likelihood) == pytest.approx(theirs.llf, rel=1e-12)
    assert float(fit.aic) == pytest.approx(theirs.aic, rel=1e-12)
    assert float(fit.bic) == pytest.approx(theirs.bic, rel=1e-12)
    assert mean == pytest.approx(x.mean(), rel=1e-8)


CLOSED = {
    "Normal": (td.Normal, lambda rng: rng.normal(1, 2, 50)),
    "LogNormal": (td.LogNormal, lambda rng: rng.lognormal(1, 2, 50)),
    "Exponential": (td.Exponential, lambda rng: rng.exponential(2, 50)),
    "Poisson": (td.Poisson, lambda rng: rng.poisson(3, 50)),
    "Bernoulli": (td.Bernoulli, lambda rng: rng.binomial(1, 0.3, 50)),
    "Geometric": (td.Geometric, lambda rng: rng.geometric(0.3, 50) - 1),
    "HalfNormal": (td.HalfNormal, lambda rng: np.abs(rng.normal(0, 2, 50))),
    "Categorical": (td.Categorical, lambda rng: rng.integers(0, 3, 50)),
    "MultivariateNormal": (td.MultivariateNormal, lambda rng: rng.normal(size=(50, 3))),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", CLOSED)
def test_formulas_are_the_optimum(name: str, weighted: bool):
    """Newton's method from elsewhere arrives where the formula says, weights and all."""
    family, draw = CLOSED[name]
    rng = np.random.default_rng(3)
    x = torch.from_numpy(np.asarray(draw(rng), dtype=float))
    w = torch.from_numpy(rng.integers(0, 4, 50).astype(float)) if weighted else None
    formula = maximum_likelihood(family, x, weights=w)
    assert int(formula.num_iterations) == 0
    inside = formula.likelihood.parameters.constrain(formula.z[0] + 0.3)
    searched = maximum_likelihood(family, x, weights=w, init=inside)
    assert formula.ok
    assert searched.ok
    assert int(searched.num_iterations) > 0
    for key, value in formula.params.items():
        torch.testing.assert_close(searched.params[key], value, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(searched.covariance(), formula.covariance(), rtol=1e-5, atol=1e-10)
    if weighted:  # weights are frequencies
        repeated = maximum_likelihood(family, x.repeat_interleave(w.long(), dim=0))
        for kind in ("observed", "opg", "sandwich"):
            torch.testing.assert_close(
                repeated.covariance(kind), formula.covariance(kind), rtol=1e-8, atol=1e-11
            )


def test_the_four_covariances_of_a_poisson():
    """Each has a formula: λ̂/n, λ̂²/Σ(x−λ̂)², and their sandwich; expected and observed agree."""
    x = f64(*np.random.default_rng(1).poisson(3, 40).astype(float))
    fit = maximum_likelihood(td.Poisson, x)
    rate, n = float(x.mean()), 40
    spread = float((x - rate).square().sum())
    want = {
        "observed": rate / n,
        "expected": rate / n,
        "opg": rate**2 / spread,
        "sandwich": spread / n**2,
    }
    for kind, value in want.items():
        assert float(fit.covariance(kind)) == pytest.approx(value, rel=1e-8)
    assert float(fit.tic) == pytest.approx(
        2 * spread / (n * rate) - 2 * float(fit.log_likelihood), rel=1e-10
    )


@pytest.mark.parametrize("name", FITS)
def test_information_is_what_finite_differences_of_scipy_say(name: str):
    """Observed: minus the derivative of the score; expected: close to it at n = 2,000."""
    family, _ = FITS[name]
    fit = maximum_likelihood(family, torch.from_numpy(data(name)))
    values = fit.likelihood.parameters.layout
    x = torch.from_numpy(data(name))
    at = values.flatten(fit.params).numpy()

    def score(p: np.ndarray) -> np.ndarray:
        leaf = torch.from_numpy(p.copy()).requires_grad_()
        family(**values.unflatten(leaf)).log_prob(x).sum().backward()
        return leaf.grad.numpy()

    second = np.array(
        [approx_fprime(at, lambda p, i=i: score(p)[i], 1e-6 * at) for i in range(len(at))]
    )
    np.testing.assert_allclose(np.linalg.inv(-second), fit.covariance(), rtol=1e-3, atol=1e-7)
    observed, expected = fit.covariance().diagonal(), fit.covariance("expected").diagonal()
    torch.testing.assert_close(observed, expected, rtol=0.25, atol=0)


COVERED = {
    "Gamma": (td.Gamma, {"concentration": 2.5, "rate": 1.7}),
    "Weibull": (td.Weibull, {"scale": 2.0, "concentration": 1.5}),
    "NegativeBinomial": (td.NegativeBinomial, {"total_count": 3.0, "probs": 0.4}),
    "StudentT": (td.StudentT, {"df": 5.0, "loc": 1.0, "scale": 2.0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COVERED)
def test_intervals_cover(name: str):
    """4,000 data sets of 2,000 rows as one batch; two-sided bands of the binomial at 95 %."""
    family, truth = COVERED[name]
    dist = family(**{k: f64(v) for k, v in truth.items()})
    with torch.random.fork_rng():
        torch.random.manual_seed(7)
        x = dist.sample((4000, N))
    fit = maximum_likelihood(family, x, batch_dims=1)
    assert fit.ok
    band = st.binom.ppf([5e-7, 1 - 5e-7], 4000, 0.95)
    for key, (low, high) in fit.interval(0.95).items():
        hits = int(((low <= truth[key]) & (truth[key] <= high)).sum())
        assert band[0] <= hits <= band[1], f"{key}: {hits} of 4000"


def test_a_batch_is_its_data_sets_one_by_one():
    x = torch.from_numpy(data("StudentT")).reshape(2, 5, 200)
    many = maximum_likelihood(td.StudentT, x, batch_dims=2)
    assert many.params["df"].shape == (2, 5)
    for i, j in ((0, 0), (1, 3)):
        one = maximum_likelihood(td.StudentT, x[i, j])
        assert bool(one.ok) == bool(many.status[i, j] == 0)
        if one.ok:
            torch.testing.assert_close(
                one.params["df"], many.params["df"][i, j], rtol=1e-7, atol=0
            )
            torch.testing.assert_close(
                one.covariance(), many.covariance()[i, j], rtol=1e-6, atol=1e-12
            )


CENSORED = {
    "Weibull": (td.Weibull, st.weibull_min, ("concentration", "scale")),
    "Gamma": (td.Gamma, st.gamma, ("concentration", "rate")),
}


@pytest.mark.parametrize("name", CENSORED)
def test_censored_rows_are_scipy_s(name: str):
    family, theirs, order = CENSORED[name]
    x = data(name, 300)
    cut = float(np.quantile(x, 0.7))
    fit = maximum_likelihood(
        family, torch.from_numpy(x.clip(max=cut)), censored=torch.from_numpy((x > cut) * 1.0)
    )
    shape, _, scale = theirs.fit(st.CensoredData.right_censored(x.clip(max=cut), x > cut), floc=0)
    want = (shape, 1 / scale if "rate" in order else scale)
    for key, value in zip(order, want, strict=True):
        assert float(fit.params[key]) == pytest.approx(value, rel=2e-4)
    # an exponential has a formula: events over exposure
    plain = maximum_likelihood(
        td.Exponential,
        torch.from_numpy(x.clip(max=cut)),
        censored=torch.from_numpy((x > cut) * 1.0),
    )
    events = float((x <= cut).sum())
    assert float(plain.params["rate"]) == pytest.approx(events / x.clip(max=cut).sum(), rel=1e-9)
    assert float(plain.std_error["rate"]) == pytest.approx(
        float(plain.params["rate"]) / math.sqrt(events), rel=1e-6
    )


def test_truncated_rows():
    """An exponential cut off on the left is begun anew there; a Poisson without zeros solves
    λ/(1 − e^−λ) = mean."""
    x = 1.5 + torch.from_numpy(np.random.default_rng(0).exponential(2, 100))
    fit = maximum_likelihood(td.Exponential, x, lower=1.5)
    assert float(fit.params["rate"]) == pytest.approx(1 / float(x.mean() - 1.5), rel=1e-8)
    counts = f64(1, 2, 1, 1, 3, 2, 4, 1)
    fit = maximum_likelihood(td.Poisson, counts, lower=1)
    rate = float(fit.params["rate"])
    assert rate / (1 - math.exp(-rate)) == pytest.approx(float(counts.mean()), rel=1e-9)
    normal = st.norm.rvs(size=4000, random_state=np.random.default_rng(5))
    kept = torch.from_numpy(normal[(normal > -0.5) & (normal < 2)])
    fit = maximum_likelihood(td.Normal, kept, lower=-0.5, upper=2.0)
    estimate = fit.estimate(lambda p: torch.stack([p["loc"], p["scale"]]))
    assert_within(estimate, f64(0.0, 1.0))


def rates(p, row):
    x, y = row
    return td.Poisson((p["a"] + p["b"] * x).exp()).log_prob(y)


def regression() -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, 60, dtype=torch.float64)
    rng = np.random.default_rng(2)
    return x, torch.from_numpy(rng.poisson(np.exp(0.5 + x.numpy())).astype(float))


def test_a_target_with_rows_is_statsmodels():
    x, y = regression()
    target = Target.from_function(
        lambda p: torch.zeros(()), {"a": (), "b": ()}, log_likelihood=rates, data=(x, y)
    )
    fit = maximum_likelihood(target, generator=torch.Generator().manual_seed(0))
    design = sm.add_constant(x.numpy())
    theirs = sm.Poisson(y.numpy(), design).fit(disp=0, tol=1e-12)
    got = fit.likelihood.parameters.layout.flatten(fit.params)
    np.testing.assert_allclose(got, theirs.params, rtol=1e-8)
    np.testing.assert_allclose(fit.covariance(), theirs.cov_params(), rtol=1e-8)
    robust = sm.Poisson(y.numpy(), design).fit(disp=0, tol=1e-12, cov_type="HC0")
    np.testing.assert_allclose(fit.covariance("sandwich"), robust.cov_params(), rtol=1e-8)
    tested = fit.test({"b": 0.0})
    null = sm.Poisson(y.numpy(), design[:, :1]).fit(disp=0, tol=1e-12)
    assert float(tested.statistic) == pytest.approx(2 * (theirs.llf - null.llf), rel=1e-8)
    assert float(tested.p_value) == pytest.approx(theirs.llr_pvalue, rel=1e-7)
    wald = fit.test({"b": 0.0}, "wald")
    assert float(wald.statistic) == pytest.approx(theirs.tvalues[1] ** 2, rel=1e-8)
    score = fit.test({"b": 0.0}, "score")
    glm = sm.GLM(y.numpy(), design[:, :1], family=sm.families.Poisson())
    want = glm.score_test(glm.fit(tol=1e-14).params, exog_extra=design[:, 1:])
    assert float(score.statistic) == pytest.approx(want[0].item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["likelihood ratio", "wald", "score"])
def test_tests_hold_their_level(kind: str):
    """p-values of a true restriction are uniform: 4,000 data sets of 400 rows."""
    with torch.random.fork_rng():
        torch.random.manual_seed(3)
        x = td.Gamma(f64(2.0), f64(1.0)).sample((4000, 400))
    fit = maximum_likelihood(td.Gamma, x, batch_dims=1)
    tested = fit.test({"concentration": 2.0}, kind)
    assert tested.df == 1
    # at 400 rows the asymptotic level is off by a share of a percent
    assert_covers(tested.p_value > 0.05, 0.94, caught=0.88)
    assert_covers(tested.p_value < 0.95, 0.94, caught=0.88)


def test_profile_intervals_solve_their_equation():
    fit = maximum_likelihood(td.StudentT, torch.from_numpy(data("StudentT", 300)))
    for label in fit.labels:
        profile = fit.profile(label)
        ends = profile.interval(0.9)
        at_ends = profile.log_likelihood(torch.stack(ends))
        drop = 2 * (fit.log_likelihood - at_ends)
        torch.testing.assert_close(drop, torch.full((2,), st.chi2.ppf(0.9, 1)).double())
        low, high = fit.interval(0.9)[label]
        assert float(ends[0]) == pytest.approx(float(low), rel=0.15, abs=0.1)
        assert float(ends[1]) == pytest.approx(float(high), rel=0.15, abs=0.1)


def test_an_end_that_the_data_do_not_set_is_at_infinity():
    """Nearly normal data: the degrees of freedom are bounded below only."""
    x = st.t.rvs(30, size=400, random_state=np.random.default_rng(8))
    fit = maximum_likelihood(td.StudentT, torch.from_numpy(x))
    assert fit.ok
    low, high = fit.profile("df").interval(0.999)
    assert 1 < float(low) < float(fit.params["df"])
    assert float(high) == math.inf


def test_exponential_profile_is_the_likelihood():
    x = f64(1.0, 2.0, 3.5, 0.7)
    fit = maximum_likelihood(td.Exponential, x)
    low, high = fit.profile("rate").interval()
    for end in (low, high):
        value = td.Exponential(end).log_prob(x).sum()
        assert float(2 * (fit.log_likelihood - value)) == pytest.approx(st.chi2.ppf(0.95, 1))


def test_the_delta_method_is_exact_on_straight_lines():
    fit = maximum_likelihood(td.Gamma, torch.from_numpy(data("Gamma")))
    c = fit.covariance()
    total = fit.estimate(lambda p: 2 * p["concentration"] - p["rate"])
    want = math.sqrt(4 * float(c[0, 0]) - 4 * float(c[0, 1]) + float(c[1, 1]))
    assert float(total.std_error) == pytest.approx(want, rel=1e-10)
    mean = fit.estimate(lambda p: p["concentration"] / p["rate"])
    assert float(mean.value) == pytest.approx(data("Gamma").mean(), rel=1e-10)


def test_the_marginal_likelihood_of_conjugate_pairs():
    counts = f64(3, 1, 4, 2, 2, 6)
    a, b, s, n = 2.0, 0.5, float(counts.sum()), 6
    exact = a * math.log(b) - math.lgamma(a) + math.lgamma(a + s) - (a + s) * math.log(b + n)
    exact -= sum(math.lgamma(v + 1) for v in counts.tolist())
    fit = maximum_likelihood(td.Poisson, counts)
    found = fit.log_marginal_likelihood({"rate": td.Gamma(f64(a), f64(b))}, confidence=1 - 5e-7)
    assert found.ok
    assert abs(float(found) - exact) <= float(found.error) < 1e-3
    with pytest.raises(ValueError, match="rate"):
        fit.log_marginal_likelihood({})


NONE = {
    "all alike": (lambda: maximum_likelihood(td.Normal, torch.ones(9)), "all rows are alike"),
    "one row": (lambda: maximum_likelihood(td.Gamma, torch.tensor([2.0])), "all rows are alike"),
    "no success": (lambda: maximum_likelihood(td.Bernoulli, torch.zeros(9)), "no maximum"),
    "one class unseen": (
        lambda: maximum_likelihood(td.Categorical, f64(0, 2, 2, 0, 0)),
        "no maximum",
    ),
    "less spread than Poisson": (
        lambda: maximum_likelihood(td.NegativeBinomial, f64(2, 2, 3, 2, 2, 3, 2)),
        "total_count, probs run to their edges",
    ),
    "thinner tails than normal": (
        lambda: maximum_likelihood(td.StudentT, torch.linspace(-1, 1, 50).double()),
        "df runs to the edge",
    ),
    "flat vectors": (
        lambda: maximum_likelihood(td.MultivariateNormal, torch.ones(9, 2).cumsum(0)),
        "no maximum",
    ),
    "zero of a gamma": (
        lambda: maximum_likelihood(td.Gamma, f64(1.0, 0.0, 2.0)),
        "row 1 has no finite log-likelihood",
    ),
}


@pytest.mark.parametrize(("call", "text"), NONE.values(), ids=NONE)
def test_what_has_no_maximum_says_so(call, text: str):
    fit = call()
    assert not fit.ok
    assert text in fit.reasons[0]
    assert all(bool(e.isnan().all()) for e in fit.std_error.values())
    assert text in repr(fit)


def test_rows_alike_are_no_fault_of_a_family_that_cannot_shrink_to_them():
    fit = maximum_likelihood(td.FisherSnedecor, torch.full((20,), 3.0).double())
    assert not any("all rows are alike" in reason for reason in fit.reasons)


def separated(p, row):
    return td.Bernoulli(logits=p["w"] * row[0]).log_prob(row[1])


def doubled(p, row):
    return td.Normal(p["a"] + p["b"], 1.0).log_prob(row)


def test_separation_and_parameters_that_are_one():
    x = torch.linspace(-1, 1, 20, dtype=torch.float64)
    target = Target.from_function(
        lambda p: torch.zeros(()), {"w": ()}, log_likelihood=separated, data=(x, (x > 0).double())
    )
    fit = maximum_likelihood(target, generator=torch.Generator().manual_seed(1))
    assert Status.UNBOUNDED in fit.flags
    target = Target.from_function(
        lambda p: torch.zeros(()), {"a": (), "b": ()}, log_likelihood=doubled, data=x
    )
    fit = maximum_likelihood(target, generator=torch.Generator().manual_seed(1))
    assert Status.INDEFINITE in fit.flags
    assert "do not tell apart a, b" in fit.reasons[0]


def test_constraints_of_targets_are_kept():
    def one(p, row):
        return td.Gamma(p["shape"], p["rate"]).log_prob(row)

    x = torch.from_numpy(data("Gamma"))
    target = Target.from_function(
        lambda p: torch.zeros(()),
        {"shape": (), "rate": ()},
        {"shape": constraints.positive, "rate": constraints.positive},
        log_likelihood=one,
        data=x,
    )
    fit = maximum_likelihood(target, generator=torch.Generator().manual_seed(0))
    family = maximum_likelihood(td.Gamma, x)
    torch.testing.assert_close(fit.covariance(), family.covariance(), rtol=1e-6, atol=0)


BAD = {
    "no rows": (lambda: maximum_likelihood(td.Gamma, torch.zeros(0)), "no rows"),
    "axes": (lambda: maximum_likelihood(td.Gamma, torch.ones(3, 2)), "1 axes"),
    "NaN": (lambda: maximum_likelihood(td.Gamma, f64(1.0, math.nan)), "row 1"),
    "outside": (lambda: maximum_likelihood(td.Gamma, f64(1.0, -1.0)), "row 1 of `data` is -1.0"),
    "label": (lambda: maximum_likelihood(td.Bernoulli, f64(1.0, 2.0)), "row 1 of `data` is 2.0"),
    "moving support": (lambda: maximum_likelihood(td.Uniform, f64(1.0, 2.0)), "depends on its"),
    "weights": (
        lambda: maximum_likelihood(td.Gamma, f64(1.0, 2.0), weights=f64(-1.0, 1.0)),
        "at least 0",
    ),
    "start": (
        lambda: maximum_likelihood(
            td.Gamma, f64(1.0, 2.0), init={"concentration": f64(-1.0), "rate": f64(1.0)}
        ),
        "violates its constraint",
    ),
    "fixed": (
        lambda: maximum_likelihood(td.Gamma, f64(1.0, 2.0), fixed={"scale": 1.0}),
        "`fixed` names",
    ),
    "kind": (
        lambda: maximum_likelihood(td.Gamma, f64(1.0, 2.0)).covariance("robust"),
        "unknown covariance 'robust'",
    ),
    "null": (
        lambda: maximum_likelihood(td.Gamma, f64(1.0, 2.0)).test({"rate": -1.0}),
        "violates its constraint",
    ),
    "no likelihood": (
        lambda: maximum_likelihood(Target.from_distribution(td.Normal(f64(0.0), f64(1.0)))),
        "likelihood of single rows",
    ),
}


@pytest.mark.parametrize(("call", "text"), BAD.values(), ids=BAD)
def test_mistakes_are_named(call, text: str):
    with pytest.raises(ValueError, match=text):
        call()


def test_fixed_parameters_are_fixed():
    x = torch.from_numpy(data("StudentT", 300))
    fit = maximum_likelihood(td.StudentT, x, fixed={"df": 4.0})
    free = maximum_likelihood(td.StudentT, x)
    assert set(fit.params) == {"loc", "scale"}
    tested = free.test({"df": 4.0})
    assert float(tested.statistic) == pytest.approx(
        2 * float(free.log_likelihood - fit.log_likelihood), rel=1e-6, abs=1e-9
    )
    assert pc.LikelihoodFit is type(fit)
