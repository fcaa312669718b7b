"""Integrals: many at once, one easy one, and boxes; against SciPy, with the error reached."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy import integrate as si
from scipy import special
from torch import Tensor

import probcalc as pc
from benchmarks.harness import Case, Clocked, Contestant, Scores

NOTES = (
    "`worst error` is relative to the exact value, over all integrals of the case; `unconverged` "
    "is the share that the method itself reports as such.",
    "10,000 integrals: normal densities over [0, 1], places uniform, sds log-uniform from 1e-4 "
    "to 1, at rtol 1e-8. The loop over `quad` calls the same torch function 200 times and is "
    "scaled up.",
    "Boxes: 8 random instances of each smooth Genz family (difficulties as usual) one after the "
    "other, at rtol 1e-6; their errors are against this library at rtol 1e-10.",
)
_MANY, _SOME = 10_000, 200
_SCALARS: dict[str, tuple[Callable[[Tensor], Tensor], float, float, float]] = {
    "exp(-x²) over [-1, 2]": (
        lambda x: (-x * x).exp(),
        -1.0,
        2.0,
        math.sqrt(math.pi) / 2 * (math.erf(2) + math.erf(1)),
    ),
    "exp(-x²) over the line": (lambda x: (-x * x).exp(), -math.inf, math.inf, math.sqrt(math.pi)),
    "sin x over [0, 1]": (torch.sin, 0.0, 1.0, 1 - math.cos(1)),
    "exp(-x) over [0, ∞)": (lambda x: (-x).exp(), 0.0, math.inf, 1.0),
    "1/(1 + 25x²) over [-1, 1]": (
        lambda x: 1 / (1 + 25 * x * x),
        -1.0,
        1.0,
        0.4 * math.atan(5),
    ),
    "√x over [0, 1]": (torch.sqrt, 0.0, 1.0, 2 / 3),
}
_GENZ_TOTALS = {"oscillatory": 9.0, "product peak": 7.25, "corner peak": 1.85, "Gaussian": 7.03}
_INSTANCES = 8


def cases(device: str) -> list[Case]:
    """Batches, scalars, boxes."""
    boxes = [_boxes(d) for d in (2, 3, 4, 5)] if device == "cpu" else []
    return [_many(device), *(_one(name, device) for name in _SCALARS), *boxes]


def _density(x: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    return (-0.5 * ((x - mean) / sd) ** 2).exp() / (sd * math.sqrt(2 * math.pi))


def _numpy_density(x: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * ((x - mean) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))


def _many(device: str) -> Case:
    generator = torch.Generator().manual_seed(0)
    u, v = torch.rand(2, _MANY, generator=generator, dtype=torch.float64)
    mean, sd = u.to(device), (10 ** (4 * v - 4)).to(device)
    lower, upper = torch.zeros_like(mean), torch.ones_like(mean)
    m, s = u.numpy(), (10 ** (4 * v - 4)).numpy()
    root = s * math.sqrt(2)
    exact = 0.5 * (special.erf((1 - m) / root) + special.erf(m / root))

    def ours(seed: int) -> pc.Estimate:
        return pc.integrate(_density, lower, upper, args=(mean, sd))

    def loop(seed: int) -> Clocked:
        start = time.perf_counter()
        values = [_quad(_density, 0.0, 1.0, mean[i].cpu(), sd[i].cpu()) for i in range(_SOME)]
        return Clocked((time.perf_counter() - start) * _MANY / _SOME, np.array(values))

    return Case(
        "10,000 integrals",
        [
            Contestant(
                "probcalc", ours, score=lambda e: _scored(e.value.cpu().numpy(), exact, e.ok)
            ),
            Contestant(
                "scipy.integrate.tanhsinh, vectorised",
                lambda seed: si.tanhsinh(_numpy_density, 0.0, 1.0, args=(m, s), rtol=1e-8),
                score=lambda r: _scored(r.integral, exact, r.success),
            ),
            Contestant(
                "scipy.integrate.quad in a loop",
                loop,
                score=lambda values: _scored(values, exact[:_SOME], True),
                warmups=0,
            ),
        ],
    )


def _scored(values: np.ndarray, exact: np.ndarray, converged: object) -> Scores:
    error = np.abs(values - exact) / np.abs(exact)
    return {
        "worst error": float(np.nanmax(error)),
        "unconverged": float(1 - np.mean(np.asarray(converged))),
    }


def _quad(fn: Callable[..., Tensor], lower: float, upper: float, *args: Tensor) -> float:
    def at(x: float) -> float:
        return float(fn(torch.tensor(x, dtype=torch.float64), *args))

    return si.quad(at, lower, upper, epsrel=1e-8, epsabs=0.0, limit=200, full_output=1)[0]


def _one(name: str, device: str) -> Case:
    fn, lower, upper, exact = _SCALARS[name]
    limits = lower, upper
    if device != "cpu":
        limits = tuple(torch.tensor(x, dtype=torch.float64, device=device) for x in limits)
    score = partial(_scored, exact=np.array(exact), converged=True)
    return Case(
        name,
        [
            Contestant(
                "probcalc",
                lambda seed: pc.integrate(fn, *limits),
                score=lambda e: score(e.value.cpu().numpy()),
                warmups=5,
            ),
            Contestant(
                "scipy.integrate.quad, the same torch function",
                lambda seed: _quad(fn, lower, upper),
                score=lambda value: score(np.array(value)),
                warmups=5,
            ),
        ],
    )


def _genz(family: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return {
        "oscillatory": lambda x, c, w: (2 * math.pi * w[0] + x @ c).cos(),
        "product peak": lambda x, c, w: (1 / (c**-2 + (x - w) ** 2)).prod(-1),
        "corner peak": lambda x, c, w: (1 + x @ c) ** (-x.shape[-1] - 1.0),
        "Gaussian": lambda x, c, w: (-(c**2 * (x - w) ** 2).sum(-1)).exp(),
    }[family]


def _boxes(d: int) -> Case:
    generator = torch.Generator().manual_seed(d)
    instances = []
    for family, total in _GENZ_TOTALS.items():
        for _ in range(_INSTANCES):
            c, w = torch.rand(2, d, generator=generator, dtype=torch.float64)
            instances.append((_genz(family), c * total / c.sum(), w))
    lower, upper = torch.zeros(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64)

    def ours(seed: int) -> list[float]:
        return [
            float(pc.integrate(fn, lower, upper, args=(c, w), event_dim=1, rtol=1e-6).value)
            for fn, c, w in instances
        ]

    def peer(rule: str, seed: int) -> list[float]:
        def one(fn: Callable[..., Tensor], c: Tensor, w: Tensor) -> float:
            def at(x: np.ndarray) -> np.ndarray:
                return fn(torch.from_numpy(x), c, w).numpy()

            solved = si.cubature(
                at, np.zeros(d), np.ones(d), rule=rule, rtol=1e-6, atol=0.0, max_subdivisions=2000
            )
            return float(solved.estimate)

        return [one(*instance) for instance in instances]

    rules = ("genz-malik", "gk21") if d < 4 else ("genz-malik",)
    reference = np.array(
        [
            float(pc.integrate(f, lower, upper, args=(c, w), event_dim=1, rtol=1e-10).value)
            for f, c, w in instances
        ]
    )
    score = partial(_scored, exact=reference, converged=True)
    return Case(
        f"{len(instances)} smooth boxes, d = {d}",
        [
            Contestant("probcalc", ours, score=lambda v: score(np.array(v))),
            *(
                Contestant(
                    f"scipy.integrate.cubature, {rule}",
                    partial(peer, rule),
                    score=lambda v: score(np.array(v)),
                    warmups=0,
                )
                for rule in rules
            ),
        ],
    )
