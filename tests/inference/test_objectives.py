"""Objectives against exact values and gradients on Gaussians, by z-tests."""

from __future__ import annotations

import math

import pytest
import torch
from laws import assert_mean_is, assert_within
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

import probcalc as pc
from probcalc.inference.elbo import elbo
from probcalc.inference.objectives import (
    ELBO,
    VIMCO,
    ClosedEntropy,
    ImportanceWeighted,
    Renyi,
    StickTheLanding,
    TotalGradient,
    grouped,
    named,
)

F64 = torch.float64
LOC = torch.tensor([1.0, -0.5], dtype=F64)
SCALE = torch.tensor([[1.0, 0.0], [0.6, 0.7]], dtype=F64)
LOG_Z = 1.3  # of the unnormalised target
TARGET = MultivariateNormal(LOC, scale_tril=SCALE)
Params = dict[str, Tensor]


def log_density(z: Tensor) -> Tensor:
    return TARGET.log_prob(z) + LOG_Z


def start(guide: object) -> Params:
    loc = torch.tensor([0.7, -0.3], dtype=F64)
    if isinstance(guide, pc.MeanField):
        return {"loc": loc, "log_scale": torch.tensor([-0.1, -0.3], dtype=F64)}
    L = torch.tensor([[0.9, 0.0], [0.4, 0.75]], dtype=F64)
    return {"loc": loc, "scale_tril": L}


def as_normal(guide: object, params: Params) -> MultivariateNormal:
    if isinstance(guide, pc.MeanField):
        return MultivariateNormal(
            params["loc"], scale_tril=torch.diag_embed(params["log_scale"].exp())
        )
    return MultivariateNormal(params["loc"], scale_tril=params["scale_tril"].tril())


def replicates(
    objective, guide, params: Params, num: int, n: int, generator
) -> tuple[Tensor, Tensor]:
    """Mean terms of independent replicates and their gradients, parameters one after the other."""
    leaves = {k: t.expand(num, *t.shape).clone().requires_grad_() for k, t in params.items()}
    eps = torch.randn(num, n, 2, generator=generator, dtype=F64)
    value = objective.terms(log_density, guide, leaves, eps).mean(dim=1)
    grads = torch.autograd.grad(value.sum(), list(leaves.values()))
    return value.detach(), torch.cat([g.reshape(num, -1) for g in grads], dim=1)


def exact_elbo(guide, params: Params) -> Tensor:
    return LOG_Z - kl_divergence(as_normal(guide, params), TARGET)


def by_quadrature(guide, params: Params, alpha: float) -> Tensor:
    """Rényi's bound with two draws, on a grid of four dimensions."""
    x, w = hermegauss(18)
    x, w = torch.tensor(x), torch.tensor(w / w.sum())
    eps = torch.cartesian_prod(x, x, x, x).reshape(-1, 2, 2)
    mass = torch.cartesian_prod(w, w, w, w).prod(dim=1)
    z, log_q = guide.transform(params, eps.reshape(-1, 2))
    log_r = (1 - alpha) * (log_density(z) - log_q).reshape(-1, 2)
    return (mass * (log_r.logsumexp(dim=1) - math.log(2))).sum() / (1 - alpha)


# objective, exact value
CASES = {
    "closed": (ELBO(ClosedEntropy()), exact_elbo),
    "total": (ELBO(TotalGradient()), exact_elbo),
    "landing": (ELBO(StickTheLanding()), exact_elbo),
    "score": (ELBO(pc.ScoreFunction()), exact_elbo),
    "default": (ELBO(), exact_elbo),
    "iw of one": (ImportanceWeighted(1), exact_elbo),
    "renyi of one": (Renyi(0.4, 1), exact_elbo),
    "iw": (ImportanceWeighted(2), lambda g, p: by_quadrature(g, p, 0.0)),
    "iw, total": (ImportanceWeighted(2, False), lambda g, p: by_quadrature(g, p, 0.0)),
    "vimco": (VIMCO(2), lambda g, p: by_quadrature(g, p, 0.0)),
    "renyi": (Renyi(0.5, 2), lambda g, p: by_quadrature(g, p, 0.5)),
    "renyi, total": (Renyi(0.5, 2, False), lambda g, p: by_quadrature(g, p, 0.5)),
    "renyi above one": (Renyi(1.5, 2), lambda g, p: by_quadrature(g, p, 1.5)),
}


@pytest.mark.parametrize("guide", [pc.MeanField(), pc.FullRank()], ids=["mean-field", "full"])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_unbiased(name: str, guide, generator: torch.Generator):
    objective, exact = CASES[name]
    params = start(guide)
    leaves = {k: t.clone().requires_grad_() for k, t in params.items()}
    truth = exact(guide, leaves)
    slopes = torch.autograd.grad(truth, list(leaves.values()))
    slope = torch.cat([g.tril().flatten() if g.ndim == 2 else g for g in slopes])
    n = 96 if "vimco" in name or "score" in name else 32  # enough for the skewness of their terms
    value, grad = replicates(objective, guide, params, 20_000, n, generator)
    assert_mean_is(value, truth.detach(), bias=0.06)
    assert_mean_is(grad, slope, bias=0.07)


