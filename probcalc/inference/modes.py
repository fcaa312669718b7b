"""Restarts of a sample-average fit grouped into modes.

Restarts whose locations agree to within a guide sd are one mode; they are also independent
randomisations of the fixed draws, so their spread is the error of those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from probcalc.inference.saa import SampleAverageFit
from probcalc.status import Status

_SAME_MODE = 1.0  # largest distance, in guide sds, between restarts of one mode
_NEGLIGIBLE = 12.0  # nats below the best at which a mode is dropped
_RUNAWAY = 25.0  # log scale at which an ELBO has no maximum
_FAR = 1e8  # location at which it has none


@dataclass(frozen=True, eq=False)
class Mode:
    """One mode: its mean location and scale, and the draws of its `r` restarts."""

    loc: Float[Tensor, " d"]
    log_scale: Float[Tensor, " d"]
    eps: Float[Tensor, "r m d"]
    elbo: float

    @property
    def size(self) -> int:
        """Number of restarts that found it."""
        return self.eps.shape[0]


def grouped(fitted: SampleAverageFit) -> tuple[list[Mode], Status, tuple[str, ...]]:
    """Restarts in groups of one mode each, best first; failed ones only where all failed."""
    status = fitted.solution.status
    good = (status == Status.OK) & fitted.elbo.isfinite()
    flags, reasons = Status.OK, ()
    if not bool(good.any()):
        flags, reasons = _failure(fitted)
        good = fitted.elbo.nan_to_num(-math.inf) == fitted.elbo.nan_to_num(-math.inf).max()
    order = fitted.elbo.argsort(descending=True)
    order = order[good[order]]
    groups: list[list[int]] = []
    for i in order.tolist():
        s = fitted.log_scale[i].exp()
        for group in groups:
            if float(((fitted.loc[i] - fitted.loc[group[0]]) / s).abs().max()) < _SAME_MODE:
                group.append(i)
                break
        else:
            groups.append([i])
    modes = [_averaged(fitted, group) for group in groups]
    best = modes[0]
    kept = [m for m in modes if m is best or m.elbo > best.elbo - _NEGLIGIBLE]
    return kept, flags, reasons


def _averaged(fitted: SampleAverageFit, group: list[int]) -> Mode:
    return Mode(
        fitted.loc[group].mean(dim=0),
        fitted.log_scale[group].mean(dim=0),
        fitted.eps[group],
        float(fitted.elbo[group].mean()),
    )


def _failure(fitted: SampleAverageFit) -> tuple[Status, tuple[str, ...]]:
    runaway = (fitted.log_scale > _RUNAWAY).any(dim=1) | (fitted.loc.abs() > _FAR).any(dim=1)
    endless = (fitted.solution.status & Status.UNBOUNDED) != 0
    if bool((runaway | endless).any()):
        return Status.IMPROPER, ("the ELBO has no maximum: it grows without bound",)
    why = (
        f"no restart converged in {int(fitted.solution.num_evals.max())} steps "
        f"(smallest gradient {float(fitted.solution.grad_norm.min()):.1e})"
    )
    return Status.NOT_CONVERGED, (why,)


def disagreement(fitted: SampleAverageFit, modes: list[Mode]) -> float:
    """Standard error of the best mode's location over randomisations, in guide sds."""
    mode = modes[0]
    if mode.size < 2:
        return math.inf
    s = mode.log_scale.exp()
    near = ((fitted.loc - mode.loc) / s).abs().amax(dim=1) < _SAME_MODE
    spread = fitted.loc[near].std(dim=0) / s
    return float(spread.max()) / int(near.sum()) ** 0.5
