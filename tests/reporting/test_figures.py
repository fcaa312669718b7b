"""The figures show the run's numbers, whatever the numbers are, and touch nothing global."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.figure import Figure

from probcalc.inference.posterior import load_posterior
from probcalc.reporting.figures import FIGURES, save_figures
from probcalc.reporting.forest import draw_forest, draw_mean_errors, shown
from probcalc.reporting.run_folder import POSTERIOR, read_result
from probcalc.reporting.style import BAD
from probcalc.reporting.style import POSTERIOR as BLUE


def entry(name: str, mean: float, distance: float | None = None) -> dict:
    number = {"value": mean, "error": 0.01}
    row = {"name": name, "mean": number, "sd": {"value": 1.0, "error": 0.01}}
    row |= {q: {"value": mean + d, "error": 0.1} for q, d in QUANTILES.items()}
    if distance is None:
        return row
    known = {"mean": mean - distance, "mean_error": 0.01, "std": 1.0, "std_error": 0.01}
    return row | {"reference": known | {"distance": distance, "ratio": 1.0, "ok": True}}


QUANTILES = {"q05": -1.6, "q25": -0.7, "q75": 0.7, "q95": 1.6}


def test_every_figure_is_drawn_from_the_folder_alone(run_folder: Path):
    """All of them, for all posteriors, with a reference and without; no warning, no NaN."""
    result = read_result(run_folder)
    paths = save_figures(run_folder, load_posterior(run_folder / POSTERIOR), result)
    assert set(paths) == set(FIGURES)
    for name, path in paths.items():
        data = path.read_bytes()
        if name.endswith(".svg"):
            assert ElementTree.fromstring(data).tag.endswith("svg")
            assert b"nan" not in data
        else:
            assert data.startswith(b"\x89PNG")


def test_rc_settings_are_left_alone(run_folder: Path):
    before = dict(matplotlib.rcParams)
    save_figures(run_folder, load_posterior(run_folder / POSTERIOR), read_result(run_folder))
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_never_imported():
    code = "import sys, probcalc.reporting.report; print('matplotlib.pyplot' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_forest_shows_each_mean_and_interval_in_its_row():
    entries = [entry("a", 1.0, 0.0), entry("b", -2.0)]
    ax = Figure().add_subplot()
    draw_forest(ax, entries)
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in dots] == [1.0, -2.0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    ends = [tuple(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2]
    assert (1.0 - 1.6, 1.0 + 1.6) in ends
    assert (-2.0 - 0.7, -2.0 + 0.7) in ends


@pytest.mark.parametrize(("distance", "colour"), [(0.04, BLUE), (0.2, BAD), (-0.2, BAD)])
def test_a_mean_beyond_its_limit_is_red(distance: float, colour: str):
    ax = Figure().add_subplot()
    draw_mean_errors(ax, [entry("a", 0.0, distance)])
    (dot,) = [line for line in ax.lines if line.get_marker() == "o"]
    assert dot.get_markeredgecolor() == colour
    assert dot.get_xdata()[0] == distance
    low, high = ax.get_xlim()
    assert low < distance < high


def test_only_entries_with_a_reference_have_a_row_where_there_is_one():
    parameters = [entry(name, 0.0) for name in "abc"]
    row = {"name": "b", "mean": 0.0, "mean_error": 0.1, "std": 1.0, "std_error": 0.1}
    compared = {"parameters": parameters, "reference": {"rows": [row]}}
    assert [e["name"] for e in shown(compared)] == ["b"]
    assert [e["name"] for e in shown(compared | {"reference": None})] == ["a", "b", "c"]


def test_a_long_posterior_is_cut_to_forty_rows():
    parameters = [entry(f"x[{i}]", 0.0) for i in range(100)]
    assert len(shown({"parameters": parameters, "reference": None})) == 40
