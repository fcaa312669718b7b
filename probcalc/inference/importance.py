r"""Importance sampling: weights, evidence, and a better proposal.

    E_p[h] ≈ Σ W_i h(z_i),   W ∝ p(z)/q(z) smoothed,   log Z ≈ log mean p(z)/q(z)

Draws come in independent replicates; the proposal's own moments, which are known, serve as
control variates (see `moments`), so a Gaussian density gives equal weights and exact moments. The
proposal is refitted to the weighted moments while that lowers k̂ (adaptive importance sampling;
Cappé, Douc, Guillin, Marin & Robert 2008).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probcalc.inference.guides import Guide
from probcalc.inference.moments import Control, linear_control
from probcalc.integration.normal_draws import normal_draws
from probcalc.integration.tails import khat_limit, pareto_khat, smoothed_log_weights
from probcalc.linalg import cholesky_or_none, symmetric

_FINITE_VARIANCE = 0.5
_FEW = 0.1  # share of effective draws
_LIGHT_SQUARES = 8  # dof of a t above which squares have a k̂ below 1/4, their variance a bar
_WIDER = 1.05  # of the scale: costs few effective draws up to some fifty dimensions
_MAX_CONTROLLED = 1024  # dimensions above which no control variate is fitted
_BLOCK = 2**17  # entries of a proposal's components that are worked on at once, 1 MB
_DRAWS_PER_DIMENSION = 10  # effective draws a dimension below which no covariance is refitted


@dataclass(frozen=True, eq=False)
class WeightedDraws:
    """Draws of a proposal in `r` independent replicates of `n`, with their log ratios p/q.

    Args:
        z: Unconstrained draws.
        log_ratios: Log p − log q.
        log_weights: The same, Pareto smoothed.
        khat: Shape of the ratios' tail.
        guide: The proposal.
        params: Its parameters.
        x: The draws as constrained values.
        is_fresh: Whether these draws had no say in the choice of the proposal nor in their number.
        nan_share: Share of draws where the log density is not a number; counted as no density.
    """

    z: Float[Tensor, "r n d"]
    log_ratios: Float[Tensor, "r n"]
    log_weights: Float[Tensor, "r n"]
    khat: float
    guide: Guide
    params: dict[str, Tensor]
    x: Float[Tensor, "r n p"]
    is_fresh: bool = False
    nan_share: float = 0.0

    def control(self, h: Float[Tensor, "r n p"]) -> Control | None:
        """The linear part of a function of the draws, with its exact moments."""
        return control_of(self.guide, self.params, self.z, h)

    @property
    def weights(self) -> Float[Tensor, "r n"]:
        """Smoothed weights, summing to one over all draws."""
        return self.log_weights.flatten().softmax(dim=0).view_as(self.log_weights)

    @property
    def is_trusted(self) -> bool:
        """Whether estimates from these weights, and their error bars, can be believed."""
        return self.fault == ""

    @property
    def fault(self) -> str:
        """Why the weights cannot be trusted; empty where they can.

        Between k̂ = 1/2, where the variance of the ratios ends, and the limit for smoothed weights
        an error bar holds only if the tail matters little, so that many draws stay effective.
        """
        limit, share = khat_limit(self.num_evals), self.effective_size / self.num_evals
        if not self.khat <= limit:
            return f"k-hat {self.khat:.2f} is above {limit:.2f}: the weights cannot be trusted"
        if self.khat > _FINITE_VARIANCE and share < _FEW:
            return (
                f"k-hat {self.khat:.2f} is above {_FINITE_VARIANCE} and only {share:.1%} of the "
                "draws are effective: the error bars cannot be trusted"
            )
        of_means = self.khat_of_means
        if of_means > limit:
            return (
                f"k-hat of a mean's terms, {of_means:.2f}, is above {limit:.2f}: it may not exist"
            )
        return ""

    @property
    def effective_size(self) -> float:
        """1/ΣW², the number of equal weights that would be worth the same."""
        return float(1.0 / self.weights.square().sum())

    @cached_property
    def khat_of_means(self) -> float:
        """Shape of the tail of W |x − μ| / σ, the largest over the entries of x."""
        w, x = self.weights, self.x
        centre = (w[:, None] @ x).sum(dim=0)  # (1, p)
        scale = sum(v @ (y - centre).abs() for v, y in zip(w, x, strict=True))
        scale = scale.clamp(min=torch.finfo(x.dtype).tiny)
        envelope = torch.stack([((y - centre).abs() / scale).amax(dim=-1) for y in x])
        return float(pareto_khat((self.log_ratios + envelope.log()).flatten()))

    @property
    def tail(self) -> float:
        """The heavier of the tails: of the ratios, and of the terms of means."""
        return max(self.khat, self.khat_of_means)

    @property
    def strata(self) -> int:
        """Draws of a replicate come in multiples of this: a ± pair for every component."""
        return 2 * num_strata(self.guide)

    @property
    def num_evals(self) -> int:
        """Evaluations of the log density."""
        return self.log_ratios.numel()


def control_of(
    guide: Guide, params: dict[str, Tensor], z: Float[Tensor, "r n d"], h: Float[Tensor, "r n p"]
) -> Control | None:
    """The linear part of h, where the guide knows its moments and d × d is affordable."""
    moments = getattr(guide, "moments", None)
    if moments is None or z.shape[-1] > _MAX_CONTROLLED:
        return None
    control = linear_control(z, h, *moments(params))
    if control is None:
        return None
    return replace(control, has_squares=getattr(guide, "dof", math.inf) > _LIGHT_SQUARES)


def num_strata(guide: Guide) -> int:
    """Strata among which the draws of a guide are divided."""
    return getattr(guide, "num_strata", None) or getattr(guide, "num_components", 1)


@runtime_checkable
class Weighable(Protocol):
    """What is asked of a target here."""

    dim: int

    def log_density(self, z: Tensor) -> Tensor:
        """Of rows ``(..., d)``."""
        ...

    def constrained_vector(self, z: Tensor) -> Tensor:
        """Of rows, ``(..., p)``."""
        ...


def weighted_draws(
    target: Weighable,
    guide: Guide,
    params: dict[str, Tensor],
    *,
    num_replicates: int,
    num_draws: int,
    generator: torch.Generator,
) -> WeightedDraws:
    """Draw from the proposal and weigh.

    Args:
        target: What the draws are weighed for.
        guide: The proposal.
        params: Its parameters.
        num_replicates: Independent randomisations.
        num_draws: Draws in each, an even multiple of the components.
        generator: Source of randomness.
    """
    b = guide.base_dim(target.dim)
    k = num_strata(guide)
    eps = normal_draws(
        num_replicates * k,
        num_draws // k,
        b,
        generator=generator,
        dtype=next(iter(params.values())).dtype,
    )
    eps = eps.reshape(num_replicates, -1, b)
    # a block of replicates at a time, which stays in the cache
    block = max(1, _BLOCK // (num_draws * k * b))
    parts = [_weighed(target, guide, params, some) for some in eps.split(block)]
    z, log_ratios, x = (torch.cat(part) for part in zip(*parts, strict=True))
    is_nan = log_ratios.isnan()
    log_ratios = torch.where(is_nan, -torch.inf, log_ratios)
    smoothed, khat = smoothed_log_weights(log_ratios.flatten())
    return WeightedDraws(
        z,
        log_ratios,
        smoothed.view_as(log_ratios),
        float(khat),
        guide,
        params,
        x,
        nan_share=float(is_nan.double().mean()),
    )


def _weighed(
    target: Weighable, guide: Guide, params: dict[str, Tensor], eps: Float[Tensor, "r n b"]
) -> tuple[Float[Tensor, "r n d"], Float[Tensor, "r n"], Float[Tensor, "r n p"]]:
    """Draws, log ratios and constrained values."""
    with torch.no_grad():
        z, log_q = guide.transform(params, eps)
    log_ratios = target.log_density(z) - log_q
    lost = log_ratios.isnan() | (log_ratios == -torch.inf)
    return z, log_ratios, _without_nan(target.constrained_vector(z), lost)


def _without_nan(x: Float[Tensor, "r n p"], lost: Bool[Tensor, "r n"]) -> Tensor:
    """Values without weight count as zero where there are none."""
    return torch.where(lost[..., None] & ~x.isfinite(), 0.0, x)


def recentred(draws: WeightedDraws) -> dict[str, Tensor] | None:
    """The proposal moved to the weighted mean and widened a little; None where that is noise.

    A mean takes d effective draws to find, a covariance d²; the width keeps the tails of the
    ratios light when the centre is slightly wrong.
    """
    d = draws.z.shape[-1]
    if draws.strata > 2 or draws.effective_size < _DRAWS_PER_DIMENSION * d:
        return None
    loc = draws.weights.flatten() @ draws.z.reshape(-1, d)
    return {"loc": loc, "scale_tril": _WIDER * draws.params["scale_tril"]}


def refitted(draws: WeightedDraws) -> dict[str, Tensor] | None:
    """Proposal parameters that match the weighted moments.

    None where they are too noisy, or a guide has others than locations and scales.
    """
    d = draws.z.shape[-1]
    k = num_strata(draws.guide)
    few = draws.effective_size < _DRAWS_PER_DIMENSION * d * k
    if few or draws.params.keys() != {"loc", "scale_tril"}:
        return None
    z, w = draws.z.reshape(-1, d), draws.weights.flatten()
    if k == 1:
        loc, scale_tril = _moments(z, w)
        return None if scale_tril is None else {"loc": loc, "scale_tril": scale_tril}
    log_parts = draws.guide.component_log_prob(draws.params, z)  # (k, s)
    responsibility = log_parts.softmax(dim=0) * w
    parts = [_moments(z, r / r.sum()) for r in responsibility]
    if any(tril is None for _, tril in parts):
        return None
    locs, trils = zip(*parts, strict=True)
    return {"loc": torch.stack(locs), "scale_tril": torch.stack(trils)}


def _moments(
    z: Float[Tensor, "s d"], w: Float[Tensor, " s"]
) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"] | None]:
    loc = w @ z
    centred = z - loc
    return loc, cholesky_or_none(symmetric(centred.mT @ (centred * w[:, None])))
