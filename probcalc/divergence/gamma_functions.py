r"""Gamma functions beyond their leading terms, by arithmetic that vectorises.

Each argument a is moved to z = a + 8, where Stirling's series has its digits. With q = a (a + 7)
the product that this passes over is

    a (a + 1) … (a + 7) = q (q + 6) (q + 10) (q + 12)

Abramowitz & Stegun (1964), 6.1.15, 6.1.40, 6.3.18 and 6.4.12. All arguments are positive, and the
logarithm of a/z, which is taken off everywhere, has its digits for small a and for large ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_SHIFT = 8
_INNER = (0.0, 6.0, 10.0, 12.0)  # (a + k) (a + 7 − k) above q
_LEAST = 2.0**-53 - 1  # so that a logarithm of one more is finite
# B_2k / (2k (2k − 1)): of ln Γ beyond its leading terms
_STIRLING = (
    1 / 12,
    -1 / 360,
    1 / 1260,
    -1 / 1680,
    1 / 1188,
    -691 / 360360,
    1 / 156,
    -3617 / 122400,
)


def lgamma_excess(a: Float[Tensor, "*a"]) -> Float[Tensor, "*a"]:
    """The value ln Γ(a) − a ln a + a."""
    z = a + _SHIFT
    leading = 0.5 * (math.log(2 * math.pi) - z.log()) - _SHIFT
    return leading + _lgamma_series(z) - a * _log_moved(z) - _passed(a, z).log()


def digamma_excess(a: Float[Tensor, "*a"]) -> Float[Tensor, "*a"]:
    """ψ(a) − ln a."""
    z = a + _SHIFT
    return _digamma_series(z) - _log_moved(z) - _sum_of_inverses(a)


def trigamma_excess(a: Float[Tensor, "*a"]) -> Float[Tensor, "*a"]:
    """ψ′(a) − 1/a."""
    z = a + _SHIFT
    return _trigamma_series(z) - _SHIFT / (a * z) + _sum_of_squares(a)


def trigamma(a: Float[Tensor, "*a"]) -> Float[Tensor, "*a"]:
    """ψ′(a), which torch has to ten digits only."""
    z = a + _SHIFT
    return 1 / z + _trigamma_series(z) + _sum_of_squares(a)


def shape_tangent_gap(a: Float[Tensor, "*a"], b: Float[Tensor, "*b"]) -> Float[Tensor, "*out"]:
    """What `lgamma_excess` is at b above its tangent at a, for arguments that are not near."""
    za, zb = a + _SHIFT, b + _SHIFT
    la, lb = _log_moved(za), _log_moved(zb)
    slope = _sum_of_inverses(a) - _digamma_series(za)
    logs = (_passed(b, zb) / _passed(a, za)).log() + 0.5 * (zb / za).log()
    return (b - a) * slope - b * (lb - la) - logs + _lgamma_series(zb) - _lgamma_series(za)


def _log_moved(z: Tensor) -> Tensor:
    """Ln of a/z, with an error of 8/a units in the last place."""
    return torch.log1p((-_SHIFT / z).clamp(min=_LEAST))


def _passed(a: Tensor, z: Tensor) -> Tensor:
    """The product of all a + k, over z⁸."""
    w = z.square().reciprocal()
    q = a * (a + 7) * w
    return q * (q + 6 * w) * (q + 10 * w) * (q + 12 * w)


def _sum_of_inverses(a: Tensor) -> Tensor:
    """Σ 1/(a + k), two by two."""
    q = a * (a + 7)
    return (2 * a + 7) * sum((q + inner).reciprocal() for inner in _INNER)


def _sum_of_squares(a: Tensor) -> Tensor:
    """Σ 1/(a + k)², two by two: ((2a + 7)² − 2q′)/q′² with q′ = (a + k)(a + 7 − k)."""
    q = a * (a + 7)
    total: Tensor | float = 0.0
    for inner in _INNER:
        r = (q + inner).reciprocal()
        total = total + r * ((4 * q + 49) * r - 2)
    return total


def _lgamma_series(z: Tensor) -> Tensor:
    return _series(z.square().reciprocal(), lambda k, c: c) / z


def _digamma_series(z: Tensor) -> Tensor:
    """Of ψ(z) − ln z."""
    inverse = z.square().reciprocal()
    return inverse * _series(inverse, lambda k, c: -(2 * k - 1) * c) - 0.5 / z


def _trigamma_series(z: Tensor) -> Tensor:
    """Of ψ′(z) − 1/z."""
    inverse = z.square().reciprocal()
    return inverse * (0.5 + _series(inverse, lambda k, c: (2 * k - 1) * 2 * k * c) / z)


def _series(inverse: Tensor, coefficient: Callable[[int, float], float]) -> Tensor:
    """Σ c_k z^−(2k − 2), from 1/z², by Horner's scheme."""
    total: Tensor | float = coefficient(len(_STIRLING), _STIRLING[-1])
    for k in range(len(_STIRLING) - 1, 0, -1):
        total = total * inverse + coefficient(k, _STIRLING[k - 1])
    return total
