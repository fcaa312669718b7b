"""Genz's families over unit cubes, against SciPy and quadax, at equal tolerance."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from mpmath import mp
from scipy import integrate as si
from torch import Tensor

import probcalc as pc
from benchmarks import quadax_cubature
from benchmarks.harness import Case, Contestant, Scores, Skipped

RTOL = 1e-6
TOTALS = {"oscillatory": 9.0, "product peak": 7.25, "corner peak": 1.85, "Gaussian": 7.03}
ROUGH = {"continuous": 20.4, "discontinuous": 4.3}
_INSTANCES = {2: 8, 3: 8, 4: 4, 5: 4}
_SUBDIVISIONS = 2000  # of SciPy, which would go on for minutes
_DIGITS = 40
_TOGETHER = 64  # boxes of a batch


def cases() -> list[Case]:
    """Smooth families in 2 to 5 dimensions, one by one and in batches, rough ones in 2 and 3."""
    smooth = [_case(family, d) for d in _INSTANCES for family in TOTALS]
    batches = [_batch(family, d) for d in _INSTANCES for family in TOTALS]
    return [*smooth, *batches, *(_case(family, d) for d in (2, 3) for family in ROUGH)]


def integrand(family: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """f(x, c, w) of points ``(n, d)``, or of points ``(n, k, d)`` and parameters ``(k, d)``."""
    return {
        "oscillatory": lambda x, c, w: (2 * math.pi * w[..., 0] + _along(x, c)).cos(),
        "product peak": lambda x, c, w: (1 / (c**-2 + (x - w) ** 2)).prod(-1),
        "corner peak": lambda x, c, w: (1 + _along(x, c)) ** (-x.shape[-1] - 1.0),
        "Gaussian": lambda x, c, w: (-(c**2 * (x - w) ** 2).sum(-1)).exp(),
        "continuous": lambda x, c, w: (-(c * (x - w).abs()).sum(-1)).exp(),
        "discontinuous": lambda x, c, w: torch.where(
            (x[..., :2] <= w[..., :2]).all(-1), _along(x, c).exp(), 0.0
        ),
    }[family]


def _along(x: Tensor, c: Tensor) -> Tensor:
    return x @ c if c.ndim == 1 else (x * c).sum(-1)


def exact(family: str, c: Tensor, w: Tensor) -> float:
    """Genz (1984)."""
    c, w = c.tolist(), w.tolist()
    pairs = list(zip(c, w, strict=True))
    if family == "oscillatory":
        sides = math.prod(2 * math.sin(a / 2) / a for a in c)
        return math.cos(2 * math.pi * w[0] + sum(c) / 2) * sides
    if family == "corner peak":
        return _corner(c)
    side = {
        "product peak": lambda a, b: a * (math.atan(a * (1 - b)) + math.atan(a * b)),
        "Gaussian": lambda a, b: (
            math.sqrt(math.pi) / (2 * a) * (math.erf(a * (1 - b)) + math.erf(a * b))
        ),
        "continuous": lambda a, b: (2 - math.exp(-a * b) - math.exp(-a * (1 - b))) / a,
        "discontinuous": lambda a, b: math.expm1(a * b) / a,
    }[family]
    if family == "discontinuous":
        return math.prod(side(*p) for p in pairs[:2]) * math.prod(math.expm1(a) / a for a in c[2:])
    return math.prod(side(a, b) for a, b in pairs)


def _corner(c: list[float]) -> float:
    with mp.workdps(_DIGITS):
        total = mp.mpf(0)
        for signs in itertools.product((0, 1), repeat=len(c)):
            place = 1 + sum(mp.mpf(a) * s for a, s in zip(c, signs, strict=True))
            total += mp.mpf(-1) ** sum(signs) / place
        return float(total / (mp.factorial(len(c)) * mp.fprod(map(mp.mpf, c))))


def _instances(family: str, d: int, num: int) -> list[tuple[Tensor, Tensor]]:
    """Difficulties and shifts, and the exact values."""
    generator = torch.Generator().manual_seed(d)
    total = (TOTALS | ROUGH)[family]
    instances = []
    for _ in range(num):
        c, w = torch.rand(2, d, generator=generator, dtype=torch.float64)
        instances.append((c * total / c.sum(), w))
    return instances


def _truth(family: str, instances: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    return np.array([exact(family, c, w) for c, w in instances])


def _case(family: str, d: int) -> Case:
    """Boxes one after the other."""
    instances = _instances(family, d, _INSTANCES[d])
    truth = _truth(family, instances)
    # what else there is takes seconds to minutes an integral
    rules = {2: ("genz-malik", "gk21"), 3: ("genz-malik", "gk21"), 4: ("gk21",)}.get(d, ())
    rules = () if family in ROUGH and d > 2 else rules
    f = integrand(family)
    return Case(
        f"{family}, d = {d}, {len(instances)} boxes",
        [
            Contestant(
                "probcalc", partial(_ours, f, d, instances), score=partial(_scored_ours, truth)
            ),
            _quadax(family, d, instances, truth),
            *(_scipy_in_turn(f, d, instances, rule, truth) for rule in rules),
            *([_bare(f, instances, truth)] if family in TOTALS else []),
        ],
    )


def _batch(family: str, d: int) -> Case:
    """Boxes of one family, all at once where a library can."""
    instances = _instances(family, d, _TOGETHER)
    truth, f = _truth(family, instances), integrand(family)
    c, w = (torch.stack(column) for column in zip(*instances, strict=True))
    lower = torch.zeros(_TOGETHER, d, dtype=torch.float64)

    def ours(seed: int) -> pc.Estimate:
        return pc.integrate(f, lower, lower + 1, args=(c, w), event_dim=1, rtol=RTOL)

    def arrays(seed: int) -> np.ndarray:
        def at(x: np.ndarray) -> np.ndarray:
            return f(torch.from_numpy(x)[:, None], c, w).numpy()

        return _scipy(at, d, "gk21")

    contestants = [
        Contestant("probcalc", ours, score=partial(_scored_ours, truth)),
        _quadax(family, d, instances, truth),
    ]
    if d < 4:
        contestants += [
            _scipy_in_turn(f, d, instances, "gk21", truth),
            Contestant(
                "scipy.integrate.cubature, gk21, one array-valued integrand",
                arrays,
                score=lambda v: _scored(v, truth),
                warmups=0,
            ),
        ]
    return Case(f"{family}, d = {d}, {_TOGETHER} boxes at once", contestants)


def _bare(
    f: Callable[..., Tensor], instances: list[tuple[Tensor, Tensor]], truth: np.ndarray
) -> Contestant:
    """The least that anyone has to do: the lowest order that is known to be enough, no bar."""
    rules = []
    for (c, w), value in zip(instances, truth, strict=True):
        for n in range(2, 30):
            x, mass = _product(n, len(c))
            if abs(float(mass @ f(x, c, w)) / value - 1) <= RTOL:
                break
        rules.append((x, mass))

    def sums(seed: int) -> list[float]:
        pairs = zip(rules, instances, strict=True)
        return [float(mass @ f(x, c, w)) for (x, mass), (c, w) in pairs]

    name = "by hand: one product of Gauss rules of known order, without a bar"
    return Contestant(name, sums, score=lambda v: _scored(np.array(v), truth))


def _product(n: int, d: int) -> tuple[Tensor, Tensor]:
    x, w = (torch.from_numpy(t) / 2 for t in np.polynomial.legendre.leggauss(n))
    points = torch.cartesian_prod(*[x + 0.5] * d)
    return points, torch.cartesian_prod(*[w] * d).prod(-1)


def _ours(
    f: Callable[..., Tensor], d: int, instances: list[tuple[Tensor, Tensor]], seed: int
) -> list[pc.Estimate]:
    lower, upper = torch.zeros(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pc.EstimateWarning)  # scored as `unconverged`
        return [
            pc.integrate(f, lower, upper, args=one, event_dim=1, rtol=RTOL) for one in instances
        ]


def _quadax(
    family: str, d: int, instances: list[tuple[Tensor, Tensor]], truth: np.ndarray
) -> Contestant | Skipped:
    if quadax_cubature.quadax is None:
        return Skipped(quadax_cubature.NAME, "quadax is not installed")
    solve = quadax_cubature.solver(family, d, RTOL)
    arrays = [(c.numpy(), w.numpy()) for c, w in instances]
    return Contestant(
        quadax_cubature.NAME,
        lambda seed: [solve(c, w) for c, w in arrays],
        state="warm: compiled before",
        score=lambda v: _scored(np.array(v), truth),
    )


def _scipy_in_turn(
    f: Callable[..., Tensor],
    d: int,
    instances: list[tuple[Tensor, Tensor]],
    rule: str,
    truth: np.ndarray,
) -> Contestant:
    def one(c: Tensor, w: Tensor) -> float:
        return float(_scipy(lambda x: f(torch.from_numpy(x), c, w).numpy(), d, rule))

    return Contestant(
        f"scipy.integrate.cubature, {rule}",
        lambda seed: [one(*instance) for instance in instances],
        score=lambda v: _scored(np.array(v), truth),
        warmups=0,
    )


def _scipy(at: Callable[[np.ndarray], np.ndarray], d: int, rule: str) -> np.ndarray:
    limits, most = (np.zeros(d), np.ones(d)), _SUBDIVISIONS
    return si.cubature(at, *limits, rule=rule, rtol=RTOL, atol=0.0, max_subdivisions=most).estimate


def _scored(values: np.ndarray, truth: np.ndarray) -> Scores:
    return {"worst error": float(np.max(np.abs(values / truth - 1)))}


def _scored_ours(truth: np.ndarray, found: list[pc.Estimate] | pc.Estimate) -> Scores:
    found = found if isinstance(found, list) else [found[i] for i in range(len(truth))]
    values = np.array([float(e.value.detach()) for e in found])
    bars = np.array([float(e.error) for e in found])
    return {
        **_scored(values, truth),
        "worst bar": float(np.max(bars / np.abs(truth))),
        "outside the bar": float(np.mean(np.abs(values - truth) > bars + RTOL * np.abs(truth))),
        "unconverged": float(np.mean([not e.ok for e in found])),
    }
