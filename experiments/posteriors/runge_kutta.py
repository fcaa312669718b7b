"""Solutions of ordinary differential equations as one operation in a density.

A solution of a hundred steps written out in torch is a graph of ten thousand nodes. Here it is
one operation: the classical Runge-Kutta method, with a fixed number of steps so that the result
is smooth in the parameters, runs on the state together with its sensitivities

    x' = f(t, x; p),   S' = (∂f/∂x) S + ∂f/∂p,   S = ∂x/∂p,

which are exactly the derivatives of the discrete solution. The operation is a constant to
autograd, and the density sees its linear part, x(p₀) + S (p − p₀) at p₀ = p: values and first
derivatives are right, second derivatives of the solution are not there, so a Hessian must come
from differences of gradients.

Hairer, Nørsett and Wanner (1993), Solving Ordinary Differential Equations I, sections I.14, II.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SCHEMA = "(Tensor parameters, float[] constants, float width, int[] counts) -> (Tensor, Tensor)"
_LIBRARIES: list[torch.library.Library] = []  # an operation lives as long as its library

Array = np.ndarray
Rate = Callable[[float, Array, Array, Sequence[float]], Array]


@dataclass(frozen=True)
class Equation:
    """An equation for rows of parameters at once.

    Args:
        size: Number m of states.
        start: From parameters ``(k, n)`` to state and sensitivities ``(m, 1 + k, n)`` at time 0.
        rate: ``rate(time, state, parameters, constants)``, their derivatives in time.
    """

    size: int
    start: Callable[[Array], Array]
    rate: Rate


class Solution:
    """The equation's solution as a function of parameters ``(k)`` in a traceable density.

    Args:
        name: Of the operation in torch, unique in a process.
        equation: What is solved.
    """

    def __init__(self, name: str, equation: Equation) -> None:
        self._equation = equation
        space, _, short = name.partition("::")
        library = torch.library.Library(space, "FRAGMENT")
        library.define(short + _SCHEMA)
        library.impl(short, self._solve, "CompositeExplicitAutograd")
        library.impl(short, torch.library.fallthrough_kernel, "Autograd")
        _LIBRARIES.append(library)
        self._op = getattr(getattr(torch.ops, space), short).default
        torch.library.register_fake(name, self._shapes, lib=library)
        torch.library.register_vmap(name, self._batched, lib=library)

    def __call__(
        self, parameters: Tensor, constants: Sequence[float], width: float, counts: Sequence[int]
    ) -> Tensor:
        """States at equally spaced points, ``(points, m)``.

        Args:
            parameters: Shape ``(k)``.
            constants: Of the equation.
            width: Of a step.
            counts: Number of points, and of steps before each.
        """
        path, sensitivity = self._op(parameters, constants, width, counts)
        origin = sensitivity[0, 0]  # a copy of the parameters that autograd takes as constant
        return path + (sensitivity[1:] * (parameters - origin)).sum(dim=-1)

    def _solve(
        self, parameters: Tensor, constants: Sequence[float], width: float, counts: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        rows = parameters.detach().reshape(-1, parameters.shape[-1])
        p = np.ascontiguousarray(rows.cpu().double().numpy().T)  # (k, n)
        with np.errstate(all="ignore"):  # far from the data a solution may overflow
            path = _path(self._equation, p, constants, width, counts)  # (points, m, 1 + k, n)
        path = torch.from_numpy(np.moveaxis(path, -1, 0).copy()).to(parameters)
        origin = parameters.detach().reshape(len(path), 1, 1, -1)
        kept = torch.cat([origin.expand(-1, 1, path.shape[2], -1), path[..., 1:]], dim=1)
        lead, states = parameters.shape[:-1], path[..., 0].contiguous()
        return states.reshape(*lead, *path.shape[1:3]), kept.reshape(*lead, *kept.shape[1:])

    def _shapes(
        self, parameters: Tensor, constants: Any, width: float, counts: Any
    ) -> tuple[Tensor, Tensor]:
        lead, k = parameters.shape[:-1], parameters.shape[-1]
        points, m = counts[0], self._equation.size
        path = parameters.new_empty((*lead, points, m))
        return path, parameters.new_empty((*lead, 1 + points, m, k))

    def _batched(self, info: Any, in_dims: Any, parameters: Tensor, *rest: Any) -> Any:
        return self._op(parameters.movedim(in_dims[0], 0), *rest), (0, 0)


def _path(
    equation: Equation,
    p: Array,
    constants: Sequence[float],
    width: float,
    counts: Sequence[int],
) -> Array:
    rate = lambda t, x: equation.rate(t, x, p, constants)  # noqa: E731
    points, steps = counts
    x = equation.start(p)
    seen = np.empty((points, *x.shape))
    for i in range(points * steps):
        t = i * width
        k1 = rate(t, x)
        k2 = rate(t + width / 2, x + (width / 2) * k1)
        k3 = rate(t + width / 2, x + (width / 2) * k2)
        k4 = rate(t + width, x + width * k3)
        x = x + (width / 6) * (k1 + 2.0 * (k2 + k3) + k4)
        if (i + 1) % steps == 0:
            seen[i // steps] = x
    return seen
