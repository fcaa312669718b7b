"""Fixed Gauss rules: as many points as asked for, nothing read on the host.

    ∫ f w ≈ Σ w_i f(x_i),   exact for polynomials of degree 2n − 1

They run inside `vmap`, `grad`, `make_fx` and `torch.compile`, so that a quadrature inside a log
density is a normal thing to write. The error bar comes from the same values: a Gauss rule misses
the coefficients from degree 2n on, and these are foreseen from how those of degree n/2 to n decay;
where they hardly do (kinks, jumps), the bar is the norm of the latter. Three points more show
whether the interpolant is any (an aliased wave). A needle between the nodes is not seen.

Golub & Welsch (1969), Calculation of Gauss quadrature rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from probcalc.integration.expectation import Expectation
from probcalc.integration.integrand import called
from probcalc.integration.orthogonal import RECURRENCES, Weight, gauss, polynomials
from probcalc.integration.problem import Problem, Solved, Tolerance
from probcalc.integration.replay import rerun
from probcalc.integration.standard import Axis, as_standard
from probcalc.status import Status

_SAFETY = 2.0  # on what is foreseen
_SLOWEST = 0.999  # ratio of coefficients
_CHECKS = 3
_GOLDEN = 0.5 * (3 - 5**0.5)  # place of a check between two nodes
_FAR = (
    10.0  # norms of the upper coefficients, a miss of the interpolant above which is no rounding
)
_FAST = 0.5  # ratio of coefficients below which their decay is believed
_MOST = 2**20  # points of a product
_CHUNK = 2**18  # values that are evaluated together, where the batch can be cut
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

        def at(z: Tensor, elem: slice) -> Tensor:
            low, width = lower[elem], (upper - lower)[elem]
            x = torch.addcmul(low, width, z)
            f = _asked(problem, x if boxes else x[..., 0], elem)
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
        return self._solved(lambda z, elem: _asked(problem, z, elem), axes, problem)

    def _solved(self, at: At, axes: tuple[Axis, ...], problem: Problem) -> Solved:
        n, b = self.num_points, problem.size
        count = n ** len(axes) + _CHECKS
        if count > _MOST:
            raise ValueError(
                f"a product of {n} points an axis in {len(axes)} dimensions has {count:,} points: "
                "use fewer points, `Cubature()` or `MonteCarlo()`."
            )
        device = problem.lower.device
        rules = [_rule(axis, n, device) for axis in axes]
        cut = problem.tensors and problem.batch and not any(axis.shape for axis in axes)
        step = max(1, _CHUNK // count) if cut else max(b, 1)
        some = [slice(i, min(i + step, b)) for i in range(0, max(b, 1), step)]
        points, rows = _points(rules), _functionals(rules)
        run = rerun if len(some) > 1 else _run
        parts = [run(_sums, at, points, rows, n, elem) for elem in some]
        value, error, size = (torch.cat(column) for column in zip(*parts, strict=True))
        good = value.detach().isfinite() & error.isfinite()
        error = torch.where(good, error + _ROUNDING * problem.rounding * size, math.inf)
        good = good.reshape(b, -1).all(dim=1)
        status = torch.where(good, int(Status.OK), int(Status.NON_FINITE))
        spent = torch.full((b,), count, dtype=torch.long, device=device)
        return Solved(value, error, status, spent, f"Gauss rule of {n} points")


@dataclass(frozen=True, eq=False)
class _Rule:
    """Nodes along an axis, weights, and how the last two coefficients come from values.

    Args:
        nodes: ``(n)``, or ``(n, *batch)`` where the weight has a shape.
        rows: ``(r, n)`` or ``(r, n, *batch)``: weights, then the functionals of the coefficients
            of degrees n/2 to n − 1.
        checks: A few points between the nodes, ``(m)`` or ``(m, *batch)``.
        prediction: From values at the nodes to the interpolant there, ``(m, n)`` or ``(m, n,
            *batch)``.
    """

    nodes: Float[Tensor, " n *b"]
    rows: Float[Tensor, "r n *b"]
    checks: Float[Tensor, " m *b"]
    prediction: Float[Tensor, "m n *b"]


def _asked(problem: Problem, x: Tensor, elem: slice) -> Tensor:
    """The function at points ``(n, k, *event)`` of some elements, or of all of the batch."""
    k = len(range(*elem.indices(problem.size)))
    x = x.expand(x.shape[0], k, *x.shape[2:])
    event = x.shape[2:]
    if problem.batch and problem.tensors:
        own = tuple(a[elem] if torch.is_tensor(a) else a for a in problem.args)
        return called(problem.fn, x, own, (k,))
    shaped = x.reshape(x.shape[0], *problem.batch, *event)
    f = called(problem.fn, shaped, problem.args, problem.batch)
    return f.reshape(x.shape[0], k, *f.shape[1 + len(problem.batch) :])


def _run(fn: Callable[..., Any], *args: Any) -> Any:
    return fn(*args)


def _sums(
    at: At, points: Tensor, rows: Tensor, num_points: int, elem: slice
) -> tuple[Inexact[Tensor, " k *out"], Float[Tensor, " k *out"], Float[Tensor, " k *out"]]:
    """Integral, error and integral of |f| of some elements."""
    f = at(points, elem)
    n, k, *out = f.shape
    f = f.reshape(n, k, -1)
    step = max(1, _CHUNK // (n * f.shape[2]))
    columns = [
        _of_columns(rows, f, slice(i, min(i + step, k)), num_points)
        for i in range(0, max(k, 1), step)
    ]
    return tuple(torch.cat(c).reshape(k, *out) for c in zip(*columns, strict=True))


def _of_columns(
    rows: Tensor, f: Tensor, columns: slice, num_points: int
) -> tuple[Tensor, Tensor, Tensor]:
    f, at_checks = f[:-_CHECKS, columns], f[-_CHECKS:, columns].detach()
    if rows.ndim == 2:  # the weights are those of every element
        apply = lambda r, g: (r.to(g.dtype) @ g.flatten(1)).view(-1, *g.shape[1:])  # noqa: E731
    else:
        rows = rows[..., columns]
        apply = lambda r, g: torch.einsum("rnk,nko->rko", r.to(g.dtype), g)  # noqa: E731
    value = apply(rows[:1], f)[0]
    with torch.no_grad():
        size = apply(rows[:1], f.abs())[0]
        figures = apply(rows[1:], f.detach())
        missed = (at_checks - figures[-_CHECKS:]).abs().mean(dim=0)
        # axis by axis, the coefficients of the upper half
        half = num_points - num_points // 2
        upper = figures[:-_CHECKS].abs().unflatten(0, (-1, half))
        error = _foreseen(upper, num_points).sum(dim=0)
        norm = upper.square().sum(dim=1).sqrt().sum(dim=0)
        error = error.maximum(missed - _FAR * norm)
    return value, error, size


def _foreseen(upper: Float[Tensor, " d h *k"], n: int) -> Float[Tensor, " d *k"]:
    """What lies beyond degree 2n, from the coefficients of degrees n/2 to n − 1."""
    middle, last = upper[:, :2].sum(dim=1), upper[:, -2:].sum(dim=1)
    tiny = torch.finfo(last.dtype).tiny
    ratio = (last / middle.clamp(min=tiny)) ** (1.0 / max(upper.shape[1] - 2, 1))
    ratio = ratio.clamp(max=_SLOWEST)
    geometric = last * ratio**n / (1 - ratio)
    norm = upper.square().sum(dim=1).sqrt()
    return _SAFETY * geometric.maximum(norm * (ratio / _FAST).clamp(max=1.0) ** n)


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
    """The product's weights, functionals of the coefficients along each axis, predictions."""
    wanted = [(0,) * len(rules)]
    for axis in range(len(rules)):
        wanted += [
            (0,) * axis + (row,) + (0,) * (len(rules) - axis - 1)
            for row in range(1, len(rules[0].rows))
        ]
    rows = [[rule.rows[i] for rule, i in zip(rules, one, strict=True)] for one in wanted]
    for check in range(_CHECKS):
        rows.append([rule.prediction[(check - i) % _CHECKS] for i, rule in enumerate(rules)])
    return torch.stack([_outer(parts) for parts in rows])


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
    return _Rule(nodes, weights * p[_degrees(n)], checks, prediction)


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
    return tuple(torch.from_numpy(t) for t in (x, w * p[_degrees(n)], checks, prediction))


# what `torch.compiler.assume_constant_result` marks, without its import of the compiler
_constants._dynamo_marked_constant = True


def _degrees(n: int) -> list[int]:
    return [0, *range(n // 2, n)]
