r"""Moments of weighted draws with error bars from independent replicates.

Each functional is linearised: with normalised weights W and influence function ψ (x − μ for a
mean, (x − μ)² − σ² for a variance), replicate r of R contributes e_r = R Σ_{i∈r} W_i ψ_i, and the
standard error is sd(e)/√R. Hampel (1974), The influence curve and its role in robust estimation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probcalc.integration.tails import khat_limit, pareto_khat
from probcalc.linalg import cholesky_or_none
from probcalc.result import Estimate, half_width

_NEGLIGIBLE = 1e-6
_DOMINANT = 0.02  # share of one term in a sum of thousands: light tails stay below
_FITTED = 4096  # draws on which the linear part of a function is fitted
_ROUNDING = 64  # units in the last place of the largest term, for sums and for finding the guide


@dataclass(frozen=True, eq=False)
class Control:
    """Control variate: the part of a function that is linear in the guide's draws.

    Under the guide its mean is zero and its covariance is known, so what the draws make of them
    is error that can be taken off. For a function that is linear and weights that are equal
    nothing else is left, and moments are exact.

    Args:
        linear: The part at the draws.
        covariance: Its covariance under the guide.
        has_squares: Whether its squares have a finite variance under the guide, so that they
            serve second moments.
    """

    linear: Float[Tensor, "r n p"]
    covariance: Float[Tensor, "p p"]
    has_squares: bool = True


def linear_control(
    z: Float[Tensor, "r n d"],
    h: Float[Tensor, "r n p"],
    mean: Float[Tensor, " d"],
    covariance: Float[Tensor, "d d"],
) -> Control | None:
    """Least-squares fit of h on the draws z of a guide with this mean and covariance.

    None where the covariance is singular to rounding.
    """
    d = z.shape[-1]
    centred = z - mean
    some = max(_FITTED, 4 * d)
    columns = centred.reshape(-1, d)[:some]
    rows = h.reshape(-1, h.shape[-1])[:some]
    root = cholesky_or_none(covariance)
    if root is None:
        return None
    # normal equations, harmless in whitened coordinates: `lstsq` differs from call to call in the
    # last digits
    white = _finite(torch.linalg.solve_triangular(root.mT, columns, upper=True, left=False))
    gram, products = white.mT @ white, white.mT @ _finite(rows - rows.mean(dim=0))
    slope = _finite(torch.linalg.solve_ex(gram, products).result)
    a = torch.linalg.solve_triangular(root.mT, slope, upper=True)  # (d, p)
    return Control(centred @ a, a.mT @ covariance @ a)


def weighted_mean(
    h: Float[Tensor, "r n p"],
    weights: Float[Tensor, "r n"],
    confidence: float,
    control: Control | None = None,
) -> Estimate:
    """Σ W h of every column with its bar; `weights` sum to one over all draws."""
    mean = torch.einsum("rn,rnp->p", weights, h)
    distance = h - mean
    parts = torch.einsum("rn,rnp->rp", weights, distance)
    scale = torch.einsum("rn,rnp->p", weights, h.detach().abs())
    unseen = _largest(weights, distance)
    excess = _excess_of_mean(control, weights)
    return _controlled(mean, parts, excess, scale, confidence, unseen)


def mean_of_terms(h: Float[Tensor, "r n"], confidence: float) -> Estimate:
    """Mean of equally weighted terms whose tail may be heavy, with its bar.

    The largest term counts as what the tail may hide; the bar is infinite where one term dominates
    and k̂ is above the limit of importance weights, as there is none that would hold.
    """
    r, n = h.shape
    mean = h.mean()
    distance = h - mean
    khat = pareto_khat(distance.abs().log().flatten())
    parts, unseen = distance.sum(dim=1) / (r * n), distance.abs().max() / (r * n)
    estimate = _controlled(mean, parts, None, h.abs().mean(), confidence, unseen)
    share = distance.abs().max() / distance.abs().sum().clamp(min=_NEGLIGIBLE)
    bad = (khat > khat_limit(r * n)) & (share > _DOMINANT) | ~mean.isfinite()
    return replace(estimate, error=torch.where(bad, math.inf, estimate.error))


def weighted_moments(
    x: Float[Tensor, "r n p"],
    weights: Float[Tensor, "r n"],
    confidence: float,
    control: Control | None = None,
) -> tuple[Estimate, Estimate]:
    """Mean and standard deviation of every column with their bars.

    That of an sd is infinite where the squares seem to have no mean.
    """
    w = weights[:, None, :]
    share = weights.sum(dim=1)[:, None]
    sums = (w @ x)[:, 0]  # (r, p)
    centre = sums.sum(dim=0)
    distance = x - centre
    scale = (w @ x.abs())[:, 0].sum(dim=0)
    excess, unseen = _excess_of_mean(control, weights), _largest(weights, distance)
    mean = _controlled(centre, sums - share * centre, excess, scale, confidence, unseen)
    square = distance.add_(centre - mean.value).square_()
    sums = (w @ square)[:, 0]
    plain = sums.sum(dim=0)
    excess, unseen = None, _largest(weights, square)
    if control is not None and control.has_squares:
        equal = torch.full_like(w, 1.0 / weights.numel())
        squares_of_linear = (equal @ control.linear.square())[:, 0]
        excess = squares_of_linear - control.covariance.diagonal() / weights.shape[0]
    parts, scale = sums - share * plain, plain + mean.value.square()
    variance = _controlled(plain, parts, excess, scale, confidence, unseen)
    error = torch.where(heavy_terms(weights[..., None] * square), math.inf, variance.error)
    return mean, _root(replace(variance, error=error))


def weighted_covariance(
    x: Float[Tensor, "r n p"],
    weights: Float[Tensor, "r n"],
    confidence: float,
    control: Control | None = None,
) -> Estimate:
    """Covariance matrix with its bar, elementwise."""
    mean = weighted_mean(x, weights, confidence, control).value
    centred = x - mean
    parts = centred.mT @ (weights[..., None] * centred)  # (r, p, p)
    covariance = parts.sum(dim=0)
    shares = weights.sum(dim=1)[:, None, None]
    excess = None
    if control is not None and control.has_squares:
        c, n = control.linear, weights.numel()
        excess = c.mT @ c / n - control.covariance / weights.shape[0]
    scale = (covariance.diagonal() + mean.square()).sqrt()
    return _controlled(
        covariance, parts - shares * covariance, excess, scale[:, None] * scale, confidence
    )


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

    The value is kept where the correction moves it by less than a standard error; the verdict
    asks whether it moves by more than the whole bar. A value that is kept carries the
    correction's bar and the distance to it, so that the bar stays honest; for an exact guide both
    vanish.

    Args:
        plain: The guide's value.
        corrected: The weighted estimate.
        scale: Spread of the quantity; a millionth of it counts as rounding.

    Returns:
        The estimate, and where the correction exceeds its bar.
    """
    distance = (corrected.value - plain).abs()
    noise = corrected.error if corrected.std_error is None else corrected.std_error
    kept = distance <= noise + _NEGLIGIBLE * scale
    value = torch.where(kept, plain, corrected.value)
    error = torch.where(kept, corrected.error + distance, corrected.error)
    estimate = Estimate(value, error, corrected.std_error, corrected.dof, corrected.confidence)
    return estimate, distance > corrected.error + _NEGLIGIBLE * scale


