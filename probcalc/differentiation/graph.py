"""Read and change aten graphs from `make_fx`: what they hold, their outputs, precision, rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
# functions of torch that take the arguments of the operation of the same name, at half the cost
# of a call through `torch.ops`
_DIRECT = frozenset(
    "abs add addmm all any bmm cat clamp clamp_min cos cumsum digamma div eq erf erfc exp expm1 "
    "ge gt index_select le lgamma log log1p logaddexp logical_and logical_not logsumexp lt "
    "masked_fill matmul maximum mean minimum mm mul narrow ne neg permute pow prod reciprocal "
    "reshape rsqrt select sigmoid sign sin sqrt squeeze stack sub sum t tanh transpose unsqueeze "
    "where".split()
)


def is_random(graph: fx.Graph) -> bool:
    """Does any node draw random numbers (which a trace would freeze)?"""
    return any(
        torch.Tag.nondeterministic_seeded in node.target.tags
        for node in graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    )


def mutates(graph: fx.Graph) -> bool:
    """Does any node write into its input?"""
    return any(
        node.target._schema.is_mutable
        for node in graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    )


def without_errors(module: fx.GraphModule) -> fx.GraphModule:
    """Factorisations that fail give NaN in place of an exception.

    One row of a batch at which a matrix is singular must not stop the others.
    """
    graph = module.graph
    for check in list(graph.nodes):
        if check.target is not aten._linalg_check_errors.default:
            continue
        info = check.args[0]
        for part in list(info.args[0].users):
            value = part.meta["val"]
            if part is info or not value.is_floating_point():
                continue
            users = list(part.users)
            with graph.inserting_before(check):
                fine = graph.call_function(aten.eq.Scalar, (info, 0))
                for _ in range(value.ndim - info.meta["val"].ndim):
                    fine = graph.call_function(aten.unsqueeze.default, (fine, -1))
                known = graph.call_function(aten.where.ScalarOther, (fine, part, math.nan))
            for user in users:
                user.replace_input_with(part, known)
        graph.erase_node(check)
    graph.lint()
    module.recompile()
    return module


def integers(graph: fx.Graph) -> set[int]:
    """Every integer that occurs in the arguments of a graph's calls."""
    found: set[int] = set()

    def note(x: Any) -> Any:
        if isinstance(x, int) and not isinstance(x, bool):
            found.add(x)
        return x

    for node in graph.nodes:
        _map_leaves(note, node.args)
        _map_leaves(note, node.kwargs)
    return found


def promoted(module: fx.GraphModule, dtype: torch.dtype) -> tuple[fx.GraphModule, bool]:
    """The graph with its floating constants and casts in `dtype`, and whether that changed any.

    Float32 data and parameters in a model otherwise drag a float64 computation down.
    """
    graph, changed = fx.Graph(), False
    graph.output(graph.graph_copy(module.graph, {}))
    constants: dict[str, Tensor] = {}

    def lift(x: Any) -> Any:
        return dtype if isinstance(x, torch.dtype) and x.is_floating_point else x

    for node in graph.nodes:
        if node.op == "get_attr":
            value = getattr(module, node.target)
            lifted = value.to(dtype) if value.is_floating_point() else value
            changed |= lifted is not value
            # a copy: data that the caller changes in place later must not change the graph
            constants[node.target] = lifted.clone() if lifted is value else lifted
        elif node.op == "call_function":
            kwargs = _map_leaves(lift, node.kwargs)
            changed |= kwargs != dict(node.kwargs)
            node.kwargs = kwargs
    return fx.GraphModule(constants, graph), changed


def node_values(module: fx.GraphModule, *inputs: Tensor) -> dict[fx.Node, Any]:
    """Value of every node at the inputs given."""
    recorder = _Recorder(module)
    recorder.run(*inputs)
    return recorder.values


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


def with_free_rows(module: fx.GraphModule, rows: int) -> fx.GraphModule:
    """Let a graph traced at `rows` rows take any number of rows.

    Every integer argument that is a multiple of `rows` is that multiple of the number of rows;
    the caller chooses a prime that divides no other size, and checks the result at other sizes.
    """
    module = copy.copy(module)
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    batch = next(n for n in graph.nodes if n.op == "placeholder")
    with graph.inserting_after(batch):
        size = graph.call_function(aten.sym_size.int, (batch, 0))
    multiples = {1: size}

    def free(x: Any) -> Any:
        if isinstance(x, bool) or not isinstance(x, int) or x == 0 or x % rows or x > 2**40:
            return x
        factor = x // rows
        if factor not in multiples:
            with graph.inserting_after(size):
                multiples[factor] = graph.call_function(_times, (size, factor))
        return multiples[factor]

    for node in list(graph.nodes):
        if node.op == "call_function" and node is not size and node not in multiples.values():
            node.args = _map_leaves(free, node.args)
            node.kwargs = _map_leaves(free, node.kwargs)
    return fx.GraphModule(module, graph)


def direct(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph, calling torch's own functions where there are any: it runs faster."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            name = node.target._schema.name.removeprefix("aten::")
            if name in _DIRECT:
                node.target = getattr(torch, name)
    return fx.GraphModule(module, graph)


def _times(a: int, b: int) -> int:
    return a * b


def keep_outputs(module: fx.GraphModule, *indices: int) -> fx.GraphModule:
    """A copy that computes only some of a graph's outputs (one output: not in a tuple)."""
    graph = fx.Graph()
    outputs = graph.graph_copy(module.graph, {})
    kept = tuple(outputs[i] for i in indices)
    graph.output(kept[0] if len(kept) == 1 else kept)
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph)


def _map_leaves(fn: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, (tuple, list)):
        return type(tree)(_map_leaves(fn, x) for x in tree)
    if isinstance(tree, dict):
        return {k: _map_leaves(fn, v) for k, v in tree.items()}
    if isinstance(tree, slice):
        return slice(*(_map_leaves(fn, (tree.start, tree.stop, tree.step))))
    return fn(tree)
