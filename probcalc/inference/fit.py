"""`fit`: a posterior without tuning, and a verdict.

1. Mean-field SAA from several random starts, each with its own fixed draws, as one batch; draws
   are doubled until the randomisations agree.
2. Restarts are grouped into modes; linear response gives each mode its covariance.
3. Importance weights. Where they are uneven, the mean-field fit is repeated in coordinates
   whitened by the covariance, and the proposal is matched to the weighted moments.
4. The best proposal is weighed until its moments are known, and judged by k̂.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc._random import child, draw_seed
from probcalc.inference.assess import Budget, Progress, assess, first_draws
from probcalc.inference.guides import FullRank, GaussianMixture, MeanField, StudentT
from probcalc.inference.importance import Proposal, WeightedDraws, recentred, refitted
from probcalc.inference.linear_response import elbo_gradient, elbo_hessian, response_covariance
from probcalc.inference.modes import Mode, disagreement, grouped
from probcalc.inference.parameters import Values
from probcalc.inference.posterior import Posterior
from probcalc.inference.saa import Frame, SampleAverageFit, sample_average
from probcalc.inference.target import Target
from probcalc.integration.normal_draws import matched_normal_draws
from probcalc.linalg import cholesky_or_none
from probcalc.status import EstimateWarning, Status

_STARTS, _DRAWS, _FRAME, _WEIGHTS = range(4)  # streams of the run's seed
_ENOUGH = 0.4  # share of effective draws at which a trusted proposal is not improved further
_GAIN = 1.1  # factor in effective draws below which a new proposal is no better
_MAX_REFITS = 3
_MANY = 100  # dimensions above which fewer restarts are made
_UNTRACED_EVALS = 2**13  # default budget where every evaluation is a call of the function
_MAX_DENSE = 512  # dimensions up to which a d × d covariance is formed


@dataclass(frozen=True)
class SampleAverage:
    """Settings of the mean-field sample-average approximation.

    Args:
        num_draws: Fixed draws a restart at first; None: max(32, 2 d), at most 256.
        max_draws: Largest number after doubling.
        tolerance: Disagreement between randomisations at which doubling stops, as the standard
            error of their mean in guide sds.
    """

    num_draws: int | None = None
    max_draws: int = 512
    tolerance: float = 0.15

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If a number of draws is odd or below 2.
        """
        for name in ("num_draws", "max_draws"):
            value = getattr(self, name)
            if value is not None and (value < 2 or value % 2):
                raise ValueError(f"`{name}` must be even and at least 2, got {value}.")


