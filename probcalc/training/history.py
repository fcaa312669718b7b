"""What a run reports: means over windows of steps, on the device until they are written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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
        return torch.stack([torch.stack([x.detach().double() for x in r]) for r in self.rows])

    def restore(self, rows: Tensor, names: list[str]) -> None:
        """Its rows as `tensor` gave them."""
        self.names = tuple(names)
        self.rows = [tuple(row) for row in rows]


class History:
    """Records in memory, and as JSON lines in a file where there is one."""

    def __init__(self, file: Path | None) -> None:
        self.records: list[dict[str, Any]] = []
        self.file = file

    def add(self, record: dict[str, Any]) -> None:
        """Append a record."""
        self.records.append(record)
        if self.file is not None:
            with self.file.open("a") as stream:
                stream.write(_line(record))

    def restore(self, records: list[dict[str, Any]]) -> None:
        """Go back to these: what a killed run wrote after its checkpoint is dropped."""
        self.records = list(records)
        if self.file is not None:
            self.file.write_text("".join(map(_line, records)))


def _line(record: dict[str, Any]) -> str:
    """JSON knows no NaN: such numbers are written as text."""
    plain = {
        k: str(v) if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in record.items()
    }
    return json.dumps(plain) + "\n"
