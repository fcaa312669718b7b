"""Draws of a posterior for upper bounds of the evidence: whence they come, and what they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc._check import require_finite, unknown_name
from probcalc.inference.nuts import FromNUTS
from probcalc.inference.parameters import Values
from probcalc.inference.particles import Ensemble
from probcalc.inference.posterior import Posterior
from probcalc.inference.target import Target
from probcalc.status import Status

NUM_BLOCKS = 16  # behind the error bar, of draws that come in one row


@dataclass(frozen=True)
class Resampled:
    """The posterior's own draws by their importance weights: cheap, and no draws of p itself."""


@dataclass(frozen=True, eq=False)
class PosteriorDraws:
    """Draws in blocks.

    Args:
        z: Unconstrained draws, neighbours of a chain in one block.
        log_ratios: Log p − log q of them.
        weights: Of each, summing to one.
        source: Whence, in words.
        are_exact: Draws of the posterior, not of the guide.
        num_independent: Blocks that are independent beyond doubt.
        num_evals: What they cost.
        status: Flags.
        reasons: In words.
    """

    z: Float[Tensor, "r m d"]
    log_ratios: Float[Tensor, "r m"]
    weights: Float[Tensor, "r m"]
    source: str
    are_exact: bool
    num_independent: int
    num_evals: int = 0
    status: Status = Status.OK
    reasons: tuple[str, ...] = ()

    def picked(self, n: int, generator: torch.Generator) -> Float[Tensor, "r n d"]:
        """Draws of equal weight from every block, by systematic resampling."""
        r, m = self.weights.shape
        cumulative = self.weights.cumsum(dim=1)
        cumulative = cumulative / cumulative[:, -1:]
        shift = torch.rand((r, 1), generator=generator, dtype=torch.float64).to(cumulative.device)
        points = (torch.arange(n, device=cumulative.device) + shift) / n
        index = torch.searchsorted(cumulative, points.to(cumulative.dtype)).clamp(max=m - 1)
        return self.z.gather(1, index[..., None].expand(r, n, self.z.shape[-1]))


def resampled(posterior: Posterior) -> PosteriorDraws:
    """The draws behind a posterior with their weights."""
    flagged = posterior.status & Status.UNRELIABLE_WEIGHTS
    return PosteriorDraws(
        posterior.z,
        posterior.log_ratios,
        posterior.log_weights.flatten().softmax(dim=0).view_as(posterior.log_weights),
        "weighted draws of the guide",
        are_exact=False,
        num_independent=1,
        status=Status(flagged),
        reasons=("the weights that stand for posterior draws cannot be trusted",) * bool(flagged),
    )


def from_nuts(
    target: Target, posterior: Posterior, method: FromNUTS, generator: torch.Generator
) -> PosteriorDraws:
    """Draws by Pyro's sampler; flagged where its chains disagree."""
    chains = method.run(target, generator=generator)
    fault = chains.fault
    return _equal(
        target,
        posterior,
        chains.z.flatten(0, 1),
        f"{method.num_chains} chains of Pyro's NUTS",
        num_independent=method.num_chains,
        num_evals=chains.num_evals,
        status=Status.NOT_CONVERGED if fault else Status.OK,
        reasons=(fault,) * bool(fault),
    )


def from_ensemble(target: Target, posterior: Posterior, ensemble: Ensemble) -> PosteriorDraws:
    """Draws by many short chains; flagged where their blocks disagree.

    Args:
        target: What was sampled.
        posterior: Whose guide is weighed.
        ensemble: The draws.
    """
    fault, r = ensemble.fault, len(ensemble.z)
    return _equal(
        target,
        posterior,
        ensemble.z.flatten(0, 2),
        f"{r * ensemble.z.shape[2]:,} Hamiltonian chains",
        num_independent=r,
        num_evals=ensemble.num_evals,
        status=Status.NOT_CONVERGED if fault else Status.OK,
        reasons=(fault,) * bool(fault),
    )


def from_caller(target: Target, posterior: Posterior, values: Values) -> PosteriorDraws:
    """Draws that the caller has, as constrained values with the draws along the first axis.

    Raises:
        ValueError: For unknown or missing sites, unequal or too few draws, and values that are
            not finite or outside their support.
    """
    z = target.unconstrain_rows(_checked(target, values))
    if not bool(z.isfinite().all()):
        row = int((~z.isfinite().all(dim=1)).nonzero()[0])
        raise ValueError(
            f"`posterior_draws` must lie inside the support, draw {row} does not: it has no "
            "finite unconstrained value."
        )
    return _equal(target, posterior, z, "the draws given", num_independent=1)


def _checked(target: Target, values: Values) -> Values:
    require_finite("posterior_draws", values)
    shapes = target.layout.shapes
    tensors = {name: torch.as_tensor(value) for name, value in values.items()}
    for name, t in tensors.items():
        if name not in shapes:
            raise ValueError(unknown_name("site", name, shapes))
        if t.ndim == 0 or tuple(t.shape[1:]) != tuple(shapes[name]):
            raise ValueError(
                f"`posterior_draws[{name!r}]` must have shape (n, *{tuple(shapes[name])}), got "
                f"{tuple(t.shape)}."
            )
    counts = {name: len(t) for name, t in tensors.items()}
    if len(set(counts.values())) != 1 or min(counts.values()) < NUM_BLOCKS:
        raise ValueError(
            "`posterior_draws` must have one number of draws for every site, at least "
            f"{NUM_BLOCKS}, got {counts or 'no site'}."
        )
    target.unconstrain({name: t[0] for name, t in tensors.items()})  # says what is missing
    return tensors


def _equal(
    target: Target, posterior: Posterior, z: Float[Tensor, "s d"], source: str, **known: Any
) -> PosteriorDraws:
    """Equal weights; blocks of neighbours, the last draws left out where they fill none."""
    m = len(z) // NUM_BLOCKS
    z = z[: m * NUM_BLOCKS]
    with torch.no_grad():
        log_q = posterior.guide.log_prob(posterior.params, z)
    log_ratios = (target.log_density(z) - log_q).reshape(NUM_BLOCKS, m)
    known["num_evals"] = known.get("num_evals", 0) + len(z)
    weights = torch.full_like(log_ratios, 1.0 / len(z))
    return PosteriorDraws(
        z.reshape(NUM_BLOCKS, m, -1), log_ratios, weights, source, are_exact=True, **known
    )
