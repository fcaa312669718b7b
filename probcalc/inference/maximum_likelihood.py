"""Maximum likelihood with standard errors, for families of distributions and for targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from probcalc._check import require_finite
from probcalc._random import child, draw_seed
from probcalc._tree import moved
from probcalc.inference.families import (
    Family,
    closed_form,
    concentrated,
    parameters_of,
    rows_of,
    start_of,
)
from probcalc.inference.fitted import fitted
from probcalc.inference.likelihood import Likelihood
from probcalc.inference.likelihood_fit import LikelihoodFit
from probcalc.inference.parameters import Values
from probcalc.inference.target import Target

_STARTS = 8  # of a target, of which the best is kept


def maximum_likelihood(
    target_or_family: Target | Family,
    data: Any = None,
    *,
    init: Values | None = None,
    fixed: dict[str, Any] | None = None,
    weights: Tensor | None = None,
    censored: Tensor | None = None,
    lower: Tensor | float | int | None = None,
    upper: Tensor | float | int | None = None,
    batch_dims: int = 0,
    generator: torch.Generator | None = None,
) -> LikelihoodFit:
    r"""The parameters under which the data are most likely, and how well they are known.

        θ̂ = argmax Σ_i w_i ln p(x_i | θ),   Cov θ̂ ≈ (−Σ_i w_i ∇² ln p(x_i | θ̂))⁻¹

    Newton's method on unconstrained parameters, or the formula of the family where there is one.
    Where there is no maximum (separation, a likelihood without bound, a parameter that runs to
    the edge of its range) the fit is flagged and says which parameter; its standard errors are
    NaN. Pawitan (2001), In all likelihood, chapters 2, 8 and 9.

    Args:
        target_or_family: A class of `torch.distributions`, or a `Target` made by `from_function`
            with `log_likelihood` and `data` (its prior plays no part).
        data: Observations of a family, ``(*batch, n, *event)``.
        init: Constrained values to start from.
        fixed: Parameters of a family that are known, by name.
        weights: How often each row counts, ``(*batch, n)``.
        censored: By row 1 where only X > x is known, −1 where only X ≤ x is, else 0.
        lower: Rows are those of a population cut off below this, numbers or ``(*batch, n)``.
        upper: Rows are those of a population cut off above this.
        batch_dims: Leading axes of the data that count data sets, solved at once.
        generator: Source of the starts of a target.

    Raises:
        ValueError: If the data are empty, not finite or outside the support (named by row), shapes
            do not match, or the family's support depends on its parameters.
        TypeError: If the family is none.

    >>> fit = maximum_likelihood(torch.distributions.Exponential, torch.tensor([1.0, 2.0, 3.0]))
    >>> float(fit.params["rate"]), round(float(fit.std_error["rate"]), 4)
    (0.5, 0.2887)
    """
    if isinstance(target_or_family, Target):
        if data is not None or batch_dims or fixed or censored is not None:
            raise ValueError(
                "a target has its data and its likelihood: give `init` and `weights`."
            )
        return _of_target(target_or_family, init, weights, generator)
    if data is None:
        raise ValueError("a family needs `data`.")
    family = target_or_family
    fixed = {k: torch.as_tensor(v, dtype=torch.float64) for k, v in (fixed or {}).items()}
    event_dim = _event_dim(family)
    x, batch = _rows(data, batch_dims, event_dim)
    w = _weights(weights, batch, x)
    parameters = parameters_of(family, x, fixed, init, event_dim)
    support = _refuse_outside(family, parameters, x, fixed)
    columns = {"x": x}
    for name, value in (("censored", censored), ("lower", lower), ("upper", upper)):
        if value is not None:
            columns[name] = _like_rows(name, value, batch, x)
    likelihood = Likelihood(parameters, rows_of(family, fixed), columns, w)
    known = None
    if len(columns) == 1 and not fixed:
        known = closed_form(family, x, w)
    if known is not None and set(known) != set(parameters.layout.shapes):
        known = None  # written through its other parameter
    flat = concentrated(family, parameters, support, x) & (len(columns) == 1)
    if init is not None:
        parameters.check(init)
        start = {k: v.double().expand(len(x), *v.shape) for k, v in init.items()}
    else:
        start = known or start_of(family, parameters, x, w, fixed)
    return fitted(
        likelihood,
        parameters.unconstrain(start),
        batch,
        exact=known is not None and init is None,
        family=(family, fixed),
        hopeless=flat,
    )


def _of_target(
    target: Target, init: Values | None, weights: Tensor | None, generator: Any
) -> LikelihoodFit:
    observed = target.model.observed
    if observed is None:
        raise ValueError(
            "maximum likelihood needs the likelihood of single rows: make the target by "
            "`Target.from_function(log_prior, shapes, log_likelihood=..., data=...)`."
        )
    one = observed.log_likelihood

    def rows(values: Values, data: Any) -> Tensor:
        return torch.vmap(lambda row: one(values, row))(data)

    data = moved(observed.data, target.device, torch.float64)
    n = pytree.tree_leaves(data)[0].shape[0]
    starts = target.starts(_STARTS, child(draw_seed(generator), 0)).double()
    if init is not None:
        starts = torch.cat([target.unconstrain(init)[None].double(), starts[1:]])
    w = torch.ones(n, dtype=torch.float64) if weights is None else weights.double()
    if w.shape != (n,) or bool((w < 0).any()):
        raise ValueError(f"`weights` must be {n} numbers of at least 0, got {tuple(w.shape)}.")
    many = Likelihood(
        observed.parameters,
        rows,
        pytree.tree_map(lambda t: t.expand(len(starts), *t.shape), data),
        w.to(target.device).expand(len(starts), n),
    )
    found = many.maximum(starts)
    # a true maximum before one that is flagged, then the highest
    sound = found.status == 0
    value = torch.where(sound | ~sound.any(), found.value, torch.inf).nan_to_num(torch.inf)
    best = value.argmin()
    rows_kept = best[None]
    return fitted(many.taken(rows_kept), found.x[rows_kept], (), exact=False, family=None)


def _event_dim(family: Any) -> int:
    try:
        return family.support.event_dim
    except (AttributeError, NotImplementedError):
        return 0


def _rows(data: Any, batch_dims: int, event_dim: int) -> tuple[Tensor, tuple[int, ...]]:
    x = torch.as_tensor(data)
    need = batch_dims + 1 + event_dim
    if x.ndim != need:
        raise ValueError(
            f"`data` must have {need} axes (*batch, n{', event' if event_dim else ''}), got shape "
            f"{tuple(x.shape)}; `batch_dims` says how many of them count data sets."
        )
    x = x.double()
    require_finite("data", x)
    if x.numel() == 0:
        raise ValueError(f"`data` of shape {tuple(x.shape)} has no rows: there is nothing to fit.")
    return x.reshape(-1, *x.shape[batch_dims:]), tuple(x.shape[:batch_dims])


def _weights(weights: Tensor | None, batch: tuple[int, ...], x: Tensor) -> Tensor:
    if weights is None:
        return torch.ones(x.shape[:2], dtype=x.dtype, device=x.device)
    w = _like_rows("weights", weights, batch, x)
    if bool((w < 0).any()) or bool((w.sum(dim=1) == 0).any()):
        raise ValueError("`weights` must be at least 0, and not all 0.")
    return w


def _like_rows(name: str, value: Any, batch: tuple[int, ...], x: Tensor) -> Tensor:
    t = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    shape = (*batch, x.shape[1])
    try:
        return t.expand(shape).reshape(-1, x.shape[1])
    except RuntimeError as error:
        raise ValueError(
            f"`{name}` must be a number or of the shape {shape} of the rows, got {tuple(t.shape)}."
        ) from error


def _refuse_outside(family: Any, parameters: Any, x: Tensor, fixed: Values) -> Any:
    """The support, where every row is in it."""
    z = torch.zeros(parameters.free.size, dtype=x.dtype, device=x.device)
    support = family(**parameters.constrain(z), **fixed, validate_args=False).support
    good = support.check(x)
    if bool(good.all()):
        return support
    place = tuple((~good).nonzero()[0].tolist())
    row = place[-1]
    raise ValueError(
        f"row {row} of `data` is {x[place].tolist()}, which is outside the support {support} of "
        f"{family.__name__}."
    )
