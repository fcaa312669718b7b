"""Simplify an aten graph: a small operation costs its call, so every call saved is time saved.

Constants are folded, equal nodes shared, and the calls dropped that a trace of derivatives and
batches leaves behind: sums with zeros, products with ones, views of views, sums over one entry,
gradients of slices padded with zeros and added. Results stay the same bit for bit but for
constants in a row, x + a + b and a x b, which are gathered first: a rounding error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from probcalc.differentiation.graph import node_values

aten = torch.ops.aten

# results that depend on the shape of their first argument, not on its entries
_SHAPED = {
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
}
# results that hold the entries of their input in the same order, if there are as many
_VIEWS = {
    aten.expand.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.alias.default,
    aten.detach.default,
    aten.clone.default,
    aten.lift_fresh_copy.default,
    aten._to_copy.default,
    aten.sum.dim_IntList,
    aten.mean.dim,
}
_REDUCTIONS = {aten.sum.dim_IntList, aten.mean.dim}
_POINTWISE = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}
_SCALAR_FORMS = {
    aten.add.Scalar: aten.add.Tensor,
    aten.sub.Scalar: aten.sub.Tensor,
    aten.mul.Scalar: aten.mul.Tensor,
    aten.div.Scalar: aten.div.Tensor,
}


def simplify(module: fx.GraphModule, *inputs: Tensor, rows: int = 0) -> fx.GraphModule:
    """The same function with fewer calls.

    Args:
        module: Functional graph (no in-place operations).
        *inputs: Example inputs; shapes and dtypes of the nodes are read off a run on them.
        rows: Size of the batch axis in the example, if the graph has one: what is constant must
            not depend on it, since the batch may later have another size.

    Returns:
        A new graph module.
    """
    return _Simplifier(node_values(module, *inputs), rows).run(module)


@dataclass(frozen=True)
class _Padded:
    """Gradients of slices: pieces that fill parts of an axis, zeros between them."""

    sizes: tuple[int, ...]
    dim: int
    pieces: tuple[tuple[int, int, fx.Node], ...]  # start, stop, gradient

    def joined(self, other: _Padded) -> _Padded | None:
        """Both, if they fill different parts of one axis."""
        if (self.sizes, self.dim) != (other.sizes, other.dim):
            return None
        pieces = tuple(sorted(self.pieces + other.pieces, key=lambda p: p[:2]))
        apart = all(a[1] <= b[0] for a, b in zip(pieces, pieces[1:], strict=False))
        return _Padded(self.sizes, self.dim, pieces) if apart else None

    @property
    def is_full(self) -> bool:
        return sum(stop - start for start, stop, _ in self.pieces) == self.sizes[self.dim]


class _Simplifier:
    def __init__(self, old_values: dict[fx.Node, Any], rows: int) -> None:
        self.old_values, self.rows = old_values, rows
        self.graph = fx.Graph()
        self.values: dict[fx.Node, Any] = {}  # of the new nodes, at the example
        self.constants: dict[fx.Node, Tensor] = {}
        self.padded: dict[fx.Node, _Padded] = {}
        self.seen: dict[Any, fx.Node] = {}

    def run(self, module: fx.GraphModule) -> fx.GraphModule:
        env: dict[fx.Node, fx.Node] = {}
        fixed: set[fx.Node] = set()  # old nodes that no input decides
        for node in module.graph.nodes:
            if node.op == "output":
                self.graph.node_copy(node, env.__getitem__)
                continue
            value = self.old_values[node]
            if node.op == "placeholder":
                env[node] = self.graph.node_copy(node)
                self.values[env[node]] = value
                continue
            if node.target in _SHAPED or all(n in fixed for n in node.all_input_nodes):
                constant = self._constant_rows(value) if torch.is_tensor(value) else None
                if constant is not None:
                    fixed.add(node)
                    env[node] = constant
                    continue
            args = fx.map_arg(node.args, env.__getitem__)
            kwargs = fx.map_arg(node.kwargs, env.__getitem__)
            env[node] = self.rewritten(node.target, args, dict(kwargs), value)
        self.graph.eliminate_dead_code()
        left = set(self.graph.nodes)
        attributes = {n.target: c for n, c in self.constants.items() if n in left}
        return fx.GraphModule(attributes, self.graph)

    # nodes

    def emit(self, target: Any, args: tuple, kwargs: dict[str, Any], value: Any) -> fx.Node:
        """A node, or the one that is equal to it."""
        key = (target, repr(args), repr(sorted(kwargs.items())))  # node names are unique
        if key not in self.seen:
            self.seen[key] = self.graph.call_function(target, args, kwargs)
            self.values[self.seen[key]] = value
        return self.seen[key]

    def constant(self, value: Tensor) -> fx.Node:
        """An attribute of the module."""
        node = self.graph.create_node("get_attr", f"constant_{len(self.constants)}")
        self.constants[node] = self.values[node] = value
        return node

    def _constant_rows(self, value: Tensor) -> fx.Node | None:
        """A constant that is the same in every row, its batch axes of size one expanded."""
        axes = [i for i, s in enumerate(value.shape) if self.rows and s and s % self.rows == 0]
        one = value
        for axis in axes:
            one = one.narrow(axis, 0, 1)
        if not axes:
            return self.constant(value)
        same = (one == value) | ((one != one) & (value != value))
        if not bool(same.all()):
            return None
        shape = list(value.shape)
        return self.emit(aten.expand.default, (self.constant(one.clone()), shape), {}, value)

    def known(self, node: Any) -> Tensor | None:
        """What a node holds whatever the inputs are, up to expansion; a number counts."""
        if isinstance(node, float | int) and not isinstance(node, bool):
            return torch.tensor(node, dtype=torch.float64)
        if not isinstance(node, fx.Node):
            return None
        if node.target == aten.expand.default:
            node = node.args[0]
        return self.constants.get(node)

    # rules

    def rewritten(self, target: Any, args: tuple, kwargs: dict[str, Any], value: Any) -> fx.Node:
        """The node, in the shortest form that the rules know."""
        if not torch.is_tensor(value):
            return self.emit(target, args, kwargs, value)
        target = _SCALAR_FORMS.get(target, target)
        if target in _VIEWS and (node := self._view(target, args, value)) is not None:
            return node
        if target == aten.slice.Tensor and (node := self._narrowed(args, value)) is not None:
            return node
        if target in _POINTWISE and not kwargs and value.dtype.is_floating_point:
            return self._arithmetic(target, args, value)
        if target == aten.neg.default and value.dtype.is_floating_point:
            return self._scaled(target, args[0], None, value)
        if not kwargs and self._does_nothing(target, args, value):
            return args[0]
        if target == aten.lt.Scalar and args[0].target == aten.exp.default and args[1] <= 0:
            never = self._constant_rows(torch.zeros_like(value))
            if never is not None:
                return never
        node = self.emit(target, args, kwargs, value)
        if (padded := _padded(target, args)) is not None:
            self.padded[node] = padded
        return node

    def _does_nothing(self, target: Any, args: tuple, value: Tensor) -> bool:
        """A first power, or a mask that is false everywhere."""
        if not args or self._form(args[0]) != _form(value):
            return False
        if target == aten.pow.Tensor_Scalar:
            return args[1] == 1
        mask = self.known(args[1]) if target == aten.masked_fill.Scalar else None
        return mask is not None and not bool(mask.any())

    def _form(self, node: Any) -> tuple | None:
        value = self.values.get(node) if isinstance(node, fx.Node) else None
        return _form(value) if torch.is_tensor(value) else None

    def _view(self, target: Any, args: tuple, value: Tensor) -> fx.Node | None:
        """Views of views are one; those that change nothing are none."""
        source = args[0]
        before = self.values[source]
        if not _same_entries(before, value):
            return None
        if target == aten.expand.default and source in self.constants:
            return None
        while source.target == aten.reshape.default:
            source = source.args[0]
        if self._form(source) == _form(value):
            return source
        if (chosen := self._selected(source, value)) is not None:
            return chosen
        # strides may change when the batch does, and `view` refuses what `reshape` copies
        return self.emit(aten.reshape.default, (source, list(value.shape)), {}, value)

    def _narrowed(self, args: tuple, value: Tensor) -> fx.Node | None:
        """A slice without steps: a start and a length."""
        x, dim, start, _, step = (*args, *(0, None, None, 1)[len(args) - 1 :])
        size = self.values[x].shape[dim]
        if step != 1 or (self.rows and size % self.rows == 0):
            return None
        start = 0 if start is None else min(start + size if start < 0 else start, size)
        if value.shape[dim] == size:
            return x
        return self.emit(aten.narrow.default, (x, dim, start, value.shape[dim]), {}, value)

    def _selected(self, source: fx.Node, value: Tensor) -> fx.Node | None:
        """A slice of one entry without its axis."""
        if source.target != aten.narrow.default:
            return None
        x, dim, start, length = source.args
        if length != 1 or self.values[source].squeeze(dim).shape != value.shape:
            return None
        return self.emit(aten.select.int, (x, dim, start), {}, value)

    def _arithmetic(self, target: Any, args: tuple, value: Tensor) -> fx.Node:
        a, b = args
        if target in (aten.add.Tensor, aten.mul.Tensor) and self.known(a) is not None:
            a, b = b, a
        a, b = self._unexpanded(a, b, value), self._unexpanded(b, a, value)
        constant = self.known(b)
        if constant is not None and self._fits(a, constant, value):
            constant = constant.to(value)
            if target in (aten.add.Tensor, aten.sub.Tensor):
                shift = constant if target == aten.add.Tensor else -constant
                return self._shifted(target, a, b, shift, value)
            return self._scaled(target, a, b, value)
        if target == aten.add.Tensor and (node := self._joined(a, b)) is not None:
            return node
        node = self.emit(target, (a, b), {}, value)
        if target == aten.add.Tensor and a in self.padded and b in self.padded:
            joined = self.padded[a].joined(self.padded[b])
            if joined is not None:
                self.padded[node] = joined
        return node

    def _fits(self, node: Any, constant: Tensor, value: Tensor) -> bool:
        form = self._form(node)
        same = form is not None and form[:2] == (value.shape, value.dtype)
        return same and (constant.dtype.is_floating_point or constant.ndim == 0)

    def _unexpanded(self, node: Any, other: Any, value: Tensor) -> Any:
        """The source of an expansion, where the other operand has the shape anyway."""
        if not isinstance(node, fx.Node) or node.target != aten.expand.default:
            return node
        form = self._form(other)
        if form is None or form[0] != value.shape:
            return node
        return node.args[0]

    def _shifted(self, target: Any, a: fx.Node, b: Any, shift: Tensor, value: Tensor) -> fx.Node:
        """A + shift, on top of a constant that was added before."""
        if not bool(shift.count_nonzero()):
            return a
        before = self._part(a, (aten.add.Tensor, aten.sub.Tensor))
        if before is not None:
            sign = 1 if a.target == aten.add.Tensor else -1
            total = shift + sign * before
            if bool(total.isfinite().all()):
                return self._shifted(
                    aten.add.Tensor, a.args[0], self.constant(total), total, value
                )
        return self.emit(target, (a, b), {}, value)

    def _scaled(self, target: Any, a: fx.Node, b: Any, value: Tensor) -> fx.Node:
        """A b or a / b of a constant b, or −a (without b), on top of a factor before."""
        negates, constant = b is None, None if b is None else self.known(b).to(value)
        if not negates and bool((constant == 1).all()):
            return a
        if a.target == aten.neg.default:
            return a.args[0] if negates else self._anew(target, a.args[0], -constant, value)
        before = self._part(a, (aten.mul.Tensor, aten.div.Tensor))
        if before is not None and negates:
            return self._anew(a.target, a.args[0], -before, value)
        if before is not None:
            factor = constant if target == aten.mul.Tensor else constant.reciprocal()
            total = factor * (before if a.target == aten.mul.Tensor else before.reciprocal())
            if bool((total.isfinite() & (total != 0)).all()):
                return self._anew(aten.mul.Tensor, a.args[0], total, value)
        return self.emit(target, (a,) if negates else (a, b), {}, value)

    def _anew(self, target: Any, a: fx.Node, constant: Tensor, value: Tensor) -> fx.Node:
        return self._arithmetic(target, (a, self.constant(constant)), value)

    def _part(self, node: fx.Node, targets: tuple) -> Tensor | None:
        """The constant operand of a node whose other operand has its shape."""
        if node.target not in targets or node.kwargs:
            return None
        value = self.values[node]
        constant = self.known(node.args[1])
        if constant is None or not self._fits(node.args[0], constant, value):
            return None
        return constant.to(value)

    def _joined(self, a: Any, b: Any) -> fx.Node | None:
        """Gradients of slices that fill an axis, side by side."""
        if a not in self.padded or b not in self.padded:
            return None
        joined = self.padded[a].joined(self.padded[b])
        if joined is None or not joined.is_full:
            return None
        pieces = []
        for _, _, piece in joined.pieces:
            held = self.values[piece]
            if held.ndim < len(joined.sizes):
                shape = list(held.unsqueeze(joined.dim).shape)
                view = held.reshape(shape)
                piece = self.rewritten(aten.reshape.default, (piece, shape), {}, view)
            pieces.append(piece)
        value = torch.cat([self.values[p] for p in pieces], dim=joined.dim)
        return self.emit(aten.cat.default, (pieces, joined.dim), {}, value)


def _padded(target: Any, args: tuple) -> _Padded | None:
    if target == aten.slice_backward.default:
        grad, sizes, dim, start, end, step = args
        size = sizes[dim]
        start, end = (i + size if i < 0 else min(i, size) for i in (start, end))
        if step != 1:
            return None
    elif target == aten.select_backward.default:
        grad, sizes, dim, start = args
        start = start + sizes[dim] if start < 0 else start
        end = start + 1
    else:
        return None
    return _Padded(tuple(sizes), dim % len(sizes), ((start, end, grad),))


def _same_entries(before: Any, value: Tensor) -> bool:
    same = torch.is_tensor(before) and before.numel() == value.numel()
    return same and (before.dtype, before.device) == (value.dtype, value.device)


def _form(x: Tensor) -> tuple:
    return x.shape, x.dtype, x.device