def fit(
    target: Target,
    *,
    guide: MeanField | None = None,
    method: SampleAverage | None = None,
    init: Values | None = None,
    max_evals: int | None = None,
    restarts: int | None = None,
    confidence: float = 0.99,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Posterior:
    """Approximate a posterior and say how far to trust it.

    Args:
        target: What to approximate; computed in float64 whatever its dtype.
        guide: First rung; its `init_log_scale` is the starting scale.
        method: Settings of the optimisation.
        init: Constrained values for the first restart; the others start at random.
        max_evals: Most evaluations of the log density for weighing (the optimisation stops by
            itself); default 2¹⁷, or 2¹³ for a target that runs untraced.
        restarts: Random restarts, each also an independent randomisation of the fixed draws;
            None: 8; 4 above 100 dimensions; 2 for a target that runs untraced.
        confidence: Of every error bar.
        device: Where to compute, default the target's.
        generator: Source of randomness; one seed is drawn from it.
        progress: Called with a stage's name and the evaluations spent so far.

    Returns:
        The posterior; a flagged one also raises an `EstimateWarning`.

    Raises:
        ValueError: If `restarts` is below 2, `init` violates a constraint, or the log density is
            finite at no start.
    """
    if restarts is not None and restarts < 2:
        raise ValueError(
            f"`restarts` must be at least 2, got {restarts}: one run cannot see its own error."
        )
    target = target.to(device, torch.float64) if _must_move(target, device) else target
    settings, guide = method or SampleAverage(), guide or MeanField()
    seed = draw_seed(generator)
    cheap = target.is_traced
    run = _Run(target, settings, seed, restarts or _default_restarts(target), progress)
    budget = Budget(
        max_evals=max_evals or (Budget.max_evals if cheap else _UNTRACED_EVALS),
        confidence=confidence,
    )

    modes, status, reasons = run.modes(guide, init)
    draws = run.improved(run.proposal(modes, budget), modes, budget)
    posterior = assess(
        target,
        draws,
        budget,
        child(seed, _WEIGHTS, target.device),
        method=" + ".join(run.steps),
        seed=seed,
        num_evals=run.num_evals,
        status=status,
        reasons=(*reasons, *target.notes),
        progress=progress,
    )
    if not posterior.ok:
        why = "; ".join(posterior.reasons)
        advice = posterior.status.advice
        warnings.warn(f"posterior flagged: {why}. {advice}", EstimateWarning, stacklevel=2)
    return posterior


class _Run:
    """The steps of one fit; keeps the count of evaluations and the words for what was done."""

    def __init__(
        self,
        target: Target,
        settings: SampleAverage,
        seed: int,
        restarts: int,
        progress: Progress | None,
    ) -> None:
        self.target, self.settings, self.seed, self.restarts = target, settings, seed, restarts
        self.num_evals = 0
        self.steps: list[str] = []
        self._progress = progress
        self._draws = child(seed, _DRAWS, target.device)
        self._weights = child(seed, _FRAME, target.device)

    def modes(
        self, guide: MeanField, init: Values | None
    ) -> tuple[list[Mode], Status, tuple[str, ...]]:
        """Solve the restarts, doubling the draws until they agree; group them."""
        d = self.target.dim
        loc = self.target.starts(self.restarts, child(self.seed, _STARTS))
        if init is not None:
            loc = torch.cat([self.target.unconstrain(init)[None], loc[1:]])
        log_scale = torch.full_like(loc, guide.init_log_scale)
        m = self.settings.num_draws or min(max(32, 2 * d), 256)
        while True:
            fitted = self._solved(self.target.value_and_grad, loc, log_scale, m)
            modes, status, reasons = grouped(fitted)
            agreed = disagreement(fitted, modes) <= self.settings.tolerance
            if agreed or 2 * m > self.settings.max_draws or status:
                break
            m, loc, log_scale = 2 * m, fitted.loc, fitted.log_scale
        self.steps.append(f"mean-field SAA ({self.restarts} restarts × {m} draws)")
        return modes, status, reasons

    def proposal(self, modes: list[Mode], budget: Budget) -> WeightedDraws:
        """Gaussians with linear-response covariance, one a mode."""
        locs, trils = zip(*(self._responded(mode) for mode in modes), strict=True)
        if len(modes) == 1:
            return self._weighed(FullRank(), {"loc": locs[0], "scale_tril": trils[0]}, budget)
        self.steps.append(f"{len(modes)} modes")
        params = {"loc": torch.stack(locs), "scale_tril": torch.stack(trils)}
        return self._weighed(GaussianMixture(len(modes)), params, budget)

    def improved(self, draws: WeightedDraws, modes: list[Mode], budget: Budget) -> WeightedDraws:
        """Better proposals while the weights are uneven."""
        best = draws
        if len(modes) == 1 and self.target.dim <= _MAX_DENSE:
            for propose in (self._heavier, self._whitened):
                if not best.is_trusted:
                    best = self._chosen(best, *propose(best, budget))
        best = self._matched(best, budget)
        if best is draws:
            return draws
        # it was chosen for its weights: judge it by draws that had no say in the choice
        return self._weighed(best.guide, best.params, budget)

    def _chosen(self, old: WeightedDraws, new: WeightedDraws, name: str) -> WeightedDraws:
        """The better proposal, its name noted."""
        if not _better(old, new):
            return old
        if name not in self.steps:
            self.steps.append(name)
        return new

    def _heavier(self, draws: WeightedDraws, budget: Budget) -> tuple[WeightedDraws, str]:
        return self._weighed(StudentT(), draws.params, budget), "Student t tails"

    def _matched(self, draws: WeightedDraws, budget: Budget) -> WeightedDraws:
        """Proposals that match the weighted mean, or all weighted moments, while that helps."""
        for _ in range(_MAX_REFITS):
            if _is_even(draws):
                return draws
            match, name = (
                (recentred, "weighted mean")
                if draws.is_trusted
                else (refitted, "weighted moments")
            )
            params = match(draws)
            candidate = draws if params is None else self._weighed(draws.guide, params, budget)
            before, draws = draws, self._chosen(draws, candidate, name)
            if draws is before:
                return draws
        return draws

    def _whitened(self, draws: WeightedDraws, budget: Budget) -> tuple[WeightedDraws, str]:
        frame = Frame(draws.params["loc"], draws.params["scale_tril"])
        origin = torch.zeros(self.restarts, self.target.dim).to(draws.z)
        m = min(max(64, 4 * self.target.dim), 512)
        fitted = self._solved(frame.pull_back(self.target.value_and_grad), origin, origin, m)
        loc, tril = self._responded(grouped(fitted)[0][0], frame)
        params = {"loc": frame.to_z(loc), "scale_tril": frame.basis @ tril}
        return self._weighed(draws.guide, params, budget), "whitened SAA"

    def _responded(
        self, mode: Mode, frame: Frame | None = None
    ) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
        """A mode after a Newton step over the draws of all its restarts, with its covariance."""
        d = self.target.dim
        diagonal = torch.diag(mode.log_scale.exp())
        if d > _MAX_DENSE:
            return mode.loc, diagonal
        density = self.target.value_and_grad
        if frame is not None:
            density = frame.pull_back(density)
        H = elbo_hessian(density, mode.loc, mode.log_scale, mode.eps[0])
        self._spend(mode.eps.shape[1] * (2 * d + 1))
        covariance = response_covariance(H)
        tril = None if covariance is None else cholesky_or_none(covariance)
        if tril is None:
            return mode.loc, diagonal
        if "linear response" not in self.steps:
            self.steps.append("linear response")
        eps = mode.eps.flatten(0, 1)
        step = torch.linalg.solve(H, elbo_gradient(density, mode.loc, mode.log_scale, eps))[:d]
        self._spend(len(eps))
        near = bool((step.abs() < mode.log_scale.exp()).all())
        return mode.loc - step if near else mode.loc, tril

    def _solved(self, density: object, loc: Tensor, log_scale: Tensor, m: int) -> SampleAverageFit:
        r, d = loc.shape
        eps = matched_normal_draws(r, m, d, generator=self._draws, dtype=loc.dtype)
        fitted = sample_average(density, loc, log_scale, eps)
        self._spend(fitted.num_evals)
        return fitted

    def _weighed(
        self, guide: Proposal, params: dict[str, Tensor], budget: Budget
    ) -> WeightedDraws:
        draws = first_draws(self.target, guide, params, budget, self._weights)
        self._spend(draws.num_evals)
        return draws

    def _spend(self, evals: int) -> None:
        self.num_evals += evals
        if self._progress:
            self._progress(self.steps[-1] if self.steps else "optimising", self.num_evals)


def _is_even(draws: WeightedDraws) -> bool:
    return draws.is_trusted and draws.effective_size >= _ENOUGH * draws.num_evals


def _better(old: WeightedDraws, new: WeightedDraws) -> bool:
    """Is k̂ lower? Where both are trusted that is noise: are more draws effective?"""
    if old.is_trusted and new.is_trusted:
        return new.effective_size > _GAIN * old.effective_size
    return new.khat < old.khat


def _default_restarts(target: Target) -> int:
    if not target.is_traced:
        return 2
    return 8 if target.dim <= _MANY else 4


def _must_move(target: Target, device: torch.device | str | None) -> bool:
    elsewhere = device is not None and torch.device(device) != target.device
    return elsewhere or target.dtype != torch.float64
