"""What a run reports: means over windows of steps, on the device until they are written."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from probcalc.training.loop import TrainSettings


class Window:
    """Losses and metrics of the steps since the last record."""

    def __init__(self) -> None:
        self.rows: list[tuple[Tensor, ...]] = []
        self.names: tuple[str, ...] = ()

    def add(self, loss: Tensor, metrics: dict[str, Tensor]) -> None:
        """The figures of a step.

        Raises:
            ValueError: If the metrics are not those of the steps before.
        """
        names = tuple(metrics)
        if self.rows and names != self.names:
            raise ValueError(
                f"the objective must return the same metrics at every step, got {names} after "
                f"{self.names}."
            )
        self.names = names
        self.rows.append((loss, *metrics.values()))

    def means(self) -> dict[str, float]:
        """Means over the window, which begins anew."""
        if not self.rows:
            return {}
        found = self.tensor().mean(dim=0).tolist()
        self.rows.clear()
        return dict(zip(("loss", *self.names), found, strict=True))

    def tensor(self) -> Tensor:
        """Its rows, in float64."""
        flat = [x.detach() for row in self.rows for x in row]
        if len({x.dtype for x in flat}) > 1:
            flat = [x.double() for x in flat]
        return torch.stack(flat).double().unflatten(0, (len(self.rows), -1))

    def restore(self, rows: Tensor, names: list[str]) -> None:
        """Its rows as `tensor` gave them."""
        self.names = tuple(names)
        self.rows = [tuple(row) for row in rows]


class History:
    """Records in memory, and in files where these are asked for."""

    def __init__(self, *writers: Writer) -> None:
        self.records: list[dict[str, Any]] = []
        self.writers = writers

    def add(self, record: dict[str, Any]) -> None:
        """Append a record."""
        self.records.append(record)
        for writer in self.writers:
            writer.add(record)

    def restore(self, records: list[dict[str, Any]]) -> None:
        """Go back to these: what a killed run wrote after its checkpoint is dropped."""
        self.records = list(records)
        for writer in self.writers:
            writer.restore(records)


class Lines:
    """JSON, a line a record."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def add(self, record: dict[str, Any]) -> None:
        """Append it."""
        with self.file.open("a") as stream:
            stream.write(_line(record))

    def restore(self, records: list[dict[str, Any]]) -> None:
        """Write these, and nothing else."""
        self.file.write_text("".join(map(_line, records)))


class Columns:
    """A table of comma-separated values; written anew where a column is new."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.records: list[dict[str, Any]] = []
        self.names: list[str] = []

    def add(self, record: dict[str, Any]) -> None:
        """Append it."""
        self.records.append(record)
        new = [name for name in record if name not in self.names]
        if new:
            self.names += new
            self._write(self.records, "w")
        else:
            self._write([record], "a")

    def restore(self, records: list[dict[str, Any]]) -> None:
        """Write these, and nothing else."""
        self.records = list(records)
        self.names = list(dict.fromkeys(name for r in records for name in r))
        self._write(self.records, "w")

    def _write(self, records: list[dict[str, Any]], mode: str) -> None:
        with self.file.open(mode, newline="") as stream:
            writer = csv.DictWriter(stream, self.names)
            if mode == "w":
                writer.writeheader()
            writer.writerows(records)


class Board:
    """TensorBoard's event files."""

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.summary import Writer as Events
        except ImportError as error:
            raise ImportError(
                "`tensorboard=True` needs the package tensorboard: pip install tensorboard."
            ) from error
        self.writer = Events(str(folder))

    def add(self, record: dict[str, Any]) -> None:
        """Append its numbers."""
        for name, value in record.items():
            if name != "step":
                self.writer.add_scalar(name, value, record["step"])
        self.writer.flush()

    def restore(self, records: list[dict[str, Any]]) -> None:
        """Event files only grow; the board shows the newest value of a step."""


Writer = Lines | Columns | Board


def files(settings: TrainSettings, rank: int) -> list[Writer]:
    """Where a run writes its history; of several processes the first one does."""
    folder = settings.folder
    if folder is None or rank:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    writers: list[Writer] = [Lines(folder / "history.jsonl")]
    writers += [Columns(folder / "history.csv")] if settings.csv else []
    return [*writers, Board(folder)] if settings.tensorboard else writers


def _line(record: dict[str, Any]) -> str:
    """JSON knows no NaN: such numbers are written as text."""
    plain = {
        k: str(v) if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in record.items()
    }
    return json.dumps(plain) + "\n"
