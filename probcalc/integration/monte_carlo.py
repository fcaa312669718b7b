"""Plain Monte Carlo.

    E_p[f] ≈ (1/n) Σ f(x_i),   x_i ~ p,   standard error s/√n

The bar is the central limit theorem's, and refused where the terms' tail says that they have no
variance. Owen (2013), Monte Carlo theory, methods and examples, ch. 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probcalc._random import draw_seed, forked
from probcalc.integration.expectation import Expectation
from probcalc.integration.problem import Solved, Tolerance
from probcalc.integration.tails import pareto_khat
from probcalc.result import half_width
from probcalc.status import Status

_MAX_EVALS = 2**17
_NO_VARIANCE = 0.5  # shape of the terms' tail from which their variance is infinite
_NO_MEAN = 1.0
_FEW = 50.0  # effective number of terms below which the bar means nothing


@dataclass(frozen=True)
class MonteCarlo:
    """Mean of independent draws.

    Args:
        num_draws: How many; default `max_evals`, or 131,072.
    """

    num_draws: int | None = None

    def __post_init__(self) -> None:
        """Check the number."""
        if self.num_draws is not None and self.num_draws < 2:
            raise ValueError(
                f"`num_draws` must be at least 2 to give an error bar, got {self.num_draws}."
            )

    def expect(self, posed: Expectation, tolerance: Tolerance) -> Solved:
        """Average over draws; differentiable where the draws are reparametrised."""
        n = self.num_draws or tolerance.max_evals or _MAX_EVALS
        dist = posed.dist
        with forked(draw_seed(tolerance.generator), posed.device):
            x = dist.rsample((n,)) if dist.has_rsample else dist.sample((n,))
        f = posed.values(x)
        if posed.shift is not None:
            f = (
                f - posed.shift.reshape(*posed.batch, *[1] * (f.ndim - 1 - len(posed.batch)))
            ).exp()
        f = f.reshape(n, math.prod(posed.batch), *f.shape[1 + len(posed.batch) :])
        value, terms = f.mean(dim=0), f.detach()
        std_error = terms.std(dim=0) / n**0.5
        status = _judged(terms)
        error = half_width(std_error, None, tolerance.confidence)
        bad = (status != 0).reshape(-1, *[1] * (error.ndim - 1))
        error = torch.where(bad, math.inf, error)
        count = torch.full_like(status, n)
        return Solved(value, error, status, count, "Monte Carlo", std_error, math.inf)


def _judged(terms: Float[Tensor, "n b *out"]) -> Int[Tensor, " b"]:
    """Flags of the terms of a mean: their tail, their number, and whether they say anything."""
    n, b = terms.shape[:2]
    size = terms.abs().reshape(n, b, -1)
    khat = pareto_khat(size.log().movedim(0, -1)).amax(dim=-1)
    effective = (size.sum(dim=0).square() / size.square().sum(dim=0)).amin(dim=-1)
    still = (size.amax(dim=0) == 0).any(dim=-1)
    flags = {
        Status.NON_FINITE: ~terms.isfinite().reshape(n, b, -1).all(dim=0).all(dim=-1),
        Status.DIVERGENT: khat >= _NO_MEAN,
        Status.INFINITE_VARIANCE: (khat > _NO_VARIANCE) & khat.isfinite(),
        Status.UNRESOLVED_MASS: still | (effective < _FEW),
    }
    joined = torch.zeros(b, dtype=torch.long, device=terms.device)
    for flag, where in flags.items():
        joined = joined | torch.where(where, int(flag), 0)
    return joined
