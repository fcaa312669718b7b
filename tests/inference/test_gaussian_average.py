from __future__ import annotations

import torch
from problems.posteriors import PROBLEMS
from torch import Tensor

from probcalc.inference.gaussian_average import gaussian_average
from probcalc.integration.normal_draws import matched_normal_draws

F64 = torch.float64
P = torch.tensor([[4.0, 1.8, 0.1], [1.8, 1.0, 0.2], [0.1, 0.2, 0.5]], dtype=F64)
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=F64)


def gaussian(x: Tensor) -> tuple[Tensor, Tensor]:
    centred = x - MEAN
    return -0.5 * ((centred @ P) * centred).sum(dim=-1), -centred @ P


def double_well(x: Tensor) -> tuple[Tensor, Tensor]:
    return (x**2 - 0.25 * x**4).sum(dim=-1), 2 * x - x**3


def draws(generator: torch.Generator, r: int, m: int, d: int) -> Tensor:
    return matched_normal_draws(r, m, d, generator=generator)


def test_a_gaussian_is_found_in_one_step(generator: torch.Generator):
    """Exactly, since the draws have exact second moments."""
    start, scale = torch.zeros(2, 3, dtype=F64), 0.5 * torch.eye(3, dtype=F64).expand(2, 3, 3)
    found = gaussian_average(gaussian, start, scale, draws(generator, 2, 8, 3))
    assert found.num_steps.max() <= 6
    torch.testing.assert_close(found.loc, MEAN.expand(2, 3))
    torch.testing.assert_close(found.scale_tril @ found.scale_tril.mT, P.inverse().expand(2, 3, 3))
    torch.testing.assert_close(found.scale_tril, found.scale_tril.tril())
    exact = 1.5 * torch.log(torch.tensor(2 * torch.pi, dtype=F64)) - 0.5 * P.logdet()
    torch.testing.assert_close(found.elbo, exact.expand(2))


def test_the_elbo_over_fixed_draws_never_falls(generator: torch.Generator):
    """Also where the density is not log-concave, from a start between two modes."""
    start, scale = torch.full((1, 1), 0.1, dtype=F64), torch.full((1, 1, 1), 0.3, dtype=F64)
    found = gaussian_average(double_well, start, scale, draws(generator, 1, 64, 1))
    assert (found.trace.diff(dim=0) >= 0).all()
    assert found.converged.all()


def test_its_optimum_is_stationary(generator: torch.Generator):
    """E[g] = 0 and −E[ε (Lᵀg)ᵀ] = I over the draws, up to the decrement."""
    target = PROBLEMS["proportions"]().target()
    eps = draws(generator, 1, 64, 2)
    start, scale = torch.zeros(1, 2, dtype=F64), torch.eye(2, dtype=F64)[None]
    found = gaussian_average(target.value_and_grad, start, scale, eps, tolerance=1e-10)
    g = target.value_and_grad(found.loc[:, None] + eps @ found.scale_tril.mT)[1]
    white = g @ found.scale_tril
    assert white.mean(dim=1).abs().max() < 1e-4
    A = -eps.mT @ white / eps.shape[1]
    torch.testing.assert_close(0.5 * (A + A.mT)[0], torch.eye(2, dtype=F64), rtol=0, atol=1e-4)


def test_problems_are_solved_as_if_alone(generator: torch.Generator):
    target = PROBLEMS["proportions"]().target()
    eps = draws(generator, 3, 32, 2)
    start = torch.randn(3, 2, generator=generator, dtype=F64)
    scale = 0.3 * torch.eye(2, dtype=F64).expand(3, 2, 2)
    together = gaussian_average(target.value_and_grad, start, scale, eps)
    for i in range(3):
        alone = gaussian_average(
            target.value_and_grad, start[i : i + 1], scale[i : i + 1], eps[i : i + 1]
        )
        torch.testing.assert_close(alone.loc[0], together.loc[i])
        torch.testing.assert_close(alone.scale_tril[0], together.scale_tril[i])
    assert together.num_gradients == 32 * int(together.num_steps.sum())


def test_a_flat_density_is_not_called_converged(generator: torch.Generator):
    flat = lambda x: (0.0 * x.sum(dim=-1), 0.0 * x)
    start, scale = torch.zeros(1, 2, dtype=F64), torch.eye(2, dtype=F64)[None]
    found = gaussian_average(flat, start, scale, draws(generator, 1, 16, 2))
    assert not found.converged.any()
    assert found.scale_tril.abs().max() > 1e6


def test_a_density_that_is_nan_at_the_start_goes_nowhere(generator: torch.Generator):
    lost = lambda x: (x.sum(dim=-1) * torch.nan, x * torch.nan)
    start, scale = torch.zeros(1, 2, dtype=F64), torch.eye(2, dtype=F64)[None]
    found = gaussian_average(lost, start, scale, draws(generator, 1, 16, 2))
    assert found.num_steps.tolist() == [1]
    assert found.elbo.isinf().all()
    assert not found.converged.any()
