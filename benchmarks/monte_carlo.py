"""Random methods against vegas, QMCPy and SciPy at equal achieved error, and long streams.

Before anything is timed, each contestant's setting (points, draws or tolerance) is doubled until
its errors over some seeds have a root mean square within the target; that setting is raced.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import integrate as si
from scipy import special, stats
from torch import Tensor
from torch import distributions as td

import probcalc as pc
from benchmarks import boxes
from benchmarks.harness import Case, Contestant, Scores, Skipped

try:
    import qmcpy
except ImportError:
    qmcpy = None
try:
    import gvar
    import vegas
except ImportError:
    vegas = None

NOTES = (
    "Genz's families with the usual difficulties, Keister's integral E cos‖X‖ for X ~ N(0, I/2), "
    "and an arithmetic Asian call over 16 dates (S₀ = K = 100, r = 5 %, σ = 50 %, one year).",
    "The setting of each contestant is the cheapest of a ladder whose errors over five seeds have "
    "a root mean square within the target, a relative error of 1e-4 (rough families and the "
    "option 1e-3); it is out if none is found within six seconds. `error` is that of the last "
    "seed raced.",
    "probcalc, defaults: `integrate` or `expect` with a tolerance, which choose a deterministic "
    "rule where one will do. NumPy functions for the peers, torch's for us.",
    "Streams: 2²⁸ draws of a standard normal in single precision. The loop is "
    "`fn(torch.randn(chunk)).sum()` with chunks of 2¹⁸.",
)
TARGET = 1e-4
_ROUGH_TARGET = 1e-3
_SEEDS = 5
_PATIENCE = 6.0  # seconds for finding a setting, after which a contestant is out
_STREAM = 2**28
_CHUNK = 2**18


@dataclass(frozen=True)
class Problem:
    """An integral over the unit cube or under a normal distribution.

    Args:
        name: Of the case.
        dim: Of the cube.
        numpy: f(u) of points ``(n, d)`` of the unit cube.
        ours: Estimates the integral with keywords.
        truth: The exact value.
        target: Relative error to reach.
    """

    name: str
    dim: int
    numpy: Callable[[np.ndarray], np.ndarray]
    ours: Callable[..., pc.Estimate]
    truth: float
    target: float = TARGET


def cases(device: str) -> list[Case]:
    """Integrals, then streams."""
    raced = [_raced(problem) for problem in problems()] if device == "cpu" else []
    return [*raced, *(_stream(name, device) for name in _STREAMED)]


def problems() -> list[Problem]:
    """Genz's families in 3, 6 and 10 dimensions, Keister's integral, an Asian option."""
    families = (*boxes.TOTALS, *boxes.ROUGH)
    genz = [_genz(family, d) for d in (3, 6, 10) for family in families]
    return [*genz, _keister(5), _asian(16)]


def _genz(family: str, d: int) -> Problem:
    generator = torch.Generator().manual_seed(d)
    total = (boxes.TOTALS | boxes.ROUGH)[family]
    c, w = torch.rand(2, d, generator=generator, dtype=torch.float64)
    c = c * total / c.sum()
    f, lower = boxes.integrand(family), torch.zeros(d, dtype=torch.float64)

    def ours(**how: Any) -> pc.Estimate:
        return pc.integrate(f, lower, lower + 1, args=(c, w), event_dim=1, **how)

    def of_numpy(u: np.ndarray) -> np.ndarray:
        return f(torch.from_numpy(np.ascontiguousarray(u)), c, w).numpy()

    target = _ROUGH_TARGET if family in boxes.ROUGH else TARGET
    return Problem(f"{family}, d = {d}", d, of_numpy, ours, boxes.exact(family, c, w), target)


def _keister(d: int) -> Problem:
    dist = td.Independent(td.Normal(torch.zeros(d, dtype=torch.float64), 0.5**0.5), 1)
    r = np.linspace(0, 12, 200_001)
    # the radius of N(0, I/2) has density proportional to r^(d − 1) e^(−r²)
    density = r ** (d - 1) * np.exp(-r * r)
    truth = si.simpson(np.cos(r) * density, x=r) / si.simpson(density, x=r)

    def of_numpy(u: np.ndarray) -> np.ndarray:
        x = special.ndtri(np.clip(u, 1e-16, 1 - 1e-16)) * 0.5**0.5
        return np.cos(np.sqrt((x * x).sum(-1)))

    def ours(**how: Any) -> pc.Estimate:
        return pc.expect(lambda x: x.norm(dim=-1).cos(), dist, **how)

    return Problem(f"Keister, d = {d}", d, of_numpy, ours, float(truth))


def _asian(d: int) -> Problem:
    t = torch.arange(1, d + 1, dtype=torch.float64) / d
    covariance = torch.minimum(t[:, None], t)
    dist = td.MultivariateNormal(torch.zeros(d, dtype=torch.float64), covariance)
    root = _principal(covariance.numpy())
    drift = (0.05 - 0.5 * 0.5**2) * t

    def payoff(b: Tensor) -> Tensor:
        paths = 100.0 * (drift + 0.5 * b).exp()
        return math.exp(-0.05) * (paths.mean(-1) - 100.0).clamp(min=0.0)

    def of_numpy(u: np.ndarray) -> np.ndarray:
        z = special.ndtri(np.clip(u, 1e-16, 1 - 1e-16))
        paths = 100.0 * np.exp(drift.numpy() + 0.5 * z @ root.T)
        return math.exp(-0.05) * np.maximum(paths.mean(-1) - 100.0, 0.0)

    def ours(**how: Any) -> pc.Estimate:
        return pc.expect(payoff, dist, **how)

    points = [stats.qmc.Sobol(d, seed=seed).random_base2(18) for seed in range(16)]
    truth = float(np.mean([of_numpy(u).mean() for u in points]))
    return Problem(f"Asian call, d = {d}", d, of_numpy, ours, truth, target=_ROUGH_TARGET)


def _principal(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values))[:, ::-1]


Solver = Callable[[Any, int], float]  # of a setting and a seed


def _raced(problem: Problem) -> Case:
    """Everybody with the cheapest setting that is accurate enough."""
    entries: dict[str, tuple[Solver, Iterable[Any]] | str] = {
        "probcalc, defaults": (_ours(problem, None), _tolerances()),
        "probcalc.QuasiMonteCarlo": (_ours(problem, pc.QuasiMonteCarlo()), _tolerances()),
        "probcalc.Vegas": (_ours(problem, pc.Vegas()), _tolerances()),
        "scipy.stats.qmc_quad, Sobol, 8 estimates": (_qmc_quad(problem), _sizes(6, 20)),
        "QMCPy, CubQMCNetG": (_qmcpy(problem), _tolerances()) if qmcpy else "not installed",
        "vegas, 5 + 10 iterations": (_vegas(problem), _sizes(8, 19)) if vegas else "not installed",
    }
    contestants: list[Contestant | Skipped] = []
    for name, entry in entries.items():
        if isinstance(entry, str):
            contestants.append(Skipped(name, entry))
            continue
        solve, ladder = entry
        setting = _cheapest(solve, ladder, problem)
        if setting is None:
            contestants.append(Skipped(name, f"not within {_PATIENCE:g} s of looking"))
        else:
            contestants.append(_contestant(name, solve, setting, problem.truth))
    return Case(f"{problem.name}, to {problem.target:g}", contestants)


def _contestant(name: str, solve: Solver, setting: Any, truth: float) -> Contestant:
    return Contestant(
        name,
        lambda seed: solve(setting, seed),
        state=f"setting {setting:g}",
        score=lambda value: {"error": abs(value / truth - 1)},
    )


def _tolerances() -> Iterable[float]:
    return (2.0**-k for k in range(5, 30))


def _sizes(first: int, last: int) -> Iterable[int]:
    return (2**k for k in range(first, last + 1))


def _cheapest(solve: Solver, ladder: Iterable[Any], problem: Problem) -> Any:
    start = time.perf_counter()
    for setting in ladder:
        if time.perf_counter() - start > _PATIENCE:
            return None
        values = np.array([solve(setting, seed) for seed in range(_SEEDS)])
        if math.sqrt(np.mean((values / problem.truth - 1) ** 2)) <= problem.target:
            return setting
    return None


def _ours(problem: Problem, method: Any) -> Solver:
    def solve(rtol: float, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pc.EstimateWarning)
            found = problem.ours(method=method, rtol=rtol, generator=generator, max_evals=2**23)
        return float(found.value)

    return solve


def _qmc_quad(problem: Problem) -> Solver:
    def solve(n: int, seed: int) -> float:
        engine = stats.qmc.Sobol(problem.dim, seed=seed)
        return float(
            si.qmc_quad(
                lambda u: problem.numpy(u.T),
                np.zeros(problem.dim),
                np.ones(problem.dim),
                n_points=n,
                qrng=engine,
            ).integral
        )

    return solve


def _qmcpy(problem: Problem) -> Solver:
    def solve(tolerance: float, seed: int) -> float:
        net = qmcpy.DigitalNetB2(problem.dim, seed=seed)
        integrand = qmcpy.CustomFun(qmcpy.Uniform(net), g=problem.numpy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = qmcpy.CubQMCNetG(integrand, abs_tol=0.0, rel_tol=tolerance).integrate()[0]
        return float(np.squeeze(found))

    return solve


def _vegas(problem: Problem) -> Solver:
    def solve(n: int, seed: int) -> float:
        gvar.ranseed(seed)
        f = vegas.lbatchintegrand(problem.numpy)
        integrator = vegas.Integrator([[0.0, 1.0]] * problem.dim)
        integrator(f, nitn=5, neval=n)
        return float(integrator(f, nitn=10, neval=n).mean)

    return solve


# name -> (function, value)
_STREAMED: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "x²": (lambda x: x * x, 1.0),
    "a function that costs as much as the draw": (
        lambda x: (x.sin() * x.cos()).exp().atan(),
        math.nan,
    ),
}


def _stream(name: str, device: str) -> Case:
    fn, exact = _STREAMED[name]
    dist = td.Normal(torch.zeros((), device=device), torch.ones((), device=device))

    def ours(seed: int) -> float:
        return float(pc.expect(fn, dist, method=pc.MonteCarlo(_STREAM)).value)

    def loop(seed: int) -> float:
        total = 0.0
        for _ in range(_STREAM // _CHUNK):
            total += float(fn(torch.randn(_CHUNK, device=device)).sum())
        return total / _STREAM

    def score(value: float) -> Scores:
        return {} if math.isnan(exact) else {"error": abs(value / exact - 1)}

    return Case(
        f"2²⁸ draws, {name}",
        [
            Contestant("probcalc.MonteCarlo, with bar and tail check", ours, score=score),
            Contestant("bare loop: fn(torch.randn(chunk)).sum()", loop, score=score),
        ],
    )
