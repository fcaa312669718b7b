"""Laws that every guide obeys; a new one joins by its line in `GUIDES`."""

from __future__ import annotations

import math

import pytest
import torch
from laws import assert_mean_is
from torch import Tensor
from torch.func import grad, vmap

import probcalc as pc
from probcalc.inference.guides import GUIDES

D, F64 = 3, torch.float64


def params_of(name: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Random parameters of a guide in D dimensions."""
    target = pc.Target.from_log_density(lambda x: -0.5 * x.square().sum(), D)
    start = GUIDES[name]().init(target, generator)
    noise = lambda t: 0.3 * torch.randn(t.shape, generator=generator, dtype=F64)
    return {
        k: (v + noise(v)).tril() + torch.eye(D, dtype=F64) if k == "scale_tril" else v + noise(v)
        for k, v in start.items()
    }


def base_draws(name: str, n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, GUIDES[name]().base_dim(D), generator=generator, dtype=F64)


@pytest.mark.parametrize("name", GUIDES)
def test_transform_and_log_prob_agree(name: str, generator: torch.Generator):
    guide, params = GUIDES[name](), params_of(name, generator)
    z, log_q = guide.transform(params, base_draws(name, 8, generator))
    assert z.shape == (8, D)
    torch.testing.assert_close(log_q, guide.log_prob(params, z))


@pytest.mark.parametrize("name", GUIDES)
def test_density_integrates_to_one(name: str, generator: torch.Generator):
    """E_r[q/r] = 1 for a wide Student t r, by its own draws."""
    guide, params = GUIDES[name](), params_of(name, generator)
    own = guide.transform(params, base_draws(name, 2_000, generator))[0]
    wide = pc.StudentT(4)
    L = 1.3 * torch.linalg.cholesky(torch.cov(own.mT))
    r = {"loc": own.mean(dim=0), "scale_tril": L}
    z, log_r = wide.transform(r, torch.randn(400_000, D + 2, generator=generator, dtype=F64))
    assert_mean_is((guide.log_prob(params, z) - log_r).exp(), 1.0, bias=0.02)


@pytest.mark.parametrize("name", GUIDES)
def test_draws_follow_the_density(name: str, generator: torch.Generator):
    """E_q[r/q] = 1 for a narrow normal r inside every guide."""
    guide, params = GUIDES[name](), params_of(name, generator)
    z, log_q = guide.transform(params, base_draws(name, 400_000, generator))
    centre = z.mean(dim=0)
    scale = 0.5 * z.std(dim=0)
    inside = ((z - centre).abs() < scale).all(dim=1)
    box = (2 * scale).prod()
    assert_mean_is(inside / (log_q.exp() * box), 1.0, bias=0.02)


@pytest.mark.parametrize("name", GUIDES)
def test_parameters_with_leading_axes_are_independent_fits(name: str, generator: torch.Generator):
    guide = GUIDES[name]()
    several = [params_of(name, generator) for _ in range(3)]
    stacked = {k: torch.stack([p[k] for p in several]) for k in several[0]}
    eps = base_draws(name, 4, generator)
    z, log_q = guide.transform(stacked, eps.expand(3, 4, -1))
    for i, params in enumerate(several):
        expected_z, expected_log_q = guide.transform(params, eps)
        torch.testing.assert_close(z[i], expected_z)
        torch.testing.assert_close(log_q[i], expected_log_q)
    torch.testing.assert_close(guide.log_prob(stacked, z), log_q)


@pytest.mark.parametrize("name", GUIDES)
def test_it_works_under_vmap_and_grad(name: str, generator: torch.Generator):
    guide, params = GUIDES[name](), params_of(name, generator)
    z = torch.randn(5, D, generator=generator, dtype=F64)
    rows = vmap(lambda row: guide.log_prob(params, row[None])[0])(z)
    torch.testing.assert_close(rows, guide.log_prob(params, z))
    slope = grad(lambda p: guide.log_prob(p, z).sum())(params)
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    total = guide.log_prob(leaves, z).sum()
    expected = torch.autograd.grad(total, list(leaves.values()))
    for got, want in zip(slope.values(), expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", [n for n in GUIDES if hasattr(GUIDES[n], "entropy")])
def test_entropy_is_minus_the_mean_log_density(name: str, generator: torch.Generator):
    guide, params = GUIDES[name](), params_of(name, generator)
    _, log_q = guide.transform(params, base_draws(name, 50_000, generator))
    assert_mean_is(-log_q, float(guide.entropy(params)), bias=0.04)


def test_student_t_is_that_of_scipy():
    """One dimension, scaled to unit variance."""
    from scipy.stats import t

    for dof in (4, 6, 10):
        params = {"loc": torch.zeros(1, dtype=F64), "scale_tril": torch.eye(1, dtype=F64)}
        x = torch.linspace(-8, 8, 9, dtype=F64)
        expected = t.logpdf(x.numpy(), dof, scale=math.sqrt((dof - 2) / dof))
        got = pc.StudentT(dof).log_prob(params, x[:, None])
        torch.testing.assert_close(got, torch.from_numpy(expected))


def test_mixture_is_the_mean_of_its_components(generator: torch.Generator):
    params = params_of("gaussian_mixture", generator)
    z = torch.randn(6, D, generator=generator, dtype=F64)
    parts = [
        torch.distributions.MultivariateNormal(loc, scale_tril=L).log_prob(z).exp()
        for loc, L in zip(params["loc"], params["scale_tril"], strict=True)
    ]
    expected = torch.stack(parts).mean(dim=0).log()
    torch.testing.assert_close(pc.GaussianMixture(2).log_prob(params, z), expected)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="must be even and at least 4, got 5"):
        pc.StudentT(5)
    guide = pc.GaussianMixture(2)
    params = {"loc": torch.zeros(2, D), "scale_tril": torch.eye(D).expand(2, D, D)}
    with pytest.raises(ValueError, match="multiple of the 2 components, got 3"):
        guide.transform(params, torch.zeros(3, D))
