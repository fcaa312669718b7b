r"""How far signals and gradients reach in deep networks at their start.

    q ← σ_w² E φ(√q z)² + σ_b²,   χ = σ_w² E φ′(√q z)²,   z ~ N(0, 1)

q is the variance of the sums of a wide layer, and χ the factor by which squared gradients change
from layer to layer: they vanish for χ < 1, explode for χ > 1, and change by e over 1/|ln χ|
layers. Poole et al. (2016), NeurIPS 29; Schoenholz et al. (2017), Deep information propagation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributions as td

from probcalc.differentiation.activations import Activation
from probcalc.integration.expect import expect

_MAX_STEPS = 500
_SETTLED = 1e-10
_CRITICAL = 1e-6  # |ln χ| below which gradients neither vanish nor explode


@dataclass(frozen=True)
class GradientFlow:
    """Of networks with one activation and one scale of weights.

    Args:
        variance: Of the sums of a deep layer; of the first where no fixed point exists.
        factor: χ, by which squared gradients change per layer.
        error: Of χ, at this variance.
        settled: Whether the variance came to rest; where it still falls or grows (rectifiers whose
            scale drifts, tanh at the edge of chaos), χ is that of the last layer looked at.
    """

    variance: float
    factor: float
    error: float
    settled: bool

    @property
    def verdict(self) -> str:
        """vanishes, explodes, or keeps its size."""
        if abs(math.log(self.factor)) <= _CRITICAL:
            return "keeps its size"
        return "vanishes" if self.factor < 1 else "explodes"

    @property
    def depth_scale(self) -> float:
        """Layers over which squared gradients change by e."""
        rate = abs(math.log(self.factor))
        return math.inf if rate <= _CRITICAL else 1 / rate

    def depth(self, change: float = 1e6) -> float:
        """Layers after which gradients are smaller or larger by this factor."""
        return 2 * math.log(change) * self.depth_scale


def gradient_flow(
    activation: Activation, *, weight_gain: float, bias_std: float = 0.0, variance: float = 1.0
) -> GradientFlow:
    """Fixed point of the variance, and the factor of squared gradients there.

    Args:
        activation: φ.
        weight_gain: σ_w: the weights' standard deviation times the root of the inputs' number; 1
            for Xavier's weights in layers of one width, √2 for He's.
        bias_std: σ_b.
        variance: Of the sums of the first layer.

    Raises:
        ValueError: If a scale is negative.

    >>> from probcalc.differentiation.activations import ReLU, Sigmoid
    >>> gradient_flow(ReLU(), weight_gain=2**0.5).verdict
    'keeps its size'
    >>> round(gradient_flow(Sigmoid(), weight_gain=1.0).depth(1e6))
    10
    """
    if not (weight_gain > 0 and bias_std >= 0 and variance > 0):
        raise ValueError("`weight_gain` and `variance` must be positive, `bias_std` at least 0.")
    normal = td.Normal(torch.zeros(()).double(), 1.0)
    q = variance
    for _ in range(_MAX_STEPS):
        moment = expect(_Squared(activation, math.sqrt(q), False), normal)
        new = weight_gain**2 * float(moment.value) + bias_std**2
        settled = abs(new - q) <= _SETTLED * q
        if settled or not 1e-12 < new < 1e12:
            break
        q = new
    slope = expect(_Squared(activation, math.sqrt(q), True), normal)
    gain = weight_gain**2
    return GradientFlow(q, gain * float(slope.value), gain * float(slope.error), settled)


@dataclass(frozen=True)
class _Squared:
    activation: Activation
    scale: float
    slope: bool

    def __call__(self, z: Tensor) -> Tensor:
        fn = self.activation.derivative if self.slope else self.activation
        return fn(self.scale * z).square()
