"""Posteriors of posteriordb against their reference draws, with the defaults.

The folder is that of the environment variable `POSTERIORDB`, else `posteriordb` in the folder of
shared data beside the checkout.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import torch

from benchmarks.record import machine
from probcalc import EstimateWarning
from probcalc.experiment import load

SEEDS = 3
_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "posteriordb"


def folder() -> Path:
    """Where posteriordb is to be, whether it is there or not."""
    return Path(os.environ.get("POSTERIORDB", _BESIDE))


def run(out: Path, seeds: int = SEEDS, only: str = "") -> list[Path]:
    """Measure, print and write; writes nothing where there is no folder."""
    database = folder()
    if not database.is_dir():
        print("posteriordb: skipped; set POSTERIORDB to a folder of posteriordb.")
        return []
    where = machine("cpu")
    experiment = load("posteriordb")
    config = experiment.config_class(str(database), only, seeds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EstimateWarning)  # the verdict says it
        board = experiment.run(config, generator=torch.Generator().manual_seed(0))
    head = f"# posteriordb: right or flagged\n\n{seeds} seeds, defaults everywhere."
    text = f"{head} {where['date']}, {where['cpu']}, one thread.\n\n{board.markdown()}"
    print(text)
    paths = out / "posteriordb.md", out / "posteriordb.json"
    paths[0].write_text(text, encoding="utf-8")
    record = {"machine": where, "seeds": seeds, **board.as_json()}
    paths[1].write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")
    return list(paths)
