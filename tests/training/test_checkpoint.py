"""Runs that stop and go on: bit for bit, after any end, from whole files of their own only."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import probcalc as pc
from probcalc.training.callbacks import EarlyStopping
from probcalc.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from probcalc.training.loop import train

X = torch.linspace(-1, 1, 66, dtype=torch.float64).reshape(22, 3).sin()
Y = X.sum(dim=-1).square()


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1)
        ).double()

    def forward(self, x):
        return self.layers(x)[..., 0]


def objective(module, batch, generator):
    """Noise from the run's generator and from everybody's: torch's (dropout) and NumPy's.

    Python's is left out: the checks of types that tests run under draw from it.
    """
    x, y = batch
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    scale = 0.1 + 0.01 * float(np.random.rand())
    loss = (module(x + scale * noise) - y).square().mean()
    return loss, {"size": module.layers[0].weight.norm()}


def loader():
    return DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)


# name -> (data, settings); 22 rows in batches of 4 make 6 steps an epoch, the last one of 2
RUNS = {
    "plain": ((X, Y), {"batch_size": 4}),
    "all rows": ((X, Y), {}),
    "loader": (loader, {}),
    "all of it": (
        (X, Y),
        {
            "batch_size": 4,
            "ema": 0.9,
            "clip_norm": 0.3,
            "schedule": pc.CosineSchedule(40, warmup=5),
            "early_stopping": EarlyStopping(patience=100),
            "validation": (X, Y),
        },
    ),
    "watched": ((X, Y), {"batch_size": 4, "early_stopping": EarlyStopping(patience=100)}),
}
OPTIMIZERS = {
    "SGD": pc.SGD(0.05),
    "momentum": pc.SGD(0.02, momentum=0.9),
    "RMSprop": pc.RMSprop(0.01),
    "Adam": pc.Adam(0.02, amsgrad=True),
    "AdamW": pc.AdamW(0.02),
}


def run(data, settings: dict, optimizer, steps: int, **more):
    for seeded in (torch.manual_seed, np.random.seed, random.seed):
        seeded(11)
    module = Network()
    return train(
        objective,
        module,
        data() if callable(data) else data,
        optimizer=optimizer,
        max_steps=steps,
        log_every=7,
        **settings,
        **more,
    )


def same(a, b) -> None:
    """Every number of two results, but the seconds."""
    assert a.num_steps == b.num_steps
    for x, y in ((a.params, b.params), (a.averaged, b.averaged)):
        assert (x is None) == (y is None)
        assert x is None or all(torch.equal(x[k], y[k]) for k in x | y)
    for k, t in a.module.state_dict().items():
        assert torch.equal(t, b.module.state_dict()[k]), k
    strip = [[{**r, "seconds": 0} for r in x.history] for x in (a, b)]
    assert strip[0] == strip[1]


@pytest.mark.parametrize(("data", "settings"), RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("first", [6, 17])
def test_two_halves_are_the_whole(data, settings, optimizer, first: int, tmp_path):
    """`first` ends an epoch, or stands in the midst of one and of a window of the history."""
    whole = run(data, settings, optimizer, 34)
    run(data, settings, optimizer, first, folder=tmp_path)
    again = run(data, settings, optimizer, 34, folder=tmp_path, resume=True)
    same(whole, again)


SCRIPT = """
import sys, torch, probcalc as pc
sys.path.insert(0, {tests!r})
sys.path.insert(0, {here!r})
import test_checkpoint as t
t.run((t.X, t.Y), {{"batch_size": 4, "ema": 0.9}}, pc.Adam(0.02), 100_000,
      folder={folder!r}, save_every=1)
