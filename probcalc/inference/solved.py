"""What lies between a way of solving for a guide's parameters and the weighing of its draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from probcalc.inference.guides import Guide
from probcalc.status import Status

if TYPE_CHECKING:
    from probcalc.inference.target import Target

Progress = Callable[[str, int], None]


@dataclass(frozen=True, eq=False)
class Solved:
    """A guide's parameters, and how they were found.

    Args:
        guide: The family.
        params: Its parameters, of one fit.
        method: What was done, in words.
        num_gradients: Evaluations of the log density with its gradient, one for every draw.
        num_evals: Evaluations of the log density, those with gradient among them.
        status: Flags.
        reasons: Their reasons, in words.
        trace: ELBO as the solver saw it, by step.
        diagnostics: What else the solver knows.
    """

    guide: Guide
    params: dict[str, Tensor]
    method: str
    num_gradients: int
    num_evals: int
    status: Status = Status.OK
    reasons: tuple[str, ...] = ()
    trace: Float[Tensor, " t"] | None = None
    diagnostics: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Solver(Protocol):
    """A way to a guide's parameters: what `fit(method=...)` takes; settings are its fields."""

    def solve(
        self,
        target: Target,
        guide: Guide,
        params: dict[str, Tensor],
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> Solved:
        """Start at `params` and return the best parameters found."""
        ...
