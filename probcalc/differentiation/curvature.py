r"""Curvature: Hessians by differences of gradients, and what a critical point is.

At ∇f = 0 the eigenvalues of the Hessian say it: all positive, a minimum; all negative, a maximum;
both, a saddle; one that is zero to rounding, degenerate, and higher derivatives decide. Nocedal &
Wright (2006), Numerical optimization, theorem 2.4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from probcalc.differentiation.autodiff import grad, hessian, hvp

Kind = Literal["minimum", "maximum", "saddle", "degenerate", "not critical"]

_LARGE = 500  # coordinates from which on the ends of the spectrum are enough
_ZERO = 1e3 * torch.finfo(torch.float64).eps  # of the largest eigenvalue


def central_hessian(
    gradient: Callable[[Float[Tensor, "k d"]], Float[Tensor, "k d"]],
    points: Float[Tensor, "n d"],
    scale: Float[Tensor, " d"] | float = 1.0,
) -> Float[Tensor, "n d d"]:
    """Hessians by central differences of an exact gradient, symmetrised.

    All 2 n d gradients are one batch. The relative error is about 1e-10 in float64 where `scale`
    is the length over which the function changes.

    Args:
        gradient: Of rows ``(k, d)``.
        points: Where the Hessians are wanted.
        scale: Length of each coordinate.
    """
    n, d = points.shape
    step = torch.finfo(points.dtype).eps ** (1 / 3) * torch.as_tensor(scale).to(points)
    shift = torch.diag_embed(step.expand(d))
    around = torch.stack([points[:, None] + shift, points[:, None] - shift])  # (2, n, d, d)
    upper, lower = gradient(around.reshape(-1, d)).reshape(2, n, d, d)
    H = (upper - lower) / (2 * step.expand(d)[:, None])
    return 0.5 * (H + H.mT)


@dataclass(frozen=True, eq=False)
class CriticalPoint:
    """What a point is to a function.

    Args:
        kind: "minimum", "maximum", "saddle", "degenerate" (an eigenvalue is zero to rounding) or
            "not critical".
        gradient_norm: Largest component of the gradient.
        eigenvalues: Of the Hessian, ascending: all of them, or the least and the largest.
        condition_number: Largest over smallest size of an eigenvalue; of ends that enclose zero
            in large problems a lower bound.
    """

    kind: Kind
    gradient_norm: float
    eigenvalues: Float[Tensor, " k"]
    condition_number: float


def classify_critical_point(
    fn: Callable[..., Tensor],
    x: Tensor,
    *,
    args: tuple[Any, ...] = (),
    tolerance: float = 1e-6,
) -> CriticalPoint:
    """Whether a point is a minimum, a maximum, a saddle or none of these.

    With more than 500 coordinates only the ends of the spectrum are computed, by Lanczos's method
    on products of the Hessian with vectors (`scipy.sparse.linalg.eigsh`).

    Args:
        fn: ``fn(x, *args)``, with a scalar value.
        x: The point, ``(d)``, in float64 for all digits.
        args: Passed on.
        tolerance: Components of the gradient up to this count as zero.

    Raises:
        ValueError: If `x` is no vector, or the derivatives are not finite.

    >>> classify_critical_point(lambda x: x[0] ** 2 - x[1] ** 2, torch.zeros(2)).kind
    'saddle'
    """
    if x.ndim != 1 or not len(x):
        raise ValueError(f"`x` must be a vector, got shape {tuple(x.shape)}.")
    slope = float(grad(fn, x, args=args).detach().abs().max())
    ends = _ends_of_spectrum if len(x) > _LARGE else _spectrum
    values = ends(fn, x.detach(), args)
    if not (np.isfinite(slope) and bool(values.isfinite().all())):
        raise ValueError("the first and second derivatives must be finite at the point.")
    size = values.abs()
    zero = max(_ZERO, 1e3 * torch.finfo(x.dtype).eps) * float(size.max())
    low, high = float(values[0]), float(values[-1])
    if slope > tolerance:
        kind: Kind = "not critical"
    elif low < -zero and high > zero:
        kind = "saddle"
    elif float(size.min()) <= zero:
        kind = "degenerate"
    else:
        kind = "minimum" if low > 0 else "maximum"
    smallest = float(size.min())
    condition = float(size.max()) / smallest if smallest > 0 else float("inf")
    return CriticalPoint(kind, slope, values, condition)


def _spectrum(fn: Callable[..., Tensor], x: Tensor, args: tuple[Any, ...]) -> Tensor:
    H = hessian(fn, x, args=args).detach().double()
    if not bool(H.isfinite().all()):
        return H.new_full((1,), float("nan"))
    return torch.linalg.eigvalsh(0.5 * (H + H.mT))


def _ends_of_spectrum(fn: Callable[..., Tensor], x: Tensor, args: tuple[Any, ...]) -> Tensor:
    def product(v: np.ndarray) -> np.ndarray:
        along = torch.as_tensor(v, dtype=x.dtype, device=x.device).reshape(x.shape)
        return hvp(fn, x, along, args=args).detach().double().cpu().numpy()

    d = len(x)
    start = np.random.default_rng(0).standard_normal(d)
    operator = LinearOperator((d, d), matvec=product, dtype=np.float64)
    ends = eigsh(operator, k=2, which="BE", v0=start, return_eigenvectors=False)
    return torch.as_tensor(np.sort(ends))
