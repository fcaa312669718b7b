from __future__ import annotations

import pytest
import torch
from laws import assert_covers
from torch import Tensor

from probcalc.inference.moments import (
    heavy_squares,
    kept_unless_moved,
    weighted_covariance,
    weighted_mean,
    weighted_moments,
    weighted_quantile,
)
from probcalc.result import Estimate

F64 = torch.float64


def weighted_sample(generator: torch.Generator, r: int = 8, n: int = 500) -> tuple[Tensor, Tensor]:
    """Draws of N(0, 1)² with weights towards N(0.5, 1) in the first column."""
    x = torch.randn(r, n, 2, generator=generator, dtype=F64)
    w = (0.5 * x[..., 0]).flatten().softmax(dim=0).view(r, n)
    return x, w


def test_they_are_the_textbook_sums(generator: torch.Generator):
    x, w = weighted_sample(generator)
    flat, v = x.reshape(-1, 2), w.flatten()
    mean = (v[:, None] * flat).sum(0)
    centred = flat - mean
    cov = centred.T @ (v[:, None] * centred)
    got_mean, got_std = weighted_moments(x, w, 0.99)
    torch.testing.assert_close(got_mean.value, mean)
    torch.testing.assert_close(got_std.value, cov.diagonal().sqrt())
    torch.testing.assert_close(weighted_mean(x, w, 0.99).value, mean)
    torch.testing.assert_close(weighted_mean(x, w, 0.99).error, got_mean.error, rtol=1e-6, atol=0)
    torch.testing.assert_close(weighted_covariance(x, w, 0.99).value, cov)


def test_equal_weights_and_quantile_is_the_sample_quantile(generator: torch.Generator):
    x = torch.randn(4, 2_500, 1, generator=generator, dtype=F64)
    w = torch.full((4, 2_500), 1e-4, dtype=F64)
    for level in (0.05, 0.5, 0.9):
        got = weighted_quantile(x, w, level, 0.99).value
        torch.testing.assert_close(got, x.flatten().quantile(level)[None], rtol=0, atol=5e-3)


# estimator, exact value under N(0.5, 1), and the coverage that 960 draws of it can promise: the
# sums are self-normalised, and those of squares are skewed
COVERED = {
    "mean": (lambda x, w: weighted_moments(x, w, 0.9)[0], 0.5, 0.9),
    "std": (lambda x, w: weighted_moments(x, w, 0.9)[1], 1.0, 0.88),
    "quantile": (lambda x, w: weighted_quantile(x, w, 0.9, 0.9), 0.5 + 1.28155157, 0.9),
    "variance": (lambda x, w: weighted_covariance(x, w, 0.9), 1.0, 0.88),
}


@pytest.mark.parametrize("what", COVERED)
def test_bars_cover(what: str, generator: torch.Generator):
    """90 % bars hold the truth about 90 % of the time."""
    estimate, exact, claimed = COVERED[what]
    hits = []
    for _ in range(3_000):
        x, w = weighted_sample(generator, r=16, n=60)
        got = estimate(x[..., :1], w)
        hits.append((got.value - exact).abs() <= got.error)
    assert_covers(torch.stack(hits), claimed, caught=claimed - 0.055)


def test_a_correction_inside_its_noise_is_left_out():
    """The plain value stays within a standard error, its bar widened by the distance.

    Beyond that the correction is taken, and called one where it exceeds the whole bar.
    """
    bars = torch.tensor([0.1, 0.1, 0.1], dtype=F64)
    corrected = Estimate(torch.tensor([1.02, 1.05, 2.0], dtype=F64), bars, bars / 3, 7.0, 0.99)
    plain = torch.ones(3, dtype=F64)
    kept, moved = kept_unless_moved(plain, corrected, torch.ones(3, dtype=F64))
    assert moved.tolist() == [False, False, True]
    torch.testing.assert_close(kept.value, torch.tensor([1.0, 1.05, 2.0], dtype=F64))
    torch.testing.assert_close(kept.error, torch.tensor([0.12, 0.1, 0.1], dtype=F64))


def test_squares_without_a_mean_are_told_from_those_with_one(generator: torch.Generator):
    """Pareto draws of index 1.2 have a mean and no variance; normal ones have both."""
    shape = (16, 2048)
    uniform = torch.rand(shape, generator=generator, dtype=F64)
    x = torch.stack(
        [uniform.pow(-1 / 1.2), torch.randn(shape, generator=generator, dtype=F64)], -1
    )
    w = torch.full(shape, 1 / uniform.numel(), dtype=F64)
    assert heavy_squares(x, w).tolist() == [True, False]
    std = weighted_moments(x, w, 0.99)[1]
    assert std.error.isinf().tolist() == [True, False]
