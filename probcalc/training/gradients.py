"""The gradient of one update: of a batch, of several in turn, of a share of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from probcalc.differentiation.batched import validating_as_before
from probcalc.training.parallel import (
    ALONE,
    Share,
    sharing,
    sum_gradients,
    sum_scalars,
    sync_buffers,
)
from probcalc.training.precision import Precision

Scalars = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class LossAndGradients:
    """What an objective may return that differentiates itself, such as a captured graph.

    Args:
        loss: A scalar.
        gradients: Of the loss, by name of the parameter.
        metrics: Scalars, by name.
    """

    loss: Tensor
    gradients: dict[str, Tensor]
    metrics: Scalars = field(default_factory=dict)


@dataclass(frozen=True)
class NoiseFirst:
    """An objective whose random numbers are drawn before the rest of it.

    It is called like any other. A compiler makes one graph of the rest, where it would stop at
    every draw.

    Args:
        draw: ``draw(params or module, batch, generator)`` returns the batch with its noise.
        loss: ``loss(params or module, batch with noise)`` returns what an objective returns.
    """

    draw: Callable[[Any, Any, torch.Generator], Any]
    loss: Callable[[Any, Any], Any]

    def __call__(self, subject: Any, batch: Any, generator: torch.Generator) -> Any:
        """The loss at a batch."""
        return self.loss(subject, self.draw(subject, batch, generator))

    def compiled(self) -> NoiseFirst:
        """The same, the second part compiled."""
        return NoiseFirst(self.draw, torch.compile(self.loss))


class Gradients:
    """Evaluates an objective and fills in the gradients of the parameters."""

    def __init__(
        self,
        objective: Callable[..., Any],
        subject: Any,
        params: dict[str, Tensor],
        precision: Precision,
        share: Share,
        compiles: bool,
        buffers: Sequence[Tensor] = (),
    ) -> None:
        self.objective, self.subject, self.params = objective, subject, params
        self.precision, self.share, self.note = precision, share, ""
        self.buffers = list(buffers)  # that no schedule sets
        self.compiled = validating_as_before(lambda: _compiled(objective)) if compiles else None

    def __call__(
        self, batches: Sequence[Any], generator: torch.Generator
    ) -> tuple[Tensor, Scalars]:
        """Loss and metrics of an update, means over all rows of its batches."""
        for p in self.params.values():  # `zero_grad` without the profiler's marks
            p.grad = None
        if len(batches) == 1 and self.share.world == 1:
            loss, metrics, gradients = self.evaluate(batches[0], generator)
            self._add(loss, gradients, 1.0)
            return loss.detach(), metrics
        sizes = [_num_rows(batch) for batch in batches]
        parts = [
            self._part(batch, size / sum(sizes), generator)
            for batch, size in zip(batches, sizes, strict=True)
        ]
        totals = torch.stack([values for _, values in parts]).sum(dim=0)
        if self.share.world > 1:
            sum_gradients(list(self.params.values()), 1.0)
            totals = sum_scalars(totals, 1.0)
            if self.buffers:
                seen = sum(len(range(n)[self.share.rows(n)]) for n in sizes)
                sync_buffers(self.buffers, seen / sum(sizes))
        return totals[0], dict(zip(parts[0][0], totals[1:], strict=True))

    def _part(
        self, batch: Any, weight: float, generator: torch.Generator
    ) -> tuple[tuple[str, ...], Tensor]:
        """Add what one batch, or the own share of it, contributes.

        A process without a row of its own evaluates all of them, and adds nothing.
        """
        whole, share = _num_rows(batch), self.share
        own = range(whole)[share.rows(whole)] if share.world > 1 else range(whole)
        if not own:
            weight, share = 0.0, ALONE
        elif share.world > 1:
            batch, weight = share.of(batch), weight * len(own) / whole
        with sharing(share, whole):
            loss, metrics, gradients = self.evaluate(batch, generator)
        self._add(loss, gradients, weight)
        values = torch.stack([v.detach().double() for v in (loss, *metrics.values())])
        return tuple(metrics), weight * values

    def _add(self, loss: Tensor, gradients: dict[str, Tensor] | None, weight: float) -> None:
        if gradients is None:
            self.precision.backward(loss if weight == 1.0 else weight * loss)
            return
        for name, p in self.params.items():
            new = gradients.get(name)
            if new is not None:
                new = new if weight == 1.0 else weight * new
                p.grad = new if p.grad is None else p.grad + new

    def evaluate(
        self, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, Scalars, dict[str, Tensor] | None]:
        """Loss, metrics, and gradients where the objective brings them.

        Raises:
            ValueError: If the loss is no scalar.
            TypeError: If the objective returns something else.
        """
        with self.precision.active():
            out, gradients = self._called(batch, generator), None
        if isinstance(out, LossAndGradients):
            loss, metrics, gradients = out.loss, out.metrics, out.gradients
        else:
            loss, metrics = out if isinstance(out, tuple) else (out, {})
        if not torch.is_tensor(loss):
            raise TypeError(
                f"the objective must return a scalar tensor, got {type(loss).__name__}."
            )
        if loss.ndim:
            raise ValueError(
                f"the objective must return a scalar loss, got shape {tuple(loss.shape)}; take "
                "its mean or sum."
            )
        return loss, metrics, gradients

    def _called(self, batch: Any, generator: torch.Generator) -> Any:
        """By the compiled objective where there is one, else, with a note, as it is written."""
        if self.compiled is None:
            return self.objective(self.subject, batch, generator)
        if isinstance(self.objective, NoiseFirst):
            drawn = self.objective.draw(self.subject, batch, generator)
            return self._attempted(lambda objective: objective.loss(self.subject, drawn))
        before = generator.get_state()

        def at_batch(objective: Callable[..., Any]) -> Any:
            generator.set_state(before)
            return objective(self.subject, batch, generator)

        return self._attempted(at_batch)

    def _attempted(self, call: Callable[[Any], Any]) -> Any:
        """A call with the compiled objective, or where that fails with the one it was made of."""
        try:
            return validating_as_before(lambda: call(self.compiled))
        except Exception as error:  # noqa: BLE001 (whatever a compiler raises)
            self.compiled = None
            self.note = f"not compiled: {type(error).__name__}: {str(error).splitlines()[0]}"
            return call(self.objective)


def _compiled(objective: Callable[..., Any]) -> Callable[..., Any]:
    if isinstance(objective, NoiseFirst):
        return objective.compiled()
    return torch.compile(objective)


def _num_rows(batch: Any) -> int:
    leaves = [t for t in pytree.tree_leaves(batch) if torch.is_tensor(t)]
    return len(leaves[0]) if leaves and leaves[0].ndim else 1
