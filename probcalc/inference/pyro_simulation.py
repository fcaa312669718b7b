"""Prior draws, simulated data and rows of the likelihood of a Pyro model.

Latent values are put in, everything else is drawn afresh with one generator: observed sites as if
they had not been observed, and discrete sites that the density sums out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from probcalc._tree import moved
from probcalc.distributions.draw import draw
from probcalc.inference.parameters import Values
from probcalc.inference.scope import model_scope
from probcalc.inference.simulation import over_draws


@dataclass(frozen=True, eq=False)
class PyroSimulator:
    """Data of a Pyro model.

    Args:
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        density: Log density and by-product at an unconstrained vector.
        latent: Names of the continuous latent sites.
        discrete: Names of those summed out.
        data: Observed values by site.
        nesting: Depth of its plates; axes left of them enumerate discrete sites.
        device: Where it lives.
        dtype: Of floating values.
    """

    model: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    density: Callable[[Tensor], tuple[Tensor, Tensor]]
    latent: tuple[str, ...]
    discrete: tuple[str, ...]
    data: dict[str, Tensor]
    nesting: int
    device: torch.device
    dtype: torch.dtype

    def prior(self, num_draws: int, seed: int) -> Values:
        """Latent values of runs of the model that put nothing in."""
        return self._runs({}, self.args, self.kwargs, seed, self.latent, num_draws)[0]

    def simulate(
        self, values: Values, seed: int, new_data: Any = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Observed sites drawn afresh, and deterministic sites.

        Raises:
            ValueError: If the model has no observed sites, or `new_data` names no argument of it.
        """
        if not self.data:
            raise ValueError(
                "the model has no observed sites, so there is nothing to simulate; write the data "
                "as `pyro.sample(..., obs=data)`."
            )
        args, kwargs = self._arguments(new_data)
        latent = {name: values[name] for name in self.latent}
        return self._runs(latent, args, kwargs, seed, tuple(self.data))

    def rows_at(self, z: Float[Tensor, " d"]) -> Float[Tensor, " rows"]:
        """Log-likelihood of every entry of the observed sites, sites one after the other.

        Raises:
            ValueError: If rows depend on each other through a discrete site outside their plates.
        """
        with model_scope(self.dtype), poutine.trace() as outer:
            self.density(z)
            trace = outer.trace
            trace.compute_log_prob()
        parts = [self._by_row(trace, name).flatten() for name in self.data]
        return torch.cat(parts).to(z.dtype)

    def density_given(self, z: Float[Tensor, " d"], data: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Log density with other values at the observed sites."""
        with poutine.condition(data=data):
            return self.density(z)[0]

    def conditioned(self, data: dict[str, Tensor]) -> Callable[..., Any]:
        """The model with other values at its observed sites."""
        return poutine.condition(self.model, data=data)

    def _by_row(self, trace: poutine.Trace, name: str) -> Tensor:
        site = trace.nodes[name]
        if not self.discrete:
            return site["log_prob"]
        plates = {frame.name for frame in site["cond_indep_stack"]}
        total = site["log_prob"]
        for other in self.discrete:
            inside = {frame.name for frame in trace.nodes[other]["cond_indep_stack"]}
            if inside != plates:
                raise ValueError(
                    f"the rows of site {name!r} depend on each other through the discrete site "
                    f"{other!r}, which is not in the same plates; their likelihoods do not "
                    "factorise."
                )
            total = total + trace.nodes[other]["log_prob"]
        axes = tuple(range(total.ndim - self.nesting))
        return total.logsumexp(dim=axes) if axes else total

    def _runs(
        self,
        values: Values,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        seed: int,
        wanted: tuple[str, ...],
        num_draws: int | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Values of the wanted sites, and of the deterministic ones, of every draw."""

        def one(latent: Values, generator: torch.Generator) -> tuple[Values, Values]:
            own = _Draw(latent, generator)
            with model_scope(self.dtype), poutine.trace() as outer, own:
                self.model(*args, **kwargs)
            nodes = outer.trace.nodes
            derived = {n: s["value"] for n, s in nodes.items() if _is_derived(s)}
            return {n: nodes[n]["value"] for n in wanted}, derived

        size = sum(t.numel() for t in self.data.values())
        run = partial(over_draws, seed=seed, device=self.device, size=size, num_draws=num_draws)
        with model_scope(self.dtype):
            return run(one, values)

    def _arguments(self, new_data: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if new_data is None:
            return self.args, self.kwargs
        new = moved(new_data, self.device, self.dtype)
        if isinstance(new, tuple):
            return new, self.kwargs
        if not isinstance(new, dict):
            raise ValueError(
                "`new_data` must be a tuple of the model's positional arguments, or a dict of "
                f"arguments by name, got {type(new).__name__}."
            )
        signature = inspect.signature(self.model)
        bound = signature.bind(*self.args, **self.kwargs)
        unknown = sorted(set(new) - set(signature.parameters))
        if unknown:
            raise ValueError(
                f"`new_data` names {unknown}, which the model does not take; "
                f"it takes {list(signature.parameters)}."
            )
        bound.arguments.update(new)
        return bound.args, bound.kwargs


class _Draw(Messenger):
    """Give some sites their values and draw all others with one generator."""

    def __init__(self, values: Values, generator: torch.Generator) -> None:
        super().__init__()
        self.values, self.generator = values, generator

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if site_is_subsample(msg) or _is_derived(msg) or is_factor(msg):
            return
        if msg["name"] in self.values:
            msg["value"] = self._checked(msg)
            return
        fn, seen = unmasked(msg["fn"]), msg["value"]
        batch = fn.batch_shape
        if msg["is_observed"] and seen is not None:
            # data may be wider than their distribution, where no plate says so
            wide = seen.shape[: seen.ndim - len(fn.event_shape)]
            batch = torch.broadcast_shapes(wide, batch)
        msg["is_observed"] = False
        msg["value"] = draw(
            fn if batch == fn.batch_shape else fn.expand(batch), (), self.generator
        )

    def _checked(self, msg: dict[str, Any]) -> Tensor:
        value, fn = self.values[msg["name"]], msg["fn"]
        wanted = torch.Size(fn.batch_shape + fn.event_shape)
        pairs = zip(reversed(wanted), reversed(value.shape), strict=False)
        if len(wanted) > value.ndim or any(w not in (1, v) for w, v in pairs):
            raise ValueError(
                f"with these `new_data` site {msg['name']!r} has shape {tuple(wanted)}, but its "
                f"posterior draws have {tuple(value.shape)}; new groups need draws of their own."
            )
        return value


def observed_sites(trace: poutine.Trace) -> dict[str, Tensor]:
    """Values of the sites that are data: observed, and neither derived nor factors."""
    return {
        name: torch.as_tensor(site["value"])
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and site["is_observed"]
        and not (_is_derived(site) or is_factor(site) or site_is_subsample(site))
    }


def is_factor(site: dict[str, Any]) -> bool:
    """Whether a site only adds a number to the log density."""
    return type(unmasked(site["fn"])).__name__ == "Unit"


def unmasked(fn: Distribution) -> Distribution:
    """The distribution of which some log densities are left out."""
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    return fn


def _is_derived(site: dict[str, Any]) -> bool:
    return bool(site["type"] == "sample" and site["infer"].get("_deterministic"))
