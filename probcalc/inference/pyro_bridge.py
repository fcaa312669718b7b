"""A Pyro model, unchanged, as a density of one unconstrained vector.

Pyro's handlers run the model; `biject_to` is applied to each latent site's own support where the
site is met, so that supports may depend on other sites. Discrete sites that Pyro can enumerate
are summed out. While the model runs, validation is off and Python numbers are float64; both are
restored afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from probcalc._check import require_finite
from probcalc._random import forked
from probcalc._tree import Layout, moved
from probcalc.inference.centring import (
    Centring,
    coordinates_of,
    depends_on_latents,
    value_of,
)
from probcalc.inference.flat_model import FlatModel
from probcalc.inference.parameters import Values, require_inside
from probcalc.inference.plate_rows import Plates, refuse_outer_plates
from probcalc.inference.pyro_run import Run
from probcalc.inference.pyro_simulation import PyroSimulator, observed_sites
from probcalc.inference.scope import model_scope

_PROTOTYPE_SEED = 0  # of the run that reads the sites; it leaves no mark on any result


def from_pyro(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    device: torch.device,
    dtype: torch.dtype,
    centring: Centring | None = None,
) -> FlatModel:
    """Read a Pyro model with its arguments.

    Args:
        model: Pyro model; its observed data come in as arguments or stand in it.
        args: Its positional arguments; floating tensors in them are moved and cast.
        kwargs: Its keyword arguments, likewise.
        device: Where the latent vector lives.
        dtype: Of the latent vector.
        centring: Of sites that are explored in other coordinates than their own (see
            `centring`).

    Raises:
        ValueError: No latent sites, a learnable `pyro.param`, a plate that draws rows and does
            not run with all of them, a discrete site that cannot be enumerated, or a support
            without a bijection; each names the site and what to do.
    """
    args, kwargs = moved((args, kwargs), device, dtype)
    plates, given = Plates(), model
    model = plates.with_rows(given, None)
    prototype, complaint = _read(model, plates, args, kwargs, device, dtype)
    latent, discrete = _latent_sites(prototype)
    free = Layout({name: _free_shape(site) for name, site in latent.items()})
    nesting = _plate_nesting(prototype)

    summing = partial(_summing, nesting=nesting) if discrete else lambda m: m  # noqa: E731
    layout = _layout(prototype, latent, discrete)
    log_density = partial(_contracted, nesting=nesting) if discrete else _summed

    run = Run(summing, args, kwargs, dtype)

    def density(z: Tensor) -> tuple[Tensor, Tensor]:
        sites = _Unconstrain(free.unflatten(z), centring)
        trace, log_p = run(model, sites, read=log_density)
        values = {name: trace.nodes[name]["value"] for name in layout.shapes}
        flat = layout.flatten(values).to(z.dtype)
        return log_p.to(z.dtype) + sites.log_det, torch.cat([flat, sites.log_det[None]])

    rows_density = partial(
        _rows_density, run, plates, given, free, plates.local(latent), centring, log_density
    )
    terms = partial(_terms, run, model, free, centring)
    unconstrain = partial(_unconstrained, run, model, free, latent, centring)
    if complaint:
        _refuse_nowhere_finite(
            terms(torch.zeros(free.size, dtype=dtype, device=device)), complaint
        )
    notes = (f"summed out: {', '.join(discrete)}",) if discrete else ()
    sites = tuple(latent), tuple(discrete), observed_sites(prototype)
    at_zero = _Unconstrain(free.unflatten(torch.zeros(free.size, dtype=dtype, device=device)), {})
    return FlatModel(
        density,
        free.size,
        layout,
        unconstrain,
        terms,
        notes,
        rows_density=rows_density if plates.can_batch(prototype, discrete) else None,
        num_rows=plates.num_rows,
        batch_size=plates.batch_size,
        hierarchical=_hierarchical(summing(model), args, kwargs, at_zero, dtype),
        simulator=PyroSimulator(model, args, kwargs, density, *sites, nesting, device, dtype),
    )


def _summing(model: Callable[..., Any], nesting: int) -> Callable[..., Any]:
    return poutine.enum(config_enumerate(model), first_available_dim=-1 - nesting)


def _rows_density(
    run: Run,
    plates: Plates,
    model: Callable[..., Any],
    free: Layout,
    local: dict[str, int],
    centring: Centring | None,
    log_density: Callable[[poutine.Trace], Tensor],
    z: Tensor,
    rows: Tensor,
) -> Tensor:
    """Log density by the rows with these numbers, scaled up."""
    parts = plates.split(free.unflatten(z), rows, local)
    sites = [(_Unconstrain(part, centring), f) for part, f in parts if part]
    read = partial(plates.parted, log_density=log_density, rows=rows)
    only = plates.with_rows(model, rows)
    _, log_p = run(only, *(messenger for messenger, _ in sites), read=read)
    return sum(log_p).to(z.dtype) + sum(f * messenger.log_det for messenger, f in sites)


def _terms(
    run: Run,
    model: Callable[..., Any],
    free: Layout,
    centring: Centring | None,
    z: Tensor,
) -> dict[str, Tensor]:
    """Log density by site."""
    sites = _Unconstrain(free.unflatten(z), centring)
    trace, _ = run(model, sites, read=poutine.Trace.compute_log_prob)
    found = [(n, s) for n, s in trace.nodes.items() if s["type"] == "sample"]
    return {n: s["log_prob"].sum() for n, s in found if not site_is_subsample(s)}


def _unconstrained(
    run: Run,
    model: Callable[..., Any],
    free: Layout,
    latent: dict[str, Any],
    centring: Centring | None,
    values: Values,
    check: bool,
) -> Tensor:
    """Unconstrained vector of constrained values."""
    reader = _Constrain(values, latent, check, centring)
    run(model, reader)
    return free.flatten(reader.free)


def _read(
    model: Callable[..., Any],
    plates: Plates,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[poutine.Trace, str]:
    """One run, its density too where plates subsample; what is not understood is refused."""
    try:
        prototype, complaint = _prototype(model, args, kwargs, device, dtype)
        if plates.sizes:
            with model_scope(dtype):
                prototype.compute_log_prob()
    except (ValueError, RuntimeError, IndexError) as error:
        if not plates.sizes:
            raise
        raise ValueError(plates.refusal(str(error).splitlines()[0])) from error
    _refuse_unsupported(prototype)
    refuse_outer_plates(prototype)
    return prototype, complaint


def _layout(prototype: poutine.Trace, latent: dict[str, Any], discrete: list[str]) -> Layout:
    """Latent sites, then deterministic ones, which sites that are summed out would make many."""
    derived = [
        name
        for name, site in prototype.nodes.items()
        if site["type"] == "sample" and site["infer"].get("_deterministic") and not discrete
    ]
    return Layout({n: tuple(prototype.nodes[n]["value"].shape) for n in (*latent, *derived)})


def _hierarchical(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    sites: _Unconstrain,
    dtype: torch.dtype,
) -> tuple[str, ...]:
    """Latent sites of location-scale families whose scale depends on other latent sites."""
    sites.free = {name: u.requires_grad_() for name, u in sites.free.items()}
    with torch.enable_grad(), model_scope(dtype), sites:
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    return tuple(name for name in sites.free if depends_on_latents(trace.nodes[name]["fn"]))


class _Unconstrain(Messenger):
    """Give latent sites the image of unconstrained values, and add up the log Jacobian."""

    def __init__(self, free: Values, centring: Centring | None = None) -> None:
        super().__init__()
        self.free, self.centring = free, centring or {}
        self.log_det = next(iter(free.values())).new_zeros(())

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.free:
            u = self.free[msg["name"]]
            if msg["name"] in self.centring:
                msg["value"], log_det = value_of(u, msg["fn"], self.centring[msg["name"]])
                self.log_det = self.log_det + log_det
                return
            transform = biject_to(msg["fn"].support)
            msg["value"] = transform(u)
            self.log_det = self.log_det + transform.log_abs_det_jacobian(u, msg["value"]).sum()


class _Constrain(Messenger):
    """Give latent sites constrained values, and note the unconstrained ones."""

    def __init__(
        self,
        values: Values,
        latent: dict[str, Any],
        check: bool,
        centring: Centring | None = None,
    ) -> None:
        super().__init__()
        self.values, self.latent, self.check = values, latent, check
        self.centring = centring or {}
        self.free: Values = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        if name in self.latent:
            support = msg["fn"].support
            if self.check:
                shape = tuple(self.latent[name]["value"].shape)
                require_inside(name, self.values, shape, support)
            msg["value"] = self.values[name]
            if name in self.centring:
                self.free[name] = coordinates_of(self.values[name], msg["fn"], self.centring[name])
            else:
                self.free[name] = biject_to(support).inv(msg["value"])


def _contracted(trace: poutine.Trace, nesting: int) -> Tensor:
    """Log density of a trace with enumerated sites, by Pyro's tensor contraction."""
    return TraceEinsumEvaluator(trace, True, nesting).log_prob(trace)


