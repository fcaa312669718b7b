r"""KL of independent normals by location and log scale, coordinate by coordinate.

    KL(p‖q) = ½ (e^{2r} − 1 − 2r + (μ_p − μ_q)²/σ_q²),   r = ln σ_p − ln σ_q

The form that networks give, in any precision: nothing cancels where p and q are near.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def normal_kl(
    p_loc: Float[Tensor, "*p"],
    p_log_scale: Float[Tensor, "*p"],
    q_loc: Float[Tensor, "*q"],
    q_log_scale: Float[Tensor, "*q"],
) -> Float[Tensor, "*out"]:
    """KL(p‖q) in nats, of the shape that the arguments broadcast to; differentiable."""
    r = 2 * (p_log_scale - q_log_scale)
    away = (p_loc - q_loc) * (-q_log_scale).exp()
    return 0.5 * (torch.expm1(r) - r + away.square())
