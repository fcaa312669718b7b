"""What broke, and where: the report of a run that met a number that is none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from probcalc.training.callbacks import broken_tensors, first_broken_module
from probcalc.training.state import parted

if TYPE_CHECKING:
    from probcalc.training.run import Run

_ROWS = 64  # rows of the batch that are named


def write_report(run: Run, loss: Tensor, batch: Any) -> dict[str, Any]:
    """Name the step, the tensors that are not finite and the batch; to a file where there is one.

    Returns:
        The report, as it is in `nan_report.json`.
    """
    rows = getattr(run.batches, "rows", None)
    report = {
        "step": run.step_number + 1,
        "seen_every": run.check_every,
        "tensors": broken_tensors(loss, run.params) or ["metrics"],
        "module": _module(run, batch),
        "batch": parted(run.batches.state())[1],
        "rows": None if rows is None else rows[:_ROWS].tolist(),
        "inputs": [_described(t) for t in pytree.tree_leaves(batch) if torch.is_tensor(t)],
        "largest_parameter": max(
            (float(p.detach().abs().max()), name) for name, p in run.params.items() if p.numel()
        )[1],
        "lr": run.optimizer.param_groups[0]["lr"],
    }
    if run.settings.folder is not None:
        path = run.settings.folder / "nan_report.json"
        path.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _module(run: Run, batch: Any) -> str | None:
    """The first submodule with a broken output, if it breaks again."""
    if run.module is None:
        return None
    generator = torch.Generator(run.device).manual_seed(0)
    return first_broken_module(run.module, lambda: run.gradients.evaluate(batch, generator))


def _described(t: Tensor) -> dict[str, Any]:
    described: dict[str, Any] = {"shape": list(t.shape), "dtype": str(t.dtype)}
    if t.is_floating_point() and t.numel():
        described["finite"] = bool(t.isfinite().all())
        described["largest"] = str(float(t.abs().max()))
    return described
