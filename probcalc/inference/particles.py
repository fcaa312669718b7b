r"""Draws of a target by many short Hamiltonian chains at once.

Annealed particles, resampled within independent blocks by their weights, follow moves that leave
the target as it is. Chains of a block are one super-chain, and

    R̂ = sqrt(1 + between/within)

compares the blocks' means with the spread inside them. What no block has seen shows in Stein's
identity E[1 + (z − E z) ∂ log p/∂z] = 0, which draws of p fulfil.

Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari & Gelman (2024), Nested R-hat: assessing the
convergence of Markov chain Monte Carlo when running many short chains; Gorham & Mackey (2015),
Measuring sample quality with Stein's method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

from probcalc.inference.annealed import (
    AnnealedImportance,
    Bridge,
    Schedule,
    forward,
    hamiltonian,
)

_SNAPSHOTS = 4  # of every chain, apart in its second half
_FALSE_ALARM = 0.01  # of the check by Stein's identity
_POOR = 0.3  # share of moves accepted, of all after the warm-up, below which nothing is believed


@dataclass(frozen=True)
class FromAnnealing:
    """Posterior draws by many short Hamiltonian chains that start at annealed particles.

    Args:
        num_moves: Moves of each chain; the first half adapts the step size and is dropped.
        num_leapfrog: Leapfrog steps of a move.
        max_rhat: Nested R̂ of any coordinate above which the blocks of chains disagree.
    """

    num_moves: int = 50
    num_leapfrog: int = 16
    max_rhat: float = 1.03

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If chains are too short, or R̂ can never be below its limit.
        """
        if self.num_moves < 2 * _SNAPSHOTS or self.num_leapfrog < 1:
            raise ValueError(
                f"`num_moves` must be at least {2 * _SNAPSHOTS} and `num_leapfrog` at least 1, "
                f"got {self.num_moves} and {self.num_leapfrog}."
            )
        if not self.max_rhat > 1.0:
            raise ValueError(f"`max_rhat` must be above 1, got {self.max_rhat}.")

    def run(
        self,
        bridge: Bridge,
        schedule: Schedule,
        annealing: AnnealedImportance,
        num_blocks: int,
        generator: torch.Generator,
    ) -> Ensemble:
        """Anneal, resample and move.

        Args:
            bridge: From a guide to the target.
            schedule: Its temperatures.
            annealing: Settings of the particles.
            num_blocks: Independent blocks.
            generator: Source of randomness.
        """
        log_w, now = forward(bridge, schedule, annealing, num_blocks, generator)
        now = now.chosen(_within_blocks(log_w, generator))
        there = Bridge.between(bridge.target, bridge.guide, bridge.params, now.z)
        step = schedule.steps[-1] if schedule.steps else bridge.target.dim**-0.25
        log_step, rates, kept, grads = math.log(step), [], [], []
        half = self.num_moves // 2
        for i in range(self.num_moves):
            step = math.exp(log_step)
            now, rate = hamiltonian(there, now, 1.0, step, self.num_leapfrog, generator)
            if i < half:
                log_step += (float(rate.mean()) - annealing.acceptance) / (1 + i / 8)
            else:
                rates.append(float(rate.mean()))
                if (i + 1 - half) * _SNAPSHOTS // half > len(kept):
                    kept.append(now.z.unflatten(0, log_w.shape))
                    grads.append(now.grad_p.unflatten(0, log_w.shape))
        steps = self.num_moves * self.num_leapfrog + schedule.gradients(annealing)
        acceptance = sum(rates) / len(rates)
        z, grad = torch.stack(kept, dim=1), torch.stack(grads, dim=1)
        return Ensemble(z, acceptance, self.max_rhat, steps * log_w.numel(), grad)


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Draws of many chains.

    Args:
        z: Unconstrained draws: blocks, snapshots, chains of a block.
        acceptance: Share of moves accepted.
        max_rhat: Limit of nested R̂.
        num_evals: Gradients, of the annealing too.
        grad: Of the log density at the draws.
    """

    z: Float[Tensor, "r s n d"]
    acceptance: float
    max_rhat: float
    num_evals: int
    grad: Float[Tensor, "r s n d"] | None = None

    @property
    def stein(self) -> float:
        """Student's t of Stein's identity over blocks, the largest of all coordinates."""
        if self.grad is None:
            return 0.0
        centred = self.z - self.z.mean(dim=(0, 1, 2))
        blocks = (1 + centred * self.grad).mean(dim=(1, 2))
        return float((blocks.mean(dim=0) / blocks.std(dim=0)).abs().max()) * len(blocks) ** 0.5

    @property
    def rhat(self) -> float:
        """The largest nested R̂ of all coordinates."""
        z = self.z.flatten(1, 2)
        between, within = z.mean(dim=1).var(dim=0), z.var(dim=1).mean(dim=0)
        return float((1 + between / within).sqrt().max())

    @property
    def fault(self) -> str:
        """Why the draws are not to be believed; empty where they are."""
        rhat = self.rhat
        if not rhat <= self.max_rhat:
            return f"the chains disagree: nested R-hat {rhat:.2f} is above {self.max_rhat:.2f}"
        r, d = len(self.z), self.z.shape[-1]
        if self.stein > float(stdtrit(r - 1, 1 - _FALSE_ALARM / (2 * d))):
            return "the chains have not seen all of the posterior: Stein's identity fails"
        if self.acceptance < _POOR:
            return f"only {self.acceptance:.0%} of the moves were accepted: the chains stand still"
        return ""


def _within_blocks(log_w: Float[Tensor, "r n"], generator: torch.Generator) -> Tensor:
    """Numbers of particles, drawn by their weights among those of the same block."""
    r, n = log_w.shape
    shift = torch.rand((r, 1), generator=generator, dtype=log_w.dtype, device=log_w.device)
    points = (torch.arange(n, device=log_w.device) + shift) / n
    cumulative = log_w.softmax(dim=1).cumsum(dim=1)
    index = torch.searchsorted(cumulative, points).clamp(max=n - 1)
    return (index + n * torch.arange(r, device=log_w.device)[:, None]).flatten()
