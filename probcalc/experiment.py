"""What an experiment is, and where experiments are found.

An experiment is one file: its docstring is the claim, a frozen dataclass `Config` holds the
knobs, `target(config)` builds the posterior, `run(config, **settings)` fits it, and `REFERENCE`
says what is right at the default knobs. Where there is no `target`, the experiment is of many
posteriors or trains a model, and `run` returns their `Scoreboard` or its `Study`. A checkout
keeps them in `experiments/`, an installed wheel in `probcalc/_experiments`; packages beside them
are theirs to import from.
"""

from __future__ import annotations

import ast
import math
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from probcalc._check import unknown_name
from probcalc.inference.posterior import Posterior
from probcalc.inference.target import Target
from probcalc.reporting.comparison import Reference, Row
from probcalc.reporting.scoreboard import Scoreboard
from probcalc.reporting.study import Study

__all__ = ["Experiment", "Reference", "Row", "claims", "load", "require_positive"]

_PACKAGE = Path(__file__).parent
_PARENT = "probcalc._experiments"
_PLACES = (_PACKAGE / "_experiments", _PACKAGE.parent / "experiments")
_DATA_EXTRA = {"sklearn": "scikit-learn", "statsmodels": "statsmodels", "pandas": "statsmodels"}


class UnknownExperiment(ValueError):
    """No experiment of that name."""


@dataclass(frozen=True)
class Experiment:
    """One file of the experiments' folder, loaded.

    Args:
        name: Of the file, without its ending.
        module: What it defines.
    """

    name: str
    module: ModuleType

    @property
    def claim(self) -> str:
        """The docstring."""
        return (self.module.__doc__ or "").strip()

    @property
    def config_class(self) -> type:
        """The frozen dataclass of knobs."""
        return self.module.Config

    @property
    def is_suite(self) -> bool:
        """It is of many posteriors, or of a model that is trained."""
        return not hasattr(self.module, "target")

    @property
    def pair(self) -> tuple[str, str]:
        """Names of the two entries whose joint density is worth a picture."""
        return self.module.PAIR

    def target(self, config: Any) -> Target:
        """The posterior at these knobs."""
        return self.module.target(config)

    def run(self, config: Any, **settings: Any) -> Posterior | Scoreboard | Study:
        """Fit the posterior, or the many, at these knobs; `settings` go to `fit`."""
        return self.module.run(config, **settings)

    def reference(self, config: Any) -> Reference | None:
        """What is right, or None where the knobs are not those of the reference."""
        return self.module.REFERENCE if config == self.config_class() else None


def claims() -> dict[str, str]:
    """First line of every experiment's docstring, by name; nothing is imported."""
    return {path.stem: _first_line(path) for path in _files()}


def load(name: str) -> Experiment:
    """Load an experiment from its file.

    Raises:
        UnknownExperiment: If there is none of that name; the nearest are listed.
        ImportError: If it needs an extra that is not installed.
    """
    found = {path.stem: path for path in _files()}
    if name not in found:
        raise UnknownExperiment(unknown_name("experiment", name, found))
    full_name = f"{_PARENT}.{name}"
    if full_name not in sys.modules:
        _execute(full_name, found[name])
    return Experiment(name, sys.modules[full_name])


def require_positive(config: Any, *names: str) -> None:
    """Refuse knobs that are not finite and above zero.

    Raises:
        ValueError: Naming the option as it is given on the command line.
    """
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value > 0):
            option = "--" + name.replace("_", "-")
            raise ValueError(f"`{option}` must be a finite number above 0, got {value}.")


def _files() -> list[Path]:
    folder = next((place for place in _PLACES if place.is_dir()), None)
    if folder is None:
        return []
    return sorted(path for path in folder.glob("*.py") if not path.stem.startswith("_"))


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def _execute(full_name: str, path: Path) -> None:
    _make_importable(path.parent)
    spec = spec_from_file_location(full_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[full_name] = module  # where dataclasses look up the annotations of `Config`
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[full_name]
        if isinstance(error, ModuleNotFoundError):
            raise _explained(error, path.stem) from error
        raise


def _make_importable(folder: Path) -> None:
    """Let experiments import packages beside them, in a checkout too."""
    if _PARENT not in sys.modules:
        spec = ModuleSpec(_PARENT, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        sys.modules[_PARENT] = module_from_spec(spec)


def _explained(error: ModuleNotFoundError, name: str) -> ImportError:
    package = _DATA_EXTRA.get((error.name or "").partition(".")[0])
    if package is None:
        return error
    return ImportError(
        f"experiment {name!r} reads its data from {package}, which is not installed; "
        "run `pip install 'probcalc[data]'`."
    )
