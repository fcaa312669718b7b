"""Runs of a Pyro model under the settings that its density needs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger

from probcalc.inference.scope import model_scope


@dataclass(frozen=True, eq=False)
class Run:
    """Runs of a model with its arguments; `summing` prepares it for sites that are summed out."""

    summing: Callable[[Callable[..., Any]], Callable[..., Any]]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dtype: torch.dtype

    def __call__(
        self,
        model: Callable[..., Any],
        *messengers: Messenger,
        read: Callable[[poutine.Trace], Any] | None = None,
    ) -> tuple[poutine.Trace, Any]:
        """The trace of one run, and what was read of it while the settings held."""
        with model_scope(self.dtype), ExitStack() as stack:
            for messenger in messengers:
                stack.enter_context(messenger)
            trace = poutine.trace(self.summing(model)).get_trace(*self.args, **self.kwargs)
            return trace, None if read is None else read(trace)
