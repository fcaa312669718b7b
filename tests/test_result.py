from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import laws
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from probcalc.result import Estimate, Solution, format_with_error, half_width
from probcalc.status import EstimateWarning, Status


def number(x: Any) -> torch.Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def estimate(value: Any, error: Any, **kwargs: Any) -> Estimate:
    return Estimate(number(value), number(error), **kwargs)


VECTOR = estimate([1.0, 2.0, 3.0], [0.1, 0.2, 0.3], std_error=number([0.05, 0.1, 0.15]), dof=7.0)
FLAGGED = estimate(2.0, 0.1, status=int(Status.NON_FINITE), num_evals=7, method="rule")

# what no bar can be carried through: `.value` is the way, and with it the decision to drop it
REFUSED = {
    "power": (lambda a: a**2, TypeError, "unsupported operand"),
    "absolute value": (abs, TypeError, "bad operand type for abs"),
    "comparison": (lambda a: a > 0, TypeError, "not supported between instances"),
    "torch function": (torch.sin, TypeError, "must be Tensor, not Estimate"),
    "matrix product": (lambda a: a @ a, TypeError, "unsupported operand"),
    "floor": (lambda a: a // 1, TypeError, "unsupported operand"),
    "truth": (bool, TypeError, "no truth value; use `.ok`, or compare `.value`"),
    "text": (lambda a: a + "1", TypeError, "unsupported operand"),
    "nothing": (lambda a: a + None, TypeError, "unsupported operand"),
    "zero": (lambda a: a / 0, ZeroDivisionError, "division by zero"),
}


@pytest.mark.parametrize(("fn", "error", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_arithmetic_without_an_honest_bar_is_refused(fn: Callable, error: type, text: str):
    with pytest.raises(error, match=text):
        fn(estimate(2.0, 0.1))


def test_only_one_number_converts_to_float():
    with pytest.raises(TypeError, match=re.escape("this one has shape (3,); use `.value`")):
        float(VECTOR)
    assert float(estimate([[2.5]], [[0.1]])) == 2.5


def test_float_detaches_and_speaks_up_where_flagged():
    x = number(2.0).requires_grad_()
    assert float(Estimate(x * 2, number(0.1))) == 4.0
    with pytest.warns(EstimateWarning, match="Not-a-number or infinite values were met"):
        assert float(FLAGGED) == 2.0


def test_raise_if_failed():
    assert VECTOR.raise_if_failed() is VECTOR
    with pytest.raises(ArithmeticError, match=r"\[non finite\]: Not-a-number"):
        FLAGGED.raise_if_failed()


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99, 0.9999])
@pytest.mark.parametrize("dof", [1.0, 7.0, math.inf, None])
def test_interval_is_student_s(level: float, dof: float | None):
    """At any level, above and below the estimate's own."""
    std_error = number([0.5, 2.0])
    e = estimate([1.0, -1.0], half_width(std_error, dof, 0.99), std_error=std_error, dof=dof)
    low, high = e.interval(level)
    scale = std_error.numpy()
    law = scipy.stats.norm if dof in (None, math.inf) else scipy.stats.t(dof)
    expected = (
        law.interval(level, loc=[1.0, -1.0], scale=scale)
        if dof
        in (
            None,
            math.inf,
        )
        else tuple(number([1.0, -1.0]).numpy() + q * scale for q in law.interval(level))
    )
    torch.testing.assert_close(torch.stack([low, high]), number(list(map(list, expected))))


def test_interval_without_level_is_the_bar():
    low, high = VECTOR.interval()
    torch.testing.assert_close(low, VECTOR.value - VECTOR.error)
    torch.testing.assert_close(high, VECTOR.value + VECTOR.error)


def test_what_is_not_sampling_noise_stays_at_every_level():
    noise = half_width(number(0.1), 9.0, 0.99)
    e = estimate(1.0, noise + 0.02, std_error=number(0.1), dof=9.0)
    for level in (0.5, 0.99, 0.999):
        low, high = e.interval(level)
        expected = 2 * (half_width(number(0.1), 9.0, level) + 0.02)
        torch.testing.assert_close(high - low, expected)


def test_a_deterministic_bar_does_not_widen():
    rule = estimate(1.0, 0.1, confidence=0.9)
    assert rule.interval(0.5)[1] == rule.interval(0.9)[1] == 1.1
    with pytest.raises(ValueError, match=r"made for 90% and has no standard error.*to 95.0%"):
        rule.interval(0.95)


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, math.nan])
def test_level_must_be_a_probability(level: float):
    with pytest.raises(ValueError, match="`level` must lie strictly between 0 and 1"):
        VECTOR.interval(level)


