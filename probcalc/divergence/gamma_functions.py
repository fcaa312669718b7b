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

from probcalc.distributions.special import readable

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
    z, w = _moved(a)
    leading = 0.5 * (math.log(2 * math.pi) - z.log()) - _SHIFT
    return leading + _lgamma_series(z, w) - a * _log_moved(z) - _passed(a, z, w).log()


def digamma_excess(a: Float[Tensor, "*a"]) -> Float[Tensor, "*a"]:
    """ψ(a) − ln a."""
    z, w = _moved(a)
    return _digamma_series(z, w) - _log_moved(z) - _sum_of_inverses(a)


def trigamma_excess(a: Float[Tensor, "*a"]) -> Float[Tensor, "*a"]:
    """ψ′(a) − 1/a."""
    z, w = _moved(a)
    return _trigamma_series(z, w) - _SHIFT / (a * z) + _sum_of_squares(a)


def trigamma(a: Float[Tensor, "*a"]) -> Float[Tensor, "*a"]:
    """ψ′(a), which torch has to ten digits only."""
    z, w = _moved(a)
    return 1 / z + _trigamma_series(z, w) + _sum_of_squares(a)


def shape_tangent_gap(a: Float[Tensor, "*a"], b: Float[Tensor, "*b"]) -> Float[Tensor, "*out"]:
    """What `lgamma_excess` is at b above its tangent at a, for arguments that are not near."""
    (za, wa), (zb, wb) = _moved(a), _moved(b)
    apart, moved = b - a, _log_moved(zb) - _log_moved(za)
    slope = _sum_of_inverses(a) - _digamma_series(za, wa)
    # of both logarithms' arguments, the second under a root
    logs = (_passed(b, zb, wb) / _passed(a, za, wa) * (zb / za).sqrt()).log()
    rest = _lgamma_series(zb, wb) - _lgamma_series(za, wa)
    return torch.addcmul(rest - logs, apart, slope).addcmul(b, moved, value=-1)


def _moved(a: Tensor) -> tuple[Tensor, Tensor]:
    """The argument where the series has its digits, and one over its square."""
    z = a + _SHIFT
    return z, z.square().reciprocal()


def _log_moved(z: Tensor) -> Tensor:
    """Ln of a/z, with an error of 8/a units in the last place."""
    return torch.log1p((-_SHIFT / z).clamp(min=_LEAST))


def _passed(a: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """The product of all a + k, over z⁸; w is 1/z²."""
    q = a * (a + 7) * w
    product = q
    for inner in _INNER[1:]:
        product = product * torch.add(q, w, alpha=inner)
    return product


def _sum_of_inverses(a: Tensor) -> Tensor:
    """Σ 1/(a + k), two by two."""
    q = a * (a + 7)
    total = q.reciprocal()
    for inner in _INNER[1:]:
        total = total + (q + inner).reciprocal()
    return (2 * a + 7) * total


def _sum_of_squares(a: Tensor) -> Tensor:
    """Σ 1/(a + k)², two by two: ((2a + 7)² − 2q′)/q′² with q′ = (a + k)(a + 7 − k)."""
    q = a * (a + 7)
    total: Tensor | float = 0.0
    for inner in _INNER:
        r = (q + inner).reciprocal()
        total = total + r * ((4 * q + 49) * r - 2)
    return total


def _lgamma_series(z: Tensor, w: Tensor) -> Tensor:
    return _series(w, lambda k, c: c) / z


def _digamma_series(z: Tensor, w: Tensor) -> Tensor:
    """Of ψ(z) − ln z."""
    return w * _series(w, lambda k, c: -(2 * k - 1) * c) - 0.5 / z


def _trigamma_series(z: Tensor, w: Tensor) -> Tensor:
    """Of ψ′(z) − 1/z."""
    return w * (0.5 + _series(w, lambda k, c: (2 * k - 1) * 2 * k * c) / z)


def _series(w: Tensor, coefficient: Callable[[int, float], float]) -> Tensor:
    """Σ c_k z^−(2k − 2), from w = 1/z², by Horner's scheme."""
    last, *rest = [coefficient(k, c) for k, c in enumerate(_STIRLING, start=1)][::-1]
    if w.device.type == "cpu" and readable(w):
        # in one pass over the numbers for each
        constants = torch.tensor(rest, dtype=w.dtype).unbind()
        total = torch.add(constants[0], w, alpha=last)
        for c in constants[1:]:
            total = torch.addcmul(c, total, w)
        return total
    total = w * last + rest[0]
    for c in rest[1:]:
        total = total * w + c
    return total
