r"""Rényi's divergences.

    D_α(p‖q) = ln E_p[(p/q)^(α − 1)] / (α − 1)

van Erven & Harremoës (2014), Rényi divergence and Kullback–Leibler divergence, IEEE Trans. Inf.
Theory 60.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from probcalc.distributions.rebuild import in_double, taken_apart
from probcalc.divergence.kl import kl
from probcalc.divergence.pair import Pair, pair
from probcalc.divergence.ratio import UNCOVERED, log_ratio, with_known
from probcalc.integration.log_expect import log_expect
from probcalc.result import Estimate


def renyi(p: Distribution, q: Distribution, alpha: float, **ask: Any) -> Estimate:
    """Rényi divergence of order α, the KL divergence for α = 1.

    Args:
        p: From which X is; batches broadcast.
        q: With which it is compared.
        alpha: Order, positive.
        ask: As of `kl`.

    Raises:
        ValueError: If the order is not a positive number; as of `kl`.

    >>> from torch.distributions import Normal
    >>> renyi(Normal(1.0, 1.0), Normal(0.0, 1.0), 2.0).value
    tensor(1.)
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"`alpha` must be a positive number, got {alpha}.")
    if alpha == 1:
        return kl(p, q, **ask)
    posed = pair(p, q, name="Rényi's divergence")
    infinite = posed.uncovered() if alpha > 1 else None
    solve = lambda some: _renyi(some, alpha, ask)  # noqa: E731
    return posed.in_its_precision(with_known(posed, infinite, math.inf, UNCOVERED, solve))


def _renyi(posed: Pair, alpha: float, ask: dict[str, Any]) -> Estimate:
    p, q = in_double(posed.p), in_double(posed.q)
    tensors, build_p = taken_apart(p)
    others, build_q = taken_apart(q)

    def power(x: Tensor, *given: Tensor) -> Tensor:
        first, second = given[: len(tensors)], given[len(tensors) :]
        pair_of = (build_p(first), build_q(second)) if given else (p, q)
        v = log_ratio(*pair_of, x)
        return (alpha - 1) * torch.where(v == math.inf, math.inf if alpha > 1 else _NEVER, v)

    args = (*tensors, *others) if posed.batch else ()
    found = log_expect(power, p, args=args, **ask)
    scale = 1 / (alpha - 1)
    value = (scale * found.value).clamp(min=0.0)
    std_error = None if found.std_error is None else abs(scale) * found.std_error
    return replace(found, value=value, error=abs(scale) * found.error, std_error=std_error)


_NEVER = 1e300  # a ratio that to a negative power is nothing


def alpha_divergence(p: Distribution, q: Distribution, alpha: float, **ask: Any) -> Estimate:
    """Amari's (∫ p^α q^(1−α) − 1) / (α (α − 1)), from Rényi's; KL(p‖q) at α = 1.

    Amari (2009), α-divergence is unique, IEEE Trans. Inf. Theory 55. Arguments and errors are as
    of `renyi`.
    """
    if alpha == 1:
        return kl(p, q, **ask)
    found = renyi(p, q, alpha, **ask)
    rate = alpha - 1
    low, high = (
        torch.expm1(rate * (found.value.detach() + side * found.error)) / (alpha * rate)
        for side in (-1, 1)
    )
    value = torch.expm1(rate * found.value) / (alpha * rate)
    error = torch.maximum((high - value.detach()).abs(), (value.detach() - low).abs())
    error = torch.where(value.detach().isinf(), 0.0, error)
    return replace(found, value=value, error=error, std_error=None, dof=None)
