from __future__ import annotations

import math

import torch
from problems.posteriors import PROBLEMS

from probcalc.differentiation.curvature import central_hessian
from probcalc.inference.linear_response import (
    elbo_gradient,
    elbo_hessian,
    response_covariance,
)
from probcalc.inference.saa import sample_average
from probcalc.integration.normal_draws import matched_normal_draws

F64 = torch.float64


def gaussian_density(precision, mean):
    def value_and_grad(z):
        c = z - mean
        return -0.5 * (c @ precision * c).sum(-1), -(c @ precision)

    return value_and_grad


P = torch.tensor([[2.0, 0.9, 0.0], [0.9, 1.0, 0.3], [0.0, 0.3, 0.5]], dtype=F64)
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=F64)


def objective(value_and_grad, eps):
    """J(m, ℓ), written plainly."""

    def J(x):
        m, log_s = x[: len(x) // 2], x[len(x) // 2 :]
        return -value_and_grad(m + log_s.exp() * eps)[0].mean() - log_s.sum()

    return J


def test_gaussian_optimum_is_that_of_infinitely_many_draws(generator: torch.Generator):
    """Mean-field on a Gaussian: the exact mean, and sds 1/√P_ii."""
    eps = matched_normal_draws(4, 16, 3, generator=generator)
    start = torch.randn(4, 3, generator=generator, dtype=F64)
    density = gaussian_density(P, MEAN)
    fitted = sample_average(density, start, torch.zeros(4, 3, dtype=F64), eps, gtol=1e-9)
    torch.testing.assert_close(fitted.loc, MEAN.expand(4, 3), rtol=1e-7, atol=1e-7)
    sd = P.diagonal().rsqrt().expand(4, 3)
    torch.testing.assert_close(fitted.log_scale.exp(), sd, rtol=1e-7, atol=1e-7)
    entropy = P.diagonal().rsqrt().log().sum() + 1.5 * math.log(2 * math.pi * math.e)
    torch.testing.assert_close(fitted.elbo, (entropy - 1.5).expand(4))
    assert fitted.solution.ok


def test_linear_response_gives_the_covariance_that_mean_field_lacks(generator: torch.Generator):
    eps = matched_normal_draws(1, 16, 3, generator=generator)[0]
    H = elbo_hessian(gaussian_density(P, MEAN), MEAN, -0.5 * P.diagonal().log(), eps)
    torch.testing.assert_close(response_covariance(H), P.inverse(), rtol=1e-6, atol=1e-8)


def test_gradient_and_hessian_are_those_of_the_objective(generator: torch.Generator):
    """Against plain differentiation, on a density that is not Gaussian."""
    target = PROBLEMS["proportions"]().target()
    eps = matched_normal_draws(1, 8, 2, generator=generator)[0]
    x = 0.3 * torch.randn(4, generator=generator, dtype=F64)
    log_density = lambda z: (target.log_density(z), None)
    J = objective(log_density, eps)
    leaf = x.clone().requires_grad_()
    slope = torch.autograd.grad(J(leaf), leaf)[0]
    torch.testing.assert_close(elbo_gradient(target.value_and_grad, x[:2], x[2:], eps), slope)
    gradient = lambda rows: torch.stack(
        [elbo_gradient(target.value_and_grad, r[:2], r[2:], eps) for r in rows]
    )
    H = elbo_hessian(target.value_and_grad, x[:2], x[2:], eps)
    torch.testing.assert_close(H, central_hessian(gradient, x[None])[0], rtol=1e-6, atol=1e-7)


def test_an_indefinite_hessian_has_no_response():
    assert response_covariance(torch.diag(torch.tensor([1.0, -1.0]))) is None


def test_randomisations_are_solved_as_if_alone(generator: torch.Generator):
    """A batch gives what its members give one by one."""
    target = PROBLEMS["proportions"]().target()
    eps = matched_normal_draws(3, 16, 2, generator=generator)
    start = torch.randn(3, 2, generator=generator, dtype=F64)
    scale = torch.full((3, 2), -1.0, dtype=F64)
    together = sample_average(target.value_and_grad, start, scale, eps)
    for i in range(3):
        alone = sample_average(
            target.value_and_grad, start[i : i + 1], scale[i : i + 1], eps[i : i + 1]
        )
        torch.testing.assert_close(together.loc[i], alone.loc[0])
        assert int(together.solution.num_evals[i]) == alone.num_evals // 16
