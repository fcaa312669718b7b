from __future__ import annotations

import math

import laws
import numpy as np
import pytest
import torch
from scipy.stats import genpareto, norm
from torch import Tensor

from probcalc.integration.tails import (
    fit_generalised_pareto,
    khat_limit,
    pareto_khat,
    smoothed_log_weights,
)


def published_fit(x: np.ndarray) -> tuple[float, float]:
    """Zhang & Stephens (2009), section 3, and the prior of Vehtari et al. (2024)."""
    n = len(x)
    m = 30 + int(n**0.5)
    theta = (
        1 / x[-1] + (1 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))) / 3 / x[int(n / 4 + 0.5) - 1]
    )
    ks = np.array([np.mean(np.log1p(-t * x)) for t in theta])
    profile = n * (np.log(-theta / ks) - ks - 1)
    weights = np.array([1 / np.sum(np.exp(profile - one)) for one in profile])
    t = np.sum(weights * theta)
    k = np.mean(np.log1p(-t * x))
    return (n * k + 10 * 0.5) / (n + 10), -k / t


def published_weights(log_ratios: np.ndarray) -> tuple[np.ndarray, float]:
    """Vehtari et al. (2024), algorithm 1, without its final normalisation."""
    s = len(log_ratios)
    m = min(s // 5, math.ceil(3 * math.sqrt(s)))
    order = np.argsort(log_ratios)
    w = np.exp(log_ratios - log_ratios.max())
    cutoff = w[order[s - m - 1]]
    k, sigma = published_fit(w[order[s - m :]] - cutoff)
    p = (np.arange(1, m + 1) - 0.5) / m
    w[order[s - m :]] = np.minimum(cutoff + genpareto(k, scale=sigma).ppf(p), 1.0)
    with np.errstate(divide="ignore"):
        return np.log(w) + log_ratios.max(), k


SHAPES = [-0.4, -0.1, 0.0, 0.2, 0.5, 0.7, 1.0, 1.5]


def quantiles(k: float, m: int) -> Tensor:
    """A generalised Pareto sample without sampling error, ascending."""
    p = (np.arange(m) + 0.5) / m
    return torch.from_numpy(2.5 * genpareto(k).ppf(p))


@pytest.mark.parametrize("m", [2_000, 50_000])
@pytest.mark.parametrize("k", SHAPES)
def test_fit_recovers_the_shape(k: float, m: int):
    """From exact quantiles: what is left is the prior's pull and the coarseness of the grid."""
    shape, scale = fit_generalised_pareto(quantiles(k, m))
    pulled = (m * k + 5) / (m + 10)
    assert float(shape) == pytest.approx(pulled, abs=10 / m**0.75)
    assert float(scale) == pytest.approx(2.5, rel=30 / m**0.75)


@pytest.mark.parametrize("m", [5, 20, 95, 400])
@pytest.mark.parametrize("k", SHAPES)
def test_fit_equals_the_published_one(k: float, m: int, generator: torch.Generator):
    u = torch.rand(m, generator=generator, dtype=torch.float64).sort().values
    x = torch.from_numpy(0.3 * genpareto(k).ppf(u.numpy()))
    shape, scale = fit_generalised_pareto(x)
    expected = published_fit(x.numpy())
    assert (float(shape), float(scale)) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("s", [25, 100, 1_000, 5_000])
@pytest.mark.parametrize("scale", [0.8, 1.5, 3.0])
def test_smoothing_equals_the_published_one(s: int, scale: float, generator: torch.Generator):
    """Normal log ratios: order, weights and k̂ of algorithm 1, at any offset."""
    log_ratios = 1_000 + scale * torch.randn(s, generator=generator, dtype=torch.float64)
    weights, khat = smoothed_log_weights(log_ratios)
    expected, k = published_weights(log_ratios.numpy())
    assert float(khat) == pytest.approx(k, rel=1e-8, abs=1e-8)
    torch.testing.assert_close(weights, torch.from_numpy(expected), rtol=0, atol=1e-8)


@pytest.mark.parametrize("k", [0.4, 0.7, 1.0, 1.4])
def test_ratios_with_a_known_tail(k: float, generator: torch.Generator):
    """u^−k has shape k exactly: the mean of 100 fits is right to four of its standard errors.

    The exceedances are generalised Pareto with variance (1 + k)² / m of the shape; a fit of m
    exceedances is biased by a few 1/m.
    """
    runs, s = 100, 20_000
    u = torch.rand(runs, s, generator=generator, dtype=torch.float64)
    khat = pareto_khat(-k * u.log())
    m = math.ceil(3 * s**0.5)
    expected = (m * k + 5) / (m + 10)
    sd = (1 + k) / m**0.5
    allowed = norm.isf(laws.ALPHA / 2) * sd / runs**0.5 + 4 / m
    assert abs(float(khat.mean()) - expected) < allowed
    assert 0.7 * sd < float(khat.std()) < 1.4 * sd


@pytest.mark.parametrize(
    ("s", "limit"), [(100, 0.5), (1_000, 2 / 3), (2_154, 0.7), (10**4, 0.7), (10**7, 0.7)]
)
def test_limit_is_the_published_one(s: int, limit: float):
    """min(1 − 1/log₁₀S, 0.7)."""
    assert khat_limit(s) == pytest.approx(limit, abs=1e-5)


@pytest.mark.parametrize("s", [0, 1, 2, 10])
def test_ten_draws_are_never_enough(s: int):
    assert khat_limit(s) <= 0.0


def test_limit_grows_with_the_draws():
    limits = [khat_limit(s) for s in range(2, 5_000)]
    assert limits == sorted(limits)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 5.0])
