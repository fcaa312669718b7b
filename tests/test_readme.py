"""The README's example prints what the README says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")


def example_and_output() -> tuple[str, str]:
    fences = re.findall(r"```(\w*)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    languages = [language for language, _ in fences]
    first = languages.index("python")
    assert fences[first + 1][0] == "", "the output follows the example"
    return fences[first][1], fences[first + 1][1]


def test_the_example_prints_what_is_shown():
    """Every word, and every number up to what another processor's rounding may change."""
    code, shown = example_and_output()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    got = printed.getvalue()
    assert _NUMBER.sub("#", got).split() == _NUMBER.sub("#", shown).split()
    for a, b in zip(_NUMBER.findall(got), _NUMBER.findall(shown), strict=True):
        expected = float(b.replace(",", ""))
        assert float(a.replace(",", "")) == pytest.approx(expected, rel=0.2, abs=0.02)


def test_the_example_is_short():
    """A reader's first screen."""
    code, _ = example_and_output()
    assert len([line for line in code.splitlines() if line.strip()]) <= 16
