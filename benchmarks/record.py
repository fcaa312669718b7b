"""What was measured, where and with which versions: as JSON and as a Markdown table."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.harness import Row, Spread

# one thread for everyone; XLA sizes a pool of its own by NPROC
PINNED = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NPROC": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
_PACKAGES = (
    "probcalc",
    "torch",
    "pyro-ppl",
    "numpyro",
    "jax",
    "blackjax",
    "pymc",
    "numpy",
    "scipy",
    "scikit-learn",
)
_DIGITS = 3


@dataclass(frozen=True)
class Report:
    """One benchmark's rows by case, with all that is needed to judge them."""

    name: str
    what: str
    notes: Sequence[str]
    machine: Mapping[str, object]
    rounds: int
    cases: Mapping[str, Sequence[Row]]


def machine(device: str) -> dict[str, object]:
    """Date, processor, load, device, pinned threads and versions."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "device": device,
        "threads": {name: os.environ.get(name, "not set") for name in PINNED},
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _PACKAGES},
    }


def write(report: Report, folder: Path, stem: str) -> tuple[Path, Path]:
    """Write ``stem.json`` and ``stem.md`` and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers, table = folder / f"{stem}.json", folder / f"{stem}.md"
    numbers.write_text(json.dumps(as_json(report), indent=1) + "\n", encoding="utf-8")
    table.write_text(as_markdown(report), encoding="utf-8")
    return numbers, table


def as_json(report: Report) -> dict[str, object]:
    """Every round's numbers, as plain values; what is not finite becomes null."""
    return _plain(asdict(report))


def as_markdown(report: Report) -> str:
    """Title, machine, one table a case, notes."""
    parts = [f"# {report.name}: {report.what}", _machine_line(report)]
    for case, rows in report.cases.items():
        parts += [f"## {case}", _table(rows)]
    parts.append("\n".join(f"- {note}" for note in report.notes))
    return "\n\n".join(parts) + "\n"


def in_seconds(spread: Spread) -> str:
    """Median with quartiles in s, ms or µs.

    >>> in_seconds(Spread(0.0123, 0.012, 0.0131))
    '12.3 ms (12.0–13.1)'
    """
    units = (("s", 1.0), ("ms", 1e3), ("µs", 1e6))
    unit, factor = next((u for u in units if spread.median * u[1] >= 1), units[-1])
    scaled = Spread(*(factor * value for value in asdict(spread).values()))
    return f"{_short(scaled.median)} {unit} ({_short(scaled.lower)}–{_short(scaled.upper)})"


def _table(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row.scores))
    header = ["", "state", "seconds", "time / first row", *columns, "cores"]
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
    lines += [_cells(row, columns) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Row, columns: Sequence[str]) -> list[str]:
    if row.skipped:
        return [row.name, f"skipped: {row.skipped}", *[""] * (len(columns) + 3)]
    assert row.ratio is not None
    ratio = f"{_short(row.ratio.median)} ({_short(row.ratio.lower)}–{_short(row.ratio.upper)})"
    scores = [_median(row.scores.get(column, ())) for column in columns]
    seconds = in_seconds(Spread.of(row.seconds))
    return [row.name, row.state, seconds, ratio, *scores, _median(row.cores)]


def _machine_line(report: Report) -> str:
    m = report.machine
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
    return (
        f"{m['date']} · {m['cpu']}, {m['cores']} cores, load {m['load_before']:.2f} at the start "
        f"· device {m['device']} · one thread each · Python {m['python']}, {versions} · "
        f"{report.rounds} rounds, every contestant once a round in turn; medians over rounds, "
        "quartiles in brackets, ratios paired by round"
    )


def _median(values: Sequence[float]) -> str:
    if not values or any(math.isnan(value) for value in values):
        return ""
    return _short(statistics.median(values))


def _short(value: float) -> str:
    """Three significant digits, thousands grouped, no exponent above 0.001.

    >>> [_short(v) for v in (12.0, 0.01234, 123456.0, 2000)]
    ['12.0', '0.0123', '123,456', '2,000']
    """
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    decimals = max(0, _DIGITS - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
