"""The evidence lies between the ends, the ends are bounds, and what cannot be bounded is said."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from laws import ALPHA, assert_covers, generator
from problems.posteriors import PROBLEMS
from scipy.stats import gamma, norm
from torch import Tensor

import probcalc as pc
from probcalc import Target
from probcalc.inference.annealed import AnnealedImportance
from probcalc.inference.assess import Budget, assess, first_draws
from probcalc.inference.evidence import log_evidence
from probcalc.inference.guides import Delta, FullRank, GaussianMixture
from probcalc.inference.nuts import FromNUTS
from probcalc.inference.particles import FromAnnealing
from probcalc.inference.posterior import Posterior
from probcalc.inference.posterior_draws import Resampled
from probcalc.status import Status

F64 = torch.float64
NUM_RUNS = 250


def weighed(target: Target, guide, params: dict[str, Tensor], seed: int = 0) -> Posterior:
    """A posterior with this guide, without a search for a better one."""
    budget, stream = Budget(max_evals=2**12), generator(seed)
    draws = first_draws(target, guide, params, budget, stream)
    return assess(
        target, draws, budget, stream, method="given", seed=seed, num_gradients=0, num_evals=0
    )


def gaussian(target: Target, loc: list[float], scale: list[float]) -> Posterior:
    params = {
        "loc": torch.tensor(loc, dtype=F64),
        "scale_tril": torch.diag(torch.tensor(scale, dtype=F64)),
    }
    return weighed(target, FullRank(), params)


def banana(x: Tensor) -> Tensor:
    bent = (x[1] - 2 * (x[0] ** 2 - 1)) / 0.5
    return -0.5 * x[0] ** 2 - 0.5 * bent**2 - math.log(2 * math.pi * 0.5)


def funnel(x: Tensor) -> Tensor:
    v, rest = x[0], x[1:]
    neck = -0.5 * rest**2 * torch.exp(-v) - 0.5 * v - 0.5 * math.log(2 * math.pi)
    return -0.5 * (v / 3) ** 2 - math.log(3 * math.sqrt(2 * math.pi)) + neck.sum()


def uneven_modes(x: Tensor) -> Tensor:
    """Two modes of different width, with a fifth and four fifths of the mass."""
    centre, scale = x.new_tensor([[3.0, 0.0], [-3.0, 1.0]]), x.new_tensor([0.5, 1.2])
    log_p = -0.5 * ((x - centre) / scale[:, None]).square().sum(-1) - 2 * scale.log()
    return torch.logsumexp(log_p + x.new_tensor([0.2, 0.8]).log(), 0) - math.log(2 * math.pi)


def student(x: Tensor) -> Tensor:
    return torch.distributions.StudentT(x.new_tensor(5.0)).log_prob(x).sum()


def narrow_gaussian(x: Tensor) -> Tensor:
    return (-0.5 * x**2 - 0.5 * math.log(2 * math.pi)).sum()


# name -> (normalised log density, dimension, mean and scale of a guide that is none too good)
NORMALISED: dict[str, tuple[Callable[[Tensor], Tensor], int, float, float]] = {
    "banana": (banana, 2, 0.0, 1.5),
    "funnel": (funnel, 4, 0.0, 1.5),
    "student": (student, 2, 0.2, 1.2),
    "uneven modes": (uneven_modes, 2, 0.0, 3.0),
    "50 dimensions": (narrow_gaussian, 50, 0.02, 1.1),
}
SMALL = AnnealedImportance(num_particles=16, num_leapfrog=4, num_pilots=128)


@pytest.mark.parametrize("name", PROBLEMS)
def test_conjugate_evidence_lies_inside(name: str, seed: int):
    problem = PROBLEMS[name]()
    target = problem.target()
    posterior = pc.fit(target, generator=generator(seed))
    bracket = log_evidence(target, posterior, confidence=1 - ALPHA, generator=generator(seed))
    assert bracket.ok
    assert bracket.contains(problem.log_evidence), bracket
    low, high = bracket.interval
    assert high - low < 0.2
    assert not bracket.upper_is_bound


@pytest.mark.parametrize("name", NORMALISED)
@pytest.mark.filterwarnings("ignore:evidence flagged")
def test_normalised_densities_have_zero_inside(name: str, seed: int):
    """By annealing, from guides that plain importance weights cannot repair."""
    fn, d, loc, scale = NORMALISED[name]
    target = Target.from_log_density(fn, d)
    posterior = gaussian(target, [loc] * d, [scale] * d)
    bracket = log_evidence(
        target,
        posterior,
        annealing=SMALL,
        method=FromAnnealing(num_moves=24, max_rhat=1.2),
        confidence=1 - ALPHA,
        generator=generator(seed),
    )
    assert bracket.contains(0.0) or not bracket.ok, bracket
    assert float(bracket.lower.value) > -2.0
    assert bracket.upper_is_bound


def test_both_ends_hold_as_often_as_they_promise(seed: int):
    """A skewed posterior; 95 %, from few draws."""
    problem = PROBLEMS["poisson_rate"]()
    target = problem.target()
    posterior = pc.fit(target, generator=generator(seed))
    uniforms = torch.rand(NUM_RUNS, 64, generator=generator(seed), dtype=F64)
    draws = torch.as_tensor(gamma(16.0, scale=1 / 6.0).ppf(uniforms.numpy()))
    stream, hits, lows, highs = generator(seed), [], [], []
    for row in draws:
        bracket = log_evidence(
            target,
            posterior,
            posterior_draws={"rate": row},
            num_draws=256,
            confidence=0.95,
            generator=stream,
        )
        hits.append(bracket.contains(problem.log_evidence))
        lows.append(float(bracket.lower.value))
        highs.append(float(bracket.upper.value))
    assert_covers(torch.tensor(hits), 0.95, caught=0.75)
    for values, sign in ((lows, 1.0), (highs, -1.0)):  # bounds in expectation
        beyond = sign * (torch.tensor(values, dtype=F64) - problem.log_evidence)
        assert float(beyond.mean()) <= norm.isf(ALPHA) * float(beyond.std()) / NUM_RUNS**0.5


def test_draws_of_the_caller_make_the_upper_end_a_bound(seed: int):
    problem = PROBLEMS["success_probability"]()
    target = problem.target()
    posterior = pc.fit(target, generator=generator(seed))
    with torch.random.fork_rng(devices=[]):
        p = torch.distributions.Beta(torch.tensor(10.0).double(), torch.tensor(2.0).double())
        draws = {"p": p.sample((320,))}
    bracket = log_evidence(
        target,
        posterior,
        posterior_draws=draws,
        annealing=SMALL,
        confidence=1 - ALPHA,
        generator=generator(seed),
    )
    assert bracket.upper_is_bound
    assert bracket.contains(problem.log_evidence)
    assert any("reverse annealing" in name for name in bracket.bounds)
    assert "the draws given" in bracket.upper.method


def test_draws_by_nuts(seed: int):
    problem = PROBLEMS["far_observation"]()
    target = problem.target()
    posterior = pc.laplace(target, generator=generator(seed))
    method = FromNUTS(num_draws=60, num_warmup=30, num_chains=2, max_rhat=1.5)
    bracket = log_evidence(target, posterior, method=method, generator=generator(seed))
    assert bracket.upper_is_bound
    assert bracket.contains(problem.log_evidence)
    assert "NUTS" in bracket.upper.method


def test_draws_that_miss_a_mode_are_seen(seed: int):
    """Draws of the smaller mode alone: the upper end falls below the lower one."""
    target = Target.from_log_density(uneven_modes, 2)
    params = {
        "loc": torch.tensor([[3.0, 0.0], [-3.0, 1.0]], dtype=F64),
        "scale_tril": torch.stack([0.6 * torch.eye(2), 1.3 * torch.eye(2)]).double(),
    }
    posterior = weighed(target, GaussianMixture(2), params)
    z = torch.randn(400, 2, generator=generator(seed), dtype=F64)
    draws = {"x": torch.tensor([3.0, 0.0], dtype=F64) + 0.5 * z}
    with pytest.warns(pc.EstimateWarning, match="the ends cross"):
        bracket = log_evidence(
            target,
            posterior,
            posterior_draws=draws,
            num_draws=64,
            generator=generator(seed),
        )
    assert bracket.status == Status.NOT_CONVERGED


def test_the_symmetric_divergence_is_exact_between_gaussians(seed: int):
    """KL(q‖p) + KL(p‖q) of N(0.3, 0.8²) and N(0, 1)."""
    target = Target.from_log_density(lambda x: -0.5 * x.square().sum(), 1)
    posterior = gaussian(target, [0.3], [0.8])
    bracket = log_evidence(target, posterior, num_draws=2**14, generator=generator(seed))
    v, m = 0.8**2, 0.3
    exact = 0.5 * (v + m**2 - 1 - math.log(v)) + 0.5 * ((1 + m**2) / v - 1 + math.log(v))
    assert float(bracket.symmetric_kl.value) == pytest.approx(exact, abs=0.05)
    assert abs(float(bracket.symmetric_kl.value) - exact) < 2 * float(bracket.symmetric_kl.error)


def test_one_seed_one_bracket_and_no_trace_in_the_global_stream(seed: int):
    target = Target.from_log_density(student, 2)
    posterior = gaussian(target, [0.0, 0.0], [1.2, 1.2])
    before = torch.get_rng_state()
    one, two = (
        log_evidence(target, posterior, annealing=SMALL, generator=generator(seed))
        for _ in range(2)
    )
    assert one.interval == two.interval
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_posterior_one_is_fitted(seed: int):
    problem = PROBLEMS["far_observation"]()
    bracket = log_evidence(problem.target(), generator=generator(seed))
    assert bracket.contains(problem.log_evidence)
    assert bracket.posterior.ok


def test_an_improper_posterior_has_no_bracket(seed: int):
    target = Target.from_log_density(student, 2)
    posterior = gaussian(target, [0.0, 0.0], [1.2, 1.2])
    posterior = replace(posterior, status=Status.IMPROPER, reasons=("it does not fall off",))
    with pytest.warns(pc.EstimateWarning, match="evidence flagged: it does not fall off"):
        bracket = log_evidence(target, posterior, generator=generator(seed))
    assert bracket.status == Status.IMPROPER
    assert bracket.upper.value.isinf()
    assert bracket.estimate.error.isinf()


def test_a_density_that_is_nowhere_finite_is_said(seed: int):
    target = Target.from_log_density(lambda x: x[0].log(), 1)
    posterior = gaussian(target, [-50.0], [0.1])
    with pytest.warns(pc.EstimateWarning, match="not finite at any draw of the guide"):
        bracket = log_evidence(target, posterior, generator=generator(seed))
    assert bracket.status == Status.NON_FINITE
    assert float(bracket.lower.value) == -math.inf


def test_bad_arguments_are_refused(seed: int):
    target = Target.from_log_density(student, 2)
    posterior = gaussian(target, [0.0, 0.0], [1.2, 1.2])
    x = torch.zeros(32, 2, dtype=F64)
    cases = [
        (TypeError, {"method": "nuts"}, "`method` must be FromAnnealing"),
        (ValueError, {"method": Resampled(), "posterior_draws": {"x": x}}, "not both"),
        (ValueError, {"num_draws": 3}, "`num_draws` must be at least 32, got 3"),
        (ValueError, {"confidence": 1.0}, "`confidence` must lie strictly between 0 and 1"),
        (ValueError, {"posterior_draws": {"y": x}}, "unknown site 'y'"),
        (ValueError, {"posterior_draws": {}}, "got no site"),
        (ValueError, {"posterior_draws": {"x": x[:4]}}, "at least 16, got {'x': 4}"),
        (ValueError, {"posterior_draws": {"x": x[:, :1]}}, r"must have shape \(n, \*\(2,\)\)"),
    ]
    for error, arguments, match in cases:
        with pytest.raises(error, match=match):
            log_evidence(target, posterior, **arguments)
    other = Target.from_log_density(lambda x: student(x) + 1.0, 2)
    with pytest.raises(ValueError, match="the posterior is one of another target"):
        log_evidence(other, posterior)
    point = weighed(target, Delta(), {"loc": torch.zeros(2, dtype=F64)})
    with pytest.raises(ValueError, match="Delta has no density"):
        log_evidence(target, point)


def test_a_guide_is_no_posterior():
    with pytest.raises(TypeError, match=r"must come from `fit`, got FullRank.*fit\(target, guide"):
        log_evidence(PROBLEMS["poisson_rate"]().target(), FullRank())
