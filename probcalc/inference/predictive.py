r"""Predictions with error bars, and checks of a model against its own predictions.

    y_rep ~ ∫ p(y_rep | θ) p(θ | y) dθ,     p-value of a statistic T: P(T(y_rep) ≥ T(y))

with ties counted by half. Parameters are resampled by their weights within each independent
replicate of the posterior, so that the spread between replicates is the bar of everything that is
computed from the predictions. Without a posterior they come from the prior.

Gelman, Carlin, Stern, Dunson, Vehtari & Rubin (2013), Bayesian data analysis, section 6.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc._random import child, draw_seed
from probcalc._table import text_table
from probcalc._tree import Layout
from probcalc.inference.moments import weighted_moments, weighted_quantile
from probcalc.inference.parameters import Values
from probcalc.inference.pointwise import simulator_of
from probcalc.inference.posterior import Posterior
from probcalc.inference.prior import prior_draws
from probcalc.inference.resampling import named, resampled
from probcalc.inference.target import Target
from probcalc.result import Estimate, format_with_error
from probcalc.status import Status

Statistic = Callable[[Tensor], Tensor]
_PRIOR_REPLICATES = 16
_PARAMETERS, _DATA = 0, 1  # streams of the seed
_MAX_ROWS = 30
_EXTREME = 0.01  # p-values beyond it, at either end, are worth a look

STATISTICS: dict[str, Statistic] = {
    "mean": lambda y: y.mean(dim=0),
    "sd": lambda y: y.std(dim=0),
    "min": lambda y: y.amin(dim=0),
    "max": lambda y: y.amax(dim=0),
}


@dataclass(frozen=True, eq=False, repr=False)
class PredictiveCheck:
    """A statistic of the data among those of predictions.

    Args:
        site: Of the data.
        name: Of the statistic, with the column where the data have several.
        observed: T(y).
        replicated: T(y_rep) of every draw.
        p_value: P(T(y_rep) ≥ T(y)), ties by half; near 0 or 1 the model does not make such data.
    """

    site: str
    name: str
    observed: float
    replicated: Float[Tensor, " n"]
    p_value: Estimate

    @property
    def is_extreme(self) -> bool:
        """Whether the p-value, its bar included, is among the outer 1 % at either end."""
        p, bar = float(self.p_value.value), float(self.p_value.error)
        return min(p, 1 - p) + bar < _EXTREME

    def __repr__(self) -> str:
        return f"{self.site} {self.name}: {self.observed:.4g}, p {self.p_value._numbers()}"


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """Data drawn from the posterior (or prior) predictive distribution.

    Args:
        draws: By site, draws first: replicate after replicate.
        values: Parameters behind each draw, derived ones too.
        observed: The data, where they have the predictions' shape; None for other rows.
        num_replicates: Independent groups of draws.
        confidence: Of all bars.
        status: Flags of the posterior.
        reasons: In words.
        method: Where the parameters came from.
    """

    draws: dict[str, Tensor]
    values: Values
    observed: dict[str, Tensor] | None
    num_replicates: int
    confidence: float
    status: Status
    reasons: tuple[str, ...]
    method: str

    @property
    def ok(self) -> bool:
        """No flag stands."""
        return self.status == Status.OK

    @property
    def num_draws(self) -> int:
        """Draws of all replicates."""
        return len(next(iter(self.draws.values())))

    @property
    def mean(self) -> dict[str, Estimate]:
        """Predictive mean of every entry."""
        return self._by_site(self._moments[0])

    @property
    def std(self) -> dict[str, Estimate]:
        """Predictive standard deviation of every entry."""
        return self._by_site(self._moments[1])

    def quantile(self, level: float) -> dict[str, Estimate]:
        """Predictive quantile of every entry.

        Raises:
            ValueError: If `level` is not strictly between 0 and 1.
        """
        if not 0.0 < level < 1.0:
            raise ValueError(f"`level` must lie strictly between 0 and 1, got {level}.")
        return self._by_site(weighted_quantile(self._x, self._equal, level, self.confidence))

    def checks(
        self, statistics: Mapping[str, Statistic] | None = None
    ) -> tuple[PredictiveCheck, ...]:
        """Compare statistics of the data with those of predictions.

        Args:
            statistics: By name, functions of one site's data, ``(rows, *columns)``, that return a
                number or one a column; default mean, sd, min and max over the rows.

        Returns:
            One check for each statistic of each column that is not the same in every draw.

        Raises:
            ValueError: If the predictions are of other rows than the data.
        """
        if self.observed is None:
            raise ValueError(
                "checks compare predictions with the data; these are of other rows (`new_data`)."
            )
        found = []
        for site, y in self.observed.items():
            if torch.equal(self.draws[site], y.expand_as(self.draws[site])):
                continue  # inputs, not outcomes
            for name, statistic in (statistics or STATISTICS).items():
                found.extend(self._check(site, name, statistic))
        return tuple(found)

    def __repr__(self) -> str:
        head = (
            f"{self.num_draws:,} predictions from the {self.method}: {self.status.words.upper()}"
        )
        if self.observed is None:
            return "\n".join([head, *self.reasons])
        checks = self.checks()
        rows = [[f"{c.site} {c.name}", *_cells(c)] for c in checks[:_MAX_ROWS]]
        left = len(checks) - len(rows)
        more = [f"... {left} more"] if left else []
        table = text_table(["statistic", "data", "predictions", "sd", "p"], rows)
        return "\n".join([head, *self.reasons, "", table, *more])

    def _check(self, site: str, name: str, statistic: Statistic) -> list[PredictiveCheck]:
        y, y_rep = _at_least_rows(self.observed[site]), self.draws[site]
        y_rep = y_rep[:, None] if y_rep.ndim == 1 else y_rep
        observed = torch.as_tensor(statistic(y.double()), dtype=torch.float64).flatten()
        replicated = _over(statistic, y_rep.double()).reshape(len(y_rep), -1)
        if replicated.shape[1] != len(observed):
            raise ValueError(f"statistic {name!r} must return the same shape for every data set.")
        columns = Layout({name: tuple(torch.as_tensor(statistic(y.double())).shape)}).labels
        return [
            PredictiveCheck(site, columns[j], float(observed[j]), t, self._p_value(t, observed[j]))
            for j, t in enumerate(replicated.mT)
            if bool(t.isfinite().all()) and bool((t != observed[j]).any())
        ]

    def _p_value(self, replicated: Float[Tensor, " n"], observed: Tensor) -> Estimate:
        above = (replicated > observed).double() + 0.5 * (replicated == observed).double()
        by_replicate = above.view(self.num_replicates, -1).mean(dim=1)
        estimate = Estimate.from_replicates(
            by_replicate,
            confidence=self.confidence,
            num_evals=len(above),
            method="predictive check",
        )
        # where no draw exceeds, the share may still be as large as this (rule of three)
        unseen = -math.log(1 - self.confidence) / len(above)
        return self._flagged(replace(estimate, error=estimate.error + unseen))

    @cached_property
    def _layout(self) -> Layout:
        return Layout({name: tuple(t.shape[1:]) for name, t in self.draws.items()})

    @cached_property
    def _x(self) -> Float[Tensor, "r n p"]:
        flat = self._layout.flatten({name: t.double() for name, t in self.draws.items()})
        return flat.view(self.num_replicates, -1, flat.shape[-1])

    @property
    def _equal(self) -> Float[Tensor, "r n"]:
        return torch.full_like(self._x[..., 0], 1.0 / self.num_draws)

    @cached_property
    def _moments(self) -> tuple[Estimate, Estimate]:
        return weighted_moments(self._x, self._equal, self.confidence)

    def _by_site(self, estimate: Estimate) -> dict[str, Estimate]:
        flagged = self._flagged(replace(estimate, method=self.method, num_evals=self.num_draws))
        value, error = (self._layout.unflatten(t) for t in (flagged.value, flagged.error))
        scatter = flagged.std_error
        scatter = {} if scatter is None else self._layout.unflatten(scatter)
        return {
            name: replace(
                flagged, value=value[name], error=error[name], std_error=scatter.get(name)
            )
            for name in self.draws
        }

    def _flagged(self, estimate: Estimate) -> Estimate:
        if self.ok:
            return estimate
        error = torch.full_like(estimate.error, math.inf)
        return replace(estimate, error=error, status=int(self.status))


def predict(
    target: Target,
    posterior: Posterior | None = None,
    *,
    num_draws: int = 4096,
    new_data: Any = None,
    confidence: float = 0.99,
    generator: torch.Generator | None = None,
) -> Prediction:
    """Draw data from the posterior predictive distribution, or from the prior predictive one.

    Args:
        target: A Pyro model with observed sites, or functions with `simulate`.
        posterior: Where parameters come from; None: the prior.
        num_draws: Data sets to draw, rounded up to a multiple of the replicates (16 as a rule).
        new_data: Other arguments of a Pyro model, such as new inputs: a tuple of positional ones,
            or a dict by name. Observed sites take the shapes that they then have.
        confidence: Of every error bar.
        generator: Source of randomness; one seed is drawn from it.

    Returns:
        The draws, their moments with error bars, and checks against the data. Flags of the
        posterior are kept, and make bars infinite.

    Raises:
        ValueError: If the target cannot make data, or `num_draws` is below 2 a replicate.
    """
    simulator = simulator_of(target)
    seed = draw_seed(generator)
    r = _PRIOR_REPLICATES if posterior is None else posterior.z.shape[0]
    if num_draws < 2 * r:
        raise ValueError(
            f"`num_draws` must be at least {2 * r}, two for each of {r} replicates, "
            f"got {num_draws}."
        )
    per = math.ceil(num_draws / r)
    if posterior is None:
        values, status, reasons = prior_draws(target, r * per, seed + _PARAMETERS)
        method = "prior"
    else:
        values = resampled(posterior, per, child(seed, _PARAMETERS))
        status, reasons, method = posterior.status, posterior.reasons, "posterior"
    made, derived = simulator.simulate(values, seed + _DATA, new_data)
    draws = named(made)
    observed = None if new_data is not None else named(simulator.data)
    return Prediction(
        draws, values | derived, observed, r, confidence, status, tuple(reasons), method
    )


def _over(statistic: Statistic, draws: Tensor) -> Tensor:
    """The statistic of every draw, together where `vmap` allows it."""
    try:
        return torch.func.vmap(lambda y: torch.as_tensor(statistic(y), dtype=torch.float64))(draws)
    except Exception:  # noqa: BLE001 # whatever has no batching rule; mistakes recur below
        return torch.stack([torch.as_tensor(statistic(y), dtype=torch.float64) for y in draws])


def _at_least_rows(y: Tensor) -> Tensor:
    return y[None] if y.ndim == 0 else y


def _cells(check: PredictiveCheck) -> list[str]:
    spread, p = float(check.replicated.std()), check.p_value
    shown = format_with_error(float(p.value), float(p.error))
    mean = float(check.replicated.mean())
    return [f"{check.observed:.4g}", f"{mean:.4g}", f"{spread:.3g}", shown]
