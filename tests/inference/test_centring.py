from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems.eight_schools import schools_centred, schools_data, schools_non_centred
from torch import Tensor

from probcalc import Target
from probcalc.inference.centring import coordinates_of, loc_and_scale, value_of

F64 = torch.float64
LOC = torch.tensor([0.5, -1.0, 2.0], dtype=F64)
SCALE = torch.tensor([0.1, 1.0, 7.0], dtype=F64)
FAMILIES = {
    "normal": dist.Normal(LOC, SCALE),
    "independent": dist.Normal(LOC, SCALE).to_event(1),
    "expanded": dist.Normal(LOC[0], SCALE[0]).expand([3]),
    "masked": dist.Normal(LOC, SCALE).mask(True),
    "Student t": dist.StudentT(4.0, LOC, SCALE),
    "Cauchy": dist.Cauchy(LOC, SCALE),
    "Laplace": dist.Laplace(LOC, SCALE),
    "log-normal": dist.LogNormal(LOC, SCALE / 7),
}


@pytest.mark.parametrize("centring", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_coordinates_and_values_are_inverse(
    name: str, centring: float, generator: torch.Generator
):
    """And the log determinant is that of the map's Jacobian."""
    fn = FAMILIES[name]
    u = torch.randn(3, generator=generator, dtype=F64)
    x, log_det = value_of(u, fn, centring)
    torch.testing.assert_close(coordinates_of(x, fn, centring), u)
    J = torch.func.jacrev(lambda v: value_of(v, fn, centring)[0])(u)
    torch.testing.assert_close(log_det, J.logdet())


def test_non_centred_coordinates_are_standard():
    """log N(x; loc, scale) + log |dx/du| = log N(u; 0, 1)."""
    u = torch.tensor([0.3, -2.0, 1.0], dtype=F64)
    fn = dist.Normal(LOC, SCALE)
    x, log_det = value_of(u, fn, 0.0)
    total = fn.log_prob(x).sum() + log_det
    torch.testing.assert_close(total, dist.Normal(0.0, 1.0).log_prob(u).sum())


def test_other_families_have_none():
    assert loc_and_scale(dist.Gamma(1.0, 1.0)) is None
    with pytest.raises(ValueError, match="Gamma is no location-scale family"):
        value_of(LOC, dist.Gamma(1.0, 1.0), 0.0)


def test_only_scales_that_move_are_hierarchical():
    assert Target.from_pyro(schools_centred, *schools_data()).model.hierarchical == ("theta",)
    assert Target.from_pyro(schools_non_centred, *schools_data()).model.hierarchical == ()


def test_a_centred_model_in_other_coordinates_is_the_non_centred_one(generator: torch.Generator):
    centred = Target.from_pyro(schools_centred, *schools_data())
    other = centred.in_coordinates({"theta": 0.0})
    written = Target.from_pyro(schools_non_centred, *schools_data())
    z = torch.randn(5, 10, generator=generator, dtype=F64)
    torch.testing.assert_close(other.log_density(z), written.log_density(z))
    torch.testing.assert_close(other.constrain(z)["theta"], written.constrain(z)["theta"])
    values = other.constrain(z)
    torch.testing.assert_close(other.unconstrain_rows(values), z)
    moved = other.to(dtype=torch.float32)
    assert moved.log_density(z.float()).dtype == torch.float32
    torch.testing.assert_close(
        moved.log_density(z.float()).double(), other.log_density(z), rtol=1e-4, atol=1e-3
    )


def test_coordinates_may_differ_by_entry(generator: torch.Generator):
    def model() -> None:
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("row", 2):
            pyro.sample("x", dist.Normal(0.0, tau))

    target = Target.from_pyro(model)
    mixed = target.in_coordinates({"x": torch.tensor([0.0, 1.0], dtype=F64)})
    z = torch.randn(4, 3, generator=generator, dtype=F64)
    tau, x = mixed.constrain(z)["tau"], mixed.constrain(z)["x"]
    torch.testing.assert_close(x[:, 0], tau * z[:, 1])
    torch.testing.assert_close(x[:, 1], z[:, 2])

    def jacobian(u: Tensor) -> Tensor:
        values = mixed.constrain(u)
        return torch.cat([values["tau"][None], values["x"]])

    for u in z:
        J = torch.autograd.functional.jacobian(jacobian, u)
        torch.testing.assert_close(mixed.log_abs_det_jacobian(u), J.det().abs().log())