def test_smoothing_keeps_order_bounds_and_body(scale: float, generator: torch.Generator):
    """Larger ratios get larger weights, none above the largest; below the tail they stay."""
    log_ratios = scale * torch.randn(2_000, generator=generator, dtype=torch.float64)
    weights, khat = smoothed_log_weights(log_ratios)
    order = log_ratios.argsort()
    assert (weights[order].diff() >= -1e-12).all()
    assert weights.max() <= log_ratios.max() + 1e-12
    m = math.ceil(3 * 2_000**0.5)
    torch.testing.assert_close(weights[order[:-m]], log_ratios[order[:-m]], rtol=0, atol=1e-12)
    assert khat.isfinite()


@pytest.mark.parametrize("shift", [-1e5, -3.0, 1e5])
def test_a_constant_does_not_matter(shift: float, generator: torch.Generator):
    log_ratios = 1.5 * torch.randn(1_000, generator=generator, dtype=torch.float64)
    weights, khat = smoothed_log_weights(log_ratios)
    moved, same = smoothed_log_weights(log_ratios + shift)
    torch.testing.assert_close(moved - shift, weights, rtol=0, atol=1e-8)
    torch.testing.assert_close(same, khat, rtol=0, atol=1e-8)


def test_the_order_of_the_draws_does_not_matter(generator: torch.Generator):
    log_ratios = 1.5 * torch.randn(1_000, generator=generator, dtype=torch.float64)
    order = torch.randperm(1_000, generator=generator)
    weights, khat = smoothed_log_weights(log_ratios)
    moved, same = smoothed_log_weights(log_ratios[order])
    torch.testing.assert_close(moved, weights[order])
    assert same == khat


def test_batches_are_one_by_one(generator: torch.Generator):
    scale = torch.tensor([0.0, 0.5, 2.0, 6.0], dtype=torch.float64)[:, None]
    log_ratios = scale * torch.randn(2, 4, 500, generator=generator, dtype=torch.float64)
    log_ratios[0, 1, :3] = -math.inf
    weights, khat = smoothed_log_weights(log_ratios)
    assert khat.shape == (2, 4)
    for i in range(2):
        for j in range(4):
            one, k = smoothed_log_weights(log_ratios[i, j])
            torch.testing.assert_close(weights[i, j], one)
            assert khat[i, j] == k


