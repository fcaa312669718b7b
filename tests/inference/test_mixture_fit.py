from __future__ import annotations

import pytest
import torch
from laws import ALPHA
from scipy.stats import norm

from probcalc.inference.mixture_fit import _MOST, _thinned, fitted_mixture, tempered

F64 = torch.float64


@pytest.mark.parametrize("size", [10.0, 100.0, 900.0])
def test_tempered_weights_have_the_size_asked_for(size: float, generator: torch.Generator):
    log_weights = 5 * torch.randn(1000, generator=generator, dtype=F64)
    w = tempered(log_weights, size)
    assert float(1 / w.square().sum()) == pytest.approx(size, rel=1e-3)
    assert float(w.sum()) == pytest.approx(1.0)


def test_even_weights_are_not_tempered(generator: torch.Generator):
    log_weights = 0.1 * torch.randn(1000, generator=generator, dtype=F64)
    torch.testing.assert_close(tempered(log_weights, 500.0), log_weights.softmax(dim=0))


def test_one_component_has_the_weighted_moments(generator: torch.Generator):
    z = torch.randn(4000, 2, generator=generator, dtype=F64) @ torch.tensor(
        [[1.0, 0.0], [0.7, 0.5]], dtype=F64
    )
    w = torch.rand(4000, generator=generator, dtype=F64).log().softmax(dim=0)
    loc, scale = fitted_mixture(z, w, 1, generator=generator)
    mean = w @ z
    centred = z - mean
    torch.testing.assert_close(loc[0], mean)
    covariance = centred.mT @ (centred * w[:, None])
    # shrunk towards itself: the prior is the covariance of all draws
    torch.testing.assert_close(scale[0] @ scale[0].mT, covariance)


def test_two_clusters_are_told_apart(generator: torch.Generator):
    n = 4000
    z = torch.randn(n, 1, generator=generator, dtype=F64)
    z[: n // 2] += 10.0
    w = torch.full((n,), 1.0 / n, dtype=F64)
    loc, scale = fitted_mixture(z, w, 2, generator=generator)
    low, high = loc.flatten().sort().values
    bar = norm.isf(ALPHA / 4) * (2 / n) ** 0.5
    assert abs(low) < bar
    assert abs(high - 10.0) < bar
    assert ((scale.abs() - 1).abs() < 0.15).all()


def test_draws_on_a_line_have_no_covariance(generator: torch.Generator):
    z = torch.randn(100, 1, generator=generator, dtype=F64).expand(100, 2).contiguous()
    assert fitted_mixture(z, torch.full((100,), 0.01, dtype=F64), 2, generator=generator) is None


def test_many_draws_are_thinned_without_bias(generator: torch.Generator):
    """Both components' means from a sample of the draws, within its own standard error."""
    n = 2**15
    z = torch.randn(n, 1, generator=generator, dtype=F64)
    z[: n // 2] += 10.0
    w = torch.rand(n, generator=generator, dtype=F64)
    loc, _ = fitted_mixture(z, w / w.sum(), 2, generator=generator)
    low, high = loc.flatten().sort().values
    bar = norm.isf(ALPHA / 4) * (2 / _MOST) ** 0.5 * 1.25  # some fewer than `_MOST` are kept
    assert abs(low) < bar
    assert abs(high - 10.0) < bar


def test_thinning_keeps_the_draws_that_weigh_much(generator: torch.Generator):
    z = torch.arange(2.0 * _MOST, dtype=F64)[:, None]
    w = torch.full((2 * _MOST,), 0.5 / (2 * _MOST), dtype=F64)
    w[7] += 0.5
    kept, weights = _thinned(z, w, generator)
    assert 0.5 * _MOST < len(kept) < _MOST
    assert 7.0 in kept
    assert float(weights.sum()) == pytest.approx(1.0)
    assert float(weights[kept[:, 0] == 7.0]) == pytest.approx(0.5, abs=0.02)
