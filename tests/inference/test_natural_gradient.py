from __future__ import annotations

import pytest
import torch
from problems.posteriors import PROBLEMS

import probcalc as pc
from probcalc.inference.natural_gradient import NaturalGradient, _dense, _diagonal

F64 = torch.float64
P = torch.tensor([[2.0, 0.9, 0.0], [0.9, 1.0, 0.3], [0.0, 0.3, 0.5]], dtype=F64)
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
EPS = torch.cat([s * 3**0.5 * torch.eye(3, dtype=F64) for s in (1, -1)])  # exact second moments


def gradient(z):
    return -(z - MEAN) @ P


def test_a_full_step_solves_a_gaussian():
    """From the precision itself: from elsewhere the precision is the second-order one."""
    L = torch.linalg.cholesky(P.inverse())
    params = {"loc": torch.zeros(3, dtype=F64), "scale_tril": L}
    new = _dense(params, EPS, gradient(EPS @ L.mT), 1.0)
    torch.testing.assert_close(new["loc"], MEAN.clone())
    torch.testing.assert_close(new["scale_tril"], L)


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_the_precision_takes_the_step_of_the_formula(rate: float):
    L = torch.tensor([[0.8, 0.0, 0.0], [0.2, 0.7, 0.0], [0.1, -0.3, 1.1]], dtype=F64)
    params = {"loc": MEAN, "scale_tril": L}
    new = _dense(params, EPS, gradient(MEAN + EPS @ L.mT), rate)["scale_tril"]
    old = torch.linalg.inv(L @ L.mT)
    R = old - P
    expected = old - rate * R + 0.5 * rate**2 * R @ L @ L.mT @ R
    torch.testing.assert_close(torch.linalg.inv(new @ new.mT), expected)


def test_independent_coordinates_are_the_diagonal_of_it():
    s = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    params = {"loc": MEAN, "log_scale": s.log()}
    D = P.diagonal().clone()
    new = _diagonal(params, EPS, -(EPS * s) * D, 0.5)["log_scale"]
    R = 1 / s**2 - D
    torch.testing.assert_close((-2 * new).exp(), 1 / s**2 - 0.5 * R + 0.125 * R**2 * s**2)


@pytest.mark.parametrize("name", [n for n, make in PROBLEMS.items() if make().gaussian])
def test_gaussian_posteriors_are_found(name: str, generator: torch.Generator):
    problem = PROBLEMS[name]()
    posterior = pc.fit(
        problem.target(), guide=pc.FullRank(), method=NaturalGradient(), generator=generator
    )
    assert posterior.ok, posterior.reasons
    for site, mean in posterior.mean.items():
        sd = problem.std[site]
        assert bool(((mean.value - problem.mean[site]).abs() <= 0.05 * sd).all())
        assert bool(((posterior.std[site].value / sd).log().abs() <= 0.05).all())


def test_what_it_cannot_do_is_refused():
    target = pc.Target.from_log_density(lambda x: -x.square().sum(), 2)
    with pytest.raises(ValueError, match="for `FullRank.*got GaussianMixture"):
        pc.fit(target, guide=pc.GaussianMixture(2), method=NaturalGradient())
    with pytest.raises(ValueError, match="must be in \\(0, 1\\], got 2"):
        NaturalGradient(rate=2.0)
    flat = pc.Target.from_log_density(lambda x: 0.0 * x.sum(), 2)
    params = pc.FullRank().init(flat, torch.Generator().manual_seed(0))
    solved = NaturalGradient(max_steps=200).solve(flat, pc.FullRank(), params, seed=0)
    assert solved.status & pc.Status.NOT_CONVERGED
