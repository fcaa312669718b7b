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
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc._random import child, draw_seed
from probcalc.inference.annealed import (
    AnnealedImportance,
    Bridge,
    Schedule,
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
    point_estimate,
)
from probcalc.inference.fit import fit
from probcalc.inference.importance import WeightedDraws, num_strata, weighted_draws
from probcalc.inference.moments import mean_of_terms
from probcalc.inference.nuts import FromNUTS
from probcalc.inference.parameters import Values
from probcalc.inference.particles import FromAnnealing
from probcalc.inference.posterior import Posterior
from probcalc.inference.posterior_draws import (
    NUM_BLOCKS,
    PosteriorDraws,
    Resampled,
    from_caller,
    from_ensemble,
    from_nuts,
    resampled,
)
from probcalc.inference.same_target import in_coordinates_of
from probcalc.inference.target import Target
from probcalc.result import Estimate
from probcalc.status import EstimateWarning, Status

_LOOSE = 0.1  # nats of error of plain importance sampling beyond which annealing is tried
_ROUNDING = 64  # units in the last place: a log density sums terms that cancel
_FIT, _FRESH, _OTHERS, _PATH, _SAMPLER, _ANNEALED, _PICKED = range(7)  # streams of the seed
_NO_EVIDENCE = Status.IMPROPER | Status.NON_FINITE


