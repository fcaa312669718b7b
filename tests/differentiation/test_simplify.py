from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.distributions import HalfCauchy, Normal
from torch.func import grad, grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from probcalc.differentiation.graph import with_free_rows
from probcalc.differentiation.simplify import simplify

X = torch.tensor([0.5, -1.5, 2.0, 0.25], dtype=torch.float64)
A = torch.arange(16.0, dtype=torch.float64).reshape(4, 4).cos()
EPS = torch.finfo(torch.float64).eps


def num_calls(module: fx.GraphModule) -> int:
    return sum(node.op == "call_function" for node in module.graph.nodes)


# name -> (function, calls that remain)
REWRITES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "constants folded": (lambda x: x * (A @ A).sum().sin(), 1),
    "constant of a constant": (lambda x: x + torch.ones(4).double().cumsum(0).exp(), 1),
    "equal nodes shared": (lambda x: x.sin() * x.sin() + x.sin(), 3),
    "identities dropped": (lambda x: x.expand(4).view(4).clone().double() + 1, 1),
    "dead code dropped": (lambda x: (x.exp(), x.cos())[1], 1),
    "nothing to do": (lambda x: (A @ x).tanh(), 2),
}


@pytest.mark.parametrize(("fn", "calls"), REWRITES.values(), ids=REWRITES.keys())
def test_simplify_keeps_values_bit_for_bit(fn: Callable, calls: int):
    graph = make_fx(fn)(X)
    small = simplify(graph, X)
    assert num_calls(small) == calls
    for x in (X, -3 * X, X * 1e-3):
        assert torch.equal(small(x), graph(x))
        assert torch.equal(small(x), fn(x))


def test_views_that_change_something_stay():
    fn = lambda x: x.view(2, 2).sum(0) * x.float().double()[:2]  # noqa: E731
    assert torch.equal(simplify(make_fx(fn)(X), X)(-X), fn(-X))


def test_equal_calls_on_different_inputs_are_not_shared():
    fn = lambda x: x.sum(0) * x.sum() + x[0] * x[1] + x.pow(2).sum() + x.pow(3).sum()  # noqa: E731
    assert torch.equal(simplify(make_fx(fn)(X), X)(X * 2), fn(X * 2))


def test_a_constant_output_stays_an_output():
    fn = lambda x: (x * 2, A.sum())  # noqa: E731
    doubled, constant = simplify(make_fx(fn)(X), X)(X)
    assert torch.equal(doubled, 2 * X)
    assert torch.equal(constant, A.sum())


ONES, ZEROS = torch.ones(4).double(), torch.zeros(4).double()
# name -> (function, calls that remain); none of them rounds
EXACT: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "zeros added": (lambda x: x.sin() + ZEROS - 0.0, 1),
    "ones multiplied": (lambda x: x.sin() * ONES / 1.0, 1),
    "from zero": (lambda x: 0.0 - x.sin(), 2),
    "first power": (lambda x: x.sin().pow(1.0), 1),
    "twice negative": (lambda x: x.sin().neg().neg(), 1),
    "negative divided": (lambda x: -x.sin() / 3.0, 2),
    "division made negative": (lambda x: -(x.sin() / 3.0), 2),
    "views of views": (lambda x: x.sin().view(2, 2).unsqueeze(0).reshape(4).view(1, 4), 2),
    "sum of one": (lambda x: x.sin()[:, None].sum(-1), 1),
    "mean of one": (lambda x: x.sin()[None].mean(0), 1),
    "one entry": (lambda x: x.sin()[1:2].reshape(()), 2),
    "expansion on the way": (lambda x: x.sum().expand(4) * x, 2),
    "never below zero": (lambda x: x.exp().masked_fill(x.exp() < 0, 9.0), 1),
    "below one stays": (lambda x: x.exp().masked_fill(x.exp() < 1, 9.0), 3),
    "shape of an input": (lambda x: x + torch.zeros_like(x) * 3 + torch.full_like(x, 2.0), 1),
    "all of it": (lambda x: x.sin()[0:4][:9][-7:], 1),
    "from the end": (lambda x: x.sin()[-2:], 2),
    "gradient of parts": (lambda x: grad(_parts)(x), 9),
    "gradient of entries": (lambda x: grad(lambda z: (z[0] * z[1] * z[2] * z[3]).sin())(x), 19),
}


def _parts(z: Tensor) -> Tensor:
    return z[:1].sin().sum() + z[1:3].exp().sum() + z[3:].cos().sum()


@pytest.mark.parametrize(("fn", "calls"), EXACT.values(), ids=EXACT.keys())
def test_calls_that_do_nothing_are_dropped(fn: Callable, calls: int):
    graph = make_fx(fn)(X)
    small = simplify(graph, X)
    assert num_calls(small) <= calls, small.code
    for x in (X, -3 * X, X * 1e-3, X * torch.nan):
        assert torch.equal(small(x).nan_to_num(), graph(x).nan_to_num())


