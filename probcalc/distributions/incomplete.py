r"""Tails of the gamma, beta and Student distributions, with derivatives of every order.

The number T is SciPy's. Derivatives in the shape θ are those of a Gauss-Legendre sum

    log S(θ) = log Σ_i w_i p(x_i; θ),        T(θ) = T + T expm1(log S(θ) − log S(θ₀)),

over the tail beyond the mode's side of x, with fixed points x_i; derivatives in x are those of

    h Σ_j c_j p(x + b_j h; θ),        h = 0,

which has the derivatives of the integral from x to x + h up to the fourth. The points are spread
in a variable in which the density is log-concave and at least exponentially falling (log x for
the gamma, logit x for the beta, arsinh t/√ν for Student's): where it has fallen by e^−45 the rest
does not matter, and three panels resolve every shape from 1e-3 to 1e6.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probcalc.distributions.special import asked, special, tracked

_DROP = 45.0  # e^−45 = 3e-20
_EDGES = (3.0, 30.0)  # beyond 3 units every such density is nearly, beyond 30 purely exponential
_POINTS = 32
_HALVINGS = 12  # of the range of the logarithm of the reach, to 2 per cent
TINY, _HUGE, _SQUARABLE = 1e-300, 1e300, 1e100
_DENORMAL = 1e-280  # results below it may come of denormal numbers
_SHIFT = 10
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
_NODES, _WEIGHTS = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(_POINTS))
_SHORT = tuple(zip(*(v.tolist() for v in np.polynomial.legendre.leggauss(2)), strict=True))


def gamma_tail(
    a: Float[Tensor, "*a"], x: Float[Tensor, "*x"], upper: bool
) -> Float[Tensor, "*out"]:
    """P(X ≤ x) or P(X > x) of Gamma(a, 1), x ≥ 0."""
    value = special("gammaincc" if upper else "gammainc", a, x)
    if tracked(a):
        value = value + _gamma_in_shape(a, x.detach().clamp(TINY, _HUGE), upper)
    if tracked(x, a):
        value = value + _moved(lambda t: log_gamma_density(a, t), x, upper)
    return value


def beta_tail(
    a: Float[Tensor, "*a"],
    b: Float[Tensor, "*b"],
    x: Float[Tensor, "*x"],
    y: Float[Tensor, "*x"],
    upper: bool,
) -> Float[Tensor, "*out"]:
    """P(X ≤ x) or P(X > x) of Beta(a, b), where both x and y = 1 − x have all their digits."""
    if upper:
        return beta_tail(b, a, y, x, False)
    value = _incomplete_beta(a, b, x, y)
    if tracked(a, b):
        value = value + _beta_in_shapes(a, b, x.detach(), y.detach())
    if tracked(a, b, x, y):
        # the smaller of x and y has the digits of the shift
        shifted = torch.where(x.detach() <= y.detach(), x, x.detach() + (y.detach() - y))
        y0 = y.detach().clamp(min=TINY)

        def log_p(t: Tensor, h: Tensor) -> Tensor:
            return (a - 1) * t.log() + (b - 1) * (y0 - h).log() - log_beta(a, b)

        value = value + _moved(log_p, shifted, False, two=True)
    return value


def student_tail(df: Float[Tensor, "*df"], t: Float[Tensor, "*t"]) -> Float[Tensor, "*out"]:
    """P(T > t) of Student's distribution."""
    far = half_student(df.detach(), t.detach().abs())
    above = t.detach() >= 0
    value = torch.where(above, far, 1 - far)
    if tracked(df):
        moved = far * _student_in_df(df, t.detach().abs())
        value = value + torch.where(above, moved, -moved)
    if tracked(df, t):
        value = value + _moved(lambda s: log_student(df, s), t, True)
    return value


