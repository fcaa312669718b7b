r"""KL divergences of many smooth pairs on the line at once, by the trapezoidal rule.

    x = m + s sinh t,      KL(p‖q) ≈ h Σ_i p(x_i) ln(p(x_i)/q(x_i)) s cosh t_i

converges geometrically in 1/h where the densities are analytic, so that a rule and the rule of
half as many points tell how far one is. Mori (2005), Discovery of the double exponential
transformation and its developments, Publ. RIMS 41; Trefethen & Weideman (2014), The
exponentially convergent trapezoidal rule, SIAM Review 56. What does not settle, or has parts too
narrow for its points, is left to adaptive quadrature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.log_density import log_density
from probcalc.distributions.rebuild import in_double, taken_apart
from probcalc.distributions.special import tracked
from probcalc.divergence.pair import Pair, some_of

_SMOOTH = (td.Normal, td.StudentT, td.Cauchy, td.Gumbel)
_LEAST = 64  # pairs, from which it is worth while
_VALUES = 2**15  # of one chunk, so that they stay in a core's cache
_FAR, _STRIDE = 64, 2.0  # of the first look: e^64 scales on either side
_FIRST, _HALVINGS = 32, 5  # intervals, and how often they are halved
_ORDER = 8  # of the differences that tell a turn from a curve
_TURN = 16.0  # a turn's error is a step's share of those differences, and at most an eightieth
_CUT = 1e-4  # of the tolerance: what is left out at either end
_ROUNDING = 64 * torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class Settled:
    """Divergences by the rule.

    Args:
        value: Of each pair.
        error: Its bar.
        done: Where both hold.
        num_evals: Points.
    """

    value: Float[Tensor, "*batch"]
    error: Float[Tensor, "*batch"]
    done: Bool[Tensor, "*batch"]
    num_evals: Float[Tensor, "*batch"]


def by_trapezoids(posed: Pair, rtol: float, atol: float) -> Settled | None:
    """Of pairs without derivatives; None where it does not apply."""
    p, q = in_double(posed.p), in_double(posed.q)
    count = math.prod(posed.batch)
    if count < _LEAST or not (_smooth(p) and _smooth(q)):
        return None
    if tracked(*(t for d in (p, q) for t in taken_apart(d)[0])):
        return None
    size = max(1, _VALUES // _FAR)
    parts = []
    with torch.no_grad():
        for start in range(0, count, size):
            block = slice(start, min(start + size, count))
            parts.append(_Rule(*(some_of(d, posed.batch, block) for d in (p, q))).run(rtol, atol))
    joined = (torch.cat(t).reshape(posed.batch) for t in zip(*parts, strict=True))
    return Settled(*joined)


def _smooth(d: td.Distribution) -> bool:
    if isinstance(d, td.MixtureSameFamily):
        return type(d.component_distribution) in _SMOOTH
    return type(d) in _SMOOTH


def _places(d: td.Distribution) -> tuple[Tensor, Tensor]:
    """Places and scales of the parts, along the last axis."""
    if isinstance(d, td.MixtureSameFamily):
        return d.component_distribution.loc, d.component_distribution.scale
    return d.loc[..., None], d.scale[..., None]


def _counted(start: float, stop: int, like: Tensor) -> Float[Tensor, "k 1"]:
    return torch.arange(start, stop, dtype=like.dtype, device=like.device)[:, None]


def _between(old: Float[Tensor, "3 k n"], new: Float[Tensor, "3 m n"]) -> Float[Tensor, "3 r n"]:
    """Points of two grids in turn, of which the new one has one more."""
    pairs = torch.stack([new[:, :-1], old], dim=2).flatten(1, 2)
    return torch.cat([pairs, new[:, -1:]], dim=1)


def _roughness(values: Float[Tensor, "k n"]) -> Float[Tensor, " n"]:
    """Largest difference of high order: of a turn as large as the turn, of curves next to none."""
    for _ in range(_ORDER):
        values = values[1:] - values[:-1]
    return values.abs().amax(dim=0)


class _Rule:
    """Of one batch of pairs, with points along the first axis."""

    def __init__(self, p: td.Distribution, q: td.Distribution) -> None:
        self.p, self.q = p, q
        places, scales = _places(p)
        self.centre, self.scale = places.mean(dim=-1), scales.amin(dim=-1)

    def run(self, rtol: float, atol: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Value, bar, whether they hold, and points."""
        low, high, ends, spent = self._range(_CUT * rtol)
        step = (high - low) / _FIRST
        values = self._values(low + step * _counted(1.0, _FIRST, low))
        out = torch.zeros(2, *low.shape, dtype=low.dtype, device=low.device)
        todo = torch.arange(len(low), device=low.device)
        rule, count = self, _FIRST
        for _ in range(_HALVINGS):
            before = step * values[0].sum(dim=0)
            values = _between(values, rule._values(low + step * _counted(0.5, count, low)))
            spent[todo] += count
            count, step = 2 * count, 0.5 * step
            value, size, mass = step * values.sum(dim=1)
            # two rules may agree by chance where a logarithm turns within a step
            turns = step * _roughness(values[0]) / _TURN
            change = torch.maximum((value - before).abs(), turns)
            error = change + ends + _ROUNDING * size + 2 * (mass - 1).abs() * value.abs()
            fine = (error <= 0.5 * (rtol * value.abs()).clamp(min=atol)) & rule._resolved(step)
            out[:, todo[fine]] = torch.stack([value, error])[:, fine]
            if bool(fine.all()):
                break
            if bool(fine.any()):
                rest = ~fine
                rule, todo, values = rule._chosen(rest), todo[rest], values[..., rest]
                low, step, ends = (t[rest] for t in (low, step, ends))
        return out[0], out[1], out[1] > 0, spent

    def _chosen(self, keep: Tensor) -> _Rule:
        shape = self.centre.shape
        return _Rule(*(some_of(d, shape, keep) for d in (self.p, self.q)))

    def _values(self, t: Float[Tensor, "k n"]) -> Float[Tensor, "3 k n"]:
        """The integrand, its absolute value, and the density."""
        grow = t.exp()
        shrink = grow.reciprocal()
        x = torch.addcmul(self.centre, 0.5 * self.scale, grow - shrink)
        log_p, log_q = log_density(self.p, x), log_density(self.q, x)
        mass = log_p.exp() * (0.5 * self.scale) * (grow + shrink)
        # beyond where p has any mass that is a number nothing is added
        cost = torch.where(mass > 0, mass * (log_p - log_q), 0.0)
        return torch.stack([cost, cost.abs(), mass])

    def _range(self, cut: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where the integrand is more than so much of its largest, and what ends may hide."""
        grid = torch.arange(-_FAR, _FAR + 1, _STRIDE, dtype=torch.float64)
        grid = grid.to(self.centre.device)[:, None]
        values = self._values(grid + torch.zeros_like(self.centre))
        size = values[1] + values[2]
        alive = size > cut * size.amax(dim=0)
        low = torch.where(alive, grid, math.inf).amin(dim=0) - _STRIDE
        high = torch.where(alive, grid, -math.inf).amax(dim=0) + _STRIDE
        low, high = low.clamp(min=-_FAR), high.clamp(max=_FAR)
        index = ((torch.stack([low, high]) + _FAR) / _STRIDE).round().long()
        # what falls as slowly as e^(−t/4) is four times as much as its first value
        ends = 4 * size.gather(0, index).sum(dim=0)
        return low, high, ends, torch.full_like(low, float(len(grid)))

    def _resolved(self, step: Float[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Whether points are as dense around every part as the part is wide."""
        fine = torch.ones_like(step, dtype=torch.bool)
        for d in (self.p, self.q):
            places, scales = _places(d)
            away = (places - self.centre[:, None]) / self.scale[:, None]
            spacing = step[:, None] * self.scale[:, None] * (1 + away.square()).sqrt()
            fine = fine & (spacing <= scales).all(dim=-1)
        return fine
