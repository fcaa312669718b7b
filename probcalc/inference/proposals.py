"""Better proposals for importance weights, from values of the density alone.

Tried in turn while the weights are uneven: heavier tails, the weighted mean, the weighted
moments; what has a lower k̂, or more effective draws where both can be trusted, is kept. Cappé,
Douc, Guillin, Marin & Robert (2008), Adaptive importance sampling in general mixture classes.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from probcalc.inference.assess import Budget, first_draws
from probcalc.inference.guides import DefensiveMixture, Guide, StudentT
from probcalc.inference.importance import WeightedDraws, recentred, refitted
from probcalc.inference.mixture_fit import fitted_mixture, tempered
from probcalc.inference.target import Target
from probcalc.linalg import cholesky_or_none, symmetric

_ENOUGH = 0.75  # share of effective draws at which a light-tailed proposal is not improved further
_GAIN = 1.2  # factor in effective draws below which a new proposal is no better
_MAX_REFITS = 2
_LIGHT = 0.5  # k̂ below which ratios have a finite variance
_LIGHTER = 0.1  # difference in k̂ that is not noise
_COMPONENTS = (7, 7)  # of the mixtures tried, one after another
_MAX_MIXED = 40  # dimensions above which a mixture has more parameters than draws can fix
_DRAWS_PER_PARAMETER = 10  # effective draws a dimension and component that a mixture is fitted to
_WIDE = 1.2  # of the t's scale, against that of all draws
_WIDER = 1.1  # of the others'


@runtime_checkable
class Ledger(Protocol):
    """Where work is written down."""

    def note(self, step: str) -> None:
        """In words."""
        ...

    def spend(self, *, gradients: int = 0, values: int = 0) -> None:
        """In evaluations."""
        ...


def improved(
    target: Target,
    draws: WeightedDraws,
    budget: Budget,
    generator: torch.Generator,
    ledger: Ledger,
) -> WeightedDraws:
    """The best proposal found, with fresh draws.

    Args:
        target: What is approximated.
        draws: Of the proposal at hand.
        budget: Its first draws.
        generator: Of further draws.
        ledger: Where work is written down.
    """
    search = _Search(target, budget, generator, ledger)
    best = search.mixed(search.matched(search.heavier(draws)))
    if best is draws:
        return draws
    # it was chosen for its weights: judge it by draws that had no say in the choice
    return search.weighed(best.guide, best.params)


class _Search:
    """Proposals tried on one target."""

    def __init__(
        self, target: Target, budget: Budget, generator: torch.Generator, ledger: Ledger
    ) -> None:
        self.target, self.budget, self.ledger = target, budget, ledger
        self._stream = generator

    def weighed(self, guide: Guide, params: dict) -> WeightedDraws:
        draws = first_draws(self.target, guide, params, self.budget, self._stream)
        self.ledger.spend(values=draws.num_evals)
        return draws

    def heavier(self, draws: WeightedDraws) -> WeightedDraws:
        if is_light(draws) or draws.strata > 2:
            return draws
        return self._chosen(draws, self.weighed(StudentT(), draws.params), "Student t tails")

    def matched(self, draws: WeightedDraws) -> WeightedDraws:
        """Proposals that match the weighted mean, or all weighted moments, while that helps."""
        for _ in range(_MAX_REFITS):
            if is_even(draws):
                return draws
            match, name = (
                (recentred, "weighted mean")
                if draws.is_trusted
                else (refitted, "weighted moments")
            )
            params = match(draws)
            candidate = draws if params is None else self.weighed(draws.guide, params)
            before, draws = draws, self._chosen(draws, candidate, name)
            if draws is before:
                return draws
        return draws

    def mixed(self, draws: WeightedDraws) -> WeightedDraws:
        """Mixtures fitted to the weighted draws, of more and more components."""
        d = self.target.dim
        latest, tried = draws, 0
        while not is_even(draws) and tried < len(_COMPONENTS) and d <= _MAX_MIXED:
            params = self._mixture(latest, _COMPONENTS[tried])
            tried += 1
            if params is None:
                break
            k = len(params["loc"])
            latest = self.weighed(DefensiveMixture(k), params)
            draws = self._chosen(draws, latest, f"mixture of {k} and a t")
        return draws

    def _mixture(self, draws: WeightedDraws, k: int) -> dict[str, Tensor] | None:
        """K Gaussians fitted to the weighted draws, and a wide t for the tails."""
        d = self.target.dim
        z, weights = draws.z.reshape(-1, d), draws.weights.flatten()
        some = tempered(draws.log_weights.flatten(), float(_DRAWS_PER_PARAMETER * k * d))
        fitted = fitted_mixture(z, some, k, generator=self._stream)
        if fitted is None:
            return None
        loc, scale = fitted
        centre = weights @ z
        centred = z - centre
        spread = cholesky_or_none(symmetric(centred.mT @ (centred * weights[:, None])))
        if spread is None:
            return None
        return {
            "loc": loc,
            "scale_tril": _WIDER * scale,
            "tail_loc": centre,
            "tail_scale_tril": _WIDE * spread,
        }

    def _chosen(self, old: WeightedDraws, new: WeightedDraws, name: str) -> WeightedDraws:
        """The better proposal, its name noted."""
        if not better(old, new):
            return old
        self.ledger.note(name)
        return new


def is_light(draws: WeightedDraws) -> bool:
    """Do the ratios have a finite variance, as far as these draws can tell?"""
    return draws.tail < _LIGHT


def is_even(draws: WeightedDraws) -> bool:
    """Is there little to gain from a better proposal?"""
    return is_light(draws) and draws.effective_size >= _ENOUGH * draws.num_evals


def better(old: WeightedDraws, new: WeightedDraws) -> bool:
    """Is k̂ lower? Where both are trusted that may be noise: are more draws effective?"""
    share = new.effective_size / new.num_evals * old.num_evals / old.effective_size
    if old.is_trusted and new.is_trusted:
        lighter = old.tail > _LIGHT and new.tail < old.tail - _LIGHTER
        return share > (1 / _GAIN if lighter else _GAIN)
    return new.tail < old.tail