def half_student(df: Tensor, t: Tensor) -> Tensor:
    """P(T > t) for t ≥ 0, as a number."""
    r = t / df.sqrt()
    w, v = 1 / (1 + r.square()), 1 / (1 + r.pow(-2))
    value = 0.5 * _incomplete_beta(0.5 * df, torch.full_like(df, 0.5), w, v)
    if not asked(torch.any, r > _SQUARABLE):
        return value
    # the leading power where r² overflows: r^−ν / (ν B(ν/2, 1/2))
    power = (-df * r.log() - df.log() - log_beta(0.5 * df, torch.full_like(df, 0.5))).exp()
    return torch.where(r > _SQUARABLE, power, value)


def log_student(df: Tensor, t: Tensor) -> Tensor:
    """Log density of Student's distribution."""
    r = t / df.sqrt()
    near = r.detach().abs() < 1
    one = torch.ones_like(r)
    log_near = torch.log1p(torch.where(near, r, one).square())
    log_far = 2 * torch.hypot(torch.where(near, one, r), one).log()  # squares would overflow
    return _student_norm(df) - 0.5 * (df + 1) * torch.where(near, log_near, log_far)


def log_gamma(a: Tensor) -> Tensor:
    """Log Γ(a), whose derivatives have all their digits; torch's trigamma has ten.

    Stirling's series at a + 10 (Abramowitz & Stegun 6.1.41), and the recurrence.
    """
    z = a + _SHIFT
    series = sum(c / z ** (2 * i + 1) for i, c in enumerate(_STIRLING))
    steps = torch.arange(_SHIFT, dtype=a.dtype, device=a.device)
    product = (a[..., None] + steps).log().sum(dim=-1)
    return (z - 0.5) * z.log() - z + 0.5 * math.log(2 * math.pi) + series - product


def _student_norm(df: Tensor) -> Tensor:
    half = 0.5 * (df + 1)
    return log_gamma(half) - log_gamma(0.5 * df) - 0.5 * (math.pi * df).log()


def log_gamma_density(a: Tensor, x: Tensor) -> Tensor:
    """Log density of Gamma(a, 1)."""
    return (a - 1) * x.log() - x - log_gamma(a)


def log_beta(a: Tensor, b: Tensor) -> Tensor:
    """Log of B(a, b)."""
    return log_gamma(a) + log_gamma(b) - log_gamma(a + b)


