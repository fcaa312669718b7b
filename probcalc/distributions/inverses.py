r"""Inverse tails of the gamma, beta and Student distributions, and derivatives of any inverse.

Where F(x; θ) = p, two Newton steps on the logarithms from the root itself,

    x ← x − (log F(x; θ) − log p) F / F',

leave x as it is and carry derivatives in p and θ, the first step the first ones and the second
step those up to the third.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.distributions import incomplete
from probcalc.distributions.special import asked, computed_where, special, tracked

_STEPS = 2
_DEEP = 1e-200
_RARE, _CLOSE = 1e-15, 1e-9
_EPS, _MOST_STEPS = 1e-14, 50
_LEAST = 1e-290  # below it SciPy's inverse of the incomplete beta function is cut off


def implied(
    x: Float[Tensor, "*x"],
    p: Float[Tensor, "*x"],
    tail: Callable[[Tensor], Tensor],
    log_density: Callable[[Tensor], Tensor],
    upper: bool,
) -> Float[Tensor, "*x"]:
    """The root x of tail(x) = p, a number, with the derivatives of the inverse function."""
    x0 = x.detach()
    size, level = tail(x0).detach(), p.detach()
    known = x0.isfinite() & (size > 0) & (level > 0)
    size, level = torch.where(known, size, 1.0), torch.where(known, level, 1.0)
    log_p = torch.where(known, (p / level), 1.0).log()
    sign = 1.0 if upper else -1.0
    log_f = torch.where(known, log_density(x0), 0.0).detach()
    unit = (size.log() - log_f).exp()  # F/F', in which steps have no size that could overflow
    steps = torch.zeros_like(unit)
    for _ in range(_STEPS):
        root = x0 + unit * steps
        ratio = torch.where(known, tail(root) / size, 1.0)  # one, with derivatives
        growth = (log_f - torch.where(known, log_density(root), 0.0)).exp() * ratio
        steps = steps + sign * (ratio.log() - log_p) * growth
    return torch.where(known, x0 + unit * (steps - steps.detach()), x0)


def gamma_level(
    a: Float[Tensor, "*a"], p: Float[Tensor, "*p"], upper: bool
) -> Float[Tensor, "*out"]:
    """The x with P(X > x) = p, or P(X ≤ x) = p, of Gamma(a, 1)."""
    x = special("gammainccinv" if upper else "gammaincinv", a, p)
    if not tracked(a, p):
        return x
    return implied(
        x,
        p,
        lambda t: incomplete.gamma_tail(a, t, upper),
        lambda t: incomplete.log_gamma_density(a, t.clamp(min=incomplete.TINY)),
        upper,
    )


def beta_level(
    a: Float[Tensor, "*a"], b: Float[Tensor, "*b"], p: Float[Tensor, "*p"], upper: bool
) -> tuple[Float[Tensor, "*out"], Float[Tensor, "*out"]]:
    """The x and 1 − x, each with all its digits, with P(X > x) = p, or P(X ≤ x) = p."""
    if upper:
        return beta_level(b, a, p, False)[::-1]
    x, y = _beta_ends(a.detach(), b.detach(), p.detach())
    if not tracked(a, b, p):
        return x, y

    def tail(t: Tensor) -> Tensor:
        return incomplete.beta_tail(a, b, t, y - (t - t.detach()), False)

    def log_density(t: Tensor) -> Tensor:
        rest = (y - (t - t.detach())).clamp(min=incomplete.TINY)
        t = t.clamp(min=incomplete.TINY)
        return (a - 1) * t.log() + (b - 1) * rest.log() - incomplete.log_beta(a, b)

    root = implied(x, p, tail, log_density, False)
    return root, y - (root - root.detach())


def student_level(df: Float[Tensor, "*df"], p: Float[Tensor, "*p"]) -> Float[Tensor, "*out"]:
    """The t with P(T > t) = p of Student's distribution."""
    df0, p0 = df.detach(), p.detach()
    q = torch.minimum(p0, 1 - p0)
    half = torch.full_like(df0, 0.5)
    w, v = _student_ends(0.5 * df0, half, 2 * q)
    t = (df0 * v / w).sqrt()
    if asked(torch.any, w < _LEAST):
        # where w is below all numbers, the leading power: P(T > t) = w^(ν/2) / (ν B(ν/2, 1/2))
        log_w = (q.log() + df0.log() + incomplete.log_beta(0.5 * df0, half)) * 2 / df0
        t = torch.where(w < _LEAST, df0.sqrt() * (-0.5 * log_w).exp(), t)
    t = torch.where(p0 <= 0.5, t, -t)
    if not tracked(df, p):
        return t
    return implied(
        t,
        p,
        lambda s: incomplete.student_tail(df, s),
        lambda s: incomplete.log_student(df, s),
        True,
    )


