"""The posteriors of `vi_small`: Pyro model, data, reference moments, and errors against them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor

_REFERENCES = Path(__file__).parent / "references"
_PRIOR_SCALE = 2.5

# Rubin (1981): effect of coaching in eight schools, and its standard error
_EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
_STD_ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)


@dataclass(frozen=True)
class Reference:
    """Posterior means and sds of the reported parameters, and where they come from."""

    mean: Tensor
    std: Tensor
    source: str


@dataclass(frozen=True)
class Problem:
    """One posterior to approximate.

    Args:
        name: Of the case.
        model: Pyro model of the data; `numpyro_svi.MODELS` has its twin under the same name.
        data: Its arguments, float64.
        reported: From draws of the latent sites, along the first axis, to ``(n, p)``.
        sites: Names whose moments, flattened in this order, are the p reported values.
        reference: Their moments.
    """

    name: str
    model: Callable[..., None]
    data: tuple[Tensor, ...]
    reported: Callable[[Mapping[str, Tensor]], Tensor]
    sites: tuple[str, ...]
    reference: Reference


def eight_schools() -> Problem:
    """Hierarchical means, non-centred: 10 latent values, 10 reported (mu, tau, theta)."""
    data = (torch.tensor(_EFFECTS).double(), torch.tensor(_STD_ERRORS).double())
    reported = lambda draws: torch.cat(  # noqa: E731
        [
            draws["mu"],
            draws["tau"],
            draws["mu"] + draws["tau"] * draws["theta_raw"],
        ],
        dim=1,
    )
    sites = ("mu", "tau", "theta")
    reference = _reference("eight_schools")
    return Problem("eight_schools", _eight_schools, data, reported, sites, reference)


def breast_cancer() -> Problem:
    """Logistic regression of 569 tumours on 30 standardised measurements and an intercept."""
    x, y = (torch.as_tensor(part).double() for part in load_breast_cancer(return_X_y=True))
    x = (x - x.mean(dim=0)) / x.std(dim=0, correction=0)
    x = torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x], dim=1)  # (569, 31)
    reference = _reference("breast_cancer")
    return Problem("breast_cancer", _logistic, (x, y), lambda d: d["w"], ("w",), reference)


PROBLEMS = {"eight_schools": eight_schools, "breast_cancer": breast_cancer}


def errors(problem: Problem, mean: Tensor, std: Tensor) -> dict[str, float]:
    """Worst and root-mean-square error of means and sds, in reference sds."""
    reference = problem.reference
    by_mean = (mean.double().cpu() - reference.mean).abs() / reference.std
    by_std = (std.double().cpu() / reference.std - 1).abs()
    return {
        "worst mean error (sd)": float(by_mean.max()),
        "rms mean error (sd)": float(by_mean.square().mean().sqrt()),
        "worst sd error": float(by_std.max()),
        "rms sd error": float(by_std.square().mean().sqrt()),
    }


def errors_of_draws(problem: Problem, draws: Mapping[str, Any]) -> dict[str, float]:
    """The same from draws of the latent sites, any shape with the draws first."""
    flat = {name: torch.as_tensor(value).double() for name, value in draws.items()}
    x = problem.reported({name: value.reshape(len(value), -1) for name, value in flat.items()})
    return errors(problem, x.mean(dim=0), x.std(dim=0))


def _eight_schools(effects: Tensor, std_errors: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(effects)):
        theta_raw = pyro.sample("theta_raw", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * theta_raw)
        pyro.sample("effect", dist.Normal(theta, std_errors), obs=effects)


def _logistic(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, _PRIOR_SCALE).expand([x.shape[1]]).to_event(1))
    with pyro.plate("tumours", len(x)):
        pyro.sample("benign", dist.Bernoulli(logits=x @ w), obs=y)


def _reference(name: str) -> Reference:
    record = json.loads((_REFERENCES / f"{name}.json").read_text(encoding="utf-8"))
    mean, std = (torch.tensor(record[key], dtype=torch.float64) for key in ("mean", "std"))
    return Reference(mean, std, record["source"])
