"""From a proposal to a `Posterior`: weigh it until its moments are known, then judge it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from probcalc.inference.importance import (
    Proposal,
    WeightedDraws,
    num_components,
    weighted_draws,
)
from probcalc.inference.moments import weighted_moments
from probcalc.inference.posterior import Posterior
from probcalc.inference.target import Target
from probcalc.integration.tails import khat_limit, pareto_khat
from probcalc.result import half_width
from probcalc.status import Status

Progress = Callable[[str, int], None]


_MIN_GROWTH = 8.0  # of the number of draws: the error bars that ask for it are noisy themselves


@dataclass(frozen=True)
class Budget:
    """What weighing may cost and what it is to reach.

    Args:
        num_replicates: Independent randomisations behind every error bar.
        num_draws: First draws a replicate.
        max_evals: Most evaluations of the log density.
        mean_tolerance: Half-width of every mean at which to stop, in posterior sds; of its
            sampling noise, what a tail may hide left out.
        std_tolerance: Half-width of every sd at which to stop, relative.
        confidence: Of the half-widths.
    """

    num_replicates: int = 16
    num_draws: int = 256
    max_evals: int = 2**17
    mean_tolerance: float = 0.02
    std_tolerance: float = 0.05
    confidence: float = 0.99


def assess(
    target: Target,
    draws: WeightedDraws,
    budget: Budget,
    generator: torch.Generator,
    *,
    method: str,
    seed: int,
    num_evals: int,
    status: Status = Status.OK,
    reasons: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> Posterior:
    """Draw as many as the tolerance asks for and give the verdict.

    Args:
        target: What is approximated.
        draws: First draws of the proposal.
        budget: When to stop.
        generator: Of further draws.
        method: How the proposal was found, in words.
        seed: The run's seed.
        num_evals: Spent so far, these draws included.
        status: Flags so far.
        reasons: Their reasons.
        progress: Called with a stage and the evaluations spent.
    """
    x = target.constrained_vector(draws.z)
    if draws.is_trusted and (wanted := _wanted(x, draws, budget)):
        # fresh ones: draws that had a say in their number would seem better than they are
        draws = weighted_draws(
            target.log_density,
            draws.guide,
            draws.params,
            num_replicates=budget.num_replicates,
            num_draws=wanted,
            generator=generator,
        )
        num_evals += draws.num_evals
        x = target.constrained_vector(draws.z)
        if progress:
            progress("weighing", num_evals)
    flags, why = _judgement(draws, x)
    return Posterior(
        layout=target.layout,
        guide=draws.guide,
        params=draws.params,
        z=draws.z,
        x=x,
        log_ratios=draws.log_ratios,
        log_weights=draws.log_weights,
        khat=draws.khat,
        status=status | flags,
        reasons=(*reasons, *why),
        num_evals=num_evals,
        method=method,
        confidence=budget.confidence,
        seed=seed,
        target=target,
    )


def first_draws(
    target: Target,
    guide: Proposal,
    params: dict[str, Tensor],
    budget: Budget,
    generator: torch.Generator,
) -> WeightedDraws:
    """Weigh the first draws of a proposal."""
    pair = 2 * num_components(guide)
    wanted = max(budget.num_draws, 4 * target.dim)  # enough for matched second moments
    return weighted_draws(
        target.log_density,
        guide,
        params,
        num_replicates=budget.num_replicates,
        num_draws=pair * math.ceil(wanted / pair),
        generator=generator,
    )


def _wanted(x: Tensor, draws: WeightedDraws, budget: Budget) -> int:
    """Draws a replicate that the tolerances ask for, within the budget; 0: these are enough."""
    r, n = draws.log_ratios.shape
    mean, std = weighted_moments(x, draws.weights, budget.confidence, draws.control(x))
    spread = std.value.clamp(min=1e-300)
    # sampling noise alone: what a tail may hide falls slower, and stands in the bars in any case
    noise = [half_width(e.std_error, e.dof, e.confidence) / spread for e in (mean, std)]
    excess = torch.maximum(noise[0] / budget.mean_tolerance, noise[1] / budget.std_tolerance)
    constant = std.value <= 1e-12 * mean.value.abs()  # such as the diagonal of a correlation
    excess = float(torch.where(constant, 0.0, excess).max())
    affordable = budget.max_evals // r // draws.strata * draws.strata
    if not excess > 1 or affordable <= n:
        return 0
    growth = min(max(excess**2, _MIN_GROWTH), affordable / n)  # bars shrink like the root
    first = draws.strata * max(1, n // draws.strata)
    return min(first * 2 ** math.ceil(math.log2(growth)), affordable)


def _judgement(draws: WeightedDraws, x: Tensor) -> tuple[Status, tuple[str, ...]]:
    if not bool(draws.log_weights.isfinite().any()):
        return Status.NON_FINITE, ("the log density is not finite at any draw of the guide",)
    if not draws.is_trusted:
        return Status.UNRELIABLE_WEIGHTS, (draws.fault,)
    limit, of_means = khat_limit(draws.num_evals), _khat_of_means(draws, x)
    if of_means > limit:
        why = f"k-hat of a mean's terms, {of_means:.2f}, is above {limit:.2f}: it may not exist"
        return Status.UNRELIABLE_WEIGHTS, (why,)
    return Status.OK, ()


def _khat_of_means(draws: WeightedDraws, x: Tensor) -> float:
    """Shape of the tail of W |x − μ| / σ, the largest over the entries of x."""
    w = draws.weights
    mean = torch.einsum("rn,rnp->p", w, x)
    distance = (x - mean).abs()
    scale = torch.einsum("rn,rnp->p", w, distance).clamp(min=torch.finfo(x.dtype).tiny)
    envelope = (distance / scale).amax(dim=-1)
    return float(pareto_khat((draws.log_ratios + envelope.log()).flatten()))
