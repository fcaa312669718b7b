r"""KL divergences of any pair, and how each is known.

    KL(p‖q) = E_p[ln p(X) − ln q(X)]

What is asked first costs least: whether the supports, or the tails, prove it infinite; whether
there is a formula; whether it is a sum of smaller ones. What is left is an expectation, summed or
integrated where that can be done and drawn where not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import Distribution

from probcalc.distributions.families import is_point_mass
from probcalc.distributions.log_density import log_density
from probcalc.distributions.special import asked
from probcalc.divergence import crossed, finite, intervals, line, vectors
from probcalc.divergence.cross import cross_terms
from probcalc.divergence.formula import Formula
from probcalc.divergence.pair import Pair, pair
from probcalc.divergence.ratio import UNCOVERED, log_ratio_mean, with_known
from probcalc.divergence.tails import proved_infinite
from probcalc.divergence.trapezoid import Settled, by_trapezoids
from probcalc.integration.choose import ExpectationMethod
from probcalc.result import Estimate

Choice = Callable[[Any, Any], Formula]  # of two distributions, by how they are given

FORMULAS: dict[tuple[type, type], Formula | Choice] = {
    **crossed.FORMULAS,
    **line.FORMULAS,
    **finite.FORMULAS,
    **intervals.FORMULAS,
    **vectors.FORMULAS,
}
_RTOL = 1e-8  # where none is asked for
_ROUNDING = 64 * torch.finfo(torch.float64).eps
_FEW = 2**10  # elements of a batch that are looked at for what is infinite
_HEAVY = "q falls off too fast for the tails of p"


def kl(
    p: Distribution,
    q: Distribution,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    method: ExpectationMethod | None = None,
    max_evals: int | None = None,
    confidence: float = 0.99,
    generator: torch.Generator | None = None,
) -> Estimate:
    """KL(p‖q), for any two distributions with draws of one shape.

    Args:
        p: From which X is; batches broadcast.
        q: With which it is compared.
        rtol: Relative tolerance, where neither a formula nor a proof is at hand.
        atol: Absolute tolerance; of the two the looser holds.
        method: How to take the expectation of ln p − ln q, as in `expect`; None: formulas first.
        max_evals: Points that each element may spend.
        confidence: Level of a random method's bar.
        generator: For random methods.

    Returns:
        Estimate of the batch's shape, differentiable in the parameters of both. Proved to be
        infinite it is ∞, with the reason in the diagnostics; where it only looks so, flagged.

    Raises:
        TypeError: If one is no distribution.
        ValueError: If shapes or devices do not fit, or a parameter is outside its constraint.
        NotImplementedError: If a density is not known.

    >>> kl(td.Normal(0.0, 1.0), td.Laplace(0.0, 1.0)).value
    tensor(0.0721)
    """
    ask = {
        "rtol": rtol,
        "atol": atol,
        "method": method,
        "max_evals": max_evals,
        "confidence": confidence,
        "generator": generator,
    }
    posed = pair(p, q, name="the KL divergence")
    known = _by_formula(posed, posed.dtype) if method is None else None
    if known is not None:
        return _with_reason(known, posed)
    return posed.in_its_precision(_found(posed, ask))


def _found(posed: Pair, ask: dict[str, Any]) -> Estimate:
    """In float64."""
    if ask["method"] is None:
        for known in (_by_formula, partial(_by_parts, ask=ask)):
            found = known(posed)
            if found is not None:
                return found
    different = partial(_different, ask=ask)
    return with_known(posed, posed.alike(), 0.0, "p and q are one distribution", different)


def _different(posed: Pair, ask: dict[str, Any]) -> Estimate:
    infinite, reason = _infinite(posed)
    return with_known(posed, infinite, math.inf, reason, partial(_finite, ask=ask))


def _finite(posed: Pair, ask: dict[str, Any]) -> Estimate:
    """Of pairs that are not known to be infinite."""
    if ask["method"] is None:
        terms = cross_terms(posed.p, posed.q)
        if terms is not None:
            terms = [t.expand(posed.batch) for t in terms]
            value, size = sum(terms), sum(t.detach().abs() for t in terms)
            error = (_ROUNDING * size).masked_fill(size.isinf(), 0.0)
            return Estimate(value.clamp(min=0.0), error, method="closed form")
        settled = by_trapezoids(posed, ask["rtol"] or _RTOL, ask["atol"] or 0.0)
        if settled is not None:
            return _with_the_rest(posed, settled, ask)
    return _taken(posed, ask)


def _with_the_rest(posed: Pair, settled: Settled, ask: dict[str, Any]) -> Estimate:
    """What trapezoids settle, and quadrature of the rest."""
    rule = Estimate(
        settled.value.clamp(min=0.0),
        settled.error,
        num_evals=settled.num_evals.long(),
        method="trapezoidal rule",
    )
    if bool(settled.done.all()):
        return rule
    rest = _taken(posed.chosen(~settled.done), ask)
    return _filled(rule, ~settled.done, rest)


def _taken(posed: Pair, ask: dict[str, Any]) -> Estimate:
    """As an expectation."""
    found = log_ratio_mean(posed, lambda v: v, ask)
    # never negative, whatever noise says: what is cut off the value goes off its bar
    value, cut = found.value.clamp(min=0.0), (-found.value.detach()).clamp(min=0.0)
    return replace(found, value=value, error=(found.error - cut).clamp(min=0.0))


def _by_formula(posed: Pair, dtype: torch.dtype = torch.float64) -> Estimate | None:
    p, q = posed.p, posed.q
    for pair_of in ((a, b) for a in type(p).__mro__ for b in type(q).__mro__):
        found = FORMULAS.get(pair_of)
        if found is not None:
            formula = found if isinstance(found, Formula) else found(p, q)
            return formula.kl(p, q, dtype) if formula.applies(p, q) else None
    return None


def _with_reason(known: Estimate, posed: Pair) -> Estimate:
    """Why a formula gives infinity, of batches so small that looking for it costs nothing."""
    few = known.value.numel() <= _FEW and known.value.device.type == "cpu"
    if not few or not asked(torch.any, known.value.detach().isinf()):
        return known
    proved, reason = _infinite(posed)
    if proved is None or not bool(proved.any()):
        reason = "ln q has no finite mean under p"
    return replace(known, diagnostics={**known.diagnostics, "reason": reason})


def _by_parts(posed: Pair, ask: dict[str, Any]) -> Estimate | None:
    """From the divergences of what the distributions are made of."""
    p, q = posed.p, posed.q
    if isinstance(p, td.Independent) and isinstance(q, td.Independent):
        ndims = p.reinterpreted_batch_ndims
        if ndims != q.reinterpreted_batch_ndims:
            return None
        each = _found(pair(p.base_dist, q.base_dist), ask)
        return _summed(each, ndims) if ndims else each
    kinds = (td.TransformedDistribution,) * 2
    if (type(p), type(q)) == kinds and p.transforms == q.transforms:
        if all(t.bijective for t in p.transforms) and p.base_dist.batch_shape == p.batch_shape:
            return _found(pair(p.base_dist, q.base_dist), ask)
    if is_point_mass(p) and not is_point_mass(q):
        value = -log_density(q, p.v).double()
        discrete = q.support.is_discrete
        value = value if discrete else torch.full_like(value, math.inf)
        reason = {} if discrete else {"reason": "p is a point, and q has no mass at points"}
        return Estimate.exact(value, method="closed form", diagnostics=reason)
    return None


def _summed(each: Estimate, ndims: int) -> Estimate:
    """Independent divergences add up, and so do their bars."""
    axes = tuple(range(-ndims, 0))
    flat = each.status if torch.is_tensor(each.status) else torch.zeros_like(each.error).long()
    flat = flat.expand(each.value.shape).flatten(-ndims)
    status = flat[..., 0]
    for i in range(1, flat.shape[-1]):
        status = status | flat[..., i]
    count = each.num_evals
    if torch.is_tensor(count):
        count = count.expand(each.value.shape).sum(dim=axes)
    return replace(
        each,
        value=each.value.sum(dim=axes),
        error=each.error.sum(dim=axes),
        std_error=None if each.std_error is None else each.std_error.sum(dim=axes),
        status=status,
        num_evals=count,
    )


def _filled(known: Estimate, where: Tensor, rest: Estimate) -> Estimate:
    """The elements of `rest`, put where the mask is true."""

    def placed(mine: Tensor | int, other: Tensor | int) -> Tensor:
        other = torch.as_tensor(other, device=where.device).expand(rest.value.shape)
        mine = torch.as_tensor(mine, device=where.device).to(other.dtype).expand(where.shape)
        return mine.masked_scatter(where, other)

    names = ("value", "error", "status", "num_evals")
    fields = {name: placed(getattr(known, name), getattr(rest, name)) for name in names}
    method = f"{known.method} and {rest.method}"
    return replace(rest, **fields, std_error=None, method=method)


def _infinite(posed: Pair) -> tuple[Tensor | None, str]:
    """Where the divergence is proved to be infinite, and why."""
    uncovered = posed.uncovered()
    heavy = proved_infinite(posed.p, posed.q)
    if heavy is None or uncovered is None:
        return (uncovered, UNCOVERED) if heavy is None else (heavy, _HEAVY)
    reason = UNCOVERED if bool(uncovered.any()) else _HEAVY
    return uncovered | heavy, reason
