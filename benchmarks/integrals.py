"""Integrals: many at once, one easy one, and boxes; against SciPy and quadax."""

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
from benchmarks import boxes
from benchmarks.harness import Case, Clocked, Contestant, Scores

NOTES = (
    "`worst error` is relative to the exact value, over all integrals of the case; `unconverged` "
    "is the share that the method itself reports as such.",
    "10,000 integrals: normal densities over [0, 1], places uniform, sds log-uniform from 1e-4 "
    "to 1, at rtol 1e-8. The loop over `quad` calls the same torch function 200 times and is "
    "scaled up.",
    "Boxes: random instances of Genz's families (difficulties as usual) one after the other, or "
    f"all at once, at rtol {boxes.RTOL:g}; errors are relative to the exact values. SciPy stops "
    "at 2,000 subdivisions; it is asked neither in five dimensions, where Genz–Malik was 400 to "
    "2,600 times slower than we, nor for the rough families in three, where one integral takes "
    "it minutes. By hand: the lowest order that is enough, found beforehand.",
    "`worst bar` is the largest error bar, `outside the bar` the share of errors that are neither "
    "within it nor within the tolerance, `unconverged` the share that is flagged.",
    "Normals: E[x²]. The last row is what writing and reading points and values once would take, "
    "at the speed of a copy in memory.",
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
_NORMALS, _NODES = 1_000_000, 20


def cases(device: str) -> list[Case]:
    """Batches, scalars, boxes."""
    cubes = boxes.cases() if device == "cpu" else []
    return [_many(device), _normals(device), *(_one(name, device) for name in _SCALARS), *cubes]


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


def _normals(device: str) -> Case:
    """Gauss–Hermite expectations of many normals, beside the traffic that they cannot avoid."""
    generator = torch.Generator().manual_seed(1)
    u, v = torch.rand(2, _NORMALS, generator=generator, dtype=torch.float64)
    mean, sd = u.to(device), (0.5 + v).to(device)
    dist = torch.distributions.Normal(mean, sd, validate_args=False)
    rule = pc.GaussQuadrature(_NODES)
    x, w = np.polynomial.hermite_e.hermegauss(_NODES)
    x = torch.from_numpy(x).to(device)
    w = torch.from_numpy(w / w.sum()).to(device)
    table = torch.rand(_NODES, _NORMALS, generator=generator, dtype=torch.float64).to(device)
    copy = torch.empty_like(table)
    exact = (mean**2 + sd**2).cpu().numpy()

    def fn(x: Tensor, *_: Tensor) -> Tensor:
        return x * x

    def traffic(seed: int) -> None:
        # points written, read, values written, read: two copies of the table
        copy.copy_(table)
        copy.copy_(table)

    def score(value: Tensor) -> Scores:
        return {"worst error": float(np.max(np.abs(value.cpu().numpy() / exact - 1)))}

    return Case(
        f"{_NORMALS:,} normals, {_NODES} nodes",
        [
            Contestant(
                "probcalc, batch in `args`",
                lambda seed: pc.expect(fn, dist, args=(mean,), method=rule).value,
                score=score,
            ),
            Contestant(
                "probcalc, function of draws alone",
                lambda seed: pc.expect(fn, dist, method=rule).value,
                score=score,
            ),
            Contestant(
                "by hand: w @ f(mean + sd * x)",
                lambda seed: w @ fn(mean + sd * x[:, None]),
                score=score,
            ),
            Contestant("memory traffic of points and values, written and read", traffic),
        ],
    )
