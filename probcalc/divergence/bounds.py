r"""Bounds of KL(p‖q) for mixtures, which has no closed form.

    p = Σ_a π_a f_a,   q = Σ_b ω_b g_b

From above, Hershey & Olsen (2007), Approximating the Kullback–Leibler divergence between Gaussian
mixture models, ICASSP, section 6: with weights φ_ab that add up to π_a along b, m_b = Σ_a φ_ab,

    KL(p‖q) ≤ Σ_ab φ_ab [KL(f_a‖g_b) + ln(m_b/ω_b)]

least where φ is iterated to the end; φ_ab = π_a ω_b is the bound by convexity, and φ that gives
each f_a one g_b is that by matching. From both sides, Durrieu, Thiran & Kelly (2012), Lower and
upper bounds for approximation of the Kullback–Leibler divergence between Gaussian mixture models,
ICASSP, section 3: E_p[ln p] and E_p[ln q] each have

    Σ_a π_a [ln Σ_b ω_b e^(−KL(f_a‖g_b)) − H(f_a)] ≤ E_p[ln q] ≤ Σ_a π_a ln Σ_b ω_b ∫ f_a g_b

Bhattacharyya's coefficients B_ab = ∫ √(f_a g_b) often tell more than products do:

    E_p[ln p] ≤ Σ_a π_a [ln Σ_c π_c B_ac − H(f_a)]          Kolchinsky & Tracey (2017), Entropy 19
    E_p[ln q] ≤ Σ_a π_a [2 ln Σ_b √ω_b B_ab − H(f_a)]       from E ln y ≤ 2 ln E √y, and √ of a sum
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.rebuild import in_double, taken_apart
from probcalc.distributions.special import asked
from probcalc.divergence.kl import kl
from probcalc.divergence.pair import Pair, pair

_NEVER = -1e4  # logarithm of no weight: finite, so that it has no derivative that is not a number
_STEPS, _GAP = 1000, 1e-13
_FASTEST = 2.0**20  # step, in those of Hershey & Olsen


@dataclass(frozen=True, eq=False)
class Bounds:
    """Numbers between which a divergence is.

    Args:
        lower: Not above it; 0 where nothing better is known.
        upper: Not below it; ∞ where no component of q covers one of p.
        lower_by: What gave each lower bound, as nested as the batch.
        upper_by: What gave each upper bound.
    """

    lower: Tensor
    upper: Tensor
    lower_by: Any
    upper_by: Any


def kl_bounds(p: td.Distribution, q: td.Distribution) -> Bounds:
    r"""Bounds of KL(p‖q) from the divergences of components, without an integral or a draw.

    True but for rounding. Components that are normal have lower bounds of their own; of others the
    lower bound is 0, unless q is one component. First derivatives only: the weights of the upper
    bound are where it is least, and count as constants.

    Args:
        p: From which X is: a `MixtureSameFamily`, or one component.
        q: With which it is compared, likewise; batches broadcast.

    Returns:
        Bounds of the batch's shape, differentiable in the parameters of both.

    Raises:
        TypeError: If neither is a mixture, or one is no distribution.
        ValueError: If shapes or devices do not fit, or a parameter is outside its constraint.
        NotImplementedError: If the divergence of two components is known from draws only.

    >>> weights = td.Categorical(torch.tensor([0.5, 0.5]))
    >>> p = td.MixtureSameFamily(weights, td.Normal(torch.tensor([-1.0, 1.0]), 1.0))
    >>> kl_bounds(p, td.Normal(0.0, 1.0)).upper
    tensor(0.2735)
    """
    posed = pair(p, q, name="bounds of the KL divergence")
    if not any(isinstance(d, td.MixtureSameFamily) for d in (p, q)):
        raise TypeError(
            f"`kl_bounds` needs a MixtureSameFamily, got {type(p).__name__} and "
            f"{type(q).__name__}; `kl(p, q)` gives the divergence itself."
        )
    mine, other = (_components(d) for d in (posed.p, posed.q))
    above, below = _divergences(mine, other)
    within, _ = _divergences(mine, mine)
    uppers = _uppers(mine, other, above)
    lowers = _lowers(mine, other, below, within)
    upper, upper_by = _best(uppers, posed, largest=False)
    lower, lower_by = _best(lowers, posed, largest=True)
    return Bounds(lower, upper, lower_by, upper_by)


@dataclass(frozen=True, eq=False)
class _Mixture:
    log_weights: Tensor  # (*batch, k)
    parts: td.Distribution  # of batch (*batch, k)

    @property
    def axes(self) -> int:
        return self.log_weights.ndim


def _components(d: td.Distribution) -> _Mixture:
    """In float64."""
    if isinstance(d, td.MixtureSameFamily):
        weights, parts = d.mixture_distribution, in_double(d.component_distribution)
        if "probs" in vars(weights):  # logits that torch makes of them have no zeros
            probs = weights.probs.double()
            log = torch.where(probs > 0, torch.where(probs > 0, probs, 1.0).log(), _NEVER)
        else:
            log = weights.logits.double()
        return _Mixture(log.log_softmax(dim=-1).clamp(min=_NEVER), parts)
    parts = _with_axis(in_double(d), len(d.batch_shape))
    like = taken_apart(parts)[0][0]
    return _Mixture(torch.zeros(parts.batch_shape, dtype=torch.float64, device=like.device), parts)


def _with_axis(d: td.Distribution, axis: int) -> td.Distribution:
    """One more axis of the batch, of length one."""
    tensors, build = taken_apart(d)
    return build([t.unsqueeze(axis) for t in tensors])


def _divergences(p: _Mixture, q: _Mixture) -> tuple[Tensor, Tensor]:
    """KL(f_a‖g_b) with its bar added and taken off, (*batch, a, b)."""
    found = kl(_with_axis(p.parts, p.axes), _with_axis(q.parts, q.axes - 1))
    if found.std_error is not None or not found.ok:
        raise NotImplementedError(
            f"bounds need the divergences of components, and of {type(p.parts).__name__} and "
            f"{type(q.parts).__name__} they are not known but from draws, or not settled; "
            "`kl(p, q)` gives the divergence of the mixtures with a bar."
        )
    error = found.error.detach()
    return found.value + error, (found.value - error).clamp(min=0.0)


def _uppers(p: _Mixture, q: _Mixture, between: Tensor) -> dict[str, Tensor]:
    mine, other = p.log_weights, q.log_weights
    cost = torch.where(other[..., None, :] > _NEVER, between, math.inf)
    reached = cost.isfinite()
    lost = ((mine > _NEVER) & ~reached.any(dim=-1)).any(dim=-1)
    with torch.no_grad():
        safe = torch.where(reached, cost, 0.0).detach()
        convexity = other[..., None, :].expand(cost.shape).detach()
        matching = _matched(mine.detach(), safe - convexity, reached)
        start = torch.logaddexp(convexity, matching) - math.log(2)
        start = torch.where(reached, start, _NEVER)
        start = start - start.logsumexp(dim=-1, keepdim=True)
        variational = _least(mine.detach(), other.detach(), safe, start, reached)
    known = torch.where(reached, between, 0.0)
    rows = {"matching": matching, "variational": variational}
    found = {name: _transported(mine, other, known, log_r) for name, log_r in rows.items()}
    found = {name: torch.where(lost, math.inf, value) for name, value in found.items()}
    whole = (mine[..., None] + other[..., None, :]).exp()
    needless = (mine[..., None] <= _NEVER) | (other[..., None, :] <= _NEVER)
    found["convexity"] = torch.where(needless, 0.0, whole * between).sum(dim=(-2, -1))
    overlap = _overlap(p, p)
    if overlap is not None:
        cross = _mean(p, _log_sum(q.log_weights, -between))
        log_product, log_affinity = overlap
        entropy = p.parts.entropy()
        product = _mean(p, _log_sum(mine, log_product) + entropy)
        found["Durrieu"] = product - cross
        found["Bhattacharyya"] = _mean(p, _log_sum(mine, log_affinity)) - cross
    return {name: value.clamp(min=0.0) for name, value in found.items()}


def _lowers(p: _Mixture, q: _Mixture, between: Tensor, within: Tensor) -> dict[str, Tensor]:
    own = _log_sum(p.log_weights, -within)  # of E_p[ln p], with −H(f_a) left off
    found = {"nonnegativity": torch.zeros_like(own[..., 0])}
    if q.log_weights.shape[-1] == 1:
        found["one component"] = _mean(p, own + between[..., 0])
    overlap = _overlap(p, q)
    if overlap is not None:
        log_product, log_affinity = overlap
        entropy = p.parts.entropy()
        found["Durrieu"] = _mean(p, own - entropy - _log_sum(q.log_weights, log_product))
        found["Bhattacharyya"] = _mean(p, own - 2 * _log_sum(0.5 * q.log_weights, log_affinity))
    return found


def _mean(p: _Mixture, values: Tensor) -> Tensor:
    """Over components, some of which may have no weight."""
    alive = p.log_weights > _NEVER
    return torch.where(alive, p.log_weights.exp() * torch.where(alive, values, 0.0), 0.0).sum(-1)


def _log_sum(log_weights: Tensor, logs: Tensor) -> Tensor:
    """Ln Σ_b w_b e^(logs_ab), where a logarithm may be −∞."""
    logs = log_weights[..., None, :] + logs
    none = (logs == -math.inf).all(dim=-1)
    value = torch.where(none[..., None], 0.0, logs).logsumexp(dim=-1)
    return torch.where(none, -math.inf, value)


def _transported(mine: Tensor, other: Tensor, cost: Tensor, log_r: Tensor) -> Tensor:
    """The bound of Hershey & Olsen at φ_ab = π_a r_ab, from finite numbers."""
    log_phi = mine[..., None] + log_r
    log_m = log_phi.logsumexp(dim=-2, keepdim=True)
    return (log_phi.exp() * (cost + (log_m - other[..., None, :]))).sum(dim=(-2, -1))


def _least(mine: Tensor, other: Tensor, cost: Tensor, log_r: Tensor, reached: Tensor) -> Tensor:
    """The weights ln r at which the bound, which is convex, is least.

    A step of the paper's is r_ab ← r_ab e^(−s G_ab), normalised, with s = 1 and the derivative
    G_ab = KL(f_a‖g_b) + ln(m_b/ω_b); that never makes it worse, and longer ones are taken while
    they do not either. It is above the least by at most Σ_a π_a (Σ_b r_ab G_ab − min_b G_ab).
    """
    value = _transported(mine, other, cost, log_r)
    speed = torch.ones_like(value)
    for _ in range(_STEPS):
        log_m = (mine[..., None] + log_r).logsumexp(dim=-2, keepdim=True)
        slope = cost + (log_m - other[..., None, :])
        best = torch.where(reached, slope, math.inf).amin(dim=-1, keepdim=True)
        over = (slope - best.nan_to_num(posinf=0.0)).clamp(min=0.0) * log_r.exp()
        gap = (mine.exp() * over.sum(dim=-1)).sum(dim=-1)
        if not asked(torch.any, gap > _GAP * (1 + value)):
            break
        tried = (log_r - speed[..., None, None] * slope).log_softmax(dim=-1)
        tried = torch.where(reached, tried, _NEVER).clamp(min=_NEVER).log_softmax(dim=-1)
        attained = _transported(mine, other, cost, tried)
        better = attained <= value
        log_r = torch.where(better[..., None, None], tried, log_r)
        value = torch.where(better, attained, value)
        speed = torch.where(better, (2 * speed).clamp(max=_FASTEST), 1.0)
    return log_r


def _matched(mine: Tensor, cost: Tensor, reached: Tensor) -> Tensor:
    """Ln of r that gives every f_a one g_b: one each where they are as many, else the nearest."""
    far = 1 + 2 * cost.shape[-1] * cost.abs().amax(dim=(-2, -1), keepdim=True)
    cost = torch.where(reached, cost, far)
    choice = cost.argmin(dim=-1)
    if cost.shape[-1] == cost.shape[-2]:
        weighed = (mine.exp()[..., None] * cost).cpu().numpy()
        pairs = [linear_sum_assignment(c)[1] for c in weighed.reshape(-1, *cost.shape[-2:])]
        assigned = torch.tensor([list(c) for c in pairs], dtype=torch.long, device=cost.device)
        assigned = assigned.reshape(choice.shape)
        whole = reached.gather(-1, assigned[..., None]).all(dim=(-2, -1))
        choice = torch.where(whole[..., None], assigned, choice)
    return torch.full_like(cost, _NEVER).scatter(-1, choice[..., None], 0.0)


def _best(found: dict[str, Tensor], posed: Pair, *, largest: bool) -> tuple[Tensor, Any]:
    """The tightest, rounded outwards, and the names."""
    names = list(found)
    table = torch.stack([t.expand(posed.batch) for t in found.values()], dim=-1)
    index = (table.argmax if largest else table.argmin)(dim=-1)
    best = table.gather(-1, index[..., None]).squeeze(-1)
    rounded = best.to(posed.dtype)
    wrong = rounded.double() > best if largest else rounded.double() < best
    outwards = torch.full_like(rounded, -math.inf if largest else math.inf)
    moved = torch.where(wrong, torch.nextafter(rounded.detach(), outwards), rounded.detach())
    step = torch.where(wrong, moved - rounded.detach(), 0.0)
    return rounded + step, _named(index.tolist(), names)


def _named(index: Any, names: list[str]) -> Any:
    return [_named(i, names) for i in index] if isinstance(index, list) else names[index]


def _overlap(p: _Mixture, q: _Mixture) -> tuple[Tensor, Tensor] | None:
    """Ln ∫ f_a g_b and ln ∫ √(f_a g_b) of normal components, (*batch, a, b); None of others."""
    first, second = _as_normals(p.parts), _as_normals(q.parts)
    if first is None or second is None:
        return None
    (m1, c1), (m2, c2) = first, second
    m1, m2 = m1.unsqueeze(p.axes), m2.unsqueeze(q.axes - 1)
    d, apart = m1.shape[-1], m1 - m2
    if c1.ndim != c2.ndim:
        c1, c2 = (c if c.ndim > p.axes + 1 else c.diag_embed() for c in (c1, c2))
    c1, c2 = c1.unsqueeze(p.axes), c2.unsqueeze(q.axes - 1)
    if c1.ndim == m1.ndim:
        both = c1 + c2
        distance = (apart.square() / both).sum(dim=-1)
        logs = [c.log().sum(dim=-1) for c in (both, c1, c2)]
    else:
        roots = [torch.linalg.cholesky(c) for c in (c1 + c2, c1, c2)]
        solved = torch.linalg.solve_triangular(roots[0], apart[..., None], upper=False)
        distance = solved.square().sum(dim=(-2, -1))
        logs = [2 * r.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1) for r in roots]
    product = -0.5 * (distance + logs[0] + d * math.log(2 * math.pi))
    spread = (logs[0] - d * math.log(2)) - 0.5 * (logs[1] + logs[2])
    return product, -0.25 * distance - 0.5 * spread.clamp(min=0.0)


def _as_normals(d: td.Distribution) -> tuple[Tensor, Tensor] | None:
    """Means, and variances (*batch, d) or covariances (*batch, d, d)."""
    if isinstance(d, td.Normal):
        return d.loc[..., None], d.scale[..., None].square()
    if isinstance(d, (td.MultivariateNormal, td.LowRankMultivariateNormal)):
        return d.loc, d.covariance_matrix
    if isinstance(d, td.Independent) and isinstance(d.base_dist, td.Normal):
        axes = len(d.batch_shape)
        return d.base_dist.loc.flatten(axes), d.base_dist.scale.square().flatten(axes)
    return None
