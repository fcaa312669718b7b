r"""The ELBO of discrete latents, and several routes to its gradient.

    L(φ) = E_{q_φ}[log p(x, k) − log q_φ(k)]

Exactly, by the sum over all values; by the score function, with the other draws as baseline; by
the importance-weighted bound with VIMCO's signals; or through relaxed draws, which is biased: the
gradient is that of another objective, near the right one for low temperatures only. Mnih & Gregor
(2014), Neural variational inference and learning in belief networks; Mnih & Rezende (2016); Jang,
Gu & Poole (2017), Categorical reparameterization with Gumbel-softmax.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import Distribution

from probcalc._random import draw_seed, forked
from probcalc.inference.objectives import VIMCO, grouped, vimco_terms
from probcalc.integration.gradient_estimators import ScoreFunction, surrogate
from probcalc.result import Estimate

LogJoint = Callable[[dict[str, Tensor]], Tensor]
GuideFn = Callable[[dict[str, Tensor]], dict[str, Distribution]]

_MOST = 2**20  # values that are summed


@dataclass(frozen=True)
class Enumerate:
    """The sum over all values of all latents: exact, and of exponential cost in their number."""


@dataclass(frozen=True)
class RelaxedDraws:
    """Draws between the values, differentiable and biased.

    Args:
        temperature: The lower, the less bias and the more noise; in training it may be a
            function of the step.
    """

    temperature: float | Callable[[int], float] = 0.5

    def __post_init__(self) -> None:
        """Check the temperature.

        Raises:
            ValueError: If it is not positive.
        """
        if not callable(self.temperature) and not 0 < self.temperature < math.inf:
            raise ValueError(f"`temperature` must be positive, got {self.temperature}.")


def discrete_elbo(
    log_joint: LogJoint,
    guide_fn: GuideFn,
    params: dict[str, Tensor],
    *,
    gradient: Enumerate | ScoreFunction | VIMCO | RelaxedDraws | None = None,
    num_draws: int = 128,
    confidence: float = 0.99,
    generator: torch.Generator | None = None,
) -> Estimate:
    """ELBO of a guide with discrete latents, differentiable in its parameters.

    Args:
        log_joint: ``log_joint(draws)``, a dict of tensors with the draws along the first axis,
            returns one value a draw.
        guide_fn: From parameters to independent distributions by name.
        params: Of the guide; what requires a gradient gets one.
        gradient: `Enumerate()`; `ScoreFunction()`; `VIMCO(k)`, whose value is the
            importance-weighted bound of k draws; or `RelaxedDraws(t)`, whose value and gradient
            are biased, for `Bernoulli` and `OneHotCategorical` and functions that take numbers
            between zero and one. None: the sum where it has at most 2¹² terms, else the score
            function.
        num_draws: Of the random routes.
        confidence: Of the error bar.
        generator: Source of randomness; one seed is drawn from it.

    Returns:
        The estimate; the error bar is that of the value. For relaxed draws it is the bar around
        the relaxed objective and `diagnostics["biased"]` is True.

    Raises:
        ValueError: If a route does not fit the distributions, there are too many values or too
            few draws.
    """
    q = guide_fn(params)
    if gradient is None:
        gradient = Enumerate() if _num_values(q) <= 2**12 else ScoreFunction()
    if isinstance(gradient, Enumerate):
        return _enumerated(log_joint, q)
    if isinstance(gradient, VIMCO):
        num_draws = gradient.num_weights * math.ceil(num_draws / gradient.num_weights)
    if num_draws < 2:
        raise ValueError(f"`num_draws` must be at least 2, got {num_draws}.")
    with forked(draw_seed(generator), _device(q)):
        if isinstance(gradient, RelaxedDraws):
            if callable(gradient.temperature):
                raise ValueError("`temperature` is a function of the step: give a number here.")
            terms, method = _relaxed(log_joint, q, gradient.temperature, num_draws)
        else:
            draws = {name: d.sample((num_draws,)).detach() for name, d in q.items()}
            terms, method = _scored(log_joint, q, draws, gradient)
    bar = Estimate.from_replicates(
        terms, confidence=confidence, num_evals=num_draws, method=method
    )
    bar.diagnostics["biased"] = isinstance(gradient, RelaxedDraws)
    return bar


def _enumerated(log_joint: LogJoint, q: dict[str, Distribution]) -> Estimate:
    draws = _all_values(q)
    log_q = _log_prob(q, draws)
    log_p = log_joint(draws)
    inside = log_q > -torch.inf
    gain = torch.where(inside, log_p - torch.where(inside, log_q, 0.0), 0.0)
    value = (log_q.exp() * gain).sum()
    rounding = 4 * torch.finfo(value.dtype).eps * (log_q.exp() * gain).detach().abs().sum()
    return Estimate(value, rounding, num_evals=len(log_q), method="ELBO, enumeration")


def _scored(
    log_joint: LogJoint,
    q: dict[str, Distribution],
    draws: dict[str, Tensor],
    gradient: ScoreFunction | VIMCO,
) -> tuple[Tensor, str]:
    log_q, log_p = _log_prob(q, draws), log_joint(draws)
    if isinstance(gradient, VIMCO):
        k = gradient.num_weights
        groups = [grouped(t, k) for t in (log_p, log_q)]
        return vimco_terms(*groups), f"importance-weighted bound of {k}, VIMCO"
    signal = log_p - log_q
    path = log_p if log_p.requires_grad else None  # of the model's own parameters
    if path is not None:
        path = path - log_q.detach()
    terms = surrogate(log_q, signal, path, baseline=gradient.baseline)
    return terms, "ELBO, score function"


def _relaxed(
    log_joint: LogJoint, q: dict[str, Distribution], temperature: float, num: int
) -> tuple[Tensor, str]:
    """Terms at relaxed draws, with the discrete log probability extended linearly."""
    draws, log_q = {}, 0.0
    for name, dist in q.items():
        base = dist.base_dist if isinstance(dist, td.Independent) else dist
        if isinstance(base, td.Bernoulli):
            x = td.RelaxedBernoulli(_as(base.logits, temperature), logits=base.logits).rsample(
                (num,)
            )
            one, zero = (torch.nn.functional.logsigmoid(s * base.logits) for s in (1, -1))
            log = x * one + (1 - x) * zero
        elif isinstance(base, td.OneHotCategorical):
            x = td.RelaxedOneHotCategorical(
                _as(base.logits, temperature), logits=base.logits
            ).rsample((num,))
            log = (x * base.logits.log_softmax(dim=-1)).sum(dim=-1)
        else:
            raise ValueError(
                f"{name!r} is {type(base).__name__}, which is not relaxed: use Bernoulli or "
                "OneHotCategorical, or another `gradient`."
            )
        draws[name], log_q = x, log_q + log.reshape(num, -1).sum(dim=-1)
    return log_joint(draws) - log_q, f"relaxed ELBO (biased), temperature {temperature:g}"


def _log_prob(q: dict[str, Distribution], draws: dict[str, Tensor]) -> Tensor:
    each = (d.log_prob(draws[name]) for name, d in q.items())
    return sum(t.reshape(len(t), -1).sum(dim=-1) for t in each)


def _num_values(q: dict[str, Distribution]) -> float:
    total = 1.0
    for dist in q.values():
        base = dist.base_dist if isinstance(dist, td.Independent) else dist
        if not base.has_enumerate_support:
            return math.inf
        count = len(base.enumerate_support(expand=False))
        total *= float(count) ** math.prod(base.batch_shape)
    return total


def _all_values(q: dict[str, Distribution]) -> dict[str, Tensor]:
    """Every joint value, along the first axis.

    Raises:
        ValueError: If there are too many, or infinitely many.
    """
    total = _num_values(q)
    if total > _MOST:
        raise ValueError(
            f"the latents have {total:.3g} joint values, more than the {_MOST:,} that are summed; "
            "use `ScoreFunction()`."
        )
    sizes, pieces = [], []
    for name, dist in q.items():
        base = dist.base_dist if isinstance(dist, td.Independent) else dist
        values = base.enumerate_support(expand=False)
        values = values.reshape(len(values), *base.event_shape)
        n = math.prod(base.batch_shape)
        pieces.append((name, dist, base, values, slice(len(sizes), len(sizes) + n)))
        sizes += [len(values)] * n
    ranges = [torch.arange(s, device=_device(q)) for s in sizes]
    grid = torch.cartesian_prod(*ranges).reshape(-1, len(sizes))
    return {
        name: values[grid[:, columns]].reshape(-1, *base.batch_shape, *base.event_shape)
        for name, _, base, values, columns in pieces
    }


def _device(q: dict[str, Distribution]) -> torch.device:
    first = next(iter(q.values()))
    base: Any = first.base_dist if isinstance(first, td.Independent) else first
    return next(t for t in vars(base).values() if torch.is_tensor(t)).device


def _as(like: Tensor, value: float) -> Tensor:
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)
