"""Batches of rows: their mean over all subsets is the density of all rows, exactly."""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import assert_within
from pyro import poutine
from torch import Tensor
from torch.distributions import Gamma, Normal, constraints

import probcalc as pc
from probcalc.inference.minibatch import batched_density
from probcalc.inference.stochastic import Stochastic

F64 = torch.float64
Y = torch.linspace(-1.0, 2.0, 8, dtype=F64)
X = torch.linspace(0.5, 1.5, 8, dtype=F64)


def function() -> pc.Target:
    return pc.Target.from_function(
        lambda v: Normal(0.0, 1.0).log_prob(v["m"]) + Gamma(20.0, 20.0).log_prob(v["s"]),
        {"m": (), "s": ()},
        {"s": constraints.positive},
        log_likelihood=lambda v, row: Normal(v["m"] * row[1], v["s"]).log_prob(row[0]),
        data=(Y, X),
    )


def plate() -> pc.Target:
    def model(y: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 8, subsample_size=3) as i:
            pyro.sample("y", dist.Normal(m, 1.0), obs=y[i])

    return pc.Target.from_pyro(model, Y)


def local_latents() -> pc.Target:
    """Positive latents in the plate: their log Jacobian counts N/B times as well."""

    def model(y: Tensor, x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with poutine.scale(scale=0.5), pyro.plate("rows", 8, subsample_size=3):
            z = pyro.sample("z", dist.LogNormal(m, 1.0))
            w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
            x = pyro.subsample(x, event_dim=0)
            y = pyro.subsample(y, event_dim=0)
            pyro.sample("y", dist.Normal(z * w[..., 0] + x, 1.0), obs=y)

    return pc.Target.from_pyro(model, Y, X)


def summed_out() -> pc.Target:
    def model(y: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", 8, subsample_size=3) as i:
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(m[k.long()], 1.0), obs=y[i])

    return pc.Target.from_pyro(model, Y)


TARGETS = {f.__name__: f for f in (function, plate, local_latents, summed_out)}


@pytest.mark.parametrize("name", TARGETS)
def test_the_mean_over_all_batches_is_the_whole(name: str, generator: torch.Generator):
    target = TARGETS[name]()
    density, num_rows, size = batched_density(target, 3)
    assert (num_rows, size) == (8, 3)
    z = torch.randn(2, 4, target.dim, generator=generator, dtype=F64)
    batches = [torch.tensor(c) for c in itertools.combinations(range(8), 3)]
    value, grad = (
        torch.stack(t).mean(dim=0) for t in zip(*(density(z, b) for b in batches), strict=True)
    )
    expected, slope = target.value_and_grad(z)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, slope)
    assert not torch.allclose(density(z, batches[0])[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["function", "plate"])
def test_a_fit_by_batches_finds_the_posterior(name: str, generator: torch.Generator):
    target = TARGETS[name]()
    method = Stochastic(batch_size=3, max_steps=4_000)
    posterior = pc.fit(target, guide=pc.FullRank(), method=method, generator=generator)
    exact = pc.fit(target, generator=generator)
    for site, mean in posterior.mean.items():
        away = float((mean.value - exact.mean[site].value).abs())
        assert away <= float(mean.error + exact.mean[site].error)


def test_the_plate_counts_all_rows_where_nobody_takes_batches(generator: torch.Generator):
    """Conjugate: precision 1 + 8, mean the sum over it."""
    posterior = pc.fit(plate(), generator=generator)
    assert_within(posterior.mean["m"], float(Y.sum() / 9))
    assert_within(posterior.std["m"], 1 / 3)


def test_what_has_no_batches_is_refused():
    plain = pc.Target.from_log_density(lambda x: -x.square().sum(), 2)
    with pytest.raises(ValueError, match="needs a target that knows its observations"):
        batched_density(plain, 2)
    with pytest.raises(ValueError, match="more than the 8 rows"):
        batched_density(function(), 9)
    with pytest.raises(ValueError, match="the model's plate takes 3 rows, not `batch_size` = 4"):
        batched_density(plate(), 4)
