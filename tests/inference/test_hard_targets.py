"""Targets on which a fit goes wrong in silence: every answer is right or flagged."""

from __future__ import annotations

import warnings

import pytest
import torch
from laws import ALPHA
from problems.hard_targets import HARD, LARGE, SLOW, UNSEEN, Hard
from torch import Tensor

import probcalc as pc
from probcalc import Status

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
ROUNDING = 1e-10


def fitted(case: Hard, seed: int) -> pc.Posterior:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pc.EstimateWarning)
        return pc.fit(
            case.target(),
            confidence=1 - ALPHA,
            generator=torch.Generator().manual_seed(seed),
            **case.options,
        )


def outside(estimate: pc.Estimate, exact: Tensor | float) -> bool:
    exact = torch.as_tensor(exact, dtype=torch.float64)
    bar = estimate.error + ROUNDING * (1 + exact.abs())
    return bool(((estimate.value - exact).abs() > bar).any())


def wrong(posterior: pc.Posterior, case: Hard) -> list[str]:
    """What lies outside its bar; an infinite bar claims nothing."""
    claims = [(f"mean of {k}", posterior.mean[k], v) for k, v in case.mean.items()]
    claims += [(f"sd of {k}", posterior.std[k], v) for k, v in case.std.items()]
    if case.log_evidence is not None:
        claims.append(("log evidence", posterior.log_evidence, case.log_evidence))
    return [f"{name}: {got!r}, not {exact}" for name, got, exact in claims if outside(got, exact)]


def check(case: Hard, seed: int) -> None:
    p = fitted(case, seed)
    if not p.ok:
        assert p.reasons
        if p.status & ~int(Status.NOT_CONVERGED | Status.INFINITE_VARIANCE):
            assert all(e.error.isinf().all() for e in p.mean.values())
            return
        assert not wrong(p, case)  # such flags leave bars that must hold
        return
    assert not case.must_flag, f"no number is right, yet {p.mean} has no flag"
    assert not wrong(p, case)


def marked(names: list[str]) -> list:
    return [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in names]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", marked([n for n in HARD if n not in UNSEEN]))
def test_right_or_flagged(name: str, seed: int):
    """Means, sds and the evidence within bars that miss once in two million, or a flag."""
    check(HARD[name](), seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_ten_thousand_dimensions_are_right_or_flagged(name: str):
    """Nothing of size dimension squared is made; one seed."""
    check(LARGE[name](), 0)


# the exact evidence of these lies between the ends, or the ends are flagged
BRACKETED = ("no success", "Cauchy data", "separated, prior", "funnel 1", "ring", "step")


@pytest.mark.slow
@pytest.mark.parametrize("name", BRACKETED)
def test_the_exact_evidence_lies_in_the_bracket(name: str):
    case = HARD[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pc.EstimateWarning)
        bracket = pc.log_evidence(
            case.target(), confidence=1 - ALPHA, generator=torch.Generator().manual_seed(0)
        )
    low, high = bracket.lower, bracket.upper
    if bracket.ok:
        assert float(low.value - low.error) <= case.log_evidence + ROUNDING
        assert case.log_evidence <= float(high.value + high.error) + ROUNDING
    else:
        assert bracket.reasons