def _finite(rows: Tensor) -> Tensor:
    return torch.where(rows.isfinite(), rows, 0.0)


def _excess_of_mean(control: Control | None, weights: Tensor) -> Tensor | None:
    return None if control is None else control.linear.sum(dim=1) / weights.numel()


def _largest(weights: Float[Tensor, "r n"], terms: Float[Tensor, "r n p"]) -> Float[Tensor, " p"]:
    """Largest term of a weighted sum whose weight is not the equal one.

    A tail of shape k leaves about k/(1 − k) of it unseen, which no spread between replicates
    shows. It vanishes where the weights are equal.
    """
    uneven = torch.minimum(weights, (weights - 1.0 / weights.numel()).abs())
    return (uneven[..., None] * terms.abs()).amax(dim=(0, 1))


def _controlled(
    value: Tensor,
    parts: Tensor,
    excess: Tensor | None,
    scale: Tensor,
    confidence: float,
    unseen: Tensor | float = 0.0,
) -> Estimate:
    """Bar from the replicates' parts (they sum to zero); `excess` is taken off where that helps.

    Args:
        value: Of all replicates together.
        parts: Contribution of each replicate to the error, along the first axis.
        excess: What each replicate makes of a quantity that is zero.
        scale: Sum of the terms' sizes, for their rounding.
        confidence: Of the bar.
        unseen: What may be missing of the sum.
    """
    r = parts.shape[0]
    if excess is not None:
        helps = (parts - excess).std(dim=0) < parts.std(dim=0)
        excess = torch.where(helps, excess, 0.0)
        value, parts = value - excess.sum(dim=0), parts - excess
    std_error = (parts * r).std(dim=0) / r**0.5
    t = half_width(torch.ones_like(std_error), r - 1, confidence)
    widened = t + _skewness(parts).abs() * (1 + 2 * t.square()) / (6 * r**0.5)
    rounding = _ROUNDING * torch.finfo(scale.dtype).eps * scale
    error = widened * std_error + unseen + rounding
    return Estimate(value, error, std_error, float(r - 1), confidence)


def heavy_squares(x: Float[Tensor, "r n p"], weights: Float[Tensor, "r n"]) -> Bool[Tensor, " p"]:
    """Which columns seem to have no variance: their standard deviation has no bar."""
    w = weights[:, None]
    square = (x - (w @ x).sum(dim=0)).square_()
    return heavy_terms(square.mul_(weights[..., None]))


def heavy_terms(terms: Float[Tensor, "r n p"]) -> Bool[Tensor, " p"]:
    """Which columns of terms have a tail that no bar can hold."""
    limit = khat_limit(terms[..., 0].numel())
    khat = pareto_khat(terms.flatten(0, 1).mT.log())
    return (khat > limit) & khat.isfinite()  # too few terms say nothing


def _skewness(parts: Float[Tensor, " r *out"]) -> Float[Tensor, " *out"]:
    """Of the replicates: the first correction of Student's t (Hall 1992, section 2)."""
    centred = parts - parts.mean(dim=0)
    spread = centred.square().mean(dim=0).sqrt()
    return (centred / spread.clamp(min=torch.finfo(parts.dtype).tiny)).pow(3).mean(dim=0)


def _root(variance: Estimate) -> Estimate:
    """Square root, its bar by the slope."""
    std = variance.value.clamp(min=0.0).sqrt()
    slope = 0.5 / std.clamp(min=torch.finfo(std.dtype).tiny ** 0.5)
    return replace(
        variance,
        value=std,
        error=variance.error * slope,
        std_error=variance.std_error * slope,
    )


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
