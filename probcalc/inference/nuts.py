"""Draws of a target by Pyro's no-U-turn sampler, with what tells whether to believe them.

Hoffman & Gelman (2014), The no-U-turn sampler; Vehtari, Gelman, Simpson, Carpenter & Bürkner
(2021), Rank-normalization, folding and localization: an improved R-hat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from pyro.infer.mcmc import MCMC, NUTS
from pyro.ops.stats import split_gelman_rubin
from torch import Tensor

from probcalc._random import child, draw_seed, forked
from probcalc.inference.target import Target

ACCEPTANCE = 0.9  # above the usual 0.8: smaller steps, fewer divergences in narrow places


class Potential:
    """Negative log density of one vector, as Pyro asks for it, and a count of its calls.

    Args:
        target: The density.
        progress: Called with a stage's name and the gradient evaluations so far.
    """

    def __init__(self, target: Target, progress: Callable[[str, int], None] | None = None) -> None:
        self.target, self.num_evals, self.stage, self._progress = target, 0, "", progress

    def __call__(self, site: dict[str, Tensor]) -> Tensor:
        """Minus log density of ``site["z"]``."""
        self.num_evals += 1
        if self._progress and self.num_evals % 100 == 0:
            self._progress(self.stage, self.num_evals)
        return _OwnGradient.apply(site["z"], self.target)


class _OwnGradient(torch.autograd.Function):
    """The target's own gradient, which is faster than autograd through its graph."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, z: Tensor, target: Target) -> Tensor:
        value, grad = target.value_and_grad(z[None])
        ctx.save_for_backward(grad[0])
        return -value[0]

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, upstream: Tensor
    ) -> tuple[Tensor, None]:
        return -upstream * ctx.saved_tensors[0], None


def run_chain(
    potential: Potential, generator: torch.Generator, *, num_draws: int, num_warmup: int
) -> tuple[Float[Tensor, "n d"], int]:
    """One chain from a random start: its draws, and how many of its steps diverged.

    Args:
        potential: Density to sample.
        generator: Source of the start, and of a seed for Pyro, whose samplers take none.
        num_draws: Draws after the warm-up.
        num_warmup: Steps of adaptation, dropped.
    """
    start = potential.target.starts(1, generator)[0]
    kernel = NUTS(potential_fn=potential, full_mass=True, target_accept_prob=ACCEPTANCE)
    sampler = MCMC(
        kernel,
        num_samples=num_draws,
        warmup_steps=num_warmup,
        initial_params={"z": start},
        disable_progbar=True,
    )
    with forked(generator.initial_seed()):
        sampler.run()
    return sampler.get_samples()["z"], len(sampler.diagnostics()["divergences"]["chain 0"])


@dataclass(frozen=True)
class FromNUTS:
    """Posterior draws by several chains from random starts.

    Args:
        num_draws: Of each chain, after its warm-up.
        num_warmup: Steps of adaptation, dropped.
        num_chains: Independent chains, one after another.
        max_rhat: Split R̂ of any coordinate above which the chains disagree.
    """

    num_draws: int = 400
    num_warmup: int = 300
    num_chains: int = 4
    max_rhat: float = 1.05

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If chains are too few or too short to be compared.
        """
        if self.num_chains < 2:
            raise ValueError(
                f"`num_chains` must be at least 2, got {self.num_chains}: one chain cannot "
                "disagree with itself."
            )
        if self.num_draws < 40 or self.num_warmup < 20:
            raise ValueError(
                "`num_draws` must be at least 40 and `num_warmup` at least 20, got "
                f"{self.num_draws} and {self.num_warmup}."
            )

    def run(self, target: Target, *, generator: torch.Generator | None = None) -> Chains:
        """Sample a target.

        Args:
            target: What to sample.
            generator: Source of randomness; one seed is drawn from it.

        Raises:
            ValueError: If the density is finite at no start.
        """
        seed, potential = draw_seed(generator), Potential(target)
        chains, divergences = [], 0
        for k in range(self.num_chains):
            z, diverged = run_chain(
                potential,
                child(seed, k),
                num_draws=self.num_draws,
                num_warmup=self.num_warmup,
            )
            chains.append(z)
            divergences += diverged
        return Chains(torch.stack(chains), divergences, potential.num_evals, self.max_rhat)


@dataclass(frozen=True, eq=False)
class Chains:
    """Draws of several chains.

    Args:
        z: Unconstrained draws.
        divergences: Steps whose energy ran away.
        num_evals: Gradients spent, warm-up included.
        max_rhat: Limit of split R̂.
    """

    z: Float[Tensor, "c n d"]
    divergences: int
    num_evals: int
    max_rhat: float

    @property
    def rhat(self) -> float:
        """The largest split R̂ of all coordinates."""
        return float(split_gelman_rubin(self.z, chain_dim=0, sample_dim=1).max())

    @property
    def fault(self) -> str:
        """Why the draws are not to be believed; empty where they are."""
        rhat = self.rhat
        if not rhat <= self.max_rhat:
            return f"the chains disagree: split R-hat {rhat:.2f} is above {self.max_rhat:.2f}"
        if self.divergences:
            return f"{self.divergences} steps of the chains diverged: a narrow place is not seen"
        return ""
