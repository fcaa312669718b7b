r"""Amortised guide: a module maps each row of the data to a guide of that row's local latents.

    q(g, z_1 … z_N) = q(g; λ) Π_i q(z_i; φ(x_i))

so that the number of parameters does not grow with the rows, and new rows cost one pass of the
module (`for_rows`). The local latents lie together in the unconstrained vector, row after row;
what is before and after them is global, with a guide of its own. Kingma & Welling (2014),
Auto-encoding variational Bayes; Zhang, Bütepage, Kjellström & Mandt (2019), Advances in
variational inference, section 6 (the amortisation gap).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcalc._tree import Layout, moved
from probcalc.inference.guides.full_rank import FullRank
from probcalc.inference.guides.functional import batch_of, called
from probcalc.inference.guides.low_rank import LowRank
from probcalc.inference.guides.mean_field import MeanField

if TYPE_CHECKING:
    from probcalc.inference.target import Target

_MODULE, _GLOBAL = "module.", "global."


@dataclass(frozen=True, eq=False)
class Amortised:
    """Parameters: the module's, named `module.…`, and those of the global guide, `global.…`.

    The module maps rows ``(N, ...)`` to ``(N, num_outputs)``: the parameters of the family in
    `local_dim` dimensions as one vector; of triangles the diagonal counts by its exponential.
    Starts are the module's own values. It must treat rows alike and draw nothing: no dropout, no
    batch normalisation in training mode.

    Args:
        module: From rows of the data to local parameters.
        data: Rows ``(N, ...)`` in the order of the local latents.
        local_dim: Latents of one row.
        start: Where the local latents begin in the unconstrained vector.
        family: Guide of one row: `MeanField`, `FullRank` or `LowRank`.
        global_family: Guide of everything else, if there is anything else.
    """

    module: nn.Module
    data: Tensor
    local_dim: int
    start: int = 0
    family: Any = MeanField()  # noqa: RUF009 (frozen)
    global_family: Any = MeanField()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        """Check the settings, and the module on the first row.

        Raises:
            ValueError: If the module's output has another length than the family's parameters.
            TypeError: If the family is none whose parameters a module can give.
        """
        if not isinstance(self.family, (MeanField, FullRank, LowRank)):
            raise TypeError(
                "`Amortised(family=...)` must be MeanField, FullRank or LowRank, got "
                f"{type(self.family).__name__}."
            )
        if self.local_dim < 1:
            raise ValueError(f"`local_dim` must be at least 1, got {self.local_dim}.")
        with torch.no_grad():
            got = tuple(self.module(self.data[:1]).shape)
        if got != (1, self.num_outputs):
            raise ValueError(
                f"the module must map a row to {self.num_outputs} numbers "
                f"({_words(self._layout)}), got shape {got} for one row."
            )

    @property
    def num_outputs(self) -> int:
        """Length of the module's output for one row."""
        return self._layout.size

    def for_rows(self, data: Tensor) -> Amortised:
        """The same guide for other rows; the parameters stay valid."""
        return replace(self, data=data)

    def init(self, target: Target, generator: torch.Generator) -> dict[str, Tensor]:
        """The module's values, and a start of the global guide.

        Raises:
            ValueError: If the target's vector is shorter than the local latents.
        """
        num_local = len(self.data) * self.local_dim
        if self.start + num_local > target.dim or self.start < 0:
            raise ValueError(
                f"{len(self.data)} rows of {self.local_dim} latents from position {self.start} "
                f"need a vector of at least {self.start + num_local}, the target has {target.dim}."
            )
        params = {
            _MODULE + name: p.detach().clone().to(target.device, target.dtype)
            for name, p in self.module.named_parameters()
        }
        loc = target.starts(1, generator)[0]
        others = torch.cat([loc[: self.start], loc[self.start + num_local :]])
        if len(others):
            shared = self.global_family.init(_Part(target, others), generator)
            params |= {_GLOBAL + name: t for name, t in shared.items()}
        return params

    def base_dim(self, dim: int) -> int:
        """Those of all rows, then that of the global guide."""
        others = dim - len(self.data) * self.local_dim
        return self._num_local_base + (self.global_family.base_dim(others) if others else 0)

    def transform(
        self, params: dict[str, Tensor], eps: Float[Tensor, "*batch n b"]
    ) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n"]]:
        """Draws and their log density."""
        local = self._local(params)
        rows = eps[..., : self._num_local_base].unflatten(-1, (len(self.data), -1))
        z, log_q = self.family.transform(local, rows.movedim(-2, -3))  # (*batch, N, n, ...)
        z, log_q = z.movedim(-3, -2).flatten(-2), log_q.sum(dim=-2)
        shared = _part(params, _GLOBAL)
        if shared:
            g, log_g = self.global_family.transform(shared, eps[..., self._num_local_base :])
            pieces = [g[..., : self.start], z, g[..., self.start :]]
            z, log_q = torch.cat(pieces, dim=-1), log_q + log_g
        return z, log_q

    def log_prob(
        self, params: dict[str, Tensor], z: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch n"]:
        """Log density."""
        stop = self.start + len(self.data) * self.local_dim
        rows = z[..., self.start : stop].unflatten(-1, (len(self.data), self.local_dim))
        total = self.family.log_prob(self._local(params), rows.movedim(-2, -3)).sum(dim=-2)
        shared = _part(params, _GLOBAL)
        if not shared:
            return total
        others = torch.cat([z[..., : self.start], z[..., stop:]], dim=-1)
        return total + self.global_family.log_prob(shared, others)

    def entropy(self, params: dict[str, Tensor]) -> Float[Tensor, "*batch"]:
        """Sum over rows, and that of the global guide."""
        total = self.family.entropy(self._local(params)).sum(dim=-1)
        shared = _part(params, _GLOBAL)
        return total + self.global_family.entropy(shared) if shared else total

    @property
    def _layout(self) -> Layout:
        d = self.local_dim
        shapes = {"loc": (d,)}
        if isinstance(self.family, FullRank):
            return Layout(shapes | {"scale_tril": (d, d)})
        shapes["log_scale"] = (d,)
        if isinstance(self.family, LowRank):
            shapes["factor"] = (d, self.family.base_dim(d) - d)
        return Layout(shapes)

    @property
    def _num_local_base(self) -> int:
        return len(self.data) * self.family.base_dim(self.local_dim)

    def _local(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameters of every row's guide, ``(*batch, N, ...)``."""
        own = _part(params, _MODULE)
        batch = batch_of(own, self.module)
        first = next(iter(own.values()))
        rows = moved(self.data, first.device, first.dtype)
        out = called(self.module, own, rows.expand(*batch, *rows.shape))
        local = self._layout.unflatten(out)
        if "scale_tril" in local:
            L = local["scale_tril"]
            diagonal = L.diagonal(dim1=-2, dim2=-1).exp()
            local["scale_tril"] = L.tril(-1) + torch.diag_embed(diagonal)
        return local


class _Part:
    """What a guide asks of a target, for the coordinates that are global."""

    def __init__(self, target: Target, start: Tensor) -> None:
        self.dim, self.device, self.dtype = len(start), target.device, target.dtype
        self._start = start

    def starts(self, num: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        return self._start.expand(num, -1)


def _part(params: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in params.items() if k.startswith(prefix)}


def _words(layout: Layout) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in layout.shapes.items())
