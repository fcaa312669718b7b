"""Exact fits are calibrated, known-bad ones are not, and it is said what is wrong with them."""

from __future__ import annotations

import pytest
import torch
from laws import ALPHA
from problems import linear_model
from torch.distributions import Gamma, Poisson, constraints

import probcalc as pc
from probcalc import Target
from probcalc.inference.calibration import calibrate, with_data
from probcalc.inference.data_sets import DataSets
from probcalc.inference.guides import FullRank, MeanField

LEVEL = 2 * ALPHA
CORRELATION = 0.9
X, Y = linear_model.data(correlation=CORRELATION)
TARGETS = {
    "functions": lambda: linear_model.target(X, Y),
    "pyro": lambda: Target.from_pyro(linear_model.model, X, Y),
}


def rate_target() -> Target:
    """A skewed posterior on the positive half-line: y ~ Poisson(rate), a row; rate ~ Γ(1/2, 1)."""

    def simulate(values: dict, generator: torch.Generator) -> torch.Tensor:
        return torch.poisson(values["rate"].expand(1), generator=generator)

    def prior(n: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        shape = torch.full((n,), 0.5, dtype=torch.float64)
        return {"rate": torch._standard_gamma(shape, generator=generator)}

    return Target.from_function(
        lambda v: Gamma(0.5, 1.0).log_prob(v["rate"]),
        {"rate": ()},
        {"rate": constraints.positive},
        log_likelihood=lambda v, y: Poisson(v["rate"]).log_prob(y),
        data=torch.tensor([2.0]),
        simulate=simulate,
        prior=prior,
    )


@pytest.mark.parametrize("name", TARGETS)
def test_an_exact_guide_is_calibrated(name: str, generator: torch.Generator):
    found = calibrate(TARGETS[name](), level=LEVEL, generator=generator)
    assert found.ok
    assert found.num_simulations == 500
    assert found.num_left_out == 0
    assert found.method == "FullRank"


@pytest.mark.parametrize("name", TARGETS)
def test_mean_field_of_correlated_parameters_is_too_narrow(name: str, generator: torch.Generator):
    target = TARGETS[name]()
    found = calibrate(target, guide=MeanField(), level=LEVEL, generator=generator)
    assert found.verdicts["b[0]"] == found.verdicts["b[1]"] == "too narrow"
    S = linear_model.Exact(X, Y).covariance
    narrower = ((1 - S[0, 1] ** 2 / (S[0, 0] * S[1, 1])) ** 0.5).item()
    assert float(found.width[0]) == pytest.approx(narrower, rel=0.25)


def test_weights_make_up_for_a_narrow_guide(generator: torch.Generator):
    target = linear_model.target(*linear_model.data(correlation=0.6))
    found = calibrate(
        target,
        guide=MeanField(),
        weighted=True,
        num_draws=4_095,
        num_simulations=200,
        level=LEVEL,
        generator=generator,
    )
    assert found.ok
    assert found.num_left_out < 20


def test_a_gaussian_for_a_skewed_posterior_is_found_out(generator: torch.Generator):
    found = calibrate(rate_target(), num_simulations=4_000, level=LEVEL, generator=generator)
    assert not found.ok


@pytest.mark.slow
def test_any_way_of_fitting_is_tested_one_by_one(generator: torch.Generator):
    """A fit that knows the posterior but lies about its width."""
    target = linear_model.target(X, Y)
    asked = []

    def fit(own: Target) -> pc.Posterior:
        X, y = own.model.observed.data
        exact = linear_model.Exact(X, y)
        asked.append(float(y[0]))
        return posterior_of(own, exact, factor=0.5)

    found = calibrate(target, fit=fit, num_simulations=100, level=LEVEL, generator=generator)
    assert len(set(asked)) == 100
    assert set(found.verdicts.values()) == {"too narrow"}
    assert found.method == "fits one by one"


def posterior_of(target: Target, exact: linear_model.Exact, factor: float) -> pc.Posterior:
    tril = factor * torch.linalg.cholesky(exact.covariance)
    z = exact.mean + torch.randn(2, 512, 2, dtype=torch.float64) @ tril.mT
    equal = torch.zeros(2, 512, dtype=torch.float64)
    return pc.Posterior(
        layout=target.layout,
        guide=FullRank(),
        params={"loc": exact.mean, "scale_tril": tril},
        z=z,
        x=z,
        log_ratios=equal,
        log_weights=equal,
        khat=0.0,
        status=pc.Status.OK,
        reasons=(),
        num_evals=0,
        method="by hand",
        target=target,
    )


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_with_other_data_is_that_target(name: str):
    target = TARGETS[name]()
    data = (X, Y + 1) if name == "functions" else {"y": Y + 1}
    fresh = linear_model.target(X, Y + 1) if name == "functions" else TARGETS[name]()
    other = with_data(target, data)
    z = torch.randn(5, 2, dtype=torch.float64)
    exact = linear_model.target(X, Y + 1).log_density(z)
    torch.testing.assert_close(other.log_density(z), exact)
    sets = DataSets(fresh.model.simulator, pytree_stack(data), 2)
    rows = torch.zeros(1, dtype=torch.long)
    value, slope = sets.value_and_grad(z[None], rows)
    torch.testing.assert_close(value[0], exact)
    torch.testing.assert_close(slope[0], other.value_and_grad(z)[1])
    torch.testing.assert_close(sets.hessian(z[:1]), other.hessian(z[:1]), rtol=1e-5, atol=1e-5)


def pytree_stack(data: object) -> object:
    return torch.utils._pytree.tree_map(lambda t: t[None], data)


def test_a_batch_of_fits_equals_fits_alone(generator: torch.Generator):
    """The mode of each data set, and the curvature there, are the conjugate posterior's."""
    target = linear_model.target(X, Y)
    ys = Y + torch.randn(6, len(Y), generator=generator, dtype=torch.float64)
    sets = DataSets(target.model.simulator, (X.expand(6, -1, -1), ys), 2)
    prior = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    fits = sets.fitted(FullRank(), prior, generator)
    assert fits.good.all()
    exact = [linear_model.Exact(X, y) for y in ys]
    mean, covariance = FullRank().moments(fits.params)
    torch.testing.assert_close(mean, torch.stack([e.mean for e in exact]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        covariance, torch.stack([e.covariance for e in exact]), atol=1e-4, rtol=1e-3
    )


class Bare(FullRank):
    """A guide that cannot start from a Gaussian."""

    @property
    def from_gaussian(self) -> None:
        raise AttributeError


REFUSED = {
    "both": ({"guide": MeanField(), "fit": pc.fit}, "`fit` is a way of fitting of its own"),
    "few": ({"num_simulations": 50}, "`num_simulations` must be at least 100 .*, got 50"),
    "guide": ({"guide": Bare()}, "which Bare cannot; give `fit=` instead"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused(case: str, generator: torch.Generator):
    settings, message = REFUSED[case]
    target = linear_model.target(X, Y)
    with pytest.raises(ValueError, match=message):
        calibrate(target, generator=generator, **settings)


def test_an_improper_prior_is_refused(generator: torch.Generator):
    target = Target.from_function(
        lambda v: 0.0 * v["b"].sum(),
        {"b": (2,)},
        log_likelihood=linear_model.log_likelihood,
        data=(X, Y),
        simulate=lambda v, g: (X, Y),
    )
    with pytest.warns(pc.EstimateWarning), pytest.raises(ValueError, match="prior could not be"):
        calibrate(target, generator=generator)
