"""Time and gradient evaluations to a posterior, and its error, on ten posteriors.

Ours: the defaults, which stop by themselves. Peers: the best of a few settings each, chosen by
its error against the reference, which a user does not have.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch

import probcalc as pc
from benchmarks import vi_jax, vi_pyro
from benchmarks.harness import Case, Contestant, Row, Skipped
from benchmarks.posteriordb import folder
from benchmarks.vi_models import WRITTEN
from benchmarks.vi_problems import ERROR, Attempt, Posed, posed

_NEARLY = 1.1  # factor of the least error within which the fastest setting is the best
_FAILURES = (ArithmeticError, RuntimeError, ValueError)
_PYRO = "Pyro SVI"
_QUICK = ("eight_schools-eight_schools_noncentered",)
_QUICK_RUNS = ((0.05, 500),)

NOTES = (
    "Errors are against reference draws (radon: a long run of NUTS): the worst |mean − reference "
    "mean| in reference sds and the worst |log(sd / reference sd)| over all columns of the "
    "reference; `worst error` is the larger. 10,000 draws know the worst mean of ten parameters "
    "to about 0.02 and the worst log sd to about 0.015.",
    "Ours: `pc.fit` with its defaults on a target that is traced; `flagged` says how many of the "
    "fits warn of themselves. Gradient evaluations count every draw; densities without gradient "
    "weigh draws.",
    f"Pyro and NumPyro: AutoNormal and AutoMultivariateNormal by ClippedAdam, one particle, the "
    f"rate falling to {vi_pyro.DECAY:.0%} over the run, (rate, steps) of {vi_pyro.RUNS} and, "
    f"jitted, {vi_jax.SVI_RUNS}. The setting of least error on a first run is shown, or a faster "
    "one within a tenth of it; the time to find it is not counted, nor is compilation.",
    f"BlackJAX: jitted and warm, {vi_jax.ITERATIONS} iterations of L-BFGS; multi-path takes "
    f"{vi_jax.PATHS} paths and Pareto-smoothed weights. Gradients in line searches are not "
    "counted.",
    "Peers run one program for both languages, whose density is ours, in float64; moments of a "
    f"guide come from {vi_pyro.NUM_DRAWS:,} draws, which are not timed.",
)


def cases(device: str) -> Iterator[Case]:
    """One case a posterior.

    Yields:
        Cases; what a case needs is tried out when it is asked for.
    """
    if device == "cpu" and folder().is_dir():
        yield from (_case(posed(name)) for name in WRITTEN)


def quick_cases(device: str) -> Iterator[Case]:
    """One posterior with short runs of Pyro.

    Yields:
        Cases.
    """
    if device == "cpu" and folder().is_dir():
        yield from (_case(posed(name), _QUICK_RUNS) for name in _QUICK)


def summary(measured: Mapping[str, Sequence[Row]]) -> list[str]:
    """On how many posteriors our error is the least, and how Pyro's best run compares."""
    known = {name: rows for name, rows in measured.items() if name in WRITTEN}
    if not known:
        return ["No posteriors: there is no folder of posteriordb."]
    wins, ratios, lines = 0, [], []
    for name, rows in known.items():
        errors = {r.name: _error(r) for r in rows if not r.skipped}
        ours, *others = errors.items()
        best = min(others, key=lambda pair: pair[1], default=("none", math.inf))
        wins += ours[1] <= best[1]
        words = f"{name}: {ours[1]:.3g}, best peer {best[1]:.3g} ({best[0]})"
        for row in rows:
            if row.name.startswith(_PYRO) and row.ratio is not None:
                ratios.append(row.ratio.median)
                words += f", Pyro's best run takes {row.ratio.median:.3g} × our time"
        lines.append(words)
    head = f"Our worst error is the least on {wins} of {len(known)}"
    if ratios:
        head += f"; Pyro's best run takes {min(ratios):.3g} to {max(ratios):.3g} × our time"
    return [f"{head}.", *lines]


def _error(row: Row) -> float:
    error = statistics.median(row.scores[ERROR])
    return error if math.isfinite(error) else math.inf


def _case(problem: Posed, runs: Sequence[tuple[float, int]] = vi_pyro.RUNS) -> Case:
    contestants = [
        Contestant("probcalc: pc.fit", partial(_fit, problem), score=partial(_scored, problem)),
        best(_PYRO, "eager", lambda: vi_pyro.attempts(problem, runs)),
    ]
    if vi_jax.numpyro is None:
        contestants.append(Skipped("NumPyro SVI", "numpyro is not installed"))
    else:
        contestants.append(best("NumPyro SVI", "jitted", lambda: vi_jax.svi_attempts(problem)))
    for name, multi in (("Pathfinder", False), ("multi-path Pathfinder", True)):
        if vi_jax.numpyro is None or vi_jax.blackjax is None:
            contestants.append(Skipped(f"BlackJAX {name}", "blackjax or numpyro is missing"))
            continue
        make = partial(vi_jax.pathfinder_attempts, problem, multi=multi)
        contestants.append(best(f"BlackJAX {name}", "jitted", make))
    return Case(problem.name, contestants)


def best(name: str, state: str, make: Callable[[], Sequence[Attempt]]) -> Contestant | Skipped:
    """The attempt of least error, or a faster one with nearly that; each is run once or twice."""
    tried, why = [], "no attempt"
    for attempt in make():
        try:
            error = attempt.score(attempt.run(0))[ERROR]
        except _FAILURES as failure:  # a guide that left the numbers
            why = f"{type(failure).__name__}: {failure}".splitlines()[0]
            continue
        tried.append((error if math.isfinite(error) else math.inf, attempt))
    if not tried:
        return Skipped(name, why)
    least = min(error for error, _ in tried)
    near = [attempt for error, attempt in tried if error <= _NEARLY * least]
    chosen = near[0] if len(near) == 1 else min(near, key=_seconds)
    return Contestant(f"{name}, {chosen.settings}", chosen.run, state, chosen.score, warmups=0)


def _seconds(attempt: Attempt) -> float:
    start = time.perf_counter()
    attempt.run(0)
    return time.perf_counter() - start


def _fit(problem: Posed, seed: int) -> pc.Posterior:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pc.EstimateWarning)  # the column `flagged` says it
        generator = torch.Generator().manual_seed(seed)
        return pc.fit(problem.problem.target, generator=generator)


def _scored(problem: Posed, posterior: pc.Posterior) -> dict[str, float]:
    return {
        "gradient evaluations": posterior.num_gradients,
        "densities only": posterior.num_evals - posterior.num_gradients,
        "flagged": float(not posterior.ok),
        **problem.errors_of_posterior(posterior),
    }
