"""The models of posteriordb against its reference draws, and their parts against naive ones.

Stein: where the rows z are independent draws of a density p, and h is smooth,
E[h(z) ∂ log p(z) + ∂h(z)] = 0. With h = 1 the score has mean zero; with h = z_i − m its product
with the coordinate has mean −1. A wrong prior, a lost Jacobian or a wrong scale breaks these.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from laws import ALPHA
from scipy import stats
from scipy.integrate import solve_ivp
from torch import Tensor

from experiments.posteriors import MODELS, Problem, database, load, mixtures, names, time_series
from experiments.posteriors import differential_equations as equations

# read and traced in a second or so; all others are slow
QUICK = {
    "eight_schools-eight_schools_noncentered",
    "garch-garch11",
    "gp_pois_regr-gp_pois_regr",
    "kidiq_with_mom_work-kidscore_mom_work",
    "sblrc-blr",
}
WITH_DRAWS = sorted(
    QUICK
    | {
        "arK-arK",
        "bball_drive_event_0-hmm_drive_0",
        "diamonds-diamonds",
        "earnings-earn_height",
        "earnings-logearn_interaction",
        "eight_schools-eight_schools_centered",
        "gp_pois_regr-gp_regr",
        "hmm_example-hmm_example",
        "hudson_lynx_hare-lotka_volterra",
        "kidiq-kidscore_interaction",
        "kidiq-kidscore_momiq",
        "low_dim_gauss_mix-low_dim_gauss_mix",
        "mesquite-logmesquite",
        "mesquite-logmesquite_logva",
        "nes1980-nes",
        "nes2000-nes",
        "one_comp_mm_elim_abs-one_comp_mm_elim_abs",
    }
)


cached = functools.cache(load)


@pytest.fixture
def folder(shared: Path) -> Path:
    found = shared / "posteriordb"
    if not found.is_dir():
        pytest.skip("no folder posteriordb in the shared one")
    return found


def z_scores(problem: Problem) -> Tensor:
    """Of both Stein identities, each coordinate."""
    z = problem.latent(problem.reference)
    score = problem.target.value_and_grad(z)[1]
    terms = torch.cat([score, (z - z.mean(dim=0)) * score + 1.0], dim=1)
    return terms.mean(dim=0) / (terms.std(dim=0) / len(terms) ** 0.5)


def limit(num_scores: int) -> float:
    return float(stats.norm.isf(ALPHA / (2 * num_scores)))


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in WITH_DRAWS]
)
def test_reference_draws_are_draws_of_the_model(folder: Path, name: str):
    problem = cached(folder, name)
    assert problem.target.is_traced, problem.target.notes
    assert len(problem.reference) == 10_000
    z = z_scores(problem)
    assert z.abs().max() < limit(z.numel()), z


@pytest.mark.parametrize("name", sorted(QUICK))
def test_columns_come_back(folder: Path, name: str):
    problem = cached(folder, name)
    rows = problem.reference[:50]
    back = problem.columns(problem.target.constrain(problem.latent(rows)))
    # a Gaussian process's root has condition 1e10
    torch.testing.assert_close(back, rows, rtol=1e-7, atol=1e-7)
    assert len(problem.column_names) == rows.shape[1]


def test_a_lost_jacobian_is_noticed(folder: Path):
    problem = cached(folder, "eight_schools-eight_schools_noncentered")
    z = problem.latent(problem.reference).requires_grad_()
    jacobian = torch.autograd.grad(problem.target.log_abs_det_jacobian(z).sum(), z)[0]
    terms = problem.target.value_and_grad(z.detach())[1] - jacobian
    z_score = terms.mean(dim=0) / (terms.std(dim=0) / len(terms) ** 0.5)
    assert z_score.abs().max() > 2 * limit(len(z_score))


@pytest.mark.slow
def test_centred_schools_reuse_the_draws(folder: Path):
    pair = [cached(folder, f"eight_schools-eight_schools_{k}centered") for k in ("", "non")]
    assert torch.equal(pair[0].reference, pair[1].reference)
    assert set(pair[0].target.layout.shapes) == {"mu", "tau", "theta"}
    assert set(pair[1].target.layout.shapes) == {"mu", "tau", "theta", "theta_raw"}


def test_every_posterior_of_the_folder_has_a_model(folder: Path):
    assert set(names(folder)) == set(database.posterior_names(folder))
    assert len(names(folder)) == 26


# the four without reference draws, written again with SciPy and loops


def wells(data: dict[str, np.ndarray], v: dict[str, np.ndarray]) -> float:
    logit = v["beta"][0] + v["beta"][1] * data["dist"]
    sign = 2 * data["switched"] - 1
    return stats.logistic.logcdf(sign * logit).sum()


def county_prior(v: dict[str, np.ndarray]) -> float:
    half = stats.halfnorm.logpdf(v["sigma_y"]) + stats.halfnorm.logpdf(v["sigma_alpha"])
    level = stats.norm.logpdf(v["mu_alpha"], 0, 10)
    return half + level + stats.norm.logpdf(v["alpha_raw"]).sum()


def radon_pooled(data: dict[str, np.ndarray], v: dict[str, np.ndarray]) -> float:
    alpha = v["mu_alpha"] + v["sigma_alpha"] * v["alpha_raw"]
    centre = [alpha[int(c) - 1] for c in data["county_idx"]]
    return county_prior(v) + stats.norm.logpdf(data["log_radon"], centre, v["sigma_y"]).sum()


def radon_intercept(data: dict[str, np.ndarray], v: dict[str, np.ndarray]) -> float:
    alpha = v["mu_alpha"] + v["sigma_alpha"] * v["alpha_raw"]
    rows = zip(data["county_idx"], data["log_uppm"], data["floor_measure"], strict=True)
    centre = [alpha[int(c) - 1] + v["beta"][0] * u + v["beta"][1] * f for c, u, f in rows]
    prior = county_prior(v) + stats.norm.logpdf(v["beta"], 0, 10).sum()
    return prior + stats.norm.logpdf(data["log_radon"], centre, v["sigma_y"]).sum()


def item_response(data: dict[str, np.ndarray], v: dict[str, np.ndarray]) -> float:
    scales = [stats.halfcauchy.logpdf(v[s], 0, 2) for s in ("sigma_theta", "sigma_a", "sigma_b")]
    total = sum(scales) + stats.norm.logpdf(v["mu_b"], 0, 5)
    total += stats.norm.logpdf(v["theta"], 0, v["sigma_theta"]).sum()
    total += stats.lognorm.logpdf(v["a"], v["sigma_a"]).sum()
    total += stats.norm.logpdf(v["b"], v["mu_b"], v["sigma_b"]).sum()
    for i, row in enumerate(data["y"]):
        for j, correct in enumerate(row):
            logit = v["a"][i] * (v["theta"][j] - v["b"][i])
            total += stats.logistic.logcdf(logit if correct else -logit)
    return total


NAIVE = {
    "wells_data-wells_dist": ("wells_data", wells),
    "radon_all-radon_partially_pooled_noncentered": ("radon_all", radon_pooled),
    "radon_mn-radon_hierarchical_intercept_noncentered": ("radon_mn", radon_intercept),
    "irt_2pl-irt_2pl": ("irt_2pl", item_response),
}
FAST = {"wells_data-wells_dist", "radon_mn-radon_hierarchical_intercept_noncentered"}


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NAIVE]
)
def test_density_equals_a_naive_one(folder: Path, generator: torch.Generator, name: str):
    problem, (file, naive) = cached(folder, name), NAIVE[name]
    data = {k: v.numpy() for k, v in database.read_data(folder, file).items()}
    z = 0.3 * torch.randn(3, problem.target.dim, generator=generator, dtype=torch.float64)
    target = problem.target
    ours = target.log_density(z) - target.log_abs_det_jacobian(z)
    draws = {k: v.numpy() for k, v in target.constrain(z).items()}
    theirs = [naive(data, {k: v[i] for k, v in draws.items()}) for i in range(len(z))]
    torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64), rtol=1e-10, atol=0)
    assert problem.reference is None
    width = problem.columns(target.constrain(z)).shape[1]
    assert width == len(problem.column_names)


# parts that are written in a way of their own


def test_linear_recursion_is_the_loop(generator: torch.Generator):
    for length in (1, 2, 7, 200):
        c, b = torch.rand(length, generator=generator).double(), torch.tensor(0.7).double()
        x = [c[0]]
        for shock in c[1:]:
            x.append(shock + b * x[-1])
        torch.testing.assert_close(time_series.linear_recursion(c, b), torch.stack(x))


def test_forward_is_the_sum_over_paths(generator: torch.Generator):
    for length in (2, 3, 6):
        P = torch.rand(2, 2, generator=generator).double()
        e = 3 * torch.randn(length, 2, generator=generator).double()
        total = 0.0
        for path in np.ndindex(*(2,) * length):
            weight = np.prod([float(P[i, j]) for i, j in zip(path, path[1:], strict=False)])
            total += weight * np.exp(sum(float(e[t, k]) for t, k in enumerate(path)))
        assert float(mixtures.log_forward(P, e)) == pytest.approx(np.log(total), rel=1e-12)


def test_forward_does_not_underflow():
    e = torch.full((400, 2), -1e4, dtype=torch.float64)
    half = torch.full((2, 2), 0.5, dtype=torch.float64)
    assert float(mixtures.log_forward(half, e)) == pytest.approx(-4e6 + np.log(2.0), rel=1e-14)


def lynx(t: float, x: np.ndarray, p: np.ndarray) -> list[float]:
    return [p[0] - p[1] * np.exp(x[1]), p[3] * np.exp(x[0]) - p[2]]


def compartment(t: float, x: np.ndarray, p: np.ndarray) -> list[float]:
    return [15.0 * p[0] * np.exp(-p[0] * t) - p[2] / 2 * x[0] / (p[1] + x[0])]


SOLUTIONS = {
    # solution, its right-hand side, parameters, constants, first state, points, their distance
    "lynx": (
        equations._predator_prey,
        lynx,
        (0.55, 0.028, 0.8, 0.024, 3.5, 1.8),
        [],
        lambda p: p[4:],
        (20, 1.0),
    ),
    "compartment": (
        equations._one_compartment,
        compartment,
        (0.76, 2.1, 0.95),
        [30.0, 2.0],
        lambda p: [0.0],
        (20, 0.5),
    ),
}


@pytest.mark.parametrize("case", SOLUTIONS)
def test_solution_of_an_equation(case: str):
    """Against SciPy's; the observed order, log2 of the errors' ratio, rounds to 4."""
    solution, rhs, p, constants, start, (points, distance) = SOLUTIONS[case]
    times = distance * np.arange(1, points + 1)
    exact = solve_ivp(
        rhs, (0, times[-1]), start(p), args=(p,), t_eval=times, method="DOP853", rtol=1e-12,
        atol=1e-12,
    ).y.T  # fmt: skip
    errors = []
    for steps in (4, 8, 16):
        path = solution(torch.tensor(p).double(), constants, distance / steps, [points, steps])
        errors.append(np.abs(path.numpy() - exact).max())
    orders = [np.log2(coarse / fine) for coarse, fine in zip(errors, errors[1:], strict=False)]
    assert [round(order) for order in orders] == [4, 4]
    assert errors[0] < 3e-4


@pytest.mark.parametrize("case", SOLUTIONS)
def test_gradient_of_a_solution(case: str):
    solution, _, p, constants, _, (points, distance) = SOLUTIONS[case]
    x = torch.tensor(p).double()
    fn = lambda x: solution(x, constants, distance / 4, [points, 4])  # noqa: E731
    exact = torch.func.jacrev(fn)(x)
    step = 1e-5 * x
    for i, h in enumerate(step):
        move = torch.zeros_like(x)
        move[i] = h
        difference = (fn(x + move) - fn(x - move)) / (2 * h)
        torch.testing.assert_close(exact[..., i], difference, rtol=1e-6, atol=1e-6)


# what comes of mistakes


def test_a_folder_that_is_none(tmp_path: Path):
    with pytest.raises(ValueError, match="must be a posteriordb folder"):
        names(tmp_path)


def test_unknown_names(tmp_path: Path):
    (tmp_path / "posteriors").mkdir()
    about = {"model_name": "horseshoe", "data_name": "none"}
    (tmp_path / "posteriors" / "a-b.json").write_text(json.dumps(about), encoding="utf-8")
    assert names(tmp_path) == ()
    with pytest.raises(ValueError, match="no posterior 'c-d' in .*; it has a-b"):
        load(tmp_path, "c-d")
    with pytest.raises(ValueError, match="model 'horseshoe' is not written"):
        load(tmp_path, "a-b")
    assert "horseshoe" not in MODELS
