r"""The log evidence log Z = log ∫ p(y, z) dz between two ends.

With w = p(y, z)/q(z) for a guide q:

    below   E_q log w  ≤  E log (1/K) Σ w_k  ≤  log Z,           the latter of annealed w too
    above   E_p log w  ≥  E log (1/K) (w_p + Σ_{k<K} w_k)  ≥  log Z,   w_p at a posterior draw;
            −E log (1/K) Σ 1/w_k  ≥  log Z   of w annealed backwards from posterior draws

The middle ones always beat the first, whatever q, so that only annealing is a choice. See
`evidence_bounds` for the bars and `annealed` for the weights.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc._random import child, draw_seed
from probcalc.inference.annealed import (
    AnnealedImportance,
    Bridge,
    find_schedule,
    forward,
    guide_draws,
    reverse,
)
from probcalc.inference.bracket import Bracket
from probcalc.inference.evidence_bounds import (
    Bound,
    chosen,
    evidence_upper_bound,
    log_mean_inverse,
    log_mean_ratio,
    mean_log_ratio,
    one_among_many,
)
from probcalc.inference.fit import fit
from probcalc.inference.importance import WeightedDraws, num_components, weighted_draws
from probcalc.inference.moments import weighted_mean
from probcalc.inference.nuts import FromNUTS
from probcalc.inference.parameters import Values
from probcalc.inference.posterior import Posterior
from probcalc.inference.posterior_draws import (
    PosteriorDraws,
    Resampled,
    from_caller,
    from_nuts,
    resampled,
)
from probcalc.inference.target import Target
from probcalc.integration.tails import khat_limit, smoothed_log_weights
from probcalc.result import Estimate
from probcalc.status import EstimateWarning, Status

_BLOCKS = 16
_LOOSE = 0.1  # nats of error of plain importance sampling beyond which annealing is tried
_SAME = 1e-6  # relative difference of log densities that rounding explains
_ROUNDING = 64  # units in the last place: a log density sums terms that cancel
_FIT, _FRESH, _OTHERS, _SAMPLER, _ANNEALED, _PICKED = range(6)  # streams of the seed
_NO_EVIDENCE = Status.IMPROPER | Status.NON_FINITE


def log_evidence(
    target: Target,
    posterior: Posterior | None = None,
    *,
    method: FromNUTS | Resampled | None = None,
    annealing: AnnealedImportance | None = None,
    num_draws: int = 2**13,
    posterior_draws: Values | None = None,
    confidence: float = 0.99,
    generator: torch.Generator | None = None,
) -> Bracket:
    """Bracket the log evidence of a target, in nats.

    The evidence is that of the density as given: constants that it leaves out are missing.

    Args:
        target: What is integrated.
        posterior: From `fit` of the same target; None: fit first.
        method: Where posterior draws for the upper end come from: `FromNUTS()`, or `Resampled()`
            from the weighted draws of the guide, which gives an estimate of a bound and no bound.
            None: resampled where the posterior's weights can be trusted, else NUTS.
        annealing: Settings of annealed importance sampling, which is then run; None: run where
            the guide's weights cannot be trusted or leave more than a tenth of a nat open.
        num_draws: Draws of the guide behind the bounds without annealing.
        posterior_draws: Draws of the posterior that the caller has, as constrained values with
            the draws along the first axis, in the order of their chains; instead of `method`.
        confidence: That the evidence lies between the ends, their errors included.
        generator: Source of randomness; one seed is drawn from it.

    Returns:
        The bracket; a flagged one also raises an `EstimateWarning`.

    Raises:
        ValueError: If the posterior is one of another target or its guide has no density, both
            `method` and `posterior_draws` are given, or a number is out of range.
        TypeError: If `method` is not one of those named.
    """
    _check(method, posterior_draws, num_draws, confidence)
    seed = draw_seed(generator)
    if target.dtype != torch.float64:
        target = target.to(None, torch.float64)
    if posterior is None:
        posterior = fit(target, confidence=confidence, generator=child(seed, _FIT))
    if not getattr(posterior.guide, "has_density", True):
        name = type(posterior.guide).__name__
        raise ValueError(f"{name} has no density, so it bounds nothing: fit another guide.")
    call = _Call(_explored(target, posterior), posterior, seed, confidence, num_draws)
    bracket = _bracket(call, method, annealing, posterior_draws)
    if not bracket.ok:
        why, advice = "; ".join(bracket.reasons), bracket.status.advice
        warnings.warn(f"evidence flagged: {why}. {advice}", EstimateWarning, stacklevel=2)
    return bracket


@dataclass(frozen=True, eq=False)
class _Call:
    """What one call is about."""

    target: Target
    posterior: Posterior
    seed: int
    confidence: float
    num_draws: int

    def stream(self, number: int) -> torch.Generator:
        """One of the streams of the seed."""
        return child(self.seed, number, self.target.device)


@dataclass(frozen=True, eq=False)
class _Annealed:
    """What annealing found: log weights from the guide, and bounds from both directions."""

    log_w: Float[Tensor, "r n"]
    lower: Bound
    upper: Bound | None
    note: str


def _bracket(
    call: _Call,
    method: FromNUTS | Resampled | None,
    annealing: AnnealedImportance | None,
    given: Values | None,
) -> Bracket:
    fresh = _fresh(call)
    status, reasons = _of_target(call.posterior, fresh)
    draws, notes = (None, []) if status else _posterior_draws(call, method, given)
    name = f"importance-weighted bound of {fresh.log_ratios.shape[1]:,}"
    lower = [log_mean_ratio(fresh.log_ratios, name, fresh.num_evals)]
    upper = [one_among_many(draws, _others(call, len(draws.z)))] if draws else []
    elbo, eubo = mean_log_ratio(fresh.log_ratios), draws and evidence_upper_bound(draws)
    log_w = fresh.log_ratios
    if not status and (annealing or _is_loose(call.posterior)):
        found = _anneal(call, annealing or AnnealedImportance(), draws)
        lower, notes = [*lower, found.lower], [*notes, found.note]
        upper += [found.upper] if found.upper else []
        if chosen(lower, highest=True).name == found.lower.name:
            log_w = found.log_w
    return _judged(call, draws, lower, upper, (elbo, eubo), log_w, (status, reasons, notes))


def _judged(
    call: _Call,
    draws: PosteriorDraws | None,
    lower: list[Bound],
    upper: list[Bound],
    plain: tuple[Bound, Bound | None],
    log_w: Float[Tensor, "r n"],
    verdict: tuple[Status, list[str], list[str]],
) -> Bracket:
    """The tightest ends, and whether they fit together."""
    status, reasons, notes = verdict
    each = 0.5 * (1 + call.confidence)  # so that both ends hold together
    rounding = _rounding(call)
    every = [*plain, *lower, *upper]
    bounds = {b.name: b.estimate(each, rounding) for b in every if b is not None}
    low = chosen(lower, highest=True).estimate(each, rounding)
    high = chosen(upper, highest=False).estimate(each, rounding) if upper else _nothing(each)
    if draws is not None:
        status, reasons = status | draws.status, [*reasons, *draws.reasons]
    if float(low.value - low.error) > float(high.value + high.error):
        status |= Status.NOT_CONVERGED
        reasons = [*reasons, "the ends cross: the posterior draws miss a part of the posterior"]
    elbo, eubo = (bounds[b.name] if b else _nothing(each) for b in plain)
    return Bracket(
        lower=replace(low, status=int(status & _NO_EVIDENCE)),
        upper=replace(high, status=int(status)),
        estimate=_point(log_w, call.confidence, rounding, status & _NO_EVIDENCE),
        bounds=bounds,
        symmetric_kl=replace(eubo - elbo, confidence=call.confidence),
        upper_is_bound=draws is not None and draws.are_exact,
        confidence=call.confidence,
        status=status,
        reasons=tuple(reasons),
        notes=tuple(notes),
        num_evals=sum(b.num_evals for b in every if b is not None),
        posterior=call.posterior,
    )


def _fresh(call: _Call) -> WeightedDraws:
    """Draws of the guide that had no say in its choice."""
    p, pair = call.posterior, 2 * num_components(call.posterior.guide)
    return weighted_draws(
        call.target,
        p.guide,
        p.params,
        num_replicates=_BLOCKS,
        num_draws=pair * math.ceil(call.num_draws / (_BLOCKS * pair)),
        generator=call.stream(_FRESH),
    )


def _others(call: _Call, num_blocks: int) -> Float[Tensor, "r n"]:
    """Log ratios of independent draws of the guide (those of a net would break the bound)."""
    p, k = call.posterior, num_components(call.posterior.guide)
    n = k * math.ceil(call.num_draws / (num_blocks * k))
    stream = call.stream(_OTHERS)
    z, log_q = guide_draws(call.target, p.guide, p.params, num_blocks, n, stream)
    log_ratios = call.target.log_density(z) - log_q
    return torch.where(log_ratios.isnan(), -torch.inf, log_ratios)


def _posterior_draws(
    call: _Call, method: FromNUTS | Resampled | None, given: Values | None
) -> tuple[PosteriorDraws, list[str]]:
    """Whence the upper end comes, and why."""
    target, p = call.target, call.posterior
    if given is not None:
        return from_caller(target, p, given), []
    notes = []
    if method is None:
        trusted = not p.status & Status.UNRELIABLE_WEIGHTS
        method = Resampled() if trusted else FromNUTS()
        why = "can be trusted" if trusted else "cannot be trusted"
        notes = [f"{type(method).__name__}() chosen: the weights of the posterior {why}"]
    if isinstance(method, FromNUTS):
        return from_nuts(target, p, method, call.stream(_SAMPLER)), notes
    return resampled(p), [*notes, "the upper end is an estimate of a bound, from weighted draws"]


def _anneal(call: _Call, settings: AnnealedImportance, draws: PosteriorDraws | None) -> _Annealed:
    p, stream = call.posterior, call.stream(_ANNEALED)
    bridge = Bridge.between(call.target, p.guide, p.params, p.z.flatten(0, 1))
    schedule = find_schedule(bridge, settings, stream)
    log_w = forward(bridge, schedule, settings, _BLOCKS, stream)
    steps = len(schedule.betas) - 1
    each = 1 + (steps - 1) * settings.num_moves * settings.num_leapfrog
    cost = each * log_w.numel()
    words = f"annealed importance sampling, {steps} temperatures, {log_w.shape[1]} particles"
    lower = log_mean_ratio(log_w, words, cost + schedule.num_evals)
    upper = None
    if draws is not None:
        z = draws.picked(settings.num_particles, call.stream(_PICKED))
        back = reverse(bridge, schedule, settings, z, stream)
        words = f"reverse annealing, {steps} temperatures, {draws.source}"
        upper = log_mean_inverse(draws, back, words, each * back.numel())
    note = f"annealing: {steps} temperatures, {schedule.acceptance:.0%} of moves accepted"
    if not schedule.is_complete:
        note += "; the last one goes farther than asked: raise `max_temperatures`"
    return _Annealed(log_w, lower, upper, note)


def _is_loose(posterior: Posterior) -> bool:
    return not float(posterior.log_evidence.error) <= _LOOSE


def _of_target(posterior: Posterior, fresh: WeightedDraws) -> tuple[Status, list[str]]:
    """Flags under which there is no evidence to bracket."""
    if not bool(fresh.log_ratios.isfinite().any()):
        return Status.NON_FINITE, ["the log density is not finite at any draw of the guide"]
    status = posterior.status & _NO_EVIDENCE
    return status, list(posterior.reasons) if status else []


def _point(
    log_w: Float[Tensor, "r n"], confidence: float, rounding: float, status: Status
) -> Estimate:
    """Log mean of all weights, smoothed, with its bar; infinite where they cannot be trusted."""
    r, n = log_w.shape
    smoothed, khat = smoothed_log_weights(log_w.flatten())
    value = smoothed.logsumexp(dim=0) - math.log(r * n)
    ratios = (smoothed - value).exp().view(r, n, 1)
    plain = weighted_mean(ratios, torch.full_like(log_w, 1.0 / (r * n)), confidence)[0]
    if not float(khat) <= khat_limit(r * n):
        status |= Status.UNRELIABLE_WEIGHTS
    error = math.inf if status else plain.error + rounding
    error = torch.as_tensor(error, dtype=value.dtype, device=value.device)
    return replace(
        plain,
        value=value,
        error=error,
        status=int(status),
        method=f"importance sampling, k-hat {float(khat):.2f}",
        num_evals=r * n,
    )


def _nothing(confidence: float) -> Estimate:
    """An upper end that says nothing."""
    value = torch.tensor(math.inf, dtype=torch.float64)
    return Estimate.exact(value, confidence=confidence, method="none: no posterior draws")


def _rounding(call: _Call) -> float:
    """Of a log ratio, whose two terms may cancel."""
    log_p = call.target.log_density(call.posterior.z[0, :_BLOCKS]).abs()
    size = float(torch.where(log_p.isfinite(), log_p, 0.0).max())
    return _ROUNDING * torch.finfo(log_p.dtype).eps * (1 + size)


def _explored(target: Target, posterior: Posterior) -> Target:
    """The target in the coordinates of the guide.

    Raises:
        ValueError: If the posterior is one of another target.
    """
    if target.layout == posterior.layout:
        for own in (target, posterior.target):
            if own is not None and _same(own, target, posterior):
                return own
    raise ValueError(
        "the posterior is one of another target: its log densities are not those of this one; "
        "give the target that was fitted, or no posterior."
    )


def _same(own: Target, target: Target, posterior: Posterior) -> bool:
    """Are the densities behind the posterior those of `own`, and `own` the target itself?"""
    p = posterior
    if own.dim != p.z.shape[-1]:
        return False
    z, x, log_ratios = p.z[0, :_BLOCKS], p.x[0, :_BLOCKS], p.log_ratios[0, :_BLOCKS]
    with torch.no_grad():
        log_q = p.guide.log_prob(p.params, z)
    density = own.log_density(z)
    if not _close(density, log_ratios + log_q):
        return False
    if own is target:
        return True
    there = target.unconstrain_rows(p.layout.unflatten(x))
    mine = density - own.log_abs_det_jacobian(z)
    return _close(mine, target.log_density(there) - target.log_abs_det_jacobian(there))


def _close(a: Tensor, b: Tensor) -> bool:
    both = a.isfinite() & b.isfinite()
    a, b = a[both], b[both]
    return torch.allclose(a, b, rtol=_SAME, atol=_SAME)


def _check(method: Any, posterior_draws: Values | None, num_draws: int, confidence: float) -> None:
    if method is not None and not isinstance(method, (FromNUTS, Resampled)):
        raise TypeError(f"`method` must be FromNUTS(), Resampled() or None, got {method!r}.")
    if method is not None and posterior_draws is not None:
        raise ValueError("give either `method` or `posterior_draws`, not both.")
    if num_draws < 2 * _BLOCKS:
        raise ValueError(f"`num_draws` must be at least {2 * _BLOCKS}, got {num_draws}.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"`confidence` must lie strictly between 0 and 1, got {confidence}.")
