"""Blocks read from a target, and what the structure claims."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints
from torch.func import grad

import probcalc as pc
from probcalc.inference.guides import Structured
from probcalc.inference.guides.blocks import site_ranges

F64 = torch.float64


def schools() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("groups", 4):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
    pyro.deterministic("twice", 2 * theta)
    pyro.sample("w", dist.Dirichlet(torch.ones(3)))


TARGETS = {
    "derived values, and a simplex": (
        lambda: pc.Target.from_pyro(schools),
        {"mu": (0, 1), "tau": (1, 2), "theta": (2, 6), "w": (6, 8)},
    ),
    "a Cholesky factor": (
        lambda: pc.Target.from_function(
            lambda v: -v["L"].square().sum() - v["s"].sum(),
            {"s": (2,), "L": (3, 3)},
            {"s": constraints.positive, "L": constraints.corr_cholesky},
        ),
        {"s": (0, 2), "L": (2, 5)},
    ),
    "one vector": (
        lambda: pc.Target.from_log_density(lambda x: -x.square().sum(), 3),
        {"x": (0, 3)},
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_sites_know_their_part_of_the_vector(name: str):
    make, ranges = TARGETS[name]
    assert site_ranges(make()) == ranges


def test_blocks_are_read_from_sites():
    target = pc.Target.from_pyro(schools)
    guide = Structured.of(target, global_sites=("mu", "tau"), diagonal_sites=("theta",))
    expected = Structured(((0, 1), (1, 2), (2, 6), (6, 8)), (0, 1), (2,))
    assert guide == expected
    shapes = {k: tuple(v.shape) for k, v in guide.init(target, torch.Generator()).items()}
    assert shapes == {
        "loc": (8,),
        "scale_tril_1": (4, 1, 1),
        "scale_tril_2": (1, 2, 2),
        "global_tril": (2, 2),
        "loading": (6, 2),
    }
    with pytest.raises(ValueError, match=r"unknown sites \['nu'\]; the target has \['mu', 'tau'"):
        Structured.of(target, global_sites=("nu",))


def test_covariances_follow_the_blocks(generator: torch.Generator):
    """None across blocks; with a global block, none given the global coordinates."""
    blocks, d = ((0, 2), (2, 3), (3, 6)), 6
    L = torch.randn(d, d, generator=generator, dtype=F64).tril() + 3 * torch.eye(d, dtype=F64)
    loc = torch.zeros(d, dtype=F64)
    across = torch.ones(d, d, dtype=torch.bool)
    for start, stop in blocks:
        across[start:stop, start:stop] = False
    plain = Structured(blocks)
    _, covariance = plain.moments(plain.from_gaussian(loc, L))
    assert not covariance[across].any()
    assert covariance[~across].all()
    arrow = Structured(blocks, global_blocks=(1,))
    _, covariance = arrow.moments(arrow.from_gaussian(loc, L))
    given = covariance - torch.outer(covariance[2], covariance[2]) / covariance[2, 2]
    torch.testing.assert_close(given[across], torch.zeros_like(given[across]))
    assert covariance.all()
    # the global block has the marginal of the Gaussian, and the others regress on it as there
    torch.testing.assert_close(covariance[2], (L @ L.mT)[2])


def test_its_first_use_may_be_inside_a_transformation():
    """What is built once and kept does not belong to the transformation that was at work."""
    guide = Structured(((0, 1), (1, 2), (2, 9)), (1,))
    eps = torch.ones(2, 9, dtype=F64)

    def total(loc: torch.Tensor) -> torch.Tensor:
        params = guide.from_gaussian(loc, torch.eye(9, dtype=F64))
        return guide.transform(params, eps)[0].sum()

    zeros = torch.zeros(9, dtype=F64)
    assert torch.equal(grad(total)(zeros), torch.full((9,), 2.0, dtype=F64))
    assert float(total(zeros)) == pytest.approx(18.0)


def test_a_hierarchy_is_a_member(generator: torch.Generator):
    """Groups independent given their mean: the guide is exact with O(groups) parameters."""
    groups = 30

    def log_joint(v: dict[str, torch.Tensor]) -> torch.Tensor:
        return (
            -0.5 * v["mu"].square() / 4
            - 0.5 * (v["theta"] - v["mu"]).square().sum()
            - 0.5 * ((v["theta"] - 1.0) / 0.5).square().sum()
        )

    target = pc.Target.from_function(log_joint, {"mu": (), "theta": (groups,)})
    guide = Structured.of(target, global_sites=("mu",), diagonal_sites=("theta",))
    posterior = pc.fit(target, guide=guide, generator=generator)
    assert posterior.ok
    exact = torch.linalg.inv(-target.hessian(torch.zeros(1, groups + 1, dtype=F64))[0])
    _, covariance = guide.moments(posterior.params)
    torch.testing.assert_close(covariance, exact, rtol=0, atol=1e-3)
    assert posterior.khat < 0.1
