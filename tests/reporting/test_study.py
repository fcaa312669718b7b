from __future__ import annotations

import torch
from matplotlib.figure import Figure

import probcalc as pc
from probcalc.reporting.study import Finding, Study, at_least, at_most

ESTIMATE = pc.Estimate(torch.tensor(1.5), torch.tensor(0.25))


def test_limits_hold_or_are_missed():
    assert at_most("a", 1.0, 2.0).holds
    assert not at_most("a", 3.0, 2.0).holds
    assert at_least("a", ESTIMATE, 1.5).holds
    assert not at_least("a", ESTIMATE, 1.6).holds
    assert at_most("a", ESTIMATE, 1.5).wanted == "at most 1.5"


def test_a_study_is_good_where_nothing_is_missed():
    told = Finding("seconds", 2.5)
    assert Study((told,)).ok
    assert Study((told, at_most("a", 1.0, 2.0))).ok
    assert not Study((told, at_most("a", 3.0, 2.0))).ok


def test_tables_name_what_is_missed():
    study = Study(
        (Finding("draws", 12), at_most("bits", ESTIMATE, 1.0), Finding("verdict", "fine")),
        {"samples": Figure()},
        ("a note",),
    )
    lines = "\n".join(study.lines())
    assert "1.5000 ± 0.2500" in lines
    assert "MISSED" in lines
    assert lines.endswith("a note")
    page = study.markdown()
    assert "| bits | 1.5000 ± 0.2500 | at most 1 | MISSED |" in page
    assert "![samples](samples.png)" in page
    record = study.as_json()
    assert record["findings"][1] == {
        "name": "bits",
        "value": 1.5,
        "error": 0.25,
        "wanted": "at most 1",
        "holds": False,
    }
    assert record["findings"][0]["value"] == 12
