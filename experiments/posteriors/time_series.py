"""Time series: autoregression and changing variance."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import HalfCauchy, Normal
from torch.distributions.constraints import positive, simplex
from torch.nn.functional import pad

import probcalc as pc

from .model import Data, Model, Values, log_prior


def arK(data: Data) -> Model:
    """Autoregression of order K: y_t ~ N(alpha + Σ_k beta_k y_{t−k}, sigma), t > K.

    alpha, beta ~ N(0, 10), sigma ~ HalfCauchy(2.5).
    """
    order, y = int(data["K"]), data["y"]
    lagged = y.unfold(0, order, 1)[:-1].flip(-1)  # (T − K, K), the latest value first

    def prior(values: Values) -> Tensor:
        wide = Normal(0.0, 10.0)
        return log_prior(values, {"alpha": wide, "beta": wide, "sigma": HalfCauchy(2.5)})

    def likelihood(values: Values, row: tuple[Tensor, Tensor]) -> Tensor:
        past, seen = row
        centre = values["alpha"] + (past * values["beta"]).sum()
        return Normal(centre, values["sigma"]).log_prob(seen)

    target = pc.Target.from_function(
        prior,
        {"alpha": (), "beta": (order,), "sigma": ()},
        {"sigma": positive},
        log_likelihood=likelihood,
        data=(lagged, y[order:]),
    )
    return Model(target, ("alpha", "beta", "sigma"))


def garch11(data: Data) -> Model:
    """GARCH(1, 1): y_t ~ N(mu, sigma_t), sigma_t² = a₀ + a₁ (y_{t−1} − mu)² + b₁ sigma_{t−1}².

    Flat over mu, a₀ > 0 and the triangle a₁, b₁ > 0, a₁ + b₁ < 1, which is where (a₁, b₁,
    1 − a₁ − b₁) is a point of the simplex. sigma_1 is given.
    """
    y, first = data["y"], data["sigma1"] ** 2

    def density(values: Values) -> Tensor:
        a1, b1 = values["shares"][0], values["shares"][1]
        shocks = values["alpha0"] + a1 * (y[:-1] - values["mu"]).square()
        variance = linear_recursion(torch.cat([first[None], shocks]), b1)
        return Normal(values["mu"], variance.sqrt()).log_prob(y).sum()

    def derive(values: Values) -> Values:
        shares = values["shares"]
        return values | {"alpha1": shares[..., 0], "beta1": shares[..., 1]}

    def invert(values: Values) -> Values:
        a1, b1 = values["alpha1"], values["beta1"]
        return values | {"shares": torch.stack([a1, b1, 1 - a1 - b1], dim=-1)}

    shapes = {"mu": (), "alpha0": (), "shares": (3,)}
    target = pc.Target.from_function(density, shapes, {"alpha0": positive, "shares": simplex})
    sites = ("mu", "alpha0", "alpha1", "beta1")
    return Model(target, sites, derive, invert, is_proper=False)


def linear_recursion(c: Tensor, b: Tensor) -> Tensor:
    """x_t = c_t + b x_{t−1} with x_0 = c_0, shape ``(T)``, in log₂ T steps.

    With S the shift by one, x = (I − bS)⁻¹ c = Π_k (I + b^(2^k) S^(2^k)) c.
    """
    x, step = c, 1
    while step < len(c):
        x = x + b * pad(x[:-step], (step, 0))
        b, step = b * b, 2 * step
    return x


MODELS = {"arK": arK, "garch11": garch11}
