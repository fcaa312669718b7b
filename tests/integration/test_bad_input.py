"""What callers get wrong: refused with a text that says what to do, or put right."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch import distributions as td

from probcalc import EstimateWarning, Status, expect, integrate

INF, NAN = math.inf, math.nan


def limits(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def box(fn, d: int = 2, **kwargs: object):
    return integrate(fn, torch.zeros(d).double(), torch.ones(d).double(), event_dim=1, **kwargs)


REFUSED = {
    "a string": (lambda: integrate(torch.exp, "0", 1), TypeError, "`lower` must be a number.*str"),
    "nothing": (lambda: integrate(torch.exp, 0, None), TypeError, "`upper` must be.*NoneType"),
    "complex": (lambda: integrate(torch.exp, 1j, 1), TypeError, "must be real"),
    "NaN": (lambda: integrate(torch.exp, limits(0.0, NAN), 1), ValueError, "must not be NaN"),
    "half": (
        lambda: integrate(torch.exp, torch.zeros(2).half(), 1.0),
        TypeError,
        "float16 resolves too few points.*convert to float32",
    ),
    "bfloat16": (
        lambda: integrate(torch.exp, torch.zeros((), dtype=torch.bfloat16), 1.0),
        TypeError,
        "bfloat16",
    ),
    "shapes": (
        lambda: integrate(torch.exp, torch.zeros(2), torch.ones(3)),
        ValueError,
        r"`lower` of shape \(2,\) and `upper` of shape \(3,\)",
    ),
    "arguments": (
        lambda: integrate(lambda x, a: x, torch.zeros(2), 1.0, args=(torch.ones(3),)),
        ValueError,
        r"`args\[0\]` must start with the batch shape \(2,\).*\(3,\).*expand it",
    ),
    "no tuple": (lambda: integrate(torch.exp, 0, 1, args=3), TypeError, "`args` must be a tuple"),
    "devices": (
        lambda: integrate(torch.exp, torch.zeros(2, device="meta"), torch.ones(2)),
        ValueError,
        "on one device",
    ),
    "no function": (lambda: integrate(3.0, 0, 1), TypeError, "must be a function, got float"),
    "changes its input": (
        lambda: integrate(lambda x: x.mul_(2), 0, 1),
        ValueError,
        "must not change its argument in place",
    ),
    "changes a batch": (
        lambda: integrate(lambda x: x.mul_(2), torch.zeros(3), 1.0),
        ValueError,
        "must not change its argument",
    ),
    "changes a box": (lambda: box(lambda x: x.mul_(2).sum(-1)), ValueError, "must not change"),
    "returns nothing": (lambda: integrate(lambda x: None, 0, 1), ValueError, "got NoneType"),
    "returns a number": (lambda: integrate(lambda x: 1.0, 0, 1), ValueError, "got float"),
    "returns the sum": (
        lambda: integrate(lambda x: x.sum(), 0, 1),
        ValueError,
        r"return shape \(n, \*batch, \*out\), here \(\d+,\).*got \(\)",
    ),
    "returns a part": (lambda: integrate(lambda x: x[:3], 0, 1), ValueError, r"got \(3,\)"),
    "transposes": (
        lambda: integrate(lambda x, a: (a * x).mT, torch.zeros(3), 1.0, args=(torch.ones(3),)),
        ValueError,
        r"got \(3, 1\)",
    ),
    "numbers for boxes": (
        lambda: integrate(torch.exp, 0.0, 1.0, event_dim=1),
        ValueError,
        r"\(\*batch, d\)",
    ),
    "no dimension": (lambda: box(torch.exp, d=0), ValueError, "at least one dimension"),
    "breaks of a box": (
        lambda: box(lambda x: x.sum(-1), breaks=[0.5]),
        ValueError,
        "`breaks` are for intervals",
    ),
    "inside vmap": (
        lambda: torch.vmap(lambda a: integrate(torch.exp, 0.0, a).value)(torch.ones(3)),
        TypeError,
        r"cannot run inside vmap.*GaussQuadrature\(n\)",
    ),
    "expectation inside vmap": (
        lambda: torch.vmap(
            lambda a: expect(torch.exp, td.Normal(a, 1.0, validate_args=False)).value
        )(torch.ones(3)),
        TypeError,
        "GaussQuadrature",
    ),
}


@pytest.mark.parametrize(("call", "error", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_what_to_do(call, error: type, text: str):
    if error is TypeError:  # where types are checked at run time, that speaks first
        text += "|Type-check error"
    with pytest.raises(error, match=text):
        call()


def test_what_the_integrand_raises_comes_through():
    def picky(x: Tensor) -> Tensor:
        if (x > 0.7).any():
            raise ArithmeticError("not here")
        return x

    with pytest.raises(ArithmeticError, match="not here"):
        integrate(picky, 0.0, 1.0)
    assert float(integrate(picky, 0.0, 0.5).value) == pytest.approx(0.125)


RIGHT = {
    "integers": (lambda: integrate(lambda x: x**2, torch.tensor(0), torch.tensor(3)), 9.0),
    "reversed": (lambda: integrate(torch.exp, 1, 0), 1 - math.e),
    "equal": (lambda: integrate(torch.exp, 1, 1), 0.0),
    "equal infinite ones": (lambda: integrate(torch.exp, INF, INF), 0.0),
    "booleans": (lambda: integrate(lambda x: x > 0.25, 0, 1), 0.75),
    "one look": (lambda: integrate(torch.exp, 0, 1, max_evals=1), math.e - 1),
}


@pytest.mark.parametrize(("call", "value"), RIGHT.values(), ids=RIGHT.keys())
def test_put_right(call, value: float):
    result = call()
    assert result.ok
    assert float(result.value) == pytest.approx(value, rel=1e-7, abs=1e-15)


def test_an_element_of_no_width_in_a_batch():
    result = integrate(torch.exp, limits(0.0, 1.0, INF), limits(1.0, 1.0, INF))
    torch.testing.assert_close(result.value, limits(math.e - 1, 0.0, 0.0))
    assert result.ok


@pytest.mark.parametrize("given", ["closure", "arguments"])
def test_a_batch_of_none(given: str):
    args = (torch.zeros(0),) if given == "arguments" else ()
    result = integrate(lambda x, *_: x.exp(), torch.zeros(0), torch.ones(0), args=args)
    assert result.value.shape == (0,)
    assert result.ok
    boxes = integrate(lambda x: x.sum(-1), torch.zeros(0, 2), torch.ones(0, 2), event_dim=1)
    assert boxes.value.shape == (0,)


def test_not_a_number_on_a_region_is_flagged():
    with pytest.warns(EstimateWarning, match="Not-a-number"):
        result = integrate(lambda x: (x - 0.5).sqrt(), 0, 1)
    assert result.flags == Status.NON_FINITE
