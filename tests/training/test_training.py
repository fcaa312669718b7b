"""The loop: the updates are those of a loop written out, and it stops, averages and reports."""

from __future__ import annotations

import json
import math

import pytest
import torch
from ignite.engine import Events
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import probcalc as pc
from probcalc.optimization.schedule import (
    CosineSchedule,
    ExponentialSchedule,
    LinearSchedule,
    Schedule,
)
from probcalc.training.callbacks import EarlyStopping
from probcalc.training.loop import train
from probcalc.training.rates import find_learning_rate

X = torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(20, 3).cos()
Y = X @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 0.3
START = {"w": torch.zeros(3, dtype=torch.float64), "b": torch.zeros((), dtype=torch.float64)}


def squares(p, batch, generator):
    x, y = batch
    return (x @ p["w"] + p["b"] - y).square().mean()


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)).double()


def network_squares(module, batch, generator):
    x, y = batch
    noise = 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return (module(x + noise)[:, 0] - y).square().mean()


OPTIMIZERS = {
    "gradient descent": (pc.SGD(0.1), torch.optim.SGD, {"lr": 0.1}),
    "Nesterov": (
        pc.SGD(0.05, momentum=0.9, nesterov=True),
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    ),
    "RMSprop": (pc.RMSprop(0.01), torch.optim.RMSprop, {"lr": 0.01}),
    "Adam": (pc.Adam(0.02), torch.optim.Adam, {"lr": 0.02}),
    "AdamW": (pc.AdamW(0.02), torch.optim.AdamW, {"lr": 0.02}),
}


@pytest.mark.parametrize(("ours", "theirs", "settings"), OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_step_is_that_of_a_loop_written_out(ours, theirs, settings: dict, clip: float | None):
    leaves = {k: v.clone().requires_grad_() for k, v in START.items()}
    optimizer = theirs(leaves.values(), **settings)
    losses = []
    for k in range(50):
        optimizer.param_groups[0]["lr"] = settings["lr"] * CosineSchedule(50, warmup=5)(k)
        optimizer.zero_grad()
        loss = squares(leaves, (X, Y), None)
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(leaves.values(), clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    found = train(
        squares,
        START,
        (X, Y),
        optimizer=ours,
        max_steps=50,
        clip_norm=clip,
        schedule=CosineSchedule(50, warmup=5),
        log_every=1,
    )
    assert found.ok
    assert found.num_steps == 50
    for name, leaf in leaves.items():
        torch.testing.assert_close(found.params[name], leaf.detach(), rtol=1e-12, atol=1e-12)
    assert [r["loss"] for r in found.history] == pytest.approx(losses, rel=1e-10)
    assert float(START["w"].abs().max()) == 0  # what was given stays as it was


@pytest.mark.parametrize("size", [1, 3, 7, 20, None])
def test_an_epoch_sees_every_row_once(size: int | None):
    seen: list[list[float]] = []

    def objective(p, batch, generator):
        seen.append(batch["row"].tolist())
        return p["w"].sum() * batch["row"].mean()

    rows = {"row": torch.arange(20, dtype=torch.float64)}
    train(objective, {"w": START["w"]}, rows, batch_size=size, max_epochs=3)
    per_epoch = math.ceil(20 / (size or 20))
    assert len(seen) == 3 * per_epoch
    orders = [sum(seen[i * per_epoch : (i + 1) * per_epoch], []) for i in range(3)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert size is None or size == 20 or orders[0] != orders[1]


def test_the_seed_decides_and_nothing_else():
    found = [
        train(
            network_squares,
            network(),
            (X, Y),
            batch_size=4,
            max_steps=30,
            generator=torch.Generator().manual_seed(seed),
        ).params
        for seed in (1, 1, 2)
    ]
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])
    assert not all(torch.equal(found[0][k], found[2][k]) for k in found[0])


def test_a_loader_is_taken_as_it_is():
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)
    found = train(squares, START, loader, optimizer=pc.Adam(0.05), max_epochs=200)
    assert found.num_steps == 1000
    assert float(squares(found.params, (X, Y), None)) < 1e-4


def test_batches_of_any_size_lead_to_the_same_least_squares():
    exact = torch.linalg.lstsq(torch.cat([torch.ones(20, 1).double(), X], 1), Y).solution
    for size in (1, 5, None):
        found = train(
            squares,
            START,
            (X, Y),
            optimizer=pc.Adam(0.05),
            batch_size=size,
            max_steps=6000,
            schedule=LinearSchedule(6000),
        )
        got = torch.cat([found.params["b"][None], found.params["w"]])
        torch.testing.assert_close(got, exact, rtol=1e-3, atol=1e-3)


