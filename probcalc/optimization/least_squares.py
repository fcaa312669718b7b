r"""Nonlinear least squares by Gauss and Newton, in batches.

    min ½ ‖r(x)‖²,   p = −(JᵀJ)⁻¹ Jᵀr

with Newton's line search; directions that residuals do not see are left alone. Convergence is
quadratic where residuals vanish. Björck (1996), Numerical methods for least squares problems,
section 9.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import jacfwd, vmap

from probcalc._tree import Layout
from probcalc.optimization.minimize import descend
from probcalc.optimization.newton import Newton
from probcalc.result import Solution


def least_squares(
    residuals: Callable[..., Tensor],
    init: Tensor | dict[str, Tensor],
    *,
    args: tuple[Any, ...] = (),
    batch_dims: int = 0,
    method: Newton | None = None,
    max_evals: int = 1_000,
) -> Solution:
    """Minimise half the sum of squared residuals, of one problem or a batch.

    Args:
        residuals: ``residuals(x, *args)`` of one problem returns a vector.
        init: Start; its leading `batch_dims` axes are the batch.
        args: Further tensors with the same leading axes.
        batch_dims: Number of leading batch axes.
        method: Settings of Newton's method.
        max_evals: Evaluations of each problem.

    Returns:
        Solution whose `value` is ½ ‖r‖².

    Raises:
        ValueError: If residuals are no vector.

    >>> import torch
    >>> t = torch.linspace(0, 2, 9)
    >>> fit = least_squares(
    ...     lambda p, y: p[0] * torch.exp(-p[1] * t) - y,
    ...     torch.tensor([1.0, 0.1]),
    ...     args=(3 * torch.exp(-0.7 * t),),
    ... )
    >>> fit.x.round(decimals=4)
    tensor([3.0000, 0.7000])
    """
    named = init if isinstance(init, dict) else {"x": init}
    layout = Layout({k: tuple(t.shape[batch_dims:]) for k, t in named.items()})
    batch = next(iter(named.values())).shape[:batch_dims]
    flat = layout.flatten(named).reshape(-1, layout.size)
    own = tuple(a.reshape(-1, *a.shape[batch_dims:]) for a in args)

    def single(z: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        values = layout.unflatten(z)
        r = residuals(values if isinstance(init, dict) else values["x"], *given)
        if r.ndim != 1:
            raise ValueError(f"residuals must be a vector, got shape {tuple(r.shape)}.")
        return r, r

    both = vmap(jacfwd(single, has_aux=True))

    def oracle(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        J, r = both(x, *(a[rows] for a in own))
        return 0.5 * r.square().sum(dim=-1), (J.mT @ r[..., None])[..., 0]

    def curvature(x: Tensor, rows: Tensor) -> Tensor:
        J, _ = both(x, *(a[rows] for a in own))
        return J.mT @ J

    found = descend(
        oracle, flat, method=method or Newton(), max_evals=max_evals, curvature=curvature
    )
    values = layout.unflatten(found.x.reshape(*batch, layout.size))
    names = ("value", "grad_norm", "num_iterations", "num_evals", "status")
    shaped = {name: getattr(found, name).reshape(batch) for name in names}
    best = values if isinstance(init, dict) else values["x"]
    return Solution(best, **shaped, method="Gauss–Newton")