# rounded once for the constants and once for the result, where the function rounds twice
GATHERED: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "added": (lambda x: x.sin() + A[0] - 0.3 + A[1], 2),
    "subtracted from": (lambda x: (A[0] - x.sin()) + 0.3, 3),
    "multiplied": (lambda x: x.sin() * A[0] / 3.0 * A[1], 2),
    "negative": (lambda x: -(x.sin() * A[0]) / 7.0, 2),
}


@pytest.mark.parametrize(("fn", "calls"), GATHERED.values(), ids=GATHERED.keys())
def test_constants_in_a_row_are_gathered(fn: Callable, calls: int):
    graph = make_fx(fn)(X)
    small = simplify(graph, X)
    assert num_calls(small) <= calls, small.code
    for x in (X, -3 * X, X * 1e-3):
        torch.testing.assert_close(small(x), graph(x), rtol=8 * EPS, atol=8 * EPS)


LEFT_ALONE: dict[str, Callable[[Tensor], Tensor]] = {
    "factors that overflow together": lambda x: x * 1e200 * 1e200,
    "factors that vanish together": lambda x: x * 1e-200 * 1e-200,
    "division by zero": lambda x: x / ZEROS * 2.0,
    "times zero": lambda x: x / 0.0 * ZEROS,
    "infinite shift": lambda x: x + torch.inf - torch.inf,
    "whole numbers": lambda x: (x.long() + 1 - 3) * 2,
    "broadcast by a constant": lambda x: x.sum() * ONES + ZEROS,
    "single precision in between": lambda x: (x.float() + 0.1) * 3.0,
    "strides": lambda x: x.view(2, 2).t().contiguous().reshape(4) + x.view(2, 2).t().reshape(4),
    "overlapping parts": lambda x: grad(lambda z: z[:3].sin().sum() + z[1:].exp().sum())(x),
    "every other entry": lambda x: grad(lambda z: z[::2].sin().sum() + z[1::2].exp().sum())(x),
    "a part left out": lambda x: grad(lambda z: z[:1].sin().sum() + z[2:].exp().sum())(x),
}


@pytest.mark.parametrize("fn", LEFT_ALONE.values(), ids=LEFT_ALONE.keys())
def test_what_would_change_the_result_stays(fn: Callable):
    small = simplify(make_fx(fn)(X), X)
    for x in (X, -3 * X):
        assert torch.equal(small(x).nan_to_num(nan=7.0), fn(x).nan_to_num(nan=7.0))


def test_a_density_with_its_gradient_in_few_calls():
    """Log density of a hierarchy as `from_pyro` and `vmap` leave it."""

    def density(z: Tensor) -> Tensor:
        mu, tau, raw = z[0], z[1].exp(), z[2:]
        prior = Normal(0.0, 5.0, False).log_prob(mu) + HalfCauchy(5.0, False).log_prob(tau)
        effects = Normal(0.0, 1.0, False).log_prob(raw).sum()
        likelihood = Normal(mu + tau * raw, A[0, :2].exp(), False).log_prob(A[1, :2]).sum()
        return prior + z[1] + effects + likelihood

    points = A[:3]
    graph = make_fx(vmap(grad_and_value(density)))(points)
    small = simplify(graph, points)
    assert 2 * num_calls(small) < num_calls(graph)
    for got, expected in zip(small(-points), graph(-points), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)


FREE = {
    "rowwise": lambda x: (x * 2).sum(-1),
    "expanded": lambda x: x[:, None].expand(7, 3, 4).sum((1, 2)),
    "flattened": lambda x: (x.reshape(28) * 2).reshape(7, 4).sum(-1),
    "new zeros": lambda x: torch.zeros(7, 4).double().add(x).sum(-1),
    "ones of rows": lambda x: torch.ones(7).double() * x[:, 0],
    "zeros of rows": lambda x: torch.zeros(7, 4).double() * 2 + x[:, :1] + torch.zeros_like(x),
    "one entry of rows": lambda x: x[:, 2:3].reshape(7) * x[:, 1:2].sum(-1),
    "doubled": lambda x: torch.cat([x, x]).reshape(2, 7, 4).sum((0, 2)),
}


@pytest.mark.parametrize("name", FREE)
def test_any_number_of_rows(name: str, generator: torch.Generator):
    """A graph made at 7 rows gives every row what it gives that row among seven."""
    example = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    graph = make_fx(FREE[name])(example)
    free = with_free_rows(simplify(graph, example, rows=7), 7)
    rows = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    expected = torch.cat([graph(rows[i : i + 7]) for i in range(0, 28, 7)])
    for n in (1, 2, 7, 14, 28):
        torch.testing.assert_close(free(rows[:n]), expected[:n])
