"""A density of one vector, run as value, gradient and by-products over a batch of vectors.

`trace` runs the Python function once under `make_fx`, differentiates and batches the resulting
graph, and afterwards never calls the function again: a hundred rows cost what one did. The
graph is compared with the function at fresh points, because a trace silently freezes whatever
leaves torch (NumPy, `.item()`, random draws).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import Distribution
from torch.func import functionalize, grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from probcalc.differentiation.graph import (
    direct,
    integers,
    is_random,
    keep_outputs,
    mutates,
    node_values,
    promoted,
    with_free_rows,
    without_errors,
)
from probcalc.differentiation.simplify import simplify

aten = torch.ops.aten
_LINEAR = 40.0  # above it softplus(x) is x to float64 rounding


def _bernoulli_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = 1,
) -> Any:
    """−log p of a Bernoulli: softplus(x) − y x, three operations where torch's vmap has twenty."""
    if weight is not None or pos_weight is not None:
        return NotImplemented
    loss = aten.softplus.default(logits, 1, _LINEAR) - target * logits
    return (loss, loss.mean(), loss.sum())[reduction]  # torch's codes 0, 1, 2


def _masked_put(
    x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False
) -> Any:
    """``x[mask] = value`` for one value: `where`, which vmap can batch."""
    mask = indices[0]
    simple = len(indices) == 1 and mask is not None and mask.dtype == torch.bool
    if not simple or mask.ndim != x.ndim or values.numel() != 1 or accumulate:
        return NotImplemented
    return torch.where(mask, values.reshape(()).to(x.dtype), x)


def _log_ndtr(x: Tensor) -> Tensor:
    """Log Φ(x), by erfcx on the left; torch's own has no batching rule."""
    left = x.clamp(max=-1.0)
    tail = (0.5 * torch.special.erfcx(-left / 2**0.5)).log() - 0.5 * left.square()
    body = torch.log1p(-0.5 * torch.erfc(x.clamp(min=-1.0) / 2**0.5))
    return torch.where(x < -1.0, tail, body)


# operations written out while tracing, as `make_fx` takes them
_SHORTER = {
    aten.binary_cross_entropy_with_logits.default: _bernoulli_loss,
    aten.index_put.default: _masked_put,
    aten.special_log_ndtr.default: _log_ndtr,
}

# fn(z): (d,) -> (scalar, by-product of any one shape)
Density = Callable[[Tensor], tuple[Tensor, Tensor]]
_NUM_TRIES = 3  # numbers of rows at which a batch is traced before giving up
_LIVE_VALUES = 4  # of the widest size that a gradient holds at a time, roughly
_PRIMES = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)


@dataclass(frozen=True, eq=False)
class BatchedDensity:
    """Value, gradient and by-product of a density over rows; `how` says by which route."""

    value: Callable[[Tensor], Tensor]
    value_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]]
    by_product: Callable[[Tensor], Tensor]
    how: str
    row_bytes: int = 2**20  # memory that one row takes at the widest place
    is_promoted: bool = False  # the function has constants of lower precision, the graph has not
    is_traced: bool = True


class TraceError(RuntimeError):
    """A function cannot be represented by a traced graph; the message says why."""


def trace(fn: Density, example: Float[Tensor, " d"]) -> BatchedDensity:
    """Trace, differentiate and batch a density.

    Args:
        fn: ``fn(z)`` with ``z`` of shape ``(d,)`` returns a scalar and a by-product.
        example: A point where the function is finite.

    Returns:
        The batched density, not yet compared with the function (see `agrees`).

    Raises:
        TraceError: Where the trace fails (control flow on a value) or would freeze random draws.
    """
    raw = without_errors(_traced(fn, example))
    if is_random(raw.graph):
        raise TraceError("the function draws random numbers")
    raw, is_promoted = promoted(raw, example.dtype)
    flat = _batched(raw, example)
    outputs = ((1, 0), (1,), (2,))
    gradient, value, by_product = (direct(keep_outputs(flat, *kept)) for kept in outputs)
    return BatchedDensity(
        value, gradient, by_product, "traced graph", _widest(raw, example), is_promoted
    )


def _batched(raw: fx.GraphModule, example: Tensor) -> fx.GraphModule:
    """Graph of gradient, value and by-product over any number of rows.

    vmap knows some operations only in place and others only out of place: where the function
    writes in place, both forms are tried.
    """
    if not mutates(raw.graph):
        return _differentiated(simplify(raw, example), example)
    try:
        return _differentiated(simplify(_functional(raw, example), example), example)
    except TraceError:
        return _differentiated(raw, example)


def _differentiated(single: fx.GraphModule, example: Tensor) -> fx.GraphModule:
    batch_fn = vmap(grad_and_value(lambda z: tuple(single(z)), has_aux=True))
    for rows in _unused_primes(single, example):
        points = example.expand(rows, -1).contiguous()
        batched = _traced(batch_fn, points)
        if mutates(batched.graph):  # so do some of torch's own compositions
            batched = _functional(batched, points)
        # outputs: grad, (value, by-product)
        flat = with_free_rows(simplify(_flattened(batched), points, rows=rows), rows)
        if _fits(flat, batch_fn, example):
            return flat
    raise TraceError("no graph that fits every number of rows")


def _fits(flat: fx.GraphModule, batch_fn: Callable[..., Any], example: Tensor) -> bool:
    """Does the graph hold for other numbers of rows than the one it was traced at?

    A constant that happens to equal that number is the danger.
    """
    rtol = torch.finfo(example.dtype).eps ** 0.5
    for rows in (1, 3):
        points = example * torch.linspace(0.9, 1.1, rows).to(example)[:, None]
        grad, (value, by_product) = batch_fn(points)
        expected = (grad, value, by_product)
        try:
            close = all(_close(a, b, rtol) for a, b in zip(flat(points), expected, strict=True))
        except (RuntimeError, IndexError):
            return False
        if not close:
            return False
    return True


