"""Boxes of many dimensions: sums of few products are found, what is missed is in the bar."""

from __future__ import annotations

import math

import laws
import numpy as np
import pytest
import torch
from problems.boxes import drawn, exact, integrand
from torch import Tensor

from probcalc import integrate
from probcalc.integration.quick_box import BY_DRAWS
from probcalc.integration.sampled_train import sampled_train

EPS = 2.0**-52


def unit(dim: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(dim, dtype=torch.float64), torch.ones(dim, dtype=torch.float64)


@pytest.mark.parametrize("dim", [7, 10, 20, 40])
@pytest.mark.parametrize("family", ["oscillatory", "product peak", "Gaussian"])
def test_few_products_are_exact(family: str, dim: int, generator: torch.Generator):
    c, w = drawn(family, dim, generator)
    found = integrate(
        integrand(family), *unit(dim), args=(c, w), event_dim=1, rtol=1e-8, generator=generator
    )
    truth = exact(family, c, w)
    assert found.method == BY_DRAWS
    assert found.ok
    assert abs(float(found) - truth) <= float(found.error) <= 1e-8 * abs(truth)
    assert int(found.num_evals) < 3000 * dim


def test_bars_hold_where_a_rest_is_left(generator: torch.Generator):
    """Corner peaks are of no low rank: what six products miss is noise, and in the bar."""
    hits = []
    for seed in range(400):
        c, w = drawn("corner peak", 8, generator)
        f, truth = integrand("corner peak"), exact("corner peak", c, w)
        at = lambda x: f(torch.from_numpy(x).T, c, w).numpy()  # noqa: E731, B023
        found = sampled_train(at, 8, lambda value: 1e-3 * abs(value), seed, EPS)
        if found is not None:
            hits.append(abs(found[0] - truth) <= found[1])
    laws.assert_covers(torch.tensor(hits), 0.99, caught=0.9)


ROUGH = {
    "kinks": lambda x: np.exp(-2 * np.abs(x - 0.4).sum(axis=0)),
    "a step": lambda x: (x[0] < 0.97) * (x[1] < 0.97) * np.exp(x.sum(axis=0) / 8),
    "nothing met": lambda x: 1.0 * (x[0] < 1e-4),
    "nothing": lambda x: np.zeros(x.shape[1]),
    "NaN": lambda x: np.where(x[0] < 0.9, 1.0, math.nan),
    "infinite": lambda x: np.where(x[0] < 0.9, 1.0, math.inf),
    "no few products": lambda x: np.cos(30 * x[0] * x[1]) * np.cos(30 * x[2] * x[3]),
}


@pytest.mark.parametrize("name", ROUGH)
@pytest.mark.parametrize("seed", range(5))
def test_what_is_not_of_that_kind_is_left_to_others(name: str, seed: int):
    assert sampled_train(ROUGH[name], 8, lambda value: 1e-4 * abs(value), seed, EPS) is None


def test_seeds_and_confidence():
    f = lambda x: (1 + x.sum(-1) / 10).reciprocal()  # noqa: E731
    ask = {"event_dim": 1, "rtol": 1e-3}
    values = [
        integrate(f, *unit(9), **ask, generator=torch.Generator().manual_seed(s)).value
        for s in (1, 1, 2)
    ]
    assert values[0] == values[1]
    assert values[0] != values[2]
    surer = integrate(f, *unit(9), **ask, confidence=0.9999)
    assert surer.method != BY_DRAWS


def test_limits_scale():
    lower, upper = torch.full((8,), -1.0).double(), torch.full((8,), 2.0).double()
    found = integrate(lambda x: x.exp().prod(-1), lower, upper, event_dim=1)
    assert float(found) == pytest.approx((math.e**2 - math.exp(-1)) ** 8, rel=1e-9)