@pytest.mark.parametrize("r", [2, 5, 32])
def test_replicates_follow_the_textbook(r: int, generator: torch.Generator):
    """Mean ± t_{r−1} s / √r with s² over r − 1."""
    values = torch.randn(r, 3, generator=generator, dtype=torch.float64)
    e = Estimate.from_replicates(values, confidence=0.95, num_evals=9, method="m", status=4)
    mean = sum(values) / r
    s = (sum((v - mean) ** 2 for v in values) / (r - 1)) ** 0.5
    torch.testing.assert_close(e.value, mean)
    torch.testing.assert_close(e.std_error, s / r**0.5)
    torch.testing.assert_close(e.error, s / r**0.5 * scipy.stats.t(r - 1).ppf(0.975))
    assert (e.dof, e.confidence, e.num_evals, e.method) == (r - 1, 0.95, 9, "m")
    assert e.flags == Status.INFINITE_VARIANCE


@pytest.mark.parametrize("r", [2, 5])
def test_replicates_cover_what_they_claim(r: int, generator: torch.Generator):
    """Neither less nor more than 95 % of intervals from normal replicates hold the mean."""
    values = 3 + 2 * torch.randn(r, 40_000, generator=generator, dtype=torch.float64)
    e = Estimate.from_replicates(values, confidence=0.95)
    hits = (e.value - 3).abs() <= e.error
    laws.assert_covers(hits, 0.95, caught=0.94)
    laws.assert_covers(~hits, 0.05, caught=0.041)
    low, high = e.interval(0.5)
    laws.assert_covers((low <= 3) & (high >= 3), 0.5, caught=0.475)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_replicates_do_not_claim_to_be_exact(dtype: torch.dtype):
    """They do not scatter, but what they are the mean of was rounded."""
    e = Estimate.from_replicates(torch.full((9,), 0.5, dtype=dtype))
    assert float(e.std_error) == 0.0
    assert torch.finfo(dtype).eps / 2 <= float(e.error) < 10 * torch.finfo(dtype).eps
    assert e.value.dtype == e.error.dtype == dtype


def test_one_replicate_has_no_bar():
    with pytest.raises(ValueError, match="an error bar needs at least 2 replicates, got 1"):
        Estimate.from_replicates(torch.zeros(1, 3))


def test_replicates_keep_the_gradient():
    x = number([1.0, 2.0, 4.0]).requires_grad_()
    e = Estimate.from_replicates(x**2)
    torch.testing.assert_close(torch.autograd.grad(e.value, x)[0], 2 * x.detach() / 3)
    assert not e.error.requires_grad
    assert not e.std_error.requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_replicates_that_are_not_finite_are_flagged(bad: float):
    e = Estimate.from_replicates(number([1.0, bad, 2.0]))
    assert Status.NON_FINITE in e.flags
    assert float(e.error) == math.inf


def test_exact_numbers():
    assert Estimate.exact(3.0).value.dtype == torch.float64
    assert Estimate.exact(torch.ones(2)).value.dtype == torch.float32
    assert Estimate.exact(torch.ones(2)).error.tolist() == [0.0, 0.0]
    x = number(2.0).requires_grad_()
    assert Estimate.exact(x).value.requires_grad
    assert not Estimate.exact(x).error.requires_grad
    assert Estimate.exact(0.5, method="closed form").method == "closed form"


def test_an_exact_number_is_exact_at_every_level():
    low, high = Estimate.exact(2.0).interval(0.9999)
    assert low == high == 2.0


def test_indexing_picks_value_bar_and_flag_together():
    e = estimate(
        [1.0, 2.0, 3.0],
        [0.1, 0.2, 0.3],
        std_error=number([0.01, 0.02, 0.03]),
        status=torch.tensor([0, 8, 0]),
        num_evals=torch.tensor([5, 6, 7]),
        diagnostics={"k": 1},
    )
    one = e[1]
    picked = one.value, one.error, one.std_error, one.status, one.num_evals
    assert [float(x) for x in picked] == [2.0, 0.2, 0.02, 8, 6]
    assert e[0].ok
    assert not one.ok
    assert e[1:].value.tolist() == [2.0, 3.0]
    assert one.diagnostics == {"k": 1}


def test_indexing_a_batch_takes_the_batch_s_flag():
    e = estimate(torch.ones(3, 2), torch.ones(3, 2), status=torch.tensor([0, 8, 0]))
    assert e[0].ok
    assert not e[1].ok


def test_a_part_does_not_keep_the_covariance_of_the_whole():
    covariance = torch.eye(3, dtype=torch.float64)
    part = estimate([1.0, 2.0, 3.0], [0.1, 0.2, 0.3], covariance=covariance)[0]
    assert part.covariance is None or part.covariance.shape == ()


