"""The ladder's way in many dimensions, where nothing of size d × d is to be formed.

A mean-field Gaussian by sample averages from a few starts, then a low-rank one from there; the
one with the more even weights is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from probcalc._random import child
from probcalc.inference.guides import Guide, LowRank, MeanField
from probcalc.inference.parameters import Values
from probcalc.inference.saa import sample_average
from probcalc.inference.sample_average import SampleAverage, runs_away
from probcalc.inference.solved import Solved
from probcalc.inference.target import Target
from probcalc.integration.normal_draws import matched_normal_draws
from probcalc.status import Status

_NUM_DRAWS = 32
_RANK = 16
_START_LOG_SCALE = -3.0  # small, so that the first draws lie where the start does
_STEPS = 300


@dataclass(frozen=True, eq=False)
class LargeFit:
    """Fits in the order tried.

    Args:
        solved: Mean-field and low-rank fits.
    """

    solved: tuple[Solved, ...]


def fit_large(target: Target, *, seed: int, restarts: int, init: Values | None) -> LargeFit:
    """Fit a mean-field and a low-rank Gaussian.

    Args:
        target: What to approximate.
        seed: Of starts and draws.
        restarts: Starts of the mean-field fit.
        init: Constrained values of the first start.
    """
    first = _mean_field(target, seed=seed, restarts=restarts, init=init)
    if first.status:
        return LargeFit((first,))
    guide = LowRank(rank=_RANK)
    params = _spread(guide, target, first.params, child(seed, 2))
    second = SampleAverage(num_draws=2 * _NUM_DRAWS, max_draws=2 * _NUM_DRAWS, num_sets=1).solve(
        target, guide, params, seed=seed
    )
    return LargeFit((first, second))


def _mean_field(target: Target, *, seed: int, restarts: int, init: Values | None) -> Solved:
    loc = target.starts(restarts, child(seed, 0))
    if init is not None:
        loc = torch.cat([target.unconstrain(init)[None], loc[1:]])
    eps = matched_normal_draws(
        restarts, _NUM_DRAWS, target.dim, generator=child(seed, 1, target.device)
    )
    fitted = sample_average(
        target.value_and_grad,
        loc,
        torch.full_like(loc, _START_LOG_SCALE),
        eps,
        max_steps=_STEPS,
    )
    best = int(fitted.elbo.nan_to_num(-torch.inf).argmax())
    params = {"loc": fitted.loc[best], "log_scale": fitted.log_scale[best]}
    flags, reasons = Status.OK, ()
    if runs_away(params):
        flags, reasons = Status.IMPROPER, ("the ELBO has no maximum: it grows without bound",)
    elif not bool((fitted.solution.status == Status.OK).any()):
        flags, reasons = Status.NOT_CONVERGED, (f"no start converged in {_STEPS} steps",)
    return Solved(
        MeanField(),
        params,
        f"mean-field SAA ({restarts} restarts × {_NUM_DRAWS} draws)",
        fitted.num_evals,
        fitted.num_evals,
        flags,
        reasons,
    )


def _spread(
    guide: Guide, target: Target, params: dict[str, Tensor], stream: torch.Generator
) -> dict[str, Tensor]:
    """The low-rank guide at the mean-field fit, its factor small."""
    start = guide.init(target, stream)
    ratio = (params["log_scale"] - start["log_scale"]).exp()
    return {**params, "factor": ratio[:, None] * start["factor"]}
