"""Studies of policies: short runs draw every picture, whole ones hold their claims."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from probcalc.experiment import load

pytest.importorskip("gymnasium")
SHORT = {
    "cartpole": ({"seeds": 2, "steps": 2_000, "episodes": 4}, {"learning", "episode"}),
    "acrobot": ({"seeds": 1, "steps": 2_000, "episodes": 2}, {"learning", "episode"}),
    "frozen_lake_exact": ({"episodes": 2_000}, {"gradients"}),
    "variance_ladder": ({"episodes": 200}, {"ladder"}),
}


@pytest.mark.parametrize("name", SHORT)
def test_short_runs_find_numbers_and_draw(name: str):
    knobs, pictures = SHORT[name]
    experiment = load(name)
    config = dataclasses.replace(experiment.config_class(), **knobs)
    study = experiment.run(config, generator=torch.Generator().manual_seed(0))
    claims = [f for f in study.findings if f.holds is not None]
    assert claims
    assert all(math.isfinite(f.as_json()["value"]) for f in claims)
    assert set(study.figures) == pictures


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cartpole", "frozen_lake_exact", "variance_ladder"])
def test_claims_hold(name: str):
    experiment = load(name)
    study = experiment.run(experiment.config_class(), generator=torch.Generator().manual_seed(1))
    assert study.ok, "\n".join(study.lines())


@pytest.mark.long
def test_acrobot_holds():
    experiment = load("acrobot")
    study = experiment.run(experiment.config_class(), generator=torch.Generator().manual_seed(1))
    assert study.ok, "\n".join(study.lines())


@pytest.mark.parametrize("name", ["cartpole", "acrobot", "variance_ladder", "frozen_lake_exact"])
def test_numbers_are_checked(name: str):
    kind = load(name).config_class
    first = "seeds" if "seeds" in kind.__dataclass_fields__ else "episodes"
    with pytest.raises(ValueError, match=f"--{first}"):
        kind(**{first: 0})
