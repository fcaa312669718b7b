from __future__ import annotations

import logging
import warnings

import laws
import leaks
import numpy as np
import pyro
import pytest
import torch

NORMAL = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())


def grid(n: int) -> torch.Tensor:
    """Normal quantiles: a sample without sampling error."""
    return NORMAL.icdf((torch.arange(n).double() + 0.5) / n)


def test_sample_size_is_the_published_one():
    """n = ((z + z') / bias)²; at level 1e-6, miss 1e-3 and bias 0.1 it is 6,372."""
    z = -NORMAL.icdf(torch.tensor([laws.ALPHA / 2, laws.MISS]).double())
    assert laws.draws_to_see(0.1) == pytest.approx(100 * float(z.sum()) ** 2, abs=1)
    assert 6_372 < laws.draws_to_see(0.1) < 6_800
    assert laws.draws_to_see(0.05, tests=10) > laws.draws_to_see(0.05)


def test_mean_on_either_side_of_its_band():
    n = laws.draws_to_see(0.1)
    z = 5.026 / n**0.5  # two-sided 5e-7
    for sign in (1, -1):
        laws.assert_mean_is(grid(n) + sign * 0.98 * z, 0.0, bias=0.1)
        with pytest.raises(AssertionError, match="standard errors off"):
            laws.assert_mean_is(grid(n) + sign * 1.02 * z, 0.0, bias=0.1)


def test_mean_needs_its_draws():
    with pytest.raises(AssertionError, match="cannot see a bias of 0.1 sd"):
        laws.assert_mean_is(grid(laws.draws_to_see(0.1) - 1), 0.0, bias=0.1)
    with pytest.raises(AssertionError, match="too few for skewness"):
        laws.assert_mean_is((2 * grid(10_000)).exp(), 7.39, bias=0.1)


def test_constant_samples_must_be_exact():
    laws.assert_mean_is(torch.full((10_000,), 0.1, dtype=torch.float64), 0.1, bias=0.1)
    with pytest.raises(AssertionError, match="standard errors off"):
        laws.assert_mean_is(torch.full((10_000,), 0.1, dtype=torch.float64), 0.1001, bias=0.1)


@pytest.mark.parametrize(("hit", "holds"), [(1900, True), (1849, True), (1848, False)])
def test_coverage(hit: int, holds: bool):
    """At 2,000 intervals of 95 % the band of level 5e-7 ends at 1,849."""
    hits = torch.arange(2000) < hit
    if holds:
        laws.assert_covers(hits, 0.95, caught=0.90)
    else:
        with pytest.raises(AssertionError, match="of 2000 intervals hit"):
            laws.assert_covers(hits, 0.95, caught=0.90)


def test_coverage_needs_its_intervals():
    with pytest.raises(AssertionError, match="tell a coverage of 0.94 from 0.95"):
        laws.assert_covers(torch.ones(2000, dtype=torch.bool), 0.95, caught=0.94)


def test_distribution():
    x = grid(20_000)
    laws.assert_distributed(x, NORMAL.cdf(x), distance=0.04)
    laws.assert_distributed(x.flip(0), NORMAL.cdf(x).flip(0), distance=0.04)
    with pytest.raises(AssertionError, match="distribution functions differ"):
        laws.assert_distributed(x + 0.1, NORMAL.cdf(x + 0.1), distance=0.04)
    with pytest.raises(AssertionError, match="draws see a distance"):
        laws.assert_distributed(x, NORMAL.cdf(x), distance=0.01)


def _log_handler() -> None:
    logging.root.addHandler(logging.NullHandler())


LEAKS = {
    "torch default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch default device": lambda: torch.set_default_device("meta"),
    "torch gradient mode": lambda: torch.set_grad_enabled(False),
    "distribution validation": lambda: torch.distributions.Distribution.set_default_validate_args(
        False
    ),
    "Pyro settings": lambda: pyro.enable_validation(False),
    "Pyro parameter store": lambda: pyro.param("leak", torch.zeros(1)),
    "NumPy error state": lambda: np.seterr(over="ignore"),
    "warnings filters": lambda: warnings.simplefilter("ignore"),
    "root logger": _log_handler,
}


@pytest.fixture
def _restored():
    """Undo what the planted leaks change."""
    grad, errors, handlers = torch.is_grad_enabled(), np.geterr(), list(logging.root.handlers)
    pyro_settings = pyro.settings.get()
    validation = torch.distributions.Distribution._validate_args
    with warnings.catch_warnings():
        yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(grad)
    np.seterr(**errors)
    logging.root.handlers[:] = handlers
    pyro.settings.set(**pyro_settings)
    torch.distributions.Distribution.set_default_validate_args(validation)
    pyro.clear_param_store()


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("name", LEAKS)
def test_leaks_are_seen(name: str):
    before = leaks.snapshot()
    LEAKS[name]()
    assert name in leaks.changed(before, leaks.snapshot())


def test_no_leak_is_seen_where_there_is_none():
    before = leaks.snapshot()
    torch.randn(3)
    assert leaks.changed(before, leaks.snapshot()) == {}
