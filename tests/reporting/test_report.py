"""The page: complete, self-contained, escaped, and made from the run folder alone."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from probcalc.reporting.report import write_report
from probcalc.reporting.run_folder import CONFIG, POSTERIOR, RESULT, read_result

EMPTY = {"meta", "br", "img", "link", "hr"}
LOADS = ("src", "href", "srcset", "action", "data", "poster", "background")


class Page(HTMLParser):
    """Tags and loaded addresses of a page; refuses tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in LOADS]
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def test_page_loads_nothing_from_outside(run_folder: Path):
    text = write_report(run_folder).read_text(encoding="utf-8")
    page = Page(text)
    assert page.loads
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.loads)
    without_images = re.sub(r"data:[^\"]*", "", text)
    assert not re.search(r"https?:|//|url\(|@import", without_images)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)


def test_page_says_everything(run_folder: Path):
    """Verdict, reasons, every entry, the options and the seed; readable on a phone, at night."""
    text = write_report(run_folder).read_text(encoding="utf-8")
    result = read_result(run_folder)
    assert result["verdict"] in text
    for entry in result["parameters"]:
        assert f"<td>{entry['name']}</td>" in text
    for piece in ("because &lt;of&gt; this",) if result["reasons"] else ():
        assert piece in text
    assert "seed 3" in text
    assert "scale = 1.0" in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert ("a &lt;known&gt; source" in text) is (result["reference"] is not None)


def test_claim_is_escaped_and_keeps_its_paragraphs(run_folder: Path):
    text = write_report(run_folder).read_text(encoding="utf-8")
    assert "<script" not in text
    assert (
        "A claim with &lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt; over two lines."
        in text
    )
    assert '<p class="claim">A second paragraph.</p>' in text


def test_page_is_rebuilt_from_three_files(run_folder: Path, tmp_path_factory):
    """Elsewhere, without the experiment: the same page up to the figures' random names."""
    first = write_report(run_folder).read_text(encoding="utf-8")
    elsewhere = tmp_path_factory.mktemp("copy")
    for name in (CONFIG, RESULT, POSTERIOR):
        shutil.copy(run_folder / name, elsewhere / name)
    again = write_report(elsewhere).read_text(encoding="utf-8")
    images = r"base64,[^\"]*"
    assert re.sub(images, "", first) == re.sub(images, "", again)


@pytest.mark.parametrize("name", [CONFIG, RESULT, POSTERIOR])
def test_a_folder_without_a_run_is_refused(run_folder: Path, name: str):
    (run_folder / name).unlink()
    with pytest.raises(ValueError, match=f"is not a run folder: it has no {name}"):
        write_report(run_folder)
