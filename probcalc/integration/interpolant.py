"""Sparse polynomial interpolants in many variables, grown where the function asks for it.

    If(z) = Σ_{k ∈ K} α_k Π_i h_{k_i}(z_i)

Every index k has one node, (x_{k_1}, ..., x_{k_d}) of Leja's sequences, and α_k is what f is there
less what the indices before k foresaw. Chkifa, Cohen & Schwab (2014), High-dimensional adaptive
sparse polynomial interpolation, section 6; Gerstner & Griebel (2003).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor

from probcalc.integration.leja import LEVELS, leja
from probcalc.integration.orthogonal import Weight

Index = tuple[int, ...]
Values = Callable[[Float[Tensor, "n d"]], Inexact[Tensor, "n c"]]
# from the means and the root mean squares of what is foreseen to be missed: whether to go on
Unfinished = Callable[[Inexact[Tensor, " c"], Float[Tensor, " c"]], bool]

_SHARE = 0.3  # of the largest coefficient, from which an index is followed
_STEP = 8  # part of the nodes that are followed at once


@dataclass(frozen=True, eq=False)
class Nodes:
    """Where a function is interpolated, and by which polynomials.

    Args:
        weights: Of the measure, axis by axis.
        levels: An index a node, none before those that it stands on.
        device: Of the points.
    """

    weights: tuple[Weight, ...]
    levels: np.ndarray
    device: torch.device

    @property
    def points(self) -> Float[Tensor, "k d"]:
        """The nodes."""
        return self._columns("points")

    @property
    def mean(self) -> Float[Tensor, " k"]:
        """Of the polynomials."""
        return self._columns("mean").prod(dim=1)

    @property
    def norm(self) -> Float[Tensor, " k"]:
        """Root mean squares of the polynomials."""
        return self._columns("norm").prod(dim=1)

    def _columns(self, name: str) -> Float[Tensor, "k d"]:
        columns = [
            getattr(leja(weight), name)[level]
            for weight, level in zip(self.weights, self.levels.T, strict=True)
        ]
        return torch.from_numpy(np.stack(columns, axis=-1)).to(self.device)

    def polynomials(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """At any points."""
        num = int(self.levels.max(initial=0)) + 1
        columns = [
            torch.stack(leja(weight).newton(x, num))
            for weight, x in zip(self.weights, z.unbind(dim=1), strict=True)
        ]
        table = torch.stack(columns)  # (d, levels, n)
        product = torch.ones(len(self.levels), len(z), dtype=z.dtype, device=z.device)
        for axis, level in self._active():
            product = product * table[axis, level]
        return product.T

    def _active(self) -> list[tuple[Int[Tensor, " k"], Int[Tensor, " k"]]]:
        """Axes on which indices are not 0, one of every index at a time, and the levels there."""
        most = int((self.levels > 0).sum(axis=1).max(initial=0))
        axes = np.argsort(self.levels == 0, axis=1, kind="stable")[:, :most]
        levels = np.take_along_axis(self.levels, axes, axis=1)
        pairs = zip(axes.T, levels.T, strict=True)
        return [tuple(torch.from_numpy(t.copy()).to(self.device) for t in pair) for pair in pairs]

    def coefficients(self, f: Inexact[Tensor, "k c"]) -> Inexact[Tensor, "k c"]:
        """From values at the nodes, differentiably."""
        matrix = self.polynomials(self.points).to(f.dtype)
        return torch.linalg.solve_triangular(matrix, f, upper=False, unitriangular=True)


def grown(
    at: Values,
    weights: tuple[Weight, ...],
    most: int,
    unfinished: Unfinished,
    device: torch.device,
) -> Nodes:
    """Nodes for functions that share them, found index by index.

    Args:
        at: Their values.
        weights: Of the measure, axis by axis.
        most: How many nodes there may be.
        unfinished: Whether so large a rest is too large.
        device: Of the points.
    """
    frontier = _Frontier(len(weights))
    nodes = Nodes(weights, np.array([frontier.known[0]]), device)
    alpha = at(nodes.points)
    while len(nodes.levels) < most:
        size = alpha.abs() * nodes.norm[:, None]
        rest = size[frontier.ahead()].square().sum(dim=0).sqrt()
        mean = (alpha * nodes.mean[:, None]).sum(dim=0)
        if len(nodes.levels) > 1 and not unfinished(mean, rest):
            break
        scale = size.amax(dim=0).clamp(min=torch.finfo(size.dtype).tiny)
        fresh = frontier.followed((size / scale).amax(dim=1).tolist(), most)
        if not fresh:
            break
        new = Nodes(weights, np.array(fresh), device)
        # fresh indices do not stand on each other
        foreseen = nodes.polynomials(new.points).to(alpha.dtype) @ alpha
        alpha = torch.cat([alpha, at(new.points) - foreseen])
        nodes = Nodes(weights, np.array(frontier.known), device)
        if not bool(alpha.isfinite().all()):
            break
    return nodes


class _Frontier:
    """Indices in the order in which they came, and which of them have been followed."""

    def __init__(self, dim: int) -> None:
        self.known: list[Index] = [(0,) * dim]
        self.place: dict[Index, int] = {self.known[0]: 0}
        self.open: set[int] = {0}

    def ahead(self) -> list[int]:
        """Places of those that have not."""
        return sorted(self.open)

    def followed(self, sizes: list[float], most: int) -> list[Index]:
        """Those that follow the largest open ones, and now are known."""
        fresh: list[Index] = []
        while self.open and not fresh:
            ranked = sorted(self.open, key=lambda place: -sizes[place])
            least = _SHARE * sizes[ranked[0]]
            top = [p for p in ranked[: 1 + len(self.known) // _STEP] if sizes[p] >= least]
            self.open.difference_update(top)
            for place in top:
                fresh += self._after(self.known[place], most)
        return fresh

    def _after(self, index: Index, most: int) -> list[Index]:
        fresh = []
        for axis in range(len(index)):
            after = _moved(index, axis, 1)
            if after in self.place or after[axis] == LEVELS or len(self.known) == most:
                continue
            before = [_moved(after, i, -1) for i, level in enumerate(after) if level]
            if all(self.place.get(k, -1) not in {-1, *self.open} for k in before):
                self.place[after] = len(self.known)
                self.known.append(after)
                fresh.append(after)
        self.open.update(self.place[k] for k in fresh)
        return fresh


def _moved(index: Index, axis: int, step: int) -> Index:
    return (*index[:axis], index[axis] + step, *index[axis + 1 :])
