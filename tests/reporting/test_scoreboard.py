"""The scoreboard's arithmetic against made-up posteriors and draws."""

from __future__ import annotations

import math

import pytest
import torch

from probcalc.reporting.scoreboard import (
    MEAN_WITHIN,
    REFUSED,
    Score,
    Scoreboard,
    errors_against,
    noise_floor,
)

FLOOR = (0.01, 0.01)
# name -> verdict, worst mean, worst log sd
ROWS = {
    "right": ("good", 0.01, 0.02),
    "right, corrected": ("corrected", MEAN_WITHIN, 0.05),
    "right, flagged": ("unreliable", 0.01, 0.02),
    "mean off, flagged": ("unreliable", 0.06, 0.02),
    "sd off, silent": ("good", 0.01, 0.06),
    "refused": (REFUSED, None, None),
    "not finite": ("good", math.inf, math.inf),
}


def row(name: str) -> Score:
    verdict, mean_off, std_off = ROWS[name]
    cost = {} if verdict == REFUSED else {"num_gradients": 300, "num_evals": 5_000, "seconds": 1.5}
    reasons = () if verdict in {"good", "corrected"} else (f"why of {name}",)
    return Score(name, 0, 3, verdict, reasons, mean_off, std_off, None, FLOOR, **cost)


@pytest.fixture
def board() -> Scoreboard:
    unknown = Score("no reference", 0, 3, "good", num_gradients=300, num_evals=7_000, seconds=1.5)
    return Scoreboard((*map(row, ROWS), unknown))


def test_who_is_counted_where(board: Scoreboard):
    names = lambda scores: {s.name for s in scores}  # noqa: E731
    assert names(board.known) == set(ROWS)
    assert names(board.misses) == {"mean off, flagged", "sd off, silent", "refused", "not finite"}
    assert names(board.silent) == {"sd off, silent", "not finite"}
    assert names(board.false_flags) == {"right, flagged"}
    assert not board.ok
    assert Scoreboard(tuple(s for s in board.scores if s not in board.silent)).ok


def test_sums_in_words(board: Scoreboard):
    assert board.sums() == [
        "within 0.05 sd and 0.05 log sd: 3 of 7",
        "floor of the references: 0.010 sd and 0.010 log sd, medians",
        "misses flagged: 2 of 4; silent: sd off, silent, not finite",
        "false flags: 1 of 3: right, flagged",
        "medians: 300 gradient evaluations, 5,000 density evaluations, 1.50 seconds",
    ]


def test_an_empty_board():
    assert Scoreboard(()).ok
    assert Scoreboard(()).sums()[0] == "within 0.05 sd and 0.05 log sd: 0 of 0"


def test_table_marks_what_is_off(board: Scoreboard):
    lines = {line.split("  ")[0]: line for line in board.lines()[0].split("\n")}
    assert "0.060!" in lines["mean off, flagged"]
    assert "0.060!" in lines["sd off, silent"]
    assert "!" not in lines["right"]
    assert "- refused: why of refused" in board.markdown()
    assert "why of right" not in board.markdown().replace("why of right, flagged", "")


def test_errors_are_of_the_worst_column():
    draws = torch.tensor([[-1.0, 8.0], [0.0, 10.0], [1.0, 12.0]]).double()  # sds 1 and 2
    mean, std = torch.tensor([0.01, 9.8]).double(), torch.tensor([1.2, 2.0]).double()
    errors = errors_against(draws, mean, std, ["x", "y"])
    assert errors["mean_off"] == pytest.approx(0.1)
    assert errors["std_off"] == pytest.approx(math.log(1.2))
    assert errors["worst"] == ("y", "x")


def test_nan_is_the_worst_error(generator: torch.Generator):
    draws = torch.randn(50, 2, generator=generator).double()
    nan = torch.tensor([0.0, math.nan]).double()
    errors = errors_against(draws, nan, nan, ["x", "y"])
    assert errors["mean_off"] == errors["std_off"] == math.inf


@pytest.mark.parametrize("p", [1, 7])
def test_floor_is_the_median_of_the_worst_error(generator: torch.Generator, p: int):
    """Of 4,000 sets of normal draws, half have a worst error below the floor, ± 5 binomial sds."""
    n, repeats = 400, 4_000
    draws = torch.randn(repeats, n, p, generator=generator, dtype=torch.float64)
    mean, std = noise_floor(torch.randn(100_000, p, generator=generator, dtype=torch.float64))
    scale = (100_000 / n) ** 0.5
    worst_mean = draws.mean(dim=1).abs().amax(dim=-1)
    worst_std = draws.std(dim=1).log().abs().amax(dim=-1)
    for worst, floor in ((worst_mean, mean * scale), (worst_std, std * scale)):
        share = float((worst < floor).double().mean())
        assert abs(share - 0.5) < 5.03 * 0.5 / repeats**0.5 + 0.02  # 0.02: n is not infinite
