"""Paired timings: A B A B in one run, the median ratio and its spread.

Machines drift (frequency, neighbours, caches), so one contestant's time is compared only with
the others' of the same round; the ratio is the median over rounds, its spread the quartiles.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_FLOOR = 0.2  # seconds: shorter calls are repeated, and their mean is the round's time
_SEEDS_PER_ROUND = 10_000

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value; one value has no spread.

        Raises:
            ValueError: If there is no value.
        """
        if not values:
            raise ValueError("a spread needs at least one value, got none.")
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, lower, upper)


@dataclass(frozen=True)
class Clocked:
    """A result that brings its own time, such as one measured inside another process."""

    seconds: float
    result: Any


@dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    Args:
        name: As in the table.
        run: ``run(seed)`` does the work, and is what is timed.
        state: What a reader must know to compare: ``warm``, ``compiles at every call``.
        score: What its result is worth, by name of a column; not timed.
        warmups: Untimed calls before the first round.
    """

    name: str
    run: Callable[[int], Any]
    state: str = "warm"
    score: Callable[[Any], Scores] = field(default=lambda result: {})
    warmups: int = 1


@dataclass(frozen=True)
class Skipped:
    """A contestant that cannot run here, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class Case:
    """One problem; the first contestant is the one that ratios are taken to."""

    name: str
    contestants: Sequence[Contestant | Skipped]


@dataclass(frozen=True)
class Row:
    """What was measured of one contestant; sequences run over rounds.

    Args:
        name: Of the contestant.
        state: Warm or not.
        seconds: A call.
        cores: Processor time over wall time; above 1, threads were not pinned.
        scores: By column.
        ratio: Its time over the first contestant's, paired by round.
        skipped: Why it did not run.
    """

    name: str
    state: str = ""
    seconds: tuple[float, ...] = ()
    cores: tuple[float, ...] = ()
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    ratio: Spread | None = None
    skipped: str = ""


@dataclass(frozen=True)
class Timing:
    """One round of one contestant."""

    seconds: float
    cores: float
    result: Any


def measure(
    case: Case,
    *,
    rounds: int,
    synchronise: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Run every contestant once a round, in turn.

    Args:
        case: The problem.
        rounds: At least 1.
        synchronise: Waits for the device.
        clock: In seconds.
        say: Told of every round.

    Raises:
        ValueError: If no contestant can run.
    """
    present = [c for c in case.contestants if isinstance(c, Contestant)]
    if not present:
        raise ValueError(f"case {case.name!r} needs a contestant that can run, all are skipped.")
    for contestant in present:
        for i in range(contestant.warmups):
            contestant.run(i)
    taken: dict[str, list[tuple[Timing, Scores]]] = {c.name: [] for c in present}
    for i in range(rounds):
        for contestant in present:
            timing = timed(contestant, (i + 1) * _SEEDS_PER_ROUND, synchronise, clock)
            taken[contestant.name].append((timing, contestant.score(timing.result)))
        say(f"{case.name}: round {i + 1} of {rounds}")
    base = present[0].name
    return [_row(c, taken, base) for c in case.contestants]


def timed(
    contestant: Contestant,
    seed: int,
    synchronise: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Mean time of as many calls as fill a fifth of a second, each with its own seed."""
    gc.collect()
    synchronise()
    start, busy = clock(), time.process_time()
    first, num_calls = contestant.run(seed), 1
    synchronise()
    while clock() - start < _FLOOR:
        contestant.run(seed + num_calls)
        synchronise()
        num_calls += 1
    wall, busy = clock() - start, time.process_time() - busy
    if isinstance(first, Clocked):
        return Timing(first.seconds, math.nan, first.result)
    return Timing(wall / num_calls, busy / wall, first)


def paired_ratio(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """Median and quartiles of theirs/ours, round by round.

    Raises:
        ValueError: If the rounds do not pair up.
    """
    if len(theirs) != len(ours):
        raise ValueError(f"rounds must pair up, got {len(theirs)} and {len(ours)} of them.")
    return Spread.of([t / o for t, o in zip(theirs, ours, strict=True)])


def _row(
    contestant: Contestant | Skipped, taken: Mapping[str, list[tuple[Timing, Scores]]], base: str
) -> Row:
    if isinstance(contestant, Skipped):
        return Row(contestant.name, skipped=contestant.why)
    timings = [timing for timing, _ in taken[contestant.name]]
    scores = [score for _, score in taken[contestant.name]]
    seconds = tuple(t.seconds for t in timings)
    return Row(
        contestant.name,
        contestant.state,
        seconds,
        tuple(t.cores for t in timings),
        {column: tuple(score[column] for score in scores) for column in scores[0]},
        paired_ratio(seconds, [t.seconds for t, _ in taken[base]]),
    )