TEXTS = {
    "rule": (
        estimate(0.0691516012, 3.2e-9, num_evals=105, method="adaptive"),
        "0.0691516012 ± 3e-09 (adaptive, 105 evaluations)",
    ),
    "plain": (estimate(4.4098, 0.0123), "4.410 ± 0.012 (0 evaluations)"),
    "thousands": (estimate(1.0, 0.1, num_evals=12345), "1.00 ± 0.10 (12,345 evaluations)"),
    "infinite": (estimate(math.inf, 0.0, method="m"), "inf ± 0 (m, 0 evaluations)"),
    "no bar": (estimate(1.5, math.inf), "1.5 ± inf (0 evaluations)"),
    "nan": (estimate(math.nan, math.inf), "nan ± inf (0 evaluations)"),
    "exact": (Estimate.exact(0.1), "0.1 ± 0 (0 evaluations)"),
    "flagged": (FLAGGED, "2.00 ± 0.10 (rule, 7 evaluations)  [non finite]"),
    "vector": (
        VECTOR,
        "[1.00 ± 0.10, 2.00 ± 0.20, 3.00 ± 0.30] (0 evaluations)",
    ),
    "matrix": (
        estimate(torch.ones(3, 4), torch.full((3, 4), 0.25), num_evals=torch.tensor([1, 2, 3])),
        "(3, 4) values, each ± at most 2.5e-01 (6 evaluations)",
    ),
    "empty": (estimate([], []), "[] (0 evaluations)"),
    "flags": (
        estimate([1.0, 2.0], [0.1, 0.1], status=torch.tensor([1, 8])),
        "[1.00 ± 0.10, 2.00 ± 0.10] (0 evaluations)  [tolerance not reached, non finite]",
    ),
}


@pytest.mark.parametrize(("e", "text"), TEXTS.values(), ids=TEXTS.keys())
def test_repr(e: Estimate, text: str):
    assert repr(e) == text


@given(st.floats(-1e5, 1e5), st.floats(1e-9, 1e4))
def test_printed_digits_are_justified_and_enough(value: float, error: float):
    """What is printed is within a tenth of the bar of the value, and the bar within one digit."""
    printed, bar = map(float, format_with_error(value, error).split(" ± "))
    assert abs(printed - value) <= 0.51 * 10 ** (math.floor(math.log10(error)) - 1) or (
        abs(printed - value) <= 0.5 and error >= 10
    )
    assert abs(bar - error) <= 0.5 * error


@pytest.mark.parametrize(
    ("value", "error"), [(1 / 3, 1e-15), (12345678910.0, 0.5), (1234567.891, 1e-5), (1e-20, 1e-22)]
)
def test_printed_value_lies_within_its_printed_bar(value: float, error: float):
    printed = float(format_with_error(value, error).split(" ± ")[0])
    assert abs(printed - value) <= error


SOLUTION = Solution(
    {"a": torch.ones(2, 3), "b": torch.zeros(2)},
    torch.tensor([1.0, 2.0]),
    torch.tensor([0.1, 0.2]),
    torch.tensor([3, 4]),
    torch.tensor([5, 6]),
    torch.tensor([0, 128]),
    "LBFGS",
)
FULL = Estimate(
    number([1.0, 2.0]),
    number([0.1, 0.2]),
    number([0.05, 0.1]),
    4.0,
    0.9,
    torch.tensor([0, 8]),
    torch.tensor([1, 2]),
    "m",
    {"khat": number([0.1, 0.2])},
    number([[1.0, 0.0], [0.0, 1.0]]),
)
RESULTS = {"full": FULL, "bare": estimate(1.0, 0.1), "flagged": FLAGGED, "solution": SOLUTION}


@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS.keys())
def test_flatten_and_unflatten_undo_each_other(result: Estimate | Solution):
    leaves, spec = pytree.tree_flatten(result)
    assert all(map(torch.is_tensor, leaves))
    back = pytree.tree_unflatten(leaves, spec)
    assert type(back) is type(result)
    for name, value in vars(result).items():
        got = getattr(back, name)
        assert got is value or got == value or all(got[k] is value[k] for k in value)


def test_tree_map_reaches_every_tensor():
    leaves, _ = pytree.tree_flatten(FULL)
    assert len(leaves) == 7
    assert len(pytree.tree_flatten(SOLUTION)[0]) == 7
    floats = pytree.tree_map(lambda x: x.to(torch.float32) if x.is_floating_point() else x, FULL)
    assert floats.value.dtype == floats.covariance.dtype == torch.float32
    assert floats.diagnostics["khat"].dtype == torch.float32
    assert (floats.dof, floats.confidence, floats.method) == (4.0, 0.9, "m")


def test_results_of_one_kind_share_a_structure():
    assert pytree.tree_structure(FULL) == pytree.tree_structure(FULL)
    assert pytree.tree_structure(FULL) != pytree.tree_structure(FLAGGED)


def test_results_are_frozen_and_compare_by_identity():
    with pytest.raises(AttributeError, match="cannot assign to field"):
        FULL.value = number(1.0)
    assert FULL == FULL  # noqa: PLR0124
    assert estimate(1.0, 0.1) != estimate(1.0, 0.1)


def test_a_solution_speaks_of_its_flags():
    assert not SOLUTION.ok
    assert SOLUTION.flags == Status.NOT_CONVERGED
