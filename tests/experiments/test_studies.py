"""Experiments that train a model: short runs draw every picture, whole ones hold their claims."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from probcalc.cli import main
from probcalc.experiment import load

SHORT = {
    "vae_digits": [{"pixels": p, "epochs": 2, "draws": 50} for p in ("binary", "iwae", "levels")],
    "gan_ring": [{"rounds": 10, "width": 16}],
    "diffusion_digits": [{"epochs": 2, "width": 32, "draws": 4}],
}
# seconds of training that the claims allow on two cores; this is not asserted
WHOLE = [
    ("vae_digits", {"pixels": "binary"}),
    ("vae_digits", {"pixels": "iwae"}),
    ("vae_digits", {"pixels": "levels", "draws": 1_000}),
    ("diffusion_digits", {}),
    ("gan_ring", {}),
]


@pytest.mark.parametrize(
    ("name", "knobs"), [(name, knobs) for name, many in SHORT.items() for knobs in many]
)
def test_short_runs_find_numbers_and_draw(name: str, knobs: dict):
    experiment = load(name)
    config = dataclasses.replace(experiment.config_class(), **knobs)
    study = experiment.run(config, generator=torch.Generator().manual_seed(0))
    claims = [f for f in study.findings if f.holds is not None]
    assert claims
    assert all(math.isfinite(f.as_json()["value"]) for f in claims)
    assert {"samples", "training"} <= set(study.figures)
    assert "seconds" in "\n".join(study.lines())


def test_the_command_writes_the_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "run"
    knobs = ["--epochs", "1", "--width", "16", "--draws", "2"]
    main(["run", "diffusion_digits", *knobs, "--out", str(out)])
    assert "bits a pixel" in capsys.readouterr().out
    assert {p.stem for p in out.glob("*.png")} == {"samples", "flow", "time", "training"}
    assert "![samples](samples.png)" in (out / "scoreboard.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "knobs"), WHOLE)
def test_claims_hold(name: str, knobs: dict):
    experiment = load(name)
    config = dataclasses.replace(experiment.config_class(), **knobs)
    study = experiment.run(config, generator=torch.Generator().manual_seed(1))
    assert study.ok, "\n".join(study.lines())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_ring_is_found_from_four_of_five_seeds():
    """All eight modes, and 55 per cent of samples near one.

    Measured: 8 modes from every seed of 0 … 4, and 90.8, 90.8, 88.9, 91.1 and 88.8 per cent, in
    24 to 68 seconds each on one core that is shared.
    """
    experiment = load("gan_ring")
    studies = [
        experiment.run(experiment.config_class(), generator=torch.Generator().manual_seed(s))
        for s in range(5)
    ]
    assert sum(study.ok for study in studies) >= 4, "\n".join(
        line for study in studies for line in study.lines()
    )


@pytest.mark.parametrize("knobs", [{"epochs": -1}, {"draws": 0}])
def test_numbers_of_digits_are_checked(knobs: dict):
    with pytest.raises(ValueError, match="epochs|draws"):
        load("vae_digits").config_class(**knobs)
    positive = {name: min(value, 0) for name, value in knobs.items()}
    with pytest.raises(ValueError, match="above 0"):
        load("diffusion_digits").config_class(**positive)
