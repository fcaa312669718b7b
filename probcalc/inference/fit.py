"""`fit`: a posterior without tuning, and a verdict.

Without a guide and a method the ladder is climbed (see `ladder`); a guide is fitted by the solver
that suits it, or by the one given. Whatever was fitted is weighed until its moments are known,
and judged by k̂.
"""

from __future__ import annotations

import warnings

import torch

from probcalc._random import child, draw_seed
from probcalc.inference.assess import Budget, assess
from probcalc.inference.guides import Guide
from probcalc.inference.ladder import Ladder
from probcalc.inference.parameters import Values
from probcalc.inference.posterior import Posterior
from probcalc.inference.requested import requested
from probcalc.inference.solved import Progress, Solver
from probcalc.inference.target import Target
from probcalc.status import EstimateWarning

_WEIGHTS = 3  # stream of the run's seed
_MANY = 100  # dimensions above which fewer restarts are made
_UNTRACED_EVALS = 2**13  # default budget where every evaluation is a call of the function


def fit(
    target: Target,
    *,
    guide: Guide | None = None,
    method: Solver | None = None,
    init: Values | Posterior | None = None,
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
        guide: Family to use; None: the ladder's choice.
        method: Solver of the guide's parameters, such as `SampleAverage()` or `Stochastic()`;
            None: what suits the guide.
        init: Constrained values for the first restart, the others starting at random; or a
            posterior to go on from.
        max_evals: Most evaluations of the log density for weighing (the optimisation stops by
            itself); default 2¹⁷, or 2¹³ for a target that runs untraced.
        restarts: Random restarts; None: 8; 4 above 100 dimensions; 2 for a target that runs
            untraced.
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
            f"`restarts` must be at least 2, got {restarts}: one run cannot see a second mode."
        )
    target = target.to(device, torch.float64) if _must_move(target, device) else target
    seed = draw_seed(generator)
    budget = Budget(
        max_evals=max_evals or (Budget.max_evals if target.is_traced else _UNTRACED_EVALS),
        confidence=confidence,
    )
    if guide is None and method is None:
        num = restarts or _default_restarts(target)
        ladder = Ladder(target, seed=seed, restarts=num, budget=budget, progress=progress)
        found = ladder.climb(_first(target, init))
    else:
        found = requested(
            target, guide, method, init=init, seed=seed, budget=budget, progress=progress
        )
    posterior = assess(
        found.target,
        found.draws,
        budget,
        child(seed, _WEIGHTS, target.device),
        method=found.method,
        seed=seed,
        num_gradients=found.num_gradients,
        num_evals=found.num_evals,
        status=found.status,
        reasons=(*found.reasons, *target.notes),
        trace=found.trace,
        elbo_terms=found.elbo_terms,
        progress=progress,
    )
    if not posterior.ok:
        why = "; ".join(posterior.reasons)
        advice = posterior.status.advice
        warnings.warn(f"posterior flagged: {why}. {advice}", EstimateWarning, stacklevel=2)
    return posterior


def _first(target: Target, init: Values | Posterior | None) -> Values | None:
    """Where the first path starts."""
    if not isinstance(init, Posterior):
        return init
    heaviest = init.log_weights.flatten().argmax()
    return init.layout.unflatten(init.x.flatten(0, 1)[heaviest])


def _default_restarts(target: Target) -> int:
    if not target.is_traced:
        return 2
    return 8 if target.dim <= _MANY else 4


def _must_move(target: Target, device: torch.device | str | None) -> bool:
    elsewhere = device is not None and torch.device(device) != target.device
    return elsewhere or target.dtype != torch.float64
