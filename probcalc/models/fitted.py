"""What models share that are trained on rows: `fit` and `load`, and what these return.

A model is frozen settings; fitted, it is a network with its values. A subclass says which rows it
takes, builds the network and gives its loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcalc._random import child, draw_seed
from probcalc.models.rows import checked, joined, loaded
from probcalc.optimization.first_order import Adam
from probcalc.optimization.schedule import CosineSchedule
from probcalc.training.checkpoint import save_checkpoint
from probcalc.training.loop import TrainResult, train

_BYTES = 2**26  # of a network's numbers at a time

Loss = Callable[[Any, Any, torch.Generator], Any]


@dataclass(frozen=True, eq=False)
class Fitted:
    """A network with its values.

    Args:
        settings: The model that it is a fit of.
        network: What was trained.
        event: Shape of a row.
        training: How it went; None for a model from a file.
        num_rows: Rows that it was trained on.
        condition: Numbers of a condition.
    """

    settings: Any
    network: nn.Module
    event: tuple[int, ...]
    training: TrainResult | None
    num_rows: int
    condition: int = 0

    @property
    def ok(self) -> bool:
        """Whether training met nothing that is not finite."""
        return self.training is None or self.training.ok

    def save(self, folder: Path | str) -> Path:
        """Write the values to a folder, checked by sums, without code in it.

        Read by the `load` of a model with these settings.
        """
        record = {
            "event": list(self.event),
            "condition": self.condition,
            "num_rows": self.num_rows,
        }
        return save_checkpoint(Path(folder), 0, self.network.state_dict(), record)

    @property
    def _like(self) -> Tensor:
        """A tensor of the network's precision, on its device."""
        return next(self.network.parameters())

    def _stream(self, generator: torch.Generator | None) -> torch.Generator:
        return child(draw_seed(generator), 0, self._like.device)

    def _noise(self, *shape: int, stream: torch.Generator) -> Tensor:
        kind = {"dtype": self._like.dtype, "device": self._like.device}
        return torch.randn(shape, generator=stream, **kind)

    def _rows(self, x: Tensor) -> Float[Tensor, "n p"]:
        """Flat rows on the network's device.

        Raises:
            ValueError: If rows have another shape, or are of another kind.
        """
        if tuple(x.shape[1:]) != self.event:
            raise ValueError(
                f"rows must have the shape {self.event} of those in training, got "
                f"{tuple(x.shape[1:])}."
            )
        return checked("x", x, self.settings.kind_of_rows).flatten(1).to(self._like)

    def _chunks(
        self, x: Tensor, condition: Tensor | None, numbers: int
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Rows and their conditions, so many that the `numbers` of each row fit.

        Yields:
            Flat rows, and conditions.
        """
        rows, size = self._rows(x), rows_at_a_time(numbers)
        told = None if condition is None else condition.to(rows)
        for i in range(0, len(rows), size):
            yield rows[i : i + size], None if told is None else told[i : i + size]


F = TypeVar("F", bound=Fitted)


class Readable(Generic[F]):
    """Settings whose fits are written to files and read back."""

    answer: ClassVar[type[Any]]  # of a fit
    sample: ClassVar[str]  # name of a tensor that has the network's precision

    def load(self, path: Path | str) -> F:
        """What `save` wrote of a fit with these settings.

        Raises:
            CheckpointError: If the file is damaged, or no file of ours.
            ValueError: If it is of other settings.
        """
        network, record = loaded(path, self.sample, lambda *about: self._built(*about, seed=0))
        about = tuple(record["event"]), None, record["num_rows"], record["condition"]
        return self._fitted(network, *about)

    def _fitted(self, network: nn.Module, *about: Any) -> F:
        return self.answer(self, network.eval().requires_grad_(False), *about)

    def _built(self, x: Tensor, condition: int, seed: int) -> nn.Module:
        """The network for rows like these and conditions of this width."""
        raise NotImplementedError


class Generative(Readable[F]):
    """Settings that are fitted to rows, each perhaps with a condition."""

    rate: ClassVar[float]  # of Adam
    training: ClassVar[dict[str, Any]]  # settings of `train` where nothing else is asked for

    @property
    def kind_of_rows(self) -> Any:
        """What rows must be, by its `check`."""
        raise NotImplementedError

    def fit(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        validation: Tensor | tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> F:
        """Train on rows.

        Args:
            x: Shape ``(n, *event)``.
            condition: Shape ``(n, c)``: what the network is told of every row.
            validation: Other rows, or rows and their conditions, watched every epoch.
            generator: Source of the starts, the order of rows and the noise.
            **settings: Of `train`; the class says which it takes where they are left out.

        Raises:
            ValueError: If the data are of another kind, or shapes do not match.
        """
        x = checked("x", x, self.kind_of_rows)
        seed = draw_seed(generator)
        data = joined(x, condition)
        width = 0 if condition is None else condition.shape[1]
        network = self._built(x, width, seed)
        loss, schedules = self._loss(tuple(x.shape[1:]))
        chosen = self._chosen(len(x), settings)
        chosen["schedules"] = {**schedules, **chosen.get("schedules", {})}
        if validation is not None:
            rows = validation if isinstance(validation, tuple) else (validation,)
            seen = checked("validation", rows[0], self.kind_of_rows)
            chosen["validation"] = joined(seen, *rows[1:])
        result = trained(loss, network, data, seed, chosen)
        return self._fitted(network, tuple(x.shape[1:]), result, len(x), width)

    def _loss(self, event: tuple[int, ...]) -> tuple[Loss, dict[str, Callable[[int], float]]]:
        """The objective of rows of this shape, and schedules of the network's buffers."""
        raise NotImplementedError

    def _chosen(self, n: int, given: dict[str, Any]) -> dict[str, Any]:
        """Settings of `train`: those given, else Adam along a cosine to the end."""
        chosen = {**self.training, **given}
        if given.get("max_steps") is not None and "max_epochs" not in given:
            del chosen["max_epochs"]
        if not chosen.keys() & {"optimizer", "schedule"}:
            size = min(chosen["batch_size"] or n, n)
            steps = chosen.get("max_steps") or chosen["max_epochs"] * math.ceil(n / size)
            chosen |= {"optimizer": Adam(self.rate), "schedule": CosineSchedule(max(2, steps))}
        return chosen


def trained(
    loss: Loss, network: nn.Module, data: Any, seed: int, settings: dict[str, Any]
) -> TrainResult:
    """Train a network in place; where weights are averaged it ends with the averages."""
    result = train(loss, network, data, generator=child(seed, 1), **settings)
    if result.averaged is not None:
        network.load_state_dict({**network.state_dict(), **result.averaged})
    return result


def rows_at_a_time(numbers: int) -> int:
    """Rows of so many numbers that fit the memory set aside for them."""
    return max(1, _BYTES // (8 * numbers))


def data_std_error(each: Float[Tensor, " n"]) -> float:
    """Standard error of the mean over rows, for rows to come."""
    return float(each.std() / math.sqrt(len(each))) if len(each) > 1 else math.inf
