"""One-dimensional integrals with exact values, by the kind of trouble that they make."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

INF = math.inf
PI = math.pi


@dataclass(frozen=True)
class Integral:
    """∫ fn over [lower, upper], and places where the integrand is rough."""

    fn: Callable[[Tensor], Tensor]
    lower: float
    upper: float
    exact: float
    breaks: tuple[float, ...] | None = None


def _normal(x: Tensor, mean: float, sd: float) -> Tensor:
    return (-0.5 * ((x - mean) / sd) ** 2).exp() / (sd * math.sqrt(2 * PI))


SMOOTH = {
    "t ln(1 + t)": Integral(lambda t: t * t.log1p(), 0, 1, 0.25),
    "t² arctan t": Integral(lambda t: t**2 * t.atan(), 0, 1, (PI - 2 + 2 * math.log(2)) / 12),
    "eᵗ cos t": Integral(lambda t: t.exp() * t.cos(), 0, PI / 2, (math.exp(PI / 2) - 1) / 2),
    "arctan √(2 + t²)": Integral(
        lambda t: (2 + t**2).sqrt().atan() / ((1 + t**2) * (2 + t**2).sqrt()),
        0,
        1,
        5 * PI**2 / 96,
    ),
    "polynomial": Integral(lambda t: t**5 - 3 * t**2 + 1, -1, 2, 63 / 6 - 9 + 3),
    "Runge": Integral(lambda t: 1 / (1 + 25 * t**2), -1, 1, 0.4 * math.atan(5)),
    "constant": Integral(torch.ones_like, -3, 5, 8.0),
    "cosine, zero in all": Integral(torch.cos, 0, PI, 0.0),
    "sinc, whose node is 0/0": Integral(lambda t: t.sin() / t, -1, 1, 1.8921661407343660),
    "reversed": Integral(torch.exp, 1, 0, 1 - math.e),
    "empty": Integral(torch.exp, 1, 1, 0.0),
}
SINGULAR = {
    "√t ln t": Integral(lambda t: t.sqrt() * t.log(), 0, 1, -4 / 9),
    "√(1 − t²)": Integral(lambda t: ((1 - t) * (1 + t)).sqrt(), 0, 1, PI / 4),
    "√t / √(1 − t²)": Integral(
        lambda t: t.sqrt() / ((1 - t) * (1 + t)).sqrt(),
        0,
        1,
        2 * math.sqrt(PI) * math.gamma(0.75) / math.gamma(0.25),
    ),
    "ln² t": Integral(lambda t: t.log() ** 2, 0, 1, 2.0),
    "ln t": Integral(torch.log, 0, 1, -1.0),
    "ln cos t": Integral(lambda t: t.cos().log(), 0, PI / 2, -PI * math.log(2) / 2),
    "√tan t": Integral(lambda t: t.tan().sqrt(), 0, PI / 2, PI * math.sqrt(2) / 2),
    "t^−½": Integral(lambda t: t**-0.5, 0, 1, 2.0),
    "t^−0.9": Integral(lambda t: t**-0.9, 0, 1, 10.0),
    "t^−0.99": Integral(lambda t: t**-0.99, 0, 1, 100.0),
    "t^−0.999": Integral(lambda t: t**-0.999, 0, 1, 1000.0),
    "both ends": Integral(lambda t: t**-0.25 * (1 - t) ** -0.75, 0, 1, PI * math.sqrt(2)),
    "1/(t ln² t)": Integral(lambda t: 1 / (t * t.log() ** 2), 0, 0.5, 1 / math.log(2)),
    "t^−½ e^−t": Integral(lambda t: t**-0.5 * (-t).exp(), 0, 1, math.sqrt(PI) * math.erf(1)),
    "ln |t − 0.7|": Integral(
        lambda t: (t - 0.7).abs().log(), 0, 1, 0.7 * math.log(0.7) + 0.3 * math.log(0.3) - 1
    ),
    "|t − 0.3|^−½": Integral(
        lambda t: (t - 0.3).abs() ** -0.5, 0, 1, 2 * (math.sqrt(0.3) + math.sqrt(0.7))
    ),
    "|t − 0.3|^−½, named": Integral(
        lambda t: (t - 0.3).abs() ** -0.5,
        0,
        1,
        2 * (math.sqrt(0.3) + math.sqrt(0.7)),
        (0.3,),
    ),
}
INFINITE = {
    "Gauss": Integral(lambda t: (-t * t).exp(), -INF, INF, math.sqrt(PI)),
    "Gauss to 1000": Integral(lambda t: (-t * t).exp(), -INF, 1000, math.sqrt(PI)),
    "Cauchy": Integral(lambda t: 1 / (1 + t * t), 0, INF, PI / 2),
    "e^−t/√t": Integral(lambda t: (-t).exp() / t.sqrt(), 0, INF, math.sqrt(PI)),
    "e^−t cos t": Integral(lambda t: (-t).exp() * t.cos(), 0, INF, 0.5),
    "e^−t sin 10t": Integral(lambda t: (-t).exp() * (10 * t).sin(), 0, INF, 10 / 101),
    "t^−1.01": Integral(lambda t: t**-1.01, 1, INF, 100.0),
    "(1 + t²)^−¾": Integral(
        lambda t: (1 + t * t) ** -0.75,
        -INF,
        INF,
        math.sqrt(PI) * math.gamma(0.25) / math.gamma(0.75),
    ),
    "t²⁰ φ": Integral(lambda t: t**20 * _normal(t, 0, 1), -INF, INF, 654729075.0),
    "e^5t φ": Integral(
        lambda t: (5 * t - t * t / 2).exp() / math.sqrt(2 * PI), -INF, INF, math.exp(12.5)
    ),
    "from minus infinity": Integral(torch.exp, -INF, 2, math.exp(2)),
}
LOCALISED = {
    "two peaks": Integral(
        lambda t: 1 / ((t - 0.3) ** 2 + 1e-2) + 1 / ((t - 0.9) ** 2 + 1e-4) - 6,
        0,
        1,
        10 * (math.atan(7) + math.atan(3)) + 100 * (math.atan(10) + math.atan(90)) - 6,
    ),
    "Lorentz, width 1e-6": Integral(
        lambda t: 1 / (1 + 1e12 * t * t), -1, 1, 2e-6 * math.atan(1e6)
    ),
    "normal, sd 1e-4": Integral(lambda t: _normal(t, 0.3, 1e-4), 0, 1, 1.0),
    "normal at 800": Integral(lambda t: _normal(t, 800, 1), -INF, INF, 1.0),
    "mean of normal at 800": Integral(lambda t: t * _normal(t, 800, 1), -INF, INF, 800.0),
    "normal(116, 3.81)": Integral(lambda t: _normal(t, 116, 3.81), 0, INF, 1.0),
    "needle on a floor": Integral(lambda t: 1 + _normal(t, 0.37, 1e-3), 0, 1, 2.0),
}
OSCILLATORY = {
    "cos(100 sin t)": Integral(lambda t: (100 * t.sin()).cos(), 0, PI, 0.06278740049149269566),
    "sin² 1024πt": Integral(lambda t: (1024 * PI * t).sin() ** 2, 0, 1, 0.5),
    "cos 200t": Integral(lambda t: (200 * t).cos(), 0, 1, math.sin(200) / 200),
}
PIECEWISE = {
    "jump": Integral(lambda t: (t > 1 / PI).double(), 0, 1, 1 - 1 / PI),
    "jump at a third": Integral(lambda t: (t < 1 / 3).double(), 0, 1, 1 / 3),
    "kink": Integral(lambda t: (t - 1 / 3).abs(), 0, 1, 5 / 18),
    "kink on a node": Integral(lambda t: (t - 1 / 16).abs(), 0, 1, (1 / 256 + (15 / 16) ** 2) / 2),
    "narrow step": Integral(lambda t: (t <= 0).double(), -1, 1e4, 1.0),
    "97 teeth": Integral(lambda t: (97 * t).floor() % 2, 0, 1, 48 / 97),
    "max of two": Integral(lambda t: torch.maximum(t.sin(), t.cos()), 0, PI / 2, math.sqrt(2)),
}
GOOD = {**SMOOTH, **SINGULAR, **INFINITE, **LOCALISED, **OSCILLATORY, **PIECEWISE}

# no value, or none that a rule can find: to be flagged, or given a bar that covers the truth
HARD = {
    "1/t": Integral(lambda t: 1 / t, 0, 1, INF),
    "1/t across": Integral(lambda t: 1 / t, -1, 1, math.nan),
    "1/t across, uneven": Integral(lambda t: 1 / t, -1, 2, math.nan),
    "t^−2": Integral(lambda t: t**-2, 0, 1, INF),
    "1/|t − 0.3|": Integral(lambda t: (t - 0.3).abs() ** -1, 0, 1, INF),
    "(t − 0.3)^−2": Integral(lambda t: (t - 0.3) ** -2, 0, 1, INF),
    "1/(1 + t)": Integral(lambda t: 1 / (1 + t), 0, INF, INF),
    "t/(1 + t²)": Integral(lambda t: t / (1 + t * t), -INF, INF, math.nan),
    "sin t to infinity": Integral(torch.sin, 0, INF, math.nan),
    "√t of negatives": Integral(torch.sqrt, -1, 1, math.nan),
    "NaN on a sliver": Integral(
        lambda t: torch.where((t - 0.5).abs() < 1e-4, math.nan, t), 0, 1, math.nan
    ),
    "sin(1/t)": Integral(lambda t: (1 / t).sin(), 0, 1, 0.50406706190692837199),
    "sin t / t": Integral(lambda t: t.sin() / t, 0, INF, PI / 2),
    "|t − 0.3|^−0.9": Integral(
        lambda t: (t - 0.3).abs() ** -0.9, 0, 1, 10 * (0.3**0.1 + 0.7**0.1)
    ),
    "zero": Integral(lambda t: 0 * t, 0, 1, math.nan),
    "normal at 1e6": Integral(lambda t: _normal(t, 1e6, 1), -INF, INF, 1.0),
}
