r"""Moments of weighted draws with error bars from independent replicates.

Each functional is linearised: with normalised weights W and influence function ψ (x − μ for a
mean, (x − μ)² − σ² for a variance), replicate r of R contributes e_r = R Σ_{i∈r} W_i ψ_i, and the
standard error is sd(e)/√R. Hampel (1974), The influence curve and its role in robust estimation.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probcalc.result import Estimate, half_width

_NEGLIGIBLE = 1e-6
_ROUNDING = 64  # units in the last place of the largest term, for sums and for finding the guide


def weighted_mean(
    h: Float[Tensor, "r n *out"], weights: Float[Tensor, "r n"], confidence: float
) -> Estimate:
    """Σ W h with its bar; `weights` sum to one over all draws."""
    w = _aligned(weights, h)
    mean = (w * h).sum(dim=(0, 1))
    return _estimate(mean, (w * (h - mean)).sum(dim=1), h, confidence)


def weighted_moments(
    x: Float[Tensor, "r n p"], weights: Float[Tensor, "r n"], confidence: float
) -> tuple[Estimate, Estimate]:
    """Mean and standard deviation of every column with their bars, in two passes over x."""
    w = weights[:, None, :]
    share = weights.sum(dim=1)[:, None]
    sums = (w @ x)[:, 0]  # (r, p)
    mean = sums.sum(dim=0)
    centred = x - mean
    largest = centred.abs().amax(dim=(0, 1))
    squares = (w @ centred.square_())[:, 0]
    variance = squares.sum(dim=0)
    std = variance.sqrt()
    of_std = (squares - share * variance) / (2 * std.clamp(min=1e-300))
    scale = (mean.abs() + largest).expand(1, 1, -1)
    return (
        _estimate(mean, sums - share * mean, scale, confidence),
        _estimate(std, of_std, scale, confidence),
    )


def weighted_covariance(
    x: Float[Tensor, "r n p"], weights: Float[Tensor, "r n"], confidence: float
) -> Estimate:
    """Covariance matrix with its bar, elementwise."""
    mean = (weights[..., None] * x).sum(dim=(0, 1))
    centred = x - mean
    parts = centred.mT @ (weights[..., None] * centred)  # (r, p, p)
    covariance = parts.sum(dim=0)
    shares = weights.sum(dim=1)[:, None, None]
    return _estimate(covariance, parts - shares * covariance, centred.square(), confidence)


def weighted_quantile(
    x: Float[Tensor, "r n p"],
    weights: Float[Tensor, "r n"],
    level: float,
    confidence: float,
) -> Estimate:
    """Quantile with its bar: the error of the probability below it, mapped back to x.

    Woodruff (1952), Confidence intervals for medians and other position measures.
    """
    r = x.shape[0]
    ordered, cumulative = _ordered(x.flatten(0, 1), weights.flatten())
    value = _at(ordered, cumulative, torch.full_like(x[0, 0], level))
    below = (weights[..., None] * ((x <= value).to(x.dtype) - level)).sum(dim=1) * r
    std_error = below.std(dim=0) / r**0.5
    resolution = weights.max()
    shift = half_width(std_error, r - 1, confidence) + resolution
    upper = _at(ordered, cumulative, (level + shift).clamp(max=1.0))
    lower = _at(ordered, cumulative, (level - shift).clamp(min=0.0))
    error = torch.maximum(upper - value, value - lower)
    return Estimate(value, error, None, float(r - 1), confidence)


def kept_unless_moved(
    plain: Float[Tensor, "*out"], corrected: Estimate, scale: Float[Tensor, "*out"]
) -> tuple[Estimate, Bool[Tensor, "*out"]]:
    """The guide's own value where the correction is within its noise, else the corrected one.

    A value that is kept carries the correction's bar and the distance to it, so that the bar
    stays honest; for an exact guide both vanish.

    Args:
        plain: The guide's value.
        corrected: The weighted estimate.
        scale: Spread of the quantity; a millionth of it counts as rounding.
    """
    distance = (corrected.value - plain).abs()
    moved = distance > corrected.error + _NEGLIGIBLE * scale
    value = torch.where(moved, corrected.value, plain)
    error = torch.where(moved, corrected.error, corrected.error + distance)
    estimate = Estimate(value, error, corrected.std_error, corrected.dof, corrected.confidence)
    return estimate, moved


def _estimate(value: Tensor, parts: Tensor, scale: Tensor, confidence: float) -> Estimate:
    """Bar from the replicates' parts (they sum to zero), rounding of sums of `scale` included."""
    r = parts.shape[0]
    std_error = (parts * r).std(dim=0) / r**0.5
    rounding = _ROUNDING * torch.finfo(scale.dtype).eps * scale.detach().abs().amax(dim=(0, 1))
    error = half_width(std_error, r - 1, confidence) + rounding
    return Estimate(value, error, std_error, float(r - 1), confidence)


def _aligned(weights: Tensor, h: Tensor) -> Tensor:
    return weights.reshape(weights.shape + (1,) * (h.ndim - 2))


def _ordered(
    x: Float[Tensor, "s p"], weights: Float[Tensor, " s"]
) -> tuple[Float[Tensor, "p s"], Float[Tensor, "p s"]]:
    ordered, index = x.mT.sort(dim=-1)
    w = weights[index]
    return ordered.contiguous(), (w.cumsum(dim=-1) - 0.5 * w).contiguous()


def _at(
    ordered: Float[Tensor, "p s"], cumulative: Float[Tensor, "p s"], level: Float[Tensor, " p"]
) -> Float[Tensor, " p"]:
    """Linear interpolation of the weighted distribution function, inverted."""
    s = ordered.shape[-1]
    right = torch.searchsorted(cumulative, level[:, None]).clamp(1, s - 1)
    left = right - 1
    c0, c1 = cumulative.gather(-1, left), cumulative.gather(-1, right)
    x0, x1 = ordered.gather(-1, left), ordered.gather(-1, right)
    share = ((level[:, None] - c0) / (c1 - c0).clamp(min=1e-300)).clamp(0.0, 1.0)
    return (x0 + share * (x1 - x0))[:, 0]
