r"""KL(p‖q) from log probabilities of draws from p, as policies and language models give them.

With r = q/p at x ~ p, each of these has the mean KL(p‖q), but the second:

    k1 = −ln r        k2 = ½ (ln r)²        k3 = r − 1 − ln r        k1 + c (r − 1)

Schulman (2020), Approximating KL divergence. The last has the least variance where c is
−Cov(k1, r)/Var(r); k3 is it with c = 1, and has no variance at all where r has none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probcalc.integration.gradient_estimators import LeaveOneOut, surrogate
from probcalc.integration.running import Running, tail_length
from probcalc.result import Estimate, half_width
from probcalc.status import Status

_NO_VARIANCE = 0.5  # shape of a tail from which terms have none
_MOST = 700.0
_HALVES = 2


@runtime_checkable
class Terms(Protocol):
    """Numbers whose mean is the divergence, from u = ln p − ln q at draws from p."""

    def terms(self, u: Float[Tensor, " n *s"]) -> Float[Tensor, " n *s"]:
        """Of the same shape."""
        ...


@dataclass(frozen=True)
class K1:
    """The log ratio itself: unbiased, of finite variance wherever (ln p/q)² has a mean."""

    def terms(self, u: Float[Tensor, " n *s"]) -> Float[Tensor, " n *s"]:
        """The value ln p − ln q."""
        return u


@dataclass(frozen=True)
class K2:
    """Half its square: biased, by a third of the third moment of u at first."""

    def terms(self, u: Float[Tensor, " n *s"]) -> Float[Tensor, " n *s"]:
        """The value ½ u²."""
        return 0.5 * u.square()


@dataclass(frozen=True)
class K3:
    """The term r − 1 − ln r: unbiased, never negative, heavy where q is wider than p."""

    def terms(self, u: Float[Tensor, " n *s"]) -> Float[Tensor, " n *s"]:
        """The value e^−u − 1 + u."""
        return torch.expm1(-u.clamp(min=-_MOST)) + u


@dataclass(frozen=True)
class Controlled:
    """The log ratio with r − 1 as control variate, whose weight the other half of draws tells."""

    def terms(self, u: Float[Tensor, " n *s"]) -> Float[Tensor, " n *s"]:
        """The value u + c (e^−u − 1); the log ratio alone where r has no variance."""
        control = torch.expm1(-u.clamp(min=-_MOST))
        flat, ratio = (t.reshape(len(u), -1) for t in (u, control))
        if len(u) < 2 * _HALVES or heavy_tailed(ratio.abs().sum(dim=1)):
            return u
        halves = [slice(i, None, _HALVES) for i in range(_HALVES)]
        weights = [_weight(flat[half], ratio[half]) for half in halves]
        taken = torch.empty(len(u), dtype=u.dtype, device=u.device)
        taken[halves[0]], taken[halves[1]] = weights[1], weights[0]
        return u + taken.reshape([-1, *[1] * (u.ndim - 1)]) * control


def _weight(u: Tensor, control: Tensor) -> Tensor:
    """Least squares on the sums of each draw; 1, which is k3, where nothing varies."""
    a, b = u.sum(dim=1), control.sum(dim=1)
    a, b = a - a.mean(), b - b.mean()
    size = b.square().sum()
    return torch.where(size > 0, -(a * b).sum() / torch.where(size > 0, size, 1.0), 1.0)


def heavy_tailed(size: Float[Tensor, " n"], sure: float = 0.0) -> bool:
    """Whether draws of this size seem to have no variance, by so many standard errors.

    Too few to tell (about two dozen) count as heavy, unless it has to be sure.
    """
    khat = float(_running(size).khat().squeeze())
    if sure and math.isfinite(khat):
        khat -= sure * (1 + khat) / tail_length(len(size)) ** 0.5
    return khat > _NO_VARIANCE and (math.isfinite(khat) or not sure)


def _running(terms: Float[Tensor, " n"]) -> Running:
    return Running.of(terms[:, None], tail_length(len(terms)) + 1)


def kl_from_log_probs(
    log_p: Float[Tensor, " n *s"],
    log_q: Float[Tensor, " n *s"],
    *,
    terms: Terms | None = None,
    event_dim: int = 0,
    mask: Bool[Tensor, " n *s"] | None = None,
    weights: Float[Tensor, " n"] | None = None,
    discrete: bool = False,
    confidence: float = 0.99,
) -> Estimate:
    r"""KL(p‖q) from log probabilities at draws from p, with an error bar and its gradient.

    Draws along the first axis are independent; whatever belongs to one of them, such as the tokens
    of a sequence, is not, and the bar takes that in. Its gradient in `log_p` and `log_q` is that
    of KL(p‖q), by the score with a leave-one-out baseline (and rewards-to-go along a sequence),
    whatever the terms: differentiating k1 of given draws would give nothing, and k3 the gradient
    of KL(q‖p).

    Args:
        log_p: Log probabilities under p, from which the draws are.
        log_q: Under q.
        terms: `K1()`, `K2()`, `K3()`; default `Controlled()`.
        event_dim: 1: the last axis holds steps of one sequence, whose divergence is their sum.
            0: every number counts alike, and the result is their mean.
        mask: Which numbers count.
        weights: Of draws, such as importance weights; normalised here.
        discrete: Whether probabilities, not densities, are given: none may be above 1.
        confidence: Level of the bar.

    Returns:
        Estimate of one number, in the dtype given; flagged where the terms have no variance.

    Raises:
        ValueError: If shapes differ, there are fewer than 2 draws, a log probability is NaN or,
            of a discrete family, positive, or nothing counts.

    >>> x = torch.linspace(-2, 2, 5)
    >>> kl_from_log_probs(-0.5 * x**2, -0.5 * (x - 0.1) ** 2, terms=K1()).value
    tensor(0.0050)
    """
    keep = _checked(log_p, log_q, event_dim, mask, discrete)
    p, q = (torch.where(keep, t, 0.0).double() for t in (log_p, log_q))
    u = (p - q).detach()
    each = (terms or Controlled()).terms(u)
    counted = keep.any(dim=-1) if event_dim else keep
    sums, counts = _per_draw(torch.where(keep, each, 0.0)), _per_draw(counted.double())
    share = _shares(weights, len(p), p)
    total = (share * counts).sum()
    value = (share * sums).sum() / total
    # of a ratio of means: what each draw adds beyond its share
    influence = share * (sums - value * counts) / total
    n = len(p)
    std_error = (influence.square().sum() * n / (n - 1)).sqrt()
    heavy = heavy_tailed((n * influence).abs()) if n > 2 else False
    status = Status.INFINITE_VARIANCE if heavy else Status.OK
    status = status | (Status.OK if bool(value.isfinite()) else Status.NON_FINITE)
    bar = half_width(std_error, n - 1, confidence)
    bar = torch.where(torch.as_tensor(bool(status), device=bar.device), math.inf, bar)
    found = Estimate(
        value,
        bar,
        std_error,
        float(n - 1),
        confidence,
        int(status),
        n,
        f"mean of {type(terms or Controlled()).__name__} over draws",
        {"gradient": "score function, leave-one-out baseline"},
    )
    if log_p.requires_grad or log_q.requires_grad:
        found = replace(found, value=_with_gradient(value, p, q, keep, share, total, event_dim))
    return _in(found, log_p.dtype)


def _checked(
    log_p: Tensor, log_q: Tensor, event_dim: int, mask: Tensor | None, discrete: bool
) -> Tensor:
    if log_p.shape != log_q.shape:
        raise ValueError(
            f"`log_p` and `log_q` must have one shape, got {tuple(log_p.shape)} and "
            f"{tuple(log_q.shape)}."
        )
    if event_dim not in (0, 1) or log_p.ndim < 1 + event_dim:
        raise ValueError(
            f"`event_dim` must be 0, or 1 for numbers of shape (draws, steps); got {event_dim} "
            f"for shape {tuple(log_p.shape)}."
        )
    if len(log_p) < 2:
        raise ValueError(f"an error bar needs at least 2 draws, got {len(log_p)}.")
    keep = torch.ones_like(log_p, dtype=torch.bool) if mask is None else mask.expand(log_p.shape)
    if not bool(keep.any()):
        raise ValueError("the mask leaves nothing.")
    for name, t in (("log_p", log_p), ("log_q", log_q)):
        kept = t.detach()[keep]
        if bool(kept.isnan().any()):
            raise ValueError(f"`{name}` has NaN among {kept.numel()} numbers that count.")
        if discrete and bool((kept > 0).any()):
            raise ValueError(
                f"`{name}` must hold logarithms of probabilities, none above 0; got "
                f"{kept.max().item():g}."
            )
    return keep


def _per_draw(t: Tensor) -> Tensor:
    """Sums of what belongs to a draw."""
    return t.reshape(len(t), -1).sum(dim=1)


def _shares(weights: Tensor | None, n: int, like: Tensor) -> Tensor:
    if weights is None:
        return torch.full((n,), 1 / n, dtype=like.dtype, device=like.device)
    if weights.shape != (n,) or not bool((weights >= 0).all()) or not bool(weights.sum() > 0):
        raise ValueError(
            f"`weights` must be {n} numbers, none negative and not all 0, got shape "
            f"{tuple(weights.shape)}."
        )
    return (weights / weights.sum()).to(like).detach()


def _with_gradient(
    value: Tensor,
    p: Tensor,
    q: Tensor,
    keep: Tensor,
    share: Tensor,
    total: Tensor,
    event_dim: int,
) -> Tensor:
    signal = torch.where(keep, p - q, 0.0)
    own = torch.where(keep, p.detach() - q, 0.0)
    steps = p.shape[-1] if event_dim else 0
    reach = torch.ones(steps, steps, dtype=torch.bool, device=p.device).triu() if steps else None
    moved = surrogate(p, signal.detach(), own, baseline=LeaveOneOut(), downstream=reach)
    moved = torch.where(keep, moved, 0.0) - signal.detach()
    return value + (share * moved.reshape(len(p), -1).sum(dim=1)).sum() / total


def _in(found: Estimate, dtype: torch.dtype) -> Estimate:
    numbers: dict[str, Any] = {n: getattr(found, n).to(dtype) for n in ("value", "error")}
    assert found.std_error is not None
    return replace(found, **numbers, std_error=found.std_error.to(dtype))
