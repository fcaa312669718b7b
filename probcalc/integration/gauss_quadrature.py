"""Fixed Gauss rules: as many points as asked for, nothing read on the host.

    ∫ f w ≈ Σ w_i f(x_i),   exact for polynomials of degree 2n − 1

They run inside `vmap`, `grad`, `make_fx` and `torch.compile`, so that a quadrature inside a log
density is a normal thing to write. The error bar comes from the same values by a handful of linear
functionals, one product of matrices for a batch: a Gauss rule misses the coefficients from degree
2n on, and these are foreseen from how those from n/2 to n decay (signed sums of the lower and of
the upper half of them stand for all). The upper sums also hold what the interpolant misses at two
more points, so that an aliased wave is seen. A needle between the nodes is not.

Golub & Welsch (1969), Calculation of Gauss quadrature rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from probcalc.integration.expectation import Expectation
from probcalc.integration.integrand import called
from probcalc.integration.orthogonal import RECURRENCES, Weight, gauss, polynomials
from probcalc.integration.problem import Problem, Solved, Tolerance
from probcalc.integration.replay import piecewise
from probcalc.integration.standard import Axis, as_standard
from probcalc.status import Status

_FAST = 0.5  # ratio of one coefficient to the one before, below which their decay is believed
_LEAST = 1e-8  # that of whole halves, which rounding hides otherwise
_CHECKS = 2
_GOLDEN = 0.5 * (3 - 5**0.5)  # place of a check between two nodes
_SIGNS = ((1.0, 1.0), (1.0, -1.0))  # of the misses at the checks
_MOST = 2**20  # points of a product
_CHUNK = 2**18  # values that are evaluated together, where the batch can be cut
_LARGE_CHUNK = 2**24  # where a call costs as much as a million of them
_ROUNDING = 4.0  # units in the last place


# at(points, elements): points (n, 1 or b, d) and a slice of the batch to values (n, k, *out)
At = Callable[[Tensor, slice], Tensor]


@dataclass(frozen=True)
class GaussQuadrature:
    """A Gauss rule with a fixed number of points, or a product of such rules.

    Legendre's for finite intervals and boxes; for expectations Hermite's, Laguerre's, Jacobi's or
    Legendre's, after the distribution.

    Args:
        num_points: Points an axis, at least 4.
    """

    num_points: int = 20

    def __post_init__(self) -> None:
        """Check the number."""
        if not isinstance(self.num_points, int) or self.num_points < 4:
            raise ValueError(
                f"`num_points` must be an integer of at least 4, got {self.num_points!r}."
            )

    def solve(self, problem: Problem, tolerance: Tolerance) -> Solved:
        """Integrate over finite intervals or boxes; NaN, flagged, over infinite ones.

        Raises:
            ValueError: If there are too many dimensions for a product of rules.
        """
        del tolerance
        boxes = bool(problem.event)
        dim = problem.event[0] if boxes else 1
        lower, upper = (t.reshape(problem.size, dim) for t in (problem.lower, problem.upper))

        asked = _asked(problem)

        def at(z: Tensor, elem: slice) -> Tensor:
            low, width = lower[elem], (upper - lower)[elem]
            x = torch.addcmul(low, width, z)
            f = asked(x if boxes else x[..., 0], elem)
            scale = problem.sign[elem] * width.prod(dim=-1)
            return f * scale.reshape([-1, *[1] * (f.ndim - 2)])

        return self._solved(at, (Axis("legendre"),) * dim, problem)

    def expect(self, posed: Expectation, tolerance: Tolerance) -> Solved:
        """Expectation under an image of classical weights.

        Raises:
            NotImplementedError: If the distribution is none.
            ValueError: If there are too many dimensions for a product of rules.
        """
        del tolerance
        problem, axes = as_standard(posed, still=False)
        return self._solved(_asked(problem), axes, problem)

    def _solved(self, at: At, axes: tuple[Axis, ...], problem: Problem) -> Solved:
        n, b = self.num_points, problem.size
        count = n ** len(axes) + _CHECKS
        if count > _MOST:
            raise ValueError(
                f"a product of {n} points an axis in {len(axes)} dimensions has {count:,} points: "
                "use fewer points, `Cubature()` or `MonteCarlo()`."
            )
        device = problem.lower.device
        chunk = _CHUNK if device.type == "cpu" else _LARGE_CHUNK
        rules = [_rule(axis, n, device) for axis in axes]
        points, functionals = _points(rules), _functionals(rules)
        # decay from half to half of the upper coefficients, so far apart, that is believed
        slowest = max(_FAST ** ((n - n // 2) / 2), _LEAST)
        if problem.tensors and problem.batch and not any(axis.shape for axis in axes):
            piece = partial(at, points)
            step = max(1, chunk // count)
        else:  # the function may close over the batch
            f = at(points, slice(0, b))
            piece = lambda elem: f[:, elem]  # noqa: E731
            step = max(1, chunk * b // max(f.numel(), 1))

        def parts() -> Iterator[tuple[Tensor, Tensor]]:
            value: Tensor | float = 0.0
            for i in range(0, max(b, 1), step):
                elem = slice(i, min(i + step, b))
                figures = piecewise(value, _figures, piece, functionals, elem)
                value = figures[0]
                yield value, _error(figures, slowest, _ROUNDING * problem.rounding)

        value, error = _joined(parts(), b)
        bad = error == math.inf
        bad = bad.reshape(b, -1).any(dim=1) if bad.ndim > 1 else bad
        spent = torch.full((), count, device=device).expand(b)
        method = f"Gauss rule of {n} points"
        status = bad.short() * int(Status.NON_FINITE)
        return Solved(value, error, status, spent, method, flagged=True)


@dataclass(frozen=True, eq=False)
class _Rule:
    """Nodes along an axis, weights, and how coefficients and the interpolant come from values.

    Args:
        nodes: ``(n)``, or ``(n, *batch)`` where the weight has a shape.
        rows: ``(5, n)`` or ``(5, n, *batch)``: weights, then signed sums of the coefficients
            below degree n/2, of the next n/4, and two of the last n/4.
        checks: A few points between the nodes, ``(m)`` or ``(m, *batch)``.
        prediction: From values at the nodes to the interpolant there, ``(m, n)`` or ``(m, n,
            *batch)``.
    """

    nodes: Float[Tensor, " n *b"]
    rows: Float[Tensor, "5 n *b"]
    checks: Float[Tensor, " m *b"]
    prediction: Float[Tensor, "m n *b"]


def _asked(problem: Problem) -> At:
    """The function at points ``(n, 1 or k, *event)`` of some elements, or of all of the batch."""
    if problem.batch and problem.tensors:

        def at(x: Tensor, elem: slice) -> Tensor:
            k = elem.stop - elem.start
            own = tuple(a[elem] if torch.is_tensor(a) else a for a in problem.args)
            return called(problem.fn, x.expand(x.shape[0], k, *x.shape[2:]), own, (k,))

    else:

        def at(x: Tensor, elem: slice) -> Tensor:
            del elem
            lead, event = (x.shape[0], *problem.batch), x.shape[2:]
            x = x.expand(lead[0], problem.size, *event).reshape(*lead, *event)
            f = called(problem.fn, x, problem.args, problem.batch)
            return f.reshape(lead[0], problem.size, *f.shape[len(lead) :])

    return at


def _joined(parts: Iterator[tuple[Tensor, ...]], size: int) -> tuple[Tensor, ...]:
    """Columns of parts, one part after the other; written in place where nothing forbids it."""
    first = next(parts)
    if first[0].shape[0] == size:
        return first
    if first[0].requires_grad or torch._C._functorch.peek_interpreter_stack() is not None:
        return tuple(torch.cat(column) for column in zip(first, *parts, strict=True))
    joined = tuple(t.new_empty(size, *t.shape[1:]) for t in first)
    start = 0
    for part in chain([first], parts):
        for into, t in zip(joined, part, strict=True):
            into[start : start + t.shape[0]] = t
        start += part[0].shape[0]
    return joined


def _figures(
    piece: Callable[[slice], Tensor], functionals: Tensor, elem: slice
) -> Inexact[Tensor, "r k *out"]:
    """Integral and sums of coefficients of some elements."""
    f = piece(elem)
    if functionals.ndim == 2:  # the same for every element
        functionals = functionals.to(f.dtype) if f.is_complex() else functionals
        return torch.tensordot(functionals, f, dims=1) if f.ndim > 2 else functionals @ f
    return torch.einsum("rnk,nk...->rk...", functionals[..., elem].to(f.dtype), f)


def _error(
    figures: Inexact[Tensor, "r k *out"], slowest: float, rounding: float
) -> Float[Tensor, " k *out"]:
    """Error bars; infinite where there is no value."""
    error, *sums = figures.detach().abs()
    for i in range(0, len(sums), 4):
        error = error.add_(sums[i])
    error = error.mul_(rounding)
    for i in range(1, len(sums), 4):
        error = error.add_(_beyond(*sums[i : i + 3], slowest), alpha=slowest**-4)
    return error.nan_to_num(nan=math.inf, posinf=math.inf)


def _beyond(lower: Tensor, upper: Tensor, also: Tensor, slowest: float) -> Tensor:
    """What lies beyond degree 2n along an axis, from sums of the coefficients below n.

    Degree 2n is four times as far from the lower half of these as the upper half is. Up to a
    factor, so that what decays more slowly than is believed keeps all of its norm. The sums are
    overwritten.
    """
    upper = upper.add_(also)
    norm = lower.add_(upper).add_(torch.finfo(lower.dtype).tiny)
    decay = upper.div_(norm).clamp(max=slowest)
    return decay.square().square().mul_(norm)


def _points(rules: list[_Rule]) -> Float[Tensor, "n k d"]:
    """All points of the product, for one or every element, then the checks."""
    k = max([1, *(rule.nodes.shape[1] for rule in rules if rule.nodes.ndim > 1)])
    wide = [[t.reshape(len(t), -1).expand(-1, k) for t in (r.nodes, r.checks)] for r in rules]
    index = torch.cartesian_prod(*(torch.arange(len(x), device=x.device) for x, _ in wide))
    index = index.reshape(-1, len(rules))
    nodes = torch.stack([x[index[:, i]] for i, (x, _) in enumerate(wide)], dim=-1)
    # every axis with another of its checks
    checks = torch.stack([c.roll(i, dims=0) for i, (_, c) in enumerate(wide)], dim=-1)
    return torch.cat([nodes, checks])


def _functionals(rules: list[_Rule]) -> Tensor:
    """The weights of the product, then four sums for each axis, on nodes and checks."""
    weights = [rule.rows[0] for rule in rules]
    wanted = [weights]
    for axis, rule in enumerate(rules):
        wanted += [[*weights[:axis], row, *weights[axis + 1 :]] for row in rule.rows[1:]]
    at_nodes = torch.stack([_outer(parts) for parts in wanted])
    turned = [[(check - i) % _CHECKS for check in range(_CHECKS)] for i in range(len(rules))]
    predicted = torch.stack(
        [
            _outer([rule.prediction[turned[i][check]] for i, rule in enumerate(rules)])
            for check in range(_CHECKS)
        ]
    )
    # how much of which miss goes into which sum: the two upper ones of every axis
    miss = torch.zeros(len(wanted), _CHECKS, dtype=at_nodes.dtype, device=at_nodes.device)
    for row, signs in enumerate(_SIGNS):
        miss[3 + row :: 4] = torch.tensor(signs, dtype=miss.dtype, device=miss.device)
    at_nodes = at_nodes - torch.einsum("rm,mn...->rn...", miss, predicted)
    at_checks = miss.reshape(*miss.shape, *[1] * (at_nodes.ndim - 2))
    at_checks = at_checks.expand(*miss.shape, *at_nodes.shape[2:])
    return torch.cat([at_nodes, at_checks], dim=1)


def _outer(parts: list[Tensor]) -> Tensor:
    """Products of all entries, the last part's running fastest."""
    product, *rest = parts
    for part in rest:
        if part.ndim < product.ndim:
            part = part[:, None]
        elif product.ndim < part.ndim:
            product = product[:, None]
        product = (product[:, None] * part[None]).flatten(0, 1)
    return product


