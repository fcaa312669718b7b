r"""Gaussian structured by site: correlated inside a block, independent across blocks given a few.

    z_g = loc_g + L_g ε_g                        (the global block, which may be empty)
    z_b = loc_b + B_b ε_g + L_b ε_b              for every other block b

so that log q costs O(Σ s_b² + g Σ s_b) for blocks of size s_b, and the scale is an arrow-shaped
triangular matrix. Tan & Nott (2018), Gaussian variational approximation with sparse precision
matrices, section 3 (local blocks independent given global parameters).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.inference.guides.blocks import Plan, index_on, plan, site_ranges
from probcalc.inference.guides.gaussian import (
    LOG_2PI,
    log_det,
    lower_root,
    precision_root,
    standard_log_prob,
    whiten,
)

if TYPE_CHECKING:
    from probcalc.inference.target import Target


@dataclass(frozen=True)
class Structured:
    """Blocks of coordinates; parameters `loc` ``(*batch, d)`` and a triangle for every block.

    The triangles of the k blocks of size s are `scale_tril_s` ``(*batch, k, s, s)``; those of the
    global block `global_tril` ``(*batch, g, g)`` and `loading` ``(*batch, d - g, g)``, whose rows
    follow the coordinates block size by block size.

    Args:
        blocks: Ranges ``(start, stop)`` of the unconstrained vector that cover it in order.
        global_blocks: Positions in `blocks` of those that form the global block.
        diagonal_blocks: Positions in `blocks` of those that are independent inside as well.
        init_scale: Standard deviation to start from.
    """

    blocks: tuple[tuple[int, int], ...]
    global_blocks: tuple[int, ...] = ()
    diagonal_blocks: tuple[int, ...] = ()
    init_scale: float = 0.1

    def __post_init__(self) -> None:
        """Check the settings; lists, as from JSON, become tuples.

        Raises:
            ValueError: If the ranges leave a gap or overlap, or a position is none of a block.
        """
        object.__setattr__(self, "blocks", tuple((a, b) for a, b in self.blocks))
        edges = [0, *(stop for _, stop in self.blocks)]
        wanted = tuple(zip(edges, edges[1:], strict=False))
        if not self.blocks or self.blocks != wanted or any(a >= b for a, b in wanted):
            raise ValueError(
                "`Structured(blocks=...)` must be ranges (start, stop) that begin at 0 and follow "
                f"each other without gap or overlap, got {self.blocks}."
            )
        for name in ("global_blocks", "diagonal_blocks"):
            positions = tuple(sorted(set(getattr(self, name))))
            object.__setattr__(self, name, positions)
            if any(not 0 <= p < len(self.blocks) for p in positions):
                raise ValueError(
                    f"`Structured({name}=...)` must be positions in the {len(self.blocks)} "
                    f"blocks, got {positions}."
                )

    @classmethod
    def of(
        cls,
        target: Target,
        *,
        global_sites: tuple[str, ...] = (),
        diagonal_sites: tuple[str, ...] = (),
        init_scale: float = 0.1,
    ) -> Structured:
        """One block for every site of a target.

        Args:
            target: With named sites, as `from_function` and `from_pyro` make it.
            global_sites: Sites on which all others depend linearly: scales and means of a
                hierarchy. Their number of entries should be small.
            diagonal_sites: Sites whose entries are independent given the global ones: the groups
                of a hierarchy.
            init_scale: Standard deviation to start from.

        Raises:
            ValueError: For an unknown site, naming the known ones.
        """
        ranges = site_ranges(target)
        unknown = [n for n in (*global_sites, *diagonal_sites) if n not in ranges]
        if unknown:
            raise ValueError(f"unknown sites {unknown}; the target has {list(ranges)}.")
        names = list(ranges)
        return cls(
            tuple(ranges.values()),
            tuple(names.index(n) for n in global_sites),
            tuple(names.index(n) for n in diagonal_sites),
            init_scale,
        )

    def init(self, target: Target, generator: torch.Generator) -> dict[str, Tensor]:
        """One start of the target, with the starting scale.

        Raises:
            ValueError: If the blocks do not cover the target's vector.
        """
        covered = self.blocks[-1][1]
        if covered != target.dim:
            raise ValueError(
                f"the blocks cover {covered} coordinates, the target has {target.dim}; "
                "`Structured.of(target)` reads them from its sites."
            )
        loc = target.starts(1, generator)[0]
        g = len(self._plan.globals)
        params = {"loc": loc}
        for size, indices in self._plan.groups:
            scale = torch.full((len(indices) // size, size), self.init_scale)
            params[f"scale_tril_{size}"] = torch.diag_embed(scale.to(loc))
        if g:
            params["global_tril"] = torch.diag(torch.full_like(loc[:g], self.init_scale))
            params["loading"] = loc.new_zeros(len(loc) - g, g)
        return params

    def base_dim(self, dim: int) -> int:
        """One normal a coordinate."""
        return dim

    def transform(
        self, params: dict[str, Tensor], eps: Float[Tensor, "*batch n d"]
    ) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n"]]:
        """Draws and their log density."""
        order, back = self._orders(eps.device)
        e = eps[..., order]
        g = len(self._plan.globals)
        pieces = []
        for L, part in self._groups(params, e[..., g:]):
            pieces.append(torch.einsum("...kst,...nkt->...nks", L, part).flatten(-2))
        x = torch.cat(pieces, dim=-1) if pieces else e[..., :0]
        if g:
            own = e[..., :g] @ params["global_tril"].tril().mT
            x = torch.cat([own, x + e[..., :g] @ params["loading"].mT], dim=-1)
        z = params["loc"][..., None, :] + x[..., back]
        return z, standard_log_prob(eps) - self._log_det(params)[..., None]

    def log_prob(
        self, params: dict[str, Tensor], z: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch n"]:
        """Log density."""
        order, _ = self._orders(z.device)
        x = (z - params["loc"][..., None, :])[..., order]
        g = len(self._plan.globals)
        total = -self._log_det(params)[..., None]
        if g:
            own = whiten(params["global_tril"], x[..., :g])
            total = total + standard_log_prob(own)
            x = x - torch.cat([torch.zeros_like(own), own @ params["loading"].mT], dim=-1)
        for L, part in self._groups(params, x[..., g:]):
            e = whiten(L, part.movedim(-2, -3))  # (*batch, k, n, s)
            total = total + standard_log_prob(e).sum(dim=-2)
        return total

    def moments(
        self, params: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d d"]]:
        """Mean and covariance, the latter in full: O(d²)."""
        loc = params["loc"]
        eye = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
        columns, _ = self.transform(params, eye.expand(*loc.shape[:-1], *eye.shape))
        root = (columns - loc[..., None, :]).mT
        return loc, root @ root.mT

    def entropy(self, params: dict[str, Tensor]) -> Float[Tensor, "*batch"]:
        """Sum of the blocks' log |L| + d/2 (1 + log 2π)."""
        return self._log_det(params) + 0.5 * params["loc"].shape[-1] * (1 + LOG_2PI)

    def from_gaussian(
        self, loc: Float[Tensor, "*batch d"], scale_tril: Float[Tensor, "*batch d d"]
    ) -> dict[str, Tensor]:
        """Parameters of least KL(q‖p) for p = N(loc, L Lᵀ).

        Global block: p's marginal, and p's regression of the others on it; other blocks: their
        covariance given everything else, the inverse of their part of the precision.
        """
        order, _ = self._orders(loc.device)
        g = len(self._plan.globals)
        root = precision_root(scale_tril)
        precision = root.mT @ root
        params = {"loc": loc}
        for size, indices in self._plan.groups:
            rows = index_on(indices, loc.device).view(-1, size)
            part = precision[..., rows[:, :, None], rows[:, None, :]]  # (*batch, k, s, s)
            # P = M Mᵀ gives the covariance M⁻ᵀM⁻¹
            upper = precision_root(torch.linalg.cholesky_ex(part).L).mT
            params[f"scale_tril_{size}"] = lower_root(upper)
        if g:
            rows = scale_tril.tril()[..., order, :]
            params["global_tril"] = lower_root(rows[..., :g, :])
            cross = rows[..., :g, :] @ rows[..., g:, :].mT  # covariance of global and other
            params["loading"] = torch.linalg.solve_triangular(
                params["global_tril"], cross, upper=False
            ).mT
        return params

    @property
    def _plan(self) -> Plan:
        return plan(self.blocks, self.global_blocks, self.diagonal_blocks)

    def _orders(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """From coordinates to the order of the blocks, and back."""
        order = index_on(self._plan.order, device)
        return order, index_on(self._plan.back, device)

    def _groups(self, params: dict[str, Tensor], x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Triangles and coordinates ``(*batch, n, k, s)`` of the blocks of each size."""
        out, start = [], 0
        for size, indices in self._plan.groups:
            part = x[..., start : start + len(indices)].unflatten(-1, (-1, size))
            out.append((params[f"scale_tril_{size}"].tril(), part))
            start += len(indices)
        return out

    def _log_det(self, params: dict[str, Tensor]) -> Float[Tensor, "*batch"]:
        total = 0.0 * params["loc"][..., 0]
        for size, _ in self._plan.groups:
            total = total + log_det(params[f"scale_tril_{size}"]).sum(dim=-1)
        return total + log_det(params["global_tril"]) if self._plan.globals else total
