r"""From noise to data, step by step.

    ancestral        z_s ~ N(q's mean at the guess, c σ_s²)
    deterministic    z_s = α_s x̂ + σ_s ε̂                     (DDIM)
    midpoint         the same path's differential equation, by steps of second order

Ho, Jain & Abbeel (2020), algorithm 2; Song, Meng & Ermon (2021), Denoising diffusion implicit
models, equation 12; Lu et al. (2022), DPM-Solver, algorithm 1, whose variable is −γ/2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.models.diffusion.chain import step_back
from probcalc.models.diffusion.schedules import signal_and_noise

Guess = Callable[[Tensor, Tensor], Tensor]  # z (n, p) and gamma (n) to a guess of x


@dataclass(frozen=True, eq=False)
class Step:
    """From γ_t to γ_s, nearer to the data.

    Args:
        z: z_t.
        earlier: γ_s.
        later: γ_t.
        generator: Source of noise.
    """

    z: Float[Tensor, "n p"]
    earlier: Float[Tensor, " n"]
    later: Float[Tensor, " n"]
    generator: torch.Generator


@dataclass(frozen=True)
class Ancestral:
    """A draw from the model's chain."""

    evaluations: int = 1

    def step(self, guess: Guess, at: Step) -> Float[Tensor, "n p"]:
        """From z_t to z_s."""
        z = at.z
        eps = torch.randn(z.shape, generator=at.generator, dtype=z.dtype, device=z.device)
        return step_back(z, guess(z, at.later), at.earlier, at.later).draw(eps)


@dataclass(frozen=True)
class Deterministic:
    """The probability flow by DDIM's steps: of first order, exact for a single data point."""

    evaluations: int = 1

    def step(self, guess: Guess, at: Step) -> Float[Tensor, "n p"]:
        """From z_t to z_s."""
        return _along(guess(at.z, at.later), at.z, at.earlier, at.later)


@dataclass(frozen=True)
class Midpoint:
    """The probability flow by steps of second order, two guesses each."""

    evaluations: int = 2

    def step(self, guess: Guess, at: Step) -> Float[Tensor, "n p"]:
        """From z_t to z_s by the guess half way in γ."""
        z, earlier, later = at.z, at.earlier, at.later
        half = 0.5 * (earlier + later)
        middle = _along(guess(z, later), z, half, later)
        found = guess(middle, half)
        # the noise that this guess means at the middle, held over the whole step
        a_m, s_m = (s[:, None] for s in signal_and_noise(half))
        eps = (middle - a_m * found) / s_m
        a_t, s_t = (s[:, None] for s in signal_and_noise(later))
        a_s, s_s = (s[:, None] for s in signal_and_noise(earlier))
        return (a_s / a_t) * z + (s_s - a_s * s_t / a_t) * eps


def _along(
    x: Float[Tensor, "n p"],
    z: Float[Tensor, "n p"],
    earlier: Float[Tensor, " n"],
    later: Float[Tensor, " n"],
) -> Float[Tensor, "n p"]:
    """The flow from γ_t to γ_s with a guess that is held."""
    a_t, s_t = (s[:, None] for s in signal_and_noise(later))
    a_s, s_s = (s[:, None] for s in signal_and_noise(earlier))
    return a_s * x + s_s * (z - a_t * x) / s_t