def _rule(axis: Axis, n: int, device: torch.device) -> _Rule:
    if not axis.shape:
        return _Rule(*(t.to(device) for t in _constants(axis.name, n)))
    shape = tuple(s.double().reshape(-1) for s in axis.shape)
    if len(shape[0]) == 1:
        shape = tuple(s[0] for s in shape)
    k = torch.arange(n, dtype=torch.float64, device=device)
    a, squared = RECURRENCES[axis.name](k.reshape(-1, *[1] * shape[0].ndim), *shape)
    b = squared[1:].sqrt()
    nodes = _eigenvalues(a, b)
    p = _polynomials(a, b, nodes)
    weights = 1.0 / p.square().sum(dim=0)
    with torch.no_grad():
        checks = _between(nodes)
        prediction = torch.einsum("km...,kn...->mn...", _polynomials(a, b, checks), weights * p)
    sums = torch.from_numpy(_sums_of_coefficients(n)).to(device)
    rows = torch.einsum("rk,kn...->rn...", sums, weights * p)
    return _Rule(nodes, rows, checks, prediction)


def _polynomials(a: Tensor, b: Tensor, x: Tensor) -> Float[Tensor, "n m *b"]:
    p = [torch.ones_like(x)]
    for j in range(len(a) - 1):
        before = b[j - 1] * p[j - 1] if j else 0.0
        p.append(((x - a[j]) * p[j] - before) / b[j])
    return torch.stack(p)


