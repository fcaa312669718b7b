r"""Pairs whose divergence is infinite because one tail, or one end, is too heavy for the other.

    KL(p‖q) = ∞   where   E_p[−ln q(X)] = ∞

although q covers p: the cost −ln q(x) grows as a power or an exponential of x, or of 1/x at zero,
and p has no such moment. Growth that is logarithmic is left to quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.families import is_standard_logistic
from probcalc.distributions.rebuild import in_double
from probcalc.distributions.support import device_of, support_of


@dataclass(frozen=True, eq=False)
class Mass:
    """Which moments a variable has, on one side.

    Args:
        power: E|X|^t is finite for t below this number, and no other.
        rate: E e^(t|X|) is finite for t below this number, and no other.
        near: E|X|^−t is finite for t below this number, and no other.
    """

    power: Tensor | float = math.inf
    rate: Tensor | float = math.inf
    near: Tensor | float = math.inf


@dataclass(frozen=True, eq=False)
class Cost:
    """How −ln q grows on one side, faster than a logarithm; zeros where it does not.

    Args:
        power: As |x|^power.
        rate: As e^(rate |x|).
        near: As |x|^−near at zero.
    """

    power: Tensor | float = 0.0
    rate: Tensor | float = 0.0
    near: Tensor | float = 0.0


Sides = tuple[Any, Any]  # the left tail and the right one


def proved_infinite(p: td.Distribution, q: td.Distribution) -> Bool[Tensor, "*batch"] | None:
    """Where E_p[−ln q] is known to be infinite; None if nothing is known of the pair."""
    if p.event_shape:
        return None
    masses, costs = _masses(in_double(p)), _costs(in_double(q))
    if masses is None or costs is None:
        return None
    batch = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    found = torch.zeros(batch, dtype=torch.bool, device=support_of(p).lower.device)
    for mass, cost in zip(masses, costs, strict=True):
        for name in ("power", "rate", "near"):
            needed, has = (torch.as_tensor(getattr(t, name)) for t in (cost, mass))
            found = found | ((needed > 0) & (needed >= has)).to(found.device)
    return found


def _masses(d: td.Distribution) -> Sides | None:
    if isinstance(d, td.MixtureSameFamily):
        parts = _masses(d.component_distribution)
        alive = d.mixture_distribution.probs > 0
        return None if parts is None else tuple(_least(side, alive) for side in parts)
    logistic = _logistic_scale(d)
    if logistic is not None:
        return _both(Mass(rate=1 / logistic))
    known = next((_MASSES[f] for f in type(d).__mro__ if f in _MASSES), None)
    return None if known is None else known(d)


def _least(side: Any, alive: Tensor) -> Any:
    """Of components, along the last axis: the heaviest tail is the mixture's."""
    least = {
        name: torch.where(alive, torch.as_tensor(value, dtype=torch.float64), math.inf).amin(-1)
        for name, value in vars(side).items()
    }
    return replace(side, **least)


def _costs(d: td.Distribution) -> Sides | None:
    if isinstance(d, td.MixtureSameFamily):
        parts = _costs(d.component_distribution)
        alive = d.mixture_distribution.probs > 0
        return None if parts is None else tuple(_least(side, alive) for side in parts)
    if _logistic_scale(d) is not None:
        return _both(Cost(power=1.0))
    known = next((_COSTS[f] for f in type(d).__mro__ if f in _COSTS), None)
    return None if known is None else known(d)


def _logistic_scale(d: td.Distribution) -> Tensor | None:
    """Of torch's recipe for a logistic variable, moved and scaled; None of anything else."""
    if type(d) is not td.TransformedDistribution or not is_standard_logistic(d):
        return None
    scale = torch.ones(d.batch_shape, dtype=torch.float64, device=device_of(d))
    for transform in d.transforms[1:]:
        if not isinstance(transform, td.AffineTransform):
            return None
        scale = scale * torch.as_tensor(transform.scale).abs()
    return scale


def _both(side: Any) -> Sides:
    return side, side


def _right(side: Any) -> Sides:
    """Of a positive variable."""
    return type(side)(), side


_NO_RATE = 0.0  # tails heavier than every exponential
_MASSES: dict[type, Callable[[Any], Sides]] = {
    td.Normal: lambda d: _both(Mass()),
    td.Laplace: lambda d: _both(Mass(rate=1 / d.scale)),
    td.Gumbel: lambda d: (Mass(), Mass(rate=1 / d.scale)),
    td.StudentT: lambda d: _both(Mass(power=d.df, rate=_NO_RATE)),
    td.Cauchy: lambda d: _both(Mass(power=1.0, rate=_NO_RATE)),
    td.HalfCauchy: lambda d: _right(Mass(power=1.0, rate=_NO_RATE, near=1.0)),
    td.HalfNormal: lambda d: _right(Mass(near=1.0)),
    td.Exponential: lambda d: _right(Mass(rate=d.rate, near=1.0)),
    td.Gamma: lambda d: _right(Mass(rate=d.rate, near=d.concentration)),
    td.InverseGamma: lambda d: _right(Mass(power=d.concentration, rate=_NO_RATE)),
    td.LogNormal: lambda d: _right(Mass(rate=_NO_RATE)),
    td.Weibull: lambda d: _right(Mass(rate=_weibull_rate(d), near=d.concentration)),
    td.Pareto: lambda d: _right(Mass(power=d.alpha, rate=_NO_RATE)),
    td.FisherSnedecor: lambda d: _right(Mass(power=0.5 * d.df2, rate=_NO_RATE, near=0.5 * d.df1)),
    td.GeneralizedPareto: lambda d: (
        Mass(near=torch.where(d.loc < 0, 1.0, math.inf)),
        Mass(
            power=torch.where(d.concentration > 0, 1 / d.concentration, math.inf),
            rate=torch.where(d.concentration > 0, 0.0, math.inf),
            near=torch.where(d.loc <= 0, 1.0, math.inf),
        ),
    ),
    td.ContinuousBernoulli: lambda d: _right(Mass(near=1.0)),
    td.RelaxedBernoulli: lambda d: _right(Mass(near=d.temperature)),
    td.VonMises: lambda d: _both(Mass(near=1.0)),
    td.Beta: lambda d: _right(Mass(near=d.concentration1)),
    td.Kumaraswamy: lambda d: _right(Mass(near=d.concentration1)),
    td.Uniform: lambda d: (
        Mass(near=torch.where(d.low < 0, 1.0, math.inf)),
        Mass(near=torch.where((d.low <= 0) & (d.high > 0), 1.0, math.inf)),
    ),
}
_COSTS: dict[type, Callable[[Any], Sides]] = {
    td.Normal: lambda d: _both(Cost(power=2.0)),
    td.HalfNormal: lambda d: _both(Cost(power=2.0)),
    td.Laplace: lambda d: _both(Cost(power=1.0)),
    td.Gumbel: lambda d: (Cost(rate=1 / d.scale), Cost(power=1.0)),
    td.Exponential: lambda d: _right(Cost(power=1.0)),
    td.Gamma: lambda d: _right(Cost(power=1.0)),
    td.InverseGamma: lambda d: _right(Cost(near=1.0)),
    td.Weibull: lambda d: _right(Cost(power=d.concentration)),
}


def _weibull_rate(d: td.Weibull) -> Tensor:
    k = d.concentration
    return torch.where(k > 1, math.inf, torch.where(k < 1, 0.0, 1 / d.scale))
