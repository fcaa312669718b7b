"""The folder that a run leaves behind: what was asked, what came out, and with what.

`config.toml` holds the resolved options, `result.json` every number with its error bar,
`posterior.safetensors` the posterior. The JSON is strict: a number that is not finite is written
as the string "inf", "-inf" or "nan", which `float` reads back.
"""

from __future__ import annotations

import json
import math
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyro
import tomli_w
import torch

from probcalc import __version__
from probcalc.inference.posterior import Posterior
from probcalc.integration.tails import khat_limit
from probcalc.reporting.comparison import Reference, compare
from probcalc.reporting.scoreboard import Scoreboard
from probcalc.reporting.study import Study
from probcalc.reporting.style import PAPER
from probcalc.result import Estimate

CONFIG, RESULT, POSTERIOR, PAGE, TABLE = (
    "config.toml",
    "result.json",
    "posterior.safetensors",
    "report.html",
    "scoreboard.md",
)
_DPI = 160
_LEVELS = {"q05": 0.05, "q25": 0.25, "q75": 0.75, "q95": 0.95}


@dataclass(frozen=True)
class RunRecord:
    """What was run.

    Args:
        experiment: Its name.
        claim: Its docstring.
        pair: Two entries for the picture of a joint density.
        config: The experiment's knobs, a dataclass.
        settings: The options of every run, a dataclass with `seed`, `device` and `dtype`.
    """

    experiment: str
    claim: str
    pair: tuple[str, str]
    config: Any
    settings: Any


@contextmanager
def new_run_folder(name: str, out: Path | None) -> Iterator[Path]:
    """A fresh folder that can be written to; left behind only if something was put into it.

    Args:
        name: Of the experiment, for the default place ``runs/NAME-1``, ``runs/NAME-2``, ...
        out: The place, where it is given.

    Yields:
        Path of the folder.

    Raises:
        ValueError: If the folder holds files already or cannot be written to.
    """
    folder = _made(out) if out is not None else _numbered(Path("runs"), name)
    try:
        yield folder
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()


def write_run(
    folder: Path,
    record: RunRecord,
    posterior: Posterior,
    reference: Reference | None,
    seconds: float,
) -> None:
    """Write options, numbers and posterior."""
    (folder / CONFIG).write_text(tomli_w.dumps(_options(record)), encoding="utf-8")
    result = _result(record, posterior, reference, seconds)
    (folder / RESULT).write_text(strict_json(result, indent=1) + "\n", encoding="utf-8")
    posterior.save(folder / POSTERIOR)


def write_scoreboard(
    folder: Path, record: RunRecord, board: Scoreboard | Study, seconds: float
) -> Path:
    """Write options, numbers, the table and pictures; returns the table's path."""
    (folder / CONFIG).write_text(tomli_w.dumps(_options(record)), encoding="utf-8")
    result = {
        "experiment": record.experiment,
        "claim": record.claim,
        "ok": board.ok,
        **board.as_json(),
        "seconds": round(seconds, 3),
        "versions": _versions(),
        "platform": platform.platform(),
    }
    (folder / RESULT).write_text(strict_json(result, indent=1) + "\n", encoding="utf-8")
    for name, figure in getattr(board, "figures", {}).items():
        figure.savefig(folder / f"{name}.png", dpi=_DPI, facecolor=PAPER, bbox_inches="tight")
    table = folder / TABLE
    table.write_text(f"# {record.claim}\n\n{board.markdown()}", encoding="utf-8")
    return table


def read_result(folder: Path) -> dict[str, Any]:
    """Numbers of a run.

    Raises:
        ValueError: If the folder holds no run.
    """
    missing = [name for name in (CONFIG, RESULT, POSTERIOR) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} is not a run folder: it has no {missing[0]}. Give a folder that "
            "`probcalc run` wrote."
        )
    return json.loads((folder / RESULT).read_text(encoding="utf-8"))


def strict_json(value: Any, indent: int | None = None) -> str:
    """JSON without the NaN and Infinity that only Python reads.

    >>> strict_json({"khat": float("-inf")})
    '{"khat": "-inf"}'
    """
    return json.dumps(_finite(value), allow_nan=False, indent=indent)


def _made(folder: Path) -> Path:
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"output folder {folder} is not empty; give another with `--out`.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        why = error.strerror or error
        raise ValueError(f"output folder {folder} cannot be written to: {why}.") from error


def _numbered(parent: Path, name: str) -> Path:
    for number in range(1, 1_000_000):
        folder = parent / f"{name}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            why = error.strerror or error
            raise ValueError(f"output folder {folder} cannot be written to: {why}.") from error
        return folder
    raise ValueError(f"{parent} holds a million runs of {name}; give a folder with `--out`.")


def _options(record: RunRecord) -> dict[str, Any]:
    given = {k: v for k, v in asdict(record.settings).items() if v is not None and k != "out"}
    return {"experiment": record.experiment, **given, "config": asdict(record.config)}


def _result(
    record: RunRecord, posterior: Posterior, reference: Reference | None, seconds: float
) -> dict[str, Any]:
    weights = posterior.log_weights.flatten().softmax(dim=0)
    num_draws = weights.numel()
    return {
        "experiment": record.experiment,
        "claim": record.claim,
        "pair": list(record.pair),
        "verdict": posterior.verdict,
        "ok": posterior.ok,
        "status": posterior.status.words,
        "reasons": list(posterior.reasons),
        "advice": posterior.status.advice,
        "method": posterior.method,
        "confidence": posterior.confidence,
        "elbo": _number(posterior.elbo),
        "log_evidence": _number(posterior.log_evidence),
        "khat": posterior.khat,
        "khat_limit": khat_limit(num_draws),
        "num_draws": num_draws,
        "effective_draws": float(1.0 / weights.square().sum()),
        "num_evals": posterior.num_evals,
        "seconds": round(seconds, 3),
        "seed": record.settings.seed,
        "device": record.settings.device,
        "dtype": record.settings.dtype,
        "parameters": _parameters(posterior),
        "reference": _reference(posterior, reference),
        "versions": _versions(),
        "platform": platform.platform(),
    }


def _versions() -> dict[str, str]:
    return {
        "probcalc": __version__,
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "python": platform.python_version(),
    }


def _number(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": float(estimate.value),
        "error": float(estimate.error),
        "status": estimate.flags.words,
    }


def _parameters(posterior: Posterior) -> list[dict[str, Any]]:
    quantiles = {key: posterior.quantile(level) for key, level in _LEVELS.items()}
    moments = {"mean": posterior.mean, "sd": posterior.std, **quantiles}
    flat = {
        key: (
            posterior.layout.flatten({n: e.value for n, e in by_site.items()}).tolist(),
            posterior.layout.flatten({n: e.error for n, e in by_site.items()}).tolist(),
        )
        for key, by_site in moments.items()
    }
    return [
        {
            "name": name,
            **{key: {"value": v[i], "error": e[i]} for key, (v, e) in flat.items()},
        }
        for i, name in enumerate(posterior.names)
    ]


def _reference(posterior: Posterior, reference: Reference | None) -> dict[str, Any] | None:
    if reference is None:
        return None
    rows = [
        {"name": c.name, **c.row._asdict(), "distance": c.distance, "ratio": c.ratio, "ok": c.ok}
        for c in compare(posterior, reference)
    ]
    return {"source": reference.source, "ok": all(r["ok"] for r in rows), "rows": rows}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value
