r"""Tail checks: how heavy are the terms of a mean, and can its error bar be believed?

The largest of `S` importance ratios are fitted by a generalised Pareto distribution; its shape
k̂ says how many moments the ratios have (1/k̂). A mean needs k̂ < 1, an error bar k̂ < 1/2, and
below min(1 − 1/log₁₀S, 0.7) smoothed weights give usable answers at this S.

Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling, sections 2-3;
the fit is Zhang & Stephens (2009), A new and efficient estimation method for the generalized
Pareto distribution.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

_PRIOR_K, _PRIOR_SIZE = 0.5, 10.0  # weak prior on the shape, Vehtari et al. (2024), section 3.1
_SMALL_SHARE = 1e-3  # of the sum: a largest ratio of that size leaves about as much unseen
_EQUAL = 1e-3  # log ratios that differ by more are never called equal
_MIN_TAIL = 5  # fewer exceedances say nothing about a tail


def khat_limit(num_draws: int) -> float:
    """Largest k̂ at which smoothed weights are reliable with this many draws.

    >>> round(khat_limit(1000), 3), khat_limit(10**6)
    (0.667, 0.7)
    """
    return min(1.0 - 1.0 / math.log10(num_draws), 0.7) if num_draws > 10 else 0.0


def smoothed_log_weights(
    log_ratios: Float[Tensor, "*batch s"],
) -> tuple[Float[Tensor, "*batch s"], Float[Tensor, "*batch"]]:
    """Pareto smoothed importance sampling.

    Args:
        log_ratios: Log p − log q of the draws, up to a constant; −inf is a ratio of zero.

    Where no ratio has more than a thousandth of the sum there is no tail to smooth, and the fit,
    which is blind to scale, says nothing: S draws of a tail of shape k have a maximum of about
    S^k means, so that k̂ is at most log(S · largest share) / log S.

    Returns:
        Unnormalised log weights (tail replaced by fitted quantiles, never above the largest
        ratio met), and k̂: −inf where the ratios are equal to rounding, inf where there are too
        few positive ratios to tell.
    """
    s = log_ratios.shape[-1]
    m = min(s // 5, math.ceil(3 * s**0.5))
    if m < _MIN_TAIL:
        return log_ratios, torch.full_like(log_ratios[..., 0], math.inf)
    peak = log_ratios.amax(dim=-1, keepdim=True)
    shifted = log_ratios - peak
    top, order = shifted.topk(m + 1, dim=-1)
    top, order = top.flip(-1), order.flip(-1)  # ascending
    cutoff, tail = top[..., :1].exp(), top[..., 1:].exp()
    excess = (tail - cutoff).clamp(min=0.0)
    k, sigma = fit_generalised_pareto(excess)
    p = (torch.arange(m, dtype=tail.dtype, device=tail.device) + 0.5) / m
    quantiles = _pareto_quantile(p, k[..., None], sigma[..., None])
    new_tail = (quantiles + cutoff).log().clamp(max=0.0)

    spread = -shifted.clamp(min=-1.0).amin(dim=-1)
    equal = spread <= _rounding(log_ratios, peak)
    few = (excess[..., -_MIN_TAIL:] <= 0).any(dim=-1)
    usable = k.isfinite() & ~equal & ~few
    replaced = shifted.scatter(-1, order[..., 1:], new_tail)
    khat = torch.where(equal, -math.inf, torch.where(usable, k, math.inf))
    log_share = -shifted.logsumexp(dim=-1)
    small = log_share <= math.log(_SMALL_SHARE)
    khat = torch.where(small, khat.minimum(1 + log_share / math.log(s)), khat)
    return torch.where((usable & ~small)[..., None], replaced, shifted) + peak, khat


def _rounding(log_ratios: Tensor, peak: Tensor) -> Tensor:
    """Spread of log ratios that rounding alone explains."""
    size = peak[..., 0].abs().clamp(min=1.0)
    return (64 * torch.finfo(log_ratios.dtype).eps ** 0.75 * size).clamp(max=_EQUAL)


def pareto_khat(log_ratios: Float[Tensor, "*batch s"]) -> Float[Tensor, "*batch"]:
    """Shape of the right tail of importance ratios (see `smoothed_log_weights`)."""
    return smoothed_log_weights(log_ratios)[1]


def fit_generalised_pareto(
    excess: Float[Tensor, "*batch m"],
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Shape k and scale σ of exceedances sorted in ascending order.

    A weighted mean over a grid of profile likelihoods (Zhang & Stephens 2009), the shape shrunk
    towards 1/2 as if ten more exceedances had been seen.
    """
    m = excess.shape[-1]
    grid_size = 30 + math.floor(m**0.5)
    j = torch.arange(1, grid_size + 1, dtype=excess.dtype, device=excess.device)
    quartile = excess[..., math.floor(m / 4 + 0.5) - 1, None]
    tiny = torch.finfo(excess.dtype).tiny
    largest = excess[..., -1:].clamp(min=tiny)
    b = 1 / largest + (1 - (grid_size / (j - 0.5)).sqrt()) / (3 * quartile.clamp(min=tiny))
    k = torch.log1p(-b[..., None] * excess[..., None, :]).mean(dim=-1)  # (*batch, grid)
    profile = m * ((-b / k).log() - k - 1)
    weight = profile.softmax(dim=-1)
    b = (weight * b).sum(dim=-1, keepdim=True)
    k = torch.log1p(-b * excess).mean(dim=-1)
    sigma = -k / b[..., 0]
    k = (m * k + _PRIOR_SIZE * _PRIOR_K) / (m + _PRIOR_SIZE)
    return k, sigma


def _pareto_quantile(p: Tensor, k: Tensor, sigma: Tensor) -> Tensor:
    near_zero = k.abs() < 1e-8
    safe = torch.where(near_zero, 1.0, k)
    return torch.where(
        near_zero,
        -sigma * torch.log1p(-p),
        sigma * torch.expm1(-safe * torch.log1p(-p)) / safe,
    )
