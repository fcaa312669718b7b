"""A mixture of two normals, and hidden Markov chains of two states with the states summed out.

The states' parameters are ordered, so that exchanging two states gives no second mode.
"""

from __future__ import annotations

import math

import torch
from pyro.distributions.constraints import ordered_vector, positive_ordered_vector
from torch import Tensor
from torch.distributions import Beta, Dirichlet, Exponential, HalfNormal, Normal
from torch.distributions.constraints import positive, simplex, unit_interval

import probcalc as pc

from .model import Data, Model, Values, log_prior

_ORDERINGS = math.log(2.0)  # the prior of two ordered values has twice the density of unordered


def low_dim_gauss_mix(data: Data) -> Model:
    """Y ~ theta N(mu_1, sigma_1) + (1 − theta) N(mu_2, sigma_2), mu_1 < mu_2.

    mu ~ N(0, 2), sigma ~ N⁺(0, 2), theta ~ Beta(5, 5).
    """

    def prior(values: Values) -> Tensor:
        priors = {"mu": Normal(0.0, 2.0), "sigma": HalfNormal(2.0), "theta": Beta(5.0, 5.0)}
        return log_prior(values, priors) + _ORDERINGS

    def likelihood(values: Values, y: Tensor) -> Tensor:
        theta = values["theta"]
        share = torch.stack([theta.log(), (-theta).log1p()])
        return (share + Normal(values["mu"], values["sigma"]).log_prob(y)).logsumexp(dim=-1)

    target = pc.Target.from_function(
        prior,
        {"mu": (2,), "sigma": (2,), "theta": ()},
        {"mu": ordered_vector, "sigma": positive, "theta": unit_interval},
        log_likelihood=likelihood,
        data=data["y"],
    )
    return Model(target, ("mu", "sigma", "theta"))


def log_forward(transition: Tensor, log_emission: Tensor) -> Tensor:
    """Log likelihood of a chain that starts in any state with weight one.

    The sum over all paths is a product of the matrices transition × emission; it is taken in
    pairs, so that T steps need log₂ T of them in sequence, each product scaled to sum to one.

    Args:
        transition: Row i holds P(next state | state i), shape ``(k, k)``.
        log_emission: Log density of each observation in each state, shape ``(T, k)``.
    """
    log_scale = log_emission.amax(dim=-1, keepdim=True)
    emission = (log_emission - log_scale).exp().T  # (k, T): time last, where it is contiguous
    factors = transition[..., None] * emission[:, 1:]  # (k, k, T − 1)
    total = log_scale.sum()
    while factors.shape[-1] > 1:
        even = factors.shape[-1] // 2 * 2
        left, right = factors[..., 0:even:2], factors[..., 1:even:2]
        product = (left[:, :, None] * right).sum(dim=1)
        size = product.sum(dim=(0, 1))
        total = total + size.log().sum()
        factors = torch.cat([product / size, factors[..., even:]], dim=-1)
    return total + (emission[:, 0] @ factors[..., 0]).sum().log()


def _transition(values: Values) -> Tensor:
    return torch.stack([values["theta1"], values["theta2"]])


def hmm_example(data: Data) -> Model:
    """Emissions N(mu_k, 1); mu_1 ~ N(3, 1), mu_2 ~ N(10, 1), flat rows of transitions."""
    y = data["y"]

    def density(values: Values) -> Tensor:
        prior = Normal(torch.tensor([3.0, 10.0]).to(y), 1.0)
        emission = Normal(values["mu"], 1.0).log_prob(y[:, None])
        log_mean = log_forward(_transition(values), emission)
        return log_prior(values, {"mu": prior}) + log_mean

    target = pc.Target.from_function(
        density,
        {"theta1": (2,), "theta2": (2,), "mu": (2,)},
        {"theta1": simplex, "theta2": simplex, "mu": ordered_vector},
    )
    return Model(target, ("theta1", "theta2", "mu"))


def hmm_drive_0(data: Data) -> Model:
    """A basketball player drives or not: 1/speed u ~ Exp(phi_k), distance v ~ Exp(lambda_k).

    Rows of transitions ~ Dirichlet(alpha_k); phi and lambda ordered, the first ~ N⁺(0, 1), the
    second ~ N⁺(3, 1).
    """
    u, v, alpha = data["u"], data["v"], data["alpha"]

    def density(values: Values) -> Tensor:
        rate = Normal(torch.tensor([0.0, 3.0]).to(u), 1.0)
        priors = {"theta1": Dirichlet(alpha[0]), "theta2": Dirichlet(alpha[1])}
        prior = log_prior(values, {**priors, "phi": rate, "lambda": rate})
        seen = Exponential(values["phi"]).log_prob(u[:, None])
        seen = seen + Exponential(values["lambda"]).log_prob(v[:, None])
        return prior + log_forward(_transition(values), seen)

    sites = ("theta1", "theta2", "phi", "lambda")
    rows = {"theta1": simplex, "theta2": simplex}
    rates = {"phi": positive_ordered_vector, "lambda": positive_ordered_vector}
    target = pc.Target.from_function(density, dict.fromkeys(sites, (2,)), rows | rates)
    return Model(target, sites)


MODELS = {
    "hmm_drive_0": hmm_drive_0,
    "hmm_example": hmm_example,
    "low_dim_gauss_mix": low_dim_gauss_mix,
}
