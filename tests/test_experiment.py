"""What every experiment's file offers, and how it is found."""

from __future__ import annotations

import ast
import dataclasses
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w

from probcalc.experiment import (
    Experiment,
    UnknownExperiment,
    claims,
    load,
    require_positive,
)

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
SUITES = ["posteriordb"]  # of many posteriors
ON_DATA = ["diffusion_digits", "gan_ring", "vae_digits", "vae_mnist"]  # a model is trained
POLICIES = ["acrobot", "cartpole", "frozen_lake_exact", "variance_ladder"]
STUDIES = ON_DATA + POLICIES
SINGLE = [name for name in NAMES if name not in SUITES + STUDIES]


@pytest.fixture(params=SINGLE)
def experiment(request: pytest.FixtureRequest) -> Experiment:
    return load(request.param)


def test_every_file_is_listed_with_its_claim():
    assert list(claims()) == NAMES
    for name, claim in claims().items():
        assert claim.endswith("."), f"{name}: the first line of the docstring is one sentence"


def test_listing_imports_nothing(monkeypatch):
    """So that the list is there without the extras that some experiments need."""
    for name in ("sklearn", "statsmodels"):
        monkeypatch.setitem(sys.modules, name, None)
    assert list(claims()) == NAMES


def test_experiment_has_claim_config_and_target(experiment: Experiment):
    config = experiment.config_class()
    assert experiment.claim.startswith(claims()[experiment.name])
    assert set(experiment.pair) <= set(experiment.target(config).names)
    assert set(experiment.reference(config).rows) <= set(experiment.target(config).names)
    assert experiment.reference(config).source


@pytest.mark.parametrize("name", NAMES)
def test_what_has_no_target_is_a_suite(name: str):
    assert load(name).is_suite == (name in SUITES + STUDIES)


@pytest.mark.parametrize("name", NAMES)
def test_config_is_frozen_and_read_back_from_toml(name: str):
    experiment = load(name)
    config = experiment.config_class()
    assert dataclasses.is_dataclass(config)
    for field in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, None)
    text = tomli_w.dumps(dataclasses.asdict(config))
    assert experiment.config_class(**tomllib.loads(text)) == config


def test_other_knobs_have_no_reference(experiment: Experiment):
    config = experiment.config_class()
    field = dataclasses.fields(config)[0].name
    other = dataclasses.replace(config, **{field: 2 * getattr(config, field)})
    assert experiment.reference(other) is None


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_every_knob_refuses_what_is_no_scale(experiment: Experiment, value: float):
    for field in dataclasses.fields(experiment.config_class):
        option = "--" + field.name.replace("_", "-")
        with pytest.raises(ValueError, match=f"`{option}` must be a finite number above 0, got"):
            experiment.config_class(**{field.name: value})


@pytest.mark.parametrize("name", NAMES)
def test_files_hold_no_class_but_config(name: str):
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert classes == ["Config"]
    if name in STUDIES:
        assert "run" in functions
        assert ("data" in functions) == (name in ON_DATA)
    else:
        others = {"chosen", "score"} if name in SUITES else {"model", "target"}
        assert functions == {*others, "run"}


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(UnknownExperiment, match="unknown experiment 'eigth_school'; did you mean"):
        load("eigth_school")


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("breast_cancer", "sklearn", "scikit-learn"),
        ("grunfeld", "statsmodels", "statsmodels"),
    ],
)
def test_a_missing_extra_says_what_to_install(monkeypatch, name: str, module: str, package: str):
    for loaded in [m for m in sys.modules if m.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"probcalc._experiments.{name}", raising=False)
    text = rf"{name}' reads its data from {package}, .* `pip install 'probcalc\[data\]'`"
    with pytest.raises(ImportError, match=text):
        load(name)


def test_eight_schools_needs_no_extra(monkeypatch):
    for module in ("sklearn", "statsmodels", "pandas"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "probcalc._experiments.eight_schools", raising=False)
    assert load("eight_schools").name == "eight_schools"


def test_positive_knobs_pass():
    @dataclasses.dataclass(frozen=True)
    class Knobs:
        a_scale: float = 1e-300

    require_positive(Knobs(), "a_scale")
