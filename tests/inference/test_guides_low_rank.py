"""The factor's algebra against dense linear algebra, its limits, and its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import probcalc as pc
from probcalc.inference.guides import FullRank, LowRank

F64 = torch.float64


def covariance_root(d: int, generator: torch.Generator) -> Tensor:
    L = torch.randn(d, d, generator=generator, dtype=F64)
    return L.tril(-1) + torch.diag_embed(0.5 + L.diagonal().abs())


@pytest.mark.parametrize("extreme", [1.0, 1e4, 1e7])
def test_density_is_that_of_the_dense_normal(extreme: float, generator: torch.Generator):
    """Also where the factor is far larger than the diagonal, where Woodbury's formula cancels."""
    d, r = 6, 2
    F = extreme * torch.randn(d, r, generator=generator, dtype=F64)
    params = {"loc": torch.arange(d).double(), "log_scale": torch.zeros(d, dtype=F64), "factor": F}
    eps = torch.randn(20, d + r, generator=generator, dtype=F64)
    guide = LowRank(r)
    z, log_q = guide.transform(params, eps)
    # exact: rotate the factor's columns onto axes, where the covariance is diagonal
    U, S, _ = torch.linalg.svd(F, full_matrices=True)
    sd = torch.ones(d, dtype=F64)
    sd[:r] = (1 + S**2).sqrt()
    x = (eps[:, :d] + eps[:, d:] @ F.mT) @ U
    # the factor's part of x is what cancels in other coordinates: take it exactly
    x[:, r:] = eps[:, :d] @ U[:, r:]
    exact = torch.distributions.Normal(0.0, sd).log_prob(x).sum(dim=1)
    # a coordinate of size `extreme` is rounded by extreme · 2⁻⁵³; Woodbury's terms by its square
    atol = 1e-12 + 100 * extreme * torch.finfo(F64).eps
    torch.testing.assert_close(log_q, exact, rtol=0, atol=atol)
    torch.testing.assert_close(guide.log_prob(params, z), exact, rtol=0, atol=atol)


@pytest.mark.parametrize("rank", [4, 5, 9])
def test_rank_of_all_but_one_is_full_rank(rank: int, generator: torch.Generator):
    d = 5
    loc, L = torch.arange(d).double(), covariance_root(d, generator)
    full = FullRank().from_gaussian(loc, L)
    guide = LowRank(rank)
    low = guide.from_gaussian(loc, L)
    z = 3 * torch.randn(10, d, generator=generator, dtype=F64)
    torch.testing.assert_close(guide.log_prob(low, z), FullRank().log_prob(full, z))
    torch.testing.assert_close(guide.entropy(low), FullRank().entropy(full))
    torch.testing.assert_close(guide.moments(low)[1], L @ L.mT)


def test_the_factor_carries_the_directions_of_large_variance(generator: torch.Generator):
    """All of the factor and the diagonal's size are optimal."""
    d, r = 8, 2
    V = torch.linalg.qr(torch.randn(d, r, generator=generator, dtype=F64)).Q
    covariance = torch.eye(d, dtype=F64) + V @ torch.diag(torch.tensor([9.0, 4.0]).double()) @ V.mT
    guide = LowRank(r)
    best = guide.from_gaussian(torch.zeros(d, dtype=F64), torch.linalg.cholesky(covariance))
    P = torch.linalg.inv(covariance)

    def divergence(params: dict[str, Tensor]) -> Tensor:
        return 0.5 * (P * guide.moments(params)[1]).sum() - guide.entropy(params)

    slope = grad(divergence)(best)
    assert slope["factor"].abs().max() < 1e-9
    # the diagonal's shape is held: only its size is chosen
    assert abs(slope["log_scale"].sum()) < 1e-9
    without = pc.MeanField().from_gaussian(best["loc"], torch.linalg.cholesky(covariance))
    assert divergence(best) < divergence({**without, "factor": 0 * best["factor"]}) - 0.1


class Largest(TorchDispatchMode):
    """The largest tensor that any operation inside has made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [t.untyped_storage().nbytes() // 8 for t in tree_leaves(out) if torch.is_tensor(t)]
        self.numel = max(self.numel, *sizes, 0)
        return out


def test_ten_thousand_dimensions_need_no_square(generator: torch.Generator):
    d, guide = 10_000, LowRank(8)
    target = pc.Target.from_log_density(lambda x: -0.5 * x.square().sum(), d)
    eps = torch.randn(4, guide.base_dim(d), generator=generator, dtype=F64)
    with Largest() as largest:
        params = {k: v.requires_grad_() for k, v in guide.init(target, generator).items()}
        z, log_q = guide.transform(params, eps)
        total = log_q.sum() + guide.log_prob(params, z.detach()).sum() + guide.entropy(params)
        torch.autograd.grad(total, list(params.values()))
    assert d < largest.numel < 100 * d


def test_it_fits_a_correlated_normal(generator: torch.Generator):
    """One strong direction among fifty: found by the fit, missed by independent normals."""
    d = 50
    v = torch.randn(d, generator=generator, dtype=F64)
    covariance = torch.eye(d, dtype=F64) + torch.outer(v, v)
    p = torch.distributions.MultivariateNormal(torch.zeros(d, dtype=F64), covariance)
    posterior = pc.fit(pc.Target.from_distribution(p), guide=LowRank(1), generator=generator)
    assert posterior.ok
    _, found = posterior.guide.moments(posterior.params)
    torch.testing.assert_close(found, covariance, rtol=0, atol=0.02)