def _incomplete_beta(a: Tensor, b: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """From whichever of x and y is small; SciPy's loses digits where it works with denormals."""
    a, b, x, y = (t.detach() for t in torch.broadcast_tensors(a, b, x, y))
    value = torch.where(x <= y, special("betainc", a, b, x), special("betaincc", b, a, y))
    if not asked(torch.any, (value < _DENORMAL) & (x > TINY)):
        return value
    u = x.clamp(min=TINY).log() - y.clamp(min=TINY).log()
    sums = log_beta_sum(a, b, u, torch.full_like(u, -1.0)).exp()
    return torch.where((value < _DENORMAL) & (x > TINY), sums, value)


def _moved(
    log_p: Callable[..., Tensor], x: Tensor, upper: bool, *, two: bool = False
) -> Float[Tensor, "*out"]:
    """Zero, with the derivatives in x (and mixed ones) of the tail that ends there."""
    x0 = x.detach()
    h = x - x0
    start = torch.where(x0.abs() < TINY, TINY, x0)
    total: Tensor | float = 0.0
    for node, weight in _SHORT:
        step = 0.5 * (1 + node) * h
        t = start + step
        total = total + 0.5 * weight * (log_p(t, step) if two else log_p(t)).exp()
    return -h * total if upper else h * total


def _gamma_in_shape(a: Tensor, x: Tensor, upper: bool) -> Tensor:
    a0 = a.detach()
    below = x <= a0
    side = torch.where(below, -1.0, 1.0)
    d, log_w = _panels(lambda d: x * torch.expm1(side * d) - a0 * side * d, torch.ones_like(side))
    y = x.log()[..., None] + side[..., None] * d
    log_s = _log_sum(a[..., None] * y - y.exp() + log_w) - log_gamma(a)
    far = torch.where(below, special("gammainc", a, x), special("gammaincc", a, x))
    return _signed(far * _grown(log_s), below, upper)


def _beta_in_shapes(a: Tensor, b: Tensor, x: Tensor, y: Tensor) -> Tensor:
    x, y = x.clamp(min=TINY), y.clamp(min=TINY)
    below = x * b.detach() <= y * a.detach()
    log_s = log_beta_sum(a, b, x.log() - y.log(), torch.where(below, -1.0, 1.0))
    far = torch.where(below, _incomplete_beta(a, b, x, y), _incomplete_beta(b, a, y, x))
    return _signed(far * _grown(log_s), below, False)


def log_beta_sum(a: Tensor, b: Tensor, u: Tensor, side: Tensor) -> Tensor:
    """Log tail of Beta(a, b) below (side −1) or above (1) the point with logit u."""
    a0, b0 = a.detach(), b.detach()
    start = log_logit_density(a0, b0, u)
    d, log_w = _panels(
        lambda d: start - log_logit_density(a0, b0, u + side * d), torch.ones_like(u)
    )
    points = u[..., None] + side[..., None] * d
    terms = a[..., None] * _log_sigmoid(points) + b[..., None] * _log_sigmoid(-points)
    return _log_sum(terms + log_w) - log_beta(a, b)


def log_logit_density(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    """Log density of the logit of a beta variable."""
    return a * _log_sigmoid(u) + b * _log_sigmoid(-u) - log_beta(a, b)


def _student_in_df(df: Tensor, t: Tensor) -> Tensor:
    """Relative growth of the tail beyond t ≥ 0."""
    nu = df.detach()
    y0 = torch.asinh((t / nu.sqrt()).clamp(max=_HUGE))
    d, log_w = _panels(lambda d: nu * (_log_cosh(y0 + d) - _log_cosh(y0)), torch.ones_like(y0))
    y = y0[..., None] + d
    log_t = 0.5 * nu.log()[..., None] + y + torch.log1p(-(-2 * y).exp()) - math.log(2)
    wide = df[..., None]
    log_p = 0.5 * (wide + 1) * _log_sigmoid(wide.log() - 2 * log_t) + _log_cosh(y)
    return _grown(_log_sum(log_p + log_w) + _student_norm(df))


def _log_cosh(y: Tensor) -> Tensor:
    return y + torch.log1p((-2 * y).exp()) - math.log(2)


def _log_sigmoid(u: Tensor) -> Tensor:
    """As torch's logsigmoid, which warns under vmap."""
    return -torch.logaddexp(-u, torch.zeros_like(u))


def _log_sum(terms: Tensor) -> Tensor:
    """As torch.logsumexp over the last axis, which warns under vmap."""
    largest = terms.detach().amax(dim=-1, keepdim=True)
    return (terms - largest).exp().sum(dim=-1).log() + largest[..., 0]


def _grown(log_s: Tensor) -> Tensor:
    return torch.expm1(log_s - log_s.detach())


def _signed(moved: Tensor, below: Bool[Tensor, "*b"], upper: bool) -> Tensor:
    """What the lower tail gains the upper one loses."""
    return torch.where(below != upper, moved, -moved)


def _panels(
    drop: Callable[[Tensor], Tensor], like: Tensor
) -> tuple[Float[Tensor, "*b n"], Float[Tensor, "*b n"]]:
    """Distances from the end of the tail and logarithms of their weights."""
    reach = _reach(drop, like)
    edges = [torch.zeros_like(reach), *(reach.clamp(max=e) for e in _EDGES), reach]
    nodes, weights = _NODES.to(reach.device), _WEIGHTS.to(reach.device)
    distances, logs = [], []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        half = 0.5 * (high - low)[..., None]
        distances.append(low[..., None] + half * (1 + nodes))
        logs.append((half * weights).log())
    return torch.cat(distances, dim=-1), torch.cat(logs, dim=-1)


def _reach(drop: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """How far the log density must go to fall by _DROP, or a little farther."""
    shape = drop(like).shape
    low = torch.full(shape, math.log(1e-12), dtype=torch.float64, device=like.device)
    high = torch.full_like(low, math.log(1e12))
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        beyond = drop(middle.exp()) >= _DROP
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return high.exp()
