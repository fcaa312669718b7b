"""One model and many data sets: as many posteriors, fitted in one batch.

Every fit starts from the mode of its own posterior (L-BFGS, all data sets at once) and the
curvature there, or from the prior where there is no mode, and from then on maximises the ELBO of
its guide over draws of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.func import grad_and_value, hessian, vmap
from torch.utils import _pytree as pytree

from probcalc._tree import Layout
from probcalc.differentiation.batched import BatchedDensity, TraceError, agrees, trace
from probcalc.inference.guides import Guide
from probcalc.inference.scope import model_scope
from probcalc.inference.simulation import Simulator
from probcalc.integration.normal_draws import matched_normal_draws
from probcalc.linalg import symmetric
from probcalc.optimization.lbfgs import LBFGS
from probcalc.optimization.minimize import descend

_CHUNK = 2**21  # numbers of data that one call touches
_CHUNK_BYTES = 2**22  # of the graph's widest value
_NUM_CHECKS = 3  # points at which the graph is compared with the density
_MODE_EVALS = 200  # a search for a mode that takes longer has run off
_MAX_EVALS = 1_000
_QUARTILES = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
_IQR = 1.349  # between the quartiles of a standard normal
_MIN_DRAWS, _MAX_DRAWS = 32, 256  # fixed draws of a fit; four a dimension between the two


@dataclass(frozen=True, eq=False)
class Fits:
    """Guides of `b` posteriors; those that are not `good` mean nothing."""

    guide: Guide
    params: dict[str, Tensor]
    good: Bool[Tensor, " b"]


@dataclass(frozen=True, eq=False)
class DataSets:
    """Posterior densities of `b` data sets of one model.

    Args:
        simulator: Of the model.
        data: A tree of tensors ``(b, ...)``.
        dim: Length of an unconstrained vector.
        dtype: Of it.
    """

    simulator: Simulator
    data: Any
    dim: int
    dtype: torch.dtype = field(default=torch.float64)

    @property
    def num(self) -> int:
        """How many."""
        return len(pytree.tree_leaves(self.data)[0])

    def value(self, z: Float[Tensor, "k m d"], rows: Int[Tensor, " k"]) -> Float[Tensor, "k m"]:
        """Log densities of some data sets, each at its own points."""
        return self.value_and_grad(z, rows)[0]

    def value_and_grad(
        self, z: Float[Tensor, "k m d"], rows: Int[Tensor, " k"]
    ) -> tuple[Float[Tensor, "k m"], Float[Tensor, "k m d"]]:
        """The same with gradients."""
        if self._traced is None:
            both = vmap(grad_and_value(self._density), in_dims=(0, None))
            slope, value = self._mapped(both, z, rows)
            return value, slope
        m = z.shape[1]
        size = max(1, _CHUNK_BYTES // (m * self._traced.row_bytes))
        values, slopes = [], []
        for block, some in zip(z.split(size), rows.split(size), strict=True):
            data = self._flat[some][:, None].expand(-1, m, -1)
            value, slope = self._traced.value_and_grad(torch.cat([block, data], -1).flatten(0, 1))
            values.append(value.view(-1, m))
            slopes.append(slope[:, : self.dim].reshape(-1, m, self.dim))
        return torch.cat(values), torch.cat(slopes)

    @cached_property
    def _flat(self) -> Float[Tensor, "b w"]:
        """All numbers of each data set."""
        leaves = pytree.tree_leaves(self.data)
        return torch.cat([t.reshape(self.num, -1).to(self.dtype) for t in leaves], dim=1)

    @cached_property
    def _traced(self) -> BatchedDensity | None:
        """The density as a graph of an unconstrained vector followed by data; None: no graph."""
        shapes = [tuple(t.shape[1:]) for t in pytree.tree_leaves(self.data)]
        layout = Layout({str(i): shape for i, shape in enumerate(shapes)})
        leaves, spec = pytree.tree_flatten(self.data)

        def density(u: Tensor) -> tuple[Tensor, Tensor]:
            parts = layout.unflatten(u[self.dim :]).values()
            data = [part.to(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
            value = self._density(u[: self.dim], pytree.tree_unflatten(data, spec))
            return value, value[None]

        stream = torch.Generator().manual_seed(0)
        z = torch.rand(_NUM_CHECKS, self.dim, generator=stream, dtype=self.dtype)
        some = self._flat[torch.arange(_NUM_CHECKS, device=self._flat.device) % self.num]
        points = torch.cat([z.to(self._flat), some], dim=1)
        with model_scope(self.dtype):
            try:
                graph = trace(density, points[0])
            except TraceError:
                return None
            return graph if agrees(graph, density, points) else None

    def hessian(self, z: Float[Tensor, "k d"]) -> Float[Tensor, "k d d"]:
        """Second derivatives, one point for each data set."""
        every = torch.arange(self.num, device=z.device)
        return symmetric(self._mapped(hessian(self._density), z, every))

    def modes(self, start: Float[Tensor, " d"]) -> tuple[Float[Tensor, "b d"], Bool[Tensor, " b"]]:
        """The highest points found from one start, and which of them are such."""

        def oracle(z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            value, slope = self.value_and_grad(z[:, None], rows)
            return -value[:, 0], -slope[:, 0]

        found = descend(
            oracle, start.expand(self.num, -1).clone(), method=LBFGS(), max_evals=_MODE_EVALS
        )
        return found.x, found.status == 0

    def gaussians(
        self, start: Float[Tensor, " d"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d d"], Bool[Tensor, " b"]]:
        """Laplace's approximations: modes, and triangular roots of the inverse curvature."""
        z, good = self.modes(start)
        precision = -self.hessian(z)
        one = torch.eye(self.dim).to(z)
        factor, info = torch.linalg.cholesky_ex(precision.nan_to_num(0.0))
        good = good & (info == 0) & precision.isfinite().all(dim=-1).all(dim=-1)
        factor = torch.where(good[:, None, None], factor, one)
        # (L Lᵀ)⁻¹ = L⁻ᵀ L⁻¹, whose own lower root is another
        covariance = torch.cholesky_inverse(factor)
        tril, info = torch.linalg.cholesky_ex(symmetric(covariance))
        good = good & (info == 0)
        return z, torch.where(good[:, None, None], tril, one), good

    def fitted(
        self, guide: Guide, prior: Float[Tensor, "n d"], generator: torch.Generator
    ) -> Fits:
        """Fit a guide to every posterior.

        Args:
            guide: With ``from_gaussian``.
            prior: Unconstrained draws of the prior, in whose middle the search begins.
            generator: Of the fixed draws.

        Raises:
            ValueError: If the guide cannot start from a Gaussian.
        """
        if not hasattr(guide, "from_gaussian"):
            raise ValueError(
                f"a batch of fits starts from Gaussians, which {type(guide).__name__} cannot; "
                "give `fit=` instead."
            )
        low, middle, high = prior.quantile(_QUARTILES.to(prior), dim=0)
        loc, tril, has_mode = self.gaussians(middle)
        loc = torch.where(has_mode[:, None], loc, middle)
        wide = torch.diag((high - low).clamp(min=1e-6) / _IQR)
        tril = torch.where(has_mode[:, None, None], tril, wide)
        params = guide.from_gaussian(loc, tril)
        layout = Layout({name: tuple(t.shape[1:]) for name, t in params.items()})
        b = guide.base_dim(self.dim)
        m = min(max(_MIN_DRAWS, 4 * b), _MAX_DRAWS)
        eps = matched_normal_draws(self.num, m, b, generator=generator, dtype=self.dtype)
        found = descend(
            self._elbo_oracle(guide, layout, eps),
            layout.flatten(params),
            method=LBFGS(),
            max_evals=_MAX_EVALS,
        )
        good = (found.status == 0) & found.x.isfinite().all(dim=-1)
        return Fits(guide, layout.unflatten(found.x), good)

    def _elbo_oracle(
        self, guide: Any, layout: Layout, eps: Float[Tensor, "b m k"]
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Negative ELBO over fixed draws, of some data sets, by all parameters of the guide."""
        entropy = getattr(guide, "entropy", None)
        m = eps.shape[1]

        def oracle(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                params = layout.unflatten(leaf)
                z, log_q = guide.transform(params, eps[rows])
                spread = -log_q.mean(dim=1) if entropy is None else entropy(params)
                log_p, g = self.value_and_grad(z.detach(), rows)
                ones = -torch.ones_like(spread)
                (slope,) = torch.autograd.grad([z, spread], leaf, [-g / m, ones])
            return -log_p.mean(dim=1) - spread.detach(), slope

        return oracle

    def _density(self, z: Tensor, data: Any) -> Tensor:
        return self.simulator.density_given(z, data)

    def _mapped(self, fn: Callable[..., Any], z: Tensor, rows: Tensor) -> Any:
        """`fn` of every data set, in blocks of a size that the cache can bear."""
        points = z.shape[1] if z.ndim == 3 else self.dim
        size = max(1, _CHUNK // (self._flat.shape[1] * points))
        parts = []
        with torch.no_grad(), model_scope(self.dtype):
            for block, some in zip(z.split(size), rows.split(size), strict=True):
                data = pytree.tree_map(lambda t: t[some], self.data)  # noqa: B023
                parts.append(vmap(fn)(block, data))
        if isinstance(parts[0], tuple):
            return tuple(torch.cat(column) for column in zip(*parts, strict=True))
        return torch.cat(parts)
