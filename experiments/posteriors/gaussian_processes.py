"""Gaussian processes in one dimension with the squared exponential kernel.

    k(x, x') = alpha² exp(−(x − x')² / 2 rho²),   rho ~ Gamma(25, 4),   alpha ~ N⁺(0, 2)

Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, chapter 2.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Gamma, HalfNormal, MultivariateNormal
from torch.distributions.constraints import positive

import probcalc as pc

from .model import Data, Model, Values, log_prior

_JITTER = 1e-10  # part of the model's definition, added to the kernel's diagonal


def _kernel(x: Tensor, rho: Tensor, alpha: Tensor) -> Tensor:
    squared = (x[:, None] - x).square()
    return alpha.square() * (-0.5 * squared / rho.square()).exp()


def gp_regr(data: Data) -> Model:
    """Y ~ N(0, K + sigma I), sigma ~ N⁺(0, 1): sigma is the noise's variance."""
    x, y = data["x"], data["y"]

    def density(values: Values) -> Tensor:
        eye = torch.eye(len(x), dtype=x.dtype)
        K = _kernel(x, values["rho"], values["alpha"]) + values["sigma"] * eye
        noise = MultivariateNormal(torch.zeros_like(y), scale_tril=torch.linalg.cholesky(K))
        priors = {"rho": Gamma(25.0, 4.0), "alpha": HalfNormal(2.0), "sigma": HalfNormal(1.0)}
        return log_prior(values, priors) + noise.log_prob(y)

    sites = ("rho", "alpha", "sigma")
    target = pc.Target.from_function(
        density, dict.fromkeys(sites, ()), dict.fromkeys(sites, positive)
    )
    return Model(target, sites)


def _counts(x: Tensor, counts: Tensor) -> None:
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    with pyro.plate("point", len(x)):
        raw = pyro.sample("f_raw", dist.Normal(0.0, 1.0))
        f = pyro.deterministic("f", _root(x, rho, alpha) @ raw)
        pyro.sample("counts", dist.Poisson(f.exp()), obs=counts)


def _root(x: Tensor, rho: Tensor, alpha: Tensor) -> Tensor:
    return torch.linalg.cholesky(_kernel(x, rho, alpha) + _JITTER * torch.eye(len(x)).to(x))


def gp_pois_regr(data: Data) -> Model:
    """K ~ Poisson(exp f), f = L f_raw with L Lᵀ = K + 1e-10 I and f_raw ~ N(0, 1)."""
    x = data["x"]

    def invert(values: Values) -> Values:
        root = torch.func.vmap(lambda r, a: _root(x, r, a))(values["rho"], values["alpha"])
        raw = torch.linalg.solve_triangular(root, values["f"][..., None], upper=False)
        return values | {"f_raw": raw[..., 0]}

    target = pc.Target.from_pyro(_counts, x, data["k"])
    return Model(target, ("rho", "alpha", "f"), invert=invert)


MODELS = {"gp_pois_regr": gp_pois_regr, "gp_regr": gp_regr}
