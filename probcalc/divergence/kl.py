r"""KL divergences of any pair, and how each is known.

    KL(p‖q) = E_p[ln p(X) − ln q(X)]

What is asked first costs least: whether the supports, or the tails, prove it infinite; whether
there is a formula; whether it is a sum of smaller ones. What is left is an expectation, summed or
integrated where that can be done and drawn where not.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import Distribution

from probcalc.distributions.families import is_point_mass
from probcalc.distributions.log_density import log_density
from probcalc.distributions.quantile import quantile
from probcalc.distributions.rebuild import in_double, taken_apart
from probcalc.distributions.support import support_of
from probcalc.divergence import finite, line, vectors
from probcalc.divergence.cross import cross_terms
from probcalc.divergence.formula import Formula
from probcalc.divergence.pair import Pair, pair
from probcalc.divergence.tails import proved_infinite
from probcalc.integration.choose import ExpectationMethod
from probcalc.integration.expect import expect
from probcalc.result import Estimate

FORMULAS: dict[tuple[type, type], Formula] = {
    **line.FORMULAS,
    **finite.FORMULAS,
    **vectors.FORMULAS,
}
_ROUNDING = 64 * torch.finfo(torch.float64).eps
_UNCOVERED = "q has no mass where p has some"
_HEAVY = "q falls off too fast for the tails of p"
_LEVELS = (1e-9, 1e-3, 0.3)


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
    posed = pair(p, q)
    found = _found(posed, ask)
    return found if found.value.dtype == posed.dtype else _in(found, posed.dtype)


def _found(posed: Pair, ask: dict[str, Any]) -> Estimate:
    """In float64."""
    if ask["method"] is None:
        for known in (_by_formula, partial(_by_parts, ask=ask)):
            found = known(posed)
            if found is not None:
                return found
    infinite, reason = _infinite(posed)
    if infinite is None or not bool(infinite.any()):
        return _finite(posed, ask)
    if bool(infinite.all()):
        value = torch.full(posed.batch, math.inf, dtype=torch.float64, device=infinite.device)
        return Estimate.exact(value, method="proof", diagnostics={"reason": reason})
    return _joined(infinite, _finite(posed.chosen(~infinite), ask), reason)


def _finite(posed: Pair, ask: dict[str, Any]) -> Estimate:
    """Of pairs that are not known to be infinite."""
    if ask["method"] is None:
        terms = cross_terms(posed.p, posed.q)
        if terms is not None:
            terms = [t.expand(posed.batch) for t in terms]
            value, size = sum(terms), sum(t.detach().abs() for t in terms)
            return _exact(value.clamp(min=0.0), _ROUNDING * size, posed)
    return _expected(posed, ask)


def _by_formula(posed: Pair) -> Estimate | None:
    p, q = posed.p, posed.q
    for pair_of in ((a, b) for a in type(p).__mro__ for b in type(q).__mro__):
        formula = FORMULAS.get(pair_of)
        if formula is not None:
            if not formula.applies(p, q):
                return None
            value = formula.kl(p, q)
            size = value.detach()
            return _exact(value, size.sqrt().add_(size).mul_(_ROUNDING), posed)
    return None


def _exact(value: Tensor, error: Tensor, posed: Pair) -> Estimate:
    """In closed form; infinite where q has no mass, or no tail, for p."""
    del posed
    where = value.detach()
    error = torch.where(where.isfinite(), error, 0.0)
    return Estimate(value, error, method="closed form")


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


def _infinite(posed: Pair) -> tuple[Tensor | None, str]:
    """Where the divergence is proved to be infinite, and why."""
    uncovered = posed.uncovered()
    heavy = proved_infinite(posed.p, posed.q)
    if heavy is None or uncovered is None:
        return uncovered if heavy is None else heavy, _UNCOVERED if heavy is None else _HEAVY
    reason = _UNCOVERED if bool(uncovered.any()) else _HEAVY
    return uncovered | heavy, reason


def _joined(infinite: Tensor, rest: Estimate, reason: str) -> Estimate:
    """Elements that are infinite, and the others."""

    def placed(t: Tensor, other: float) -> Tensor:
        full = torch.full(infinite.shape, other, dtype=t.dtype, device=t.device)
        return full.masked_scatter(~infinite, t)

    one = torch.ones_like(rest.error)
    return replace(
        rest,
        value=placed(rest.value, math.inf),
        error=placed(rest.error, 0.0),
        std_error=None if rest.std_error is None else placed(rest.std_error, 0.0),
        status=placed(rest.status * one.long(), 0),
        num_evals=placed(rest.num_evals * one.long(), 0),
        diagnostics={**rest.diagnostics, "infinite": reason},
    )


def _expected(posed: Pair, ask: dict[str, Any]) -> Estimate:
    """The expectation of ln p − ln q."""
    p, q = in_double(posed.p), in_double(posed.q)
    try:
        tensors, build_p = taken_apart(p)
        others, build_q = taken_apart(q)
        fn = partial(_built_ratio, build_p, build_q, len(tensors))
        args = (*tensors, *others) if posed.batch else ()
        fn = fn if posed.batch else lambda x: _log_ratio(p, q, x)
    except NotImplementedError:
        fn, args = partial(_log_ratio, p, q), ()
    found = expect(fn, p, args=args, breaks=_breaks(p, q), **ask)
    value, bar = found.value, found.error
    touched = value.clamp(min=0.0)  # it is never negative, whatever noise says
    bar = torch.where(value.detach() < 0, bar + value.detach(), bar).clamp(min=0.0)
    return replace(found, value=touched, error=torch.where(found.error.isinf(), math.inf, bar))


def _built_ratio(build_p: Any, build_q: Any, first: int, x: Tensor, *tensors: Tensor) -> Tensor:
    return _log_ratio(build_p(tensors[:first]), build_q(tensors[first:]), x)


def _log_ratio(p: Distribution, q: Distribution, x: Tensor) -> Tensor:
    log_p, log_q = log_density(p, x), log_density(q, x)
    alive = log_p > -math.inf
    return torch.where(alive, log_p, 0.0) - torch.where(alive, log_q, 0.0)


def _breaks(p: Distribution, q: Distribution) -> Tensor | None:
    """Where q changes, of distributions on the line with densities."""
    if p.event_shape or support_of(p).discrete:
        return None
    part = q.component_distribution if isinstance(q, td.MixtureSameFamily) else q
    levels = torch.tensor(_LEVELS, dtype=torch.float64, device=support_of(p).lower.device)
    levels = levels.reshape([-1, *[1] * len(part.batch_shape)])
    try:
        with torch.no_grad():
            x = torch.cat(
                [
                    quantile(part, levels),
                    quantile(part, torch.full_like(levels[:1], 0.5)),
                    quantile(part, levels, upper=True),
                ]
            )
    except NotImplementedError:
        return None
    x = x.movedim(0, -1)
    return x.flatten(-2) if part is not q else x


def _in(found: Estimate, dtype: torch.dtype) -> Estimate:
    """In the parameters' precision, whose rounding the bar takes in."""
    rounding = torch.finfo(dtype).eps * found.value.detach().abs()
    rounding = torch.where(rounding.isfinite(), rounding, 0.0)
    std_error = found.std_error
    return replace(
        found,
        value=found.value.to(dtype),
        error=(found.error + rounding).to(dtype),
        std_error=None if std_error is None else std_error.to(dtype),
    )