def _between(nodes: Any) -> Any:
    """Places between nodes, in the middle of the distribution."""
    left = [(i + 1) * len(nodes) // (_CHECKS + 1) - 1 for i in range(_CHECKS)]
    right = [i + 1 for i in left]
    return nodes[left] + _GOLDEN * (nodes[right] - nodes[left])


def _eigenvalues(a: Float[Tensor, " n *b"], b: Float[Tensor, " m *b"]) -> Float[Tensor, " n *b"]:
    """Of the symmetric tridiagonal matrices with these diagonals."""
    a, b = a.movedim(0, -1), b.movedim(0, -1)
    matrix = torch.diag_embed(a) + torch.diag_embed(b, 1) + torch.diag_embed(b, -1)
    return torch.linalg.eigvalsh(matrix).movedim(-1, 0)


def _constants(name: str, n: int) -> tuple[Tensor, ...]:
    """The rule of a weight without a shape."""
    weight = Weight(name)
    x, w = gauss(weight, n)
    p, checks = polynomials(weight, n, x), _between(x)
    prediction = polynomials(weight, n, checks).T @ (p * w)
    rows = _sums_of_coefficients(n) @ (w * p)
    return tuple(torch.from_numpy(t) for t in (x, rows, checks, prediction))


# what `torch.compiler.assume_constant_result` marks, without its import of the compiler
_constants._dynamo_marked_constant = True


@lru_cache
def _sums_of_coefficients(n: int) -> np.ndarray:
    """Of degree 0, of 1 to n/2 − 1, and of the lower and the upper half of the rest.

    Signs in pairs, ++−−, and for a second sum of the last none, so that neither coefficients that
    alternate (every one or every second) nor those that do not can cancel in both.
    """
    first, middle = n // 2, n // 2 + (n - n // 2) // 2
    degrees = np.arange(n)
    pairs = np.where((degrees - first) % 4 < 2, 1.0, -1.0)
    pairs[0] = 1.0
    high = degrees >= middle
    sums = [degrees == 0, (degrees > 0) & (degrees < first), (degrees >= first) & ~high, high]
    return np.stack([*(pairs * s for s in sums), 1.0 * high])
