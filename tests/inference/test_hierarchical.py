from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from probcalc.divergence.gaussian import normal_kl
from probcalc.inference.hierarchical import Bound, Normals, hierarchical_elbo

F64 = {"dtype": torch.float64}


def normals(generator: torch.Generator, *shape: int) -> Normals:
    loc, log_scale = torch.randn(2, *shape, generator=generator, **F64)
    return Normals(loc, log_scale)


def test_kl_of_normals_is_that_of_torch(generator: torch.Generator):
    q, p = normals(generator, 50, 3), normals(generator, 50, 3)
    expected = kl_divergence(Normal(q.loc, q.log_scale.exp()), Normal(p.loc, p.log_scale.exp()))
    torch.testing.assert_close(q.kl(p), expected.sum(dim=-1))


@pytest.mark.parametrize("step", [1e-2, 1e-5, 1e-9])
def test_kl_of_near_normals_keeps_its_digits(step: float):
    """To second order it is s² + (m)²/2, for scales and means apart by s and m."""
    zero, near = torch.zeros(1, **F64), torch.full((1,), step, **F64)
    scales = float(normal_kl(zero, near, zero, zero))
    means = float(normal_kl(near, zero, zero, zero))
    assert math.isclose(scales, step**2, rel_tol=step + 2e-15 / step)
    assert math.isclose(means, step**2 / 2, rel_tol=1e-12)


def test_conjugate_bound_is_evidence_minus_divergence(generator: torch.Generator):
    """x ~ N(z_1, 1), z_1 ~ N(z_2, 1), z_2 ~ N(0, 1): ELBO = ln p(x) − KL, by quadrature of draws.

    With the exact posterior of both levels every draw of ln w is ln p(x); the mean of the bound
    over the top level is then exact by Gauss-Hermite points.
    """
    x = torch.tensor([0.7, -2.0], **F64)
    # q(z_2|x) = N(x/3, 2/3), q(z_1|z_2, x) = N((x + z_2)/2, 1/2); p(x) = N(0, 3)
    points, weights = gauss_hermite(20)
    top = Normals((x / 3)[:, None], torch.full((2, 1), 0.5 * math.log(2 / 3), **F64))
    z2 = top.draw(points[:, None, None])  # (points, rows, 1)
    below = Normals((x[:, None] + z2) / 2, torch.full_like(z2, 0.5 * math.log(0.5)))
    prior = Normals(z2, torch.zeros_like(z2))
    standard = Normals(torch.zeros(2, 1, **F64), torch.zeros(2, 1, **F64))
    # E ln N(x; z_1, 1) over q(z_1), in closed form
    away = (x[:, None] - below.loc).square() + 0.5
    reconstruction = (-0.5 * away - 0.5 * math.log(2 * math.pi))[..., 0]
    bound = hierarchical_elbo(reconstruction, [(below, prior), (top, standard)])
    got = (weights[:, None] * bound.elbo).sum(dim=0)
    torch.testing.assert_close(
        got, Normal(0 * x, 0 * x + math.sqrt(3)).log_prob(x), rtol=1e-10, atol=0
    )


def gauss_hermite(n: int) -> tuple[Tensor, Tensor]:
    """Points and weights of the standard normal (Golub & Welsch 1969)."""
    off = torch.arange(1.0, n, **F64).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return values, vectors[0].square()


def test_rates_below_the_floor_have_no_gradient():
    rate = torch.tensor([[0.2, 0.4], [2.0, 4.0]], **F64).requires_grad_()
    value = Bound(torch.zeros(2, **F64), rate).tempered(1.0, free_nats=0.5)
    assert value.item() == -(0.5 + 3.0)
    (grad,) = torch.autograd.grad(value, rate)
    assert grad.tolist() == [[0.0, 0.0], [-0.5, -0.5]]


def test_weight_of_the_rate():
    bound = Bound(torch.tensor([-3.0, -5.0]), torch.tensor([[1.0, 3.0]]))
    assert float(bound.tempered(1.0)) == float(bound.elbo.mean()) == -6.0
    assert float(bound.tempered(0.25)) == -4.5
    assert bound.rate.tolist() == [1.0, 3.0]