def test_averages_forget_at_their_rate():
    found = train(
        squares, START, (X, Y), optimizer=pc.SGD(0.1), max_steps=30, ema=0.9, log_every=1
    )
    average, params = {k: v.clone() for k, v in START.items()}, START
    for _ in range(30):
        params = train(squares, params, (X, Y), optimizer=pc.SGD(0.1), max_steps=1).params
        average = {k: 0.9 * average[k] + 0.1 * params[k] for k in average}
    for name, value in average.items():
        torch.testing.assert_close(found.averaged[name], value, rtol=1e-12, atol=1e-13)


def test_early_stopping_keeps_the_best():
    """A validation loss that turns: |w| grows without end, and the best is at one."""

    def objective(p, batch, generator):
        return (p["w"] - batch).square().mean()

    watched = torch.full((5,), 1.0).double()
    found = train(
        objective,
        {"w": torch.zeros(()).double()},
        torch.full((4,), 10.0).double(),
        optimizer=pc.SGD(0.02),
        validation=watched,
        max_epochs=500,
        early_stopping=EarlyStopping(patience=4),
    )
    assert found.reason == "no better loss for 4 epochs"
    losses = [r["validation"] for r in found.history if "validation" in r]
    assert len(losses) == losses.index(min(losses)) + 1 + 4
    assert float((found.params["w"] - 1).square()) == pytest.approx(min(losses), rel=1e-12)


def test_validation_draws_the_same_noise_and_leaves_the_module_be():
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double()
    modes: list[bool] = []

    def objective(m, batch, generator):
        modes.append(m.training)
        return network_squares(m, batch, generator)

    found = train(
        objective,
        module,
        (X, Y),
        optimizer=pc.SGD(1e-300),
        max_epochs=3,
        validation=(X, Y),
    )
    losses = [r["validation"] for r in found.history if "validation" in r]
    assert found.module is module
    assert losses[0] == losses[1] == losses[2]
    assert modes == [True, False] * 3


SCHEDULES = {
    "constant": (Schedule(), [1.0, 1.0, 1.0]),
    "warm-up": (Schedule(warmup=4), [0.25, 1.0, 1.0]),
    "cosine": (CosineSchedule(100, warmup=50, final=0.1), [1 / 50, 0.1 + 0.45, 0.1]),
    "linear": (LinearSchedule(100, final=0.5), [1.0, 0.625, 0.5]),
    "exponential": (ExponentialSchedule(100, final=1e-4), [1.0, 1e-3, 1e-4]),
}


@pytest.mark.parametrize(("schedule", "values"), SCHEDULES.values(), ids=SCHEDULES)
def test_schedules(schedule, values: list[float]):
    assert [schedule(k) for k in (0, 75, 200)] == pytest.approx(values)


def test_the_rate_found_trains(generator: torch.Generator):
    start = network()
    before = [p.clone() for p in start.parameters()]
    found = find_learning_rate(network_squares, start, (X, Y), generator=generator)
    assert all(torch.equal(a, b) for a, b in zip(before, start.parameters(), strict=True))
    assert 1e-4 < found.suggestion < 1.0
    trained = train(
        network_squares, start, (X, Y), optimizer=pc.Adam(found.suggestion), max_steps=200
    )
    assert trained.history[-1]["loss"] < 0.2 * trained.history[0]["loss"]


def breaks_at(step: int, how: str):
    calls = [0]

    def objective(p, batch, generator):
        calls[0] += 1
        value = squares(p, batch, generator)
        if calls[0] < step:
            return value
        if how == "loss":
            return value * math.nan
        return value + (p["w"] - p["w"].detach()).abs().sqrt().sum()  # 0, with a slope of ∞·0

    return objective


