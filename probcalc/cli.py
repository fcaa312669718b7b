"""`probcalc list | run NAME | report RUN`: experiments from the command line.

Exit codes: 0 good, 1 bad input, 2 usage, 3 finished but flagged, 130 interrupted.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from tqdm import tqdm

from probcalc import __version__
from probcalc._check import unknown_name
from probcalc.experiment import Experiment, UnknownExperiment, claims, load
from probcalc.inference.posterior import Posterior
from probcalc.reference import long_run
from probcalc.reporting.comparison import (
    Reference,
    compare,
    comparison_lines,
    reference_block,
)
from probcalc.reporting.report import write_report
from probcalc.reporting.run_folder import (
    RunRecord,
    new_run_folder,
    write_run,
    write_scoreboard,
)
from probcalc.status import EstimateWarning

GOOD, BAD_INPUT, USAGE, FLAGGED, INTERRUPTED = 0, 1, 2, 3, 130
_USAGE = """usage: probcalc list
       probcalc run NAME [--option value ...]   (probcalc run NAME --help)
       probcalc report RUN
       probcalc --version"""


@dataclass(frozen=True)
class Settings:
    """Options of every run.

    Args:
        seed: From which every random number comes.
        device: Where to compute, such as cpu or cuda:0.
        dtype: Of the model's data; the fit computes in float64 whatever it is.
        out: Folder of the run; default runs/NAME-1, runs/NAME-2 and so on.
        restarts: Random restarts of the fit.
        max_evals: Most evaluations of the log density for weighing.
        reference: Compare with the given reference, or make one by NUTS and compare with that.
    """

    seed: int = 0
    device: str = "cpu"
    dtype: Literal["float64", "float32"] = "float64"
    out: Path | None = None
    restarts: int | None = None
    max_evals: int | None = None
    reference: Literal["given", "nuts"] = "given"

    def __post_init__(self) -> None:
        """Check what no later step does.

        Raises:
            ValueError: If a count is below 1.
        """
        if self.max_evals is not None and self.max_evals < 1:
            raise ValueError(f"`--max-evals` must be at least 1, got {self.max_evals}.")


def main(args: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = sys.argv[1:] if args is None else args
    try:
        return _dispatch(args)
    except (ValueError, ArithmeticError, OSError, ImportError) as error:
        print(f"probcalc: {error}", file=sys.stderr)
        return USAGE if isinstance(error, (UnknownExperiment, UsageError)) else BAD_INPUT
    except KeyboardInterrupt:
        print("probcalc: interrupted", file=sys.stderr)
        return INTERRUPTED


class UsageError(ValueError):
    """The command line cannot be read."""


def _dispatch(args: list[str]) -> int:
    if not args:
        raise UsageError(f"a command is needed\n{_USAGE}")
    command, rest = args[0], args[1:]
    if command in ("-h", "--help"):
        print(_USAGE)
        return GOOD
    if command == "--version":
        return _version()
    if command not in _COMMANDS:
        raise UsageError(unknown_name("command", command, _COMMANDS))
    return _COMMANDS[command](rest)


def _version() -> int:
    cuda = torch.version.cuda or "none"
    print(f"probcalc {__version__}, torch {torch.__version__}, CUDA {cuda}")
    return GOOD


def _list(args: list[str]) -> int:
    if args:
        raise UsageError(f"`probcalc list` takes no argument, got {args[0]!r}")
    known = claims()
    width = max(map(len, known), default=0)
    for name, claim in known.items():
        print(f"{name.ljust(width)}  {claim}")
    return GOOD


def _report(args: list[str]) -> int:
    if len(args) != 1:
        raise UsageError(f"`probcalc report` takes one run folder, got {len(args)} arguments")
    print(write_report(Path(args[0])))
    return GOOD


def _run(args: list[str]) -> int:
    if not args:
        raise UsageError(f"`probcalc run` needs an experiment; known: {', '.join(claims())}")
    if args[0] in ("-h", "--help"):
        print(_USAGE)
        return GOOD
    experiment = load(args[0])
    config, settings = _parsed(experiment, args[1:])
    device = _usable_device(settings.device)
    if experiment.is_suite:
        return _run_suite(experiment, config, settings, device)
    with new_run_folder(experiment.name, settings.out) as folder:
        started = time.perf_counter()
        posterior = _fitted(experiment, config, settings, device)
        seconds = time.perf_counter() - started
        reference = _reference(experiment, config, settings, folder)
        record = RunRecord(experiment.name, experiment.claim, experiment.pair, config, settings)
        write_run(folder, record, posterior, reference, seconds)
        page = write_report(folder)
    print("\n".join(_lines(experiment, posterior, reference, seconds, page)))
    return GOOD if posterior.ok and _matches(posterior, reference) else FLAGGED


def _run_suite(
    experiment: Experiment, config: Any, settings: Settings, device: torch.device
) -> int:
    if settings.reference != "given":
        raise ValueError("`--reference nuts` is for one posterior; this one brings references.")
    with new_run_folder(experiment.name, settings.out) as folder:
        started = time.perf_counter()
        board = _fitted(experiment, config, settings, device)
        seconds = time.perf_counter() - started
        record = RunRecord(experiment.name, experiment.claim, ("", ""), config, settings)
        table = write_scoreboard(folder, record, board, seconds)
    first = experiment.claim.splitlines()[0]
    print("\n".join([f"{experiment.name}: {first}", "", *board.lines(), "", f"report  {table}"]))
    return GOOD if board.ok else FLAGGED


_COMMANDS: dict[str, Callable[[list[str]], int]] = {"list": _list, "run": _run, "report": _report}


def _parsed(experiment: Experiment, args: list[str]) -> tuple[Any, Settings]:
    flat = tyro.conf.arg(name="")
    both = tuple[Annotated[experiment.config_class, flat], Annotated[Settings, flat]]
    (config, settings), unknown = tyro.cli(
        both,
        prog=f"probcalc run {experiment.name}",
        description=experiment.claim,
        args=args,
        return_unknown_args=True,
    )
    if unknown:
        options = [f"--{f}".replace("_", "-") for f in (*vars(config), *vars(settings))]
        raise UsageError(unknown_name("option", unknown[0].partition("=")[0], options))
    return config, settings


def _usable_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        float(torch.zeros((), device=device))  # also refuses devices without numbers
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"`--device {name}` cannot be used here: {reason}") from error
    return device


def _fitted(experiment: Experiment, config: Any, settings: Settings, device: torch.device) -> Any:
    generator = torch.Generator().manual_seed(settings.seed)
    with _progress() as report, warnings.catch_warnings():
        warnings.simplefilter("ignore", EstimateWarning)  # the summary says it
        return experiment.run(
            config,
            device=device,
            dtype=getattr(torch, settings.dtype),
            restarts=settings.restarts,
            max_evals=settings.max_evals,
            generator=generator,
            progress=report,
        )


def _reference(
    experiment: Experiment, config: Any, settings: Settings, folder: Path
) -> Reference | None:
    if settings.reference == "given":
        return experiment.reference(config)
    target = experiment.target(config).to(settings.device)
    with _progress() as report:
        reference = long_run(target, seed=settings.seed, progress=report)
    block = reference_block(reference)
    (folder / "reference.txt").write_text(block + "\n", encoding="utf-8")
    print(block + "\n")
    return reference


@contextmanager
def _progress() -> Iterator[Callable[[str, int], None]]:
    """A bar on a terminal, nothing in a pipe.

    Yields:
        What `fit` calls with a stage and the evaluations so far.
    """
    bar = tqdm(unit=" evaluations", leave=False, disable=not sys.stderr.isatty())

    def report(stage: str, num_evals: int) -> None:
        bar.set_description(stage, refresh=False)
        bar.update(num_evals - bar.n)

    with bar:
        yield report


def _matches(posterior: Posterior, reference: Reference | None) -> bool:
    return reference is None or all(c.ok for c in compare(posterior, reference))


def _lines(
    experiment: Experiment,
    posterior: Posterior,
    reference: Reference | None,
    seconds: float,
    page: Path,
) -> list[str]:
    against = ["no reference: the options are not those that it was made for"]
    if reference is not None:
        against = comparison_lines(compare(posterior, reference), reference.source)
    return [
        f"{experiment.name}: {experiment.claim.splitlines()[0]}",
        "",
        posterior.summary(),
        f"seconds       {seconds:.2f}",
        "",
        *against,
        "",
        f"report        {page}",
    ]