def _summed(trace: poutine.Trace) -> Tensor:
    return torch.as_tensor(trace.log_prob_sum())


def _prototype(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[poutine.Trace, str]:
    """One run with Pyro's validation on, so that mistakes in the model are named by Pyro.

    A parameter that is invalid at these draws may be valid at others: the complaint is handed
    back with the trace of a run without validation.
    """
    complaint = ""
    for validate in (True, False):
        try:
            with forked(_PROTOTYPE_SEED, device), model_scope(dtype, validate=validate):
                return poutine.trace(model).get_trace(*args, **kwargs), complaint
        except ValueError as error:
            complaint = complaint or str(error).split("\n")[0]
            if not validate or not complaint.startswith("Expected parameter"):
                raise
    raise AssertionError("unreachable")


def _refuse_nowhere_finite(terms: dict[str, Tensor], complaint: str) -> None:
    for name, term in terms.items():
        if not bool(term.isfinite()):
            raise ValueError(
                f"site {name!r} has log density {term.item()} where all unconstrained values are "
                f"zero, and Pyro says of a draw from the prior: {complaint}"
            )


def _refuse_unsupported(trace: poutine.Trace) -> None:
    for name, site in trace.nodes.items():
        if site["type"] == "param":
            raise ValueError(
                f"site {name!r} is a learnable `pyro.param`; give it a prior with "
                "`pyro.sample`, or pass its value to the model as an argument."
            )
        if site["type"] == "sample" and site["is_observed"]:
            require_finite(f"observed site {name!r}", site["value"])
        if site_is_subsample(site) and len(site["value"]) < site["fn"].size:
            raise ValueError(
                f"plate {name!r} draws its own mini-batch ({len(site['value'])} of "
                f"{site['fn'].size} rows), which makes the density random; leave out "
                "`subsample_size`, so that the model sees all rows."
            )


def _latent_sites(trace: poutine.Trace) -> tuple[dict[str, Any], list[str]]:
    latent, discrete = {}, []
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site["is_observed"] or site_is_subsample(site):
            continue
        if not site["fn"].support.is_discrete:
            latent[name] = site
        elif site["fn"].has_enumerate_support:
            discrete.append(name)
        else:
            raise ValueError(
                f"site {name!r} ({type(site['fn']).__name__}) is discrete with infinitely many "
                "values, so it cannot be summed out; observe it, truncate it to a Categorical, "
                "or write its marginal distribution."
            )
    if not latent:
        sites = [n for n, s in trace.nodes.items() if s["type"] == "sample"]
        raise ValueError(
            f"the model has no continuous latent sites (its sample sites: {sites or 'none'}); "
            "there is nothing to fit. Are all sites observed?"
        )
    return latent, discrete


def _free_shape(site: dict[str, Any]) -> tuple[int, ...]:
    support = site["fn"].support
    try:
        transform = biject_to(support)
    except NotImplementedError as error:
        raise ValueError(
            f"no bijection from the real line is known for the support {support} of site "
            f"{site['name']!r}; write it through an unconstrained site."
        ) from error
    shape = tuple(transform.inverse_shape(site["value"].shape))
    if math.prod(shape) == 0:
        raise ValueError(f"site {site['name']!r} of shape {tuple(site['value'].shape)} is empty.")
    return shape


def _plate_nesting(trace: poutine.Trace) -> int:
    dims = [
        -frame.dim
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    return max(dims, default=0)
