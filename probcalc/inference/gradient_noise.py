"""How noisy the estimators of an objective's gradient are, parameter by parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc._random import child, draw_seed
from probcalc.inference.elbo import checked, draws_of
from probcalc.inference.objectives import (
    ELBO,
    ClosedEntropy,
    Objective,
    StickTheLanding,
    TotalGradient,
    named,
)
from probcalc.inference.posterior import Posterior
from probcalc.inference.step import linked
from probcalc.inference.target import Target
from probcalc.integration.gradient_estimators import ScoreFunction

_CHUNK = 2**22  # numbers of gradients at a time


@dataclass(frozen=True, eq=False)
class GradientNoise:
    """What one estimator's gradients did.

    Args:
        objective: With its estimator.
        mean: Gradients by parameter, means over the repeats.
        std: Standard deviations of one gradient.
        num_draws: Base draws of one gradient.
        refused: Why the guide does not have it, or empty.
    """

    objective: Objective
    mean: dict[str, Tensor]
    std: dict[str, Tensor]
    num_draws: int
    refused: str = ""

    @property
    def signal_to_noise(self) -> dict[str, Tensor]:
        """|mean| over standard deviation; inf where there is no noise."""
        return {k: self.mean[k].abs() / s for k, s in self.std.items()}

    @property
    def variance(self) -> float:
        """Of one gradient, summed over all parameters."""
        return float(sum(s.square().sum() for s in self.std.values()))

    def __repr__(self) -> str:
        """One line."""
        if self.refused:
            return f"{named(self.objective)}: refused, {self.refused}"
        ratios = torch.cat([t.flatten() for t in self.signal_to_noise.values()])
        return (
            f"{named(self.objective)}: variance {self.variance:.2g}, signal to noise "
            f"{float(ratios.nanmedian()):.2g} in the median, with {self.num_draws} draws"
        )


def gradient_noise(
    target: Target,
    guide: Any,
    params: dict[str, Tensor] | None = None,
    *,
    objectives: Any = None,
    num_draws: int = 16,
    num_repeats: int = 256,
    generator: torch.Generator | None = None,
) -> list[GradientNoise]:
    """Mean, standard deviation and signal-to-noise ratio of gradients, the quietest first.

    Args:
        target: What is approximated.
        guide: The family; or a posterior, whose guide and parameters are then meant.
        params: Its parameters, of one fit; default ``guide.init``.
        objectives: One or a sequence; default: the ELBO with every estimator. Different
            objectives have different gradients, whose variances say little side by side.
        num_draws: Base draws of one gradient.
        num_repeats: Gradients of each.
        generator: Source of randomness; one seed is drawn from it, all see the same draws.

    Raises:
        ValueError: If there are fewer than two repeats.
        TypeError: If an objective is none.
    """
    if num_repeats < 2:
        raise ValueError(f"`num_repeats` must be at least 2, got {num_repeats}.")
    if isinstance(guide, Posterior):
        guide, params = guide.guide, params or guide.params
    seed = draw_seed(generator)
    params = params or guide.init(target, child(seed, 0))
    kinds = (ClosedEntropy(), StickTheLanding(), TotalGradient(), ScoreFunction())
    rows = []
    given = objectives if isinstance(objectives, Sequence) else [objectives]
    chosen = [ELBO(kind) for kind in kinds] if objectives is None else map(checked, given)
    for objective in chosen:
        reason = objective.refused(guide)
        n = draws_of(guide, objective, num_draws, paired=False)
        if reason:
            rows.append(GradientNoise(objective, {}, {}, n, reason))
            continue
        stream = child(seed, 1, target.device)
        grads = _gradients(target, guide, params, objective, n, num_repeats, stream)
        mean = {k: g.mean(dim=0) for k, g in grads.items()}
        rows.append(GradientNoise(objective, mean, {k: g.std(dim=0) for k, g in grads.items()}, n))
    return sorted(rows, key=lambda row: (bool(row.refused), row.variance))


def _gradients(
    target: Target,
    guide: Any,
    params: dict[str, Tensor],
    objective: Objective,
    n: int,
    repeats: int,
    generator: torch.Generator,
) -> dict[str, Float[Tensor, " r *shape"]]:
    """Independent gradients along the first axis."""
    size = sum(t.numel() for t in params.values())
    most = max(1, _CHUNK // size)
    found: dict[str, list[Tensor]] = {name: [] for name in params}
    log_density = linked(target.value_and_grad)
    for start in range(0, repeats, most):
        r = min(most, repeats - start)
        shape = (r, n, guide.base_dim(target.dim))
        eps = torch.randn(shape, generator=generator, dtype=target.dtype, device=generator.device)
        with torch.enable_grad():
            leaves = {
                k: t.detach().expand(r, *t.shape).clone().requires_grad_()
                for k, t in params.items()
            }
            total = objective.terms(log_density, guide, leaves, eps).mean(dim=1).sum()
            grads = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        for name, g in zip(found, grads, strict=True):
            found[name].append(g)
    return {name: torch.cat(pieces) for name, pieces in found.items()}
