"""The page of a run: one HTML file that holds everything, made from the run folder alone."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from probcalc.inference.posterior import load_posterior
from probcalc.reporting.figures import save_figures
from probcalc.reporting.run_folder import CONFIG, PAGE, POSTERIOR, read_result
from probcalc.result import format_with_error

_TEMPLATE = Path(__file__).parent / "page.html"
_TONES = {"good": "good", "corrected": "good", "unreliable": "bad"}
# figure -> heading, words below it, widest size on the page in CSS pixels
_SHOWN = {
    "forest.svg": (
        "Where the parameters lie",
        "Dots are means; thick and thin bars hold 50 and 90 per cent.",
        900,
    ),
    "joint.svg": (
        "Two of them together",
        "Filled: the posterior, from weighted draws (dots). Dashed: the guide before correction.",
        600,
    ),
    "weights.svg": (
        "The importance weights",
        "The heavier the tail of the ratios, the fewer draws carry the answer.",
        900,
    ),
}
_WORDS = {
    "good": "The approximation needs no correction that its own noise would not drown.",
    "corrected": "Importance weights moved some moments, and can be trusted to.",
    "unreliable": "Do not use these numbers before reading why.",
}


def write_report(folder: Path) -> Path:
    """Draw the figures of a run folder and write its page.

    Args:
        folder: With `config.toml`, `result.json` and `posterior.safetensors`.

    Returns:
        Path of the page.

    Raises:
        ValueError: If the folder holds no run.
    """
    result = read_result(folder)
    figures = save_figures(folder, load_posterior(folder / POSTERIOR), result)
    config = (folder / CONFIG).read_text(encoding="utf-8")
    page = folder / PAGE
    page.write_text(_page(result, figures, config), encoding="utf-8")
    return page


def _page(result: dict[str, Any], figures: dict[str, Path], config: str) -> str:
    # each value is escaped where it is put into markup
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        experiment=escape(result["experiment"]),
        claim=_claim(result["claim"]),
        verdict=escape(result["verdict"]),
        tone=_tone(result),
        reasons=_reasons(result),
        tiles=_tiles(result),
        figures="\n".join(_figure(name, figures[name]) for name in _SHOWN),
        parameters=_parameters(result),
        comparison=_comparison(result),
        config=escape(config),
        method=escape(result["method"]),
        versions=escape(_versions(result)),
    )


def _claim(docstring: str) -> str:
    paragraphs = docstring.split("\n\n")
    return "\n".join(f'<p class="claim">{escape(" ".join(p.split()))}</p>' for p in paragraphs)


def _tone(result: dict[str, Any]) -> str:
    disagrees = result["reference"] is not None and not result["reference"]["ok"]
    return "bad" if disagrees else _TONES[result["verdict"]]


def _reasons(result: dict[str, Any]) -> str:
    words = [_WORDS[result["verdict"]], *result["reasons"]]
    if not result["ok"]:
        words.append(result["advice"])
    reference = result["reference"]
    if reference is not None:
        good = sum(row["ok"] for row in reference["rows"])
        words.append(f"{good} of {len(reference['rows'])} entries agree with the reference.")
    return "\n".join(f"<p>{escape(word)}</p>" for word in words)


def _tiles(result: dict[str, Any]) -> str:
    facts = {
        "ELBO, nats": _with_error(result["elbo"]),
        "log evidence, nats": _with_error(result["log_evidence"]),
        "Pareto k\u0302": f"{float(result['khat']):.2f} (limit {result['khat_limit']:.2f})",
        "effective draws": f"{float(result['effective_draws']):,.0f} of {result['num_draws']:,}",
        "evaluations": f"{result['num_evals']:,}",
        "seconds": f"{result['seconds']:.2f}",
    }
    return "\n".join(
        f'<div class="card"><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>'
        for name, value in facts.items()
    )


def _figure(name: str, path: Path) -> str:
    heading, words, width = _SHOWN[name]
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f"<h2>{heading}</h2>\n<p>{words}</p>\n"
        f'<figure style="--width: {width}px">'
        f'<img alt="{heading}" src="data:image/svg+xml;base64,{data}"></figure>'
    )


def _parameters(result: dict[str, Any]) -> str:
    rows = [
        [escape(p["name"]), *(_cell(p[key]) for key in ("mean", "sd", "q05", "q95"))]
        for p in result["parameters"]
    ]
    return _table(["", "mean", "sd", "5 %", "95 %"], rows)


def _comparison(result: dict[str, Any]) -> str:
    reference = result["reference"]
    if reference is None:
        return ""
    rows = [
        [
            escape(row["name"]),
            _pair(row["mean"], row["mean_error"]),
            f"{float(row['distance']):+.3f}",
            _pair(row["std"], row["std_error"]),
            f"{float(row['ratio']):.3f}",
            '<span class="ok">ok</span>' if row["ok"] else '<span class="off">off</span>',
        ]
        for row in reference["rows"]
    ]
    table = _table(["", "reference mean", "off by, sd", "reference sd", "sd ratio", ""], rows)
    source = escape(reference["source"])
    return f'<h2>Reference</h2>\n<p>{source}.</p>\n<div class="card scroll">\n{table}\n</div>'


def _table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in header)
    body = "\n".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _with_error(number: dict[str, Any]) -> str:
    return format_with_error(float(number["value"]), float(number["error"]))


def _cell(number: dict[str, Any]) -> str:
    return _pair(float(number["value"]), float(number["error"]))


def _pair(value: float, error: float) -> str:
    words, _, bar = format_with_error(value, error).partition(" ± ")
    return f"{words} <small>± {bar}</small>"


def _versions(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"seed {result['seed']}, {result['device']}; {versions}; {result['platform']}"
