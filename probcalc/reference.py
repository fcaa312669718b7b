r"""Reference posteriors: means and standard deviations by long runs of Pyro's NUTS.

Chains are run one after another until every mean and every variance has the wanted number of
effective draws. The standard error of a mean is s/√ESS(x), that of a standard deviation
sd((x − m)²)/(2 s √ESS((x − m)²)). Hoffman & Gelman (2014), The no-U-turn sampler;
Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), Rank-normalization, folding and
localization, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from probcalc._random import child
from probcalc.inference.nuts import Potential, run_chain
from probcalc.inference.target import Target
from probcalc.reporting.comparison import Reference, Row

_MIN_CHAINS, _MAX_CHAINS = 4, 32
_MAX_RHAT = 1.01  # Vehtari et al. (2021), section 4


@dataclass(frozen=True)
class LongRun:
    """Settings of the chains.

    Args:
        min_effective: Effective draws that every mean and variance must have.
        num_draws: Draws of a chain after its warm-up.
        num_warmup: Steps of adaptation, dropped.
    """

    min_effective: int = 10_000
    num_draws: int = 2_500
    num_warmup: int = 1_000


def long_run(
    target: Target,
    *,
    seed: int,
    settings: LongRun | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Reference:
    """Sample a target until its reference moments are known.

    Args:
        target: What to sample.
        seed: Of all chains.
        settings: Their length.
        progress: Called with a stage's name and the gradient evaluations so far.

    Returns:
        Means and standard deviations with Monte Carlo standard errors.

    Raises:
        ArithmeticError: If the chains disagree, diverge, or mix too slowly.
    """
    settings = settings or LongRun()
    density = Potential(target, progress)
    chains: list[Tensor] = []
    divergences = 0
    for k in range(_MAX_CHAINS):
        density.stage = f"chain {k + 1}"
        z, diverged = run_chain(
            density,
            child(seed, k),
            num_draws=settings.num_draws,
            num_warmup=settings.num_warmup,
        )
        chains.append(target.constrained_vector(z))
        divergences += diverged
        if k + 1 < _MIN_CHAINS:
            continue
        x = torch.stack(chains)  # (chains, draws, p)
        effective = torch.minimum(_effective(x), _effective(_squares(x))).min()
        if effective >= settings.min_effective:
            break
    _require_sound(x, float(effective), divergences, settings)
    lengths = f"{len(chains)} chains of {settings.num_draws}"
    source = f"Pyro's NUTS, {lengths}, at least {int(effective):,} effective draws"
    return Reference(source, _rows(x, target.names))


def _squares(x: Float[Tensor, "c n p"]) -> Float[Tensor, "c n p"]:
    return (x - x.mean(dim=(0, 1))).square()


def _effective(x: Float[Tensor, "c n p"]) -> Float[Tensor, " p"]:
    """Effective draws of each column; constant ones (a correlation's diagonal) count as all."""
    constant = x.flatten(0, 1).std(dim=0) <= 1e-12 * x.abs().amax(dim=(0, 1))
    halves = torch.cat(x.split(x.shape[1] // 2, dim=1)[:2])
    found = effective_sample_size(halves, chain_dim=0, sample_dim=1)
    return torch.where(constant, float(x.shape[0] * x.shape[1]), found)


def _require_sound(x: Tensor, effective: float, divergences: int, settings: LongRun) -> None:
    rhat = float(split_gelman_rubin(x, chain_dim=0, sample_dim=1).nan_to_num(1.0).max())
    if effective < settings.min_effective or rhat > _MAX_RHAT or divergences:
        raise ArithmeticError(
            f"the chains are no reference: {effective:.0f} effective draws (wanted "
            f"{settings.min_effective}), split R-hat {rhat:.3f} (at most {_MAX_RHAT}), "
            f"{divergences} divergences; write the model non-centred or reparametrise."
        )


def _rows(x: Float[Tensor, "c n p"], names: tuple[str, ...]) -> dict[str, Row]:
    flat, squares = x.flatten(0, 1), _squares(x).flatten(0, 1)
    mean, std = flat.mean(dim=0), flat.std(dim=0)
    mean_error = std / _effective(x).sqrt()
    std_error = squares.std(dim=0) / _effective(_squares(x)).sqrt() / (2 * std)
    columns = torch.stack([mean, mean_error, std, std_error.nan_to_num(0.0)], dim=1)
    return {name: Row(*row) for name, row in zip(names, columns.tolist(), strict=True)}
