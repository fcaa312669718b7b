"""SciPy's special functions on tensors: numbers without derivatives, on any device, under vmap.

An operator of the dispatcher, so that vmap and fake tensors see one elementwise function; the
numbers themselves are computed on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from scipy import special as scipy_special
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

_postponed: ContextVar[list[Tensor] | None] = ContextVar("postponed", default=None)
_LIBRARY = torch.library.Library("probcalc", "DEF")
_LIBRARY.define("special(str name, Tensor[] args) -> Tensor")


def special(name: str, *args: Tensor) -> Float[Tensor, "*out"]:
    """The function of that name in `scipy.special`, elementwise, of detached arguments."""
    return torch.ops.probcalc.special.default(name, [a.detach() for a in args])


def tracked(*tensors: Tensor) -> bool:
    """Whether anything may ask for a derivative in one of the tensors, backward or forward."""
    return any(_tracked(t) for t in tensors)


def readable(t: Tensor) -> bool:
    """Whether numbers may be read: not under vmap or a tracer, nor of tensors without numbers."""
    if t.is_meta or torch.compiler.is_compiling():
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(t) or isinstance(t, FakeTensor):
        return False
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")
    return tracer is None or tracer.get_proxy_mode() is None


def asked(question: Callable[[Tensor], Tensor], mask: Tensor) -> bool:
    """The answer where it may be asked for, else False."""
    return readable(mask) and bool(question(mask))


def any_below(t: Tensor, bound: float) -> bool:
    """Whether a number is below the bound, or may be; in one pass without a mask."""
    return not readable(t) or bool(t.numel()) and not bool(t.detach().amin() >= bound)


def computed_where(
    mask: Tensor, function: Callable[..., Tensor], other: Tensor, *args: Tensor
) -> Tensor:
    """As torch.where, with the function computed where it is needed only."""
    if not readable(mask):
        return torch.where(mask, function(*args), other)
    if not bool(mask.any()):
        return other
    later = _postponed.get()
    if later is not None:
        later.append(mask)
        return other
    if bool(mask.all()):
        return torch.where(mask, function(*args), other)
    return other.masked_scatter(mask, function(*(t[mask] for t in args)))


@contextmanager
def postponed() -> Iterator[list[Tensor]]:
    """Within it, `computed_where` leaves what few elements need for later.

    Yields:
        Masks of what it has not computed.
    """
    masks: list[Tensor] = []
    token = _postponed.set(masks)
    try:
        yield masks
    finally:
        _postponed.reset(token)


def _tracked(t: Tensor) -> bool:
    if t.requires_grad:
        return torch.is_grad_enabled()
    while torch._C._functorch.is_functorch_wrapped_tensor(t):
        if torch._C._functorch.is_gradtrackingtensor(t):
            return True
        t = torch._C._functorch.get_unwrapped(t)
    dual = forward_ad._current_level >= 0
    return dual and forward_ad.unpack_dual(t).tangent is not None


def _numbers(name: str, args: list[Tensor]) -> Tensor:
    found = getattr(scipy_special, name)(*(a.double().cpu().numpy() for a in args))
    return torch.as_tensor(found, dtype=torch.float64, device=args[0].device)


def _shape_only(name: str, args: list[Tensor]) -> Tensor:
    del name
    shape = torch.broadcast_shapes(*(a.shape for a in args))
    return torch.empty(shape, dtype=torch.float64, device=args[0].device)


def _batched(info: Any, in_dims: Any, name: str, args: list[Tensor]) -> tuple[Tensor, int]:
    """The batch's axis comes first, in front of all that is broadcast."""
    del info
    ndim = max(a.ndim - (d is not None) for a, d in zip(args, in_dims[1], strict=True))
    moved = [
        a if d is None else _in_front(a.movedim(d, 0), ndim)
        for a, d in zip(args, in_dims[1], strict=True)
    ]
    return torch.ops.probcalc.special.default(name, moved), 0


def _in_front(a: Tensor, ndim: int) -> Tensor:
    return a.reshape(a.shape[0], *[1] * (ndim + 1 - a.ndim), *a.shape[1:])


_LIBRARY.impl("special", _numbers, "CompositeExplicitAutograd")
torch.library.register_fake("probcalc::special", _shape_only, lib=_LIBRARY)
torch.library.register_vmap("probcalc::special", _batched, lib=_LIBRARY)
