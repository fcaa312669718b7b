"""Two distributions on one sample space, checked and of one batch shape."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution, constraints

from probcalc.distributions.coverage import covers
from probcalc.distributions.rebuild import taken_apart
from probcalc.distributions.special import readable
from probcalc.distributions.support import device_of
from probcalc.result import Estimate

_PIECE = 2**15


@dataclass(frozen=True, eq=False)
class Pair:
    """Distributions p and q of one batch shape.

    Args:
        p: From which X is.
        q: With which it is compared.
        batch: Of both.
        dtype: Of their parameters.
    """

    p: Distribution
    q: Distribution
    batch: tuple[int, ...]
    dtype: torch.dtype

    def chosen(self, keep: Bool[Tensor, "*batch"]) -> Pair:
        """The elements where the mask is true, along one axis.

        Raises:
            NotImplementedError: If a family cannot be taken apart.
        """
        p, q = (some_of(d, self.batch, keep.reshape(-1)) for d in (self.p, self.q))
        return Pair(p, q, (int(keep.sum()),), self.dtype)

    def in_its_precision(self, found: Estimate) -> Estimate:
        """A result in that of the parameters, whose rounding its bar takes in."""
        if found.value.dtype == self.dtype:
            return found
        rounding = torch.finfo(self.dtype).eps * found.value.detach().abs()
        error = found.error + rounding.nan_to_num(0.0, 0.0)
        std_error = None if found.std_error is None else found.std_error.to(self.dtype)
        value = found.value.to(self.dtype)
        return replace(found, value=value, error=error.to(self.dtype), std_error=std_error)

    def alike(self) -> Bool[Tensor, "*batch"]:
        """Where p and q are one distribution: of one family, with the same parameters."""
        parameters = _alike(self.p, self.q)
        if not parameters:
            return torch.zeros(self.batch, dtype=torch.bool, device=device_of(self.p))
        axes = len(self.batch)
        same = [
            (a == b).flatten(axes).all(dim=-1) if a.ndim > axes else a == b for a, b in parameters
        ]
        return torch.stack([s.expand(self.batch) for s in same]).all(dim=0)

    def uncovered(self) -> Bool[Tensor, "*batch"] | None:
        """Where q has no mass though p has some; None where that cannot be told."""
        try:
            return ~covers(self.q, self.p).expand(self.batch)
        except NotImplementedError:
            return None


def pair(p: Distribution, q: Distribution, *, name: str = "the divergence") -> Pair:
    """Check two distributions and broadcast their batches.

    Raises:
        TypeError: If one is no distribution.
        ValueError: If draws differ in shape, batches do not broadcast, devices differ, or a
            parameter is outside its constraint.
    """
    for label, d in (("p", p), ("q", q)):
        if not isinstance(d, Distribution):
            raise TypeError(f"`{label}` must be a torch Distribution, got {type(d).__name__}.")
    if p.event_shape != q.event_shape:
        raise ValueError(
            f"{name} needs draws of one shape, got events of shapes {tuple(p.event_shape)} for "
            f"`p` and {tuple(q.event_shape)} for `q`."
        )
    try:
        batch = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    except RuntimeError:
        raise ValueError(
            f"batches of shapes {tuple(p.batch_shape)} for `p` and {tuple(q.batch_shape)} for `q` "
            "do not broadcast."
        ) from None
    tensors = [[*_parameters(d).items()] for d in (p, q)]
    devices = {str(t.device) for named in tensors for _, t in named}
    if len(devices) > 1:
        raise ValueError(f"`p` and `q` must be on one device, got {sorted(devices)}.")
    for label, d, named in zip("pq", (p, q), tensors, strict=True):
        _refuse_outside(label, d, dict(named))
    kinds = [t.dtype for named in tensors for _, t in named if t.is_floating_point()]
    dtype = torch.float64 if torch.float64 in kinds else kinds[0] if kinds else torch.float64
    expanded = (d if d.batch_shape == batch else d.expand(batch) for d in (p, q))
    return Pair(*expanded, tuple(batch), dtype)


def _parameters(d: Distribution) -> dict[str, Tensor]:
    """Parameters that the distribution stores, those of its parts included."""
    own = {n: vars(d)[n] for n in d.arg_constraints if torch.is_tensor(vars(d).get(n))}
    for value in vars(d).values():
        if isinstance(value, Distribution):
            own |= _parameters(value)
    return own or {n: v for n, v in vars(d).items() if torch.is_tensor(v)}


def _refuse_outside(label: str, d: Distribution, named: dict[str, Tensor]) -> None:
    ordered: set[frozenset[int]] = set()  # of two ends it is enough to look once
    for name, value in named.items():
        constraint = d.arg_constraints.get(name)
        bound = getattr(constraint, "lower_bound", getattr(constraint, "upper_bound", None))
        ends = frozenset((id(value), id(bound)))
        if torch.is_tensor(bound) and ends in ordered:
            continue
        ordered.add(ends)
        known = isinstance(constraint, constraints.Constraint)
        known = known and not constraints.is_dependent(constraint)
        if not known or constraint.is_discrete or not value.numel() or not readable(value):
            continue
        if not _satisfied(constraint, value.detach()):
            raise ValueError(
                f"`{label}` is a {type(d).__name__} whose `{name}` must satisfy {constraint}, got "
                f"values from {value.min().item():g} to {value.max().item():g}."
            )


def _satisfied(constraint: constraints.Constraint, value: Tensor) -> bool:
    """In one pass over the numbers where that is enough; NaN satisfies nothing."""
    bound = getattr(constraint, "lower_bound", None)
    if isinstance(constraint, constraints.greater_than) and isinstance(bound, (int, float)):
        return bool(value.amin() > bound)
    if isinstance(constraint, constraints.greater_than_eq) and isinstance(bound, (int, float)):
        return bool(value.amin() >= bound)
    if isinstance(constraint, constraints.less_than) and torch.is_tensor(constraint.upper_bound):
        return _least_gap(constraint.upper_bound, value) > 0
    if isinstance(constraint, constraints.greater_than) and torch.is_tensor(bound):
        return _least_gap(value, bound) > 0
    ends = (bound, getattr(constraint, "upper_bound", None))
    if type(constraint) is type(constraints.unit_interval) and all(
        isinstance(end, (int, float)) for end in ends
    ):
        return bool(value.amin() >= ends[0]) and bool(value.amax() <= ends[1])
    if constraint is constraints.lower_cholesky:
        rows, columns = torch.triu_indices(*value.shape[-2:], offset=1)
        diagonal = value.diagonal(dim1=-2, dim2=-1)
        return bool(diagonal.amin() > 0) and not bool(value[..., rows, columns].any())
    if isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    if constraint is constraints.real:
        return not math.isnan(float(value.amin()))
    try:
        return bool(constraint.check(value).all())
    except (ValueError, NotImplementedError):  # depends on other parameters
        return True


def _least_gap(larger: Tensor, smaller: Tensor) -> float:
    """Of the differences, in pieces that stay in a core's cache."""
    larger, smaller = torch.broadcast_tensors(larger.detach(), smaller.detach())
    pieces = (t.reshape(-1).split(_PIECE) for t in (larger, smaller))
    return min(float((a - b).amin()) for a, b in zip(*pieces, strict=True))


def _alike(p: Distribution, q: Distribution) -> list[tuple[Tensor, Tensor]]:
    """Parameters in pairs, where the families are the same in all their parts; else none."""
    if type(p) is not type(q):
        return []
    if type(p) is TransformedDistribution and p.transforms != q.transforms:
        return []
    parts = [v for v in vars(p).values() if isinstance(v, Distribution)]
    others = [v for v in vars(q).values() if isinstance(v, Distribution)]
    if len(parts) != len(others) or any(
        type(a) is not type(b) for a, b in zip(parts, others, strict=True)
    ):
        return []
    try:
        pairs = list(zip(taken_apart(p)[0], taken_apart(q)[0], strict=True))
    except (NotImplementedError, ValueError):
        return []
    fits = all(a.shape == b.shape for a, b in pairs)
    return pairs if fits else []


def some_of(d: Distribution, batch: tuple[int, ...], keep: Tensor | slice) -> Distribution:
    """Elements of a distribution of that batch shape, along one axis.

    Raises:
        NotImplementedError: If the family cannot be taken apart.
    """
    tensors, build = taken_apart(d)
    axes = len(batch)
    return build([t.reshape(-1, *t.shape[axes:])[keep] for t in tensors])
