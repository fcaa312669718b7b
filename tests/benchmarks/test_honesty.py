"""No silent wrong answer among the hard cases, no flag among the easy ones, on fresh seeds."""

from __future__ import annotations

import pytest
import torch

from benchmarks.honesty import SUITES, judged, summary
from benchmarks.honesty_cases import Dice


@pytest.mark.parametrize("suite", SUITES)
def test_right_or_flagged(suite: str, generator: torch.Generator):
    seed = int(torch.randint(2**31, (), generator=generator))
    outcomes = {name: judged(case)[0] for name, case in SUITES[suite](Dice(seed)).items()}
    silent = [name for name, outcome in outcomes.items() if outcome == "SILENT"]
    # one in a thousand was measured over twenty seeds: two at once would be news
    assert len(silent) <= 1, silent
    if suite == "controls":
        assert set(outcomes.values()) == {"right"}


def test_the_summary_counts():
    row = {"outcomes": {"right": 1, "SILENT": 3}, "bar / error": 2.0, "evaluations": 5}
    easy = {"outcomes": {"right": 3, "flagged": 1}, "bar / error": None, "evaluations": 5}
    figures = summary({"integrals": {"a": row}, "expectations": {}, "controls": {"b": easy}})
    assert figures["cases silently wrong"] == "1 of 1"
    assert figures["silent answers"] == "3 of 4"
    assert figures["false flags, controls"] == "1 of 4"
