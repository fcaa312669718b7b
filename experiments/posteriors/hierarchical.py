"""Hierarchical models, as Pyro programs.

Centred: theta ~ N(mu, tau). Non-centred: theta = mu + tau * theta_raw with theta_raw ~ N(0, 1),
the same posterior of theta in coordinates of another shape.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import probcalc as pc

from .model import Data, Model, Values


def _schools_centered(effect: Tensor, std_error: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(effect)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("effect", dist.Normal(theta, std_error), obs=effect)


def _schools_noncentered(effect: Tensor, std_error: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(effect)):
        raw = pyro.sample("theta_raw", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * raw)
        pyro.sample("effect", dist.Normal(theta, std_error), obs=effect)


def eight_schools_centered(data: Data) -> Model:
    """Effects of coaching in eight schools; Rubin (1981)."""
    target = pc.Target.from_pyro(_schools_centered, data["y"], data["sigma"])
    return Model(target, ("theta", "mu", "tau"))


def eight_schools_noncentered(data: Data) -> Model:
    """The same in non-centred coordinates."""

    def invert(values: Values) -> Values:
        shift = values["theta"] - values["mu"][..., None]
        return values | {"theta_raw": shift / values["tau"][..., None]}

    target = pc.Target.from_pyro(_schools_noncentered, data["y"], data["sigma"])
    return Model(target, ("theta", "mu", "tau"), invert=invert)


def _radon(
    log_radon: Tensor, county: Tensor, num_counties: int, covariates: Tensor | None
) -> None:
    sigma_y = pyro.sample("sigma_y", dist.HalfNormal(1.0))
    sigma_alpha = pyro.sample("sigma_alpha", dist.HalfNormal(1.0))
    mu_alpha = pyro.sample("mu_alpha", dist.Normal(0.0, 10.0))
    with pyro.plate("county", num_counties):
        raw = pyro.sample("alpha_raw", dist.Normal(0.0, 1.0))
        alpha = pyro.deterministic("alpha", mu_alpha + sigma_alpha * raw)
    centre = alpha[county]
    if covariates is not None:
        shape = (covariates.shape[1],)
        beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand(shape).to_event(1))
        centre = centre + covariates @ beta
    with pyro.plate("house", len(log_radon)):
        pyro.sample("log_radon", dist.Normal(centre, sigma_y), obs=log_radon)


def _county_raw(values: Values) -> Values:
    shift = values["alpha"] - values["mu_alpha"][..., None]
    return values | {"alpha_raw": shift / values["sigma_alpha"][..., None]}


def radon_partially_pooled_noncentered(data: Data) -> Model:
    """Radon in houses, one intercept a county; Gelman and Hill (2006), chapter 12."""
    county = data["county_idx"].long() - 1
    target = pc.Target.from_pyro(_radon, data["log_radon"], county, int(data["J"]), None)
    sites = ("alpha", "mu_alpha", "sigma_alpha", "sigma_y")
    return Model(target, sites, invert=_county_raw)


def radon_hierarchical_intercept_noncentered(data: Data) -> Model:
    """The same with the county's uranium and the floor of the measurement as covariates."""
    county = data["county_idx"].long() - 1
    covariates = torch.stack([data["log_uppm"], data["floor_measure"]], dim=1)
    target = pc.Target.from_pyro(_radon, data["log_radon"], county, int(data["J"]), covariates)
    sites = ("alpha", "beta", "mu_alpha", "sigma_alpha", "sigma_y")
    return Model(target, sites, invert=_county_raw)


def _two_parameter_logistic(correct: Tensor) -> None:
    num_items, num_students = correct.shape
    sigma_theta = pyro.sample("sigma_theta", dist.HalfCauchy(2.0))
    sigma_a = pyro.sample("sigma_a", dist.HalfCauchy(2.0))
    mu_b = pyro.sample("mu_b", dist.Normal(0.0, 5.0))
    sigma_b = pyro.sample("sigma_b", dist.HalfCauchy(2.0))
    with pyro.plate("student", num_students, dim=-1):
        theta = pyro.sample("theta", dist.Normal(0.0, sigma_theta))
    with pyro.plate("item", num_items, dim=-1):
        a = pyro.sample("a", dist.LogNormal(0.0, sigma_a))
        b = pyro.sample("b", dist.Normal(mu_b, sigma_b))
    logits = a[:, None] * (theta - b[:, None])  # (items, students)
    pyro.sample("correct", dist.Bernoulli(logits=logits).to_event(2), obs=correct)


def irt_2pl(data: Data) -> Model:
    """Item response: P(student j solves item i) = logit⁻¹(a_i (theta_j − b_i))."""
    target = pc.Target.from_pyro(_two_parameter_logistic, data["y"])
    return Model(target, ("sigma_theta", "theta", "sigma_a", "a", "mu_b", "sigma_b", "b"))


MODELS = {
    "eight_schools_centered": eight_schools_centered,
    "eight_schools_noncentered": eight_schools_noncentered,
    "irt_2pl": irt_2pl,
    "radon_hierarchical_intercept_noncentered": radon_hierarchical_intercept_noncentered,
    "radon_partially_pooled_noncentered": radon_partially_pooled_noncentered,
}
