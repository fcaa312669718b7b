"""Integrals and expectations made to be got wrong without a word, and easy ones beside them.

Places and scales differ from seed to seed, so that nothing can be learnt by heart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

import probcalc as pc

INF, NAN, PI = math.inf, math.nan, math.pi


@dataclass(frozen=True)
class Case:
    """One question with its answer.

    Args:
        run: Asks the library, with what further keywords are given.
        truth: The answer: a number, ±inf, or NaN where there is none.
    """

    run: Callable[..., pc.Estimate]
    truth: float


class Dice:
    """Places and scales of one seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def between(self, low: float, high: float) -> float:
        """Uniform."""
        u = torch.rand((), generator=self._generator, dtype=torch.float64)
        return low + (high - low) * float(u)

    def decades(self, low: float, high: float) -> float:
        """Log-uniform."""
        return 10 ** self.between(math.log10(low), math.log10(high))


def _normal(x: Tensor, mean: float, sd: float) -> Tensor:
    return (-0.5 * ((x - mean) / sd) ** 2).exp() / (sd * math.sqrt(2 * PI))


def _over(fn: Callable[[Tensor], Tensor], lower: float, upper: float, truth: float) -> Case:
    return Case(lambda **how: pc.integrate(fn, lower, upper, **how), truth)


def _under(fn: Callable[[Tensor], Tensor], dist: td.Distribution, truth: float) -> Case:
    return Case(lambda **how: pc.expect(fn, dist, **how), truth)


def number(value: float) -> Tensor:
    """A float64 scalar."""
    return torch.tensor(value, dtype=torch.float64)


def hard_integrals(dice: Dice) -> dict[str, Case]:
    """List I: needles, singular ends, divergence, NaN, oscillation, jumps."""
    c = dice.between(0.05, 0.95)
    s = dice.decades(5e-5, 1e-3)
    wide = dice.decades(2e-4, 1e-2)
    far = dice.between(300, 3000)
    edge = dice.between(0.1, 0.9)
    teeth = round(dice.between(20, 120))
    w = round(dice.between(500, 2000))
    a = dice.between(0.3, 0.95)
    big = dice.between(800, 2000)
    high = dice.decades(1e3, 1e4)
    width = dice.decades(1e-8, 1e-3)
    growth = dice.between(3, 6)
    top = math.floor(teeth / 2) / teeth
    return {
        "needle": _over(lambda x: _normal(x, c, s), 0, 1, 1.0),
        "needle on a floor": _over(lambda x: 1 + 0.1 * _normal(x, c, wide), 0, 1, 1.1),
        "normal far out": _over(lambda x: _normal(x, far, 1), -INF, INF, 1.0),
        "its mean": _over(lambda x: x * _normal(x, far, 1), -INF, INF, far),
        "sliver at the left": _over(lambda x: (x <= 0).double(), -1, high, 1.0),
        "Gauss to the left of far": _over(lambda x: (-x * x).exp(), -INF, high, math.sqrt(PI)),
        "aliased sine": _over(lambda x: (w * PI * x).sin() ** 2, 0, 1, 0.5),
        "x^-a": _over(lambda x: x**-a, 0, 1, 1 / (1 - a)),
        "x^-0.999": _over(lambda x: x**-0.999, 0, 1, 1000.0),
        "(1-x)^-a": _over(lambda x: (1 - x) ** -a, 0, 1, 1 / (1 - a)),
        "|x-c|^-a": _over(
            lambda x: (x - c).abs() ** -a, 0, 1, (c ** (1 - a) + (1 - c) ** (1 - a)) / (1 - a)
        ),
        "1/x": _over(lambda x: 1 / x, 0, 1, INF),
        "1/x across": _over(lambda x: 1 / x, -1, 1, NAN),
        "1/(x-c)": _over(lambda x: 1 / (x - c), 0, 1, NAN),
        "(x-c)^-2": _over(lambda x: (x - c) ** -2, 0, 1, INF),
        "1/(1+x)": _over(lambda x: 1 / (1 + x), 0, INF, INF),
        "x/(1+x²)": _over(lambda x: x / (1 + x * x), -INF, INF, NAN),
        "sin x / x": _over(lambda x: x.sin() / x, 0, INF, PI / 2),
        "sin 1/x": _over(lambda x: (1 / x).sin(), 0, 1, 0.50406706190692837199),
        "jump": _over(lambda x: (x > edge).double(), 0, 1, 1 - edge),
        "kink": _over(lambda x: (x - edge).abs(), 0, 1, (edge**2 + (1 - edge) ** 2) / 2),
        "kink on a node": _over(lambda x: (x - 1 / 16).abs(), 0, 1, (1 + 15**2) / 512),
        "log": _over(torch.log, 0, 1, -1.0),
        "1/(x log²x)": _over(lambda x: 1 / (x * x.log() ** 2), 0, 0.5, 1 / math.log(2)),
        "NaN at a point": _over(lambda x: x.sin() / x, -1, 1, 1.8921661407343660),
        "NaN on half": _over(lambda x: (x - edge).sqrt(), 0, 1, NAN),
        "NaN on a sliver": _over(lambda x: torch.where((x - c).abs() < 1e-4, NAN, x), 0, 1, NAN),
        "e^ax, overflowing": Case(
            lambda **how: pc.log_expect(
                lambda x: big * x, td.Uniform(number(0.0), number(1.0)), **how
            ),
            big - math.log(big),
        ),
        "Cantor": _over(_cantor, 0, 1, 0.5),
        "Lorentz": _over(
            lambda x: 1 / (1 + ((x - c) / width) ** 2),
            0,
            1,
            width * (math.atan((1 - c) / width) + math.atan(c / width)),
        ),
        "x²⁰ φ": _over(lambda x: x**20 * _normal(x, 0, 1), -INF, INF, 654729075.0),
        "e^ax φ": _over(
            lambda x: (growth * x - x * x / 2).exp() / math.sqrt(2 * PI),
            -INF,
            INF,
            math.exp(growth**2 / 2),
        ),
        "teeth": _over(lambda x: (teeth * x).floor() % 2, 0, 1, top),
        "two scales": _over(
            lambda x: (-x).exp() + 0.1 * (-x / high**2).exp() / high**2, 0, INF, 1.1
        ),
        "normal at 1e6": _over(lambda x: _normal(x, 1e6, 1), -INF, INF, 1.0),
        "zero but for a needle": _over(lambda x: _normal(x, c, 1e-7), 0, 1, 1.0),
        "slow tail": _over(lambda x: (1 + x) ** (-1 - width), 0, INF, 1 / width),
        "alternating end": _over(lambda x: (1 / x).cos() / x, 0, 1, -0.33740392290096813),
    }


