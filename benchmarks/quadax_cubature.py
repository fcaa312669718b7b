"""quadax's adaptive cubature, compiled, as a peer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

try:
    import jax
    import jax.numpy as jnp
    import quadax
except ImportError:
    quadax = None

NAME = "quadax.cubegm, degree 9, one compiled function"
_REGIONS = 2000


def genz(family: str) -> Callable[..., Any]:
    """The family's integrand of one point, for jax."""
    return {
        "oscillatory": lambda x, c, w: jnp.cos(2 * math.pi * w[0] + x @ c),
        "product peak": lambda x, c, w: (1 / (c**-2 + (x - w) ** 2)).prod(-1),
        "corner peak": lambda x, c, w: (1 + x @ c) ** (-x.shape[-1] - 1.0),
        "Gaussian": lambda x, c, w: jnp.exp(-(c**2 * (x - w) ** 2).sum(-1)),
        "continuous": lambda x, c, w: jnp.exp(-(c * jnp.abs(x - w)).sum(-1)),
        "discontinuous": lambda x, c, w: jnp.where(
            (x[:2] <= w[:2]).all(), jnp.exp((c * x).sum(-1)), 0.0
        ),
    }[family]


def solver(family: str, d: int, rtol: float) -> Callable[[np.ndarray, np.ndarray], float]:
    """The integral over the unit cube as a function of difficulties and shifts."""
    jax.config.update("jax_enable_x64", True)
    f = genz(family)

    @jax.jit
    def solve(c: Any, w: Any) -> Any:
        return quadax.cubegm(
            lambda *x: f(jnp.stack(x) if len(x) > 1 else x[0], c, w),
            jnp.tile(jnp.array([0.0, 1.0]), (d, 1)),
            epsabs=0.0,
            epsrel=rtol,
            max_nregion=_REGIONS,
            degree=9,
        )[0]

    return lambda c, w: float(jax.block_until_ready(solve(c, w)))
