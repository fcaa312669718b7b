"""Whether one distribution has mass wherever another has: p ≪ q.

Where it has not, p(x)/q(x) is infinite on a set that p visits: importance sampling of p from q is
biased without a sign of it, and KL(p‖q) is infinite.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints

from probcalc.distributions.support import Support, device_of, support_of

# constraints of events that are alike if and only if the support is
_KINDS = (
    constraints.simplex,
    constraints.positive_definite,
    constraints.lower_cholesky,
    constraints.corr_cholesky,
)


def covers(q: td.Distribution, p: td.Distribution) -> Bool[Tensor, "*batch"]:
    """Whether every event of probability zero under q has probability zero under p.

    Args:
        q: A distribution on the line, `Independent` ones, or one with a support of a known kind:
            real vectors, simplex, covariance or Cholesky matrices, one-hot or count vectors.
        p: The distribution that should be inside.

    Returns:
        Of the shape of the batches, broadcast.

    Raises:
        NotImplementedError: If a support is of no known kind.
        ValueError: If the event shapes differ.
    """
    if q.event_shape != p.event_shape:
        raise ValueError(
            "`q` and `p` must have draws of one shape, got events of shapes "
            f"{tuple(q.event_shape)} and {tuple(p.event_shape)}."
        )
    if isinstance(p, td.MixtureSameFamily):
        return _each_component(q, p)
    if all(isinstance(d, td.Independent) for d in (q, p)) and _same_depth(q, p):
        inside = covers(q.base_dist, p.base_dist)
        return _all_last(inside, q.reinterpreted_batch_ndims)
    if all(_probabilities(d) is not None for d in (q, p)):
        return _of_categories(q, p)
    if not q.event_shape:
        return _on_the_line(q, support_of(p), False)
    return _of_events(q, p)


def _each_component(q: td.Distribution, p: td.MixtureSameFamily) -> Tensor:
    parts, weights = p.component_distribution, p.mixture_distribution.probs
    if isinstance(parts, td.MixtureSameFamily) or (p.event_shape and q.batch_shape):
        raise NotImplementedError("mixtures of mixtures, or of vectors in a batch, are not known.")
    inside = covers(q, parts) if p.event_shape else _on_the_line(q, support_of(parts), True)
    return (inside | (weights == 0)).all(dim=-1)


def _same_depth(q: td.Independent, p: td.Independent) -> bool:
    return q.reinterpreted_batch_ndims == p.reinterpreted_batch_ndims


def _all_last(inside: Tensor, ndims: int) -> Tensor:
    return inside.flatten(inside.ndim - ndims).all(dim=-1) if ndims else inside


def _probabilities(dist: td.Distribution) -> Tensor | None:
    """Of finitely many categories, the same for all distributions of one type."""
    if isinstance(dist, td.Bernoulli):
        return torch.stack([1 - dist.probs, dist.probs], dim=-1)
    if isinstance(dist, (td.Categorical, td.OneHotCategorical, td.Multinomial)):
        return dist.probs
    return None


def _of_categories(q: td.Distribution, p: td.Distribution) -> Tensor:
    ours, theirs = _probabilities(q), _probabilities(p)
    shared = min(ours.shape[-1], theirs.shape[-1])
    inside = ((ours[..., :shared] > 0) | (theirs[..., :shared] == 0)).all(dim=-1)
    inside = inside & (theirs[..., shared:] == 0).all(dim=-1)
    counts = [getattr(d, "total_count", 1) for d in (q, p)]
    return inside & torch.as_tensor(counts[0] == counts[1], device=inside.device)


def _on_the_line(q: td.Distribution, inner: Support, components: bool) -> Tensor:
    """For all inner intervals, which may have an axis of components behind the batch."""
    if isinstance(q, td.MixtureSameFamily):
        return _union_covers(q, inner, components)
    outer = support_of(q)
    if components:
        outer = Support(outer.lower[..., None], outer.upper[..., None], outer.discrete)
    return _interval_covers(outer, inner)


def _interval_covers(outer: Support, inner: Support) -> Tensor:
    inside = (outer.lower <= inner.lower) & (inner.upper <= outer.upper)
    if outer.discrete != inner.discrete:  # integers have no length, an interval has no atoms
        return torch.zeros_like(inside)
    if outer.discrete:
        integral = inner.lower.isinf() | (inner.lower == inner.lower.floor())
        return inside & (integral | (outer.lower == outer.upper))
    return inside


def _union_covers(q: td.MixtureSameFamily, inner: Support, components: bool) -> Tensor:
    """No gap between the components, taken from left to right, meets the inner interval."""
    parts, weights = support_of(q.component_distribution), q.mixture_distribution.probs
    alive = (weights > 0).expand(parts.lower.shape)
    lower, order = torch.where(alive, parts.lower, torch.inf).sort(dim=-1)
    upper = torch.where(alive, parts.upper, -torch.inf).gather(-1, order).cummax(dim=-1).values
    if components:
        lower, upper = lower[..., None, :], upper[..., None, :]
    hull = Support(lower[..., 0], upper[..., -1], parts.discrete)
    # a gap of counts begins one above the last and ends one below the next
    one = int(parts.discrete)
    begins, ends = upper[..., :-1] + one, lower[..., 1:] - one
    first = torch.maximum(begins, inner.lower[..., None])
    last = torch.minimum(ends, inner.upper[..., None])
    met = (first <= last) if parts.discrete else (first < last)
    return _interval_covers(hull, inner) & ~met.any(dim=-1)


def _of_events(q: td.Distribution, p: td.Distribution) -> Tensor:
    batch = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    kinds = _kind(q), _kind(p)
    if all(isinstance(kind, Support) for kind in kinds):
        inside = _interval_covers(*kinds)
        return _all_last(inside, len(q.event_shape)).expand(batch)
    same = not any(isinstance(kind, Support) for kind in kinds) and kinds[0] is kinds[1]
    return torch.full(batch, same, device=device_of(p))


def _kind(dist: td.Distribution) -> Support | constraints.Constraint | type:
    """A box of the batch's and the event's shape, or what tells the support from others."""
    if isinstance(dist, td.Independent):
        return _box(dist)
    if _probabilities(dist) is not None:
        return type(dist)
    support = dist.support
    real = isinstance(support, constraints.independent)
    if real and support.base_constraint is constraints.real:
        shape = dist.batch_shape + dist.event_shape
        end = torch.full(shape, torch.inf, dtype=torch.float64, device=device_of(dist))
        return Support(-end, end, False)
    found = [kind for kind in _KINDS if support is kind]
    if not found:
        raise NotImplementedError(
            f"the support {support} of {type(dist).__name__} is of no kind that can be compared."
        )
    return found[0]


def _box(dist: td.Independent) -> Support:
    kind = support_of(dist.base_dist) if not dist.base_dist.event_shape else _kind(dist.base_dist)
    if not isinstance(kind, Support):
        raise NotImplementedError(f"independent {type(dist.base_dist).__name__} have no box.")
    return kind
