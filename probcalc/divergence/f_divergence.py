r"""Divergences that are integrals of a function of the ratio of two densities.

    ∫ (p + q) h(ln p/q)   =   E_p[h] + E_q[h]

with h bounded where the divergence is, so that no mass of either is lost in the other's tails,
and never negative, so that little cancels where the two are alike; or, where nothing bounds
them, by way of Rényi's, which are taken in logarithms. Csiszár (1967); Liese & Vajda
(2006), On divergences and informations in statistics and information theory, IEEE Trans. Inf.
Theory 52.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from probcalc.divergence.kl import kl
from probcalc.divergence.pair import pair
from probcalc.divergence.ratio import mean_of_both
from probcalc.divergence.renyi import alpha_divergence
from probcalc.result import Estimate


def jeffreys(p: Distribution, q: Distribution, **ask: Any) -> Estimate:
    """KL(p‖q) + KL(q‖p), with arguments and errors as of `kl`.

    >>> from torch.distributions import Normal
    >>> jeffreys(Normal(0.0, 1.0), Normal(2.0, 1.0)).value
    tensor(4.)
    """
    return kl(p, q, **ask) + kl(q, p, **ask)


def jensen_shannon(p: Distribution, q: Distribution, **ask: Any) -> Estimate:
    """½ KL(p‖m) + ½ KL(q‖m) with m = ½ (p + q): between 0 and ln 2, whatever the supports.

    Lin (1991), Divergence measures based on the Shannon entropy, IEEE Trans. Inf. Theory 37.
    Arguments and errors are as of `kl`.

    >>> from torch.distributions import Uniform
    >>> jensen_shannon(Uniform(0.0, 1.0), Uniform(2.0, 3.0)).value
    tensor(0.6931)
    """

    def h(v: Tensor) -> Tensor:
        """½ (ln 2 − entropy of the share that is p's)."""
        fall = -v.abs()
        t = torch.expm1(fall)
        return (0.5 * (-torch.log1p(0.5 * t) + fall * (1 + t) / (2 + t))).clamp(min=0.0)

    return mean_of_both(pair(p, q, name="the Jensen–Shannon divergence"), h, ask)


def total_variation(p: Distribution, q: Distribution, **ask: Any) -> Estimate:
    """½ ∫ |p − q|: the largest difference of the two probabilities of one event.

    Arguments and errors are as of `kl`. On the line the integral is cut where p = q.

    >>> from torch.distributions import Normal
    >>> total_variation(Normal(0.0, 1.0), Normal(2.0, 1.0)).value
    tensor(0.6827)
    """
    h = lambda v: 0.5 * torch.tanh(0.5 * v).abs()  # noqa: E731
    return mean_of_both(pair(p, q, name="the total variation"), h, ask, cut=True)


def hellinger(p: Distribution, q: Distribution, **ask: Any) -> Estimate:
    """Squared Hellinger distance ½ ∫ (√p − √q)², between 0 and 1.

    Arguments and errors are as of `kl`.

    >>> from torch.distributions import Normal
    >>> hellinger(Normal(0.0, 1.0), Normal(2.0, 1.0)).value
    tensor(0.3935)
    """

    def h(v: Tensor) -> Tensor:
        """½ (1 − e^−|v|/2)² / (1 + e^−|v|)."""
        fall = -v.abs()
        return 0.5 * torch.expm1(0.5 * fall).square() / (1 + fall.exp())

    return mean_of_both(pair(p, q, name="the Hellinger distance"), h, ask)


def chi_squared(p: Distribution, q: Distribution, **ask: Any) -> Estimate:
    """Pearson's ∫ (p − q)²/q, the variance of p/q under q; Neyman's has the arguments swapped.

    Arguments and errors are as of `kl`. Infinite where q has no mass though p has some.

    >>> from torch.distributions import Normal
    >>> chi_squared(Normal(1.0, 1.0), Normal(0.0, 1.0)).value
    tensor(1.7183)
    """
    found = alpha_divergence(p, q, 2.0, **ask)
    return replace(found, value=2 * found.value, error=2 * found.error)
