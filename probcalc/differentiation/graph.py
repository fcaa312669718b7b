"""Simplify an aten graph: fold constants, share equal nodes, drop operations that do nothing.

The graphs come from `make_fx`. Every rewrite keeps the floating-point result bit for bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
# operations whose result is their input where shape, dtype and device stay the same
_IDENTITIES = {
    aten.expand.default,
    aten.view.default,
    aten.reshape.default,
    aten._to_copy.default,
    aten.alias.default,
    aten.detach.default,
    aten.clone.default,
    aten.lift_fresh_copy.default,
}


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


def simplify(module: fx.GraphModule, *inputs: Tensor, rows: int = 0) -> fx.GraphModule:
    """The same function with fewer nodes.

    Args:
        module: Functional graph (no in-place operations).
        *inputs: Example inputs; shapes and dtypes of the nodes are read off a run on them.
        rows: Size of the batch axis in the example, if the graph has one: constants of that
            length are not folded, since the batch may later have another size.

    Returns:
        A new graph module.
    """
    values = node_values(module, *inputs)
    new, env = fx.Graph(), {}
    constants: dict[str, Tensor] = {}
    seen: dict[Any, fx.Node] = {}
    varying: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder":
            env[node] = new.node_copy(node)
            varying.add(node)
        elif node.op == "output":
            _embed_constants(node, values, varying, env, new, constants)
            new.node_copy(node, env.__getitem__)
        elif _is_constant(node, values[node], varying, rows):
            continue  # becomes an attribute where something that varies reads it
        else:
            varying.add(node)
            _embed_constants(node, values, varying, env, new, constants)
            env[node] = _copied(node, values, env, new, seen)
    result = fx.GraphModule(constants, new)
    new.eliminate_dead_code()
    result.recompile()
    return result


def _is_constant(node: fx.Node, value: Any, varying: set[fx.Node], rows: int) -> bool:
    if any(source in varying for source in node.all_input_nodes):
        return False
    batch_shaped = rows and torch.is_tensor(value) and any(s % rows == 0 for s in value.shape if s)
    return not batch_shaped or node.op == "get_attr"


def _embed_constants(
    node: fx.Node,
    values: dict[fx.Node, Any],
    varying: set[fx.Node],
    env: dict[fx.Node, Any],
    new: fx.Graph,
    constants: dict[str, Tensor],
) -> None:
    for source in node.all_input_nodes:
        if source not in varying and source not in env:
            name = f"constant_{len(constants)}"
            constants[name] = values[source]
            env[source] = new.create_node("get_attr", name)


def _copied(
    node: fx.Node,
    values: dict[fx.Node, Any],
    env: dict[fx.Node, Any],
    new: fx.Graph,
    seen: dict[Any, fx.Node],
) -> fx.Node:
    value = values[node]
    if node.target in _IDENTITIES:
        source = node.args[0]
        before = values.get(source)
        if torch.is_tensor(before) and _form(before) == _form(value):
            return env[source]
    args = fx.map_arg(node.args, env.__getitem__)
    kwargs = fx.map_arg(node.kwargs, env.__getitem__)
    # strides may change when the batch does, and `view` refuses what `reshape` copies
    target = aten.reshape.default if node.target == aten.view.default else node.target
    key = (target, repr(args), repr(sorted(kwargs.items())))  # node names are unique
    if key not in seen:
        seen[key] = new.create_node(node.op, target, args, kwargs)
    return seen[key]


def _form(x: Tensor) -> tuple:
    return x.shape, x.stride(), x.dtype, x.device


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
