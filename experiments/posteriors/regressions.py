"""Linear and logistic regressions.

    y ~ N(X beta, sigma)   or   y ~ Bernoulli(logit⁻¹(X beta)),

with flat coefficients, unless a prior is named, as in Gelman and Hill (2006), Data Analysis
Using Regression and Multilevel/Hierarchical Models, chapters 3 to 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, HalfCauchy, HalfNormal, Normal, StudentT
from torch.distributions.constraints import positive

import probcalc as pc

from .model import Data, Model, Values, log_prior

Priors = Callable[[], Mapping[str, Distribution]]


def _half_cauchy() -> Mapping[str, Distribution]:
    return {"sigma": HalfCauchy(2.5)}


def _vague() -> Mapping[str, Distribution]:
    return {"beta": Normal(0.0, 10.0), "sigma": HalfNormal(10.0)}


def _linear(
    columns: list[Tensor], y: Tensor, priors: Priors | None, proper: bool = False
) -> Model:
    """Normal errors; `priors` are made when the density is evaluated, in its precision."""
    X = torch.stack([torch.as_tensor(c).double().expand(len(y)) for c in columns], dim=1)

    def prior(values: Values) -> Tensor:
        if priors is None:
            return values["sigma"].new_zeros(())
        return log_prior(values, priors())

    def likelihood(values: Values, row: tuple[Tensor, Tensor]) -> Tensor:
        x, seen = row
        return Normal((x * values["beta"]).sum(), values["sigma"]).log_prob(seen)

    target = pc.Target.from_function(
        prior,
        {"beta": (X.shape[1],), "sigma": ()},
        {"sigma": positive},
        log_likelihood=likelihood,
        data=(X, y),
    )
    return Model(target, ("beta", "sigma"), is_proper=proper)


def _one(data: Data) -> Tensor:
    return torch.ones(())


def earn_height(data: Data) -> Model:
    """Earnings by height."""
    return _linear([_one(data), data["height"]], data["earn"], None)


def logearn_interaction(data: Data) -> Model:
    """Log earnings by height, sex and their product."""
    height, male = data["height"], data["male"]
    return _linear([_one(data), height, male, height * male], data["earn"].log(), None)


def kidscore_momiq(data: Data) -> Model:
    """A child's test score by its mother's IQ."""
    return _linear([_one(data), data["mom_iq"]], data["kid_score"], _half_cauchy)


def kidscore_interaction(data: Data) -> Model:
    """A child's test score by its mother's IQ, her schooling and their product."""
    school, iq = data["mom_hs"], data["mom_iq"]
    return _linear([_one(data), school, iq, school * iq], data["kid_score"], _half_cauchy)


def kidscore_mom_work(data: Data) -> Model:
    """A child's test score by its mother's work, in four classes."""
    classes = [(data["mom_work"] == k).double() for k in (2, 3, 4)]
    return _linear([_one(data), *classes], data["kid_score"], None)


def logmesquite(data: Data) -> Model:
    """Log weight of mesquite bushes by the logs of their measures."""
    names = ("diam1", "diam2", "canopy_height", "total_height", "density")
    logs = [data[name].log() for name in names]
    return _linear([_one(data), *logs, data["group"]], data["weight"].log(), None)


def logmesquite_logva(data: Data) -> Model:
    """Log weight of mesquite bushes by the logs of canopy volume and area."""
    area = data["diam1"] * data["diam2"]
    volume = area * data["canopy_height"]
    columns = [_one(data), volume.log(), area.log(), data["group"]]
    return _linear(columns, data["weight"].log(), None)


def nes(data: Data) -> Model:
    """Party identification by ideology, race, age in four classes, schooling, sex and income."""
    ages = [(data["age_discrete"] == k).double() for k in (2, 3, 4)]
    before, after = ("real_ideo", "race_adj"), ("educ1", "gender", "income")
    columns = [*(data[n] for n in before), *ages, *(data[n] for n in after)]
    return _linear([_one(data), *columns], data["partyid7"], None)


def blr(data: Data) -> Model:
    """Correlated covariates, beta ~ N(0, 10), sigma ~ N⁺(0, 10)."""
    return _linear(list(data["X"].unbind(dim=1)), data["y"], _vague, proper=True)


def diamonds(data: Data) -> Model:
    """Log price by 24 centred covariates.

    b ~ N(0, 1), Intercept ~ t₃(8, 10), sigma ~ t₃⁺(0, 10); the intercept is the mean response.
    """
    X = data["X"][:, 1:]  # the first column is the constant

    def prior(values: Values) -> Tensor:
        # a half distribution has twice the density of the whole one
        half = StudentT(3.0, 0.0, 10.0).log_prob(values["sigma"]) + torch.log(torch.tensor(2.0))
        priors = {"b": Normal(0.0, 1.0), "Intercept": StudentT(3.0, 8.0, 10.0)}
        return half + log_prior(values, priors)

    def likelihood(values: Values, row: tuple[Tensor, Tensor]) -> Tensor:
        x, seen = row
        centre = values["Intercept"] + (x * values["b"]).sum()
        return Normal(centre, values["sigma"]).log_prob(seen)

    target = pc.Target.from_function(
        prior,
        {"b": (X.shape[1],), "Intercept": (), "sigma": ()},
        {"sigma": positive},
        log_likelihood=likelihood,
        data=(X - X.mean(dim=0), data["Y"]),
    )
    return Model(target, ("b", "Intercept", "sigma"))


def wells_dist(data: Data) -> Model:
    """Whether a household changes its well, by the distance to the nearest safe one."""

    def likelihood(values: Values, row: tuple[Tensor, Tensor]) -> Tensor:
        distance, switched = row
        beta = values["beta"]
        return Bernoulli(logits=beta[0] + beta[1] * distance).log_prob(switched)

    target = pc.Target.from_function(
        lambda values: values["beta"].new_zeros(()),
        {"beta": (2,)},
        log_likelihood=likelihood,
        data=(data["dist"], data["switched"]),
    )
    return Model(target, ("beta",), is_proper=False)


MODELS = {
    "blr": blr,
    "diamonds": diamonds,
    "earn_height": earn_height,
    "kidscore_interaction": kidscore_interaction,
    "kidscore_mom_work": kidscore_mom_work,
    "kidscore_momiq": kidscore_momiq,
    "logearn_interaction": logearn_interaction,
    "logmesquite": logmesquite,
    "logmesquite_logva": logmesquite_logva,
    "nes": nes,
    "wells_dist": wells_dist,
}
