"""Every experiment's claim: its posterior against the reference in its file."""

from __future__ import annotations

import warnings

import pytest
import torch

from probcalc.experiment import load
from probcalc.inference.posterior import Posterior
from probcalc.reporting.comparison import Comparison, compare
from probcalc.status import EstimateWarning

SEEDS = (0, 1)


def fitted(name: str, seed: int) -> tuple[Posterior, tuple[Comparison, ...]]:
    experiment = load(name)
    config = experiment.config_class()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EstimateWarning)
        posterior = experiment.run(config, generator=torch.Generator().manual_seed(seed))
    return posterior, compare(posterior, experiment.reference(config))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "name",
    [
        "eight_schools",
        pytest.param("breast_cancer", marks=pytest.mark.slow),
        pytest.param("grunfeld", marks=pytest.mark.slow),
    ],
)
def test_right_and_trusted(name: str, seed: int):
    """Means within 0.05 sd, sds within 5 %, each + 3 standard errors of the reference."""
    posterior, rows = fitted(name, seed)
    assert posterior.verdict in ("good", "corrected"), posterior.reasons
    off = [(row.name, row.distance, row.ratio) for row in rows if not row.ok]
    assert not off


@pytest.mark.parametrize("seed", SEEDS)
def test_eight_schools_published_numbers(seed: int):
    """Of posteriordb: mu 4.41, tau 3.60, sds 3.31 and 3.20."""
    posterior, _ = fitted("eight_schools", seed)
    for name, mean, std in (("mu", 4.41, 3.31), ("tau", 3.60, 3.20)):
        assert float(posterior.mean[name].value) == pytest.approx(mean, abs=0.1)
        assert float(posterior.std[name].value) == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("seed", SEEDS)
def test_centred_eight_schools_is_right_or_flagged(seed: int):
    posterior, rows = fitted("eight_schools_centered", seed)
    assert not posterior.ok or all(row.ok for row in rows)
    if not posterior.ok:
        assert posterior.reasons
