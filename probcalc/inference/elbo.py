r"""Bounds on the log evidence of any guide, with an error bar from independent replicates.

    log p(data) ≥ E log (1/K) Σ_k p(z_k)/q(z_k),   z_k ~ q          (K = 1: the ELBO)

Draws come in replicates whose spread is the bar: Sobol points with random shifts where a term has
one draw, independent ones where it has several, as the bound is defined by those.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc._random import child, draw_seed
from probcalc.inference.objectives import ELBO, Objective, named
from probcalc.inference.posterior import Posterior
from probcalc.inference.target import Target
from probcalc.integration.normal_draws import normal_draws
from probcalc.result import Estimate

_REPLICATES = 16


def elbo(
    target: Target,
    guide: Any,
    params: dict[str, Tensor] | None = None,
    *,
    objective: Any = None,
    num_draws: int = 2**12,
    confidence: float = 0.99,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Evidence lower bound of a guide, or another objective, in nats.

    Args:
        target: What is approximated.
        guide: The family; or a posterior, whose guide and parameters are then meant.
        params: Its parameters, of one fit; default ``guide.init``.
        objective: An objective such as `Renyi(0.5)`; default `ELBO()`.
        num_draws: In all; rounded up to whole terms in every one of 16 replicates.
        confidence: Of the error bar.
        generator: Source of randomness; one seed is drawn from it.

    Returns:
        The estimate; its error is that of the average over draws.

    Raises:
        ValueError: If the guide does not have the objective, has leading axes, or `num_draws` is
            below 1.
        TypeError: If `objective` is none.
    """
    if isinstance(guide, Posterior):
        guide, params = guide.guide, params or guide.params
    objective = checked(objective or ELBO())
    reason = objective.refused(guide)
    if reason:
        raise ValueError(reason)
    if num_draws < 1:
        raise ValueError(f"`num_draws` must be at least 1, got {num_draws}.")
    seed = draw_seed(generator)
    params = params or guide.init(target, child(seed, 0))
    n = draws_of(guide, objective, math.ceil(num_draws / _REPLICATES))
    stream = child(seed, 1, target.device)
    b = guide.base_dim(target.dim)
    eps = _base_draws(n, b, stream, independent=objective.num_weights > 1).to(target.dtype)
    with torch.no_grad():
        rows = {name: t.expand(_REPLICATES, *t.shape) for name, t in params.items()}
        terms = objective.terms(target.log_density, guide, rows, eps)
    return Estimate.from_replicates(
        terms.mean(dim=1),
        confidence=confidence,
        num_evals=_REPLICATES * n,
        method=named(objective),
    )


def _base_draws(
    n: int, b: int, generator: torch.Generator, *, independent: bool
) -> Float[Tensor, "r n b"]:
    if not independent:
        return normal_draws(_REPLICATES, n, b, generator=generator)
    shape = (_REPLICATES, n, b)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)


def checked(objective: Any) -> Objective:
    """The objective.

    Raises:
        TypeError: Saying what to write, where it is something else.
    """
    if hasattr(objective, "terms") and hasattr(objective, "num_weights"):
        return objective
    name = getattr(type(objective), "__name__", str(objective))
    if hasattr(objective, "elbo_terms"):
        raise TypeError(
            f"{name} is a way to differentiate the ELBO and no objective: `ELBO({name}())`."
        )
    raise TypeError(f"an objective such as `ELBO()` is needed, got {name}.")


def draws_of(guide: Any, objective: Objective, num: int, *, paired: bool = True) -> int:
    """The next number of draws that makes whole terms, strata and, if wanted, ± pairs."""
    strata = getattr(guide, "num_components", 1)
    whole = math.lcm(objective.num_weights * (2 if paired else 1), strata)
    return whole * math.ceil(num / whole)
