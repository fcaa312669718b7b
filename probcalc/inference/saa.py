r"""Sample-average approximation: the ELBO with its draws held still, a deterministic objective.

    J(m, ℓ) = −(1/M) Σ_k log p(m + e^ℓ ∘ ε_k) − Σ_i ℓ_i           (the negative ELBO + const)

The draws ε come in ± pairs with second moment exactly the identity, so J is exact whenever
log p is quadratic, and its minimiser has an error far below the 1/√M of independent draws.
Several randomisations are solved as one batch: their spread is the error of the fixed draws, and
their different starts look for other modes.

Giordano, Ingram & Broderick (2024), Black box variational inference with a deterministic
objective, sections 2-3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.optimization.lbfgs import LBFGS
from probcalc.optimization.minimize import descend
from probcalc.result import Solution

ValueAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class SampleAverageFit:
    """Solved randomisations: `r` of them, each with its own `m` draws in `d` dimensions."""

    loc: Float[Tensor, "r d"]
    log_scale: Float[Tensor, "r d"]
    elbo: Float[Tensor, " r"]
    eps: Float[Tensor, "r m d"]
    solution: Solution

    @property
    def num_evals(self) -> int:
        """Evaluations of the log density with its gradient, all draws counted."""
        return int(self.solution.num_evals.sum()) * self.eps.shape[1]


def sample_average(
    value_and_grad: ValueAndGrad,
    loc: Float[Tensor, "r d"],
    log_scale: Float[Tensor, "r d"],
    eps: Float[Tensor, "r m d"],
    *,
    gtol: float = 1e-5,
    max_steps: int = 500,
) -> SampleAverageFit:
    """Minimise J for a batch of randomisations.

    Args:
        value_and_grad: Log density and gradient of points ``(..., d)``.
        loc: Starts.
        log_scale: Starting log standard deviations.
        eps: Draws of each randomisation.
        gtol: See `LBFGS`.
        max_steps: Evaluations a randomisation.

    Returns:
        Optima, with the ELBO on the fixed draws.
    """
    d = loc.shape[-1]

    def oracle(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        m, log_s = x[:, :d], x[:, d:]
        s = log_s.exp()[:, None]
        draws = eps[rows]
        log_p, g = value_and_grad(m[:, None] + s * draws)
        J = -log_p.mean(dim=1) - log_s.sum(dim=1)
        by_scale = -(g * draws).mean(dim=1) * s[:, 0] - 1
        return J, torch.cat([-g.mean(dim=1), by_scale], dim=1)

    solution = descend(
        oracle, torch.cat([loc, log_scale], dim=1), method=LBFGS(gtol=gtol), max_evals=max_steps
    )
    constant = 0.5 * d * (1 + math.log(2 * math.pi))
    x = solution.x
    return SampleAverageFit(x[:, :d], x[:, d:], constant - solution.value, eps, solution)
