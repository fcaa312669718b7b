"""The posteriors of `vi`: our target, the peers' program, reference moments, and errors.

Data and reference draws are those of a posteriordb folder, found as by `posteriordb`; what it has
no draws of has the moments of a long run in `benchmarks/references/`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import probcalc as pc
from benchmarks.posteriordb import folder
from benchmarks.vi_models import WRITTEN, Written
from experiments.posteriors import Problem, load
from experiments.posteriors.database import read_data, read_posterior

ERROR = "worst error"  # column by which runs are compared
_REFERENCES = Path(__file__).parent / "references"


@dataclass(frozen=True)
class Attempt:
    """One setting of a peer.

    Args:
        settings: In words.
        run: ``run(seed)``, which is timed.
        score: Of its result.
    """

    settings: str
    run: Callable[[int], Any]
    score: Callable[[Any], dict[str, float]]


@dataclass(frozen=True)
class Posed:
    """One posterior.

    Args:
        name: In the database.
        problem: Ours, with the reference draws.
        written: The peers'.
        data: Arguments of the peers' program, float64.
    """

    name: str
    problem: Problem
    written: Written
    data: tuple[Tensor, ...]

    @cached_property
    def reference(self) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the reference's columns."""
        draws = self.problem.reference
        if draws is not None:
            return draws.mean(dim=0), draws.std(dim=0)
        path = _REFERENCES / f"{self.name.partition('-')[0]}.json"
        record = json.loads(path.read_text(encoding="utf-8"))
        mean, std = (torch.tensor(record[key], dtype=torch.float64) for key in ("mean", "std"))
        return mean, std

    def errors(self, mean: Tensor, std: Tensor) -> dict[str, float]:
        """Of the worst mean, in reference sds, the worst log sd, and the larger of the two."""
        known_mean, known_std = self.reference
        by_mean = float(((mean - known_mean).abs() / known_std).max())
        by_std = float((std / known_std).log().abs().max())
        return {
            "worst mean (sd)": by_mean,
            "worst log sd": by_std,
            ERROR: float(np.max([by_mean, by_std])),  # nan where either is
        }

    def errors_of_posterior(self, posterior: pc.Posterior) -> dict[str, float]:
        """Of the moments that it reports."""
        return self.errors(*self.problem.moments(posterior))

    def errors_of_draws(self, draws: Mapping[str, Any]) -> dict[str, float]:
        """Of draws of the latent sites, the draws first."""
        columns = self.columns(draws)
        return self.errors(columns.mean(dim=0), columns.std(dim=0))

    @staticmethod
    def weights(log_weights: Any) -> Tensor:
        """Of draws, summing to one."""
        return _tensor(log_weights).double().softmax(dim=0)

    def columns(self, draws: Mapping[str, Any]) -> Tensor:
        """The reference's columns of draws of the latent sites."""
        flat = {k: _tensor(v).double() for k, v in draws.items()}
        derived = self.written.derive({k: v.reshape(len(v), -1) for k, v in flat.items()})
        return torch.cat([derived[site] for site in self.problem.model.sites], dim=1)


def posed(name: str) -> Posed:
    """Read one."""
    database = folder()
    written, about = WRITTEN[name], read_posterior(database, name)
    data = written.arguments(read_data(database, about["data_name"]))
    return Posed(name, load(database, name), written, data)


def _tensor(values: Any) -> Tensor:
    """Of any package's array."""
    return values if isinstance(values, Tensor) else torch.as_tensor(np.array(values))
