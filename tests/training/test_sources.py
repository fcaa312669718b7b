"""Batches that are made while training goes on: where they are is saved, faults save the state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import probcalc as pc
from probcalc.training.batches import Source, SourceFault


class Walk:
    """A walk whose place decides its next batch."""

    length: int | None = None
    rows: Tensor | None = None

    def __init__(self, breaks_at: int = -1) -> None:
        self.place, self.made, self.breaks_at = torch.zeros(3), 0, breaks_at

    def __next__(self) -> Tensor:
        if self.made == self.breaks_at:
            raise SourceFault("the road ends at batch 7.")
        self.made += 1
        self.place = 0.9 * self.place + torch.tensor([1.0, -0.5, 0.1]) * self.made**0.5
        return self.place

    def state(self) -> dict[str, Any]:
        return {"place": self.place, "made": self.made}

    def restore(self, state: dict[str, Any]) -> None:
        self.place, self.made = state["place"], state["made"]


def trained(
    source: Any, steps: int, folder: Path | None = None, **settings: Any
) -> pc.TrainResult:
    return pc.train(
        lambda p, batch, generator: (p["x"] - batch).square().sum(),
        {"x": torch.zeros(3)},
        source,
        optimizer=pc.Adam(0.1),
        max_steps=steps,
        folder=folder,
        generator=torch.Generator().manual_seed(0),
        **settings,
    )


def test_a_source_is_one():
    assert isinstance(Walk(), Source)
    assert not isinstance(torch.zeros(2), Source)


def test_a_run_goes_on_from_where_its_source_was(tmp_path: Path):
    whole = trained(Walk(), 20)
    trained(Walk(), 9, tmp_path)
    part = trained(Walk(), 20, tmp_path, resume=True)
    assert torch.equal(whole.params["x"], part.params["x"])


def test_a_fault_of_the_source_saves_the_state_before_it(tmp_path: Path):
    with pytest.raises(SourceFault, match="batch 7"):
        trained(Walk(7), 20, tmp_path)
    tensors, record = pc.load_checkpoint(tmp_path)
    assert record["step"] == 7
    assert record["batches"] == {"made": 7}
    assert "batches.place" in tensors
    part = trained(Walk(), 20, tmp_path, resume=True)
    assert torch.equal(part.params["x"], trained(Walk(), 20).params["x"])


def test_without_a_folder_a_fault_is_passed_on():
    with pytest.raises(SourceFault):
        trained(Walk(2), 20)
