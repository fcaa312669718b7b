"""Error bars of `fit`, counted: how often they hold the truth where the verdict is no flag.

Four thousand fits: ``pytest -m long -n 2 tests/inference/test_fit_calibration.py``.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict

import pytest
import torch
from laws import assert_covers
from problems.calibration_targets import CASES, built, exact_elbo
from problems.hard_targets import Hard
from torch import Tensor

import probcalc as pc

CONFIDENCE, RUNS = 0.95, 340  # of every case: 4,080 fits in all
ROUNDING = 1e-11  # of the truth, a quadrature
MOST_FLAGGED = 0.25  # share of runs without a verdict to count
# what a pooled coverage this low would be seen with, at half the runs of a group
CAUGHT = 0.87
GROUPS = [list(CASES)[k::4] for k in range(4)]


def numbers(posterior: pc.Posterior, case: Hard) -> list[tuple[str, pc.Estimate, Tensor]]:
    """Everything with a bar: kind, estimate, truth; one entry of every site is enough."""
    numbers = [("mean", posterior.mean[site], exact) for site, exact in case.mean.items()]
    numbers += [("sd", posterior.std[site], exact) for site, exact in case.std.items()]
    numbers.append(("log evidence", posterior.log_evidence, torch.tensor(case.log_evidence)))
    bound = posterior.elbo
    if bool(bound.error.isfinite()):
        numbers.append(("ELBO", bound, torch.tensor(exact_elbo(posterior))))
    return numbers


def counted(name: str) -> dict[str, list[bool]]:
    """Hits of every kind, over independent runs with the default settings."""
    case, target = built(name)
    hits: dict[str, list[bool]] = defaultdict(list)
    for seed in range(RUNS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pc.EstimateWarning)
            p = pc.fit(
                target, confidence=CONFIDENCE, generator=torch.Generator().manual_seed(seed)
            )
        if not p.ok:
            continue
        for kind, estimate, exact in numbers(p, case):
            away = (estimate.value - exact).abs().flatten()[0]
            bar = estimate.error.flatten()[0] + ROUNDING * (1 + exact.abs().flatten()[0])
            if not math.isnan(float(exact.flatten()[0])):
                hits[kind].append(bool(away <= bar))
    return hits


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("names", GROUPS, ids=lambda names: ", ".join(names))
def test_bars_hold_the_truth_where_the_verdict_is_good(names: list[str]):
    """95 % bars of means, sds, the evidence and the ELBO, pooled over runs of three targets."""
    pooled: dict[str, list[bool]] = defaultdict(list)
    for name in names:
        hits = counted(name)
        assert len(hits["mean"]) >= (1 - MOST_FLAGGED) * RUNS, f"{name}: too many flags"
        for kind, of_kind in hits.items():
            pooled[kind] += of_kind
    for kind, of_kind in pooled.items():
        print(f"{', '.join(names)}: {kind} {sum(of_kind) / len(of_kind):.3f} of {len(of_kind)}")
        if len(of_kind) >= RUNS:
            caught = CAUGHT if len(of_kind) > 900 else 0.80
            assert_covers(torch.tensor(of_kind), CONFIDENCE, caught=caught)