@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize("every", [1, 10])
def test_a_number_that_is_none_stops_the_run_and_is_named(how: str, every: int, tmp_path):
    found = train(
        breaks_at(17, how),
        START,
        (X, Y),
        optimizer=pc.Adam(0.1),
        max_steps=40,
        check_every=every,
        folder=tmp_path,
    )
    good = 16 if every == 1 else 10
    assert found.status == pc.Status.NON_FINITE
    assert found.num_steps == good
    report = json.loads((tmp_path / "nan_report.json").read_text())
    assert report == found.diagnostics["nan"]
    assert report["step"] == (17 if every == 1 else 20)
    assert ("loss" if how == "loss" else "gradient of w") in report["tensors"]
    same = train(squares, START, (X, Y), optimizer=pc.Adam(0.1), max_steps=good)
    assert all(torch.equal(found.params[k], same.params[k]) for k in START)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_the_module_that_broke_is_named():
    class Odd(nn.Module):
        def forward(self, x):
            return (x - x).log() * 0

    module = nn.Sequential(nn.Linear(3, 2), Odd(), nn.BatchNorm1d(2), nn.Linear(2, 1)).double()
    found = train(network_squares, module, (X, Y), max_steps=5)
    assert found.diagnostics["nan"]["module"] == "1"
    assert all(bool(b.double().isfinite().all()) for b in module.buffers())  # of batch norm


def test_handlers_of_ignite_see_every_step_and_change_none():
    seen: list[tuple[int, int, float]] = []

    def attach(engine):
        @engine.on(Events.ITERATION_COMPLETED)
        def look(engine):
            seen.append((engine.state.iteration, engine.state.epoch, float(engine.state.output)))
            if engine.state.iteration == 25:
                engine.terminate()

    settings = {"optimizer": pc.Adam(0.05), "batch_size": 4, "log_every": 1}
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    watched = train(
        squares,
        START,
        (X, Y),
        max_steps=40,
        callbacks=[attach],
        generator=generators[0],
        **settings,
    )
    alone = train(squares, START, (X, Y), max_steps=25, generator=generators[1], **settings)
    assert watched.num_steps == 25
    assert [s[0] for s in seen] == list(range(1, 26))
    assert [s[1] for s in seen] == [1 + i // 5 for i in range(25)]
    assert [s[2] for s in seen] == [r["loss"] for r in alone.history]
    assert all(torch.equal(watched.params[k], alone.params[k]) for k in START)
    assert watched.reason == "stopped by a callback after 25 steps"


def test_history_is_json_lines_and_the_bar_is_for_terminals(tmp_path, capfd):
    found = train(
        lambda p, b, g: (squares(p, b, g), {"size": p["w"].norm()}),
        START,
        (X, Y),
        max_steps=100,
        log_every=20,
        folder=tmp_path,
    )
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert lines == found.history
    assert [line["step"] for line in lines] == [20, 40, 60, 80, 100]
    assert {"loss", "size", "lr", "grad_norm", "seconds", "epoch"} <= lines[0].keys()
    out = capfd.readouterr()
    assert out.out == out.err == ""


BAD = {
    "no end": (lambda: train(squares, START, (X, Y)), "no end by itself"),
    "vector loss": (
        lambda: train(lambda p, b, g: p["w"], START, (X, Y), max_steps=1),
        r"scalar loss, got shape \(3,\)",
    ),
    "unused": (
        lambda: train(lambda p, b, g: p["w"].sum(), START, (X, Y), max_steps=1),
        "does not depend on b",
    ),
    "detached": (
        lambda: train(lambda p, b, g: p["w"].sum() + p["b"].detach(), START, (X, Y), max_steps=1),
        "does not depend on b",
    ),
    "start": (
        lambda: train(squares, {**START, "b": torch.tensor(math.nan)}, (X, Y), max_steps=1),
        "finite numbers, but b do not",
    ),
    "rows differ": (
        lambda: train(squares, START, (X, Y[:-1]), max_steps=1),
        "same number of rows",
    ),
    "empty": (lambda: train(squares, START, (X[:0], Y[:0]), max_steps=1), "no rows"),
    "data": (
        lambda: train(
            squares, START, (X.index_fill(0, torch.tensor(2), math.nan), Y), max_steps=1
        ),
        "row 2, column 0",
    ),
    "batch size": (
        lambda: train(squares, START, (X, Y), batch_size=0, max_steps=1),
        "at least 1, got 0",
    ),
    "no files": (lambda: train(squares, START, (X, Y), max_steps=1, resume=True), "`folder`"),
    "nothing": (lambda: train(squares, {}, (X, Y), max_steps=1), "no parameter"),
    "decay": (lambda: train(squares, START, (X, Y), max_steps=1, ema=1.0), "between 0 and 1"),
}


@pytest.mark.parametrize(("call", "text"), BAD.values(), ids=BAD)
def test_mistakes_are_named(call, text: str):
    with pytest.raises(ValueError, match=text):
        call()
