"""Grids and lines of Gauss points, and what the polynomials through values there say.

Everything here takes NumPy's arrays as well as tensors: small problems on the CPU run twice as
fast on the former.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.integration.orthogonal import Weight, gauss, modes, prediction

Array = Any  # np.ndarray or Tensor, of float64 or complex128

LINE, BASES = 20, 8  # points of a line, and how many lines run along each axis
CPU = torch.device("cpu")
_SMALL = 2**12  # points of a grid that is worth remembering
_BITS = 7  # of an order within a code


@dataclass(frozen=True, eq=False)
class Grid:
    """A product of rules.

    Args:
        points: Of the unit measure.
        mass: Weights, adding up to one.
    """

    points: Float[Tensor, "n d"]
    mass: Array


def grid(weights: tuple[Weight, ...], orders: tuple[int, ...], like: Any) -> Grid:
    """The product of the Gauss rules of some weights.

    Args:
        weights: One an axis.
        orders: Points an axis.
        like: A device, or values for whose kind the mass is meant.
    """
    make = _remembered if math.prod(orders) <= _SMALL else _recent
    if isinstance(like, np.ndarray):
        made = make(weights, orders, CPU)
        return Grid(made.points, made.mass.numpy())
    return make(weights, orders, like if isinstance(like, torch.device) else like.device)


def _grid(weights: tuple[Weight, ...], orders: tuple[int, ...], device: torch.device) -> Grid:
    rules = [gauss(weight, n) for weight, n in zip(weights, orders, strict=True)]
    axes = torch.meshgrid(*(torch.from_numpy(x).to(device) for x, _ in rules), indexing="ij")
    points = torch.stack(axes, dim=-1).reshape(-1, len(orders))
    mass = torch.ones(1, dtype=torch.float64, device=device)
    for _, w in rules:
        mass = torch.outer(mass, torch.from_numpy(w).to(device)).flatten()
    return Grid(points, mass)


_remembered, _recent = lru_cache(maxsize=256)(_grid), lru_cache(maxsize=4)(_grid)


def code_of(orders: tuple[int, ...]) -> int:
    """Orders in one integer, never 0."""
    return sum(n << (_BITS * i) for i, n in enumerate(orders))


def orders_of(code: int, dim: int) -> tuple[int, ...]:
    """The orders that an integer stands for."""
    return tuple((code >> (_BITS * i)) % 2**_BITS for i in range(dim))


def dot(weights: Array, f: Array) -> Array:
    """Weights times values, which may be complex."""
    return weights.to(f.dtype) @ f if torch.is_tensor(f) else weights @ f


def predicted(
    weights: tuple[Weight, ...], coarse: tuple[int, ...], orders: tuple[int, ...], g: Array
) -> Array:
    """The interpolant of values ``(m, c)`` on a coarse grid, at the points of another."""
    ahead, c = 1, g.shape[1]
    for weight, n, m in zip(weights, coarse, orders, strict=True):
        g = dot(_like(g, prediction(weight, n, m)), g.reshape(ahead, n, -1))
        ahead *= m
    return g.reshape(ahead, c)


def spectrum(weight: Weight, n: int, along: Array, columns: int) -> Array:
    """Mean size of the coefficient of each degree over all lines, ``(n, columns)``."""
    size = abs(dot(_like(along, modes(weight, n)), along))
    return size.reshape(len(along), n, -1, columns).mean((0, 2))


def _like(values: Array, matrix: np.ndarray) -> Array:
    return torch.from_numpy(matrix).to(values.device) if torch.is_tensor(values) else matrix


@lru_cache(maxsize=64)
def lines(weights: tuple[Weight, ...], device: torch.device) -> Grid:
    """Points along all axes through scattered places, axis by axis, and their mass."""
    dim = len(weights)
    u = scattered(dim, BASES, device)
    base = torch.stack([_placed(w, u[:, i]) for i, w in enumerate(weights)], dim=-1)
    points = base[:, None].expand(dim, BASES, LINE, dim).clone()
    rules = [[torch.from_numpy(t).to(device) for t in gauss(w, LINE)] for w in weights]
    for i, (x, _) in enumerate(rules):
        points[i, :, :, i] = x
    mass = torch.stack([w for _, w in rules])[:, None].expand(dim, BASES, LINE)
    return Grid(points.reshape(-1, dim), mass.reshape(-1) / (dim * BASES))


def _placed(weight: Weight, u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Nodes as frequent as their weights."""
    x, w = (torch.from_numpy(t).to(u.device) for t in gauss(weight, LINE))
    return x[torch.searchsorted(w.cumsum(0), u.contiguous()).clamp(max=LINE - 1)]


def scattered(dim: int, num: int, device: torch.device) -> Float[Tensor, "n d"]:
    """Points of an additive recurrence, evenly spread: Roberts (2018), after Weyl (1916)."""
    root = 2.0
    for _ in range(64):
        root = (1 + root) ** (1 / (dim + 1))
    steps = root ** -torch.arange(1, dim + 1, dtype=torch.float64, device=device)
    n = torch.arange(1, num + 1, dtype=torch.float64, device=device)
    return (0.5 + n[:, None] * steps) % 1
