"""The ladder that `fit` climbs where nothing else is asked for.

1. Pathfinder: several quasi-Newton runs from random starts, one batch; the best Gaussian of each.
2. One Gaussian a mode, fitted to the ELBO over fixed, moment-matched draws. Above a few hundred
   dimensions: a mean-field Gaussian, and its linear response.
3. Importance weights. Where they are uneven, a better proposal is looked for among those that
   need values of the density only: heavier tails, the weighted moments, mixtures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc._random import child
from probcalc.inference.assess import Budget, enough, first_draws
from probcalc.inference.gaussian_average import GaussianAverage, gaussian_average
from probcalc.inference.guides import FullRank, GaussianMixture
from probcalc.inference.importance import WeightedDraws
from probcalc.inference.large import fit_large
from probcalc.inference.modes import Modes, modes_of, starts_of
from probcalc.inference.parameters import Values
from probcalc.inference.pathfinder import Paths, pathfinder
from probcalc.inference.proposals import better, improved, is_light
from probcalc.inference.solved import Progress, Solved
from probcalc.inference.target import Target
from probcalc.integration.normal_draws import matched_normal_draws
from probcalc.status import Status

_STARTS, _PATHS, _DRAWS, _FRAME = 0, 4, 1, 2  # streams of the run's seed
_MAX_DENSE = 400  # dimensions up to which a full covariance is fitted
_REACHES = (1.0, 1.0, 4.0, 12.0)  # of pairs of starts, against those of the target
_MAX_ROUNDS = 3  # of better proposals and more draws


@dataclass(frozen=True, eq=False)
class Climbed:
    """Where the ladder ended.

    Args:
        target: In the coordinates that served best.
        draws: Weighted draws of the proposal.
        status: Flags.
        reasons: In words.
        method: What was done.
        num_gradients: Evaluations of the log density with gradient.
        num_evals: All evaluations.
        trace: ELBO over fixed draws by step, of the best mode.
        elbo_terms: Log ratios of the fitted Gaussians, where the draws are of another proposal.
    """

    target: Target
    draws: WeightedDraws
    status: Status
    reasons: tuple[str, ...]
    method: str
    num_gradients: int
    num_evals: int
    trace: Float[Tensor, " t"]
    elbo_terms: Float[Tensor, "r m"] | None = None


@dataclass(frozen=True, eq=False)
class _Seen:
    target: Target
    modes: Modes
    draws: WeightedDraws
    trace: Tensor
    stream: torch.Generator


class Ladder:
    """One climb; keeps the count of evaluations and the words for what was done."""

    def __init__(
        self,
        target: Target,
        *,
        seed: int,
        restarts: int,
        budget: Budget,
        progress: Progress | None,
    ) -> None:
        self.target, self.seed, self.restarts, self.budget = target, seed, restarts, budget
        self.num_gradients = self.num_values = 0
        self.steps: list[str] = []
        self._progress = progress

    def climb(self, init: Values | None) -> Climbed:
        """Up to weighted draws; the first path starts at `init`."""
        if self.target.dim > _MAX_DENSE:
            return self._climbed_large(init)
        seen = None
        for target, paths in self._coordinates(init):
            other = self._explored(target, paths)
            if seen is None or better(seen.draws, other.draws):
                seen = other
            if is_light(seen.draws):
                break
        if seen.target is not self.target:
            self.note(f"non-centred {', '.join(self.target.model.hierarchical)}")
        draws = seen.draws
        if not seen.modes.status & Status.IMPROPER:
            draws = self._refined(seen.target, draws, seen.stream)
        return Climbed(
            seen.target,
            draws,
            seen.modes.status,
            seen.modes.reasons,
            " + ".join(self.steps),
            self.num_gradients,
            self.num_gradients + self.num_values,
            seen.trace,
            None if draws.guide is seen.draws.guide else seen.draws.log_ratios,
        )

    def _coordinates(self, init: Values | None) -> list[tuple[Target, Paths]]:
        """The target as written and with hierarchical sites non-centred, most promising first."""
        targets, sites = [self.target], self.target.model.hierarchical
        if sites and self.target.in_coordinates:
            targets.append(self.target.in_coordinates(dict.fromkeys(sites, 0.0)))
        seen = [(target, self._paths(target, init)) for target in targets]
        return sorted(seen, key=lambda pair: -float(pair[1].elbo.max()))

    def _explored(self, target: Target, paths: Paths) -> _Seen:
        """Modes in the coordinates of this target, and the first draws of their Gaussians."""
        fitted = self._fitted(target, paths)
        modes, trace = modes_of(fitted), fitted.trace[:, fitted.elbo.argmax()]
        stream = child(self.seed, _FRAME, target.device)
        k = len(modes.elbo)
        if k == 1:
            guide, params = FullRank(), {"loc": modes.loc[0], "scale_tril": modes.scale_tril[0]}
        else:
            self.note(f"{k} modes")
            guide, params = GaussianMixture(k), {"loc": modes.loc, "scale_tril": modes.scale_tril}
        draws = first_draws(target, guide, params, self.budget, stream)
        self.spend(values=draws.num_evals)
        return _Seen(target, modes, draws, trace, stream)

    def _climbed_large(self, init: Values | None) -> Climbed:
        """Mean-field and low-rank Gaussians, weighed."""
        stream = child(self.seed, _FRAME, self.target.device)
        found = fit_large(self.target, seed=self.seed, restarts=self.restarts, init=init)
        best: tuple[WeightedDraws, Solved] | None = None
        for solved in found.solved:
            self.spend(
                gradients=solved.num_gradients, values=solved.num_evals - solved.num_gradients
            )
            draws = first_draws(self.target, solved.guide, solved.params, self.budget, stream)
            self.spend(values=draws.num_evals)
            self.note(solved.method)
            if best is None or better(best[0], draws):
                best = draws, solved
        draws, solved = best
        return Climbed(
            self.target,
            draws,
            solved.status,
            solved.reasons,
            " + ".join(self.steps),
            self.num_gradients,
            self.num_gradients + self.num_values,
            draws.log_ratios.new_zeros(0) if solved.trace is None else solved.trace,
        )

    def note(self, step: str) -> None:
        """Words for what was done, once each."""
        if step not in self.steps:
            self.steps.append(step)

    def spend(self, *, gradients: int = 0, values: int = 0) -> None:
        """Count evaluations."""
        self.num_gradients += gradients
        self.num_values += values
        if self._progress:
            self._progress(
                self.steps[-1] if self.steps else "starting", self.num_gradients + self.num_values
            )

    def _refined(
        self, target: Target, draws: WeightedDraws, stream: torch.Generator
    ) -> WeightedDraws:
        """Better proposals; many draws may show a tail that few have hidden."""
        for _ in range(_MAX_ROUNDS):
            draws = improved(target, draws, self.budget, stream, self)
            more = enough(target, draws, self.budget, stream)
            if more is draws:
                break
            self.spend(values=more.num_evals)
            draws = more
            if is_light(draws):
                break
        return draws

    def _paths(self, target: Target, init: Values | None) -> Paths:
        starts = _spread_out(target, target.starts(self.restarts, child(self.seed, _STARTS)))
        if init is not None:
            starts = torch.cat([target.unconstrain(init)[None], starts[1:]])
        stream = child(self.seed, _PATHS, target.device)
        paths = pathfinder(target.value_and_grad, target.log_density, starts, generator=stream)
        self.note(f"Pathfinder ({self.restarts} paths)")
        self.spend(gradients=self.restarts + paths.num_gradients, values=paths.num_values)
        return paths

    def _fitted(self, target: Target, paths: Paths) -> GaussianAverage:
        kept = starts_of(paths)
        d = target.dim
        m = max(32, 4 * d)
        eps = matched_normal_draws(
            len(kept), m, d, generator=child(self.seed, _DRAWS, target.device)
        )
        fitted = gaussian_average(
            target.value_and_grad, paths.loc[kept], paths.scale_tril[kept], eps
        )
        self.note(f"full-rank SAA ({m} draws)")
        self.spend(gradients=fitted.num_gradients)
        return fitted


def _spread_out(target: Target, near: Float[Tensor, "r d"]) -> Float[Tensor, "r d"]:
    """Starts in ± pairs, one pair in four far out and one farther: modes may lie anywhere.

    Where the density is not finite there, a start stays near.
    """
    half = near[: (len(near) + 1) // 2]
    reach = torch.tensor(_REACHES, dtype=near.dtype, device=near.device)
    far = half * reach[torch.arange(len(half)) % len(_REACHES)][:, None]
    far = torch.stack([far, -far], dim=1).flatten(0, 1)[: len(near)]
    value, grad = target.value_and_grad(far)
    fine = value.isfinite() & grad.isfinite().all(dim=-1)
    return torch.where(fine[:, None], far, near)
