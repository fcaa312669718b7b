r"""Centred and non-centred coordinates for sites of location-scale families.

    x = loc + scale · u  (non-centred, λ = 0),   x = u  (centred, λ = 1),
    x = (1 − λ) loc + scale^(1−λ) u  between the two

with location and scale that depend on other sites. The density of x does not change, only the
coordinates in which it is explored, so a model needs no rewriting: where data say little about x
the non-centred ones are nearly independent of the scale, where they say much the centred ones.

Papaspiliopoulos, Roberts & Sköld (2007), A general framework for the parametrization of
hierarchical models, section 2; Gorinova, Moore & Hoffman (2020), Automatic reparameterisation of
probabilistic programs, section 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Cauchy,
    Distribution,
    Independent,
    Laplace,
    LogNormal,
    Normal,
    StudentT,
)

_FAMILIES = (Normal, StudentT, Cauchy, Laplace)
Centring = dict[str, Tensor | float]  # λ by site, a number or one an entry


def loc_and_scale(fn: Any) -> tuple[Tensor, Tensor, bool] | None:
    """Location, scale, and whether the value is the exponential; None for other families."""
    while isinstance(fn, Independent) or type(fn).__name__ in (
        "ExpandedDistribution",
        "MaskedDistribution",
    ):
        fn = fn.base_dist
    if isinstance(fn, LogNormal):
        return fn.loc, fn.scale, True
    if isinstance(fn, _FAMILIES):
        return fn.loc, fn.scale, False
    return None


def value_of(u: Tensor, fn: Distribution, centring: Tensor | float) -> tuple[Tensor, Tensor]:
    """The site's value at coordinates u, and log |dx/du|."""
    loc, scale, is_log = _parts(fn)
    log_scale = (1 - centring) * scale.log()
    x = (1 - centring) * loc + log_scale.exp() * u
    log_det = log_scale.expand_as(u).sum()
    if not is_log:
        return x, log_det
    return x.exp(), log_det + x.sum()


def coordinates_of(value: Tensor, fn: Distribution, centring: Tensor | float) -> Tensor:
    """The inverse of `value_of`."""
    loc, scale, is_log = _parts(fn)
    x = value.log() if is_log else value
    return (x - (1 - centring) * loc) / (scale.log() * (1 - centring)).exp()


def depends_on_latents(fn: Distribution) -> bool:
    """Whether the scale of a location-scale site moves with other sites."""
    parts = loc_and_scale(fn)
    return parts is not None and torch.is_tensor(parts[1]) and parts[1].requires_grad


def _parts(fn: Distribution) -> tuple[Tensor, Tensor, bool]:
    parts = loc_and_scale(fn)
    if parts is None:
        raise ValueError(f"{type(fn).__name__} is no location-scale family: it has no centring.")
    return parts
