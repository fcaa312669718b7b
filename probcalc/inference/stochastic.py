r"""`Stochastic`: noisy gradients of any objective, stopped when their average has settled.

Steps of a fixed size walk around the optimum; the average over them is nearer by far. When split
R̂ finds the walk stationary and the standard error of its average is small, the step size is
halved and the walk goes on from the average. It ends when two averages in a row are the same
within the tolerance: what is left of the step size's bias is then about their difference.

Welandawe, Andersen, Vehtari & Huggins (2024), A framework for improving the reliability of
black-box variational inference (RABVI); Dhaka et al. (2020), Robust, accurate stochastic
optimization for variational inference. The difference of averages stands for RABVI's regression.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probcalc._random import child
from probcalc._tree import Layout
from probcalc.inference.elbo import draws_of
from probcalc.inference.minibatch import batched_density
from probcalc.inference.objectives import (
    ELBO,
    ClosedEntropy,
    Objective,
    StickTheLanding,
    TotalGradient,
    named,
)
from probcalc.inference.solved import Progress, Solved
from probcalc.inference.walk import CHECK, Problem, Walk
from probcalc.optimization.first_order import Adam, FirstOrder
from probcalc.status import Status
from probcalc.training.loop import TrainResult, train

if TYPE_CHECKING:
    from probcalc.inference.target import Target

_STARTS, _TRAIN, _FINAL = 0, 1, 2  # streams of the seed
_RATE, _MANY = 0.1, 200  # Adam's step, in units of standard errors; smaller for many parameters
_NUM_FINAL = 256  # draws by which restarts are compared
_LOOKS_AT_FAULTS = 1000  # steps; the walk sees to its own


@dataclass(frozen=True)
class Stochastic:
    """Stochastic gradient ascent with averaged iterates and a stopping rule.

    Args:
        optimizer: Default `Adam`, its rate a tenth of a standard deviation of the start; or
            `DoWG()`, which has no rate.
        num_draws: Of a step.
        objective: Default `ELBO()`, its gradient by the quietest of the guide's estimators.
        max_steps: Steps after which an average that has not settled is flagged.
        tolerance: Of the average: each coordinate's error in its own standard deviations, root
            mean square.
        batch_size: Rows of the data that a step sees; None for all. For a Pyro model with a
            subsampled plate it is that of the plate.
        num_restarts: Fits at once: the first from the start given, the others from the guide's.
        folder: For checkpoints and the history.
        save_every: Steps a checkpoint.
        resume: Whether to go on from the newest checkpoint in the folder.
    """

    optimizer: FirstOrder | None = None
    num_draws: int = 16
    objective: Objective | None = None
    max_steps: int = 20_000
    tolerance: float = 0.05
    batch_size: int | None = None
    num_restarts: int = 1
    folder: str | Path | None = None
    save_every: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If a number is not positive.
        """
        for name in ("num_draws", "max_steps", "tolerance", "batch_size", "num_restarts"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`Stochastic({name}=...)` must be positive, got {value}.")

    def solve(
        self,
        target: Target,
        guide: Any,
        params: dict[str, Tensor],
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> Solved:
        """Walk, average, and judge.

        Raises:
            ValueError: If the guide does not have the objective, or the target has no rows to
                take batches of.
        """
        objective = self.objective or ELBO()
        if reason := objective.refused(guide):
            raise ValueError(reason)
        walk = Walk(*self._begun(target, guide, objective, params, seed))
        report = _reporting(progress, walk)
        trained = train(
            walk.loss,
            walk,
            optimizer=self._optimizer(walk),
            max_steps=self.max_steps,
            schedule=lambda step: 0.5**walk.stage,
            check_every=_LOOKS_AT_FAULTS,
            log_every=CHECK // 2,
            folder=self.folder,
            save_every=self.save_every,
            resume=self.resume,
            stop=lambda step: report(step) or walk.look(step),
            progress=False,
            generator=child(seed, _TRAIN),
        )
        return self._solved(target, walk, trained, seed)

    def _begun(
        self,
        target: Target,
        guide: Any,
        objective: Objective,
        params: dict[str, Tensor],
        seed: int,
    ) -> tuple[Problem, dict[str, Tensor]]:
        density, num_rows, batch_size = target.value_and_grad, None, None
        if self.batch_size is not None or target.model.batch_size is not None:
            density, num_rows, batch_size = batched_density(target, self.batch_size)
        layout = Layout({name: tuple(t.shape) for name, t in params.items()})
        stream = child(seed, _STARTS)
        others = [guide.init(target, stream) for _ in range(self.num_restarts - 1)]
        starts = {name: torch.stack([p[name] for p in (params, *others)]) for name in params}
        problem = Problem(
            density,
            guide,
            layout,
            target.dim,
            _candidates(guide, objective),
            draws_of(guide, objective, self.num_draws, paired=False),
            self.tolerance,
            target.is_traced,
            num_rows,
            batch_size,
            seed,
        )
        return problem, starts

    def _optimizer(self, walk: Walk) -> Any:
        settings = self.optimizer or Adam(_RATE * min(1.0, math.sqrt(_MANY / walk.x.shape[1])))

        def build(leaves: Any) -> torch.optim.Optimizer:
            walk.optimizer = settings.optimizer(leaves, fused=isinstance(settings, Adam))
            return walk.optimizer

        return build

    def _solved(self, target: Target, walk: Walk, trained: TrainResult, seed: int) -> Solved:
        problem, found = walk.problem, walk.problem.layout.unflatten(walk.result())
        objective = problem.candidates[walk.chosen]
        n = draws_of(problem.guide, objective, _NUM_FINAL)
        eps = walk._eps(child(seed, _FINAL, walk.x.device), n)
        with torch.no_grad():
            final = objective.terms(target.log_density, problem.guide, found, eps).mean(dim=1)
        best = int(final.nan_to_num(-torch.inf).argmax())
        status, reasons = _verdict(walk, trained, best)
        steps, r = trained.num_steps, len(walk.x)
        gradients = steps * problem.num_draws * r
        traced = all(s.is_traced for s in walk.steps.values())
        words = f"{steps:,} steps of {problem.num_draws} draws, {named(objective)}"
        return Solved(
            problem.guide,
            {name: t[best].detach().clone() for name, t in found.items()},
            f"stochastic ({words})",
            gradients,
            gradients + n * r,
            status,
            reasons,
            torch.tensor([-h["loss"] for h in trained.history], dtype=torch.float64),
            {
                "params": found,
                "elbo": final,
                "reason": trained.reason,
                "objective": objective,
                "gradient_variance": _by_name(problem.candidates, walk.noise),
                "num_halvings": walk.stage,
                "standard_error": walk.error.sqrt(),
                "moved": walk.moved.sqrt(),
                "skipped": walk.skipped.clone(),
                "is_traced": traced,
                "history": trained.history,
            },
        )


def _candidates(guide: Any, objective: Objective) -> list[Objective]:
    """The objective itself, or with each estimator of the ELBO's gradient that the guide has."""
    if not (isinstance(objective, ELBO) and objective.gradient is None):
        return [objective]
    kinds = (ClosedEntropy(), StickTheLanding(), TotalGradient())
    return [ELBO(kind) for kind in kinds if not kind.refused(guide)]


def _by_name(candidates: Sequence[Objective], noise: list[float]) -> dict[str, float]:
    """Variance of each estimator's gradient at the last look, summed; empty where there is one."""
    return dict(zip(map(named, candidates), noise, strict=True)) if noise else {}


def _reporting(progress: Progress | None, walk: Walk) -> Any:
    """Tell of every look."""
    each = walk.problem.num_draws * len(walk.x)

    def report(step: int) -> str:
        if progress is not None and step % CHECK == 0:
            progress(f"stochastic ({step:,} steps)", step * each)
        return ""

    return report


def _verdict(walk: Walk, trained: TrainResult, best: int) -> tuple[Status, tuple[str, ...]]:
    skipped = int(walk.skipped[best])
    notes = [f"{skipped:,} steps without a finite gradient were skipped"] if skipped else []
    if trained.status or trained.reason.startswith("no finite"):
        return trained.status | Status.NON_FINITE, (trained.reason, *notes)
    if not walk.has_ended:
        error = float(walk.error[best]) ** 0.5
        why = f"after {trained.num_steps:,} steps the average of the iterates has not settled"
        if math.isfinite(error):
            why += f" (error {error:.2g} sd, moved {float(walk.moved[best]) ** 0.5:.2g} sd)"
        return Status.NOT_CONVERGED, (why, *notes)
    return Status.OK, tuple(notes)
