"""Tails of counts, and their quantiles by a search of integers.

Johnson, Kemp & Kotz (2005), Univariate discrete distributions: sums of masses are incomplete
gamma and beta functions, so that derivatives in the parameters are densities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.distributions.incomplete import beta_tail, gamma_tail

_MOST = 2.0**53  # integers beyond which float64 has gaps


def poisson_tail(d: Any, k: Tensor, upper: bool) -> Tensor:
    """P(K ≤ k) = Q(k + 1, rate)."""
    return gamma_tail(k + 1, d.rate.double(), not upper)


def binomial_tail(d: Any, k: Tensor, upper: bool) -> Tensor:
    """P(K > k) = I_p(k + 1, n − k)."""
    p, q = _both(d)
    return beta_tail(k + 1, d.total_count.double() - k, p, q, not upper)


def negative_binomial_tail(d: Any, k: Tensor, upper: bool) -> Tensor:
    """P(K > k) = I_p(k + 1, r), p the probability of what is counted."""
    p, q = _both(d)
    return beta_tail(k + 1, d.total_count.double(), p, q, not upper)


def geometric_tail(d: Any, k: Tensor, upper: bool) -> Tensor:
    """P(K > k) = (1 − p)^(k + 1)."""
    p, q = _both(d)
    small = p.detach() < 0.5
    log_q = torch.where(small, torch.log1p(-torch.where(small, p, 0.5)), q.log())
    exponent = (k + 1) * log_q
    return exponent.exp() if upper else -torch.expm1(exponent)


def bernoulli_tail(d: Any, k: Tensor, upper: bool) -> Tensor:
    """P(K ≤ 0) = 1 − p."""
    p, q = _both(d)
    return (p if upper else q).expand(torch.broadcast_shapes(p.shape, k.shape))


def categorical_tail(d: Any, k: Tensor, upper: bool) -> Tensor:
    """Sums of the probabilities on one side."""
    probs = probabilities(d)
    numbers = torch.arange(probs.shape[-1], dtype=torch.float64, device=probs.device)
    kept = (numbers > k[..., None]) if upper else (numbers <= k[..., None])
    return torch.where(kept, probs, 0.0).sum(dim=-1)


def probabilities(d: Any) -> Float[Tensor, "*batch k"]:
    """Of a categorical distribution, in float64."""
    if "probs" in vars(d):
        return d.probs.double()
    return torch.softmax(d.logits.double(), dim=-1)


def _both(d: Any) -> tuple[Tensor, Tensor]:
    """Both p and 1 − p, from what was given: neither is rounded through the other."""
    if "probs" in vars(d):
        return d.probs.double(), 1 - d.probs.double()
    return torch.sigmoid(d.logits.double()), torch.sigmoid(-d.logits.double())


def first_beyond(
    beyond: Callable[[Tensor], Tensor],
    lower: Float[Tensor, "*out"],
    upper: Float[Tensor, "*out"],
    start: Float[Tensor, "*out"],
) -> Float[Tensor, "*out"]:
    """Smallest integer of [lower, upper] beyond the level, given that upper is.

    Args:
        beyond: Whether each integer is; false below some integer and true from there on.
        lower: Smallest integer that may be asked for.
        upper: Largest; may be infinite.
        start: Where to look first.
    """
    low, high = lower - 1, upper  # not beyond, beyond
    step = torch.ones_like(start)
    at = torch.maximum(lower, torch.minimum(start.floor(), upper.clamp(max=_MOST)))
    while bool((high - low > 1).any()):
        found = beyond(at)
        low, high = torch.where(found, low, at), torch.where(found, at, high)
        step = 2 * step
        # out of the bracket's reach the steps double; inside they halve it
        walk = torch.where(found, at - step, at + step)
        middle = torch.where(high.isinf(), walk, (0.5 * (low + high)).floor())
        inside = (walk > low) & (walk < high)
        at = torch.where(inside & (step < 0.5 * (high - low)), walk, middle)
        at = torch.maximum(low + 1, torch.minimum(at, high)).clamp(max=_MOST)
        if bool((at >= _MOST).any()):
            break
    return high
