"""Integrals over boxes with exact values: Genz (1984) and others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from math import prod

import mpmath as mp
import torch
from torch import Tensor

# the sum of the difficulties, by family
TOTALS = {
    "oscillatory": 9.0,
    "product peak": 7.25,
    "corner peak": 1.85,
    "Gaussian": 7.03,
    "continuous": 20.4,
    "discontinuous": 4.3,
}
SMOOTH = ("oscillatory", "product peak", "corner peak", "Gaussian")


def integrand(family: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """f(x, c, w) for points ``(n, *batch, d)``."""
    return {
        "oscillatory": lambda x, c, w: (2 * math.pi * w[..., 0] + (c * x).sum(-1)).cos(),
        "product peak": lambda x, c, w: (1 / (c**-2 + (x - w) ** 2)).prod(-1),
        "corner peak": lambda x, c, w: (1 + (c * x).sum(-1)) ** (-x.shape[-1] - 1.0),
        "Gaussian": lambda x, c, w: (-(c**2 * (x - w) ** 2).sum(-1)).exp(),
        "continuous": lambda x, c, w: (-(c * (x - w).abs()).sum(-1)).exp(),
        "discontinuous": lambda x, c, w: torch.where(
            (x[..., :2] <= w[..., :2]).all(-1), (c * x).sum(-1).exp(), 0.0
        ),
    }[family]


def exact(family: str, c: Tensor, w: Tensor) -> float:
    """Its integral over the unit cube."""
    c, w = c.tolist(), w.tolist()
    pairs = list(zip(c, w, strict=True))
    if family == "oscillatory":
        return math.cos(2 * math.pi * w[0] + sum(c) / 2) * prod(2 * math.sin(a / 2) / a for a in c)
    if family == "product peak":
        return prod(a * (math.atan(a * (1 - b)) + math.atan(a * b)) for a, b in pairs)
    if family == "corner peak":
        with mp.workdps(40):
            total = sum(
                mp.mpf(-1) ** sum(s) / (1 + sum(mp.mpf(a) * i for a, i in zip(c, s, strict=True)))
                for s in itertools.product((0, 1), repeat=len(c))
            )
            return float(total / (mp.factorial(len(c)) * prod(map(mp.mpf, c))))
    if family == "Gaussian":
        root = math.sqrt(math.pi)
        return prod(root / (2 * a) * (math.erf(a * (1 - b)) + math.erf(a * b)) for a, b in pairs)
    if family == "continuous":
        return prod((2 - math.exp(-a * b) - math.exp(-a * (1 - b))) / a for a, b in pairs)
    inner = prod(math.expm1(a * b) / a for a, b in pairs[:2])
    return inner * prod(math.expm1(a) / a for a in c[2:])


def drawn(family: str, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random difficulties with the family's total, and shifts."""
    c, w = torch.rand(2, d, generator=generator, dtype=torch.float64)
    return c * TOTALS[family] / c.sum(), w


# difficulties (1, 2, 3) and shifts (0.3, 0.6, 0.45)
GOLDEN = {
    "oscillatory": 0.09213166164094051,
    "product peak": 16.44658028227527,
    "corner peak": 0.01084656084656085,
    "Gaussian": 0.3712116036042137,
    "continuous": 0.245947155166921,
    "discontinuous": 2.581997487016823,
}
