"""One run of the loop: a step, what is looked at after it, and the state that it goes on from."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine
from torch import Tensor, nn
from tqdm import tqdm

from probcalc._random import child
from probcalc.optimization.first_order import FirstOrder
from probcalc.status import Status
from probcalc.training import state
from probcalc.training.batches import Loaded, SourceFault, batches_of
from probcalc.training.callbacks import Averaged, Best
from probcalc.training.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from probcalc.training.fault import write_report
from probcalc.training.gradients import Gradients
from probcalc.training.history import History, Window, files
from probcalc.training.interrupts import Interrupts
from probcalc.training.parallel import joined, warn_of_norms
from probcalc.training.precision import Precision

if TYPE_CHECKING:
    from probcalc.training.loop import TrainSettings

_SHUFFLE, _NOISE, _VALIDATION = range(3)  # streams of the run's seed
_FEW = 32  # tensors up to which numbers are read one by one
_FAR_CHECK = 25  # steps from look to look on devices that a look would wait for


class Run:
    """The mutable middle of `train`."""

    def __init__(
        self,
        objective: Callable[..., Any],
        subject: dict[str, Tensor] | nn.Module,
        data: Any,
        settings: TrainSettings,
        seed: int,
    ) -> None:
        self.settings, self.seed = settings, seed
        self.subject, self.params, self.buffers = _leaves(subject)
        self.module = subject if isinstance(subject, nn.Module) else None
        self.leaves = list(self.params.values())
        if unknown := settings.schedules.keys() - self.buffers.keys():
            raise ValueError(
                f"`schedules` are of buffers of the module; it has none named {min(unknown)!r}."
            )
        self.device = self.leaves[0].device
        self.share = joined(self.device)
        self.precision = Precision(settings.autocast, self.device)
        warn_of_norms(self.module, self.share)
        free = [b for name, b in self.buffers.items() if name not in settings.schedules]
        how = self.precision, self.share, settings.compiled, free
        self.gradients = Gradients(objective, self.subject, self.params, *how)
        self.interrupts = Interrupts(settings.max_seconds)
        self.batches = batches_of(data, settings.batch_size, seed, self.device)
        length = self.batches.length
        self.epoch_length = max(1, length // settings.accumulate) if length else settings.max_steps
        if self.epoch_length is None:
            raise ValueError("the length of `data` is not known: give `max_steps`.")
        self.num_steps = min(
            settings.max_steps or math.inf, (settings.max_epochs or math.inf) * self.epoch_length
        )
        self.optimizer = _optimizer(settings.optimizer, self.leaves)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.check_every = settings.check_every or (1 if self.device.type == "cpu" else _FAR_CHECK)
        self.averaged = None if settings.ema is None else Averaged(settings.ema, self.params)
        self.best = None if settings.early_stopping is None else Best(settings.early_stopping)
        self.window = Window()
        self.history = History(*files(settings, self.share.rank))
        self.epoch_losses: list[Tensor] = []
        self.noise = child(seed, _NOISE, self.device)
        self.step_number, self.norms = 0, []
        self.status, self.reason, self.stopped = Status.OK, "", False
        self.interrupted = False
        self.diagnostics: dict[str, Any] = {}
        self.good: dict[str, Any] | None = None
        self.begun = time.perf_counter()

    def go(self) -> None:
        """Train to an end, from a checkpoint where there is one.

        Raises:
            ValueError: If the folder holds another run that is not to be resumed.
            SourceFault: If the data cannot go on; the state is saved before.
        """
        folder = self.settings.folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if has_checkpoint(folder):
                if not self.settings.resume:
                    raise ValueError(
                        f"{folder} holds the checkpoints of a run: `resume=True` goes on with "
                        "it; a new run needs a folder of its own."
                    )
                state.restore(self, *load_checkpoint(folder))
            else:
                self.history.restore([])
        if self.step_number < self.num_steps and not self.reason:
            try:
                with self.interrupts.watched():
                    self._run_engine()
            except SourceFault:
                if folder is not None:
                    self.save()
                raise
        if not self.reason and self.step_number < self.num_steps:
            self.reason = f"stopped by a callback after {self.step_number:,} steps"
        elif not self.reason:
            self.reason = f"all {self.num_steps:,} steps made"
        if folder is not None and self.status == Status.OK:
            self.save()
        self._record()  # of a window cut short: a run that goes on has the whole of it
        if self.gradients.note:
            self.diagnostics["compiled"] = self.gradients.note
        self.interrupts.raise_again()
        if self.best is not None and self.best.tensors:
            state.put(self.params | self.buffers, self.best.tensors)

    def _run_engine(self) -> None:
        engine = Engine(self._process)
        engine.logger = _quiet()
        engine.load_state_dict(
            {
                "iteration": self.step_number,
                "epoch_length": self.epoch_length,
                "max_iters": int(self.num_steps),
            }
        )
        for attach in self.settings.callbacks:
            attach(engine)
        shown = self.settings.progress
        with tqdm(
            total=int(self.num_steps),
            initial=self.step_number,
            disable=None if shown is None else not shown,
            unit="step",
        ) as self.bar:
            if self.settings.callbacks:
                engine.run(None, epoch_length=self.epoch_length, max_iters=int(self.num_steps))
            else:  # the same steps without events, as nobody listens
                while self.step_number < self.num_steps and not self.reason:
                    self._process(engine, None)

    def _process(self, engine: Engine, _: None) -> Tensor:
        """One update."""
        if self.module is not None and not self.module.training:
            self.module.train()
        if self.settings.schedule is not None:
            self._set_rates(self.settings.schedule(self.step_number))
        for name, schedule in self.settings.schedules.items():
            self.buffers[name].fill_(schedule(self.step_number))
        looks = (self.step_number + 1) % self.check_every == 0
        kept = [b.clone() for b in self.buffers.values()] if looks and self.buffers else None
        batches = [next(self.batches) for _ in range(self.settings.accumulate)]
        batch = engine.state.batch = batches[-1]
        loss, metrics = self.gradients(batches, self.noise)
        if self.step_number == 0 and not self.settings.allow_unused:
            self._refuse_unused()
        if self.precision.scaler is not None:
            self.precision.unscale(self.optimizer)
            looks = False  # the scaler sees to what is not finite
        if self.settings.clip_norm is not None or looks:
            self._measure()
        if looks and not self._sound(loss):
            self._stop_at_fault(engine, loss, batch, kept)
            return loss
        self.precision.step(self.optimizer)
        if self.averaged is not None:
            self.averaged.update()
        self.step_number += 1
        self._after(engine, loss, metrics, looks)
        return loss

    def _after(
        self, engine: Engine, loss: Tensor, metrics: dict[str, Tensor], looked: bool
    ) -> None:
        settings, k = self.settings, self.step_number
        self.window.add(loss, metrics)
        if self.best is not None and settings.validation is None:
            self.epoch_losses.append(loss)
        if settings.stop is not None:
            self.reason = settings.stop(k)
            if self.reason:
                self.stopped = True
                engine.terminate()
        why = self._interrupted()
        if why and not self.reason:
            self.reason, self.interrupted = why, True
            engine.terminate()
        if looked and self.check_every > 1:
            self.good = state.snapshot(self)
        if k % settings.log_every == 0:
            self._record()
        if k % self.epoch_length == 0:
            self._end_epoch(engine)
        if settings.save_every is not None and k % settings.save_every == 0:
            self.save()

    def _interrupted(self) -> str:
        """Why to end after this step: several processes agree on it when they look anyway."""
        if self.share.world == 1:
            return self.interrupts.reason
        if self.step_number % self.check_every:
            return ""
        return self.interrupts.agreed(self.device)

    def _measure(self) -> None:
        """Lengths of the gradients, shortened together where they are to be."""
        grads = [p.grad for p in self.leaves if p.grad is not None]
        self.norms = torch._foreach_norm(grads)
        if self.settings.clip_norm is not None:
            norm = torch.linalg.vector_norm(torch.stack(self.norms))
            torch.nn.utils.clip_grads_with_norm_(self.leaves, self.settings.clip_norm, norm)

    def _sound(self, loss: Tensor) -> bool:
        """Whether loss and gradients are finite; squares may overflow, so lengths are summed."""
        if self.device.type == "cpu" and len(self.norms) <= _FEW:
            return math.isfinite(loss.item() + sum(norm.item() for norm in self.norms))
        return bool((loss.detach() + torch.stack(self.norms).sum()).isfinite())

    def _refuse_unused(self) -> None:
        missing = [name for name, p in self.params.items() if p.grad is None]
        if missing:
            raise ValueError(
                f"the loss does not depend on {', '.join(missing)}: no gradient comes back. "
                "Was it detached, or not used? `allow_unused=True` trains the others."
            )

    def _set_rates(self, factor: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _record(self) -> None:
        means = self.window.means()
        if not means:
            return
        k = self.step_number
        record = {"step": k, "epoch": k / self.epoch_length, **means}
        record["lr"] = self.optimizer.param_groups[0]["lr"]
        if self.norms:
            record["grad_norm"] = float(torch.linalg.vector_norm(torch.stack(self.norms)))
        record["seconds"] = round(time.perf_counter() - self.begun, 3)
        self.history.add(record)
        self.bar.update(k - self.bar.n)
        self.bar.set_postfix(loss=f"{means['loss']:.4g}", refresh=False)

    def _end_epoch(self, engine: Engine) -> None:
        loss = self._validated()
        if loss is not None:
            self.history.add({"step": self.step_number, "validation": loss})
        if self.best is None:
            return
        if loss is None:
            loss = float(torch.stack(self.epoch_losses).mean())
            self.epoch_losses.clear()
        watched = self.params if self.averaged is None else self.averaged.tensors
        if self.best.exhausted(loss, {**watched, **self.buffers}):
            patience = self.settings.early_stopping.patience
            self.reason = f"no better loss for {patience} epochs"
            engine.terminate()

    def _validated(self) -> float | None:
        """Mean loss of the validation data, with the same noise at every epoch."""
        if self.settings.validation is None:
            return None
        data = self.settings.validation
        batches = batches_of(data, self.settings.batch_size, self.seed, self.device)
        if isinstance(batches, Loaded) and batches.length is None:
            raise ValueError("validation data must have a length.")
        noise, total, count = child(self.seed, _VALIDATION, self.device), 0.0, 0
        with torch.no_grad(), self._for_evaluation():
            for _ in range(batches.length or 1):
                batch = next(batches)
                weight = 1 if batches.rows is None else len(batches.rows)
                total = total + weight * self.gradients.evaluate(batch, noise)[0].double()
                count += weight
        return float(total / count)

    @contextmanager
    def _for_evaluation(self) -> Iterator[None]:
        """Averaged parameters in the place of the last ones, and a module that does not train."""
        raw = {name: p.detach().clone() for name, p in self.params.items()}
        if self.averaged is not None:
            state.put(self.params, self.averaged.tensors)
        if self.module is not None:
            self.module.eval()
        try:
            yield
        finally:
            if self.averaged is not None:
                state.put(self.params, raw)
            if self.module is not None:
                self.module.train()

    def _stop_at_fault(
        self, engine: Engine, loss: Tensor, batch: Any, kept: list[Tensor] | None
    ) -> None:
        self.diagnostics["nan"] = write_report(self, loss.detach(), batch)
        if kept is not None:
            state.put(self.buffers, dict(zip(self.buffers, kept, strict=True)))
        if self.check_every > 1 and self.good is not None:
            state.back(self, self.good)
        self.status = Status.NON_FINITE
        what = ", ".join(self.diagnostics["nan"]["tensors"])
        self.reason = f"not finite at step {self.diagnostics['nan']['step']}: {what}"
        engine.terminate()

    def save(self) -> None:
        """Write a checkpoint; of several processes the first one does."""
        if self.share.rank:
            return
        tensors, record = state.collected(self)
        save_checkpoint(self.settings.folder, self.step_number, tensors, record)

    def result(self) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """Parameters and their averages, detached."""
        params = {name: p.detach().clone() for name, p in self.params.items()}
        if self.averaged is None:
            return params, None
        return params, {name: t.clone() for name, t in self.averaged.tensors.items()}


def _leaves(subject: Any) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    """What the objective is called with, its parameters and its buffers.

    Raises:
        TypeError: If it is neither a module nor a dict of tensors.
        ValueError: If there is nothing to train, or a start is not finite.
    """
    if isinstance(subject, nn.Module):
        params = {name: p for name, p in subject.named_parameters() if p.requires_grad}
        buffers = dict(subject.named_buffers())
    elif isinstance(subject, dict) and all(torch.is_tensor(t) for t in subject.values()):
        params = {name: t.detach().clone().requires_grad_() for name, t in subject.items()}
        subject, buffers = params, {}
    else:
        raise TypeError(
            f"parameters must be a module or a dict of tensors, got {type(subject).__name__}."
        )
    if not params:
        raise ValueError("there is no parameter to train.")
    bad = [name for name, p in params.items() if not bool(p.isfinite().all())]
    if bad:
        raise ValueError(
            f"parameters must start from finite numbers, but {', '.join(bad)} do not."
        )
    return subject, params, buffers


def _optimizer(given: Any, leaves: list[Tensor]) -> torch.optim.Optimizer:
    if not isinstance(given, FirstOrder):
        return given(leaves)
    fused = all(p.device.type in {"cpu", "cuda"} for p in leaves)
    return given.optimizer(leaves, fused=fused)


def _quiet() -> logging.Logger:
    """A logger that nobody hears: the engine would write of errors that are raised anyway."""
    logger = logging.Logger("probcalc.training", logging.CRITICAL + 1)
    logger.addHandler(logging.NullHandler())
    return logger