def _cantor(x: Tensor) -> Tensor:
    value, scale, alive = torch.zeros_like(x), 0.5, torch.ones_like(x, dtype=torch.bool)
    for _ in range(40):
        digit = (3 * x).floor().clamp(max=2)
        x = 3 * x - digit
        value = value + torch.where(alive, torch.where(digit >= 1, scale, 0.0), 0.0)
        alive = alive & (digit != 1)
        scale *= 0.5
    return value


def hard_expectations(dice: Dice) -> dict[str, Case]:
    """List E: growth, heavy tails, rare events, discrete ones that do not decay."""
    a, t = dice.between(2, 6), dice.between(5, 9)
    heavy, light = dice.between(1.05, 1.5), dice.between(0.5, 0.99)
    place, scale = dice.decades(1e2, 1e6), dice.decades(1e-3, 1)
    shape = dice.between(1.2, 3)
    weight = dice.decades(1e-8, 1e-3)
    z = td.Normal(number(0.0), number(1.0))
    beyond = 0.5 * math.erfc(t / math.sqrt(2))
    mixture = td.MixtureSameFamily(
        td.Categorical(torch.tensor([1 - weight, weight], dtype=torch.float64)),
        td.Normal(
            torch.tensor([0.0, place], dtype=torch.float64),
            torch.tensor([1.0, scale], dtype=torch.float64),
        ),
    )
    return {
        "e^aZ": _under(lambda x: (a * x).exp(), z, math.exp(a * a / 2)),
        "Z²⁰": _under(lambda x: x**20, z, 654729075.0),
        "P(Z > t)": _under(lambda x: (x > t).double(), z, beyond),
        "Pareto mean": _under(
            lambda x: x, td.Pareto(number(1.0), number(heavy)), heavy / (heavy - 1)
        ),
        "Pareto, no mean": _under(lambda x: x, td.Pareto(number(1.0), number(light)), INF),
        "Cauchy mean": _under(lambda x: x, td.Cauchy(number(place), number(scale)), NAN),
        "t variance": _under(
            lambda x: x * x, td.StudentT(number(2 + scale / 2)), (2 + scale / 2) / (scale / 2)
        ),
        "t(2) variance": _under(lambda x: x * x, td.StudentT(number(2.0)), INF),
        "St Petersburg": _under(lambda k: 2.0**k, td.Geometric(number(0.5)), INF),
        "1/x, gamma": _under(
            lambda x: 1 / x, td.Gamma(number(shape), number(1.0)), 1 / (shape - 1)
        ),
        "1/x, exponential": _under(lambda x: 1 / x, td.Exponential(number(1.0)), INF),
        "narrow": _under(lambda x: x, td.Normal(number(place), number(scale)), place),
        "rare component": _under(lambda x: (x > place / 2).double(), mixture, weight),
        "e^Z²/3": _under(lambda x: (x * x / 3).exp(), z, math.sqrt(3)),
        "e^Z²": _under(lambda x: (x * x).exp(), z, INF),
        "log of negatives": _under(torch.log, z, NAN),
        "log x, gamma(.05)": _under(
            torch.log, td.Gamma(number(0.05), number(1.0)), -20.49784499129987
        ),
        "Poisson, a^k": _under(
            lambda k: a**k, td.Poisson(number(shape)), math.exp(shape * (a - 1))
        ),
        "geometric, no mean": _under(lambda k: 1.5**k, td.Geometric(number(1 / 3)), INF),
        "harmonic mean": Case(_harmonic, -21.2772223592),
    }


