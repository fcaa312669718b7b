"""The posteriors of `vi` as Pyro and as NumPyro programs: each written once for both languages.

The two have the same names for nearly everything; a `Language` holds what differs. Definitions
are those of `experiments/posteriors`, whose targets ours are; a test holds the densities together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Draws = Mapping[str, Any]
Program = Callable[..., None]


@dataclass(frozen=True)
class Language:
    """Where a program finds its words: `pyro` or `numpyro`, their distributions, and arrays.

    Args:
        ppl: The package, with `sample`, `plate` and `factor`.
        dist: Its distributions.
        xp: `torch` or `jax.numpy`.
    """

    ppl: Any
    dist: Any
    xp: Any

    def flat(self, name: str, shape: tuple[int, ...] = ()) -> Any:
        """A latent vector, or a scalar, without a prior."""
        support = self.dist.constraints.real_vector if shape else self.dist.constraints.real
        return self.ppl.sample(name, self.dist.ImproperUniform(support, (), shape))

    def normals(self, name: str, count: int, scale: float) -> Any:
        """A latent vector of independent normals around zero."""
        return self.ppl.sample(name, self.dist.Normal(0.0, scale).expand([count]).to_event(1))

    def observe(self, name: str, centre: Any, scale: Any, seen: Any) -> None:
        """Independent normal observations."""
        with self.ppl.plate("rows", len(seen)):
            self.ppl.sample(name, self.dist.Normal(centre, scale), obs=seen)


@dataclass(frozen=True)
class Written:
    """A program with its arguments.

    Args:
        program: In a language, of the arguments.
        arguments: Of the database's data.
        derive: From draws of latent sites to a dict with the reference's sites.
    """

    program: Callable[[Language], Program]
    arguments: Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]]
    derive: Callable[[Draws], Draws] = lambda draws: draws


def _regression(prior: str) -> Callable[[Language], Program]:
    """Of columns `X`; `prior` is flat, cauchy (sigma only) or vague."""

    def program(lang: Language) -> Program:
        def model(X: Any, y: Any) -> None:
            k, dist = X.shape[1], lang.dist
            beta = lang.normals("beta", k, 10.0) if prior == "vague" else lang.flat("beta", (k,))
            positive = dist.ImproperUniform(dist.constraints.positive, (), ())
            priors = {"vague": dist.HalfNormal(10.0), "cauchy": dist.HalfCauchy(2.5)}
            sigma = lang.ppl.sample("sigma", priors.get(prior, positive))
            lang.observe("y", X @ beta, sigma, y)

        return model

    return program


def _columns(*columns: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(columns[0]), *columns], dim=1)


def _kidscore(data: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    school, iq = data["mom_hs"], data["mom_iq"]
    return _columns(school, iq, school * iq), data["kid_score"]


def _mesquite(data: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    names = ("diam1", "diam2", "canopy_height", "total_height", "density")
    return _columns(*(data[n].log() for n in names), data["group"]), data["weight"].log()


def _nes(data: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    ages = [(data["age_discrete"] == k).double() for k in (2, 3, 4)]
    before, after = ("real_ideo", "race_adj"), ("educ1", "gender", "income")
    columns = [*(data[n] for n in before), *ages, *(data[n] for n in after)]
    return _columns(*columns), data["partyid7"]


def _autoregression(lang: Language) -> Program:
    def model(lagged: Any, y: Any) -> None:
        alpha = lang.ppl.sample("alpha", lang.dist.Normal(0.0, 10.0))
        beta = lang.normals("beta", lagged.shape[1], 10.0)
        sigma = lang.ppl.sample("sigma", lang.dist.HalfCauchy(2.5))
        lang.observe("y", alpha + lagged @ beta, sigma, y)

    return model


def _lagged(data: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    order, y = int(data["K"]), data["y"]
    return y.unfold(0, order, 1)[:-1].flip(-1).contiguous(), y[order:]


def _schools_centered(lang: Language) -> Program:
    def model(effect: Any, std_error: Any) -> None:
        mu = lang.ppl.sample("mu", lang.dist.Normal(0.0, 5.0))
        tau = lang.ppl.sample("tau", lang.dist.HalfCauchy(5.0))
        with lang.ppl.plate("rows", len(effect)):
            theta = lang.ppl.sample("theta", lang.dist.Normal(mu, tau))
            lang.ppl.sample("effect", lang.dist.Normal(theta, std_error), obs=effect)

    return model


def _schools_noncentered(lang: Language) -> Program:
    def model(effect: Any, std_error: Any) -> None:
        mu = lang.ppl.sample("mu", lang.dist.Normal(0.0, 5.0))
        tau = lang.ppl.sample("tau", lang.dist.HalfCauchy(5.0))
        with lang.ppl.plate("rows", len(effect)):
            raw = lang.ppl.sample("theta_raw", lang.dist.Normal(0.0, 1.0))
            centre = mu + tau * raw
            lang.ppl.sample("effect", lang.dist.Normal(centre, std_error), obs=effect)

    return model


def _theta(draws: Draws) -> Draws:
    mu, tau = (draws[n].reshape(-1, 1) for n in ("mu", "tau"))
    return {**draws, "theta": mu + tau * draws["theta_raw"].reshape(len(mu), -1)}


def _radon(lang: Language) -> Program:
    def model(log_radon: Any, county: Any, covariates: Any, counties: Any) -> None:
        sigma_y = lang.ppl.sample("sigma_y", lang.dist.HalfNormal(1.0))
        sigma_alpha = lang.ppl.sample("sigma_alpha", lang.dist.HalfNormal(1.0))
        mu_alpha = lang.ppl.sample("mu_alpha", lang.dist.Normal(0.0, 10.0))
        with lang.ppl.plate("county", len(counties)):
            raw = lang.ppl.sample("alpha_raw", lang.dist.Normal(0.0, 1.0))
        beta = lang.normals("beta", covariates.shape[1], 10.0)
        centre = (mu_alpha + sigma_alpha * raw)[county] + covariates @ beta
        lang.observe("log_radon", centre, sigma_y, log_radon)

    return model


def _radon_data(data: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    covariates = torch.stack([data["log_uppm"], data["floor_measure"]], dim=1)
    county = data["county_idx"].long() - 1
    return data["log_radon"], county, covariates, torch.arange(int(data["J"]))


def _alpha(draws: Draws) -> Draws:
    mu, sigma = (draws[n].reshape(-1, 1) for n in ("mu_alpha", "sigma_alpha"))
    return {**draws, "alpha": mu + sigma * draws["alpha_raw"].reshape(len(mu), -1)}


def _two_normals(lang: Language) -> Program:
    def model(y: Any) -> None:
        ppl, dist = lang.ppl, lang.dist
        mu = ppl.sample("mu", dist.ImproperUniform(dist.constraints.ordered_vector, (), (2,)))
        ppl.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum(-1))
        sigma = ppl.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
        theta = ppl.sample("theta", dist.Beta(5.0, 5.0))
        shares = lang.xp.stack([theta, 1.0 - theta], -1)
        with ppl.plate("rows", len(y)):
            parts = dist.Normal(mu, sigma)
            mixed = dist.MixtureSameFamily(dist.Categorical(probs=shares), parts)
            ppl.sample("y", mixed, obs=y)

    return model


def _process(lang: Language) -> Program:
    def model(x: Any, y: Any) -> None:
        rho = lang.ppl.sample("rho", lang.dist.Gamma(25.0, 4.0))
        alpha = lang.ppl.sample("alpha", lang.dist.HalfNormal(2.0))
        sigma = lang.ppl.sample("sigma", lang.dist.HalfNormal(1.0))
        kernel = alpha**2 * lang.xp.exp(-0.5 * (x[:, None] - x) ** 2 / rho**2)
        K = kernel + sigma * lang.xp.eye(len(x))
        noise = lang.dist.MultivariateNormal(lang.xp.zeros(len(x)), covariance_matrix=K)
        lang.ppl.sample("y", noise, obs=y)

    return model


def _schools(data: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return data["y"], data["sigma"]


# name in the database -> its program
WRITTEN = {
    "eight_schools-eight_schools_centered": Written(_schools_centered, _schools),
    "eight_schools-eight_schools_noncentered": Written(_schools_noncentered, _schools, _theta),
    "arK-arK": Written(_autoregression, _lagged),
    "nes1980-nes": Written(_regression("flat"), _nes),
    "kidiq-kidscore_interaction": Written(_regression("cauchy"), _kidscore),
    "sblrc-blr": Written(_regression("vague"), lambda d: (d["X"], d["y"])),
    "mesquite-logmesquite": Written(_regression("flat"), _mesquite),
    "low_dim_gauss_mix-low_dim_gauss_mix": Written(_two_normals, lambda d: (d["y"],)),
    "gp_pois_regr-gp_regr": Written(_process, lambda d: (d["x"], d["y"])),
    "radon_mn-radon_hierarchical_intercept_noncentered": Written(_radon, _radon_data, _alpha),
}
