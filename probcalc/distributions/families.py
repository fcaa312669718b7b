"""Which law belongs to which of torch's families on the line."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch import distributions as td

from probcalc.distributions import counts, elementary
from probcalc.distributions.elementary import Law
from probcalc.distributions.incomplete import beta_tail, gamma_tail, student_tail
from probcalc.distributions.inverses import beta_level, gamma_level, student_level


@runtime_checkable
class HasTails(Protocol):
    """A distribution that knows its own tails and their inverses, with derivatives."""

    def tail(self, x: Tensor, upper: bool) -> Tensor:
        """P(X > x) or P(X ≤ x)."""

    def level(self, p: Tensor, upper: bool) -> Tensor:
        """Smallest x with at least that probability below it, or at most that above it."""


def law_of(dist: td.Distribution) -> Law | None:
    """Of a continuous family, the nearest one among its bases."""
    return next((LAWS[f] for f in type(dist).__mro__ if f in LAWS), None)


def counted(dist: td.Distribution) -> Any:
    """The tail of a family of counts, ``tail(dist, k, upper)``."""
    return next((COUNTS[f] for f in type(dist).__mro__ if f in COUNTS), None)


def is_point_mass(dist: td.Distribution) -> bool:
    """Whether all mass is at `dist.v`, as in Pyro's `Delta`."""
    return hasattr(dist, "v") and hasattr(dist, "log_density")


def known_families() -> str:
    """Their names, for messages."""
    return ", ".join(sorted(f.__name__ for f in (*LAWS, *COUNTS)))


def _beta_law_tail(d: td.Beta, x: Tensor, upper: bool) -> Tensor:
    return beta_tail(d.concentration1.double(), d.concentration0.double(), x, 1 - x, upper)


def _beta_law_level(d: td.Beta, p: Tensor, upper: bool) -> Tensor:
    return beta_level(d.concentration1.double(), d.concentration0.double(), p, upper)[0]


def _inverse_gamma_tail(d: Any, x: Tensor, upper: bool) -> Tensor:
    return gamma_tail(d.concentration.double(), d.rate.double() / x, not upper)


def _inverse_gamma_level(d: Any, p: Tensor, upper: bool) -> Tensor:
    return d.rate.double() / gamma_level(d.concentration.double(), p, not upper)


def _f_tail(d: Any, x: Tensor, upper: bool) -> Tensor:
    a, b = d.df1.double(), d.df2.double()
    odds = a / b * x
    return beta_tail(0.5 * a, 0.5 * b, 1 / (1 + 1 / odds), 1 / (1 + odds), upper)


def _f_level(d: Any, p: Tensor, upper: bool) -> Tensor:
    a, b = d.df1.double(), d.df2.double()
    x, y = beta_level(0.5 * a, 0.5 * b, p, upper)
    return b / a * x / y


def _student_tail(d: td.StudentT, x: Tensor, upper: bool) -> Tensor:
    z = (x - d.loc.double()) / d.scale.double()
    return student_tail(d.df.double(), z if upper else -z)


def _student_level(d: td.StudentT, p: Tensor, upper: bool) -> Tensor:
    t = student_level(d.df.double(), p)
    return d.loc.double() + d.scale.double() * (t if upper else -t)


LAWS: dict[type[td.Distribution], Law] = {
    td.Normal: elementary.NORMAL,
    td.LogNormal: elementary.LOG_NORMAL,
    td.HalfNormal: elementary.HALF_NORMAL,
    td.Gamma: Law(
        lambda d, x, upper: gamma_tail(d.concentration.double(), d.rate.double() * x, upper),
        lambda d, p, upper: gamma_level(d.concentration.double(), p, upper) / d.rate.double(),
    ),
    td.InverseGamma: Law(_inverse_gamma_tail, _inverse_gamma_level),
    td.Exponential: elementary.EXPONENTIAL,
    td.Weibull: elementary.WEIBULL,
    td.Beta: Law(_beta_law_tail, _beta_law_level),
    td.StudentT: Law(_student_tail, _student_level),
    td.FisherSnedecor: Law(_f_tail, _f_level),
    td.Kumaraswamy: elementary.KUMARASWAMY,
    td.Cauchy: elementary.CAUCHY,
    td.HalfCauchy: elementary.HALF_CAUCHY,
    td.Laplace: elementary.LAPLACE,
    td.Gumbel: elementary.GUMBEL,
    td.Uniform: elementary.UNIFORM,
    td.Pareto: elementary.PARETO,
    td.GeneralizedPareto: elementary.GENERALIZED_PARETO,
}
COUNTS: dict[type[td.Distribution], Any] = {
    td.Poisson: counts.poisson_tail,
    td.Binomial: counts.binomial_tail,
    td.NegativeBinomial: counts.negative_binomial_tail,
    td.Geometric: counts.geometric_tail,
    td.Bernoulli: counts.bernoulli_tail,
    td.Categorical: counts.categorical_tail,
}


def is_standard_logistic(dist: td.TransformedDistribution) -> bool:
    """Whether it begins as torch's recipe for a logistic variable: logit of a uniform one.

    The uniform variable near one has not the digits of the right tail.
    """
    base, first = dist.base_dist, dist.transforms[0]
    if not isinstance(base, td.Uniform) or not isinstance(first.inv, td.SigmoidTransform):
        return False
    return bool(torch.all((base.low == 0) & (base.high == 1)))