def _harmonic(**how: Any) -> pc.Estimate:
    """Evidence of twenty observations with mean 1.7 of N(x, 1) under x ~ N(0, 1), as a log."""
    y = 1.7 * torch.ones(20, dtype=torch.float64)

    def log_likelihood(x: Tensor) -> Tensor:
        return -0.5 * (y - x[..., None]).square().sum(-1) - 10 * math.log(2 * PI)

    return pc.log_expect(log_likelihood, td.Normal(number(0.0), number(1.0)), **how)


def controls(dice: Dice) -> dict[str, Case]:
    """What anybody gets right, and nobody should be warned of."""
    a, b, c = dice.between(0.5, 3), dice.between(0.5, 3), dice.between(-1, 1)
    s = dice.decades(0.1, 10)
    n = td.Normal(number(c), number(s))
    gamma = td.Gamma(number(a), number(b))
    beta = td.Beta(number(a), number(b))
    root = math.sqrt(2) * s
    return {
        "polynomial": _over(lambda x: x**5 - a * x, 0, 1, 1 / 6 - a / 2),
        "exponential": _over(lambda x: (a * x).exp(), 0, 1, math.expm1(a) / a),
        "sine": _over(lambda x: (a * x).sin(), 0, PI, (1 - math.cos(a * PI)) / a),
        "cosine to zero": _over(torch.cos, 0, PI, 0.0),
        "Runge": _over(lambda x: 1 / (1 + 25 * x * x), -1, 1, 0.4 * math.atan(5)),
        "Gauss": _over(lambda x: (-a * x * x).exp(), -INF, INF, math.sqrt(PI / a)),
        "shifted Gauss": _over(lambda x: _normal(x, c, s), -INF, INF, 1.0),
        "half Gauss": _over(lambda x: _normal(x, 0, s), 0, INF, 0.5),
        "decay": _over(lambda x: (-a * x).exp(), 0, INF, 1 / a),
        "decay from a": _over(lambda x: (-x).exp(), a, INF, math.exp(-a)),
        "Cauchy": _over(lambda x: a / (PI * (a * a + x * x)), -INF, INF, 1.0),
        "square root": _over(torch.sqrt, 0, 1, 2 / 3),
        "inverse root": _over(lambda x: x**-0.5, 0, 1, 2.0),
        "logarithm": _over(torch.log1p, 0, 1, 2 * math.log(2) - 1),
        "kink": _over(lambda x: (x - 0.3).abs(), 0, 1, 0.29),
        "damped": _over(lambda x: (-x).exp() * x.sin(), 0, INF, 0.5),
        "arctangent": _over(torch.atan, 0, 1, PI / 4 - math.log(2) / 2),
        "reversed": _over(torch.exp, 1, 0, 1 - math.e),
        "logistic": _over(lambda x: torch.sigmoid(x) * torch.sigmoid(-x), -INF, INF, 1.0),
        "odd": _over(lambda x: x**3 + c, -1, 1, 2 * c),
        "E x": _under(lambda x: x, n, c),
        "E x²": _under(lambda x: x * x, n, c * c + s * s),
        "E sin": _under(torch.sin, n, math.sin(c) * math.exp(-s * s / 2)),
        "P(x > 0)": _under(lambda x: (x > 0).double(), n, 0.5 * math.erfc(-c / root)),
        "E e^x/s": _under(lambda x: (x / s).exp(), n, math.exp(c / s + 0.5)),
        "gamma mean": _under(lambda x: x, gamma, a / b),
        "gamma log": _under(torch.log, gamma, float(torch.digamma(number(a))) - math.log(b)),
        "beta mean": _under(lambda x: x, beta, a / (a + b)),
        "Poisson": _under(lambda k: k * k, td.Poisson(number(a)), a + a * a),
        "binomial": _under(lambda k: k, td.Binomial(10, number(0.3)), 3.0),
        "Bernoulli": _under(lambda k: k, td.Bernoulli(number(0.3)), 0.3),
        "geometric": _under(lambda k: k, td.Geometric(number(0.3)), 7 / 3),
        "Laplace": _under(torch.abs, td.Laplace(number(0.0), number(s)), s),
        "uniform": _under(torch.exp, td.Uniform(number(0.0), number(a)), math.expm1(a) / a),
        "t": _under(lambda x: x * x, td.StudentT(number(5.0)), 5 / 3),
    }
