r"""Wasserstein distances: what it costs to move one distribution onto another.

    W_k(p, q)^k = ∫_0^1 |F_p⁻¹(u) − F_q⁻¹(u)|^k du

on the line, by quantiles from either end; Gelbrich's formula for normal vectors. Villani (2009),
Optimal transport, chapter 6; Gelbrich (1990), Math. Nachr. 147.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import Distribution

from probcalc.distributions.quantile import quantile
from probcalc.distributions.rebuild import in_double, taken_apart
from probcalc.divergence.pair import Pair, pair
from probcalc.divergence.vectors import as_normal
from probcalc.integration.integrate import integrate
from probcalc.result import Estimate

_ROUNDING = 64 * torch.finfo(torch.float64).eps
_NORMALS = (td.MultivariateNormal, td.LowRankMultivariateNormal)


def wasserstein(p: Distribution, q: Distribution, order: int = 1, **ask: Any) -> Estimate:
    """Wasserstein distance of two distributions on the line, or of normal vectors.

    Args:
        p: The first; batches broadcast.
        q: The second.
        order: 1 or 2; of normal vectors 2.
        ask: As of `integrate`: tolerances and budget.

    Raises:
        NotImplementedError: For other vectors, or a family without quantiles.
        ValueError: If the order is neither; as of `kl`.

    >>> wasserstein(td.Normal(0.0, 1.0), td.Normal(3.0, 5.0), 2).value
    tensor(5.)
    """
    if order not in (1, 2):
        raise ValueError(f"`order` must be 1 or 2, got {order!r}.")
    posed = pair(p, q, name="the Wasserstein distance")
    return posed.in_its_precision(_distance(posed, order, ask))


def _distance(posed: Pair, order: int, ask: dict[str, Any]) -> Estimate:
    p, q = posed.p, posed.q
    if order == 2 and isinstance(p, td.Normal) and isinstance(q, td.Normal):
        apart = [a.double() - b.double() for a, b in ((p.loc, q.loc), (p.scale, q.scale))]
        return _exact(torch.linalg.vector_norm(torch.stack(apart), dim=0))
    if order == 2 and isinstance(p, _NORMALS) and isinstance(q, _NORMALS):
        return _exact(_of_normals(p, q))
    if p.event_shape:
        raise NotImplementedError(
            f"the Wasserstein distance of order {order} is known on the line, and of order 2 for "
            f"normal vectors; not for {type(p).__name__} and {type(q).__name__}."
        )
    moved = _moved(posed, order, ask)
    return moved if order == 1 else _root(moved)


def _of_normals(p: Distribution, q: Distribution) -> Tensor:
    """The nuclear norm of L_pᵀ L_q is the trace of (Σ_q^½ Σ_p Σ_q^½)^½."""
    (m1, l1), (m2, l2) = ([t.double() for t in as_normal(d)] for d in (p, q))
    shared = torch.linalg.svdvals(l1.mT @ l2).sum(dim=-1)
    spread = l1.square().sum(dim=(-2, -1)) + l2.square().sum(dim=(-2, -1)) - 2 * shared
    return ((m1 - m2).square().sum(dim=-1) + spread.clamp(min=0.0)).sqrt()


def _moved(posed: Pair, order: int, ask: dict[str, Any]) -> Estimate:
    """∫ |F_p⁻¹ − F_q⁻¹|^k, half of it from either end."""
    p, q = in_double(posed.p), in_double(posed.q)
    tensors, build_p = taken_apart(p)
    others, build_q = taken_apart(q)
    args = (*tensors, *others) if posed.batch else ()
    zero = torch.zeros(posed.batch, dtype=torch.float64, device=(tensors or others)[0].device)

    def cost(upper: bool) -> Estimate:
        def fn(u: Tensor, *given: Tensor) -> Tensor:
            first, second = given[: len(tensors)], given[len(tensors) :]
            pair_of = (build_p(first), build_q(second)) if given else (p, q)
            a, b = (quantile(d, u, upper=upper) for d in pair_of)
            return (a - b).abs() ** order

        return integrate(fn, zero, zero + 0.5, args=args, **ask)

    return cost(False) + cost(True)


def _root(found: Estimate) -> Estimate:
    value = found.value.clamp(min=0.0).sqrt()
    low = (found.value.detach() - found.error).clamp(min=0.0).sqrt()
    error = torch.where(found.error.isinf(), math.inf, value.detach() - low)
    return replace(found, value=value, error=error, std_error=None)


def _exact(value: Tensor) -> Estimate:
    return Estimate(value, _ROUNDING * value.detach().abs(), method="closed form")
