"""The one loop for noisy objectives, on pytorch-ignite's engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor, nn, optim

from probcalc._random import draw_seed
from probcalc.optimization.first_order import Adam, FirstOrder
from probcalc.status import Status
from probcalc.training.callbacks import EarlyStopping
from probcalc.training.run import Run

Objective = Callable[[Any, Any, torch.Generator], Any]


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What training came to.

    Args:
        params: Parameters by name, detached: the last ones, or the best with early stopping.
        module: The module that was trained in place, or None.
        averaged: Moving averages of the parameters, if asked for.
        history: Records of steps: means over the steps since the record before.
        num_steps: Updates made, those of the runs that this one continued with them.
        status: `NON_FINITE` where it stopped at a number that is none.
        reason: Why it ended.
        diagnostics: Under `nan` what broke, where something did.
    """

    params: dict[str, Tensor]
    module: nn.Module | None
    averaged: dict[str, Tensor] | None
    history: list[dict[str, Any]]
    num_steps: int
    status: Status
    reason: str
    diagnostics: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing broke."""
        return self.status == Status.OK

    def __repr__(self) -> str:
        loss = f", loss {self.history[-1]['loss']:.6g}" if self.history else ""
        return f"{self.num_steps:,} steps{loss}: {self.reason}"


@dataclass(frozen=True)
class TrainSettings:
    """How to train; the arguments of `train` of the same names."""

    optimizer: FirstOrder | Callable[[Iterable[Tensor]], optim.Optimizer]
    batch_size: int | None
    max_epochs: int | None
    max_steps: int | None
    schedule: Callable[[int], float] | None
    clip_norm: float | None
    ema: float | None
    early_stopping: EarlyStopping | None
    validation: Any
    allow_unused: bool
    log_every: int
    check_every: int | None
    folder: Path | None
    save_every: int | None
    resume: bool
    progress: bool | None
    callbacks: tuple[Callable[[Engine], None], ...]
    stop: Callable[[int], str] | None = None
    schedules: dict[str, Callable[[int], float]] = field(default_factory=dict)
    accumulate: int = 1
    autocast: torch.dtype | None = None
    compiled: bool = False
    max_seconds: float | None = None
    csv: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If there is no end, a number is not positive, or files are asked for
                without a folder.
        """
        counts = ("max_epochs", "max_steps", "log_every", "check_every", "save_every")
        for name in (*counts, "accumulate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if self.max_epochs is None and self.max_steps is None:
            raise ValueError("give `max_steps` or `max_epochs`: training has no end by itself.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"`clip_norm` must be positive, got {self.clip_norm}.")
        files = self.save_every is not None or self.resume or self.csv or self.tensorboard
        if self.folder is None and files:
            raise ValueError(
                "`save_every`, `resume`, `csv` and `tensorboard` need a `folder` for the files."
            )


def train(
    objective: Objective,
    params_or_module: dict[str, Tensor] | nn.Module,
    data: Any = None,
    *,
    optimizer: FirstOrder | Callable[[Iterable[Tensor]], optim.Optimizer] | None = None,
    batch_size: int | None = None,
    max_epochs: int | None = None,
    max_steps: int | None = None,
    schedule: Callable[[int], float] | None = None,
    schedules: dict[str, Callable[[int], float]] | None = None,
    clip_norm: float | None = None,
    ema: float | None = None,
    early_stopping: EarlyStopping | None = None,
    validation: Any = None,
    allow_unused: bool = False,
    log_every: int = 50,
    check_every: int | None = None,
    folder: Path | str | None = None,
    save_every: int | None = None,
    resume: bool = False,
    progress: bool | None = None,
    callbacks: Iterable[Callable[[Engine], None]] = (),
    stop: Callable[[int], str] | None = None,
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
    compiled: bool = False,
    max_seconds: float | None = None,
    csv: bool = False,
    tensorboard: bool = False,
    generator: torch.Generator | None = None,
) -> TrainResult:
    """Minimise an objective whose gradients are noisy, or that is given batch by batch.

    Full batches are gradient descent, batches of one stochastic gradient descent.

    Args:
        objective: ``objective(params or module, batch, generator)`` returns a scalar loss, or the
            loss and a dict of scalar metrics, or `LossAndGradients`. Random numbers should come
            from the generator.
        params_or_module: A dict of tensors, which stay as they are, or a module, trained in place.
        data: Tensors (one, or a tuple or dict of them) with observations along the first axis,
            an iterable of batches such as a `DataLoader`, a `Source` that makes its batches as
            the run goes on, or None.
        optimizer: Default ``Adam(1e-3)``; or a function from parameters to an optimiser of torch.
        batch_size: Of tensors in memory; None for all rows at once.
        max_epochs: Passes over the data.
        max_steps: Updates.
        schedule: Factor of the learning rate by step, such as ``CosineSchedule(10_000)``.
        schedules: Values by step of buffers of the module, by name: the weight of a penalty, a
            temperature.
        clip_norm: Longer gradients are shortened to this Euclidean norm.
        ema: Decay of a moving average of the parameters, which is what is validated.
        early_stopping: When to stop, watched every epoch.
        validation: Data for the objective without gradients, every epoch.
        allow_unused: Whether a parameter may receive no gradient.
        log_every: Steps a record.
        check_every: Steps from one look for numbers that are not finite to the next; default 1 on
            a CPU, else 25, as a look waits for the device.
        folder: For `history.jsonl`, checkpoints and, after a fault, `nan_report.json`.
        save_every: Steps a checkpoint; the end is always saved where there is a folder.
        resume: Whether to go on from the newest checkpoint in the folder, if there is one: the
            steps are bit for bit those of a run that was never stopped.
        progress: Whether to draw a bar; default on a terminal only.
        callbacks: Called with the engine before it runs, to attach handlers of pytorch-ignite.
        stop: Called with the number of steps after each of them; words end the run and are its
            reason, empty ones do not. What it remembers between calls is to be in the buffers of
            a module, which are saved.
        accumulate: Batches an update, whose gradients are added: a larger batch in less memory.
        autocast: `torch.bfloat16`, or on a GPU `torch.float16`, to compute in.
        compiled: Whether to compile the objective; where that fails it runs as it is, and
            `diagnostics["compiled"]` says why.
        max_seconds: Time after which the run ends, its state saved.
        csv: Whether to write the history to `history.csv` too.
        tensorboard: And for TensorBoard.
        generator: Source of randomness; one seed is drawn from it.

    Under `torchrun` the processes share every batch, whose size stays that of all together; the
    first one writes the files, buffers that differ are averaged, and a signal to one, or the end
    of its time, ends all after the same step. Ctrl-C and SIGTERM end the run after the step at
    hand, its state saved, and are passed on then (exit codes 130 and 143 of a program).

    Returns:
        The parameters, the history, and why it ended.

    Raises:
        ValueError: If the loss is no scalar, a parameter receives no gradient (it is named), a
            schedule is of no buffer, the data are empty, do not match or are not finite, or a
            checkpoint is of another run.
        CheckpointError: If the checkpoint is damaged.

    >>> x = torch.linspace(-1, 1, 50)
    >>> result = train(
    ...     lambda p, batch, generator: (p["slope"] * batch[0] - batch[1]).square().mean(),
    ...     {"slope": torch.zeros(())},
    ...     (x, 3 * x),
    ...     optimizer=Adam(0.1),
    ...     max_steps=300,
    ... )
    >>> round(float(result.params["slope"]), 3), result.reason
    (3.0, 'all 300 steps made')
    """
    settings = TrainSettings(
        optimizer=optimizer if optimizer is not None else Adam(1e-3),
        batch_size=batch_size,
        max_epochs=max_epochs,
        max_steps=max_steps,
        schedule=schedule,
        clip_norm=clip_norm,
        ema=ema,
        early_stopping=early_stopping,
        validation=validation,
        allow_unused=allow_unused,
        log_every=log_every,
        check_every=check_every,
        folder=None if folder is None else Path(folder),
        save_every=save_every,
        resume=resume,
        progress=progress,
        callbacks=tuple(callbacks),
        stop=stop,
        schedules=schedules or {},
        accumulate=accumulate,
        autocast=autocast,
        compiled=compiled,
        max_seconds=max_seconds,
        csv=csv,
        tensorboard=tensorboard,
    )
    run = Run(objective, params_or_module, data, settings, draw_seed(generator))
    run.go()
    params, averaged = run.result()
    return TrainResult(
        params=params,
        module=run.module,
        averaged=averaged,
        history=run.history.records,
        num_steps=run.step_number,
        status=run.status,
        reason=run.reason,
        diagnostics=run.diagnostics,
    )
