"""Point estimates of a target: the mode of its density, if it has one."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc._random import child, draw_seed
from probcalc.differentiation.curvature import central_hessian
from probcalc.inference.parameters import Values
from probcalc.inference.target import Target
from probcalc.linalg import cholesky_or_none
from probcalc.optimization.lbfgs import LBFGS
from probcalc.optimization.minimize import Method, Oracle, descend
from probcalc.result import Solution
from probcalc.status import Status

_STARTS = 0  # stream of the run's seed
_TINY = 1e-6  # a Newton step below this share of |z| + sd is rounding
_SHRINKS = 0.5  # Newton's steps near a mode shrink at least this fast
_MAX_DENSE = 512  # dimensions up to which the curvature is checked


def maximum_a_posteriori(
    target: Target,
    *,
    init: Values | None = None,
    jacobian: bool = False,
    restarts: int = 4,
    method: Method | None = None,
    max_evals: int = 1_000,
    generator: torch.Generator | None = None,
) -> Solution:
    """Find the mode of a target.

    Many hierarchical densities have none: they grow without bound as a scale goes to zero. Such
    a solution is flagged `UNBOUNDED`, and its `x` is only where the search stopped.

    Args:
        target: Its density, up to a constant.
        init: Constrained values for the first restart.
        jacobian: False: the mode of the density of the constrained values (the textbook's MAP);
            True: of the unconstrained ones, where `laplace` expands.
        restarts: Random starts, run as one batch; the best is returned.
        method: Of `minimize`, default `LBFGS()`.
        max_evals: Evaluations a restart.
        generator: Source of randomness of the starts.

    Returns:
        Solution whose `x` is a dict of constrained values and whose `value` is the negative log
        density there.

    Raises:
        ValueError: If `init` violates a constraint, or no start has a finite density.
    """
    z, solution = mode(
        target,
        init=init,
        jacobian=jacobian,
        restarts=restarts,
        method=method,
        max_evals=max_evals,
        generator=generator,
    )
    return replace(solution, x=target.constrain(z))


def mode(
    target: Target,
    *,
    init: Values | None,
    jacobian: bool,
    restarts: int,
    method: Method | None,
    max_evals: int,
    generator: torch.Generator | None,
) -> tuple[Float[Tensor, " d"], Solution]:
    """The mode as an unconstrained vector; see `maximum_a_posteriori`."""
    seed = draw_seed(generator)
    starts = target.starts(restarts, child(seed, _STARTS))
    if init is not None:
        starts = torch.cat([target.unconstrain(init)[None], starts[1:]])

    def oracle(z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        del rows  # every start has the same objective
        value, grad = target.value_and_grad(z)
        if not jacobian:
            leaf = z.detach().requires_grad_()
            log_det = target.log_abs_det_jacobian(leaf)
            value = value - log_det.detach()
            if log_det.requires_grad:
                grad = grad - torch.autograd.grad(log_det.sum(), leaf)[0]
        return -value, -grad

    found = descend(oracle, starts, method=method or LBFGS(), max_evals=max_evals)
    best = found.value.nan_to_num(torch.inf).argmin()
    z, flags = _settled(target, oracle, found.x[best])
    stopped_early = Status(int(found.status[best]))
    if flags == Status.INDEFINITE and stopped_early:
        flags = Status.UNBOUNDED  # it was still going down
    value, grad = oracle(z[None], best[None])
    return z, Solution(
        x=z,
        value=value[0],
        grad_norm=grad[0].abs().max(),
        num_iterations=found.num_iterations[best],
        num_evals=found.num_evals.sum(),
        status=torch.tensor(int(flags if flags else stopped_early)),
        method=found.method,
    )


def _settled(
    target: Target, oracle: Oracle, z: Float[Tensor, " d"]
) -> tuple[Float[Tensor, " d"], Status]:
    """Finish with two Newton steps.

    At a mode they vanish; on a slope that flattens exponentially towards infinity (a scale going
    to zero, a separated logistic regression) the gradient vanishes too, but the steps do not.
    """
    if target.dim > _MAX_DENSE:
        return z, Status.OK
    if not bool(z.isfinite().all()):
        return z, Status.UNBOUNDED
    point, steps = z, []
    for _ in range(2):
        grad = oracle(point[None], torch.zeros(1, dtype=torch.long))[1][0]
        factor = cholesky_or_none(central_hessian(lambda x: oracle(x, x)[1], point[None])[0])
        if factor is None:
            return z, Status.UNBOUNDED if steps else Status.INDEFINITE
        steps.append(torch.cholesky_solve(grad[:, None], factor)[:, 0])
        point = point - steps[-1]
    sd = torch.cholesky_inverse(factor).diagonal().sqrt()
    settled = (steps[1].abs() <= _SHRINKS * steps[0].abs()) | (
        steps[1].abs() <= _TINY * (z.abs() + sd)
    )
    return (point, Status.OK) if bool(settled.all()) else (z, Status.UNBOUNDED)
