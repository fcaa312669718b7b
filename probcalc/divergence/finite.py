r"""KL(p‖q) in closed form of discrete families.

    Σ_k p_k ln(p_k/q_k) = Σ_k (p_k ln(p_k/q_k) − p_k + q_k)

whose terms are never negative; where p_k = 0 only q_k is left of them, with its derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.special import any_below
from probcalc.divergence.formula import Formula
from probcalc.divergence.remainders import mass_gap, ratio_gap

_LEAST_LOG = -700.0  # of a mass that is a number


def relative_mass(log_p: Float[Tensor, "*k"], log_q: Float[Tensor, "*k"]) -> Float[Tensor, "*k"]:
    """The values p ln(p/q) − p + q, from logarithms that may be −∞."""
    if not any_below(log_p, _LEAST_LOG):
        return mass_gap(log_p.exp(), log_q - log_p)
    p, q = log_p.exp(), log_q.exp()
    alive = p > 0
    ratio = torch.where(alive, log_q, 0.0) - torch.where(alive, log_p, 0.0)
    return torch.where(alive, mass_gap(torch.where(alive, p, 1.0), ratio), q)


def categorical(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """Along the first axis, from logarithms that need not be normalised."""
    logs = (torch.log_softmax(logits, dim=0) for logits in (logits_p, logits_q))
    return relative_mass(*logs).sum(dim=0)


def categorical_from_probs(p: Tensor, q: Tensor) -> Tensor:
    """Along the first axis, from shares that need not be normalised."""
    return mass_of_both(p / p.sum(dim=0), q / q.sum(dim=0)).sum(dim=0)


def bernoulli(log_p1: Tensor, log_p0: Tensor, log_q1: Tensor, log_q0: Tensor) -> Tensor:
    """Of log probabilities of one and of zero."""
    return relative_mass(log_p1, log_q1) + relative_mass(log_p0, log_q0)


def mass_of_both(p: Float[Tensor, "*k"], q: Float[Tensor, "*k"]) -> Float[Tensor, "*k"]:
    """The values p ln(p/q) − p + q of masses that are not negative."""
    if not any_below(p, torch.finfo(p.dtype).tiny):
        return p * ratio_gap(q / p)
    alive = p > 0
    safe = torch.where(alive, p, 1.0)
    return torch.where(alive, safe * ratio_gap(torch.where(alive, q, 1.0) / safe), q)


def bernoulli_from_probs(p: Tensor, q: Tensor) -> Tensor:
    """From probabilities of one."""
    return mass_of_both(p, q) + mass_of_both(1 - p, 1 - q)


def geometric_from_probs(p: Tensor, q: Tensor) -> Tensor:
    """As many Bernoulli trials as are expected."""
    return ratio_gap(q / p) + mass_of_both(1 - p, 1 - q) / p


def geometric(log_p1: Tensor, log_p0: Tensor, log_q1: Tensor, log_q0: Tensor) -> Tensor:
    """Of numbers of failures: as many Bernoulli trials as are expected."""
    return bernoulli(log_p1, log_p0, log_q1, log_q0) * (-log_p1).exp()


def negative_binomial(
    n1: Tensor, log_p1: Tensor, log_p0: Tensor, n2: Tensor, log_q1: Tensor, log_q0: Tensor
) -> Tensor:
    """Of one number of failures, n₁ = n₂."""
    del n2
    return bernoulli(log_p1, log_p0, log_q1, log_q0) * n1 * (-log_p0).exp()


def binomial(
    n1: Tensor, log_p1: Tensor, log_p0: Tensor, n2: Tensor, log_q1: Tensor, log_q0: Tensor
) -> Tensor:
    """Of one number of trials, n₁ = n₂."""
    del n2
    return torch.where(n1 == 0, 0.0, n1 * bernoulli(log_p1, log_p0, log_q1, log_q0))


def log_both(d: Any) -> tuple[Tensor, Tensor]:
    """Log probabilities of one and of zero, from the parameter that was given."""
    if "probs" in vars(d):
        p = d.probs.double()
        return p.log(), torch.log1p(-p)
    return _logs(d.logits.double())


def _logs(logits: Tensor) -> tuple[Tensor, Tensor]:
    softplus = torch.nn.functional.softplus
    return -softplus(-logits), -softplus(logits)


def _log_shares(d: Any) -> tuple[Tensor]:
    """Log probabilities of the categories, which need not be normalised."""
    return (d.probs.double().log() if "probs" in vars(d) else d.logits,)


def shared_by(d: Any) -> Any:
    """The categorical distribution behind a vector of counts."""
    return getattr(d, "_categorical", d)


def among(p: Any, q: Any) -> Formula:
    """Of categories: by probabilities where both are given so, else by their logarithms."""
    p, q = shared_by(p), shared_by(q)
    if "probs" in vars(p) and "probs" in vars(q):
        return Formula(categorical_from_probs, lambda d: (shared_by(d).probs,), events=1)
    return Formula(categorical, lambda d: _log_shares(shared_by(d)), events=1)


def _by_mass(from_probs: Callable[..., Tensor], from_logs: Callable[..., Tensor]) -> Any:
    """Of probabilities where both are given by them, of logits, or of logarithms."""
    probs = Formula(from_probs, lambda d: (d.probs,))
    logits = Formula(lambda *t: from_logs(*_logs(t[0]), *_logs(t[1])), lambda d: (d.logits,))
    mixed = Formula(from_logs, log_both)

    def chosen(p: Any, q: Any) -> Formula:
        given = ["probs" in vars(d) for d in (p, q)]
        return probs if all(given) else mixed if any(given) else logits

    return chosen


def _same_count(p: Any, q: Any) -> bool:
    return bool((p.total_count == q.total_count).all())


def _counted(d: Any) -> tuple[Tensor, ...]:
    return torch.as_tensor(d.total_count), *log_both(d)


FORMULAS = {
    (td.Bernoulli, td.Bernoulli): _by_mass(bernoulli_from_probs, bernoulli),
    (td.Categorical, td.Categorical): among,
    (td.OneHotCategorical, td.OneHotCategorical): among,
    (td.Poisson, td.Poisson): Formula(mass_of_both, lambda d: (d.rate,)),
    (td.Geometric, td.Geometric): _by_mass(geometric_from_probs, geometric),
    (td.Binomial, td.Binomial): Formula(binomial, _counted, applies=_same_count),
    (td.NegativeBinomial, td.NegativeBinomial): Formula(
        negative_binomial, _counted, applies=_same_count
    ),
}
