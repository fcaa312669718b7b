"""`fit`: a posterior without tuning, and a verdict.

1. Mean-field SAA from several random starts, each with its own fixed draws, as one batch; draws
   are doubled until the randomisations agree.
2. Restarts are grouped into modes; linear response gives each mode its covariance.
3. Importance weights. Where they are uneven, the mean-field fit is repeated in coordinates
   whitened by the covariance, and the proposal is matched to the weighted moments.
4. The best proposal is weighed until its moments are known, and judged by k̂.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc._random import child, draw_seed
from probcalc.inference.assess import Budget, Progress, assess, first_draws
from probcalc.inference.flat_model import Values
from probcalc.inference.guides import FullRank, GaussianMixture, MeanField
from probcalc.inference.importance import WeightedDraws, recentred, refitted
from probcalc.inference.linear_response import elbo_hessian, response_covariance
from probcalc.inference.posterior import Posterior
from probcalc.inference.saa import Frame, SampleAverageFit, sample_average
from probcalc.inference.target import Target
from probcalc.integration.quasi_monte_carlo import matched_normal_draws
from probcalc.integration.tails import khat_limit
from probcalc.linalg import cholesky_or_none
from probcalc.status import EstimateWarning, Status

_STARTS, _DRAWS, _FRAME, _WEIGHTS = range(4)  # streams of the run's seed
_SAME_MODE = 1.0  # largest distance, in guide sds, between restarts of one mode
_NEGLIGIBLE = 12.0  # nats below the best at which a mode is dropped
_ENOUGH = 0.4  # share of effective draws at which a trusted proposal is not improved further
_GAIN = 1.1  # factor in effective draws below which a new proposal is no better
_MAX_REFITS = 3
_RUNAWAY = 25.0  # log scale or location at which an ELBO has no maximum
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


@dataclass(frozen=True, eq=False)
class _Mode:
    loc: Float[Tensor, " d"]
    log_scale: Float[Tensor, " d"]
    eps: Float[Tensor, "m d"]
    elbo: float
    size: int


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
            itself); default 2¹⁷.
        restarts: Random restarts, each also an independent randomisation of the fixed draws;
            None: 8, or 4 above 100 dimensions.
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
    run = _Run(target, settings, seed, restarts or (8 if target.dim <= 100 else 4), progress)
    budget = Budget(max_evals=max_evals or Budget.max_evals, confidence=confidence)

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
    ) -> tuple[list[_Mode], Status, tuple[str, ...]]:
        """Solve the restarts, doubling the draws until they agree; group them."""
        d = self.target.dim
        loc = self.target.starts(self.restarts, child(self.seed, _STARTS))
        if init is not None:
            loc = torch.cat([self.target.unconstrain(init)[None], loc[1:]])
        log_scale = torch.full_like(loc, guide.init_log_scale)
        m = self.settings.num_draws or min(max(32, 2 * d), 256)
        while True:
            fitted = self._solved(self.target.value_and_grad, loc, log_scale, m)
            modes, status, reasons = _grouped(fitted)
            agreed = _disagreement(fitted, modes) <= self.settings.tolerance
            if agreed or 2 * m > self.settings.max_draws or status:
                break
            m, loc, log_scale = 2 * m, fitted.loc, fitted.log_scale
        self.steps.append(f"mean-field SAA ({self.restarts} restarts × {m} draws)")
        return modes, status, reasons

    def proposal(self, modes: list[_Mode], budget: Budget) -> WeightedDraws:
        """Gaussians with linear-response covariance, one a mode."""
        trils = [self._response_tril(mode) for mode in modes]
        locs = [mode.loc for mode in modes]
        if len(modes) == 1:
            return self._weighed(FullRank(), {"loc": locs[0], "scale_tril": trils[0]}, budget)
        self.steps.append(f"{len(modes)} modes")
        params = {"loc": torch.stack(locs), "scale_tril": torch.stack(trils)}
        return self._weighed(GaussianMixture(len(modes)), params, budget)

    def improved(self, draws: WeightedDraws, modes: list[_Mode], budget: Budget) -> WeightedDraws:
        """Better proposals while the weights are uneven."""
        best = draws
        if not _is_trusted(draws) and len(modes) == 1 and self.target.dim <= _MAX_DENSE:
            whitened = self._whitened(draws, budget)
            if _better(draws, whitened):
                self.steps.append("whitened SAA")
                best = whitened
        best = self._matched(best, budget)
        if best is draws:
            return draws
        # it was chosen for its weights: judge it by draws that had no say in the choice
        return self._weighed(best.guide, best.params, budget)

    def _matched(self, draws: WeightedDraws, budget: Budget) -> WeightedDraws:
        """Proposals that match the weighted mean, or all weighted moments, while that helps."""
        for _ in range(_MAX_REFITS):
            if _is_even(draws):
                return draws
            match, name = (
                (recentred, "weighted mean")
                if _is_trusted(draws)
                else (refitted, "weighted moments")
            )
            params = match(draws)
            candidate = draws if params is None else self._weighed(draws.guide, params, budget)
            if not _better(draws, candidate):
                return draws
            draws = candidate
            if name not in self.steps:
                self.steps.append(name)
        return draws

    def _whitened(self, draws: WeightedDraws, budget: Budget) -> WeightedDraws:
        frame = Frame(draws.params["loc"], draws.params["scale_tril"])
        density = frame.pull_back(self.target.value_and_grad)
        origin = torch.zeros(self.restarts, self.target.dim).to(draws.z)
        m = min(max(64, 4 * self.target.dim), 512)
        fitted = self._solved(density, origin, origin, m)
        mode = _grouped(fitted)[0][0]
        s = mode.log_scale.exp()
        H = elbo_hessian(
            density,
            lambda u, scale: self._hessian_in(frame, u),
            mode.loc,
            mode.log_scale,
            mode.eps,
        )
        covariance = response_covariance(H)
        local = torch.diag(s) if covariance is None else cholesky_or_none(covariance)
        tril = frame.basis @ (torch.diag(s) if local is None else local)
        return self._weighed(FullRank(), {"loc": frame.to_z(mode.loc), "scale_tril": tril}, budget)

    def _hessian_in(self, frame: Frame, u: Tensor) -> Tensor:
        scale = frame.basis.square().sum(dim=1).sqrt()
        H = self.target.hessian(frame.to_z(u), scale)
        self._spend(2 * u.shape[0] * self.target.dim)
        return frame.basis.mT @ H @ frame.basis

    def _response_tril(self, mode: _Mode) -> Float[Tensor, "d d"]:
        diagonal = torch.diag(mode.log_scale.exp())
        if self.target.dim > _MAX_DENSE:
            return diagonal
        H = elbo_hessian(
            self.target.value_and_grad,
            self.target.hessian,
            mode.loc,
            mode.log_scale,
            mode.eps,
        )
        self._spend(mode.eps.shape[0] * (2 * self.target.dim + 1))
        covariance = response_covariance(H)
        tril = None if covariance is None else cholesky_or_none(covariance)
        if "linear response" not in self.steps and tril is not None:
            self.steps.append("linear response")
        return diagonal if tril is None else tril

    def _solved(self, density: object, loc: Tensor, log_scale: Tensor, m: int) -> SampleAverageFit:
        r, d = loc.shape
        eps = matched_normal_draws(r, m, d, generator=self._draws, dtype=loc.dtype)
        fitted = sample_average(density, loc, log_scale, eps)
        self._spend(fitted.num_evals)
        return fitted

    def _weighed(
        self, guide: FullRank | GaussianMixture, params: dict[str, Tensor], budget: Budget
    ) -> WeightedDraws:
        draws = first_draws(self.target, guide, params, budget, self._weights)
        self._spend(draws.num_evals)
        return draws

    def _spend(self, evals: int) -> None:
        self.num_evals += evals
        if self._progress:
            self._progress(self.steps[-1] if self.steps else "optimising", self.num_evals)


def _grouped(fitted: SampleAverageFit) -> tuple[list[_Mode], Status, tuple[str, ...]]:
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
    return [m for m in modes if m.elbo > modes[0].elbo - _NEGLIGIBLE], flags, reasons


def _averaged(fitted: SampleAverageFit, group: list[int]) -> _Mode:
    return _Mode(
        fitted.loc[group].mean(dim=0),
        fitted.log_scale[group].mean(dim=0),
        fitted.eps[group[0]],
        float(fitted.elbo[group].mean()),
        len(group),
    )


def _failure(fitted: SampleAverageFit) -> tuple[Status, tuple[str, ...]]:
    runaway = (fitted.log_scale > _RUNAWAY).any(dim=1) | (fitted.loc.abs() > 1e8).any(dim=1)
    if bool(runaway.any()):
        which = int(fitted.log_scale.amax(dim=0).argmax())
        why = f"the ELBO has no maximum: coordinate {which} spreads without bound"
        return Status.IMPROPER, (why,)
    why = (
        f"no restart converged in {int(fitted.solution.num_evals.max())} steps "
        f"(smallest gradient {float(fitted.solution.grad_norm.min()):.1e})"
    )
    return Status.NOT_CONVERGED, (why,)


def _disagreement(fitted: SampleAverageFit, modes: list[_Mode]) -> float:
    """Standard error of the best mode's location over randomisations, in guide sds."""
    mode = modes[0]
    if mode.size < 2:
        return math.inf
    s = mode.log_scale.exp()
    near = ((fitted.loc - mode.loc) / s).abs().amax(dim=1) < _SAME_MODE
    spread = fitted.loc[near].std(dim=0) / s
    return float(spread.max()) / int(near.sum()) ** 0.5


def _is_trusted(draws: WeightedDraws) -> bool:
    return draws.khat <= khat_limit(draws.num_evals)


def _is_even(draws: WeightedDraws) -> bool:
    return _is_trusted(draws) and draws.effective_size >= _ENOUGH * draws.num_evals


def _better(old: WeightedDraws, new: WeightedDraws) -> bool:
    """Is k̂ lower? Where both are trusted that is noise: are more draws effective?"""
    if _is_trusted(old) and _is_trusted(new):
        return new.effective_size > _GAIN * old.effective_size
    return new.khat < old.khat


def _must_move(target: Target, device: torch.device | str | None) -> bool:
    elsewhere = device is not None and torch.device(device) != target.device
    return elsewhere or target.dtype != torch.float64
