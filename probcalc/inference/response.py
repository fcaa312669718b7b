r"""Linear response for any guide and any function of the parameters.

Tilt the log density by t·h(θ) and watch the variational optimum λ(t) move:

    Cov(h) ≈ d E_q[h] / dt = ∇Gᵀ H⁻¹ ∇G,   G(λ) = E_{q_λ}[h],   H = ∇² of the negative ELBO

over fixed draws. It gives the covariance that a guide implies but may not contain (of a
mean-field Gaussian above all), and is exact where the density is Gaussian and the guide can
follow its mean. It says nothing about mass that the guide has missed.

Giordano, Broderick & Jordan (2018), Covariances, robustness, and variational Bayes, section 3;
Giordano, Ingram & Broderick (2024), section 4 (conjugate gradients for derived quantities).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jacrev, jvp, vmap

from probcalc._random import child, draw_seed
from probcalc._tree import Layout
from probcalc.inference.parameters import Values
from probcalc.inference.posterior import Posterior
from probcalc.inference.target import Target
from probcalc.integration.normal_draws import matched_normal_draws
from probcalc.linalg import symmetric
from probcalc.result import Estimate
from probcalc.status import Status

_NUM_SETS = 4  # of fixed draws, whose spread is the error bar
_MAX_DRAWS = 256
_MAX_DENSE = 1_000  # variational parameters up to which H is formed and factorised
_CG_TOLERANCE, _CG_STEPS = 1e-8, 500  # relative residual; more steps than that mean no optimum


def linear_response(
    posterior: Posterior,
    fn: Callable[[Values], Tensor] | None = None,
    *,
    target: Target | None = None,
    num_draws: int | None = None,
    confidence: float = 0.99,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Covariance of a function of the parameters, by the response of the guide's optimum.

    Args:
        posterior: Its guide and parameters are those of an ELBO's optimum.
        fn: Takes a dict of constrained values of one draw and returns one value or a vector;
            None: all constrained entries, in the order of `posterior.names`.
        target: Default: the posterior's own.
        num_draws: Fixed draws of a set, even; default as many as give exact second moments, at
            most 256.
        confidence: Of the bar, which is of the fixed draws alone.
        generator: Source of randomness.

    Returns:
        Estimate of shape ``(p, p)``, or a scalar variance for a scalar function. Flagged
        `INDEFINITE` where the ELBO has no minimum at the guide's parameters, and with those flags
        of the posterior that no response repairs (an improper density, a fit that has not
        converged); uneven weights are what it is for.

    Raises:
        ValueError: If there is no target, or the guide has no reparametrised draws.
    """
    target = target or posterior.target
    if target is None:
        raise ValueError("linear response needs the target; give `target=...`.")
    seed = draw_seed(generator)
    guide, b = posterior.guide, posterior.guide.base_dim(target.dim)
    m = num_draws or min(_MAX_DRAWS, max(32, 2 * b))
    layout = Layout({name: tuple(t.shape) for name, t in posterior.params.items()})
    flat = layout.flatten({k: v.detach() for k, v in posterior.params.items()})
    eps = matched_normal_draws(_NUM_SETS, m, b, generator=child(seed, 0, target.device))
    read = fn or (lambda values: torch.cat([v.reshape(-1) for v in values.values()]))

    def loss(x: Tensor, draws: Tensor) -> Tensor:
        params = layout.unflatten(x)
        z, log_q = guide.transform(params, draws)
        spread = guide.entropy(params) if hasattr(guide, "entropy") else -log_q.mean()
        return -target.log_density(z).mean() - spread

    def mean(x: Tensor, draws: Tensor) -> Tensor:
        z = guide.transform(layout.unflatten(x), draws)[0]
        return vmap(read)(target.constrain(z)).mean(dim=0)

    found = [_response(loss, mean, flat, draws) for draws in eps]
    out = found[0][0]
    values = torch.stack([value for value, _ in found])
    bar = Estimate.from_replicates(
        values, confidence=confidence, num_evals=0, method="linear response"
    )
    has_minimum = all(good for _, good in found)
    error = bar.error if has_minimum else torch.full_like(out, math.inf)
    inherited = posterior.status & ~(Status.UNRELIABLE_WEIGHTS | Status.INFINITE_VARIANCE)
    flags = inherited | (Status.OK if has_minimum else Status.INDEFINITE)
    return Estimate(
        bar.value,
        error,
        bar.std_error,
        bar.dof,
        confidence,
        status=int(flags),
        num_evals=_NUM_SETS * m,
        method="linear response",
    )


def _response(
    loss: Callable[[Tensor, Tensor], Tensor],
    mean: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, " k"],
    draws: Float[Tensor, "m b"],
) -> tuple[Tensor, bool]:
    """∇Gᵀ H⁻¹ ∇G over one set of draws, and whether H is positive definite as far as seen."""
    jacobian = jacrev(lambda u: mean(u, draws))(x)
    rows = jacobian.reshape(-1, len(x))
    slope = grad(lambda u: loss(u, draws))
    product = lambda v: jvp(slope, (x,), (v,))[1]  # noqa: E731
    if len(x) <= _MAX_DENSE:
        H = symmetric(vmap(product)(torch.eye(len(x), dtype=x.dtype, device=x.device)))
        unused = (H == 0).all(dim=1)  # such as what stands above a triangle's diagonal
        L, info = torch.linalg.cholesky_ex(H + torch.diag(unused.to(H.dtype)))
        good = bool(info == 0)
        solved = torch.cholesky_solve(rows.mT, L) if good else torch.full_like(rows.mT, math.nan)
    else:
        pairs = [_conjugate_gradients(product, row) for row in rows]
        solved = torch.stack([s for s, _ in pairs], dim=1)
        good = all(g for _, g in pairs)
    covariance = symmetric(rows @ solved)
    return (covariance if jacobian.ndim == 2 else covariance[0, 0]), good


def _conjugate_gradients(
    product: Callable[[Tensor], Tensor], right: Float[Tensor, " k"]
) -> tuple[Float[Tensor, " k"], bool]:
    """H⁻¹ right by products alone; False where curvature is negative or it does not end."""
    x = torch.zeros_like(right)
    r, p = right, right
    size = start = float(r @ r)
    for _ in range(_CG_STEPS):
        if size <= _CG_TOLERANCE**2 * start:
            return x, True
        Hp = product(p)
        curvature = float(p @ Hp)
        if not curvature > 0:
            return x, False
        step = size / curvature
        x, r = x + step * p, r - step * Hp
        new = float(r @ r)
        p, size = r + new / size * p, new
    return x, False
