"""Distributions taken apart into tensors and put together again.

So that they can be evaluated in another precision, for some elements of a batch only, or as a
function of their parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch import distributions as td

Builder = Callable[[Sequence[Tensor]], td.Distribution]

# of two ways to give one parameter, the one that loses nothing first
_FIRST = ("logits", "scale_tril", "covariance_matrix", "precision_matrix", "concentration")
_SETTINGS = ("total_count", "temperature", "dim")  # what constructors ask for beside parameters
_SECOND = {
    "logits": ("probs",),
    "scale_tril": ("covariance_matrix", "precision_matrix"),
    "covariance_matrix": ("precision_matrix",),
}


@runtime_checkable
class ComesApart(Protocol):
    """A distribution that knows its parameters and how to be made of them again."""

    def taken_apart(self) -> tuple[list[Tensor], Builder]:
        """As the function of that name."""


def taken_apart(dist: td.Distribution) -> tuple[list[Tensor], Builder]:
    """Parameters of a distribution, and the function that makes it of such parameters again.

    Transforms other than affine ones are kept as they are.

    Raises:
        NotImplementedError: If the family does not name its parameters as torch's do.
    """
    if isinstance(dist, ComesApart):
        return dist.taken_apart()
    if hasattr(dist, "v") and hasattr(dist, "log_density"):  # Pyro's point mass
        dims = len(dist.event_shape)
        return [dist.v, dist.log_density], lambda t: type(dist)(*t, dims, validate_args=False)
    if isinstance(dist, td.Independent):
        return _wrapped([dist.base_dist], lambda d: td.Independent(d[0], _num(dist), False))
    if isinstance(dist, td.MixtureSameFamily):
        parts = [dist.mixture_distribution, dist.component_distribution]
        return _wrapped(parts, lambda d: td.MixtureSameFamily(d[0], d[1], False))
    if type(dist) is td.TransformedDistribution:
        return _transformed(dist)
    return _plain(dist)


def copied(dist: td.Distribution) -> td.Distribution:
    """A new object with the same tensors, for code that is run twice: torch's lazy properties.

    The distribution itself where it cannot be taken apart.
    """
    try:
        tensors, build = taken_apart(dist)
    except NotImplementedError:
        return dist
    return build(tensors)


def in_double(dist: td.Distribution) -> td.Distribution:
    """The same distribution with float64 parameters, which does not validate what it is given.

    The distribution itself where it cannot be taken apart, or not be made in float64.
    """
    try:
        tensors, build = taken_apart(dist)
        return build([t.double() if t.is_floating_point() else t for t in tensors])
    except (NotImplementedError, RuntimeError, TypeError):
        return dist


def _num(dist: td.Independent) -> int:
    return dist.reinterpreted_batch_ndims


def _wrapped(
    parts: list[td.Distribution], join: Callable[[list[td.Distribution]], td.Distribution]
) -> tuple[list[Tensor], Builder]:
    apart = [taken_apart(part) for part in parts]
    tensors = [t for own, _ in apart for t in own]

    def build(given: Sequence[Tensor]) -> td.Distribution:
        rest, made = list(given), []
        for own, make in apart:
            made.append(make(rest[: len(own)]))
            rest = rest[len(own) :]
        return join(made)

    return tensors, build


def _transformed(dist: td.TransformedDistribution) -> tuple[list[Tensor], Builder]:
    base, make = taken_apart(dist.base_dist)
    affine = [t for t in dist.transforms if isinstance(t, td.AffineTransform)]
    like = base[0]
    shifts = [
        torch.as_tensor(v, dtype=like.dtype, device=like.device)
        for t in affine
        for v in (t.loc, t.scale)
    ]

    def build(given: Sequence[Tensor]) -> td.Distribution:
        moved = iter(given[len(base) :])
        transforms = [
            td.AffineTransform(next(moved), next(moved), t.event_dim) if t in affine else t
            for t in dist.transforms
        ]
        return td.TransformedDistribution(make(given[: len(base)]), transforms, False)

    return base + shifts, build


def _plain(dist: td.Distribution) -> tuple[list[Tensor], Builder]:
    names = [n for n in _ordered(dist.arg_constraints) if _stored(dist, n)]
    for first, others in _SECOND.items():
        if first in names:
            names = [n for n in names if n not in others]
    if not names and hasattr(dist, "logits"):
        names = ["logits"]
    tensors = [getattr(dist, n) for n in names]
    if not names or not all(torch.is_tensor(t) for t in tensors):
        raise NotImplementedError(
            f"{type(dist).__name__} does not name its parameters in `arg_constraints`."
        )
    extra = {n: getattr(dist, n) for n in _SETTINGS if _is_set(dist, n) and n not in names}

    def build(given: Sequence[Tensor]) -> td.Distribution:
        return type(dist)(**dict(zip(names, given, strict=True)), **extra, validate_args=False)

    return tensors, build


def _ordered(names: dict[str, object]) -> list[str]:
    return sorted(names, key=lambda n: _FIRST.index(n) if n in _FIRST else len(_FIRST))


def _stored(dist: td.Distribution, name: str) -> bool:
    """Given, or derived from what was given, but not one of two spellings never asked for."""
    if name in vars(dist):
        return True
    spellings = {"probs", "logits", "scale_tril", "covariance_matrix", "precision_matrix"}
    return name not in spellings and hasattr(dist, name)


def _is_set(dist: td.Distribution, setting: str) -> bool:
    """Whether a constructor asks for it: some families keep their temperature in the base."""
    return setting in vars(dist) or (setting == "temperature" and hasattr(dist, setting))
