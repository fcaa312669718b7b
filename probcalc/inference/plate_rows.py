"""Plates that subsample, made to take all rows, or those with given numbers.

`pyro.plate("rows", N, subsample_size=B)` draws its rows at random, which makes the density of a
model random. Here the rows come from outside, so that model and guide see the same ones. What
stands in the plate counts N/B times, sums over discrete sites as a whole, whose terms Pyro would
scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.subsample_messenger import SubsampleMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to


@dataclass(eq=False)
class Plates:
    """What plates of one model subsample: by name the rows that there are, and those taken."""

    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def num_rows(self) -> int | None:
        """Rows of all plates that subsample, where that is one number."""
        return self._one(0)

    @property
    def batch_size(self) -> int | None:
        """Rows that they take."""
        return self._one(1)

    def _one(self, index: int) -> int | None:
        if len(set(self.sizes.values())) != 1:
            return None
        return next(iter(self.sizes.values()))[index]

    def with_rows(self, model: Callable[..., Any], rows: Tensor | None) -> Callable[..., Any]:
        """The model, its subsampling plates on these rows; None: on all of them."""

        @wraps(model)  # predictions read the model's arguments by name
        def on_rows(*args: Any, **kwargs: Any) -> Any:
            with _taking(rows, self.sizes):
                return model(*args, **kwargs)

        return on_rows

    def refusal(self, why: str) -> str:
        """Words for a model whose plates cannot be led from outside."""
        name, (n, b) = next(iter(self.sizes.items()))
        return (
            f"plate {name!r} draws its own mini-batch ({b} of {n} rows), and the model does not "
            f"run with all rows ({why}); index the data by what the plate returns, `with "
            "pyro.plate(..., subsample_size=...) as i:` and `obs=y[i]`, or leave out "
            "`subsample_size`, so that the model sees all rows."
        )

    def split(
        self, free: dict[str, Tensor], rows: Tensor, local: dict[str, int]
    ) -> list[tuple[dict[str, Tensor], float]]:
        """Free values of sites outside the plates, and those of the rows, with their factors."""
        outside = {name: u for name, u in free.items() if name not in local}
        inside = {name: free[name].index_select(axis, rows) for name, axis in local.items()}
        return [(outside, 1.0), (inside, self.num_rows / len(rows))]

    def parted(
        self, trace: poutine.Trace, log_density: Callable[[poutine.Trace], Tensor], rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log densities of what stands outside the plates, and inside with the rows given."""
        share = len(rows) / self.num_rows
        sites = [s for s in trace.nodes.values() if s["type"] == "sample"]
        for site in filter(self.hold, sites):
            site["scale"] = site["scale"] * share  # Pyro has scaled by N/B
        total = log_density(trace)
        trace.compute_log_prob()
        others = [s["log_prob"].sum() for s in sites if not (site_is_subsample(s) or self.hold(s))]
        outside = sum(others, torch.zeros_like(total))
        return outside, (total - outside) / share

    def hold(self, site: dict[str, Any]) -> bool:
        """Whether a site is inside one of these plates."""
        return any(frame.name in self.sizes for frame in site["cond_indep_stack"])

    def can_batch(self, trace: poutine.Trace, discrete: list[str]) -> bool:
        """Whether rows can be taken: of one number, sites that are summed out all inside."""
        return self.num_rows is not None and all(self.hold(trace.nodes[n]) for n in discrete)

    def local(self, latent: dict[str, Any]) -> dict[str, int]:
        """Latent sites inside these plates, with the axis of the rows in the free values."""
        found = {}
        for name, site in latent.items():
            for frame in site["cond_indep_stack"]:
                if frame.name in self.sizes:
                    shape = site["value"].shape
                    free = biject_to(site["fn"].support).inverse_shape(shape)
                    event = len(free) - (len(shape) - site["fn"].event_dim)
                    found[name] = frame.dim - event
        return found


def refuse_outer_plates(trace: poutine.Trace) -> None:
    """Plates that were made outside the model keep the rows that they drew then.

    Raises:
        ValueError: Naming one.
    """
    for site in trace.nodes.values():
        for frame in site.get("cond_indep_stack", ()):
            full = getattr(frame, "full_size", None)
            if full is not None and 0 <= frame.size < full:
                raise ValueError(
                    f"plate {frame.name!r} draws its own mini-batch ({frame.size} of {full} "
                    "rows) outside the model, or was given its rows; make the plate in the "
                    "model, with `subsample_size` and without `subsample`."
                )


@contextmanager
def _taking(rows: Tensor | None, seen: dict[str, tuple[int, int]]) -> Iterator[None]:
    """Plates take these rows where they would draw some; names and sizes go to `seen`."""
    original = SubsampleMessenger._subsample

    def chosen(
        name: str,
        size: int | None = None,
        subsample_size: int | None = None,
        subsample: Any = None,
        *rest: Any,
        **named: Any,
    ) -> Any:
        if subsample is None and None not in (size, subsample_size) and subsample_size < size:
            seen[name] = (size, subsample_size)
            subsample_size, subsample = None, rows
        return original(name, size, subsample_size, subsample, *rest, **named)

    SubsampleMessenger._subsample = staticmethod(chosen)
    try:
        yield
    finally:
        SubsampleMessenger._subsample = staticmethod(original)
