r"""KL(p‖q) from Kumaraswamy's distribution, to another or to a beta distribution.

Kumaraswamy (1980), J. Hydrology 46; Jones (2009), Statistical Methodology 6, for its moments. With
X^a = 1 − e^(−S/b) and S exponential, what is left to be found is

    −E ln(1 − X^(ra)) = Σ_k b B(1 + rk, b)/k = ∫_0^∞ e^(−s) g(s/b) ds
    g(σ) = −ln(1 − (1 − e^(−σ))^r)

The sum falls as slowly as k^(−1−b), and cut off after some terms it misses nats where b is small.
The integrand is smooth in ln s on the whole line, and the trapezoidal rule there is exact to
rounding; Trefethen & Weideman (2014), SIAM Review 56, theorem 5.1, for its step.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributions as td

_LEFT, _RIGHT = -42.0, 4.0  # of ln s, beyond which less than rounding is left
_WIDEST, _STRIP = 0.25, 2 * math.pi / 39  # steps: of e^(−s), and per angle to the next singularity
_CHUNK = 2**20  # values held at once


def kumaraswamy_terms(p: td.Kumaraswamy, q: td.Distribution) -> list[Tensor] | None:
    """Terms whose sum is KL(p‖q), in float64; None where they are not known."""
    a, b = p.concentration1, p.concentration0
    mean_log = -(torch.digamma(b + 1) + np.euler_gamma) / a
    entropy = [-(a * b).log(), (1 - a) * mean_log, (b - 1) / b]
    if isinstance(q, td.Kumaraswamy):
        c, d = q.concentration1, q.concentration0
        scale, fall = [-(c * d).log()], mean_log_rest(c / a, b)
    elif isinstance(q, td.Beta):
        c, d = q.concentration1, q.concentration0
        scale = [torch.lgamma(c), torch.lgamma(d), -torch.lgamma(c + d)]
        fall = mean_log_rest(1 / a, b)
    else:
        return None
    return [*scale, (1 - c) * mean_log, (1 - d) * fall, *(-t for t in entropy)]


def mean_log_rest(r: Float[Tensor, "*r"], b: Float[Tensor, "*b"]) -> Float[Tensor, "*rb"]:
    """E ln(1 − Y^r), Y a beta variable with parameters 1 and b."""
    r, b = torch.broadcast_tensors(r, b)
    step = min(_WIDEST, _STRIP * _angle(float(r.detach().max())))
    v = torch.arange(_LEFT, _RIGHT, step, dtype=r.dtype, device=r.device)
    weights = step * (v - v.exp()).exp()
    v, weights = v[weights > 0], weights[weights > 0]
    size = max(1, _CHUNK // len(v))
    pieces = [
        -(weights * _fall(v.exp() / b[:, None], r[:, None])).sum(dim=-1)
        for r, b in zip(r.reshape(-1).split(size), b.reshape(-1).split(size), strict=True)
    ]
    return torch.cat(pieces).reshape(r.shape)


def _angle(r: float) -> float:
    """In the plane of σ, from the line to where 1 − e^(−σ) is the next r-th root of 1."""
    if r <= 2:
        return 0.5 * math.pi
    turn = 2 * math.pi / r
    return math.atan2(0.5 * (math.pi - turn), max(0.0, -math.log(2 * math.sin(0.5 * turn))))


def _fall(sigma: Tensor, r: Tensor) -> Tensor:
    """The function g: like σ − ln r far out, and like σ^r next to zero."""
    small = sigma < 1
    safe = torch.where(small, sigma, 1.0)
    near = (-torch.log(-torch.expm1(-safe))).log()
    gone = torch.where(small, 1.0, sigma)
    rest = (-gone).exp().clamp(min=torch.finfo(sigma.dtype).tiny)
    far = (-torch.log1p(-rest) / rest).log() - gone
    log_z = r.log() + torch.where(small, near, far)
    # −ln(1 − e^(−z))
    apart = log_z > 0
    z = torch.where(apart, log_z, 0.0).exp()
    large = -torch.log1p(-torch.exp(-z))
    z = torch.where(apart, 0.0, log_z).exp().clamp(min=torch.finfo(sigma.dtype).tiny)
    return torch.where(apart, large, -(-torch.expm1(-z) / z).log() - log_z)
