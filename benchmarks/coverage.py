"""How often the bars of random methods hold the truth, and how often hopeless means are flagged.

Every method asks for the same integrals again and again, each time with another seed. Where the
terms have light tails, intervals of 95 % and 99 % should hold the truth so often; where they have
no variance, or so little of it that the central limit theorem is far away, a flag should stand.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from scipy.stats import binom
from torch import Tensor
from torch import distributions as td

import probcalc as pc
from benchmarks.record import machine

REPLICATES, HEAVY_REPLICATES = 4000, 400
LEVELS = (0.95, 0.99)
_OUTSIDE = 1e-2  # probability that any of all rows and levels is outside its binomial band
_BAND = _OUTSIDE / 64  # the same of each: 8 methods, 4 expectations, 2 levels
_DRAWS = 2**10

Ask = Callable[[torch.Generator], pc.Estimate]


@dataclass(frozen=True)
class Question:
    """One integral.

    Args:
        ask: Estimates it.
        truth: What it is.
    """

    ask: Ask
    truth: float


def number(value: float) -> Tensor:
    """A float64 scalar."""
    return torch.tensor(value, dtype=torch.float64)


NORMAL, EXPONENTIAL = td.Normal(number(0.0), number(1.0)), td.Exponential(number(1.0))
PAIR = td.Independent(td.Normal(torch.zeros(2, dtype=torch.float64), 1.0), 1)
# name -> (function, distribution, mean): light tails
LIGHT: dict[str, tuple[Callable[[Tensor], Tensor], td.Distribution, float]] = {
    "E sin(x + 1), normal": (lambda x: (x + 1).sin(), NORMAL, math.sin(1) * math.exp(-0.5)),
    "P(x > 0.3), normal": (
        lambda x: (x > 0.3).double(),
        NORMAL,
        0.5 * math.erfc(0.3 / math.sqrt(2)),
    ),
    "E x, exponential": (lambda x: x, EXPONENTIAL, 1.0),
    "E cos(x + 2y), normal": (
        lambda x: (x[..., 0] + 2 * x[..., 1]).cos(),
        PAIR,
        math.exp(-2.5),
    ),
}
METHODS: dict[str, Callable[[td.Distribution], object]] = {
    "plain": lambda d: pc.MonteCarlo(_DRAWS),
    "antithetic": lambda d: pc.MonteCarlo(2 * _DRAWS, antithetic=True),
    "control variates": lambda d: pc.MonteCarlo(4 * _DRAWS, control=_control(d)),
    "importance, wider proposal": lambda d: pc.ImportanceSampling(_wider(d), num_draws=2 * _DRAWS),
    "importance, self-normalised": lambda d: pc.ImportanceSampling(
        _wider(d), num_draws=4 * _DRAWS, self_normalised=True
    ),
    "stratified": lambda d: pc.Stratified(num_points=64),
    "scrambled Sobol": lambda d: pc.QuasiMonteCarlo(num_points=64),
    "Vegas": lambda d: pc.Vegas(rounds=2),
}


def _control(dist: td.Distribution) -> object:
    """Of the score where that has mean zero."""
    if dist is EXPONENTIAL:
        return pc.ControlVariates(lambda x: (-x).exp()[..., None], torch.full((1,), 0.5).double())
    return pc.ScoreControl(1)


def _wider(dist: td.Distribution) -> td.Distribution:
    if dist is EXPONENTIAL:
        return td.Exponential(number(0.7))
    if dist is PAIR:
        return td.Independent(td.Normal(torch.zeros(2, dtype=torch.float64), 1.3), 1)
    return td.Normal(number(0.0), number(1.3))


# name -> (function, distribution, mean): the reference's heavy rows and the light ones beside them
HEAVY: dict[str, Question] = {
    f"{name}, n = {n:,}": Question(
        lambda g, fn=fn, dist=dist, n=n: pc.expect(fn, dist, method=pc.MonteCarlo(n), generator=g),
        truth,
    )
    for n in (1_000, 16_384)
    for name, fn, dist, truth in (
        *(
            (
                f"E exp({s} x)",
                lambda x, s=s: (s * x).exp(),
                NORMAL,
                math.exp(s * s / 2),
            )
            for s in (2.0, 2.5, 3.0)
        ),
        *(
            (
                f"E x, Pareto({a})",
                lambda x: x,
                td.Pareto(number(1.0), number(a)),
                a / (a - 1),
            )
            for a in (2.1, 1.5, 1.2)
        ),
        ("E x, Cauchy", lambda x: x, td.Cauchy(number(0.0), number(1.0)), math.nan),
        (
            "E x², Student t(3)",
            lambda x: x * x,
            td.StudentT(number(3.0)),
            3.0,
        ),
    )
}
HEAVY |= {
    f"weights N(0, 1) / N(0, 0.6²), n = {n:,}": Question(
        lambda g, n=n: pc.expect(
            lambda x: torch.ones_like(x),
            NORMAL,
            method=pc.ImportanceSampling(
                td.Normal(number(0.0), number(0.6)), num_draws=n, defensive=0.0
            ),
            generator=g,
        ),
        1.0,
    )
    for n in (1_000, 16_384)
}


def hits(question: Question, replicates: int) -> tuple[dict[float, int], int, int]:
    """Intervals that hold the truth, level by level, answers without a flag, silent misses."""
    inside, unflagged, silent = dict.fromkeys(LEVELS, 0), 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pc.EstimateWarning)
        for seed in range(replicates):
            answer = question.ask(torch.Generator().manual_seed(seed))
            for level in LEVELS:
                low, high = answer.interval(level)
                held = bool(low <= question.truth) and bool(question.truth <= high)
                inside[level] += held
            unflagged += answer.ok
            silent += answer.ok and not held
    return inside, unflagged, silent


def _light(fn: Callable[[Tensor], Tensor], dist: td.Distribution, method: object) -> Ask:
    return partial(_asked, fn, dist, method)


def _asked(
    fn: Callable[[Tensor], Tensor],
    dist: td.Distribution,
    method: object,
    generator: torch.Generator,
) -> pc.Estimate:
    return pc.expect(
        fn, dist, method=method, confidence=LEVELS[-1], max_evals=2**13, generator=generator
    )


def measured() -> dict[str, dict[str, dict[str, object]]]:
    """Coverage of every method, and flags of heavy tails."""
    light: dict[str, dict[str, object]] = {}
    for method, make in METHODS.items():
        for name, (fn, dist, truth) in LIGHT.items():
            question = Question(_light(fn, dist, make(dist)), truth)
            inside, unflagged, _ = hits(question, REPLICATES)
            light[f"{method}: {name}"] = {
                "covered": {level: n / REPLICATES for level, n in inside.items()},
                "inside": all(_in_band(inside[level], level) for level in LEVELS),
                "unflagged": unflagged / REPLICATES,
            }
    heavy: dict[str, dict[str, object]] = {}
    for name, question in HEAVY.items():
        inside, unflagged, silent = hits(question, HEAVY_REPLICATES)
        heavy[name] = {
            "flagged": 1 - unflagged / HEAVY_REPLICATES,
            "silent misses": silent / HEAVY_REPLICATES,
            "covered by all bars": inside[LEVELS[-1]] / HEAVY_REPLICATES,
        }
    return {"light": light, "heavy": heavy}


def _in_band(inside: int, level: float) -> bool:
    """Not below what the level allows; above it only as far as no one would call it waste."""
    return inside >= binom.ppf(_BAND, REPLICATES, level)


def run(out: Path) -> list[Path]:
    """Measure, print and write."""
    table = measured()
    text = _markdown(table)
    print(text)
    paths = out / "coverage.md", out / "coverage.json"
    paths[0].write_text(text, encoding="utf-8")
    record = {"machine": machine("cpu"), "replicates": REPLICATES, **table}
    paths[1].write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return list(paths)


def _markdown(table: dict[str, dict[str, dict[str, object]]]) -> str:
    light, heavy = table["light"], table["heavy"]
    held = sum(bool(row["inside"]) for row in light.values())
    lines = [
        "# coverage: how often error bars hold the truth",
        "",
        f"{REPLICATES:,} seeds a row; lowest counts allowed ({_OUTSIDE:.0%} for all together): "
        + ", ".join(
            f"{binom.ppf(_BAND, REPLICATES, level) / REPLICATES:.4f} at {level:.0%}"
            for level in LEVELS
        )
        + ".",
        "",
        f"- light tails, rows inside the band: **{held} of {len(light)}**",
        "",
        "| light tails | 95 % | 99 % | inside the band | without a flag |",
        "| --- | ---: | ---: | --- | ---: |",
    ]
    for name, row in light.items():
        covered = row["covered"]
        cells = [f"{covered[level]:.4f}" for level in LEVELS]
        inside = "yes" if row["inside"] else "NO"
        lines.append(f"| {name} | {' | '.join(cells)} | {inside} | {row['unflagged']:.4f} |")
    lines += [
        "",
        f"{HEAVY_REPLICATES:,} seeds a row.",
        "",
        "| heavy tails | flagged | missed without a flag |",
        "| --- | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {row['flagged']:.3f} | {row['silent misses']:.3f} |"
        for name, row in heavy.items()
    ]
    return "\n".join([*lines, ""])