def test_renyi_bound_of_many_draws_is_the_divergence(generator: torch.Generator):
    """E[w^(1−α)] = exp((1 − α) L_α), L_α = log Z − D_α(q‖p) in closed form for normals."""
    guide, alpha = pc.FullRank(), 0.5
    params = start(guide)
    q = as_normal(guide, params)
    mixed = alpha * TARGET.covariance_matrix + (1 - alpha) * q.covariance_matrix
    away = LOC - params["loc"]
    D = 0.5 * alpha * away @ torch.linalg.solve(mixed, away) - 0.5 / (alpha - 1) * (
        torch.logdet(mixed)
        - (1 - alpha) * torch.logdet(q.covariance_matrix)
        - alpha * torch.logdet(TARGET.covariance_matrix)
    )
    eps = torch.randn(40_000, 4, 2, generator=generator, dtype=F64)
    many = {k: t.expand(40_000, *t.shape) for k, t in params.items()}
    terms = Renyi(alpha, 4).terms(log_density, guide, many, eps)
    assert_mean_is(((1 - alpha) * terms).exp()[:, 0], ((1 - alpha) * (LOG_Z - D)).exp(), bias=0.05)


@pytest.mark.parametrize(
    "objective", [ELBO(StickTheLanding()), ImportanceWeighted(4), Renyi(0.3, 4)]
)
def test_path_gradients_have_no_noise_at_the_optimum(objective, generator: torch.Generator):
    params = {"loc": LOC, "scale_tril": SCALE}
    value, grad = replicates(objective, pc.FullRank(), params, 50, 8, generator)
    torch.testing.assert_close(value, torch.full_like(value, LOG_Z))
    assert grad.abs().max() < 1e-12
    noisy = replicates(ELBO(TotalGradient()), pc.FullRank(), params, 50, 8, generator)[1]
    assert noisy.std(dim=0).amax() > 0.1


def test_importance_weighted_bound_rises_with_the_draws(generator: torch.Generator):
    """On common draws: a mean over sub-groups never exceeds the group's bound in the mean."""
    guide = pc.MeanField()
    eps = torch.randn(4_000, 16, 2, generator=generator, dtype=F64)
    many = {k: t.expand(4_000, *t.shape) for k, t in start(guide).items()}
    bounds = [
        ImportanceWeighted(k).terms(log_density, guide, many, eps).mean() for k in (1, 2, 4, 8, 16)
    ]
    assert all(a < b for a, b in zip(bounds, bounds[1:], strict=False))
    assert bounds[-1] < LOG_Z


def test_signal_of_the_path_grows_with_the_weights(generator: torch.Generator):
    """Signal to noise of one term: like √K through the draws, 1/√K by the total gradient."""
    guide = pc.MeanField()
    wide = {**start(guide), "log_scale": torch.tensor([0.3, 0.3], dtype=F64)}
    ratios = {}
    for doubly in (True, False):
        for k in (4, 64):
            objective = ImportanceWeighted(k, doubly)
            grad = replicates(objective, guide, wide, 3_000, k, generator)[1]
            ratios[doubly, k] = float((grad.mean(dim=0).abs() / grad.std(dim=0))[0])
    assert ratios[True, 64] > 2 * ratios[True, 4]
    assert ratios[False, 64] < ratios[False, 4]


def test_groups_keep_strata_together():
    """Twelve draws, six of each of two strata: each of three groups has two of both."""
    stratum = torch.arange(12) // 6
    assert grouped(stratum.double(), 4).sum(dim=0).tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    "objective", [None, ELBO(ClosedEntropy()), ImportanceWeighted(3), Renyi(0.5, 2)]
)
def test_elbo_of_a_guide_has_an_honest_bar(objective, generator: torch.Generator):
    target = pc.Target.from_log_density(log_density, 2)
    guide = pc.FullRank()
    params = start(guide)
    found = elbo(target, guide, params, objective=objective, generator=generator)
    assert found.method == named(objective or ELBO())
    if isinstance(objective, ImportanceWeighted):
        assert float(exact_elbo(guide, params)) < float(found) < LOG_Z
        return
    exact = (
        exact_elbo(guide, params)
        if objective != Renyi(0.5, 2)
        else by_quadrature(guide, params, 0.5)
    )
    assert_within(found, exact)
    assert float(found.error) < 0.1


REFUSED = {
    "order one": (lambda: Renyi(1.0), "not 1 \\(use `ELBO\\(\\)`\\)"),
    "no draws": (lambda: ImportanceWeighted(0), "at least 1, got 0"),
    "vimco of one": (lambda: VIMCO(1), "at least 2, got 1"),
    "several weights": (lambda: ELBO(num_weights=2), "use `ImportanceWeighted`"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_settings_are_refused(name: str):
    build, match = REFUSED[name]
    with pytest.raises(ValueError, match=match):
        build()


def test_what_a_guide_does_not_have_is_refused():
    with pytest.raises(TypeError, match="takes ClosedEntropy"):
        ELBO("stl")
    target = pc.Target.from_log_density(log_density, 2)
    with pytest.raises(ValueError, match="no entropy in closed form"):
        elbo(target, pc.StudentT(), objective=ELBO(ClosedEntropy()))
    with pytest.raises(ValueError, match="multiple of `num_weights` = 3: 4"):
        grouped(torch.zeros(4, dtype=F64), 3)
