"""`probcalc run posteriordb`: the table, the report and what comes of mistakes."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import torch

from benchmarks import posteriordb as benchmark
from probcalc.cli import BAD_INPUT, FLAGGED, GOOD, main
from probcalc.experiment import load
from probcalc.reporting.scoreboard import REFUSED

NAME = "mesquite-logmesquite_logva"


@pytest.fixture
def folder(shared: Path) -> Path:
    found = shared / "posteriordb"
    if not found.is_dir():
        pytest.skip("no folder posteriordb in the shared one")
    return found


def test_a_run_prints_and_writes_the_scoreboard(folder: Path, tmp_path: Path, capsys):
    """Whether the fits are right is the benchmark's question; here, that the board says so."""
    out = tmp_path / "run"
    options = ["--database", str(folder), "--only", "logva", "--seeds", "2", "--out", str(out)]
    code = main(["run", "posteriordb", *options, "--seed", "5"])
    printed = capsys.readouterr().out
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    scores = result["scores"]
    assert [(s["name"], s["seed"], s["dim"]) for s in scores] == [(NAME, 5, 5), (NAME, 6, 5)]
    right = [s["mean_off"] <= 0.05 and s["std_off"] <= 0.05 for s in scores]
    silent = [not r and not s["flagged"] for r, s in zip(right, scores, strict=True)]
    assert code == (FLAGGED if any(silent) else GOOD)
    assert result["ok"] == (not any(silent))
    assert f"within 0.05 sd and 0.05 log sd: {sum(right)} of 2" in printed
    assert max(s["mean_off"] for s in scores) < 1.0  # a column in another's place is far off
    for text in (printed, (out / "scoreboard.md").read_text(encoding="utf-8")):
        assert all(f"{s['num_gradients']:,}" in text for s in scores)
    options = tomllib.loads((out / "config.toml").read_text(encoding="utf-8"))
    assert options["config"] == {"database": str(folder), "only": "logva", "seeds": 2}


def test_a_fit_that_raises_is_a_flagged_miss(folder: Path, monkeypatch):
    experiment = load("posteriordb")

    def refuse(*args: object, **settings: object) -> None:
        raise ValueError("no start is finite")

    monkeypatch.setattr(experiment.module.pc, "fit", refuse)
    config = experiment.config_class(str(folder), "logva")
    board = experiment.run(config, generator=torch.Generator().manual_seed(3))
    (score,) = board.scores
    assert (score.verdict, score.seed) == (REFUSED, 3)
    assert score.reasons == ("ValueError: no start is finite",)
    assert board.misses == (score,)
    assert board.ok


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--only", "horseshoe"], "`--only horseshoe` must name posteriors of the database"),
        (["--seeds", "0"], "`--seeds` must be at least 1, got 0"),
        (["--reference", "nuts"], "`--reference nuts` is for one posterior"),
    ],
)
def test_mistakes_on_the_command_line(
    folder: Path, tmp_path: Path, capsys, options: list[str], text: str
):
    place = ["--database", str(folder), "--out", str(tmp_path / "run")]
    assert main(["run", "posteriordb", *place, *options]) == BAD_INPUT
    assert text in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_no_database(tmp_path: Path, capsys):
    options = ["--database", str(tmp_path / "none"), "--out", str(tmp_path / "run")]
    assert main(["run", "posteriordb", *options]) == BAD_INPUT
    assert "must be a posteriordb folder" in capsys.readouterr().err


def test_the_benchmark_without_a_folder_writes_nothing(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("POSTERIORDB", str(tmp_path / "none"))
    assert benchmark.run(tmp_path) == []
    assert "skipped" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
