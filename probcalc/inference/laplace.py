r"""Laplace's approximation: a Gaussian at the mode with the curvature found there.

    q(z) = N(ẑ, H⁻¹),   ẑ = argmax log p(z),   H = −∇² log p(ẑ)

on the unconstrained scale, where the density carries its log Jacobian. The Gaussian is weighed
like any other guide, so the result says by its k̂ how far the posterior is from it.

Tierney & Kadane (1986), Accurate approximations for posterior moments and marginal densities.
"""

from __future__ import annotations

import warnings

import torch

from probcalc._random import child, draw_seed
from probcalc.inference.assess import Budget, assess, first_draws
from probcalc.inference.curvature import Curvature, Hessian
from probcalc.inference.guides import FullRank
from probcalc.inference.maximum_a_posteriori import mode
from probcalc.inference.parameters import Values
from probcalc.inference.posterior import Posterior
from probcalc.inference.target import Target
from probcalc.status import EstimateWarning, Status

_WEIGHTS = 1  # stream of the run's seed


def laplace(
    target: Target,
    *,
    curvature: Curvature | None = None,
    init: Values | None = None,
    restarts: int = 4,
    max_evals: int | None = None,
    confidence: float = 0.99,
    generator: torch.Generator | None = None,
) -> Posterior:
    """Expand a target at its mode, weigh the Gaussian, and judge it.

    Args:
        target: What to approximate; computed in float64 whatever its dtype.
        curvature: Default `Hessian()`; `GaussNewton`, `EmpiricalFisher`, a diagonal, or a known
            `Precision`.
        init: Constrained values for the first restart.
        restarts: Random starts of the search for the mode.
        max_evals: Most evaluations of the log density for weighing; default 2¹⁷.
        confidence: Of every error bar.
        generator: Source of randomness; one seed is drawn from it.

    Returns:
        The posterior. Where the density has no mode it is flagged `UNBOUNDED` or `INDEFINITE`,
        its guide has unit scale at the place where the search stopped, and its error bars are
        infinite. A curvature that is not positive definite is flagged so, and never repaired.

    Raises:
        ValueError: If `init` violates a constraint, or no start has a finite density.
    """
    target = target if target.dtype == torch.float64 else target.to(dtype=torch.float64)
    seed = draw_seed(generator)
    z, solution = mode(
        target,
        init=init,
        jacobian=True,
        restarts=restarts,
        method=None,
        max_evals=1_000,
        generator=child(seed, 0),
    )
    flags = Status(int(solution.status))
    tril = None
    if not flags:
        tril = (curvature or Hessian()).scale_tril(target, z)
    reasons = ()
    if tril is None and not flags and curvature is not None:
        flags = Status.INDEFINITE
        reasons = (f"the curvature by {type(curvature).__name__} is not positive definite",)
    elif tril is None:
        flags |= Status.UNBOUNDED if not flags else Status.OK
        reasons = (f"no mode: {flags.words}",)
    if tril is None:
        tril = torch.eye(target.dim).to(z)
    budget = Budget(max_evals=max_evals or Budget.max_evals, confidence=confidence)
    stream = child(seed, _WEIGHTS, target.device)
    draws = first_draws(target, FullRank(), {"loc": z, "scale_tril": tril}, budget, stream)
    posterior = assess(
        target,
        draws,
        budget,
        stream,
        method="Laplace",
        seed=seed,
        num_gradients=int(solution.num_evals),
        num_evals=int(solution.num_evals) + draws.num_evals,
        status=flags,
        reasons=(*reasons, *target.notes),
    )
    if not posterior.ok:
        why = "; ".join(posterior.reasons)
        advice = posterior.status.advice
        warnings.warn(f"Laplace flagged: {why}. {advice}", EstimateWarning, stacklevel=2)
    return posterior
