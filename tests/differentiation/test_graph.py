from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from probcalc.differentiation.graph import (
    direct,
    integers,
    is_random,
    keep_outputs,
    mutates,
    node_values,
    promoted,
)

X = torch.tensor([0.5, -1.5, 2.0, 0.25], dtype=torch.float64)
A = torch.arange(16.0, dtype=torch.float64).reshape(4, 4).cos()
SMALL = torch.tensor([0.1, 0.2, 0.3, 0.4])


def test_outputs_can_be_chosen():
    graph = make_fx(lambda x: (x.exp(), x.sin(), x.cos()))(X)
    one = keep_outputs(graph, 1)
    assert torch.equal(one(X), X.sin())
    assert [n.target for n in one.graph.nodes if n.op == "call_function"] == [
        torch.ops.aten.sin.default
    ]
    third, first = keep_outputs(graph, 2, 0)(X)
    assert torch.equal(first, X.exp())
    assert torch.equal(third, X.cos())
    assert len(graph(X)) == 3


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


DIRECT = {
    "arithmetic": lambda x: (x + 2 * x - x / 3).pow(2).sub(1.0, alpha=2).neg(),
    "functions": lambda x: x.abs().log1p().exp().sqrt().sigmoid().tanh().lgamma(),
    "comparisons": lambda x: torch.where((x > 0) & (x <= 1), x, x.masked_fill(x < -1, 0.5)),
    "views": lambda x: x.view(2, 2).t()[1:, 0:1].unsqueeze(0).permute(2, 0, 1).squeeze(0),
    "sums": lambda x: x.sum() + A.sum(dim=(0, 1), keepdim=True) + A.mean(0).logsumexp(0) * x[2],
    "products": lambda x: (A @ x).cumsum(0) + torch.addmm(A, A, A)[0] + A.mm(A)[:, 1],
    "no such function": lambda x: torch.nn.functional.softplus(x) + torch.special.erfcx(x),
}


@pytest.mark.parametrize("name", DIRECT)
def test_direct_calls_give_the_same(name: str):
    graph = make_fx(DIRECT[name])(X)
    quick = direct(graph)
    assert torch.equal(quick(X), graph(X))
    assert any(not isinstance(n.target, torch._ops.OpOverload) for n in quick.graph.nodes)
    again = make_fx(quick)(X)  # a graph of it is one of operations again
    assert torch.equal(again(-X).nan_to_num(), graph(-X).nan_to_num())