def log_evidence(
    target: Target,
    posterior: Any = None,
    *,
    method: Any = None,
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
        method: Where posterior draws for the upper end come from: `FromAnnealing()`, many short
            chains from annealed particles; `FromNUTS()`, few long ones from random starts, much
            slower; or `Resampled()` from the weighted draws of the guide, which
            gives an estimate of a bound and no bound. The upper end is as good as these draws:
            chains that have not come into a narrow or far part of the posterior put it too low,
            which their checks see often and not always. None: resampled where the posterior's
            weights can be trusted, else annealed.
        annealing: Settings of annealed importance sampling, which is then run; None: run where
            the guide's weights cannot be trusted or leave more than a tenth of a nat open, and
            with `FromAnnealing`.
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
        TypeError: If `method` is not one of those named, or `posterior` is no posterior.
    """
    _check(method, posterior_draws, num_draws, confidence)
    seed = draw_seed(generator)
    if target.dtype != torch.float64:
        target = target.to(None, torch.float64)
    if posterior is None:
        posterior = fit(target, confidence=confidence, generator=child(seed, _FIT))
    if not isinstance(posterior, Posterior):
        raise TypeError(
            f"`posterior` must come from `fit`, got {type(posterior).__name__}; a guide is fitted "
            "by `fit(target, guide=...)`."
        )
    if not getattr(posterior.guide, "has_density", True):
        name = type(posterior.guide).__name__
        raise ValueError(f"{name} has no density, so it bounds nothing: fit another guide.")
    target = in_coordinates_of(target, posterior)
    settings = annealing or AnnealedImportance()
    call = _Call(target, posterior, seed, confidence, num_draws, settings)
    has_path = annealing is not None or isinstance(method, FromAnnealing)
    is_annealed = has_path or _is_loose(posterior)
    bracket = _bracket(call, method, is_annealed, posterior_draws)
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

    annealing: AnnealedImportance

    def stream(self, number: int) -> torch.Generator:
        """One of the streams of the seed."""
        return child(self.seed, number, self.target.device)

    @cached_property
    def path(self) -> tuple[Bridge, Schedule]:
        """From the guide to the target, found once."""
        p = self.posterior
        bridge = Bridge.between(self.target, p.guide, p.params, p.z.flatten(0, 1))
        return bridge, find_schedule(bridge, self.annealing, self.stream(_PATH))


@dataclass(frozen=True, eq=False)
class _Annealed:
    """What annealing found: log weights from the guide, and bounds from both directions."""

    log_w: Float[Tensor, "r n"]
    lower: Bound
    upper: Bound | None
    note: str


def _bracket(
    call: _Call,
    method: FromAnnealing | FromNUTS | Resampled | None,
    is_annealed: bool,
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
    if is_annealed and not status:
        found = _anneal(call, draws)
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
    ends = [bounds[b.name] for b in (plain[1], *upper) if b is not None]
    if any(float(e.value + e.error) < float(low.value - low.error) for e in [high, *ends]):
        status |= Status.NOT_CONVERGED
        reasons = [*reasons, "the ends cross: the posterior draws miss a part of the posterior"]
    # as bounds they hold whatever a tail hides; as the ends of a distance they do not
    elbo = mean_of_terms(plain[0].terms, each)
    eubo = bounds[plain[1].name] if plain[1] else _nothing(each)
    return Bracket(
        lower=replace(low, status=int(status & _NO_EVIDENCE)),
        upper=replace(high, status=int(status)),
        estimate=point_estimate(log_w, call.confidence, rounding, status & _NO_EVIDENCE),
        bounds=bounds,
        symmetric_kl=replace(eubo - elbo, confidence=call.confidence),
        upper_is_bound=draws is not None and draws.are_exact,
        confidence=call.confidence,
        status=status,
        reasons=tuple(reasons),
        notes=tuple(notes),
        num_evals=_spent(call, draws, [*lower, *upper]),
        posterior=call.posterior,
    )


def _spent(call: _Call, draws: PosteriorDraws | None, bounds: list[Bound]) -> int:
    """Evaluations: of the bounds' own draws, of the posterior's, and of the path between."""
    found = vars(call).get("path")  # only where it was needed
    path = found[1].num_evals if found else 0
    return sum(b.num_evals for b in bounds) + (draws.num_evals if draws else 0) + path


def _fresh(call: _Call) -> WeightedDraws:
    """Draws of the guide that had no say in its choice."""
    p, pair = call.posterior, 2 * num_strata(call.posterior.guide)
    return weighted_draws(
        call.target,
        p.guide,
        p.params,
        num_replicates=NUM_BLOCKS,
        num_draws=pair * math.ceil(call.num_draws / (NUM_BLOCKS * pair)),
        generator=call.stream(_FRESH),
    )


def _others(call: _Call, num_blocks: int) -> Float[Tensor, "r n"]:
    """Log ratios of independent draws of the guide (those of a net would break the bound)."""
    p, k = call.posterior, num_strata(call.posterior.guide)
    n = k * math.ceil(call.num_draws / (num_blocks * k))
    stream = call.stream(_OTHERS)
    z, log_q = guide_draws(call.target, p.guide, p.params, num_blocks, n, stream)
    log_ratios = call.target.log_density(z) - log_q
    return torch.where(log_ratios.isnan(), -torch.inf, log_ratios)


def _posterior_draws(
    call: _Call, method: FromAnnealing | FromNUTS | Resampled | None, given: Values | None
) -> tuple[PosteriorDraws, list[str]]:
    """Whence the upper end comes, and why."""
    target, p = call.target, call.posterior
    if given is not None:
        return from_caller(target, p, given), []
    notes = []
    if method is None:
        trusted = not p.status & Status.UNRELIABLE_WEIGHTS
        method = Resampled() if trusted else FromAnnealing()
        why = "can be trusted" if trusted else "cannot be trusted"
        notes = [f"{type(method).__name__}() chosen: the weights of the posterior {why}"]
    if isinstance(method, FromNUTS):
        return from_nuts(target, p, method, call.stream(_SAMPLER)), notes
    if isinstance(method, FromAnnealing):
        bridge, schedule = call.path
        stream = call.stream(_SAMPLER)
        ensemble = method.run(bridge, schedule, call.annealing, NUM_BLOCKS, stream)
        return from_ensemble(target, p, ensemble), notes
    return resampled(p), [*notes, "the upper end is an estimate of a bound, from weighted draws"]


def _anneal(call: _Call, draws: PosteriorDraws | None) -> _Annealed:
    """Bounds by annealing from the guide, and backwards from posterior draws."""
    settings, stream = call.annealing, call.stream(_ANNEALED)
    bridge, schedule = call.path
    log_w, _ = forward(bridge, schedule, settings, NUM_BLOCKS, stream)
    steps, each = schedule.num_temperatures, schedule.gradients(settings)
    words = f"annealed importance sampling, {steps} temperatures, {log_w.shape[1]} particles"
    lower = log_mean_ratio(log_w, words, each * log_w.numel())
    upper = None
    if draws is not None:
        z = draws.picked(settings.num_particles, call.stream(_PICKED))
        back = reverse(bridge, schedule, settings, z, stream)
        words = f"reverse annealing, {steps} temperatures, {draws.source}"
        upper = log_mean_inverse(draws, back, words, each * back.numel())
    note = f"annealing: {steps} temperatures, {schedule.acceptance:.0%} of moves accepted"
    if not schedule.is_complete:
        note += "; some are farther apart than asked, so that the bounds are loose"
    return _Annealed(log_w, lower, upper, note)


def _is_loose(posterior: Posterior) -> bool:
    return not float(posterior.log_evidence.error) <= _LOOSE


def _of_target(posterior: Posterior, fresh: WeightedDraws) -> tuple[Status, list[str]]:
    """Flags under which there is no evidence to bracket."""
    if not bool(fresh.log_ratios.isfinite().any()):
        return Status.NON_FINITE, ["the log density is not finite at any draw of the guide"]
    status = posterior.status & _NO_EVIDENCE
    return status, list(posterior.reasons) if status else []


def _nothing(confidence: float) -> Estimate:
    """An upper end that says nothing."""
    value = torch.tensor(math.inf, dtype=torch.float64)
    return Estimate.exact(value, confidence=confidence, method="none: no posterior draws")


def _rounding(call: _Call) -> float:
    """Of a log ratio, whose two terms may cancel."""
    log_p = call.target.log_density(call.posterior.z[0, :NUM_BLOCKS]).abs()
    size = float(torch.where(log_p.isfinite(), log_p, 0.0).max())
    return _ROUNDING * torch.finfo(log_p.dtype).eps * (1 + size)


def _check(method: Any, posterior_draws: Values | None, num_draws: int, confidence: float) -> None:
    if method is not None and not isinstance(method, (FromAnnealing, FromNUTS, Resampled)):
        raise TypeError(
            f"`method` must be FromAnnealing(), FromNUTS(), Resampled() or None, got {method!r}."
        )
    if method is not None and posterior_draws is not None:
        raise ValueError("give either `method` or `posterior_draws`, not both.")
    if num_draws < 2 * NUM_BLOCKS:
        raise ValueError(f"`num_draws` must be at least {2 * NUM_BLOCKS}, got {num_draws}.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"`confidence` must lie strictly between 0 and 1, got {confidence}.")
