"""The run folder: strict JSON, options that read back, folders that are fresh and writable."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path

import pytest
import torch

from probcalc.inference.posterior import Posterior, load_posterior
from probcalc.reporting.run_folder import (
    CONFIG,
    POSTERIOR,
    RESULT,
    new_run_folder,
    read_result,
    strict_json,
)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize("x", [1.5, math.inf, -math.inf, math.nan, 0.1 + 0.2])
def test_every_number_survives_strict_json(x: float):
    back = json.loads(strict_json({"x": [x, (x,)]}), parse_constant=refuse)["x"]
    for value in (float(back[0]), float(back[1][0])):
        assert value == x or (math.isnan(value) and math.isnan(x))


def test_numbers_of_the_posterior_read_back(run_folder: Path, posterior: Posterior):
    """Means, sds and their bars to the last digit, flags as words, infinities as text."""
    text = (run_folder / RESULT).read_text(encoding="utf-8")
    result = json.loads(text, parse_constant=refuse)
    assert result == read_result(run_folder)
    for entry in result["parameters"]:
        for key, moment in (("mean", posterior.mean), ("sd", posterior.std)):
            for part in ("value", "error"):
                expected = getattr(moment[entry["name"]], part)
                found = torch.tensor(float(entry[key][part]), dtype=torch.float64)
                assert torch.equal(found, expected) or (found.isnan() and expected.isnan())
    assert float(result["khat"]) == posterior.khat
    assert result["status"] == posterior.status.words
    assert result["reasons"] == list(posterior.reasons)
    assert result["num_evals"] == posterior.num_evals
    assert result["seed"] == 3
    assert set(result["versions"]) == {"probcalc", "torch", "pyro", "python"}


def test_options_read_back(run_folder: Path):
    """Those with a value; a folder given by hand is not part of what was computed."""
    options = tomllib.loads((run_folder / CONFIG).read_text(encoding="utf-8"))
    assert options == {
        "experiment": "by_hand",
        "seed": 3,
        "device": "cpu",
        "dtype": "float64",
        "config": {"scale": 1.0},
    }


def test_posterior_reads_back(run_folder: Path, posterior: Posterior):
    loaded = load_posterior(run_folder / POSTERIOR)
    assert loaded.verdict == posterior.verdict
    assert torch.equal(loaded.x, posterior.x)


def test_default_folders_are_numbered_and_never_reused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2, 3):
        with new_run_folder("name", None) as folder:
            (folder / "file").touch()
        assert folder == Path("runs") / f"name-{number}"


def test_a_run_that_wrote_nothing_leaves_no_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_run_folder("name", tmp_path / "a" / "b"):
        raise KeyboardInterrupt
    assert not (tmp_path / "a" / "b").exists()


def test_a_folder_with_files_is_not_overwritten(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"output folder .* is not empty; give another"):
        with new_run_folder("name", tmp_path):
            pass
    assert (tmp_path / "file").exists()


@pytest.mark.parametrize("place", ["file/below", "file"])
def test_an_unwritable_folder_is_named(tmp_path, monkeypatch, place: str):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"output folder .*{place} cannot be written to: "):
        with new_run_folder("name", tmp_path / place):
            pass
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    with pytest.raises(ValueError, match="output folder runs/name-1 cannot be written to: "):
        with new_run_folder("name", None):
            pass
