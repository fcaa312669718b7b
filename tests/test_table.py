from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probcalc._table import text_table

cells = st.text(alphabet="abcXYZ019.-±", min_size=1, max_size=9)


@given(st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=6))
def test_columns_line_up(rows: list[tuple[str, str, str]]):
    """First column left, the others right, at the same place in every line; nothing is lost."""
    header, *body = rows
    lines = text_table(header, body).split("\n")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    assert lines[1] == "  ".join("-" * w for w in widths)
    for row, line in zip(rows, [lines[0], *lines[2:]], strict=True):
        assert line == line.rstrip()
        start = 0
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            field = line[start : start + width].ljust(width)
            assert field == (cell.ljust(width) if i == 0 else cell.rjust(width))
            start += width + 2


def test_a_header_alone_is_a_table():
    assert text_table(["name", "mean"], []) == "name  mean\n----  ----"


@pytest.mark.parametrize("row", [["mu"], ["mu", "1", "2"]])
def test_a_row_of_another_length_is_refused(row: list[str]):
    with pytest.raises(ValueError, match="zip"):
        text_table(["name", "mean"], [["tau", "3"], row])
