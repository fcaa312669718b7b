from __future__ import annotations

import laws
import pytest
import torch
from torch import Tensor

from probcalc.integration import normal_draws
from probcalc.integration.normal_draws import matched_normal_draws

# (draws in a set, dimension): few and many for a net, at and beyond the exact second moment
EXACT = [(2, 1), (4, 2), (16, 3), (64, 8), (64, 32), (256, 5)]
WIDE = [(2, 2), (4, 3), (8, 10), (20, 64)]


def draws(r: int, n: int, d: int, seed: int, **options: object) -> Tensor:
    return matched_normal_draws(r, n, d, generator=laws.generator(seed), **options)


@pytest.mark.parametrize(("n", "d"), EXACT + WIDE)
def test_mean_and_third_moments_vanish(n: int, d: int, seed: int):
    """Draws come in pairs ±z: every odd moment is zero to the last bit or two."""
    z = draws(3, n, d, seed)
    assert z.shape == (3, n, d)
    assert torch.equal(z[:, n // 2 :], -z[:, : n // 2])
    assert z.mean(1).abs().max() < 1e-15
    assert torch.einsum("rni,rnj,rnk->rijk", z, z, z).abs().max() < 1e-10 * n


@pytest.mark.parametrize(("n", "d"), EXACT)
def test_second_moment_is_the_identity(n: int, d: int, seed: int):
    z = draws(3, n, d, seed)
    second = z.mT @ z / n
    eye = torch.eye(d, dtype=torch.float64).expand(3, d, d)
    torch.testing.assert_close(second, eye, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n", "d"), WIDE)
def test_blocks_are_orthogonal_where_draws_are_few(n: int, d: int, seed: int):
    """Every coordinate has unit mean square, and pairs in a block of n/2 are uncorrelated."""
    z = draws(3, n, d, seed)
    second = z.mT @ z / n
    ones = torch.ones(3, d, dtype=torch.float64)
    torch.testing.assert_close(second.diagonal(dim1=-2, dim2=-1), ones, rtol=0, atol=1e-12)
    for start in range(0, d, n // 2):
        block = second[:, start : start + n // 2, start : start + n // 2]
        off = block - torch.diag_embed(block.diagonal(dim1=-2, dim2=-1))
        assert off.abs().max() < 1e-12


@pytest.mark.parametrize(("n", "d"), [(64, 3), (20, 5), (16, 1)])
def test_every_quadratic_is_integrated_exactly(n: int, d: int, seed: int):
    g = laws.generator(seed + 1)
    A = torch.randn(d, d, generator=g, dtype=torch.float64)
    b = torch.randn(d, generator=g, dtype=torch.float64)
    z = draws(4, n, d, seed)
    means = ((z @ A * z).sum(-1) + z @ b + 2.0).mean(1)
    expected = (A.trace() + 2.0).expand(4)
    torch.testing.assert_close(means, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("n", "d"), [(64, 1), (64, 2), (256, 4), (64, 9), (64, 40)])
def test_marginals_are_normal(n: int, d: int, seed: int):
    """One draw, at random, of 16,000 independent sets; first and last coordinate."""
    chosen = torch.randint(n, (16_000,), generator=laws.generator(seed + 1))
    z = draws(16_000, n, d, seed)[torch.arange(16_000), chosen]
    law = torch.distributions.Normal(torch.zeros(()).double(), torch.ones(()).double())
    laws.assert_distributed(z[:, 0], law.cdf(z[:, 0]), distance=0.04)
    laws.assert_distributed(z[:, -1], law.cdf(z[:, -1]), distance=0.04)


@pytest.mark.parametrize(("n", "d"), [(64, 2), (16, 4)])
def test_replicates_are_independent(n: int, d: int, seed: int):
    """Neighbours' means of a function that the matching does not fix are uncorrelated."""
    means = draws(2 * laws.draws_to_see(0.1), n, d, seed).cos().mean((1, 2))
    first, second = (means - means.median()).sign().reshape(-1, 2).unbind(1)
    laws.assert_mean_is(first * second, 0.0, bias=0.1)
    assert means.std() > 0


def test_a_net_beats_plain_draws(seed: int):
    """The mean of a smooth function scatters far less between sets than from plain pairs."""
    f = lambda z: (z.sum(-1) / 2).exp().mean(1)  # noqa: E731
    plain = torch.randn(400, 256, 2, generator=laws.generator(seed + 1), dtype=torch.float64)
    plain = torch.cat([plain[:, :128], -plain[:, :128]], 1)
    assert f(draws(400, 256, 2, seed)).std() < f(plain).std() / 3


@pytest.mark.parametrize(("n", "d"), [(64, 2), (16, 40)])
def test_same_generator_same_draws(n: int, d: int):
    assert torch.equal(draws(2, n, d, 5), draws(2, n, d, 5))
    assert not torch.equal(draws(2, n, d, 5), draws(2, n, d, 6))
    g = laws.generator(5)
    first = matched_normal_draws(2, n, d, generator=g)
    assert not torch.equal(first, matched_normal_draws(2, n, d, generator=g))


@pytest.mark.parametrize(("n", "d"), [(64, 2), (16, 40)])
def test_torch_s_own_generator_is_left_alone(n: int, d: int):
    before = torch.get_rng_state()
    draws(2, n, d, 5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("n", "d"), [(64, 2), (16, 40)])
def test_float32_draws_are_matched_in_float32(n: int, d: int, seed: int):
    z = draws(2, n, d, seed, dtype=torch.float32)
    assert z.dtype == torch.float32
    mean_square = z.square().mean(1)
    torch.testing.assert_close(mean_square, torch.ones(2, d), rtol=0, atol=1e-5)


def test_no_draw_is_infinite(monkeypatch: pytest.MonkeyPatch, seed: int):
    """The ends of the unit interval are never met, not even on a grid of eight cells."""
    monkeypatch.setattr(normal_draws, "_BITS", 3)
    assert draws(2_000, 8, 1, seed).isfinite().all()


@pytest.mark.parametrize("n", [-2, 0, 1, 3, 65])
def test_odd_or_too_few_draws_are_refused(n: int):
    with pytest.raises(ValueError, match=f"`num_draws` must be even and at least 2, got {n}"):
        draws(2, n, 1, 0)
