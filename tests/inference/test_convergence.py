from __future__ import annotations

import torch
from laws import assert_mean_is
from torch.distributions import Normal, kl_divergence

import probcalc as pc
from probcalc.inference.convergence import Iterates, standard_error, symmetrised_kl

F64 = torch.float64


def test_sums_over_blocks_are_those_of_all_steps(generator: torch.Generator):
    """Whatever was merged: the later blocks average the later steps."""
    x = torch.randn(1000, 2, 3, generator=generator, dtype=F64)
    iterates = Iterates(x[0])
    for row in x:
        iterates.add(row)
    k, length, rest = iterates.counts.tolist()
    assert k * length + rest == 1000
    assert k < 64
    kept = x[: k * length]
    torch.testing.assert_close(iterates.average(k), kept.mean(dim=0))
    torch.testing.assert_close(iterates.average(), kept[-(k // 2) * length :].mean(dim=0))
    iterates.clear()
    iterates.add(x[0])
    torch.testing.assert_close(iterates.average(), x[0])


def test_a_drift_has_not_settled_and_noise_has(generator: torch.Generator):
    noise = torch.randn(400, 1, 2, generator=generator, dtype=F64)
    drift = noise + torch.linspace(0, 10, 400, dtype=F64)[:, None, None]
    for x, expected in ((noise, True), (drift, False)):
        iterates = Iterates(x[0])
        for row in x:
            iterates.add(row)
        assert (iterates.settled(1.1) is not None) == expected


def test_a_window_after_the_drift_is_found(generator: torch.Generator):
    x = torch.randn(600, 1, 1, generator=generator, dtype=F64)
    x[:200] += torch.linspace(50, 0, 200, dtype=F64)[:, None, None]
    iterates = Iterates(x[0])
    for row in x:
        iterates.add(row)
    parts = iterates.settled(1.1)
    assert parts is not None
    assert float(parts.abs().max()) < 1.5


def test_symmetrised_divergence_of_normals(generator: torch.Generator):
    p = {"loc": torch.tensor([0.3], dtype=F64), "log_scale": torch.tensor([-0.2], dtype=F64)}
    q = {"loc": torch.tensor([0.0], dtype=F64), "log_scale": torch.tensor([0.1], dtype=F64)}
    both = [Normal(t["loc"], t["log_scale"].exp()) for t in (p, q)]
    exact = kl_divergence(*both) + kl_divergence(*both[::-1])
    n, signs = 5_000, torch.tensor([1.0, -1.0], dtype=F64)
    eps = torch.randn(n, 32, 1, generator=generator, dtype=F64)
    terms = symmetrised_kl(
        pc.MeanField(),
        *({k: t.expand(n, 1) for k, t in params.items()} for params in (p, q)),
        (eps[..., None, :] * signs[:, None]).flatten(1, 2),
    )
    assert bool((terms > 0).all())  # where nothing was clamped, the mean is unbiased
    assert_mean_is(terms, float(exact), bias=0.2)


def test_standard_error_is_that_of_the_mean(generator: torch.Generator):
    """Means of eight parts with sd 0.2 around zero: the average is off by 0.2²/8 nats."""
    parts = torch.zeros(8, 20_000, 2, dtype=F64)
    parts[..., 0] = 0.2 * torch.randn(8, 20_000, generator=generator, dtype=F64)
    unflatten = lambda x: {"loc": x[..., :1], "log_scale": x[..., 1:]}
    eps = torch.randn(20_000, 1, 1, generator=generator, dtype=F64)
    found = standard_error(pc.MeanField(), unflatten, parts, eps)
    assert_mean_is(found, 0.04 / 8, bias=0.06)
