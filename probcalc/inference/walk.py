"""The parameters of a stochastic fit on their way, with everything that decides the way.

A module, so that the training loop saves all of it: the parameters in the optimiser's units, sums
over iterates, the stage (how often the step size was halved), the estimator in use, and steps
whose numbers were not finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcalc._random import child
from probcalc._tree import Layout
from probcalc.inference.convergence import Iterates, standard_error, symmetrised_kl
from probcalc.inference.objectives import Objective
from probcalc.inference.step import Step, ValueAndGrad, fisher_scale, step_of
from probcalc.training.gradients import LossAndGradients

CHECK = 100  # steps from one look at convergence to the next
_PATIENCE = 100  # steps in a row that are not finite
_RHAT = 1.1
_COMPARED = 32  # draws on which estimators are compared
_PAIRS = 128  # base draws behind a divergence
_WARM = (1, 2, 4, 8, 16, 32)  # looks at which units and estimators are reconsidered
_RESCALED = 1.5  # factor by which a unit must have changed
_ROWS, _LOOK = 0, 1  # streams
_SHUFFLED = 2**16  # rows up to which batches are drawn without replacement


@dataclass(frozen=True, eq=False)
class Problem:
    """What is fitted, and how.

    Args:
        value_and_grad: Of the density at rows, with rows of the data behind them, if any.
        guide: The family.
        layout: Of the parameters of one fit.
        dim: Of the density.
        candidates: Objectives with one gradient and several estimators of it.
        num_draws: Base draws of a step.
        tolerance: Of every coordinate, in its standard deviations, root mean square.
        traced: Whether steps may be traced.
        num_rows: Rows of the data, where steps see some of them only.
        batch_size: How many.
        seed: Of looks.
    """

    value_and_grad: ValueAndGrad
    guide: Any
    layout: Layout
    dim: int
    candidates: Sequence[Objective]
    num_draws: int
    tolerance: float
    traced: bool
    num_rows: int | None
    batch_size: int | None
    seed: int

    @property
    def base_dim(self) -> int:
        """Length of a base draw."""
        return self.guide.base_dim(self.dim)


class Walk(nn.Module):
    """`r` fits of `p` parameters on their way."""

    def __init__(self, problem: Problem, params: dict[str, Tensor]) -> None:
        super().__init__()
        self.problem = problem
        flat = problem.layout.flatten(params).contiguous()
        self.x = nn.Parameter(torch.zeros_like(flat))
        units = self._units(flat, look=0)
        zero = torch.zeros(len(flat), dtype=torch.long, device=flat.device)
        for name, value in {
            "base": flat.clone(),
            "scale": units,
            "previous": flat.clone(),
            "in_a_row": zero,
            "skipped": zero.clone(),
            "error": torch.full_like(flat[:, 0], torch.inf),
            "moved": torch.full_like(flat[:, 0], torch.inf),
        }.items():
            self.register_buffer(name, value)
        # stage, estimator, whether it has ended: small, and read at every step
        self.register_buffer("numbers", torch.tensor([0, 0, 0]))
        self.iterates = Iterates(self.x)
        self.steps: dict[int, Step] = {}
        self.noise: list[float] = []
        self.is_clean = False  # known: no fit lacked a gradient in the last step
        self.optimizer: torch.optim.Optimizer | None = None
        self._choose(look=0)

    @property
    def stage(self) -> int:
        """How often the step size was halved."""
        return int(self.numbers[0])

    @property
    def chosen(self) -> int:
        """The estimator in use."""
        return int(self.numbers[1])

    @property
    def has_ended(self) -> bool:
        """Whether the average is as good as asked for."""
        return bool(self.numbers[2])

    def result(self) -> Float[Tensor, "r p"]:
        """The average that convergence was found with, else of the later half of the steps."""
        if self.has_ended:
            return self.previous
        k, _, steps = self.iterates.counts.tolist()
        return self._at(self.iterates.average()) if k or steps else self.previous

    def loss(self, _: nn.Module, batch: None, generator: torch.Generator) -> LossAndGradients:
        """Minus the mean objective of the fits, with the gradients of their own of each."""
        x = self.x.detach()
        value, grad = self._step(self.chosen)(x, *self._args(generator, self.problem.num_draws))
        total = value.sum()
        if value.device.type == "cpu" and math.isfinite(total.item()):  # no need to note anything
            if not self.is_clean:
                self.in_a_row.zero_()
                self.is_clean = True
            return LossAndGradients(total / -len(value), {"x": grad.neg()})
        self.is_clean, bad = False, value.isnan()
        self.in_a_row.add_(1).mul_(bad)
        self.skipped.add_(bad)
        return LossAndGradients(-value.nanmean().nan_to_num(), {"x": grad.neg()})

    def look(self, step: int) -> str:
        """After a step: remember it, and now and then see whether to end; words where so."""
        x = self.x.detach()
        self.iterates.add(x)
        if step % CHECK:
            return ""
        alive = self.in_a_row < _PATIENCE
        if not bool(alive.any()):
            return f"no finite gradient in {_PATIENCE} steps"
        if step // CHECK in _WARM and self.stage == 0:
            self._reconsider(step // CHECK)
        parts = self.iterates.settled(_RHAT)
        if parts is None:
            return ""
        return self._judge(step, parts, alive)

    def _judge(self, step: int, parts: Float[Tensor, "j r p"], alive: Tensor) -> str:
        """Whether the average is exact enough, and has stopped moving with the step size."""
        problem, average = self.problem, self._at(parts.mean(dim=0))
        eps = self._eps(child(problem.seed, _LOOK + 2 * step, self.x.device), _PAIRS)
        unflatten = problem.layout.unflatten
        error = standard_error(problem.guide, unflatten, self._at(parts), eps) / problem.dim
        self.error.copy_(error)
        if not bool((error <= problem.tolerance**2)[alive].all()):
            return ""
        if self.stage:
            pair = unflatten(average), unflatten(self.previous)
            self.moved.copy_(symmetrised_kl(problem.guide, *pair, eps) / problem.dim)
        self.previous.copy_(average)
        if bool((self.moved <= problem.tolerance**2)[alive].all()):
            self.numbers[2] = 1
            return f"settled after {step:,} steps"
        with torch.no_grad():
            self.x.copy_(parts.mean(dim=0))
        self.iterates.clear()
        self.numbers[0] += 1
        self._choose(look=step)
        return ""

    def _reconsider(self, look: int) -> None:
        """Units and estimator, as the guide has changed since."""
        p = self._at(self.x.detach())
        units = self._units(p, look)
        ratio = units / self.scale
        if float(torch.maximum(ratio, 1 / ratio).max()) > _RESCALED:
            self.base.copy_(p)
            self.scale.copy_(units)
            with torch.no_grad():
                self.x.zero_()
            self._convert(ratio)
            self.iterates.clear()
        self._choose(look)

    def _convert(self, ratio: Tensor) -> None:
        """Moments of the gradients, in the new units."""
        if self.optimizer is None:
            return
        memory = self.optimizer.state.get(self.x, {})
        for name, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
            if name in memory:
                memory[name].mul_(ratio**power)

    def _choose(self, look: int) -> None:
        """Take the estimator whose gradients scatter least, in the units of the steps."""
        if len(self.problem.candidates) == 1:
            return
        generator = child(self.problem.seed, _LOOK + 2 * look + 1, self.x.device)
        totals = [[] for _ in self.problem.candidates]
        for _ in range(_COMPARED // 4):
            args = self._args(generator, self.problem.num_draws)  # the same for every candidate
            for i, total in enumerate(totals):
                total.append(self._step(i)(self.x.detach(), *args)[1])
        spread = [torch.stack(t).var(dim=0).sum().nan_to_num(torch.inf) for t in totals]
        self.noise = torch.stack(spread).tolist()
        self.numbers[1] = int(torch.tensor(self.noise).argmin())

    def _units(self, flat: Float[Tensor, "r p"], look: int) -> Float[Tensor, "r p"]:
        problem = self.problem
        stream = child(problem.seed, _LOOK + 2 * look + 2**40, flat.device)
        params = problem.layout.unflatten(flat)
        return problem.layout.flatten(fisher_scale(problem.guide, params, problem.dim, stream))

    def _at(self, x: Float[Tensor, "*j r p"]) -> Float[Tensor, "*j r p"]:
        return self.base + self.scale * x

    def _args(self, generator: torch.Generator, num: int) -> tuple[Tensor, ...]:
        """What a step takes behind x."""
        eps = self._eps(generator, num)
        if self.problem.batch_size is None:
            return self.base, self.scale, eps
        return self.base, self.scale, eps, self._rows(generator)

    def _eps(self, generator: torch.Generator, num: int) -> Float[Tensor, "r n b"]:
        shape = (len(self.x), num, self.problem.base_dim)
        return torch.randn(shape, generator=generator, dtype=self.x.dtype, device=self.x.device)

    def _rows(self, generator: torch.Generator) -> Tensor:
        """A random set of rows; of many rows each on its own, so that a step costs its batch."""
        n, size = self.problem.num_rows, self.problem.batch_size
        if n <= _SHUFFLED:
            order = torch.randperm(n, generator=generator, device=self.x.device)
            return order[:size]
        return torch.randint(n, (size,), generator=generator, device=self.x.device)

    def _step(self, index: int) -> Any:
        if index not in self.steps:
            generator = child(self.problem.seed, _ROWS, self.x.device)
            self.steps[index] = step_of(
                self.problem.value_and_grad,
                self.problem.guide,
                self.problem.layout,
                self.problem.candidates[index],
                (self.x.detach(), *self._args(generator, self.problem.num_draws)),
                trace=self.problem.traced,
            )
        return self.steps[index].call
