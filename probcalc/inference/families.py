"""Distribution families as likelihoods: their parameters, where to start, what has a formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints

from probcalc.distributions.cdf import cdf
from probcalc.distributions.log_density import log_density
from probcalc.inference.parameters import Parameters, Values

Family = Callable[..., td.Distribution]

# of parameters that say the same, the one that is estimated
_DOUBLES = (
    ("probs", "logits"),
    ("scale_tril", "covariance_matrix", "precision_matrix"),
)
_MOVING = (td.Uniform, td.Pareto)  # the support of which depends on the parameters
_SPREAD = (td.FisherSnedecor,)  # which cannot shrink to any point that it may take
_FEW_DEGREES = 5.0  # of freedom, where a Student t is begun
_EULER = 0.5772156649015329


def parameters_of(
    family: Family, x: Tensor, fixed: Values, init: Values | None, event_dim: int
) -> Parameters:
    """The parameters that are not fixed, with shapes for draws such as the rows of `x`.

    Raises:
        TypeError: If the family has no parameters by name.
        ValueError: If its support moves with the parameters, or a fixed one is none of them.
    """
    if isinstance(family, type) and issubclass(family, _MOVING):
        raise ValueError(
            f"the support of {family.__name__} depends on its parameters: its maximum lies on an "
            "edge, where no standard error is valid."
        )
    supports = getattr(family, "arg_constraints", None)
    if not isinstance(supports, dict) or not supports:
        raise TypeError(
            f"`{getattr(family, '__name__', family)}` is no distribution family: give a class "
            "such as torch.distributions.Gamma, or a `Target` with a log-likelihood."
        )
    unknown = sorted(set(fixed) - set(supports))
    if unknown:
        raise ValueError(f"`fixed` names {unknown}; {family.__name__} has {sorted(supports)}.")
    names = [name for name in supports if name not in fixed]
    for same in _DOUBLES:
        given = next((n for n in same if n in (init or {})), None)
        present = [n for n in same if n in names]
        if any(n in fixed for n in same):
            names = [n for n in names if n not in present]
        elif len(present) > 1:
            kept = given or present[0]
            names = [n for n in names if n == kept or n not in present]
    shapes = {
        n: tuple(init[n].shape) if init and n in init else _shape(supports[n], x, event_dim)
        for n in names
    }
    return Parameters.of(shapes, {n: supports[n] for n in names})


def _shape(support: constraints.Constraint, x: Tensor, event_dim: int) -> tuple[int, ...]:
    if support.event_dim == 0:
        return ()
    size = x.shape[-1] if event_dim else int(x.max()) + 1  # of labels, the number of classes
    return (size,) * support.event_dim


def rows_of(family: Family, fixed: Values) -> Callable[[Values, Any], Tensor]:
    """Log-likelihoods of the rows of one data set, censored and truncated where they are."""

    def rows(values: Values, data: dict[str, Tensor]) -> Tensor:
        x = data["x"]
        dist = family(**values, **fixed, validate_args=False)
        out = log_density(dist, x)
        if "censored" in data:
            side = data["censored"]
            out = torch.where(side > 0, _log(cdf(dist, x, upper=True)), out)
            out = torch.where(side < 0, _log(cdf(dist, x)), out)
        if "lower" in data or "upper" in data:
            out = out - _log_mass(dist, data.get("lower"), data.get("upper"))
        return out

    return rows


def _log_mass(dist: td.Distribution, lower: Tensor | None, upper: Tensor | None) -> Tensor:
    """Log of P(lower ≤ X ≤ upper), from the tail that loses fewer digits."""
    if lower is not None and dist.support.is_discrete:
        lower = lower - 1
    if lower is None:
        return _log(cdf(dist, upper))
    if upper is None:
        return _log(cdf(dist, lower, upper=True))
    below, above = cdf(dist, lower), cdf(dist, lower, upper=True)
    return _log(
        torch.where(below > 0.5, above - cdf(dist, upper, upper=True), cdf(dist, upper) - below)
    )


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=torch.finfo(p.dtype).tiny).log()


def start_of(
    family: Family, parameters: Parameters, x: Tensor, w: Tensor, fixed: Values
) -> Values:
    """Values near the maximum of batches of data sets ``(b, n, *event)``, from their moments."""
    known: Values = {}
    if family in _STARTS:
        known = _STARTS[family](x, w)
    values: Values = {}
    for name, shape in parameters.layout.shapes.items():
        support = parameters.supports[name]
        value = known.get(name)
        if value is None:
            value = _plain_start(name, support, shape, x, w)
        values[name] = _inside(value, support)
    return values


def concentrated(
    family: Family, parameters: Parameters, support: constraints.Constraint, x: Tensor
) -> Tensor:
    """Data sets of one value only, where a density of two parameters has no largest height."""
    if support.is_discrete or parameters.free.size < 2 or family in _SPREAD:
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    return (x == x[:, :1]).flatten(1).all(dim=1)


def closed_form(family: Family, x: Tensor, w: Tensor) -> Values | None:
    """The maximum, where there is a formula for it."""
    return _CLOSED[family](x, w) if family in _CLOSED else None


def _inside(value: Tensor, support: constraints.Constraint) -> Tensor:
    """Away from the edges of numbers."""
    if support is constraints.unit_interval or isinstance(support, constraints.interval):
        return value.clamp(support.lower_bound + 1e-3, support.upper_bound - 1e-3)
    return value


def _plain_start(
    name: str, support: constraints.Constraint, shape: tuple[int, ...], x: Tensor, w: Tensor
) -> Tensor:
    b = x.shape[0]
    if support is constraints.real and not shape:
        return _quantile(x, 0.5)
    if support in {constraints.positive, constraints.nonnegative} and not shape:
        spread = _quantile(x, 0.75) - _quantile(x, 0.25)
        wide = torch.where(spread > 0, spread / 1.349, 1.0)
        return wide if "scale" in name or "df" not in name else torch.full_like(wide, 5.0)
    map_ = td.biject_to(support)
    free = torch.zeros(b, *map_.inverse_shape(torch.Size(shape)), dtype=x.dtype, device=x.device)
    return map_(free)


def _quantile(x: Tensor, q: float) -> Tensor:
    k = min(int(q * x.shape[1]), x.shape[1] - 1)
    return x.sort(dim=1).values[:, k]


def _moments(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    total = w.sum(dim=1)
    mean = (w * x).sum(dim=1) / total
    return mean, (w * (x - mean[:, None]).square()).sum(dim=1) / total


def _gamma(x: Tensor, w: Tensor) -> Values:
    """Minka (2002), Estimating a gamma distribution: half over the gap of the two logarithms."""
    mean, _ = _moments(x, w)
    gap = (mean.log() - _moments(x.log(), w)[0]).clamp(min=1e-12)
    shape = (3 - gap + ((gap - 3).square() + 24 * gap).sqrt()) / (12 * gap)
    return {"concentration": shape, "rate": shape / mean}


def _inverse_gamma(x: Tensor, w: Tensor) -> Values:
    found = _gamma(1 / x, w)
    return {"concentration": found["concentration"], "rate": found["rate"]}


def _weibull(x: Tensor, w: Tensor) -> Values:
    """The logarithm is a Gumbel minimum: its mean and variance."""
    mean, variance = _moments(x.log(), w)
    k = math.pi / (6 * variance.clamp(min=1e-24)).sqrt()
    return {"concentration": k, "scale": (mean + _EULER / k).exp()}


def _negative_binomial(x: Tensor, w: Tensor) -> Values:
    mean, variance = _moments(x, w)
    r = mean.square() / (variance - mean).clamp(min=0.05 * mean.clamp(min=1e-6))
    p = (mean / (mean + r)).clamp(1e-6, 1 - 1e-6)
    return {"total_count": r.clamp(min=1e-3), "probs": p, "logits": p.logit()}


def _student(x: Tensor, w: Tensor) -> Values:
    spread = (_quantile(x, 0.75) - _quantile(x, 0.25)) / 1.45
    scale = torch.where(spread > 0, spread, _moments(x, w)[1].sqrt().clamp(min=1e-300))
    return {
        "df": torch.full_like(scale, _FEW_DEGREES),
        "loc": _quantile(x, 0.5),
        "scale": scale,
    }


def _beta(x: Tensor, w: Tensor) -> Values:
    mean, variance = _moments(x, w)
    size = (mean * (1 - mean) / variance.clamp(min=1e-12) - 1).clamp(min=0.1)
    return {"concentration1": mean * size, "concentration0": (1 - mean) * size}


def _gumbel(x: Tensor, w: Tensor) -> Values:
    mean, variance = _moments(x, w)
    scale = (6 * variance).sqrt() / math.pi
    return {"loc": mean - _EULER * scale, "scale": scale}


def _cauchy(x: Tensor, w: Tensor) -> Values:
    return {
        "loc": _quantile(x, 0.5),
        "scale": ((_quantile(x, 0.75) - _quantile(x, 0.25)) / 2).clamp(min=1e-12),
    }


def _normal(x: Tensor, w: Tensor) -> Values:
    mean, variance = _moments(x, w)
    return {"loc": mean, "scale": variance.sqrt()}


def _vector_normal(x: Tensor, w: Tensor) -> Values:
    share = w / w.sum(dim=1, keepdim=True)
    mean = torch.einsum("bn,bnk->bk", share, x)
    away = x - mean[:, None]
    covariance = torch.einsum("bn,bnk,bnl->bkl", share, away, away)
    factor, info = torch.linalg.cholesky_ex(covariance)
    # without full rank there is no maximum: a factor with an edge says so
    return {"loc": mean, "scale_tril": torch.where((info == 0)[:, None, None], factor, 0.0)}


def _categorical(x: Tensor, w: Tensor) -> Values:
    count = torch.nn.functional.one_hot(x.long()).to(w)
    return {"probs": (w[..., None] * count).sum(dim=1) / w.sum(dim=1)[:, None]}


_STARTS: dict[Any, Callable[[Tensor, Tensor], Values]] = {
    td.Gamma: _gamma,
    td.InverseGamma: _inverse_gamma,
    td.Weibull: _weibull,
    td.NegativeBinomial: _negative_binomial,
    td.StudentT: _student,
    td.Beta: _beta,
    td.Gumbel: _gumbel,
    td.Cauchy: _cauchy,
    td.Normal: _normal,
    td.LogNormal: lambda x, w: _normal(x.log(), w),
    td.MultivariateNormal: _vector_normal,
}
_CLOSED: dict[Any, Callable[[Tensor, Tensor], Values]] = {
    td.Normal: _normal,
    td.LogNormal: lambda x, w: _normal(x.log(), w),
    td.MultivariateNormal: _vector_normal,
    td.Exponential: lambda x, w: {"rate": 1 / _moments(x, w)[0]},
    td.Poisson: lambda x, w: {"rate": _moments(x, w)[0]},
    td.Bernoulli: lambda x, w: {"probs": _moments(x, w)[0]},
    td.Geometric: lambda x, w: {"probs": 1 / (1 + _moments(x, w)[0])},
    td.HalfNormal: lambda x, w: {"scale": _moments(x.square(), w)[0].sqrt()},
    td.Categorical: _categorical,
}
