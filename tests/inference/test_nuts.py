"""Chains of Pyro's sampler: the right draws, and a fault where they are none."""

from __future__ import annotations

import pytest
import torch
from laws import generator

from probcalc import Target
from probcalc.inference.nuts import Chains, FromNUTS, Potential


def test_chains_of_a_gaussian_agree_and_leave_no_trace(seed: int):
    target = Target.from_log_density(lambda x: -0.5 * ((x - 3.0) / 2.0).square().sum(), 1)
    before = torch.get_rng_state()
    method = FromNUTS(num_draws=80, num_warmup=40, num_chains=2, max_rhat=1.3)
    chains, again = (method.run(target, generator=generator(seed)) for _ in range(2))
    assert torch.equal(chains.z, again.z)
    assert torch.equal(torch.get_rng_state(), before)
    assert chains.z.shape == (2, 80, 1)
    assert chains.num_evals > 240
    # an effective size of at least 15 of the 160 draws, at six standard errors
    assert abs(float(chains.z.mean()) - 3.0) < 6 * 2.0 / 15**0.5
    assert chains.fault == ""


def test_the_potential_has_the_gradient_of_the_target():
    target = Target.from_log_density(lambda x: -x[0].square() + x[1].sin(), 2)
    z = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    stages = []
    potential = Potential(target, lambda stage, n: stages.append((stage, n)))
    for _ in range(100):
        (grad,) = torch.autograd.grad(potential({"z": z}), z)
    torch.testing.assert_close(grad, torch.stack([2 * z[0], -z[1].cos()]).detach())
    assert stages == [("", 100)]


def test_chains_that_disagree_or_diverge_are_no_draws():
    z = torch.randn(4, 100, 2, generator=generator(0), dtype=torch.float64)
    assert Chains(z, 0, 0, 1.05).fault == ""
    assert Chains(z, 3, 0, 1.05).fault.startswith("3 steps of the chains diverged")
    apart = z + torch.tensor([0.0, 0.0, 0.0, 2.0], dtype=torch.float64)[:, None, None]
    assert Chains(apart, 0, 0, 1.05).fault.startswith("the chains disagree: split R-hat 1.")


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="`num_chains` must be at least 2, got 1"):
        FromNUTS(num_chains=1)
    with pytest.raises(ValueError, match="`num_draws` must be at least 40"):
        FromNUTS(num_draws=10)
