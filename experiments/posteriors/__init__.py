"""Posteriors of posteriordb, their models written from the mathematical definitions.

`load(database, name)` reads data and reference draws from a posteriordb folder and puts them
with the model of that name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import probcalc as pc

from . import (
    differential_equations,
    gaussian_processes,
    hierarchical,
    mixtures,
    regressions,
    time_series,
)
from .database import posterior_names, read_data, read_draws, read_posterior
from .model import Model, Values

MODELS = {
    **regressions.MODELS,
    **time_series.MODELS,
    **hierarchical.MODELS,
    **gaussian_processes.MODELS,
    **mixtures.MODELS,
    **differential_equations.MODELS,
}


@dataclass(frozen=True)
class Problem:
    """A posterior with what is known about it.

    Args:
        name: As in the database.
        model: The target, and how its values name the reference's.
        column_names: Names of the reference's columns, such as ``theta[3]``, counted from 1.
        reference: Its draws, ``(n, p)``; None where the database has none.
    """

    name: str
    model: Model
    column_names: tuple[str, ...]
    reference: Tensor | None

    @property
    def target(self) -> pc.Target:
        """The density."""
        return self.model.target

    @property
    def is_proper(self) -> bool:
        """Whether the evidence exists."""
        return self.model.is_proper

    def columns(self, values: Values) -> Tensor:
        """The reference's columns ``(n, p)`` of constrained values, draws along the first axis."""
        derived = self.model.derive(values)
        return torch.cat(
            [derived[s].reshape(len(derived[s]), -1) for s in self.model.sites], dim=1
        )

    def latent(self, columns: Tensor) -> Tensor:
        """Unconstrained vectors of rows of the reference's columns, ``(n, d)``."""
        values, shapes = {}, self._shapes
        widths = [torch.Size(shape).numel() for shape in shapes.values()]
        for (site, shape), piece in zip(shapes.items(), columns.split(widths, dim=1), strict=True):
            values[site] = piece.reshape(-1, *shape)
        inverted = self.model.invert(values)
        known = {n: v for n, v in inverted.items() if n in self.target.layout.shapes}
        return self.target.unconstrain_rows(known)

    def moments(self, posterior: pc.Posterior) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the columns under a posterior, ``(p)`` each.

        A column that is an entry of the posterior has the moments that the posterior reports;
        what is derived outside the target has its expectation and that of its centred square.
        """
        pairs = [self._site_moments(posterior, site) for site in self.model.sites]
        means, stds = (
            torch.cat([v.reshape(-1) for v in kind]) for kind in zip(*pairs, strict=True)
        )
        return means, stds

    def _site_moments(self, posterior: pc.Posterior, site: str) -> tuple[Tensor, Tensor]:
        if site in posterior.layout.shapes:
            return posterior.mean[site].value, posterior.std[site].value
        value = lambda values: self.model.derive(values)[site]  # noqa: E731
        mean = posterior.expect(value).value
        variance = posterior.expect(lambda values: (value(values) - mean).square()).value
        return mean, variance.clamp(min=0.0).sqrt()

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        one = self.model.derive(self.target.constrain(torch.zeros(1, self.target.dim).double()))
        return {site: tuple(one[site].shape[1:]) for site in self.model.sites}


def names(database: Path) -> tuple[str, ...]:
    """Names of the posteriors in a folder whose model is written here."""
    found = posterior_names(database)
    return tuple(n for n in found if read_posterior(database, n)["model_name"] in MODELS)


def load(database: Path, name: str) -> Problem:
    """Read one posterior.

    Args:
        database: A posteriordb folder, or one with a `posterior_database` in it.
        name: Such as ``eight_schools-eight_schools_centered``.

    Raises:
        ValueError: If the folder has no such posterior, or its model is not written here.
    """
    about = read_posterior(database, name)
    if about["model_name"] not in MODELS:
        raise ValueError(f"model {about['model_name']!r} is not written; known: {list(MODELS)}.")
    model = MODELS[about["model_name"]](read_data(database, about["data_name"]))
    draws = read_draws(database, about.get("reference_posterior_name"))
    problem = Problem(name, model, (), None)
    labels = _labels(problem._shapes)
    if draws is None:
        return Problem(name, model, labels, None)
    columns, table = draws
    if columns != labels:
        raise ValueError(f"the reference's columns of {name!r} must be {labels}, got {columns}.")
    return Problem(name, model, labels, table)


def _labels(shapes: dict[str, tuple[int, ...]]) -> tuple[str, ...]:
    labels = []
    for site, shape in shapes.items():
        count = torch.Size(shape).numel()
        labels += [f"{site}[{i + 1}]" for i in range(count)] if shape else [site]
    return tuple(labels)
