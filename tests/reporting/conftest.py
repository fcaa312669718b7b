"""Small posteriors made by hand, and the results that stand in their run folders."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from problems.by_hand import made, noise

from probcalc.inference.posterior import Posterior
from probcalc.reporting.comparison import Reference, Row
from probcalc.reporting.run_folder import RunRecord, write_run
from probcalc.status import Status

CLAIM = "A claim with <script>alert('&')</script>\nover two lines.\n\nA second paragraph."
REFERENCE = Reference("a <known> source", {"a": Row(0.0, 0.01, 1.0, 0.01)})


@dataclass(frozen=True)
class Config:
    """Knobs."""

    scale: float = 1.0


@dataclass(frozen=True)
class Settings:
    """Options."""

    seed: int = 3
    device: str = "cpu"
    dtype: str = "float64"
    out: Path | None = None


# what a page may meet -> posterior, whether it is compared with a reference
CASES = {
    "good": (lambda: made(noise(0.1), 0.1), True),
    "good, alone": (lambda: made(noise(0.1), 0.1), False),
    "exact guide": (lambda: made(torch.zeros(8, 64).double(), -math.inf), False),
    "heavy tail": (lambda: made(noise(8.0), 1.4, Status.UNRELIABLE_WEIGHTS), True),
    "too few ratios": (lambda: made(noise(1.0), math.inf, Status.UNRELIABLE_WEIGHTS), False),
    "ratios of zero": (lambda: made(noise(0.1).masked_fill(noise(1.0) > 0, -math.inf), 0.3), True),
    "no ratio": (
        lambda: made(torch.full((8, 64), -math.inf).double(), math.inf, Status.NON_FINITE),
        True,
    ),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[Posterior, Reference | None]:
    """Each of the table."""
    build, is_compared = CASES[request.param]
    return build(), REFERENCE if is_compared else None


@pytest.fixture
def posterior(case: tuple[Posterior, Reference | None]) -> Posterior:
    """Its posterior."""
    return case[0]


@pytest.fixture
def run_folder(tmp_path: Path, case: tuple[Posterior, Reference | None]) -> Path:
    """A folder as `probcalc run` writes it, before its figures are drawn."""
    record = RunRecord("by_hand", CLAIM, ("a", "b"), Config(), Settings())
    write_run(tmp_path, record, *case, seconds=0.25)
    return tmp_path
