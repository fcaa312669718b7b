"""Weights of mixtures: averages over draws, and how the weights are found."""

from __future__ import annotations

import pytest
import torch
from laws import assert_mean_is
from torch import Tensor
from torch.func import grad

from probcalc.inference.guides import GaussianMixture

F64 = torch.float64


def three(generator: torch.Generator) -> dict[str, Tensor]:
    L = 0.3 * torch.randn(3, 2, 2, generator=generator, dtype=F64).tril() + torch.eye(2, dtype=F64)
    loc = 2 * torch.randn(3, 2, generator=generator, dtype=F64)
    return {"loc": loc, "scale_tril": L, "logits": torch.tensor([0.62, 0.3, 0.08]).double().log()}


def parts(params: dict[str, Tensor]) -> list[torch.distributions.MultivariateNormal]:
    return [
        torch.distributions.MultivariateNormal(loc, scale_tril=L)
        for loc, L in zip(params["loc"], params["scale_tril"], strict=True)
    ]


@pytest.mark.parametrize("weighted", [False, True])
def test_density_is_the_mean_of_its_components(weighted: bool, generator: torch.Generator):
    params, guide = three(generator), GaussianMixture(3, weighted=weighted)
    z = torch.randn(6, 2, generator=generator, dtype=F64)
    each = torch.stack([p.log_prob(z).exp() for p in parts(params)])
    w = params["logits"].exp() if weighted else torch.full((3,), 1 / 3, dtype=F64)
    torch.testing.assert_close(guide.log_prob(params, z), (w @ each).log())


@pytest.mark.parametrize("n", [1, 4, 7])
def test_averages_over_few_draws_are_unbiased(n: int, generator: torch.Generator):
    """However few, and though the third component gets no draw in most sets."""
    params, guide = three(generator), GaussianMixture(3, weighted=True)
    eps = torch.randn(80_000, n, guide.base_dim(2), generator=generator, dtype=F64)
    z, _ = guide.transform(params, eps)
    mean, _ = guide.moments(params)
    assert_mean_is(z.mean(dim=1), mean, bias=0.03)


def test_components_get_their_shares(generator: torch.Generator):
    """n w_k draws each, up to one: the first ones from the first component."""
    params, n = three(generator), 50
    params["loc"] = 1e3 * torch.arange(3).double()[:, None].expand(3, 2)
    eps = torch.randn(200, n, 3, generator=generator, dtype=F64)
    z, _ = GaussianMixture(3, weighted=True).transform(params, eps)
    k = (z[..., 0] / 1e3).round().long()
    assert (k.diff(dim=1) >= 0).all()
    for i, share in enumerate([0.62, 0.3, 0.08]):
        count = (k == i).sum(dim=1)
        assert ((count - n * share).abs() < 1).all()


def test_draws_hold_the_weights_still(generator: torch.Generator):
    """A derivative that would be wrong is zero; the density has its own."""
    params, guide = three(generator), GaussianMixture(3, weighted=True)
    eps = torch.randn(9, 3, generator=generator, dtype=F64)
    slope = grad(lambda p: sum(x.sum() for x in guide.transform(p, eps)))(params)
    assert not slope["logits"].any()
    assert slope["loc"].all()
    z = torch.randn(4, 2, generator=generator, dtype=F64)
    assert grad(lambda p: guide.log_prob(p, z).sum())(params)["logits"].all()


def test_weights_are_found_from_weighted_draws(generator: torch.Generator):
    """From equal weights to those of a mixture with the same components."""
    params, guide = three(generator), GaussianMixture(3, weighted=True)
    params["loc"] = 4 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=F64)
    now = {**params, "logits": torch.zeros(3, dtype=F64)}
    z, log_q = guide.transform(now, torch.randn(60_000, 3, generator=generator, dtype=F64))
    log_ratios = guide.log_prob(params, z) - log_q
    for _ in range(10):
        now = guide.reweighted(now, z, log_ratios)
    shares = guide.weights(now)
    assert float(shares.sum()) == pytest.approx(1.0)
    # standard errors of shares from this many draws are below 0.4 %
    torch.testing.assert_close(shares, params["logits"].exp(), rtol=0, atol=0.02)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("d", [1, 2, 4])
def test_components_start_apart(k: int, d: int, generator: torch.Generator):
    """All different, and symmetric about the mean, however many there are."""
    L = torch.randn(d, d, generator=generator, dtype=F64).tril() + 3 * torch.eye(d, dtype=F64)
    params = GaussianMixture(k).from_gaussian(torch.zeros(d, dtype=F64), L)
    apart = torch.cdist(params["loc"], params["loc"]) + torch.eye(k, dtype=F64)
    assert (apart > 0.05).all()
    torch.testing.assert_close(params["loc"].sum(dim=0), torch.zeros(d, dtype=F64))
    _, covariance = GaussianMixture(k).moments(params)
    torch.testing.assert_close(covariance, L @ L.mT)
