"""When an integral is accurate enough."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.integration.measure import Sums

_SMALL_NOISE = 1e-5  # of the integral of |f|: more is not rounding but a pole come near


@dataclass(frozen=True)
class Goal:
    """When to stop.

    Args:
        rtol: Relative tolerance of every output.
        atol: Absolute tolerance of every output.
        max_evals: Evaluations that an element may spend.
    """

    rtol: float
    atol: float
    max_evals: int

    def tolerance(self, sums: Sums) -> Float[Tensor, "k o"]:
        """What the error may be: not less than rounding, as long as that is small."""
        asked = (self.rtol * sums.value.abs()).clamp(min=self.atol)
        rounding = torch.where(sums.noise.isinf(), math.inf, _SMALL_NOISE * sums.size)
        return torch.maximum(asked, rounding.minimum(2.0 * sums.noise))

    def allowed(self, magnitude: Any, noise: Any) -> Any:
        """The same, of NumPy's arrays or tensors, where rounding is known to be small."""
        top = torch.maximum if torch.is_tensor(magnitude) else np.maximum
        return top(top(self.rtol * magnitude, 2.0 * noise), self.atol + 0.0 * noise)

    def allowed_of(self, value: float, noise: float) -> float:
        """The same, of one number."""
        return max(self.rtol * abs(value), 2.0 * noise, self.atol)
