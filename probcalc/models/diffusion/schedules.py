r"""How noise grows: γ(t) = −ln SNR, from γ_0 at the data to γ_1 at pure noise.

    z_t = α x + σ ε,   α² = sigmoid(−γ),   σ² = sigmoid(γ)

In continuous time the bound depends on the end points alone; the shape between them decides only
how much one draw of t scatters. A trained schedule is trained for that, by the gradient of the
square of every draw's term. Kingma, Salimans, Poole & Ho (2021), Variational diffusion models,
sections 5.1 and I.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from probcalc.training.parallel import among


@dataclass(frozen=True)
class LinearSchedule:
    """γ on a straight line.

    Args:
        start: γ_0, at the data.
        end: γ_1.
    """

    start: float = -8.0
    end: float = 6.0

    def __post_init__(self) -> None:
        """Check the ends.

        Raises:
            ValueError: If noise does not grow.
        """
        _check_ends(self.start, self.end)

    def build(self) -> nn.Module:
        """Its module."""
        return _Gamma(self.start, self.end, None)


@dataclass(frozen=True)
class LearnedSchedule:
    """A monotone network between two ends.

    Args:
        start: γ_0.
        end: γ_1.
        hidden: Units of the network.
    """

    start: float = -8.0
    end: float = 6.0
    hidden: int = 64

    def __post_init__(self) -> None:
        """Check the ends.

        Raises:
            ValueError: If noise does not grow.
        """
        _check_ends(self.start, self.end)

    def build(self) -> nn.Module:
        """Its module."""
        return _Gamma(self.start, self.end, _Monotone(self.hidden))


class _Gamma(nn.Module):
    """γ and its slope at times in [0, 1]."""

    start: Tensor
    end: Tensor

    def __init__(self, start: float, end: float, shape: _Monotone | None) -> None:
        super().__init__()
        self.register_buffer("start", torch.tensor(start))
        self.register_buffer("end", torch.tensor(end))
        self.shape = shape

    def forward(self, t: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """γ(t) and γ′(t)."""
        share, slope = (t, torch.ones_like(t)) if self.shape is None else self.shape(t)
        width = self.end - self.start
        return self.start + width * share, width * slope


class _Monotone(nn.Module):
    """s(t) = t + Σ a σ(b t + c) with positive a and b, scaled to s(0) = 0, s(1) = 1."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.line = nn.Parameter(torch.zeros(()))
        self.height = nn.Parameter(torch.full((hidden,), -4.0))
        self.rate = nn.Parameter(torch.full((hidden,), 8.0))
        self.place = nn.Parameter(torch.linspace(0.0, 1.0, hidden))

    def forward(self, t: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        ends, _ = self._raw(torch.stack([torch.zeros_like(t[:1]), torch.ones_like(t[:1])])[:, 0])
        value, slope = self._raw(t)
        width = ends[1] - ends[0]
        return (value - ends[0]) / width, slope / width

    def _raw(self, t: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        a, b, line = softplus(self.height), softplus(self.rate), softplus(self.line)
        s = torch.sigmoid(b * (t[:, None] - self.place))
        return line * t + s @ a, line + (s * (1 - s)) @ (a * b)


def signal_and_noise(gamma: Tensor) -> tuple[Tensor, Tensor]:
    """α and σ of the variance-preserving process."""
    return torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()


def low_discrepancy(
    n: int, generator: torch.Generator | None, like: Tensor
) -> Float[Tensor, " n"]:
    """Times that fill [0, 1] evenly: each uniform, together one in every n-th part."""
    whole, own = among(n)
    kind = {"dtype": like.dtype, "device": like.device}
    u = torch.rand((), generator=generator, **kind)
    return torch.remainder(u + torch.arange(whole, **kind) / whole, 1.0)[own]


def _check_ends(start: float, end: float) -> None:
    if not start < end:
        raise ValueError(
            f"a schedule needs start < end, since γ = −ln SNR grows with time; got {start}, {end}."
        )
