"""The harness pairs what it compares; its statistics are the textbook's. No timing is tested."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks import BENCHMARKS
from benchmarks.command import main
from benchmarks.harness import (
    Case,
    Clocked,
    Contestant,
    Skipped,
    Spread,
    measure,
    paired_ratio,
    timed,
)
from benchmarks.record import Report, as_json, as_markdown, in_seconds, write

SAMPLES = {
    "one": [3.0],
    "two": [1.0, 2.0],
    "ties": [2.0, 2.0, 2.0, 5.0],
    "odd": [9.0, 1.0, 4.0, 16.0, 25.0],
    "even": [0.3, 0.1, 0.2, 0.9, 0.8, 0.4],
}


class FakeClock:
    """Moves on only where it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def work(self, seconds):
        def run(seed):
            self.now += seconds(seed) if callable(seconds) else seconds
            return seed

        return run


def nothing():
    pass


@pytest.mark.parametrize("values", SAMPLES.values(), ids=SAMPLES.keys())
def test_spread_is_the_quartiles(values):
    spread = Spread.of(values)
    expected = np.quantile(values, [0.25, 0.5, 0.75])
    np.testing.assert_allclose([spread.lower, spread.median, spread.upper], expected)
    assert Spread.of(values[::-1]) == spread


def test_a_spread_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one value"):
        Spread.of([])


def test_pairing_cancels_what_both_suffer():
    """A machine that slows down from round to round changes no ratio."""
    drift = [1.0, 3.0, 10.0, 2.0]
    ratio = paired_ratio([5.0 * d for d in drift], [2.0 * d for d in drift])
    assert ratio == Spread(2.5, 2.5, 2.5)
    assert paired_ratio(drift, drift) == Spread(1.0, 1.0, 1.0)


def test_unpaired_rounds_are_refused():
    with pytest.raises(ValueError, match="got 2 and 1 of them"):
        paired_ratio([1.0, 2.0], [1.0])


def test_rounds_interleave_after_the_warm_ups():
    clock, order = FakeClock(), []

    def run_as(name):
        def run(seed):
            order.append(name)
            clock.now += 1.0

        return run

    case = Case("c", [Contestant(n, run_as(n), warmups=w) for n, w in (("a", 2), ("b", 0))])
    rows = measure(case, rounds=3, synchronise=nothing, clock=clock)
    assert "".join(order) == "aa" + "ab" * 3
    assert [row.seconds for row in rows] == [(1.0,) * 3] * 2


def test_ratios_are_to_the_first_that_ran():
    clock = FakeClock()
    case = Case(
        "c",
        [
            Skipped("absent", "not installed"),
            Contestant("base", clock.work(2.0)),
            Contestant("other", clock.work(6.0)),
        ],
    )
    absent, base, other = measure(case, rounds=2, synchronise=nothing, clock=clock)
    assert (absent.skipped, absent.seconds, absent.ratio) == ("not installed", (), None)
    assert base.ratio == Spread(1.0, 1.0, 1.0)
    assert other.ratio == Spread(3.0, 3.0, 3.0)


def test_a_case_without_contestants_is_refused():
    case = Case("c", [Skipped("absent", "not installed")])
    with pytest.raises(ValueError, match="all are skipped"):
        measure(case, rounds=1, synchronise=nothing)


def test_short_calls_are_repeated_and_averaged():
    """With seeds 7, 8, ... and a tenth of a second each, two calls fill the fifth."""
    clock = FakeClock()
    timing = timed(Contestant("short", clock.work(0.101)), 7, nothing, clock)
    assert timing.seconds == pytest.approx(0.101)
    assert clock.now == pytest.approx(0.202)
    assert timing.result == 7


def test_every_call_has_its_own_seed():
    clock, seeds = FakeClock(), []
    run = clock.work(lambda seed: seeds.append(seed) or 0.03)
    measure(
        Case("c", [Contestant("a", run, warmups=0)]), rounds=3, synchronise=nothing, clock=clock
    )
    assert len(seeds) == len(set(seeds)) == 3 * 7


def test_the_device_is_waited_for_inside_the_clock():
    clock = FakeClock()

    def synchronise():
        clock.now += 1.0

    timing = timed(Contestant("a", clock.work(2.0)), 0, synchronise, clock)
    assert timing.seconds == 3.0


def test_a_result_may_bring_its_own_time():
    timing = timed(Contestant("cold", lambda seed: Clocked(42.0, "answer")), 0, nothing)
    assert (timing.seconds, timing.result) == (42.0, "answer")
    assert math.isnan(timing.cores)


@pytest.fixture
def report():
    clock = FakeClock()
    scored = Contestant("a", clock.work(2.0), score=lambda seed: {"seed": seed, "bad": math.nan})
    case = Case("case", [scored, Contestant("b", clock.work(0.5)), Skipped("c", "absent")])
    rows = measure(case, rounds=2, synchronise=nothing, clock=clock)
    machine = {"date": "d", "cpu": "p", "cores": 2, "load_before": 0.0, "device": "cpu"}
    machine |= {"python": "3", "versions": {"torch": "2"}}
    return Report("name", "what", ["note"], machine, 2, {"case": rows})


def test_json_keeps_every_round_and_is_strict(report, tmp_path):
    numbers, table = write(report, tmp_path / "new", "name")
    strict = json.loads(numbers.read_text(), parse_constant=pytest.fail)
    assert strict == json.loads(json.dumps(as_json(report)))
    assert strict["cases"]["case"][0]["seconds"] == [2.0, 2.0]
    assert strict["cases"]["case"][0]["scores"] == {"seed": [10_000, 20_000], "bad": [None, None]}
    assert table.read_text() == as_markdown(report)


def test_markdown_has_one_width(report):
    lines = [line for line in as_markdown(report).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert "skipped: absent" in lines[-1]
    assert "0.250 (0.250–0.250)" in lines[-2]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (12.0, "12.0 s (12.0–12.0)"),
        (0.5, "500 ms (500–500)"),
        (2e-5, "20.0 µs (20.0–20.0)"),
        (1e-9, "0.00100 µs (0.00100–0.00100)"),
    ],
)
def test_times_have_a_fitting_unit(seconds, text):
    assert in_seconds(Spread(seconds, seconds, seconds)) == text


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_a_module(name):
    assert find_spec(f"benchmarks.{name}") is not None


def test_list_names_them_all(capsys):
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in BENCHMARKS)


def test_an_unknown_name_is_answered_with_the_nearest(capsys):
    assert main(["vi_smal"]) == 2
    assert "known: vi_small" in capsys.readouterr().err


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_rounds_must_be_a_count(rounds, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["vi_small", "--rounds", rounds])
    assert "whole number from 1 up" in capsys.readouterr().err
