"""A posterior as ArviZ knows it: `InferenceData` before ArviZ 1, a `DataTree` from then on.

Independent replicates become chains. Draws are resampled by their weights, so that whatever ArviZ
computes from them is about the posterior and not about its guide; with ``raw=True`` they are the
guide's own, with the log densities that `arviz_stats.loo_approximate_posterior` takes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc import __version__
from probcalc._random import child, draw_seed
from probcalc.inference.pointwise import num_rows, rows_at
from probcalc.inference.resampling import named, resampled_rows
from probcalc.inference.target import Target

if TYPE_CHECKING:
    from probcalc.inference.posterior import Posterior
    from probcalc.inference.predictive import Prediction

_MOST = 2**25  # numbers of the log-likelihood


def to_inference_data(
    posterior: Posterior,
    *,
    num_draws: int = 4096,
    raw: bool = False,
    prediction: Prediction | None = None,
    prior: Prediction | None = None,
    generator: torch.Generator | None = None,
) -> Any:
    """Export a posterior to ArviZ.

    Groups: ``posterior``; ``sample_stats`` with ``log_p`` (target) and ``log_q`` (guide), both on
    the unconstrained scale; ``log_likelihood`` and ``observed_data`` where the target knows its
    data; the predictive groups where predictions are given. Attributes hold the verdict, its
    reasons, k̂ and the method.

    Args:
        posterior: What to export.
        num_draws: Draws of all chains, rounded up to a multiple of the replicates.
        raw: Keep the guide's own draws, which only weights make the posterior's: for
            `loo_approximate_posterior`.
        prediction: Result of `predict` with this posterior.
        prior: Result of `predict` without a posterior.
        generator: Chooses the draws; one seed is drawn from it.

    Returns:
        `arviz.InferenceData` where ArviZ before 1 is installed, else an `xarray.DataTree`.

    Raises:
        ImportError: If neither is installed.
        ValueError: If `num_draws` is below 2 a replicate.
    """
    make = _maker()
    r, n, _ = posterior.z.shape
    if num_draws < 2 * r:
        raise ValueError(
            f"`num_draws` must be at least {2 * r}, two for each of {r} replicates, "
            f"got {num_draws}."
        )
    per, stream = math.ceil(num_draws / r), child(draw_seed(generator), 0)
    index = _some(r, n, per, stream) if raw else resampled_rows(posterior, per, stream)
    index = index.to(posterior.z.device)
    groups = _groups(posterior, index)
    for group, drawn in (("posterior", prediction), ("prior", prior)):
        if drawn is not None:
            groups[f"{group}_predictive"] = _by_chain(drawn.draws, drawn.num_replicates)
    if prior is not None:
        groups["prior"] = _by_chain(prior.values, prior.num_replicates)
    return make(groups, _attributes(posterior, raw))


def _groups(posterior: Posterior, index: Tensor) -> dict[str, dict[str, Any]]:
    z, x, log_ratios = (
        torch.stack([t[k, index[k]] for k in range(len(index))])
        for t in (posterior.z, posterior.x, posterior.log_ratios)
    )
    log_p, log_q = _log_densities(posterior, z, log_ratios)
    groups = {
        "posterior": posterior.layout.unflatten(x),
        "sample_stats": {"log_p": log_p, "log_q": log_q, "lp": log_p},
    }
    target = posterior.target
    if target is not None and target.model.simulator is not None:
        data = named(target.model.simulator.data)
        groups["observed_data"] = data
        rows = num_rows(target)
        if rows and z[..., 0].numel() * rows <= _MOST:
            groups["log_likelihood"] = _log_likelihood(target, z, data)
    return {g: {name: _array(t) for name, t in group.items()} for g, group in groups.items()}


def _log_densities(
    posterior: Posterior, z: Float[Tensor, "r n d"], log_ratios: Float[Tensor, "r n"]
) -> tuple[Float[Tensor, "r n"], Float[Tensor, "r n"]]:
    """Of the target and of what the draws came from: their difference is the log ratio."""
    flat = posterior.guide.log_prob(posterior.params, z.flatten(0, 1)).view(z.shape[:2])
    if posterior.target is None:
        return log_ratios + flat, flat
    # draws that were moved on after the guide made them do not have the guide's density
    log_p = posterior.target.log_density(z)
    return log_p, torch.where(log_ratios.isfinite(), log_p - log_ratios, flat)


def _log_likelihood(
    target: Target, z: Float[Tensor, "r n d"], data: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Rows under the name of their site where there is one site of as many entries."""
    rows = rows_at(target, z.flatten(0, 1)).view(*z.shape[:2], -1)
    sizes = [t.numel() for t in data.values()]
    by_site = len(data) > 1 and sum(sizes) == rows.shape[-1]
    if by_site:
        return dict(zip(data, rows.split(sizes, dim=-1), strict=True))
    name = next(iter(data)) if len(data) == 1 else "rows"
    return {name: rows}


def _by_chain(draws: dict[str, Tensor], num_replicates: int) -> dict[str, Any]:
    return {n: _array(t.view(num_replicates, -1, *t.shape[1:])) for n, t in draws.items()}


def _some(r: int, n: int, per: int, generator: torch.Generator) -> Tensor:
    """Draws of each replicate without weights, none twice as long as there are enough."""
    order = torch.rand(r, n, generator=generator).argsort(dim=1)
    return order.repeat(1, math.ceil(per / n))[:, :per]


def _attributes(posterior: Posterior, raw: bool) -> dict[str, Any]:
    return {
        "inference_library": "probcalc",
        "inference_library_version": __version__,
        "method": posterior.method,
        "verdict": posterior.verdict,
        "reasons": "; ".join(posterior.reasons),
        "khat": float(posterior.khat),
        "draws": "of the guide, unweighted" if raw else "resampled by their weights",
        "num_evals": posterior.num_evals,
        "seed": str(posterior.seed),  # NetCDF has no 64-bit attributes everywhere
    }


def _maker() -> Any:
    """A function from groups and attributes to the installed generation's object."""
    try:
        import arviz

        if int(arviz.__version__.split(".")[0]) < 1:
            return lambda groups, attrs: arviz.from_dict(**groups, attrs=attrs)
    except ImportError:
        pass
    try:
        import arviz_base
    except ImportError as error:
        raise ImportError("exporting to ArviZ needs it: `pip install probcalc[arviz]`.") from error
    return lambda groups, attrs: arviz_base.from_dict(
        groups, attrs={"/": attrs}, check_conventions=False
    )


def _array(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()
