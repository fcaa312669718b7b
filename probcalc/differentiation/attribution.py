r"""Which features a value comes from: gradients along the straight path from a baseline.

    a_i = (x_i − b_i) ∫₀¹ ∂_i f(b + t (x − b)) dt,   Σ a_i = f(x) − f(b)

The sum is known, so that the integral's error shows. Sundararajan, Taly & Yan (2017), Axiomatic
attribution for deep networks, ICML 34.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vmap

_POINTS = 8, 16, 32, 64, 128, 256, 512  # of the Gauss–Legendre rules tried


@dataclass(frozen=True, eq=False)
class Attribution:
    """Shares of f(x) − f(b).

    Args:
        values: By feature, of the shape of x.
        error: Largest change of a value from the rule of half as many points.
        gap: |Σ a − (f(x) − f(b))|, which would be 0.
        num_evals: Gradients taken.
        ok: Whether both reached the tolerance.
    """

    values: Float[Tensor, "*s"]
    error: float
    gap: float
    num_evals: int
    ok: bool


def integrated_gradients(
    fn: Callable[[Tensor], Tensor],
    x: Tensor,
    baseline: Tensor | None = None,
    *,
    rtol: float = 1e-4,
) -> Attribution:
    """Attribute a scalar to the features of its argument.

    Args:
        fn: Of one point; returns a scalar.
        x: The point.
        baseline: Where the path begins, default zeros.
        rtol: Of the largest value, for the error and the gap.

    Raises:
        ValueError: If the shapes differ, or `fn` returns no scalar.

    >>> found = integrated_gradients(lambda x: x[0] * x[1], torch.tensor([2.0, 3.0]))
    >>> found.values.round(decimals=3), found.ok
    (tensor([3., 3.]), True)
    """
    start = torch.zeros_like(x) if baseline is None else baseline
    if start.shape != x.shape:
        raise ValueError(
            f"`baseline` must have the shape {tuple(x.shape)} of `x`, got {tuple(start.shape)}."
        )
    top, bottom = fn(x), fn(start)
    if top.ndim:
        raise ValueError(f"`fn` must return a scalar, got shape {tuple(top.shape)}.")
    slopes, way = vmap(grad(fn)), x - start
    values, evals = None, 0
    for n in _POINTS:
        nodes, weights = np.polynomial.legendre.leggauss(n)
        t = torch.from_numpy(0.5 * (nodes + 1)).to(x).reshape(-1, *[1] * x.ndim)
        w = torch.from_numpy(0.5 * weights).to(x)
        before = values
        values = way * torch.tensordot(w, slopes(start + t * way), dims=1)
        evals += n
        gap = float((values.sum() - (top - bottom)).detach().abs())
        error = float("inf") if before is None else float((values - before).detach().abs().max())
        small = rtol * max(
            float(values.detach().abs().max()), float((top - bottom).detach().abs())
        )
        if max(gap, error) <= small:
            break
    return Attribution(values, error, gap, evals, max(gap, error) <= small)
