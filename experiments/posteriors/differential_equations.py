"""Parameters of ordinary differential equations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.distributions import HalfCauchy, LogNormal, Normal
from torch.distributions.constraints import positive

import probcalc as pc

from .model import Data, Model, Values, log_prior
from .runge_kutta import Array, Equation, Solution

_NAMESPACE = __name__.replace(".", "_")
_STEPS_A_YEAR = 6  # logarithms within 5e-5 over the posterior, where sigma is 0.25
_STEPS_A_SAMPLE = 6  # logarithms within 1e-5 for the median draw and 1e-3 for all; sigma is 0.13


def _two_species(p: Array) -> Array:
    x = np.zeros((2, 7, p.shape[1]))
    x[:, 0] = p[4:]
    x[0, 5] = x[1, 6] = 1.0
    return x


def _predation(time: float, x: Array, p: Array, constants: Sequence[float]) -> Array:
    """x₁' = θ₁ − θ₂ exp x₂, x₂' = −θ₃ + θ₄ exp x₁ for p = (θ, x(0)), logarithms of numbers."""
    first, second = np.exp(x[:, 0])
    out = np.empty_like(x)
    np.multiply(x[1], -p[1] * second, out=out[0])
    np.multiply(x[0], p[3] * first, out=out[1])
    out[0, 0] = p[0] - p[1] * second
    out[1, 0] = p[3] * first - p[2]
    out[0, 1] += 1.0
    out[0, 2] -= second
    out[1, 3] -= 1.0
    out[1, 4] += first
    return out


def _empty(p: Array) -> Array:
    return np.zeros((1, 4, p.shape[1]))


def _elimination(time: float, x: Array, p: Array, constants: Sequence[float]) -> Array:
    """C' = k_a (D / V) exp(−k_a t) − (V_m / V) C / (K_m + C) for p = (k_a, K_m, V_m)."""
    dose, volume = constants
    left = (dose / volume) * np.exp(-p[0] * time)
    full = p[1] + x[0, 0]
    share, most = x[0, 0] / full, p[2] / volume
    out = x * (-most * p[1] / full**2)
    out[0, 0] = p[0] * left - most * share
    out[0, 1] += left * (1.0 - p[0] * time)
    out[0, 2] += most * share / full
    out[0, 3] -= share / volume
    return out


_predator_prey = Solution(f"{_NAMESPACE}::predator_prey", Equation(2, _two_species, _predation))
_one_compartment = Solution(f"{_NAMESPACE}::one_compartment", Equation(1, _empty, _elimination))


def lotka_volterra(data: Data) -> Model:
    """Pelts of hares and lynxes in 21 years, with log-normal errors.

    θ₁, θ₃ ~ N⁺(1, 0.5), θ₂, θ₄ ~ N⁺(0.05, 0.05), sigma ~ LogNormal(−1, 1), numbers at the start
    ~ LogNormal(log 10, 1). Carpenter (2018), Predator-Prey Population Dynamics.
    """
    seen = torch.cat([data["y_init"][None], data["y"]])  # (21, 2)
    counts = [len(seen) - 1, _STEPS_A_YEAR]

    def density(values: Values) -> Tensor:
        start = values["z_init"].log()
        parameters = torch.cat([values["theta"], start])
        later = _predator_prey(parameters, [], 1.0 / _STEPS_A_YEAR, counts)
        path = torch.cat([start[None], later])
        error = LogNormal(path, values["sigma"]).log_prob(seen).sum()
        return _lynx_prior(values, seen) + error

    shapes = {"theta": (4,), "z_init": (2,), "sigma": (2,)}
    target = pc.Target.from_function(density, shapes, dict.fromkeys(shapes, positive))
    return Model(target, tuple(shapes))


def _lynx_prior(values: Values, like: Tensor) -> Tensor:
    centre, scale = torch.tensor([[1.0, 0.05, 1.0, 0.05], [0.5, 0.05, 0.5, 0.05]]).to(like)
    above_zero = Normal(0.0, 1.0).cdf(centre / scale).log().sum()  # the truncation's constant
    start = LogNormal(torch.tensor(10.0).to(like).log(), 1.0)
    priors = {"theta": Normal(centre, scale), "z_init": start, "sigma": LogNormal(-1.0, 1.0)}
    return log_prior(values, priors) - above_zero


def one_comp_mm_elim_abs(data: Data) -> Model:
    """A drug's concentration with log-normal errors; k_a, K_m, V_m, sigma ~ HalfCauchy(1)."""
    times, seen = data["times"], data["C_hat"]
    width = float(times[0] - data["t0"]) / _STEPS_A_SAMPLE
    constants = [float(data["D"]), float(data["V"])]
    counts = [len(times), _STEPS_A_SAMPLE]
    sites = ("k_a", "K_m", "V_m", "sigma")

    def density(values: Values) -> Tensor:
        prior = log_prior(values, dict.fromkeys(sites, HalfCauchy(1.0)))
        parameters = torch.stack([values[name] for name in sites[:3]])
        path = _one_compartment(parameters, constants, width, counts)
        return prior + LogNormal(path[:, 0].log(), values["sigma"]).log_prob(seen).sum()

    shapes, supports = dict.fromkeys(sites, ()), dict.fromkeys(sites, positive)
    return Model(pc.Target.from_function(density, shapes, supports), sites)


MODELS = {"lotka_volterra": lotka_volterra, "one_comp_mm_elim_abs": one_comp_mm_elim_abs}
