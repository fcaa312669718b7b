"""A comparison passes exactly up to its limits."""

from __future__ import annotations

import ast

import pytest

from probcalc.reporting.comparison import (
    Comparison,
    Reference,
    Row,
    compare,
    comparison_lines,
    reference_block,
)

ROW = Row(10.0, 0.02, 2.0, 0.01)
MEAN_ROOM = 0.05 * 2.0 + 3 * 0.02  # 0.05 sd + 3 standard errors
STD_ROOM = 0.05 * 2.0 + 3 * 0.01  # 5 % + 3 standard errors


@pytest.mark.parametrize(
    ("mean", "std", "ok"),
    [
        (10.0, 2.0, True),
        (10.0 + 0.99 * MEAN_ROOM, 2.0, True),
        (10.0 + 1.01 * MEAN_ROOM, 2.0, False),
        (10.0 - 1.01 * MEAN_ROOM, 2.0, False),
        (10.0, 2.0 + 0.99 * STD_ROOM, True),
        (10.0, 2.0 + 1.01 * STD_ROOM, False),
        (10.0, 2.0 - 1.01 * STD_ROOM, False),
        (float("nan"), 2.0, False),
    ],
)
def test_limits(mean: float, std: float, ok: bool):
    row = Comparison("x", mean, std, ROW)
    assert row.ok is ok
    assert row.distance == pytest.approx((mean - 10.0) / 2.0, nan_ok=True)
    lines = comparison_lines((row,), "somewhere")
    assert lines[-1].startswith(f"agreement     {int(ok)} of 1 within")
    assert "somewhere" in lines[-2]


def test_compare_takes_the_posteriors_moments(posterior):
    (row,) = compare(posterior, Reference("", {"b": ROW}))
    assert row.mean == pytest.approx(float(posterior.mean["b"].value), nan_ok=True)
    assert row.std == pytest.approx(float(posterior.std["b"].value), nan_ok=True)


def test_an_entry_that_the_posterior_lacks_is_named(posterior):
    with pytest.raises(ValueError, match="has no entry 'c'; it has"):
        compare(posterior, Reference("", {"c": ROW}))


def test_block_reads_back_to_a_tenth_of_its_errors():
    row = Row(1.23456789, 0.0123, -4.56789, 0.0456)
    tree = ast.parse(reference_block(Reference("source", {"theta[0]": row})))
    (call,) = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and n.func.id == "Row"]
    numbers = [ast.literal_eval(argument) for argument in call.args]
    assert numbers == pytest.approx(list(row), abs=0.1 * 0.0123)
