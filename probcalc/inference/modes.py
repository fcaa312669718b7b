"""Gaussians grouped into modes of the posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.inference.gaussian_average import GaussianAverage
from probcalc.inference.pathfinder import Paths
from probcalc.status import Status

_SAME_MODE = 1.0  # largest distance, in sds of either, between Gaussians of one mode
_NEGLIGIBLE = 12.0  # nats below the best at which a mode is dropped
_MAX_MODES = 6
_RUNAWAY = math.exp(25.0)  # scale at which an ELBO has no maximum
_FAR = 1e8  # location at which it has none
_RECENT, _RISING = 12, 0.5  # steps, and nats gained in them, after which it is not coming to one
_MIN_SHARE = 0.05  # of a mode in the mixture: its ELBO is a bound only


@dataclass(frozen=True, eq=False)
class Modes:
    """The distinct Gaussians of a posterior, best first, and what is wrong with them.

    Args:
        loc: Means.
        scale_tril: Lower triangular scales.
        elbo: Of each.
        status: Flags, where no fit converged.
        reasons: In words.
    """

    loc: Float[Tensor, "k d"]
    scale_tril: Float[Tensor, "k d d"]
    elbo: Float[Tensor, " k"]
    status: Status = Status.OK
    reasons: tuple[str, ...] = ()

    @property
    def shares(self) -> Float[Tensor, " k"]:
        """Of the mixture: each ELBO is about the log of the mode's mass."""
        share = self.elbo.softmax(dim=0).clamp(min=_MIN_SHARE)
        return share / share.sum()


def starts_of(paths: Paths) -> list[int]:
    """One path for every mode that the paths ran to, best first.

    A path that was still on its way shows no mode of its own: it counts only where it is best.
    """
    order = paths.elbo.argsort(descending=True).tolist()
    worth = (paths.elbo > paths.elbo.max() - _NEGLIGIBLE) & (paths.status == Status.OK)
    kept = order[:1]
    for i in order[1:]:
        if not worth[i]:
            continue
        if not any(_near(paths.mode, paths.scale_tril, i, k) for k in kept):
            kept.append(i)
    return kept[:_MAX_MODES]


def modes_of(fitted: GaussianAverage) -> Modes:
    """The distinct ones among fitted Gaussians; failed ones only where all failed."""
    good = fitted.converged & fitted.elbo.isfinite()
    status, reasons = Status.OK, ()
    if not bool(good.any()):
        status, reasons = _failure(fitted)
        good = fitted.elbo == fitted.elbo.nan_to_num(-math.inf).max()
    order = [i for i in fitted.elbo.argsort(descending=True).tolist() if good[i]]
    kept: list[int] = []
    for i in order:
        apart = not any(_near(fitted.loc, fitted.scale_tril, i, k) for k in kept)
        if apart and fitted.elbo[i] > fitted.elbo[order[0]] - _NEGLIGIBLE:
            kept.append(i)
    kept = kept or order[:1] or [0]
    return Modes(fitted.loc[kept], fitted.scale_tril[kept], fitted.elbo[kept], status, reasons)


def _near(loc: Tensor, scale_tril: Tensor, i: int, j: int) -> bool:
    """Do two Gaussians overlap, seen from either?"""
    gap = (loc[i] - loc[j])[:, None]
    seen = [torch.linalg.solve_triangular(scale_tril[k], gap, upper=False) for k in (i, j)]
    return min(float(t.abs().max()) for t in seen) < _SAME_MODE


def _failure(fitted: GaussianAverage) -> tuple[Status, tuple[str, ...]]:
    away = (fitted.scale_tril.abs() > _RUNAWAY).any() | (fitted.loc.abs() > _FAR).any()
    recent = fitted.trace[-_RECENT:]
    rising = (recent[-1] - recent[0] > _RISING) & (recent[0] > -math.inf)
    if bool(away) or (len(recent) == _RECENT and bool(rising.any())):
        return Status.IMPROPER, ("the ELBO has no maximum: it grows without bound",)
    why = (
        f"no fit converged in {int(fitted.num_steps.max())} steps "
        f"({float(fitted.decrement.min()):.1e} nats short)"
    )
    return Status.NOT_CONVERGED, (why,)