def _functional(module: Callable[..., Any], example: Tensor) -> fx.GraphModule:
    """The graph without in-place operations, its decompositions applied afterwards."""
    return _traced(_traced(functionalize(module), example), example)


def _traced(fn: Callable[..., Any], example: Tensor) -> fx.GraphModule:
    # one fake mode for all nodes: by default make_fx makes one a node, which doubles its time
    context = TracingContext(FakeTensorMode(allow_fallback_kernels=True))
    try:
        with tracing(context), _no_fallback():
            return make_fx(fn, _SHORTER)(example)
    except Exception as error:  # whatever the user's function raises under tracing
        reason = str(error).splitlines()[0].partition(". ")[0] if str(error) else "no message"
        raise TraceError(f"{type(error).__name__}: {reason}") from error


def untraced(fn: Density) -> BatchedDensity:
    """The same interface by calling the Python function once a row: right, and slow.

    A matrix that cannot be factorised makes a row NaN, as in a traced graph.
    """

    def result(z: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return fn(z)
        except torch.linalg.LinAlgError:
            value, by_product = fn(torch.zeros_like(z))
            return (value + z.sum()) * math.nan, by_product * math.nan

    def value_and_grad(points: Tensor) -> tuple[Tensor, Tensor]:
        values, grads = [], []
        for row in points.detach():
            leaf = row.clone().requires_grad_()
            value = result(leaf)[0]
            grads.append(torch.autograd.grad(value, leaf)[0])
            values.append(value.detach())
        return torch.stack(values), torch.stack(grads)

    return BatchedDensity(
        lambda points: torch.stack([result(z)[0] for z in points]),
        value_and_grad,
        lambda points: torch.stack([result(z)[1] for z in points]),
        "untraced calls",
        is_traced=False,
    )


def compiled(density: BatchedDensity) -> BatchedDensity:
    """The same density through `torch.compile`, which takes seconds at its first call."""
    return validating_as_before(
        lambda: replace(
            density,
            value=torch.compile(density.value, dynamic=True),
            value_and_grad=torch.compile(density.value_and_grad, dynamic=True),
            by_product=torch.compile(density.by_product, dynamic=True),
            how="compiled graph",
        )
    )


def validating_as_before(call: Callable[[], Any]) -> Any:
    """What a function returns that may be the first of the process to use the compiler.

    That turns validation of distributions off for everybody.
    """
    validates = Distribution._validate_args
    try:
        return call()
    finally:
        Distribution.set_default_validate_args(validates)


def agrees(density: BatchedDensity, fn: Density, points: Float[Tensor, "n d"]) -> bool:
    """Does the batched density equal the function at these rows: value, gradient, by-product?

    The tolerance is a rounding error, since the order of sums may differ: that of float32 where
    the function computes partly in it and the graph does not.
    """
    reference = untraced(fn)
    dtype = torch.float32 if density.is_promoted else points.dtype
    rtol = torch.finfo(dtype).eps ** 0.75
    value, grad = density.value_and_grad(points)
    expected, expected_grad = reference.value_and_grad(points)
    known = expected.isfinite()  # elsewhere the two may meet different infinities on their way
    return (
        _close(value, expected, rtol)
        and _close(grad[known], expected_grad[known], rtol)
        and _close(density.value(points), expected, rtol)
        and _close(density.by_product(points), reference.by_product(points), rtol)
    )


def _close(a: Tensor, b: Tensor, rtol: float) -> bool:
    if a.shape != b.shape:
        return False
    b = b.to(a.dtype)
    scale = float(b.abs().nan_to_num(0.0, 0.0, 0.0).max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=rtol, atol=rtol * max(1.0, scale), equal_nan=True)


def _flattened(module: fx.GraphModule) -> fx.GraphModule:
    output = next(n for n in module.graph.nodes if n.op == "output")
    grad, (value, by_product) = output.args[0][0], _rest(output.args[0])
    output.args = ((grad, value, by_product),)
    module.graph.set_codegen(fx.graph.CodeGen())
    module.recompile()
    return module


def _rest(outputs: tuple) -> tuple:
    rest = outputs[1:]
    return rest[0] if len(rest) == 1 else rest


def _widest(module: fx.GraphModule, example: Tensor) -> int:
    values = node_values(module, example).items()
    sizes = [v.nbytes for node, v in values if torch.is_tensor(v) and node.op == "call_function"]
    return _LIVE_VALUES * max([example.nbytes, *sizes])


def _unused_primes(module: fx.GraphModule, example: Tensor) -> list[int]:
    """Numbers of rows that no size or number of the function can be taken for."""
    sizes = integers(module.graph)
    for value in node_values(module, example).values():
        for tensor in value if isinstance(value, (tuple, list)) else (value,):
            sizes.update(tensor.shape if torch.is_tensor(tensor) else ())
    unused = [p for p in _PRIMES if all(n % p or n == 0 or n > 2**40 for n in sizes)]
    if not unused:
        raise TraceError("no batch size that differs from every size in the function")
    return unused[:_NUM_TRIES]


@contextmanager
def _no_fallback() -> Iterator[None]:
    """Let vmap refuse what it has no rule for, where it would unroll the rows with a warning."""
    before = torch._C._functorch._is_vmap_fallback_enabled()
    torch._C._functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(before)
