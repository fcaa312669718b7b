"""Boxes inside the unit cube of every element, and the integrand there.

Infinite sides are mapped to (0, 1): t/(1 − t), or s/(1 − s²) with s = 2t − 1 for both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.quantile import quantile
from probcalc.integration.box_rules import BoxRule, genz_malik
from probcalc.integration.grids import grid, orders_of
from probcalc.integration.orthogonal import LEGENDRE, Weight
from probcalc.integration.problem import Problem

POINTS = 2**16  # evaluated together
NUDGE = 1e-9  # towards the middle, off a point where the integrand is not finite


@dataclass(frozen=True, eq=False)
class Cells:
    """Boxes inside the unit cube of an element, each with its rule.

    Args:
        elem: Element of each.
        centre: Centres.
        half: Half widths.
        order: Code of the points an axis of a product rule; 0 for Genz and Malik's.
    """

    elem: Int[Tensor, " k"]
    centre: Float[Tensor, "k d"]
    half: Float[Tensor, "k d"]
    order: Int[Tensor, " k"]

    def __getitem__(self, index: Tensor) -> Cells:
        return Cells(self.elem[index], self.centre[index], self.half[index], self.order[index])

    @staticmethod
    def joined(parts: list[Cells]) -> Cells:
        """All cells of all parts."""
        columns = zip(*((c.elem, c.centre, c.half, c.order) for c in parts), strict=True)
        return Cells(*(torch.cat(c) for c in columns))


class Box:
    """The integrand on the unit cube of every element."""

    def __init__(self, problem: Problem) -> None:
        self.integrand = problem.integrand()
        self.lower, self.upper = problem.lower.detach(), problem.upper.detach()
        self.weights = problem.weights
        self.rounding = problem.rounding
        self.infinite = bool((self.lower.isinf() | self.upper.isinf()).any())
        self.shape: tuple[int, ...] = ()

    def on(self, cells: Cells, rule: BoxRule) -> tuple[Tensor, Tensor]:
        """Values times the cell's volume, ``(p, k, o)``, and how many were not finite."""
        t = torch.addcmul(cells.centre, cells.half, rule.points[:, None])
        f = self.at(t, cells.elem)
        good = f.isfinite()
        if not bool(good.all()):
            f = torch.where(
                good, f, self.at(torch.lerp(t, torch.full_like(t, 0.5), NUDGE), cells.elem)
            )
            good = f.isfinite()
            f = torch.where(good, f, 0.0)
        volume = (2 * cells.half).prod(dim=1)
        return f * volume[:, None], (~good).sum(dim=0)

    def measured(self, z: Float[Tensor, "n k d"], elem: Int[Tensor, " k"]) -> Tensor:
        """Values at points of the measure that has the weights, ``(n, k, o)``."""
        if self.weights is None:
            return self.at(z, elem)
        f = self.integrand(z, elem)
        self.shape = tuple(f.shape[2:])
        return f.reshape(*f.shape[:2], math.prod(self.shape))

    def at(self, t: Float[Tensor, "n k d"], elem: Int[Tensor, " k"]) -> Inexact[Tensor, "n k o"]:
        """Values at points of the unit cube, times |dx/dt|."""
        if self.weights is not None:
            columns = [quantile_of(w, t[..., i]) for i, w in enumerate(self.weights)]
            return self.measured(torch.stack(columns, dim=-1), elem)
        x, slope = self._mapped(t, elem)
        f = self.integrand(x, elem)
        self.shape = tuple(f.shape[2:])
        return f.reshape(*f.shape[:2], math.prod(self.shape)) * slope[..., None]

    def _mapped(self, t: Tensor, elem: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = self.lower[elem], self.upper[elem]
        width = upper - lower
        if not self.infinite:
            return torch.addcmul(lower, width, t), width.prod(dim=-1)[None]
        left, right = lower.isinf(), upper.isinf()
        s = 2 * t - 1
        options = [
            (left & right, s / (1 - s * s), 2 * (1 + s * s) / (1 - s * s) ** 2),
            (left & ~right, upper - (1 - t) / t, t**-2),
            (right & ~left, lower + t / (1 - t), (1 - t) ** -2),
        ]
        x, slope = lower + width * t, width.expand_as(t)
        for where, point, jacobian in options:
            x, slope = torch.where(where, point, x), torch.where(where, jacobian, slope)
        return x, slope.prod(dim=-1)


def rule_of(order: int, box: Box, like: Float[Tensor, "k d"]) -> BoxRule:
    """The product whose orders have that code, or Genz and Malik's for 0."""
    dim = like.shape[1]
    if not order:
        return genz_malik(dim, like.device)
    weights = box.weights or (LEGENDRE,) * dim
    product = grid(weights, orders_of(order, dim), like.device)
    return BoxRule(product.points, product.mass[None])


def quantile_of(weight: Weight, p: Float[Tensor, " *p"]) -> Float[Tensor, " *p"]:
    """Of a classical weight."""
    if weight.name == "hermite":
        return torch.special.ndtri(p)
    if weight.name == "legendre":
        return p
    family = {"laguerre": lambda a: td.Gamma(a, torch.ones_like(a)), "jacobi": td.Beta}[
        weight.name
    ]
    shape = (torch.tensor(a, dtype=p.dtype, device=p.device) for a in weight.shape)
    return quantile(family(*shape), p)


def whole(elem: Int[Tensor, " k"], dim: int, order: int) -> Cells:
    """One cell an element."""
    centre = torch.full((len(elem), dim), 0.5, dtype=torch.float64, device=elem.device)
    return Cells(elem, centre, centre, torch.full_like(elem, order))
