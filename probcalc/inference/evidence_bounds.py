r"""Bounds of the log evidence as means over independent blocks of draws.

Every block's mean V has E exp(V − log Z) ≤ 1 (lower) or E exp(log Z − V) ≤ 1 (upper), so that for
B independent blocks

    P(mean of V beyond log Z by more than s)  ≤  exp(−B s)

whatever the distribution of the weights. The smaller of this bar and Student's is reported.

Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders; Grosse, Ghahramani &
Adams (2015), Sandwiching the marginal likelihood using bidirectional Monte Carlo; Sobolev &
Vetrov (2019), Importance weighted hierarchical variational inference, section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.inference.moments import weighted_mean
from probcalc.inference.posterior_draws import PosteriorDraws
from probcalc.integration.tails import khat_limit, smoothed_log_weights
from probcalc.result import Estimate
from probcalc.status import Status

_FINITE_VARIANCE, _HEAVIEST = 0.5, 0.7  # shapes of a tail: the variance ends; nothing is believed
_FEW = 0.1  # share of effective draws
_PILOT_SHARE = 0.25  # of the blocks: those choose between bounds, the others speak
_PROMISED = 3.0  # standard errors


@dataclass(frozen=True, eq=False)
class Bound:
    """Terms whose weighted mean is the bound.

    Args:
        name: In words.
        terms: In independent blocks.
        weights: Of the terms; None: equal.
        num_independent: Blocks that the exponential bar counts on; 0: it does not hold.
        num_evals: Evaluations of the log density.
    """

    name: str
    terms: Float[Tensor, "r m"]
    weights: Float[Tensor, "r m"] | None = None
    num_independent: int = 0
    num_evals: int = 0

    @property
    def shares(self) -> Float[Tensor, "r m"]:
        """The weights, summing to one."""
        weights = torch.ones_like(self.terms) if self.weights is None else self.weights
        return weights / weights.sum()

    @property
    def mean(self) -> Float[Tensor, ""]:
        """The bound's value; a term without weight says nothing, be it infinite."""
        return torch.where(self.shares > 0, self.shares * self.terms, 0.0).sum()

    def of(self, blocks: slice) -> Bound:
        """From some of the blocks only."""
        terms = self.terms[blocks]
        weights = None if self.weights is None else self.weights[blocks]
        independent = self.num_independent * len(terms) // len(self.terms)
        return replace(self, terms=terms, weights=weights, num_independent=independent)

    def estimate(self, confidence: float, rounding: float) -> Estimate:
        """The value with the smaller of its bars.

        Args:
            confidence: Of each bar, both sides.
            rounding: Of one term.
        """
        finite = torch.where(self.shares > 0, self.terms, 0.0)
        plain = weighted_mean(finite[..., None], self.shares, confidence)[0]
        error = plain.error
        if self.num_independent:
            cap = math.log(2 / (1 - confidence)) / self.num_independent
            error = torch.where(error <= cap, error, cap)
        # an infinite value says nothing, and cannot be wrong
        value = self.mean
        error = torch.where(value.isfinite(), error + rounding, 0.0)
        return replace(plain, value=value, error=error, method=self.name, num_evals=self.num_evals)


def chosen(bounds: list[Bound], *, highest: bool) -> Bound:
    """The bound that promises the tightest end, without the bias of having looked.

    Some blocks choose, by their mean and the bar that their spread promises to the others; the
    others are what is reported.
    """
    if len(bounds) == 1:
        return bounds[0]
    scores = [_promise(bound, 1.0 if highest else -1.0) for bound in bounds]
    best = bounds[scores.index(max(scores))]
    return best.of(slice(_num_pilots(best), None))


def _promise(bound: Bound, sign: float) -> float:
    pilots = bound.of(slice(_num_pilots(bound)))
    spread = torch.stack([pilots.of(slice(i, i + 1)).mean for i in range(len(pilots.terms))]).std()
    bar = _PROMISED * spread / (len(bound.terms) - len(pilots.terms)) ** 0.5
    return float((sign * pilots.mean - bar).nan_to_num(-math.inf))


def _num_pilots(bound: Bound) -> int:
    return max(2, int(_PILOT_SHARE * len(bound.terms)))


def mean_log_ratio(log_ratios: Float[Tensor, "r n"]) -> Bound:
    """The ELBO, from draws of the guide."""
    r = len(log_ratios)
    return Bound("ELBO", log_ratios, num_independent=r, num_evals=log_ratios.numel())


def log_mean_ratio(log_w: Float[Tensor, "r n"], name: str, num_evals: int) -> Bound:
    """Log mean of the weights of each block."""
    r, n = log_w.shape
    terms = log_w.logsumexp(dim=1, keepdim=True) - math.log(n)
    return Bound(name, terms, num_independent=r, num_evals=num_evals)


def evidence_upper_bound(draws: PosteriorDraws) -> Bound:
    """The ELBO's twin, from draws of the posterior."""
    return Bound(
        f"evidence upper bound, {draws.source}",
        draws.log_ratios,
        draws.weights,
        draws.num_independent,
        draws.num_evals,
    )


def one_among_many(draws: PosteriorDraws, others: Float[Tensor, "r n"]) -> Bound:
    """Log mean of the weights of one posterior draw and n independent draws of the guide.

    Args:
        draws: Of the posterior.
        others: Log ratios of the guide's draws, for each block.
    """
    k = others.shape[1] + 1
    terms = torch.logaddexp(draws.log_ratios, others.logsumexp(dim=1, keepdim=True)) - math.log(k)
    return Bound(
        f"upper bound of {k:,} weights, {draws.source}",
        terms,
        draws.weights,
        draws.num_independent,
        others.numel(),
    )


def log_mean_inverse(
    draws: PosteriorDraws, log_w: Float[Tensor, "r n"], name: str, num_evals: int
) -> Bound:
    """Minus the log mean of the inverse weights of each block."""
    r, n = log_w.shape
    terms = math.log(n) - (-log_w).logsumexp(dim=1, keepdim=True)
    independent = draws.num_independent
    return Bound(name, terms, num_independent=independent, num_evals=num_evals)


def point_estimate(
    log_w: Float[Tensor, "r n"], confidence: float, rounding: float, status: Status
) -> Estimate:
    """Log mean of all weights, smoothed, with its bar; infinite where they cannot be trusted.

    Args:
        log_w: Log weights whose exp has mean Z, in independent blocks.
        confidence: Of the bar.
        rounding: Of a log weight.
        status: Flags that stand already.
    """
    r, n = log_w.shape
    smoothed, khat = smoothed_log_weights(log_w.flatten())
    value, k = smoothed.logsumexp(dim=0) - math.log(r * n), float(khat)
    ratios = (smoothed - value).exp().view(r, n, 1)
    plain = weighted_mean(ratios, torch.full_like(log_w, 1.0 / (r * n)), confidence)[0]
    share = float(ratios.sum().square() / ratios.square().sum()) / (r * n)
    if not k <= khat_limit(r * n) or (k > _FINITE_VARIANCE and share < _FEW):
        status |= Status.UNRELIABLE_WEIGHTS
    heavy = min(max(k, 0.0), _HEAVIEST)
    # a tail of shape k leaves about k/(1 − k) of its largest term unseen
    unseen = float(ratios.max()) / (r * n) * heavy / (1 - heavy)
    error = plain.error + unseen + rounding
    return replace(
        plain,
        value=value,
        error=torch.full_like(error, math.inf) if status else error,
        status=int(status),
        method=f"importance sampling, k-hat {k:.2f}",
        num_evals=r * n,
    )
