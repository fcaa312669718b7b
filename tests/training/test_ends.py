"""What ends a run from outside, what it computes in, and where its history goes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import probcalc as pc
from probcalc.training.gradients import NoiseFirst
from probcalc.training.interrupts import EXIT_TERMINATED, Interrupts

X = torch.linspace(-1, 1, 60)
Y = 3 * X + 1


def squares(params: dict[str, Tensor], batch: Any, _: torch.Generator | None) -> Tensor:
    x, y = batch
    return (params["slope"] * x + params["offset"] - y).square().mean()


def start() -> dict[str, Tensor]:
    return {"slope": torch.zeros(()), "offset": torch.zeros(())}


@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_accumulated_batches_are_one_large_batch(accumulate: int):
    """Ten steps of batches in turn equal ten of the whole, rows being the same set."""
    few = 60 // accumulate
    whole = pc.train(squares, start(), (X, Y), max_steps=10, batch_size=None)
    parts = pc.train(squares, start(), (X, Y), max_steps=10, batch_size=few, accumulate=accumulate)
    for name in start():
        torch.testing.assert_close(parts.params[name], whole.params[name], rtol=1e-6, atol=1e-7)
    assert parts.history[-1]["loss"] == pytest.approx(whole.history[-1]["loss"], rel=1e-6)
    assert parts.history[-1]["epoch"] == 10.0


def test_batches_of_other_sizes_weigh_by_their_rows():
    """Batches of 40 and 20 rows together are the whole."""
    whole = pc.train(squares, start(), (X, Y), max_steps=5, batch_size=None)
    parts = pc.train(squares, start(), (X, Y), max_steps=5, batch_size=40, accumulate=2)
    for name in start():
        torch.testing.assert_close(parts.params[name], whole.params[name], rtol=1e-6, atol=1e-7)


def test_autocast_computes_in_it_and_keeps_parameters():
    seen = []

    def objective(module: nn.Module, batch: Any, _: torch.Generator) -> Tensor:
        out = module(batch[0][:, None])
        seen.append(out.dtype)
        return (out[:, 0] - batch[1]).float().square().mean()

    module = nn.Linear(1, 1)
    result = pc.train(
        objective,
        module,
        (X, Y),
        max_steps=300,
        optimizer=pc.Adam(0.05),
        autocast=torch.bfloat16,
    )
    assert set(seen) == {torch.bfloat16}
    assert result.params["weight"].dtype == torch.float32
    assert abs(float(result.params["weight"]) - 3.0) < 0.05


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_precisions_that_make_no_sense_are_refused(dtype: torch.dtype):
    with pytest.raises(ValueError, match="bfloat16"):
        pc.train(squares, start(), (X, Y), max_steps=1, autocast=dtype)


def noisy(params: dict[str, Tensor], batch: Any, generator: torch.Generator) -> Tensor:
    return squares(params, with_noise(params, batch, generator), generator)


def with_noise(_: Any, batch: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return batch[0], batch[1] + 0.1 * torch.randn(len(batch[0]), generator=generator)


# the same objective, whole and with its noise first
NOISY = {
    "whole": noisy,
    "noise first": NoiseFirst(with_noise, lambda params, drawn: squares(params, drawn, None)),
}


@pytest.mark.parametrize("objective", NOISY.values(), ids=NOISY)
def test_what_cannot_be_compiled_runs_as_it_is(objective: Any, monkeypatch: pytest.MonkeyPatch):
    """With the noise that it would have had."""

    def failing(_: Any) -> Any:
        def call(*inputs: Any) -> None:
            if isinstance(inputs[-1], torch.Generator):
                torch.randn(7, generator=inputs[-1])  # drawn before it fails
            raise RuntimeError("no compiler here\nat all")

        return call

    def trained(**settings: Any) -> Any:
        seed = torch.Generator().manual_seed(0)
        return pc.train(objective, start(), (X, Y), max_steps=20, generator=seed, **settings)

    plain = trained()
    monkeypatch.setattr(torch, "compile", failing)
    found = trained(compiled=True)
    assert "no compiler here" in found.diagnostics["compiled"]
    assert torch.equal(found.params["slope"], plain.params["slope"])


def test_noise_that_is_drawn_first_is_the_same():
    found, plain = (
        pc.train(f, start(), (X, Y), max_steps=20, generator=torch.Generator().manual_seed(0))
        for f in NOISY.values()
    )
    assert torch.equal(found.params["slope"], plain.params["slope"])


@pytest.mark.slow
@pytest.mark.parametrize("objective", NOISY.values(), ids=NOISY)
def test_compiled_objectives_take_the_same_steps(objective: Any):
    found, plain = (
        pc.train(
            objective,
            start(),
            (X, Y),
            max_steps=20,
            compiled=compiled,
            generator=torch.Generator().manual_seed(0),
        )
        for compiled in (True, False)
    )
    assert "compiled" not in found.diagnostics
    torch.testing.assert_close(found.params["slope"], plain.params["slope"], rtol=1e-5, atol=1e-6)


def test_time_limit_ends_a_run_that_can_go_on(tmp_path: Path):
    begun = time.monotonic()
    settings = {"folder": tmp_path, "max_steps": 10**7}
    result = pc.train(squares, start(), (X, Y), max_seconds=0.3, **settings)
    assert time.monotonic() - begun < 20
    assert "time limit of 0.3 s" in result.reason
    assert 0 < result.num_steps < 10**7
    again = pc.train(squares, start(), (X, Y), max_seconds=0.2, resume=True, **settings)
    assert again.num_steps > result.num_steps


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_time_limits_are_positive(limit: float):
    with pytest.raises(ValueError, match="max_seconds"):
        Interrupts(limit)


def test_other_threads_leave_the_handlers_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with Interrupts(None).watched():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
    with Interrupts(None).watched():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


PROGRAM = textwrap.dedent(
    """
    import sys, torch
    import probcalc as pc

    x = torch.linspace(-1, 1, 60)

    def objective(params, batch, generator):
        noise = torch.randn(len(batch), generator=generator)
        return (params["slope"] * batch - 3 * batch + noise).square().mean()

    def tell(step):
        if step == 20:
            print("under way", flush=True)
        return ""

    result = pc.train(
        objective,
        {"slope": torch.zeros(())},
        x,
        batch_size=7,
        max_steps=int(sys.argv[2]),
        folder=sys.argv[1],
        resume=True,
        stop=tell,
        progress=False,
        generator=torch.Generator().manual_seed(3),
    )
    print(result.num_steps, result.params["slope"].item().hex())
    """
)
CODES = {signal.SIGTERM: EXIT_TERMINATED, signal.SIGINT: -signal.SIGINT}


def launched(folder: Path, steps: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(steps)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("number", CODES)
def test_signals_save_and_end_the_program(number: signal.Signals, tmp_path: Path):
    """And the run goes on from there to the bits of one that was left alone."""
    program = launched(tmp_path / "a", 10**8)
    assert program.stdout.readline() == "under way\n"
    program.send_signal(number)
    program.communicate(timeout=60)
    assert program.returncode == CODES[number]
    seals = sorted((tmp_path / "a").glob("checkpoint-*.json"))
    reached = int(seals[-1].stem.split("-")[1])
    assert reached >= 20
    ends = []
    for name in ("a", "b"):
        done = launched(tmp_path / name, reached + 15)
        out, error = done.communicate(timeout=120)
        assert done.returncode == 0, error
        ends.append(out.splitlines()[-1])
    assert ends[0] == ends[1]


def test_history_as_a_table(tmp_path: Path):
    settings = {"folder": tmp_path, "csv": True, "log_every": 5}
    validation = (X, Y)
    result = pc.train(
        squares, start(), (X, Y), batch_size=10, max_steps=30, validation=validation, **settings
    )
    with (tmp_path / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(result.history)
    for row, record in zip(rows, result.history, strict=True):
        for name, value in record.items():
            assert float(row[name]) == pytest.approx(value)
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [int(r["step"]) for r in rows]


def test_history_for_tensorboard(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"folder": tmp_path, "tensorboard": True, "log_every": 5}
    result = pc.train(squares, start(), (X, Y), max_steps=20, **settings)
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    tags = board.Tags()
    assert "loss" in tags["scalars"] + tags["tensors"]
    assert len(result.history) == 4


@pytest.mark.parametrize("name", ["csv", "tensorboard"])
def test_files_need_a_folder(name: str):
    with pytest.raises(ValueError, match="folder"):
        pc.train(squares, start(), (X, Y), max_steps=1, **{name: True})


def test_schedules_set_buffers_by_step():
    class Weighed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(()))
            self.register_buffer("beta", torch.zeros(()))

    seen = []

    def objective(module: Weighed, _: None, __: torch.Generator) -> Tensor:
        seen.append(module.beta.item())
        return module.beta * module.w.square()

    pc.train(objective, Weighed(), max_steps=4, schedules={"beta": lambda k: k / 2})
    assert seen == [0.0, 0.5, 1.0, 1.5]
    with pytest.raises(ValueError, match="'gamma'"):
        pc.train(objective, Weighed(), max_steps=4, schedules={"gamma": lambda k: 1.0})
