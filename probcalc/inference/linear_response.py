r"""Linear response: the covariance that a mean-field fit implies but does not contain.

Tilt the log density by t·z and watch the optimum m(t) move: Cov(z) ≈ dm/dt = [H⁻¹]_mm, with H
the Hessian of the negative ELBO in all variational parameters. Exact for a Gaussian density.

Giordano, Broderick & Jordan (2018), Covariances, robustness, and variational Bayes, section 3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.differentiation.curvature import central_hessian
from probcalc.linalg import cholesky_or_none, symmetric


def elbo_hessian(
    value_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]],
    loc: Float[Tensor, " d"],
    log_scale: Float[Tensor, " d"],
    eps: Float[Tensor, "m d"],
) -> Float[Tensor, "d2 d2"]:
    """Hessian of J(m, ℓ) (see `saa`) from the density's own Hessians at the draws.

    Args:
        value_and_grad: Of the log density.
        loc: m.
        log_scale: ℓ.
        eps: Fixed draws.
    """
    s = log_scale.exp()
    e = s * eps  # dz/dℓ
    z = loc + e
    H = central_hessian(lambda x: value_and_grad(x)[1], z, s)  # (m, d, d)
    g = value_and_grad(z)[1]
    mm = -H.mean(dim=0)
    ml = -(H * e[:, None, :]).mean(dim=0)
    ll = -(e[:, :, None] * H * e[:, None, :]).mean(dim=0) - torch.diag((g * e).mean(dim=0))
    return symmetric(torch.cat([torch.cat([mm, ml], dim=1), torch.cat([ml.mT, ll], dim=1)], dim=0))


def elbo_gradient(
    value_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]],
    loc: Float[Tensor, " d"],
    log_scale: Float[Tensor, " d"],
    eps: Float[Tensor, "m d"],
) -> Float[Tensor, " d2"]:
    """Gradient of J(m, ℓ) (see `saa`)."""
    e = log_scale.exp() * eps
    g = value_and_grad(loc + e)[1]
    return torch.cat([-g.mean(dim=0), -(g * e).mean(dim=0) - 1])


def response_covariance(
    hessian: Float[Tensor, "d2 d2"],
) -> Float[Tensor, "d d"] | None:
    """Upper left block of H⁻¹, or None where H is not positive definite."""
    factor = cholesky_or_none(hessian)
    if factor is None:
        return None
    d = hessian.shape[0] // 2
    return symmetric(torch.cholesky_inverse(factor)[:d, :d])