def bounded_above(generator: torch.Generator) -> Tensor:
    """Ratios of a proposal wider than the target: none much above the others."""
    return -0.5 * torch.randn(1_000, generator=generator, dtype=torch.float64).square()


def test_bounded_ratios_have_a_light_tail(generator: torch.Generator):
    assert pareto_khat(bounded_above(generator)) < 0.1


@pytest.mark.parametrize("value", [0.0, -7.5, 1e6, -1e9])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_equal_ratios_have_no_tail(value: float, noise: float, generator: torch.Generator):
    """Equal up to the rounding of their size: the proposal is the target."""
    rounding = torch.randn(1_000, generator=generator, dtype=torch.float64)
    log_ratios = value + noise * 2e-16 * max(1.0, abs(value)) * rounding
    weights, khat = smoothed_log_weights(log_ratios)
    assert float(khat) == -math.inf
    torch.testing.assert_close(weights, log_ratios, rtol=1e-12, atol=0)


def test_nearly_equal_ratios_are_not_equal(generator: torch.Generator):
    """A spread of one per cent is a tail like any other, however light the harm."""
    log_ratios = 0.01 * torch.randn(1_000, generator=generator, dtype=torch.float64)
    assert pareto_khat(log_ratios).isfinite()


def test_no_ratio_above_a_thousandth_bounds_the_shape(generator: torch.Generator):
    """k̂ ≤ log(S · largest share) / log S: a hundred thousand nearly equal ratios are safe."""
    s = 100_000
    # a heavy tail far below the scale that matters
    u = torch.rand(s, generator=generator, dtype=torch.float64).clamp(min=1e-4)
    log_ratios = torch.log1p(1e-3 * u**-0.9)
    share = (log_ratios - log_ratios.logsumexp(0)).max().exp()
    weights, khat = smoothed_log_weights(log_ratios)
    assert share < 1e-3
    assert float(khat) <= math.log(s * float(share)) / math.log(s) + 1e-12
    torch.testing.assert_close(weights, log_ratios, rtol=0, atol=1e-12)


def test_ratios_of_zero_take_no_part(generator: torch.Generator):
    """Draws outside the target's support: k̂ is that of the others' tail, their weight stays 0."""
    log_ratios = 2 * torch.randn(2_000, generator=generator, dtype=torch.float64)
    log_ratios[::4] = -math.inf
    weights, khat = smoothed_log_weights(log_ratios)
    assert (weights[::4] == -math.inf).all()
    assert not weights.isnan().any()
    assert float(khat) == pytest.approx(published_weights(log_ratios.numpy())[1], rel=1e-8)


UNKNOWN = {
    "all zero": torch.full((1_000,), -math.inf),
    "one positive": torch.full((1_000,), -math.inf).index_fill(0, torch.tensor([3]), 0.0),
    "four positive": torch.full((1_000,), -math.inf).index_fill(0, torch.arange(4), 0.0),
    "nan": torch.linspace(-1, 1, 1_000).index_fill(0, torch.tensor([3]), math.nan),
    "infinite": torch.linspace(-1, 1, 1_000).index_fill(0, torch.tensor([3]), math.inf),
    "twenty-four draws": torch.linspace(-1, 1, 24),
}


@pytest.mark.parametrize("log_ratios", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_says_nothing_about_a_tail_is_not_trusted(log_ratios: Tensor):
    """k̂ is infinite, above every limit."""
    assert float(pareto_khat(log_ratios.double())) == math.inf


def test_float32_gives_the_same_verdict(generator: torch.Generator):
    log_ratios = 1.5 * torch.randn(4_000, generator=generator, dtype=torch.float64)
    weights, khat = smoothed_log_weights(log_ratios.float())
    assert weights.dtype == khat.dtype == torch.float32
    assert float(khat) == pytest.approx(float(pareto_khat(log_ratios)), abs=1e-3)
    assert float(pareto_khat(torch.full((100,), 0.1))) == -math.inf
