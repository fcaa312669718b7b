r"""Full-rank sample-average approximation by natural-gradient steps over fixed draws.

With draws ε held still, z = m + Lε and g = ∇log p(z), the ELBO of N(m, LLᵀ) is stationary where

    E[g] = 0   and   A = −sym E[ε (Lᵀg)ᵀ] = I,

the second by Stein's identity. The step goes to precision L⁻ᵀ((1 − ρ)I + ρA)L⁻¹ and to
m + ρ L((1 − ρ)I + ρA)⁻¹Lᵀ E[g]: Newton's for a quadratic log density, which one step solves
exactly where the draws have exact second moments. ρ is cut where the ELBO over the same draws
would fall, and no eigenvalue of the precision shrinks by more than a fifth at a step, so that it
stays positive where the density is not log-concave.

Lin, Schmidt & Khan (2020), Handling the positive-definite constraint in the Bayesian learning
rule, section 3; Burroni, Domke & Sheldon (2024), Sample average approximation for black-box
variational inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probcalc.linalg import symmetric

ValueAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]

_SMALLEST = 0.2  # eigenvalue of the new precision, against the old
_MIN_RATE = 2.0**-12
_FIRST_RATE = 1.0
_NEAR = 0.1  # nats from the optimum where no step goes further: its direction is rounded by A's
# symmetric part, and what is left the weights correct


@dataclass(frozen=True, eq=False)
class GaussianAverage:
    """Solved problems: `r` Gaussians, each over its own `m` draws in `d` dimensions.

    Args:
        loc: Means.
        scale_tril: Lower triangular scales.
        elbo: Over the fixed draws.
        decrement: What a further step promises, in nats.
        converged: Whether that is below the tolerance, or small where no step goes further.
        num_steps: Evaluations of each problem's draws.
        num_gradients: Evaluations of the log density with gradient, all draws counted.
        trace: The best ELBO of each problem by step.
    """

    loc: Float[Tensor, "r d"]
    scale_tril: Float[Tensor, "r d d"]
    elbo: Float[Tensor, " r"]
    decrement: Float[Tensor, " r"]
    converged: Bool[Tensor, " r"]
    num_steps: Int[Tensor, " r"]
    num_gradients: int
    trace: Float[Tensor, "t r"]


@dataclass(frozen=True, eq=False)
class _State:
    loc: Tensor
    scale: Tensor
    elbo: Tensor
    shift: Tensor  # Lᵀ E[g]
    curvature: Tensor  # A


def gaussian_average(
    value_and_grad: ValueAndGrad,
    loc: Float[Tensor, "r d"],
    scale_tril: Float[Tensor, "r d d"],
    eps: Float[Tensor, "r m d"],
    *,
    tolerance: float = 1e-3,
    max_steps: int = 60,
) -> GaussianAverage:
    """Maximise the ELBO over fixed draws for a batch of problems.

    Args:
        value_and_grad: Log density and gradient of rows.
        loc: Starting means.
        scale_tril: Starting scales.
        eps: Draws of each problem, in ± pairs whose second moment is the identity.
        tolerance: Decrement in nats at which to stop.
        max_steps: Evaluations of the draws.
    """
    at = _evaluated(value_and_grad, loc, scale_tril, eps)
    rate = torch.full_like(at.elbo, _FIRST_RATE)
    steps = torch.ones_like(rate, dtype=torch.long)
    trace = [at.elbo]
    for _ in range(max_steps - 1):
        active = (_decrement(at) > tolerance) & (rate >= _MIN_RATE)
        rows = active.nonzero()[:, 0]
        if not len(rows):
            break
        here = _rows(at, rows)
        there = _evaluated(value_and_grad, *_moved(here, rate[rows]), eps[rows])
        better = there.elbo >= here.elbo  # False for NaN
        at = _put(at, rows, _where(better, there, here))
        steps[rows] += 1
        rate[rows] = torch.where(better, (2 * rate[rows]).clamp(max=1.0), rate[rows] / 4)
        trace.append(at.elbo)
    decrement = _decrement(at)
    return GaussianAverage(
        at.loc,
        at.scale,
        at.elbo,
        decrement,
        at.elbo.isfinite() & (decrement <= max(tolerance, _NEAR)),
        steps,
        int(steps.sum()) * eps.shape[1],
        torch.stack(trace),
    )


def standard_log_prob(eps: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
    """Log density of a standard normal vector."""
    return -0.5 * (eps.square().sum(dim=-1) + eps.shape[-1] * math.log(2 * math.pi))


def log_det(scale_tril: Float[Tensor, "*n d d"]) -> Float[Tensor, "*n"]:
    """Log |L| of triangular matrices."""
    return scale_tril.diagonal(dim1=-2, dim2=-1).abs().log().sum(dim=-1)


def _evaluated(value_and_grad: ValueAndGrad, loc: Tensor, scale: Tensor, eps: Tensor) -> _State:
    log_p, g = value_and_grad(loc[:, None] + eps @ scale.mT)
    white = g @ scale  # (r, m, d)
    m, d = eps.shape[1:]
    entropy = log_det(scale) + 0.5 * d * (1 + math.log(2 * math.pi))
    elbo = log_p.mean(dim=1) + entropy
    bad = ~(elbo.isfinite() & white.isfinite().all(dim=(1, 2)))
    A = -symmetric(eps.mT @ white / m)
    return _State(loc, scale, torch.where(bad, -math.inf, elbo), white.mean(dim=1), A)


def _moved(at: _State, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Means and scales after one step at this rate."""
    a, Q = torch.linalg.eigh(at.curvature.nan_to_num(0.0))
    precision = (1 - rate[:, None] * (1 - a)).clamp(min=_SMALLEST)
    step = (Q.mT @ at.shift[..., None])[..., 0] / precision
    loc = at.loc + rate[:, None] * (at.scale @ Q @ step[..., None])[..., 0]
    root = at.scale @ (Q * precision.rsqrt()[:, None, :])
    # any square root serves: QR makes it triangular again
    R = torch.linalg.qr(root.mT).R
    return loc, (R * R.diagonal(dim1=-2, dim2=-1).sign()[..., None]).mT


def _decrement(at: _State) -> Tensor:
    d = at.curvature.shape[-1]
    eye = torch.eye(d, dtype=at.loc.dtype, device=at.loc.device)
    spread = (at.curvature - eye).square().sum(dim=(-1, -2))
    size = 0.5 * at.shift.square().sum(dim=-1) + 0.25 * spread
    return torch.where(at.elbo.isfinite(), size, -math.inf)  # nowhere to go from there


def _rows(at: _State, rows: Tensor) -> _State:
    return _State(*(t[rows] for t in vars(at).values()))


def _put(at: _State, rows: Tensor, new: _State) -> _State:
    pairs = zip(vars(at).values(), vars(new).values(), strict=True)
    return replace(
        at, **dict(zip(vars(at), (t.index_copy(0, rows, u) for t, u in pairs), strict=True))
    )


def _where(chosen: Tensor, a: _State, b: _State) -> _State:
    pairs = zip(vars(a).values(), vars(b).values(), strict=True)
    picked = (torch.where(chosen.view(-1, *[1] * (t.ndim - 1)), t, u) for t, u in pairs)
    return _State(*picked)
