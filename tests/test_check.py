from __future__ import annotations

import math
import re

import pytest
import torch

from probcalc._check import require_finite, unknown_name

NAN, INF = math.nan, math.inf


def at(shape: tuple[int, ...], *bad: tuple[tuple[int, ...], float]) -> torch.Tensor:
    data = torch.zeros(shape, dtype=torch.float64)
    for index, value in bad:
        data[index] = value
    return data


# data, what the message must say
BAD = {
    "scalar": (at((), ((), NAN)), "`y` must be finite, got nan; 1 such entry in shape ()"),
    "vector": (at((5,), ((3,), INF)), "`y` must be finite, got inf at row 3; 1 such entry"),
    "matrix": (at((4, 3), ((1, 2), -INF)), "got -inf at row 1, column 2; 1 such entry"),
    "cube": (at((2, 3, 4), ((1, 2, 3), NAN)), "at row 1, column 2 (index (1, 2, 3));"),
    "several": (at((4,), ((1,), NAN), ((2,), INF)), "got nan at row 1; 2 such entries"),
    "dict": ({"a": at((2,)), "b": at((2,), ((0,), NAN))}, "`y['b']` must be finite"),
    "tuple": ((at((2,)), at((2,), ((1,), NAN))), "`y[1]` must be finite, got nan at row 1"),
    "nested": ({"a": [at((2,), ((1,), NAN))]}, "`y['a'][0]` must be finite"),
    "float32": (torch.tensor([0.0, NAN]), "got nan at row 1"),
}


@pytest.mark.parametrize(("data", "text"), BAD.values(), ids=BAD.keys())
def test_non_finite_data_is_refused(data: object, text: str):
    """By name, row and column, with the count and what to do."""
    with pytest.raises(ValueError, match=re.escape(text)) as error:
        require_finite("y", data)
    assert str(error.value).endswith("Drop or impute the missing values before fitting.")


GOOD = {
    "finite": at((3, 2)),
    "empty": at((0, 2)),
    "integers": torch.arange(3),
    "booleans": torch.tensor([True]),
    "nested": {"a": [at((2,)), (at(()),)], "n": 3, "name": "x", "none": None},
    "no tensor": NAN,
    "largest": torch.tensor(torch.finfo(torch.float64).max, dtype=torch.float64),
}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD.keys())
def test_finite_data_and_what_is_no_tensor_pass(data: object):
    assert require_finite("y", data) is None


NAMES = ["simpson", "gauss", "gauss_kronrod"]
# name -> message
UNKNOWN = {
    "simpsn": "unknown rule 'simpsn'; did you mean 'simpson'? Known: gauss",
    "zzz": "unknown rule 'zzz'; Known: gauss, gauss_kronrod, simpson.",
    "gaus": "unknown rule 'gaus'; did you mean 'gauss'",
}


@pytest.mark.parametrize(("name", "text"), UNKNOWN.items())
def test_unknown_names_list_the_known_ones(name: str, text: str):
    message = unknown_name("rule", name, NAMES)
    assert message.startswith(text)
    assert message.endswith("Known: gauss, gauss_kronrod, simpson.")


def test_known_names_may_be_any_iterable():
    assert unknown_name("rule", "q", iter(())) == "unknown rule 'q'; Known: ."
