r"""How well a model predicts rows that it has not seen: PSIS leave-one-out, and WAIC.

    elpd = Σ_i log p(y_i | y_{−i}),     p(y_i | y_{−i}) ≈ Σ_s W_is p(y_i | θ_s)

with W_is ∝ p(θ_s, y) / (q(θ_s) p(y_i | θ_s)), Pareto smoothed for each row: one weighing corrects
the guide and leaves the row out. Every row has its own k̂, and rows above the limit are named.
WAIC takes Σ_i [log E p(y_i|θ) − Var log p(y_i|θ)] instead, which has no such check.

Vehtari, Gelman & Gabry (2017), Practical Bayesian model evaluation using leave-one-out
cross-validation and WAIC; Magnusson, Andersen, Jonasson & Vehtari (2019), Bayesian leave-one-out
cross-validation for large data, section 2, for weights of a guide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probcalc._random import child
from probcalc._table import text_table
from probcalc.inference.importance import weighted_draws
from probcalc.inference.pointwise import num_rows, rows_at
from probcalc.inference.posterior import Posterior
from probcalc.inference.same_target import in_coordinates_of
from probcalc.inference.target import Target
from probcalc.integration.tails import khat_limit, smoothed_log_weights
from probcalc.result import Estimate, format_with_error, half_width
from probcalc.status import Status

_MOST = 2**24  # entries of draws × rows that are held at a time
_THINNING, _FRESH = 11, 12  # streams of the posterior's seed
_MORE = 8  # times the draws, where a row asks for them
_UNSTABLE = 0.4  # variance of a row's log-likelihood from which on WAIC is not to be trusted
_NAMED = 5  # rows that a reason names


@dataclass(frozen=True, eq=False, repr=False)
class PredictiveScore:
    """Expected log predictive density of new rows, in nats; higher is better.

    Two errors are to be told apart: `elpd.error` is that of the computation, which more draws
    make smaller; `std_error` is that of the data, which only more rows make smaller.

    Args:
        elpd: Sum over the rows.
        rows: Its terms.
        std_error: Of the sum, from the scatter of its terms.
        num_effective: Effective number of parameters, log score with the row less without it.
        khat: Shape of each row's weights; None for WAIC.
        status: Flags.
        reasons: In words.
        method: What was done.
    """

    elpd: Estimate
    rows: Float[Tensor, " rows"]
    std_error: float
    num_effective: float
    khat: Float[Tensor, " rows"] | None
    status: Status
    reasons: tuple[str, ...]
    method: str

    @property
    def ok(self) -> bool:
        """No flag stands."""
        return self.status == Status.OK

    def __repr__(self) -> str:
        lines = [
            f"{self.method} of {len(self.rows):,} rows: {self.status.words.upper()}",
            f"elpd                  {self.elpd._numbers()} (of the computation)",
            f"standard error        {self.std_error:.3g} (of the data)",
            f"effective parameters  {self.num_effective:.3g}",
        ]
        if self.khat is not None:
            lines.append(f"largest k-hat         {float(self.khat.max()):.2f}")
        return "\n".join([*lines, *self.reasons])


def loo(target: Target, posterior: Posterior, *, max_draws: int | None = None) -> PredictiveScore:
    """Leave-one-out by importance sampling from a posterior's weighted draws.

    Where a row asks for more draws than the posterior has, eight times as many are made of its
    guide.

    Args:
        target: With rows of data.
        posterior: Of that target, however good its guide: the weights correct it.
        max_draws: Most draws to use; default as many as draws × rows fit into memory.

    Returns:
        The score. It is flagged `UNRELIABLE_WEIGHTS`, and its bar is infinite, where a row's k̂ is
        above min(1 − 1/log₁₀S, 0.7): that row is too influential to be left out by weights.

    Raises:
        ValueError: If the target does not know its rows.
    """
    target = in_coordinates_of(target, posterior)
    z, log_ratios = _thinned(target, posterior, max_draws)
    left_out = _left_out(target, z, log_ratios)
    s = log_ratios.numel()
    room = (max_draws or _MOST) >= _MORE * s and _MORE * s * len(left_out.rows) <= _MOST
    if bool(left_out.bad.any()) and room:
        draws = weighted_draws(
            target,
            posterior.guide,
            posterior.params,
            num_replicates=len(z),
            num_draws=_MORE * z.shape[1],
            generator=child(posterior.seed, _FRESH, target.device),
        )
        left_out = _left_out(target, draws.z, draws.log_ratios)
    reasons = ()
    if bool(left_out.bad.any()):
        reasons = (
            f"{_named(left_out.bad)} k-hat above {left_out.limit:.2f}: too influential to be left "
            "out by weights; fit without them to know",
        )
    flags = Status.UNRELIABLE_WEIGHTS if reasons else Status.OK
    return _score("PSIS-LOO", left_out, posterior, flags, reasons)


def waic(target: Target, posterior: Posterior, *, max_draws: int | None = None) -> PredictiveScore:
    """The widely applicable information criterion, on the scale of elpd (not times −2).

    Args:
        target: With rows of data.
        posterior: Of that target.
        max_draws: See `loo`.

    Returns:
        The score, flagged where a row's log-likelihood varies by more than 0.4: use `loo` there.

    Raises:
        ValueError: If the target does not know its rows.
    """
    target = in_coordinates_of(target, posterior)
    z, log_ratios = _thinned(target, posterior, max_draws)
    r, n = log_ratios.shape
    log_p = rows_at(target, z.flatten(0, 1))
    log_w = smoothed_log_weights(log_ratios.flatten())[0].log_softmax(dim=-1)
    w = log_w.exp()[:, None]  # (s, 1)
    seen = (log_w[:, None] + log_p).logsumexp(dim=0)
    centred = log_p - (w * log_p).sum(dim=0)
    variance = (w * centred.square()).sum(dim=0)
    influence = w * ((log_p - seen).exp() - 1 - (centred.square() - variance))
    parts = influence.view(r, n, -1).sum(dim=(1, 2))
    terms = _Terms(seen - variance, variance, parts, None, variance <= _UNSTABLE, r * n)
    reasons = ()
    if bool(terms.bad.any()):
        reasons = (
            f"{_named(terms.bad)} a log-likelihood whose variance is above {_UNSTABLE}: use `loo`",
        )
    flags = Status.UNRELIABLE_WEIGHTS if reasons else Status.OK
    return _score("WAIC", terms, posterior, flags, reasons)


@dataclass(frozen=True, eq=False, repr=False)
class ScoreComparison:
    """Models in the order of their scores, the best first.

    Args:
        scores: By name, ordered.
        difference: Score less the best one's, by name.
        std_error: Of the difference, from the scatter of its terms over the rows.
    """

    scores: dict[str, PredictiveScore]
    difference: dict[str, Estimate]
    std_error: dict[str, float]

    @property
    def ok(self) -> bool:
        """No score is flagged."""
        return all(score.ok for score in self.scores.values())

    def __repr__(self) -> str:
        rows = [
            [
                name,
                format_with_error(float(score.elpd.value), float(score.elpd.error)),
                f"{float(self.difference[name].value):.3g}",
                f"{self.std_error[name]:.3g}",
                f"{score.num_effective:.3g}",
                "" if score.ok else score.status.words,
            ]
            for name, score in self.scores.items()
        ]
        return text_table(["", "elpd", "difference", "its se", "parameters", ""], rows)


def compare_scores(scores: dict[str, PredictiveScore]) -> ScoreComparison:
    """Order models by how they predict the same rows.

    A difference below about four nats, or below two of its standard errors, says little.

    Args:
        scores: Results of `loo`, or of `waic`, by the model's name.

    Raises:
        ValueError: For fewer than two scores, scores of different rows or by different methods.
    """
    if len(scores) < 2:
        raise ValueError(f"a comparison needs at least 2 scores, got {len(scores)}.")
    kinds = {(s.method, len(s.rows)) for s in scores.values()}
    if len(kinds) != 1:
        raise ValueError(
            f"scores must be by one method and of the same rows, got {sorted(kinds)}."
        )
    order = sorted(scores, key=lambda name: -float(scores[name].elpd.value))
    best = scores[order[0]]
    difference, std_error = {}, {}
    for name in order:
        gap = scores[name].rows - best.rows
        own = scores[name].elpd - best.elpd
        zero = Estimate.exact(torch.zeros_like(own.value), method=best.method)
        difference[name] = zero if name == order[0] else own
        std_error[name] = _spread(gap)
    return ScoreComparison({name: scores[name] for name in order}, difference, std_error)


@dataclass(frozen=True, eq=False)
class _Terms:
    """What a score sums.

    Args:
        rows: Score by row.
        costs: Log score with the row, less without it.
        parts: The replicates' contributions to the error of the sum.
        khat: Of each row's weights.
        good: Rows whose score can be trusted.
        num_draws: Behind it.
    """

    rows: Float[Tensor, " rows"]
    costs: Float[Tensor, " rows"]
    parts: Float[Tensor, " r"]
    khat: Float[Tensor, " rows"] | None
    good: Bool[Tensor, " rows"]
    num_draws: int

    @property
    def bad(self) -> Bool[Tensor, " rows"]:
        return ~self.good

    @property
    def limit(self) -> float:
        return khat_limit(self.num_draws)


def _left_out(
    target: Target, z: Float[Tensor, "r n d"], log_ratios: Float[Tensor, "r n"]
) -> _Terms:
    r, n = log_ratios.shape
    log_p = rows_at(target, z.flatten(0, 1)).mT.contiguous()  # (rows, s)
    flat = log_ratios.flatten()
    log_w, khat = smoothed_log_weights(flat - log_p)
    log_w = log_w.log_softmax(dim=-1)
    rows = (log_w + log_p).logsumexp(dim=-1)
    influence = log_w.exp() * torch.expm1(log_p - rows[:, None])  # W (p / Σ W p − 1)
    parts = influence.view(-1, r, n).sum(dim=(0, 2))
    whole = smoothed_log_weights(flat)[0].log_softmax(dim=-1)
    seen = (whole + log_p).logsumexp(dim=-1)
    return _Terms(rows, seen - rows, parts, khat, khat <= khat_limit(r * n), r * n)


def _score(
    method: str,
    terms: _Terms,
    posterior: Posterior,
    flags: Status,
    reasons: tuple[str, ...],
) -> PredictiveScore:
    """Gather a score, its bar from the replicates."""
    rows, r = terms.rows, len(terms.parts)
    status = posterior.status | flags
    std_error = (r * terms.parts).std() / r**0.5
    error = half_width(std_error, r - 1, posterior.confidence)
    error = error + rows.abs().sum() * torch.finfo(rows.dtype).eps * len(rows) ** 0.5
    if not bool(rows.isfinite().all()):
        status |= Status.NON_FINITE
    if status:
        error = torch.full_like(error, math.inf)
    elpd = Estimate(
        rows.sum(),
        error,
        std_error,
        float(r - 1),
        posterior.confidence,
        int(status),
        terms.num_draws,
        method,
    )
    if not posterior.ok:
        reasons = (*reasons, f"the posterior is flagged: {'; '.join(posterior.reasons)}")
    costs = float(terms.costs.sum())
    return PredictiveScore(elpd, rows, _spread(rows), costs, terms.khat, status, reasons, method)


def _thinned(
    target: Target, posterior: Posterior, max_draws: int | None
) -> tuple[Float[Tensor, "r n d"], Float[Tensor, "r n"]]:
    """Some of each replicate's draws, as many as memory allows."""
    r, n, _ = posterior.z.shape
    most = min(max_draws or r * n, max(_MOST // num_rows(target), 64 * r))
    if r * n <= most:
        return posterior.z, posterior.log_ratios
    stream = child(posterior.seed, _THINNING)
    chosen = torch.randperm(n, generator=stream)[: max(2, most // r)].to(posterior.z.device)
    return posterior.z[:, chosen], posterior.log_ratios[:, chosen]


def _spread(rows: Tensor) -> float:
    return float(len(rows) ** 0.5 * rows.std()) if len(rows) > 1 else math.inf


def _named(bad: Tensor) -> str:
    where = bad.nonzero()[:, 0].tolist()
    rest = f" and {len(where) - _NAMED} more" if len(where) > _NAMED else ""
    listed = ", ".join(map(str, where[:_NAMED])) + rest
    return f"row {listed} has" if len(where) == 1 else f"rows {listed} have"
