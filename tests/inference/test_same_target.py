"""A posterior is recognised as one of its target, in whatever coordinates it was explored."""

from __future__ import annotations

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
from laws import generator

import probcalc as pc
from probcalc import Target
from probcalc.inference.same_target import in_coordinates_of


def normal(shift: float = 0.0, dim: int = 2) -> Target:
    return Target.from_log_density(lambda x: -0.5 * (x - shift).square().sum(), dim)


def test_the_same_density_is_the_same_target():
    posterior = pc.laplace(normal(), generator=generator(0))
    again = normal()
    assert in_coordinates_of(again, posterior) is again
    assert in_coordinates_of(again, replace(posterior, target=None)) is again


@pytest.mark.parametrize("other", [normal(0.1), normal(dim=3)])
def test_another_density_is_refused(other: Target):
    posterior = pc.laplace(normal(), generator=generator(0))
    with pytest.raises(ValueError, match="the posterior is one of another target"):
        in_coordinates_of(other, posterior)


def test_other_coordinates_of_the_same_model_are_found():
    def model():
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("groups", 3):
            pyro.sample("effect", dist.Normal(0.0, scale))

    target = Target.from_pyro(model)
    other = target.in_coordinates(dict.fromkeys(target.model.hierarchical, 0.0))
    with pytest.warns(pc.EstimateWarning):  # a mode at scale zero, whatever the coordinates
        posterior = pc.laplace(other, generator=generator(0))
    assert in_coordinates_of(target, posterior) is other
