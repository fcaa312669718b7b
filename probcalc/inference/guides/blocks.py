"""Blocks of coordinates: grouped by size, and read from the sites of a target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from probcalc.inference.guides.functional import outside

if TYPE_CHECKING:
    from probcalc.inference.target import Target


@dataclass(frozen=True)
class Plan:
    """Where the coordinates of each block lie.

    Args:
        globals: Coordinates of the global block.
        groups: For every size of block, that size and the coordinates of all such blocks.
        order: All coordinates: the global ones, then group by group.
        back: Positions of the coordinates in `order`.
    """

    globals: tuple[int, ...]
    groups: tuple[tuple[int, tuple[int, ...]], ...]
    order: tuple[int, ...]
    back: tuple[int, ...]


@lru_cache(maxsize=64)
def plan(
    blocks: tuple[tuple[int, int], ...],
    global_blocks: tuple[int, ...],
    diagonal_blocks: tuple[int, ...],
) -> Plan:
    """Group the blocks by size; diagonal ones fall apart into blocks of one coordinate."""
    by_size: dict[int, list[int]] = {}
    shared: list[int] = []
    for position, (start, stop) in enumerate(blocks):
        coordinates = range(start, stop)
        if position in global_blocks:
            shared.extend(coordinates)
        else:
            size = 1 if position in diagonal_blocks else stop - start
            by_size.setdefault(size, []).extend(coordinates)
    groups = tuple((size, tuple(by_size[size])) for size in sorted(by_size))
    order = (*shared, *(i for _, indices in groups for i in indices))
    back = sorted(range(len(order)), key=order.__getitem__)
    return Plan(tuple(shared), groups, order, tuple(back))


@lru_cache(maxsize=64)
def index_on(indices: tuple[int, ...], device: torch.device) -> Int[Tensor, " n"]:
    """The indices as a tensor, made once a device."""
    return outside(lambda: torch.tensor(indices, dtype=torch.long, device=device))


def site_ranges(target: Target) -> dict[str, tuple[int, int]]:
    """Range of the unconstrained vector that each latent site is a map of, in its order.

    Read off the derivatives of the constrained values at a random point, so that supports whose
    free vector is shorter than their values (simplex, Cholesky factors) need no table. Derived
    sites depend on what latent sites have taken before and get no range.

    Raises:
        ValueError: If the entries of a site do not lie together.
    """
    stream = torch.Generator().manual_seed(0)  # private: any point does
    draw = lambda n: torch.rand(n, generator=stream, dtype=target.dtype).to(target.device)  # noqa: E731
    z = (2 * draw(target.dim) - 1).requires_grad_()
    with torch.enable_grad():
        x = target.constrained_vector(z[None])[0]
    taken, ranges, start = torch.zeros(target.dim, dtype=torch.bool), {}, 0
    for name, shape in target.layout.shapes.items():
        size = math.prod(shape)
        weights = torch.zeros_like(x)
        weights[start : start + size] = 0.5 + draw(size)  # positive: no term cancels another
        start += size
        (slope,) = torch.autograd.grad(x, z, weights, retain_graph=True, allow_unused=True)
        if bool(taken.all()) or slope is None:
            continue
        found = ((slope != 0).cpu() & ~taken).nonzero().flatten().tolist()
        if not found or bool(((slope != 0).cpu() & taken).any()):
            continue  # derived from sites before it
        if found != list(range(found[0], found[-1] + 1)):
            raise ValueError(f"the entries of site {name!r} do not lie together: give `blocks`.")
        taken[found] = True
        ranges[name] = (found[0], found[-1] + 1)
    return dict(sorted(ranges.items(), key=lambda item: item[1]))
