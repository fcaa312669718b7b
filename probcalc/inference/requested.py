"""A guide or a solver that the caller asked for, in place of the ladder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probcalc._random import child
from probcalc.inference.assess import Budget, first_draws
from probcalc.inference.guides import FullRank, Guide
from probcalc.inference.ladder import Climbed
from probcalc.inference.parameters import Values
from probcalc.inference.pathfinder import pathfinder
from probcalc.inference.posterior import Posterior
from probcalc.inference.sample_average import SampleAverage
from probcalc.inference.solved import Progress, Solver
from probcalc.inference.target import Target
from probcalc.linalg import cholesky_or_none, symmetric

_STARTS, _SOLVER, _FRAME, _PATHS = 0, 5, 2, 4  # streams of the run's seed
_NUM_PATHS = 4
_UNKNOWN = 0.1  # scale to start from where the draws of a posterior show none
_MAX_DENSE = 256  # dimensions up to which a guide starts from Pathfinder


def requested(
    target: Target,
    guide: Guide | None,
    method: Solver | None,
    *,
    init: Values | Posterior | None,
    seed: int,
    budget: Budget,
    progress: Progress | None,
) -> Climbed:
    """Start the guide, solve for its parameters, weigh its first draws."""
    guide = guide or (init.guide if isinstance(init, Posterior) else FullRank())
    params, gradients, values, words = _start(target, guide, init, seed)
    # fixed draws are fitted too well by guides that have no closed entropy to hold them
    solver = method or SampleAverage()
    solved = solver.solve(target, guide, params, seed=_seed(seed), progress=progress)
    stream = child(seed, _FRAME, target.device)
    draws = first_draws(target, solved.guide, solved.params, budget, stream)
    gradients += solved.num_gradients
    values += solved.num_evals - solved.num_gradients + draws.num_evals
    return Climbed(
        target,
        draws,
        solved.status,
        solved.reasons,
        " + ".join([*words, solved.method]),
        gradients,
        gradients + values,
        solved.trace,
    )


def _start(
    target: Target, guide: Any, init: Values | Posterior | None, seed: int
) -> tuple[dict[str, Tensor], int, int, list[str]]:
    """Parameters to start from, with what they cost in gradients and values."""
    if isinstance(init, Posterior) and type(init.guide) is type(guide):
        return init.params, 0, 0, ["from a posterior"]
    gaussian = getattr(guide, "from_gaussian", None)
    stream = child(seed, _STARTS)
    if gaussian is None or target.dim > _MAX_DENSE:
        params = guide.init(target, stream)
        if isinstance(init, dict) and "loc" in params:
            params = {**params, "loc": target.unconstrain(init).expand_as(params["loc"])}
        return params, 0, 0, []
    if isinstance(init, Posterior):
        return gaussian(*_gaussian_of(init)), 0, 0, ["from a posterior"]
    starts = target.starts(_NUM_PATHS, stream)
    if init is not None:
        starts = torch.cat([target.unconstrain(init)[None], starts[1:]])
    paths = pathfinder(
        target.value_and_grad,
        target.log_density,
        starts,
        generator=child(seed, _PATHS, target.device),
    )
    best = paths.elbo.argmax()
    params = gaussian(paths.loc[best], paths.scale_tril[best])
    words = [f"Pathfinder ({_NUM_PATHS} paths)"]
    return params, paths.num_gradients, paths.num_values, words


def _gaussian_of(posterior: Posterior) -> tuple[Tensor, Tensor]:
    """Mean and scale of its weighted draws on the unconstrained scale."""
    d = posterior.z.shape[-1]
    z, weights = posterior.z.reshape(-1, d), posterior.log_weights.flatten().softmax(dim=0)
    loc = weights @ z
    centred = z - loc
    scale = cholesky_or_none(symmetric(centred.mT @ (centred * weights[:, None])))
    return loc, torch.diag(torch.full_like(loc, _UNKNOWN)) if scale is None else scale


def _seed(seed: int) -> int:
    """The solver's own."""
    return int(torch.randint(2**62, (), generator=child(seed, _SOLVER)))
