"""Everything that decides the steps to come, as tensors and JSON, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probcalc._random import global_states, restore_global_states

if TYPE_CHECKING:
    from probcalc.training.run import Run

_NUMBERS = ("int", "float", "bool")  # of an optimiser's memory, beside tensors


def put(places: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Write values into tensors in place."""
    with torch.no_grad():
        for name, value in values.items():
            places[name].copy_(value)


def snapshot(run: Run) -> dict[str, Any]:
    """Parameters, buffers and the optimiser's memory, copied on the device."""
    memory = run.optimizer.state_dict()["state"]
    return {
        "step": run.step_number,
        "tensors": {k: t.detach().clone() for k, t in {**run.params, **run.buffers}.items()},
        "memory": {
            i: {k: v.clone() if torch.is_tensor(v) else v for k, v in entries.items()}
            for i, entries in memory.items()
        },
    }


def back(run: Run, good: dict[str, Any]) -> None:
    """Return to a snapshot."""
    put({**run.params, **run.buffers}, good["tensors"])
    _remember(run, good["memory"])
    run.step_number = good["step"]
    run.window.rows.clear()


def _remember(run: Run, memory: dict[int, dict[str, Any]]) -> None:
    groups = run.optimizer.state_dict()["param_groups"]
    run.optimizer.load_state_dict({"state": memory, "param_groups": groups})


def collected(run: Run) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The whole state of a run."""
    tensors = _named("params", run.params) | _named("buffers", run.buffers)
    numbers: dict[str, Any] = {}
    for i, entries in run.optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if torch.is_tensor(value):
                tensors[f"optimizer.{i}.{name}"] = value
            elif value is not None:
                numbers[f"{i}.{name}"] = value
    if run.averaged is not None:
        tensors |= _named("averaged", run.averaged.tensors)
    if run.best is not None:
        tensors |= _named("best", run.best.tensors)
    if run.window.rows:
        tensors["window"] = run.window.tensor()
    if run.epoch_losses:
        tensors["epoch_losses"] = torch.stack(run.epoch_losses)
    place, where = parted(run.batches.state())
    tensors |= _named("batches", place)
    shared, others = global_states()
    tensors |= _named("random", shared) | {"noise": run.noise.get_state()}
    return tensors, {
        "step": run.step_number,
        "seed": run.seed,
        "optimizer": type(run.optimizer).__name__,
        "memory": numbers,
        "batches": where,
        "scaler": run.precision.state(),
        "best": None if run.best is None else [run.best.loss, run.best.waited],
        "window": list(run.window.names),
        "history": run.history.records,
        "random": others,
        "reason": run.reason if run.stopped or run.reason.startswith("no better") else "",
    }


def restore(run: Run, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Put a run where the state is of.

    Raises:
        ValueError: If the state is of other parameters, another optimiser or other settings.
    """
    _refuse_foreign(run, tensors, record)
    put(run.params, _of("params", tensors))
    put(run.buffers, _of("buffers", tensors))
    memory: dict[int, dict[str, Any]] = {}
    values = _of("optimizer", tensors) | record["memory"]
    for name, value in values.items():
        index, key = name.split(".", 1)
        memory.setdefault(int(index), {})[key] = _laid_out(value, run.leaves[int(index)])
    _remember(run, memory)
    run.precision.restore(record.get("scaler", {}))
    if run.averaged is not None:
        put(run.averaged.tensors, _of("averaged", tensors))
    if run.best is not None:
        run.best.loss, run.best.waited = record["best"]
        run.best.tensors = {k: t.to(run.device) for k, t in _of("best", tensors).items()}
    if "window" in tensors:
        run.window.restore(tensors["window"].to(run.device), record["window"])
    if "epoch_losses" in tensors:
        run.epoch_losses = list(tensors["epoch_losses"].to(run.device))
    run.step_number, run.seed = record["step"], record["seed"]
    run.reason = record["reason"]
    run.stopped = bool(run.reason) and run.settings.stop is not None
    if hasattr(run.batches, "seed"):
        run.batches.seed = run.seed
    run.batches.restore(record["batches"] | _of("batches", tensors))
    run.history.restore(record["history"])
    restore_global_states(_of("random", tensors), record["random"])
    run.noise.set_state(tensors["noise"])


def _laid_out(value: Any, like: Tensor) -> Any:
    """A tensor of an optimiser in the order of its parameter's memory, as fused ones read it."""
    if not torch.is_tensor(value) or value.shape != like.shape:
        return value
    return torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)


def parted(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and the rest."""
    tensors = {name: value for name, value in state.items() if torch.is_tensor(value)}
    return tensors, {name: value for name, value in state.items() if name not in tensors}


def _refuse_foreign(run: Run, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    for kind, own in (("params", run.params), ("buffers", run.buffers)):
        theirs = {name: (tuple(t.shape), t.dtype) for name, t in _of(kind, tensors).items()}
        ours = {name: (tuple(t.shape), t.dtype) for name, t in own.items()}
        for name in sorted(theirs.keys() | ours.keys()):
            if theirs.get(name) != ours.get(name):
                raise ValueError(
                    f"the checkpoint is of another model: {name} is {_words(theirs.get(name))} "
                    f"there and {_words(ours.get(name))} here."
                )
    if record["optimizer"] != type(run.optimizer).__name__:
        raise ValueError(
            f"the checkpoint is of a run with {record['optimizer']}, not with "
            f"{type(run.optimizer).__name__}."
        )
    saved = {
        "ema": any(name.startswith("averaged.") for name in tensors),
        "early_stopping": record["best"] is not None,
    }
    for name, there in saved.items():
        if there != (getattr(run.settings, name) is not None):
            raise ValueError(f"the run was {'with' if there else 'without'} `{name}`; keep that.")


def _words(kind: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    return "missing" if kind is None else f"{kind[0]} of {str(kind[1]).removeprefix('torch.')}"


def _named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": t for name, t in tensors.items()}


def _of(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}