def _student_ends(a: Tensor, half: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """As _beta_ends, but of two that may do solving for 1 − x first, mostly the smaller here."""
    a, half, p = torch.broadcast_tensors(a, half, p)
    y = special("betainccinv", half, a, p)
    rest = (y > 0.5) | y.isnan() | (p < _RARE)
    if not asked(torch.any, ~rest):
        return _beta_ends(a, half, p)
    if not asked(torch.any, rest):
        return 1 - y, y
    w, v = _beta_ends(a[rest], half[rest], p[rest])
    return (1 - y).masked_scatter(rest, w), y.masked_scatter(rest, v)


def _beta_ends(a: Tensor, b: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Both x and 1 − x as numbers with P(X ≤ x) = p: the smaller one is solved for."""
    a, b, p = torch.broadcast_tensors(a, b, p)
    x = special("betaincinv", a, b, p)
    x = computed_where((p > 0) & (p < _RARE) & (x > 0), _polished, x, a, b, p, x)
    y = _complement(a, b, p, x)
    deep = (p > 0) & ((p < _DEEP) | (x < _LEAST) | x.isnan())
    if not asked(torch.any, deep):
        return torch.where(y < 0.5, 1 - y, x), y
    u = _deep_logit(a[deep], b[deep], p[deep])
    x, y = x.masked_scatter(deep, torch.sigmoid(u)), y.masked_scatter(deep, torch.sigmoid(-u))
    return torch.where(y < 0.5, 1 - y, x), y


def _complement(a: Tensor, b: Tensor, p: Tensor, x: Tensor) -> Tensor:
    """1 − x, solved for where it is the smaller."""
    y = computed_where(x > 0.5, lambda a, b, p: special("betainccinv", b, a, p), 1 - x, a, b, p)
    return torch.where(y.isnan(), 1 - x, y)


def _polished(a: Tensor, b: Tensor, p: Tensor, x: Tensor) -> Tensor:
    """One Newton step on the logarithms: SciPy's inverse of rare p is good to 1e-9 of p only."""
    size = special("betainc", a, b, x)
    density = (a - 1) * x.log() + (b - 1) * torch.log1p(-x) - incomplete.log_beta(a, b)
    step = (size.log() - p.log()) * (size.log() - density).exp()
    return torch.where(step.abs() < _CLOSE * x, x - step, x)


def _deep_logit(a: Tensor, b: Tensor, p: Tensor) -> Tensor:
    """Logit of the quantile of a small p, where SciPy's may be NaN.

    Newton's steps on the logarithms converge from below without overshooting, as the logarithm
    of the tail is concave in the logit; they start from the leading power x^a / (a B(a, b)).
    """
    u = (p.log() + a.log() + incomplete.log_beta(a, b)) / a
    for _ in range(_MOST_STEPS):
        log_f = incomplete.log_beta_sum(a, b, u, torch.full_like(u, -1.0))
        step = (p.log() - log_f) * (log_f - incomplete.log_logit_density(a, b, u)).exp()
        u = u + step
        if bool((step.abs() <= _EPS * u.abs()).all()):
            break
    return u
