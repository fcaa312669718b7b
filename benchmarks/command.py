"""The command line: run benchmarks by name and write what they measured."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from benchmarks import BENCHMARKS
from benchmarks.harness import measure
from benchmarks.record import Report, as_markdown, machine, write

RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str]) -> int:
    """Run, print and write; 0, or 2 for a command that cannot be understood."""
    options = _parser().parse_args(argv)
    if options.name == "list":
        for name, what in BENCHMARKS.items():
            print(f"{name}  {what}")
        return 0
    names = list(BENCHMARKS) if options.name == "all" else [options.name]
    if options.name not in (*BENCHMARKS, "all"):
        near = difflib.get_close_matches(options.name, BENCHMARKS) or list(BENCHMARKS)
        print(f"no benchmark {options.name!r}; known: {', '.join(near)}", file=sys.stderr)
        return 2
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; leave out `--device cuda`.", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    for name in names:
        _run(name, options)
    return 0


def _run(name: str, options: argparse.Namespace) -> None:
    rounds, device, out = options.rounds, options.device, options.out
    benchmark = import_module(f"benchmarks.{name}")
    if hasattr(benchmark, "run"):  # counts outcomes, times nothing
        for path in benchmark.run(out):
            print(f"written: {path}")
        return
    where = machine(device)  # before the work, so that the load is other people's
    synchronise = torch.cuda.synchronize if device == "cuda" else _nothing
    is_quick = options.quick and hasattr(benchmark, "quick_cases")
    measured = {
        case.name: measure(case, rounds=rounds, synchronise=synchronise, say=_say)
        for case in (benchmark.quick_cases if is_quick else benchmark.cases)(device)
    }
    found = benchmark.summary(measured) if hasattr(benchmark, "summary") else ()
    notes = (*found, *benchmark.NOTES)
    report = Report(name, BENCHMARKS[name], notes, where, rounds, measured)
    print(as_markdown(report))
    stem = name if device == "cpu" else f"{name}_{device}"
    for path in write(report, out, stem):
        print(f"written: {path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("name", help="a benchmark, `all`, or `list`")
    parser.add_argument("--rounds", type=_count, default=7, help="rounds of A B A B, default 7")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="a few small cases, where it has any")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the tables")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, got {text!r}")
    return int(text)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _nothing() -> None:
    pass
