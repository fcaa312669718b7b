"""Where data come from: draws of the prior, and of the data given parameters.

A `Simulator` belongs to a model that can make data like those that it was given. Draws are made
together by `vmap` where the user's code allows that, and one by one elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from probcalc._random import child, forked
from probcalc._tree import moved
from probcalc.inference.parameters import Parameters, Values
from probcalc.inference.scope import model_scope

_CHUNK = 2**22  # numbers of simulated data that one call of the user's code makes


@runtime_checkable
class Simulator(Protocol):
    """What is asked of a model that makes data; `data` are those observed, a tree of tensors."""

    data: Any

    def prior(self, num_draws: int, seed: int) -> Values:
        """Latent values from the prior, draws first."""
        ...

    def simulate(
        self, values: Values, seed: int, new_data: Any = None
    ) -> tuple[Any, dict[str, Tensor]]:
        """Data for each draw of the values, and the derived values that come along."""
        ...

    def rows_at(self, z: Float[Tensor, " d"]) -> Float[Tensor, " rows"]:
        """Log-likelihood of every row of the data at one unconstrained vector."""
        ...

    def density_given(self, z: Float[Tensor, " d"], data: Any) -> Float[Tensor, ""]:
        """Log density at an unconstrained vector, had the data been others."""
        ...


@dataclass(frozen=True, eq=False)
class FunctionSimulator:
    """Data of a target written as functions.

    Args:
        parameters: Of the model.
        log_prior: Of constrained values.
        log_likelihood: Of constrained values and a row.
        data: Those observed.
        simulator: ``simulator(values, generator)`` makes data for one draw.
        sampler: ``sampler(n, generator)`` draws from the prior.
        dtype: Of floating values.
    """

    parameters: Parameters
    log_prior: Callable[[Values], Tensor]
    log_likelihood: Callable[[Values, Any], Tensor]
    data: Any
    simulator: Callable[[Values, torch.Generator], Any] | None = None
    sampler: Callable[[int, torch.Generator], Values] | None = None
    dtype: torch.dtype = field(default=torch.float64)

    @property
    def device(self) -> torch.device:
        """Where the data live."""
        return pytree.tree_leaves(self.data)[0].device

    def prior(self, num_draws: int, seed: int) -> Values:
        """Draws of the user's sampler.

        Raises:
            ValueError: Without a sampler, or where its draws have other names or shapes.
        """
        if self.sampler is None:
            raise ValueError(
                "drawing from the prior needs `prior=`: give Target.from_function(..., "
                "prior=fn), where fn(n, generator) returns a dict of n draws."
            )
        with model_scope(self.dtype), forked(seed, self.device):
            values = self.sampler(num_draws, child(seed, 0, self.device))
        for name, shape in self.parameters.layout.shapes.items():
            came = tuple(values[name].shape) if name in values else "nothing"
            if came != (num_draws, *shape):
                raise ValueError(
                    f"`prior({num_draws}, generator)` must return {name!r} of shape "
                    f"{(num_draws, *shape)}, got {came}."
                )
        return moved(values, self.device, self.dtype)

    def simulate(
        self, values: Values, seed: int, new_data: Any = None
    ) -> tuple[Any, dict[str, Tensor]]:
        """Data of the user's simulator, of the same structure as those observed.

        Raises:
            ValueError: Without a simulator, with `new_data`, or where the structure differs.
        """
        if self.simulator is None:
            raise ValueError(
                "simulating data needs `simulate=`: give Target.from_function(..., simulate=fn), "
                "where fn(values, generator) returns data like `data`."
            )
        if new_data is not None:
            raise ValueError(
                "`new_data` are arguments of a Pyro model; for a target made of functions give a "
                "`simulate` that makes the data wanted."
            )
        latent = {name: values[name] for name in self.parameters.layout.shapes}
        with model_scope(self.dtype):
            made = over_draws(
                lambda v, generator: self.simulator(v, generator),
                latent,
                seed=seed,
                device=self.device,
                size=sum(t.numel() for t in pytree.tree_leaves(self.data)),
            )
        self._check(made)
        like = lambda new, old: new.to(old.device, old.dtype)  # noqa: E731
        return pytree.tree_map(like, made, self.data), {}

    def rows_at(self, z: Float[Tensor, " d"]) -> Float[Tensor, " rows"]:
        """Log-likelihood of every row."""
        return self._rows(self.parameters.constrain(z), self.data)

    def density_given(self, z: Float[Tensor, " d"], data: Any) -> Float[Tensor, ""]:
        """Log prior, log-likelihood of the data and log Jacobian."""
        values, log_det = self.parameters.constrain_with_log_det(z)
        with model_scope(self.dtype):
            return self.log_prior(values) + self._rows(values, data).sum() + log_det

    def _rows(self, values: Values, data: Any) -> Tensor:
        with model_scope(self.dtype):
            return vmap(lambda row: self.log_likelihood(values, row))(data)

    def _check(self, made: Any) -> None:
        leaves, spec = pytree.tree_flatten(made)
        wanted, own = pytree.tree_flatten(self.data)
        came = [tuple(t.shape[1:]) if torch.is_tensor(t) else type(t).__name__ for t in leaves]
        if spec != own or came != [tuple(t.shape) for t in wanted]:
            raise ValueError(
                "`simulate` must return data of the same structure as `data`, with tensors of "
                f"shapes {[tuple(t.shape) for t in wanted]}, got {came}."
            )


def over_draws(
    one: Callable[[Values, torch.Generator], Any],
    values: Values,
    *,
    seed: int,
    device: torch.device,
    size: int = 1,
    num_draws: int | None = None,
) -> Any:
    """Call a function that draws at random for every draw of the values.

    Args:
        one: ``one(values, generator)`` of one draw returns a tree of tensors.
        values: Draws along the first axis; empty: `num_draws` calls without values.
        seed: Of the generator, and of torch's default one while the function runs.
        device: Of the generator.
        size: Numbers that one call makes, for the size of blocks.
        num_draws: Needed where `values` is empty.
    """
    n = num_draws if num_draws is not None else len(next(iter(values.values())))
    index = torch.arange(n, device=device)
    stream = child(seed, 0, device)
    together = vmap(
        lambda v, i: pytree.tree_map(torch.as_tensor, one(v, stream)),
        randomness="different",
        chunk_size=max(1, min(n, _CHUNK // max(size, 1))),
    )
    with torch.no_grad(), forked(seed, device):
        try:
            return together(values, index)
        except Exception:  # noqa: BLE001 # whatever has no batching rule; mistakes recur below
            pass
    stream = child(seed, 0, device)
    with torch.no_grad(), forked(seed, device):
        made = [one({k: v[i] for k, v in values.items()}, stream) for i in range(n)]
    return pytree.tree_map(lambda *parts: torch.stack([*map(torch.as_tensor, parts)]), *made)
