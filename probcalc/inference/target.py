"""`Target`: whatever is to be approximated, as one flat density with names.

A target is traced once (see `differentiation.batched`), compared with the untraced density at
fresh points, and from then on evaluated in batches of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.func import vmap
from torch.utils import _pytree as pytree

from probcalc._check import require_finite
from probcalc._random import child, draw_seed
from probcalc._tree import Layout, device_of, moved
from probcalc.differentiation.batched import (
    BatchedDensity,
    TraceError,
    agrees,
    compiled,
    trace,
    untraced,
)
from probcalc.differentiation.curvature import central_hessian
from probcalc.inference import flat_model, pyro_bridge
from probcalc.inference.centring import Centring
from probcalc.inference.flat_model import FlatModel
from probcalc.inference.parameters import Values
from probcalc.inference.remembered import recall, remember
from probcalc.inference.scope import model_scope

_NUM_CHECKS = 2  # fresh points at which a traced graph is compared with the function
_NUM_TRIES = 20  # rounds of random starts before a density counts as not finite anywhere
_START_RADIUS = 2.0  # starts are uniform in (−2, 2) on the unconstrained scale, as in Stan
_CHUNK_BYTES = 2**23  # of all that a chunk of rows computes, a few of which live at a time


@dataclass(frozen=True, eq=False)
class Target:
    """A density over named, constrained parameters, evaluated on unconstrained vectors.

    Made by `from_log_density`, `from_function`, `from_distribution` or `from_pyro`. Shapes: an
    unconstrained vector is ``(d,)``, and every method takes any leading axes.

    Args:
        model: The unbatched density and its maps.
        rows: The same density over rows.
        device: Where it lives.
        dtype: Of its vectors.
        notes: What the user should know about how the model was read.
        in_coordinates: The same target with other coordinates for some sites of a Pyro model,
            given their centring.
    """

    model: FlatModel
    rows: BatchedDensity
    device: torch.device
    dtype: torch.dtype
    rebuild: Callable[[torch.device, torch.dtype], Target]
    notes: tuple[str, ...] = ()
    in_coordinates: Callable[[Centring], Target] | None = None

    @classmethod
    def from_log_density(
        cls,
        log_prob: Callable[[Float[Tensor, " d"]], Float[Tensor, ""]],
        dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Target:
        """Target from a log density of one flat, unconstrained vector.

        Args:
            log_prob: Takes shape ``(dim,)``, returns a scalar; normalised or not.
            dim: Length of the vector.
            device: Where the vector lives, default CPU.
            dtype: Of the vector.

        Raises:
            ValueError: If `dim` is below 1, or the function does not return a scalar.

        >>> target = Target.from_log_density(lambda x: -0.5 * x.square().sum(), dim=3)
        >>> target.names
        ('x[0]', 'x[1]', 'x[2]')
        """
        if dim < 1:
            raise ValueError(f"`dim` must be at least 1, got {dim}.")

        def build(device: torch.device, dtype: torch.dtype) -> FlatModel:
            joint = lambda values: log_prob(values["x"])  # noqa: E731
            return flat_model.from_function(joint, {"x": (dim,)}, {}, dtype=dtype)

        return _built(build, torch.device(device or "cpu"), dtype, (log_prob, dim))

    @classmethod
    def from_function(
        cls,
        log_joint: Callable[[Values], Float[Tensor, ""]],
        shapes: dict[str, tuple[int, ...]],
        constraints: dict[str, constraints.Constraint] | None = None,
        *,
        log_likelihood: Callable[[Values, Any], Float[Tensor, ""]] | None = None,
        data: Any = None,
        simulate: Callable[[Values, torch.Generator], Any] | None = None,
        prior: Callable[[int, torch.Generator], Values] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Target:
        """Target from a density over a dict of constrained values, written for one draw.

        Args:
            log_joint: Log joint density; with `log_likelihood` and `data`, the log prior.
            shapes: Shape of each parameter.
            constraints: Support of each parameter that is not the whole real line, from
                `torch.distributions.constraints`.
            log_likelihood: ``log_likelihood(values, row)`` of one observation.
            data: Tensor, or tuple or dict of tensors, observations along the first axis.
            simulate: ``simulate(values, generator)`` makes data like `data`, for predictions.
            prior: ``prior(n, generator)`` draws n values from the prior, as a dict.
            device: Default: the data's, else CPU.
            dtype: Floating data are cast to it.

        Raises:
            ValueError: For data with NaN, unequal row counts or no rows; unknown names in
                `constraints`; a function that does not return a scalar.
        """
        if (log_likelihood is None) != (data is None):
            raise ValueError("`log_likelihood` and `data` go together: give both or neither.")
        _check_rows(data)

        def build(device: torch.device, dtype: torch.dtype) -> FlatModel:
            there = None if data is None else moved(data, device, dtype)
            return flat_model.from_function(
                log_joint,
                shapes,
                constraints or {},
                log_likelihood=log_likelihood,
                data=there,
                simulate=simulate,
                prior=prior,
                dtype=dtype,
            )

        source = (log_joint, (shapes, constraints, log_likelihood, data))
        return _built(build, device_of(data, device), dtype, source)

    @classmethod
    def from_distribution(
        cls, distribution: Distribution, *, dtype: torch.dtype = torch.float64
    ) -> Target:
        """Target from a `torch.distributions` object with empty batch shape.

        Raises:
            ValueError: If it has batch dimensions or is discrete.
        """
        sample = distribution.sample()
        return _built(
            lambda _, dtype: flat_model.from_distribution(distribution, dtype=dtype),
            sample.device,
            dtype,
            (distribution.log_prob, None),
        )

    @classmethod
    def from_pyro(
        cls,
        model: Callable[..., Any],
        *args: Any,
        pyro_device: torch.device | str | None = None,
        pyro_dtype: torch.dtype = torch.float64,
        **kwargs: Any,
    ) -> Target:
        """Target from a Pyro model and its arguments, unchanged.

        Plates, `to_event`, `poutine.scale`, deterministic sites and constrained supports (LKJ
        too) are understood; discrete sites with finite support are summed out.

        Args:
            model: The model; data are passed as its arguments or stand in it.
            *args: Positional arguments of the model; floating tensors are cast.
            pyro_device: Where to run it, default the arguments' device.
            pyro_dtype: Of latent values.
            **kwargs: Keyword arguments of the model.

        Raises:
            ValueError: For NaN in the data, and for models without a density over continuous
                latent sites (see `pyro_bridge.from_pyro`).
        """
        for i, value in enumerate(args):
            require_finite(f"argument {i + 1} of the model", value)
        require_finite("keyword arguments of the model", kwargs)

        def build(device: torch.device, dtype: torch.dtype, centring: Centring) -> FlatModel:
            return pyro_bridge.from_pyro(
                model, args, kwargs, device=device, dtype=dtype, centring=centring
            )

        def built(centring: Centring, device: torch.device, dtype: torch.dtype) -> Target:
            source = (model, (args, kwargs, centring))
            own = _built(partial(build, centring=centring), device, dtype, source)
            return replace(
                own,
                rebuild=partial(built, centring),
                in_coordinates=lambda other: built(other, device, dtype),
            )

        return built({}, device_of((args, kwargs), pyro_device), pyro_dtype)

    @property
    def is_traced(self) -> bool:
        """Whether rows are evaluated together, and not one call of the function each."""
        return self.rows.is_traced

    @property
    def dim(self) -> int:
        """Length of the unconstrained vector."""
        return self.model.dim

    @property
    def layout(self) -> Layout:
        """Names and shapes of the constrained values."""
        return self.model.layout

    @property
    def names(self) -> tuple[str, ...]:
        """One name a constrained entry: ``mu``, ``theta[0]``."""
        return self.layout.labels

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Target:
        """The same target on another device or in another precision; traced anew."""
        return self.rebuild(torch.device(device or self.device), dtype or self.dtype)

    def compile(self) -> Target:
        """The same target through `torch.compile`; the first evaluation takes seconds."""
        return replace(self, rows=compiled(self.rows))

    def log_density(self, z: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
        """Log density of unconstrained vectors, log Jacobian included; differentiable."""
        return self._by_chunks(self.rows.value, z)

    def value_and_grad(
        self, z: Float[Tensor, "*n d"]
    ) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n d"]]:
        """Log density and its gradient."""
        flat = z.reshape(-1, self.dim)
        if len(flat) <= self._chunk:
            value, grad = self.rows.value_and_grad(flat)
        else:
            pieces = [self.rows.value_and_grad(chunk) for chunk in flat.split(self._chunk)]
            value, grad = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        return value.reshape(z.shape[:-1]), grad.reshape(z.shape)

    def constrain(self, z: Float[Tensor, "*n d"]) -> Values:
        """Named constrained values (derived ones too) of unconstrained vectors."""
        return self.layout.unflatten(self.constrained_vector(z))

    def constrained_vector(self, z: Float[Tensor, "*n d"]) -> Float[Tensor, "*n p"]:
        """The constrained values as one vector in the order of `names`."""
        return self._by_chunks(self.rows.by_product, z)[..., :-1]

    def log_abs_det_jacobian(self, z: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
        """Log |d constrained / d unconstrained|, the part of `log_density` due to the map."""
        return self._by_chunks(self.rows.by_product, z)[..., -1]

    def unconstrain(self, values: Values) -> Float[Tensor, " d"]:
        """Unconstrained vector of one set of constrained latent values.

        Raises:
            ValueError: For a missing site, a wrong shape or a value outside its support.
        """
        return self.model.unconstrain(self._own(values), True)

    def unconstrain_rows(self, values: Values) -> Float[Tensor, "n d"]:
        """Unconstrained vectors of many sets of values, along the first axis; unchecked."""
        own, one = self._own(values), lambda v: self.model.unconstrain(v, False)
        try:
            return vmap(one)(own)
        except RuntimeError:  # sites that Pyro sums out: it reads what vmap hides
            num = len(next(iter(own.values())))
            return torch.stack([one({n: v[i] for n, v in own.items()}) for i in range(num)])

    def starts(self, num: int, generator: torch.Generator | None = None) -> Float[Tensor, "n d"]:
        """Random vectors at which the density and its gradient are finite.

        Raises:
            ValueError: If none is found; names the site to blame.
        """
        stream = child(draw_seed(generator), 0)
        found = []
        for attempt in range(_NUM_TRIES):
            # every second round nearer to zero, where most densities are safe
            radius = _START_RADIUS * (0.8**attempt if attempt % 2 else 1.0)
            z = _uniform(num if attempt == 0 else 8 * num, self.dim, radius, stream, self)
            value, grad = self.value_and_grad(z)
            good = value.isfinite() & grad.isfinite().all(dim=-1)
            found.append(z[good])
            if sum(map(len, found)) >= num:
                return torch.cat(found)[:num]
        raise ValueError(
            f"the log density is not finite at any of {_NUM_TRIES} rounds of random starts; "
            f"{self.blame(z[~good][0])}. Check the priors and the scale of the data, or give "
            "`init`."
        )

    def blame(self, z: Float[Tensor, " d"]) -> str:
        """Say which site's log density is not finite at a vector."""
        values = {n: v.tolist() for n, v in self.constrain(z).items()}
        for site, term in self.model.terms(z).items():
            if not bool(term.isfinite()):
                return f"site {site!r} has log density {term.item()} at {values}"
        return f"its gradient is not finite at {values}"

    def hessian(
        self, z: Float[Tensor, "n d"], scale: Float[Tensor, " d"] | float = 1.0
    ) -> Float[Tensor, "n d d"]:
        """Second derivatives of the log density (see `central_hessian`)."""
        return central_hessian(lambda x: self.value_and_grad(x)[1], z, scale)

    def _own(self, values: Values) -> Values:
        return {
            name: torch.as_tensor(value, dtype=self.dtype, device=self.device)
            for name, value in values.items()
        }

    @property
    def _chunk(self) -> int:
        return max(16, _CHUNK_BYTES // self.rows.row_bytes)

    def _by_chunks(self, fn: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        flat = z.reshape(-1, self.dim)
        if len(flat) <= self._chunk:
            out = fn(flat)
        else:
            out = torch.cat([fn(chunk) for chunk in flat.split(self._chunk)])
        return out.reshape(z.shape[:-1] + out.shape[1:])


def _built(
    build: Callable[[torch.device, torch.dtype], FlatModel],
    device: torch.device,
    dtype: torch.dtype,
    source: tuple[Callable[..., Any], Any],
) -> Target:
    """Read, trace and check; `source` is the user's function and what its density depends on."""
    model = build(device, dtype)
    # a private stream: building a target must not advance the caller's generator
    private = torch.Generator().manual_seed(0)
    points = (2 * torch.rand(1 + _NUM_CHECKS, model.dim, generator=private) - 1).to(device, dtype)
    model.density(points[0])  # a mistake in the model is to be seen as it is raised
    fn, args = source
    with model_scope(dtype):
        rows, notes = recall(fn, (args, device, dtype), model.density, points[1:]), ()
        if rows is None:
            rows, notes = _traced_or_not(model, points)
            if not notes:
                remember(fn, (args, device, dtype), rows)
    rebuild = lambda *to: _built(build, *to, source)  # noqa: E731
    return Target(model, rows, device, dtype, rebuild, model.notes + notes)


def _traced_or_not(model: FlatModel, points: Tensor) -> tuple[BatchedDensity, tuple[str, ...]]:
    try:
        rows = trace(model.density, points[0])
    except TraceError as error:
        return untraced(model.density), (f"runs untraced, row by row ({error})",)
    if agrees(rows, model.density, points[1:]):
        return rows, ()
    why = "its traced graph gave other values than the function: does it leave torch?"
    return untraced(model.density), (f"runs untraced, row by row ({why})",)


def _uniform(
    num: int, dim: int, radius: float, stream: torch.Generator, target: Target
) -> Float[Tensor, "n d"]:
    unit = torch.rand(num, dim, generator=stream, dtype=torch.float64)
    return (radius * (2 * unit - 1)).to(target.device, target.dtype)


def _check_rows(data: Any) -> None:
    if data is None:
        return
    require_finite("data", data)
    counts = {len(t) if t.ndim else 0 for t in pytree.tree_leaves(data)}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(
            "`data` must hold tensors with the same number of observations, at least 1, along "
            f"their first axis; got {sorted(counts)} rows."
        )
