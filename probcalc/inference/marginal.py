r"""The marginal likelihood of a model that was fitted: ∫ p(data | θ) p(θ) dθ.

With ẑ the mode of likelihood times prior on the unconstrained scale and LLᵀ its inverse curvature,

    ln ∫ e^{h(z)} dz = ln E_{u ~ N(0, s² I)} [exp(h(ẑ + L u)) |L| / N(u; 0, s² I)]

which is one at the centre of a smooth function of few variables: cubature, or scrambled points.
Tierney & Kadane (1986), with the integral in the place of Laplace's approximation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.func import vmap

from probcalc.inference.scope import model_scope
from probcalc.integration.log_expect import log_expect
from probcalc.linalg import cholesky_or_none, symmetric
from probcalc.optimization.minimize import minimize
from probcalc.optimization.newton import Newton
from probcalc.result import Estimate

if TYPE_CHECKING:
    from probcalc.inference.likelihood_fit import LikelihoodFit

_WIDER = 1.3  # s: tails of a posterior are no thinner than normal ones, as a rule


def log_marginal_likelihood(
    fit: LikelihoodFit, prior: dict[str, td.Distribution], **settings: Any
) -> Estimate:
    """Log of the integral over the parameters, under independent priors.

    Args:
        fit: Of one data set.
        prior: A proper distribution for every parameter, by name.
        **settings: Of `log_expect`: `rtol`, `method`, `max_evals`, `confidence`, `generator`.

    Raises:
        ValueError: If a parameter has no prior, there are several data sets, or likelihood times
            prior has no mode.
    """
    parameters, likelihood = fit.likelihood.parameters, fit.likelihood
    missing = sorted(set(parameters.layout.shapes) ^ set(prior))
    if missing:
        raise ValueError(f"`prior` must have one distribution for each parameter: see {missing}.")
    if len(fit.z) != 1:
        raise ValueError(f"one data set at a time, not {len(fit.z)}.")
    joint = _joint(likelihood, prior)
    start = fit.z[0].nan_to_num(0.0).clamp(-20.0, 20.0)
    with model_scope(torch.float64):
        top = minimize(lambda z: -joint(z), start, method=Newton())
        precision = -torch.func.hessian(joint)(top.x)
        factor = cholesky_or_none(symmetric(precision))
        if not top.ok or factor is None:
            raise ValueError(
                f"likelihood times prior has no mode to integrate around: {top.flags.words}."
            )
        tril = torch.linalg.inv(factor).mT
        base = td.Normal(torch.zeros_like(top.x), _WIDER)
        joints = vmap(joint)

        def log_ratio(u: Tensor) -> Tensor:
            flat = u.reshape(-1, u.shape[-1])
            h = joints(top.x + flat @ tril.mT) - base.log_prob(flat).sum(dim=-1)
            return h.reshape(u.shape[:-1])

        found = log_expect(log_ratio, td.Independent(base, 1), **settings)
        return found - factor.diagonal().log().sum()


def _joint(likelihood: Any, prior: dict[str, td.Distribution]) -> Any:
    data = torch.utils._pytree.tree_map(lambda t: t[0], likelihood.data)
    weights = likelihood.weights[0]

    def joint(z: Tensor) -> Tensor:
        values, log_det = likelihood.parameters.constrain_with_log_det(z)
        total = (weights * likelihood.rows(values, data)).sum() + log_det
        for name, dist in prior.items():
            total = total + dist.log_prob(values[name]).sum()
        return total

    return joint
