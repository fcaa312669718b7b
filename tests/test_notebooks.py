"""Notebooks run afresh, and their last cells hold what they claim."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def test_there_are_some():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_committed_and_the_last_cell_asserts(path: Path):
    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert all(out.output_type != "error" for cell in cells for out in cell.outputs)
    assert "assert" in cells[-1].source
    assert any("image/png" in out.get("data", {}) for cell in cells for out in cell.outputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's client
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_they_run_afresh(path: Path, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    book = nbformat.read(path, 4)
    nbclient.NotebookClient(book, timeout=120, kernel_name="python3").execute(cwd=path.parent)
