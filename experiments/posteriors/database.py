"""Reading a posteriordb folder: JSON, the larger files zipped.

Magnusson et al. (2025), posteriordb: Testing, Benchmarking and Developing Bayesian Inference
Algorithms.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_REFERENCE = "reference_posteriors/draws/draws"


def posterior_names(database: Path) -> tuple[str, ...]:
    """Names of the posteriors in a folder."""
    return tuple(sorted(p.stem for p in (root(database) / "posteriors").glob("*.json")))


def root(database: Path) -> Path:
    """The folder that holds ``posteriors``, ``data`` and ``reference_posteriors``.

    Raises:
        ValueError: If it is not there.
    """
    for folder in (database, database / "posterior_database"):
        if (folder / "posteriors").is_dir():
            return folder
    raise ValueError(
        f"{database} must be a posteriordb folder, with a folder `posteriors` in it or in its "
        "`posterior_database`; it has none."
    )


def read_posterior(database: Path, name: str) -> dict[str, Any]:
    """What the database says about a posterior.

    Raises:
        ValueError: If it has none of that name.
    """
    path = root(database) / "posteriors" / f"{name}.json"
    if not path.is_file():
        known = ", ".join(posterior_names(database))
        raise ValueError(f"no posterior {name!r} in {database}; it has {known}.")
    return json.loads(path.read_text(encoding="utf-8"))


def read_data(database: Path, name: str) -> dict[str, Tensor]:
    """A data set, every entry a float64 tensor."""
    raw = _zipped(root(database) / "data" / "data" / f"{name}.json.zip")
    return {key: torch.tensor(value, dtype=torch.float64) for key, value in raw.items()}


def read_draws(database: Path, name: str | None) -> tuple[tuple[str, ...], Tensor] | None:
    """Reference draws, chains one below the other, with the names of their columns."""
    path = root(database) / _REFERENCE / f"{name}.json.zip"
    if not path.is_file():
        return None
    chains = _zipped(path)
    columns = tuple(chains[0])
    draws = [torch.tensor([chain[c] for c in columns], dtype=torch.float64).T for chain in chains]
    return columns, torch.cat(draws)


def _zipped(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))
