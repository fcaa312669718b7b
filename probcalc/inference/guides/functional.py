"""Modules as functions of a flat dict of parameters, whose leading axes are independent fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, vmap

Params = dict[str, Tensor]


def outside(build: Callable[[], Any]) -> Any:
    """What `build` returns where no `vmap`, `grad` or trace of the caller is at work.

    For what is kept: a tensor made inside a transformation dies with it, and random numbers are
    refused there. Such states belong to a thread; a new one has none.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(build).result()


def batch_of(params: Params, module: nn.Module) -> tuple[int, ...]:
    """Leading axes of the parameters of a module."""
    name, own = next(iter(module.named_parameters()))
    return tuple(params[name].shape[: params[name].ndim - own.ndim])


def called(module: nn.Module, params: Params, *args: Tensor, **kwargs: Any) -> Any:
    """The module's outputs with these parameters, mapped over their leading axes.

    Args:
        module: Gives the structure; its own values are not used.
        params: By the module's names, ``(*batch, ...)``.
        *args: Inputs ``(*batch, ...)``.
        **kwargs: Passed on as they are.
    """
    batch = batch_of(params, module)
    if not batch:
        return functional_call(module, params, args, kwargs)
    size = math.prod(batch)
    flat = {name: t.reshape(size, *t.shape[len(batch) :]) for name, t in params.items()}
    rows = tuple(x.reshape(size, *x.shape[len(batch) :]) for x in args)
    one = lambda p, *x: functional_call(module, p, x, kwargs)  # noqa: E731
    out = vmap(one)(flat, *rows)
    if isinstance(out, tuple):
        return tuple(x.reshape(*batch, *x.shape[1:]) for x in out)
    return out.reshape(*batch, *out.shape[1:])
