"""Peers and hand-written loops of `vi` have our densities, and its summary counts right."""

import math
from functools import cache

import pyro
import pytest
import torch

import probcalc as pc
from benchmarks.harness import Row, Skipped, Spread
from benchmarks.posteriordb import folder
from benchmarks.problems import eight_schools
from benchmarks.vi import best, summary
from benchmarks.vi_models import WRITTEN
from benchmarks.vi_problems import ERROR, Attempt, posed
from benchmarks.vi_pyro import LANGUAGE, float64
from benchmarks.vi_steps import logistic, logistic_data, logistic_density, schools_density

NUM_POINTS = 3
ROUNDING = 1e-9  # of differences between log densities of up to 1e5
needs_database = pytest.mark.skipif(not folder().is_dir(), reason="no folder of posteriordb")


@cache
def read(name):
    return posed(name)


def assert_constant(difference, size):
    assert float(difference.std()) <= ROUNDING * max(1.0, float(size.abs().max()))


def traced_log_prob(model, data, values):
    with float64():
        trace = pyro.poutine.trace(pyro.poutine.condition(model, values)).get_trace(*data)
        return trace.log_prob_sum()


@needs_database
@pytest.mark.parametrize("name", WRITTEN)
def test_peers_have_our_density(name):
    problem = read(name)
    target, model = problem.problem.target, problem.written.program(LANGUAGE)
    z = target.starts(NUM_POINTS, torch.Generator().manual_seed(0))
    ours = target.log_density(z) - target.log_abs_det_jacobian(z)
    values = target.constrain(z)
    theirs = [
        traced_log_prob(model, problem.data, {k: v[i] for k, v in values.items()})
        for i in range(NUM_POINTS)
    ]
    assert_constant(ours - torch.stack(theirs), ours)


@needs_database
@pytest.mark.parametrize("name", WRITTEN)
def test_columns_of_peers_are_the_references(name):
    problem = read(name)
    target = problem.problem.target
    z = target.starts(NUM_POINTS, torch.Generator().manual_seed(0))
    values = target.constrain(z)
    torch.testing.assert_close(problem.columns(values), problem.problem.columns(values))
    assert len(problem.reference[0]) == problem.columns(values).shape[1]


def schools():
    problem = eight_schools()
    return problem.model, problem.data, schools_density


def regression():
    return logistic, logistic_data("cpu"), logistic_density


@pytest.mark.parametrize("case", [schools, regression])
def test_hand_written_densities_are_the_models(case):
    model, data, density = case()
    target = pc.Target.from_pyro(model, *data)
    z = target.starts(NUM_POINTS, torch.Generator().manual_seed(0))
    ours = target.log_density(z)
    assert_constant(ours - density(z, *data), ours)


def attempt(settings, error):
    def run(seed):
        if error is None:
            raise ValueError("the guide left the numbers")
        return error

    return Attempt(settings, run, lambda result: {ERROR: result})


def test_the_best_attempt_has_the_least_error():
    errors = {"wide": 0.3, "nan": math.nan, "raises": None, "right": 0.1}
    chosen = best("peer", "warm", lambda: [attempt(k, v) for k, v in errors.items()])
    assert chosen.name == "peer, right"


def test_a_peer_without_an_attempt_says_why():
    chosen = best("peer", "warm", lambda: [attempt("only", None)])
    assert isinstance(chosen, Skipped)
    assert "left the numbers" in chosen.why


def test_summary_counts_where_ours_is_least():
    ours, theirs = Spread(1.0, 1.0, 1.0), Spread(12.0, 12.0, 12.0)
    row = lambda name, error, ratio: Row(name, scores={ERROR: (error,)}, ratio=ratio)
    first, second, *_ = WRITTEN
    measured = {
        first: [row("probcalc", 0.1, ours), row("Pyro SVI, a", 0.2, theirs)],
        second: [row("probcalc", 0.3, ours), row("Pyro SVI, b", 0.2, theirs)],
        "a step": [row("probcalc", 0.0, ours)],
    }
    assert "least on 1 of 2; Pyro's best run takes 12 to 12 ×" in summary(measured)[0]
