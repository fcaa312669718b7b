from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from probcalc.differentiation.graph import (
    integers,
    is_random,
    keep_outputs,
    mutates,
    node_values,
    promoted,
    simplify,
    with_free_rows,
)

X = torch.tensor([0.5, -1.5, 2.0, 0.25], dtype=torch.float64)
A = torch.arange(16.0, dtype=torch.float64).reshape(4, 4).cos()
SMALL = torch.tensor([0.1, 0.2, 0.3, 0.4])


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


def test_outputs_can_be_chosen():
    graph = make_fx(lambda x: (x.exp(), x.sin(), x.cos()))(X)
    one = keep_outputs(graph, 1)
    assert torch.equal(one(X), X.sin())
    assert num_calls(one) == 1
    third, first = keep_outputs(graph, 2, 0)(X)
    assert torch.equal(first, X.exp())
    assert torch.equal(third, X.cos())
    assert num_calls(graph) == 3


RANDOM = {
    "randn": (lambda x: x + torch.randn(4), True),
    "bernoulli": (lambda x: torch.bernoulli(x.sigmoid()), True),
    "multinomial": (lambda x: x[torch.multinomial(x.exp(), 2)], True),
    "dropout": (lambda x: torch.dropout(x, 0.5, True), True),
    "zeros": (lambda x: x + torch.zeros(4), False),
}


@pytest.mark.parametrize(("fn", "random"), RANDOM.values(), ids=RANDOM.keys())
def test_random_draws_are_seen(fn: Callable, random: bool):
    assert is_random(make_fx(fn)(X).graph) is random


WRITES = {
    "in place": (lambda x: x.clone().add_(1), True),
    "assignment": (lambda x: _assigned(x.clone()), True),
    "functional": (lambda x: x.add(1), False),
}


def _assigned(x: Tensor) -> Tensor:
    x[0] = 3.0
    return x


@pytest.mark.parametrize(("fn", "writes"), WRITES.values(), ids=WRITES.keys())
def test_writing_in_place_is_seen(fn: Callable, writes: bool):
    assert mutates(make_fx(fn)(X).graph) is writes


def test_integers_of_all_arguments_are_found():
    found = integers(make_fx(lambda x: x.roll(7)[1:3].expand(5, 2).sum(-1).reshape(5, 1))(X).graph)
    assert {7, 1, 3, 5, 2} <= found
    assert True not in {type(i) is bool for i in found}


def test_promotion_lifts_constants_and_casts():
    graph = make_fx(lambda x: (x.float() * SMALL).sum())(X)
    lifted, changed = promoted(graph, torch.float64)
    assert changed
    assert lifted(X).dtype == torch.float64
    torch.testing.assert_close(lifted(X), (X * SMALL.double()).sum(), rtol=1e-15, atol=0.0)
    assert graph(X).dtype == torch.float32


def test_promotion_leaves_integers_and_equal_precision_alone():
    index = torch.tensor([0, 2])
    lifted, changed = promoted(make_fx(lambda x: x[index] * A[0, :2])(X), torch.float64)
    assert not changed
    assert torch.equal(lifted(X), X[index] * A[0, :2])


def test_promotion_copies_the_constants():
    data = A.clone()
    lifted, _ = promoted(make_fx(lambda x: data @ x)(X), torch.float64)
    before = lifted(X)
    data.zero_()
    assert torch.equal(lifted(X), before)


def test_node_values_are_those_of_a_run():
    graph = make_fx(lambda x: (x.exp() + 1).sum())(X)
    values = {node.name: value for node, value in node_values(graph, X).items()}
    assert torch.equal(values["exp"], X.exp())
    assert torch.equal(values["add"], X.exp() + 1)


FREE = {
    "rowwise": lambda x: (x * 2).sum(-1),
    "expanded": lambda x: x[:, None].expand(7, 3, 4).sum((1, 2)),
    "flattened": lambda x: (x.reshape(28) * 2).reshape(7, 4).sum(-1),
    "new zeros": lambda x: torch.zeros(7, 4).double().add(x).sum(-1),
    "ones of rows": lambda x: torch.ones(7).double() * x[:, 0],
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