"""


def test_a_killed_run_goes_on_to_the_bit(tmp_path):
    """kill −9 wherever it happens to be, most likely within a save: one follows every step."""
    here = os.path.dirname(os.path.abspath(__file__))
    code = textwrap.dedent(SCRIPT).format(
        tests=os.path.dirname(here), here=here, folder=str(tmp_path)
    )
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code])
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("checkpoint-*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
            assert process.poll() is None
        time.sleep(random.Random().uniform(0.2, 0.6))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, record = load_checkpoint(tmp_path)
    end = record["step"] + 20
    settings = {"batch_size": 4, "ema": 0.9}
    again = run((X, Y), settings, pc.Adam(0.02), end, folder=tmp_path, resume=True)
    whole = run((X, Y), settings, pc.Adam(0.02), end)
    same(whole, again)
    assert len(list(tmp_path.glob("checkpoint-*.json"))) == 2
    assert not list(tmp_path.glob("*.unfinished"))


def saved(folder) -> tuple:
    run((X, Y), {"batch_size": 4}, pc.Adam(0.02), 6, folder=folder, save_every=3)
    return tuple(sorted(folder.glob("checkpoint-*.*")))


def test_every_flipped_byte_is_seen(tmp_path):
    *_, seal, tensors = saved(tmp_path)
    picked = random.Random(1)
    for file in (seal, tensors):
        content = file.read_bytes()
        for _ in range(60):
            i, bit = picked.randrange(len(content)), 1 << picked.randrange(8)
            file.write_bytes(content[:i] + bytes([content[i] ^ bit]) + content[i + 1 :])
            with pytest.raises(CheckpointError):
                load_checkpoint(file)
        for length in (0, 1, 8, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:length])
            with pytest.raises(CheckpointError):
                load_checkpoint(file)
        file.write_bytes(content)
    load_checkpoint(seal)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_pickle_is_not_opened(suffix: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path)
    for file in tmp_path.glob(f"checkpoint-*{suffix}"):
        file.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="looks like a pickle"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_the_checkpoint_before_takes_over(tmp_path):
    *_, tensors = saved(tmp_path)
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"cut short or altered.*000000003.json is used"):
        again = run((X, Y), {"batch_size": 4}, pc.Adam(0.02), 12, folder=tmp_path, resume=True)
    whole = run((X, Y), {"batch_size": 4}, pc.Adam(0.02), 12)
    assert all(torch.equal(whole.params[k], again.params[k]) for k in whole.params)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    files = saved(tmp_path)
    content = [file.read_bytes() for file in files]

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left.*resume=True"):
        run((X, Y), {"batch_size": 4}, pc.Adam(0.02), 12, folder=tmp_path, resume=True)
    assert sorted(tmp_path.glob("checkpoint-*")) == list(files)
    assert [file.read_bytes() for file in files] == content


def other(**more):
    def start(folder):
        module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)).double()
        arguments = {"optimizer": pc.Adam(0.02), "batch_size": 4} | more
        train(
            lambda m, b, g: m(b[0]).mean(), module, (X, Y), max_steps=9, folder=folder,
            resume=True, **arguments,
        )  # fmt: skip

    return start


def resumed(data=(X, Y), optimizer=OPTIMIZERS["Adam"], **settings):
    def start(folder):
        settings.setdefault("batch_size", 4)
        run(data, settings, optimizer, 9, folder=folder, resume=True)

    return start


FOREIGN = {
    "model": (other(), r"another model: 0.bias is missing there and \(4,\) of float64 here"),
    "optimizer": (resumed(optimizer=pc.SGD(0.1)), "a run with Adam, not with SGD"),
    "batch size": (resumed(batch_size=5), "batches of 4 of 22 rows.*5 of 22"),
    "data": (resumed(data=(X[1:], Y[1:])), "4 of 22 rows.*4 of 21"),
    "average": (resumed(ema=0.9), "without `ema`"),
}


@pytest.mark.parametrize(("start", "text"), FOREIGN.values(), ids=FOREIGN)
def test_another_run_is_refused(start, text: str, tmp_path):
    saved(tmp_path)
    with pytest.raises(ValueError, match=text):
        start(tmp_path)


def test_a_folder_in_use_is_not_written_over(tmp_path):
    saved(tmp_path)
    with pytest.raises(ValueError, match="resume=True"):
        run((X, Y), {}, pc.Adam(0.02), 9, folder=tmp_path)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_in_another_order_of_memory_go_on(name: str, tmp_path):
    """A transposed parameter's moments are read by fused optimisers as they lie in memory."""

    def turned(steps: int, **more):
        params = {"w": torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2).T}
        module = nn.ParameterDict({k: nn.Parameter(t) for k, t in params.items()})
        assert not module["w"].is_contiguous()
        weights = torch.arange(1.0, 7.0, dtype=torch.float64).reshape(2, 3)
        loss = lambda m, _, g: (weights * (m["w"] - weights).square()).sum()  # noqa: E731
        return train(loss, module, optimizer=OPTIMIZERS[name], max_steps=steps, **more)

    turned(4, folder=tmp_path)
    again = turned(9, folder=tmp_path, resume=True)
    assert torch.equal(turned(9).params["w"], again.params["w"])


def test_numbers_of_all_kinds_come_back(tmp_path):
    tensors = {
        "half": torch.randn(3).half(),
        "brain": torch.randn(2, 2).bfloat16(),
        "long": torch.tensor(2**60),
        "mask": torch.tensor([True, False]),
        "turned": torch.arange(6.0).reshape(2, 3).T,
    }
    path = save_checkpoint(tmp_path, 1, tensors, {"a": [1, 2.5, None]})
    found, record = load_checkpoint(path)
    assert record == {"a": [1, 2.5, None]}
    assert all(torch.equal(found[k], t) and found[k].dtype == t.dtype for k, t in tensors.items())
    json.loads(path.with_suffix(".json").read_text())
