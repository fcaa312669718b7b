from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems.eight_schools import schools_centred, schools_data, schools_non_centred
from problems.posteriors import GAUSSIAN, PROBLEMS
from torch import Tensor
from torch.distributions import constraints

import probcalc as pc
from probcalc import Status, Target


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def f64(*values: float) -> Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float64)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_mode_of_a_gaussian_is_its_mean(name: str):
    problem = PROBLEMS[name]()
    found = pc.maximum_a_posteriori(problem.target(), generator=seeded())
    assert found.ok
    for site, exact in problem.mean.items():
        torch.testing.assert_close(found.x[site], exact, rtol=1e-8, atol=1e-8)


# distribution -> mode of its density; of the density of its logarithm or logit
MODES = {
    "Gamma": (torch.distributions.Gamma(f64(3.0), f64(2.0)), 1.0, 1.5),
    "LogNormal": (torch.distributions.LogNormal(f64(0.5), f64(0.8)), 0.8693582354, 1.6487212707),
    "Beta": (torch.distributions.Beta(f64(3.0), f64(5.0)), 2 / 6, 3 / 8),
}


@pytest.mark.parametrize("name", MODES)
def test_the_jacobian_moves_the_mode(name: str):
    """The MAP of textbooks is that of constrained values; Laplace expands elsewhere."""
    distribution, constrained, unconstrained = MODES[name]
    target = Target.from_distribution(distribution)
    plain = pc.maximum_a_posteriori(target, generator=seeded())
    with_jacobian = pc.maximum_a_posteriori(target, jacobian=True, generator=seeded())
    assert float(plain.x["x"]) == pytest.approx(constrained, rel=1e-4)
    assert float(with_jacobian.x["x"]) == pytest.approx(unconstrained, rel=1e-6)
    assert float(plain.value) == pytest.approx(-float(distribution.log_prob(plain.x["x"])))


def test_highest_of_two_modes_is_returned():
    def log_prob(x: Tensor) -> Tensor:
        low, high = -0.5 * (x - 3).square(), 1.0 - 0.5 * (x + 3).square()
        return torch.logaddexp(low, high)[0]

    found = pc.maximum_a_posteriori(
        Target.from_log_density(log_prob, 1), restarts=16, generator=seeded()
    )
    assert float(found.x["x"]) == pytest.approx(-3.0, abs=1e-3)


def separated(v: dict[str, Tensor]) -> Tensor:
    x = f64(-2.0, -1.0, 1.0, 2.0)
    return dist.Bernoulli(logits=v["b"] * x).log_prob((x > 0).double()).sum()


UNBOUNDED = {
    "centred eight schools": lambda: Target.from_pyro(schools_centred, *schools_data()),
    "scale that may vanish": lambda: Target.from_function(
        lambda v: dist.Normal(v["m"], v["s"]).log_prob(f64(1.0)),
        {"m": (), "s": ()},
        {"s": constraints.positive},
    ),
    "separated logistic regression": lambda: Target.from_function(separated, {"b": ()}),
    "linear density": lambda: Target.from_log_density(lambda x: x.sum(), 2),
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_a_mode_that_does_not_exist_is_flagged(name: str):
    found = pc.maximum_a_posteriori(UNBOUNDED[name](), generator=seeded())
    assert not found.ok
    assert found.flags & Status.UNBOUNDED
    assert found.flags.advice


@pytest.mark.parametrize("name", UNBOUNDED)
def test_laplace_refuses_where_there_is_no_mode(name: str):
    with pytest.warns(pc.EstimateWarning, match="Laplace flagged"):
        p = pc.laplace(UNBOUNDED[name](), generator=seeded())
    assert not p.ok
    assert all(e.error.isinf().all() for e in p.mean.values())


def test_non_centred_eight_schools_has_a_mode_on_the_unconstrained_scale():
    target = Target.from_pyro(schools_non_centred, *schools_data())
    assert pc.maximum_a_posteriori(target, jacobian=True, generator=seeded()).ok


@pytest.mark.parametrize("name", GAUSSIAN)
def test_laplace_is_exact_for_a_gaussian(name: str):
    problem = PROBLEMS[name]()
    p = pc.laplace(problem.target(), generator=seeded())
    assert p.verdict == "good"
    for site, exact in problem.mean.items():
        torch.testing.assert_close(p.mean[site].value, exact, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(p.std[site].value, problem.std[site], rtol=1e-6, atol=0)
    assert float(p.log_evidence) == pytest.approx(problem.log_evidence, abs=1e-6)


# a logarithm of a gamma variate has tails heavier than the Gaussian's, which few draws may show
LAPLACE = {"poisson_rate": False, "proportions": True, "log_normal": True}


@pytest.mark.parametrize("name", LAPLACE)
def test_laplace_is_right_or_flagged(name: str):
    problem = PROBLEMS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pc.EstimateWarning)
        p = pc.laplace(problem.target(), generator=seeded(), confidence=1 - 1e-6)
    assert p.ok or not LAPLACE[name]
    for site, exact in problem.mean.items():
        assert p.ok or p.mean[site].error.isinf().all()
        assert ((p.mean[site].value - exact).abs() <= p.mean[site].error).all()
        assert ((p.std[site].value - problem.std[site]).abs() <= p.std[site].error).all()


def test_a_start_that_violates_its_constraint_is_refused():
    target = Target.from_distribution(torch.distributions.Gamma(f64(3.0), f64(2.0)))
    with pytest.raises(ValueError, match=r"`init\['x'\]` = -2.0 violates its constraint"):
        pc.maximum_a_posteriori(target, init={"x": f64(-2.0)})
    with pytest.raises(ValueError, match="violates its constraint"):
        pc.laplace(target, init={"x": f64(-2.0)})


def test_same_seed_same_mode():
    def model() -> None:
        pyro.sample("x", dist.StudentT(3.0, 1.0, 2.0))

    target = Target.from_pyro(model)
    a, b = (pc.maximum_a_posteriori(target, generator=seeded(4)) for _ in range(2))
    assert torch.equal(a.x["x"], b.x["x"])
