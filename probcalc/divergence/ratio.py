r"""Expectations of functions of ln p/q, and what is known before any is taken."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Distribution, MixtureSameFamily

from probcalc.distributions.log_density import log_density_anywhere
from probcalc.distributions.quantile import quantile
from probcalc.distributions.rebuild import in_double, taken_apart
from probcalc.distributions.support import device_of, support_of
from probcalc.divergence.pair import Pair
from probcalc.integration.expect import expect
from probcalc.result import Estimate

UNCOVERED = "q has no mass where p has some"
_LEVELS = (1e-9, 1e-3, 0.3)
_MOST = 700.0  # logarithm of about the largest number
_LOOKS = 2**8  # quantiles of each between which the densities may cross
_CROSSINGS, _HALVINGS = 8, 60


def log_ratio_mean(
    posed: Pair,
    h: Callable[[Tensor], Tensor],
    ask: dict[str, Any],
    *,
    swapped: bool = False,
    breaks: Tensor | None = None,
) -> Estimate:
    """E_p[h(ln p/q)], or E_q of the same."""
    p, q = in_double(posed.p), in_double(posed.q)
    under = q if swapped else p
    found = _breaks(under, p if swapped else q)
    breaks = found if breaks is None else breaks if found is None else _together(breaks, found)
    try:
        tensors, build_p = taken_apart(p)
        others, build_q = taken_apart(q)
    except NotImplementedError:
        return expect(lambda x: h(log_ratio(p, q, x)), under, breaks=breaks, **ask)
    if not posed.batch:
        return expect(lambda x: h(log_ratio(p, q, x)), under, breaks=breaks, **ask)

    def fn(x: Tensor, *given: Tensor) -> Tensor:
        first, second = given[: len(tensors)], given[len(tensors) :]
        return h(log_ratio(build_p(first), build_q(second), x))

    return expect(fn, under, args=(*tensors, *others), breaks=breaks, **ask)


def log_ratio(p: Distribution, q: Distribution, x: Tensor) -> Tensor:
    """Ln p − ln q, infinite where one has no mass, and 0 where neither has."""
    log_p, log_q = log_density_anywhere(p, x), log_density_anywhere(q, x)
    here, there = log_p > -math.inf, log_q > -math.inf
    ratio = torch.where(here, log_p, 0.0) - torch.where(there, log_q, 0.0)
    return torch.where(here & ~there, math.inf, torch.where(there & ~here, -math.inf, ratio))


def mean_of_both(
    posed: Pair, h: Callable[[Tensor], Tensor], ask: dict[str, Any], *, cut: bool = False
) -> Estimate:
    """E_p[h] + E_q[h] of a function of ln p/q.

    Args:
        posed: The distributions.
        h: The function.
        ask: What `expect` is asked.
        cut: Whether it has a kink where p = q.
    """
    if _never_met(posed):
        parts = [h(torch.full(posed.batch, side * _MOST).double()) for side in (1, -1)]
        value = (parts[0] + parts[1]).to(device_of(posed.p))
        reason = {"reason": "one has mass at points, and the other a density"}
        found = Estimate.exact(value, method="proof", diagnostics=reason)
        return posed.in_its_precision(found)
    clipped = lambda v: h(v.clamp(-_MOST, _MOST))  # noqa: E731
    solve = partial(_both_means, h=clipped, ask=ask, cut=cut)
    found = with_known(posed, posed.alike(), 0.0, "p and q are one distribution", solve)
    return posed.in_its_precision(found)


def _both_means(
    posed: Pair, *, h: Callable[[Tensor], Tensor], ask: dict[str, Any], cut: bool
) -> Estimate:
    breaks = crossings(posed) if cut else None
    first, second = (
        log_ratio_mean(posed, h, ask, swapped=swapped, breaks=breaks) for swapped in (False, True)
    )
    same = first.method == second.method
    method = first.method if same else f"{first.method} and {second.method}"
    return replace(first + second, method=method)


def _never_met(posed: Pair) -> bool:
    """Whether one has mass at points, and the other a density."""
    try:
        return posed.p.support.is_discrete != posed.q.support.is_discrete
    except NotImplementedError:
        return False


def with_known(
    posed: Pair,
    known: Bool[Tensor, "*batch"] | None,
    value: float,
    reason: str,
    solve: Callable[[Pair], Estimate],
) -> Estimate:
    """What is proved to have some value, and the rest solved for."""
    if known is None or not bool(known.any()):
        return solve(posed)
    if bool(known.all()):
        every = torch.full(posed.batch, value, dtype=posed.dtype, device=known.device)
        return Estimate.exact(every, method="proof", diagnostics={"reason": reason})
    rest = solve(posed.chosen(~known))

    def placed(t: Tensor | int, other: float | int) -> Tensor:
        t = torch.as_tensor(t, device=known.device)
        full = torch.full(known.shape, other, dtype=t.dtype, device=t.device)
        return full.masked_scatter(~known, t.expand(rest.value.shape))

    return replace(
        rest,
        value=placed(rest.value, value),
        error=placed(rest.error, 0.0),
        std_error=None if rest.std_error is None else placed(rest.std_error, 0.0),
        status=placed(rest.status, 0),
        num_evals=placed(rest.num_evals, 0),
        diagnostics={**rest.diagnostics, "proved": f"{value} where {reason}"},
    )


def _breaks(p: Distribution, q: Distribution) -> Tensor | None:
    """Where q changes, of distributions on the line with densities."""
    if p.event_shape or support_of(p).discrete or support_of(q).discrete:
        return None
    part = q.component_distribution if isinstance(q, MixtureSameFamily) else q
    try:
        x = _quantiles(part, torch.tensor(_LEVELS, dtype=torch.float64))
    except NotImplementedError:
        return None
    return x.flatten(-2) if part is not q else x


def _quantiles(dist: Distribution, levels: Float[Tensor, " k"]) -> Float[Tensor, "*batch s"]:
    """At the levels from either end, and the median."""
    like = support_of(dist).lower
    levels = levels.to(like.device).reshape([-1, *[1] * len(dist.batch_shape)])
    with torch.no_grad():
        below, above = quantile(dist, levels), quantile(dist, levels, upper=True)
        middle = quantile(dist, torch.full_like(levels[:1], 0.5))
    return torch.cat([below, middle, above]).movedim(0, -1)


def _together(a: Tensor, b: Tensor) -> Tensor:
    batch = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    return torch.cat([t.expand(*batch, t.shape[-1]) for t in (a, b)], dim=-1)


def crossings(posed: Pair) -> Float[Tensor, "*batch s"] | None:
    """Where two densities on the line are equal: at most so many places of each element."""
    p, q = in_double(posed.p), in_double(posed.q)
    if p.event_shape or support_of(p).discrete or support_of(q).discrete:
        return None
    levels = 0.5 ** torch.linspace(1.0, 40.0, _LOOKS // 2, dtype=torch.float64)
    try:
        x = _together(_quantiles(p, levels), _quantiles(q, levels))
    except NotImplementedError:
        return None
    x = x.movedim(-1, 0).sort(dim=0).values
    with torch.no_grad():
        ratio = partial(log_ratio, p, q)
        sign = ratio(x).sign()
        turns = sign[1:] * sign[:-1] < 0
        order = turns.long().argsort(dim=0, descending=True, stable=True)[:_CROSSINGS]
        low, high = x[:-1].gather(0, order), x[1:].gather(0, order)
        start = sign[:-1].gather(0, order)
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            before = ratio(middle).sign() == start
            low, high = torch.where(before, middle, low), torch.where(before, high, middle)
    return low.movedim(0, -1)
