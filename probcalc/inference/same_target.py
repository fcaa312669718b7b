"""Is a posterior one of this target, and in which coordinates was the target explored?

A fit may have written hierarchical sites in non-centred form, and a saved posterior comes without
its target: both are settled by the log densities at the posterior's draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probcalc.inference.target import Target

if TYPE_CHECKING:
    from probcalc.inference.posterior import Posterior

_NUM_CHECKED = 16  # draws at which densities are compared
_SAME = 1e-6  # relative difference of log densities that rounding explains


def in_coordinates_of(target: Target, posterior: Posterior) -> Target:
    """The target in the coordinates of the posterior's guide.

    Args:
        target: As the user gives it.
        posterior: What was fitted to it.

    Raises:
        ValueError: If the posterior is one of another target.
    """
    if target.layout == posterior.layout:
        for own in (target, posterior.target):
            if own is not None and _same(own, target, posterior):
                return own
    raise ValueError(
        "the posterior is one of another target: its log densities are not those of this one; "
        "give the target that was fitted, or no posterior."
    )


def _same(own: Target, target: Target, posterior: Posterior) -> bool:
    """Are the densities behind the posterior those of `own`, and `own` the target itself?"""
    p = posterior
    if own.dim != p.z.shape[-1]:
        return False
    z, x, log_ratios = p.z[0, :_NUM_CHECKED], p.x[0, :_NUM_CHECKED], p.log_ratios[0, :_NUM_CHECKED]
    with torch.no_grad():
        log_q = p.guide.log_prob(p.params, z)
    density = own.log_density(z)
    if not _close(density, log_ratios + log_q):
        return False
    if own is target:
        return True
    there = target.unconstrain_rows(p.layout.unflatten(x))
    mine = density - own.log_abs_det_jacobian(z)
    return _close(mine, target.log_density(there) - target.log_abs_det_jacobian(there))


def _close(a: Tensor, b: Tensor) -> bool:
    both = a.isfinite() & b.isfinite()
    a, b = a[both], b[both]
    return torch.allclose(a, b, rtol=_SAME, atol=_SAME)
