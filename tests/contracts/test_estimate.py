"""Laws of `Estimate` under arithmetic, indexing, pytrees and torch's transforms."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.func import grad, jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from probcalc.result import Estimate
from probcalc.status import Status


def number(x: Any) -> torch.Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def estimate(value: Any, error: Any, **kwargs: Any) -> Estimate:
    return Estimate(number(value), number(error), **kwargs)


VECTOR = estimate([1.0, 2.0, 3.0], [0.1, 0.2, 0.3], std_error=number([0.05, 0.1, 0.15]), dof=7.0)
FLAGGED = estimate(2.0, 0.1, status=int(Status.NON_FINITE), num_evals=7, method="rule")

magnitudes = st.floats(0.1, 10.0)
signed = st.builds(operator.mul, magnitudes, st.sampled_from([1.0, -1.0]))
# (value, relative half-width, where in the bar the truth lies); the end is left out because the
# last rounding of value and bar is not part of the claim
leaves = st.tuples(signed, st.floats(1e-3, 2.0), st.floats(-0.999, 0.999))

OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
    "exp": lambda x: x.exp() if isinstance(x, Estimate) else math.exp(x),
    "log": lambda x: x.log() if isinstance(x, Estimate) else math.log(x),
}
BINARY, UNARY = ("add", "sub", "mul", "div"), ("neg", "exp", "log")
trees = st.recursive(
    st.one_of(st.integers(0, 2), magnitudes),  # one of three estimates, or a known number
    lambda below: st.one_of(
        st.tuples(st.sampled_from(BINARY), below, below),
        st.tuples(st.sampled_from(UNARY), below),
    ),
    max_leaves=8,
)


def evaluate(tree: Any, variables: list[Any]) -> Any:
    if isinstance(tree, int):
        return variables[tree]
    if isinstance(tree, float):
        return tree
    name, *below = tree
    return OPERATIONS[name](*(evaluate(branch, variables) for branch in below))


def with_truth(leaf: tuple[float, float, float]) -> tuple[Estimate, float]:
    value, width, place = leaf
    error = abs(value) * width
    return estimate(value, error), value + place * error


def true_value(tree: Any, truths: list[float]) -> float | None:
    try:
        return evaluate(tree, truths)
    except (ValueError, OverflowError, ZeroDivisionError):  # no true value to compare with
        return None


def on_numbers_alone(tree: Any) -> bool:
    """Is some function of known numbers only, so that nothing there is an Estimate?"""
    if isinstance(tree, tuple):
        return any(map(on_numbers_alone, tree[1:])) or all(isinstance(t, float) for t in tree[1:])
    return False


@given(trees, st.lists(leaves, min_size=3, max_size=3))
def test_bars_contain_the_truth_through_any_expression(tree: Any, variables: list):
    """Whatever the dependence: x − x, x · x and x / x are among the expressions."""
    assume(isinstance(tree, tuple) and not on_numbers_alone(tree))
    estimates, truths = zip(*map(with_truth, variables), strict=True)
    truth = true_value(tree, list(truths))
    assume(truth is not None and math.isfinite(truth))
    result = evaluate(tree, list(estimates))
    value, error = float(result.value), float(result.error)
    assume(not math.isnan(value) and math.isfinite(value))
    assert error >= 0
    assert abs(truth - value) <= error * (1 + 1e-9) + 1e-9 * abs(value)


@pytest.mark.parametrize("name", BINARY)
@given(leaves, leaves)
def test_bars_contain_the_truth_in_one_operation(name: str, first: tuple, second: tuple):
    (a, x), (b, y) = with_truth(first), with_truth(second)
    op = OPERATIONS[name]
    for result, truth in (
        (op(a, b), op(x, y)),
        (op(a, y), op(x, y)),
        (op(x, b), op(x, y)),
        (op(a, number(y)), op(x, y)),
    ):
        assert abs(truth - float(result.value)) <= float(result.error) * (1 + 1e-9) + 1e-12
        assert result.error.shape == result.value.shape


# name -> (expression of a = 2 ± 0.1 and b = 4 ± 1, value, error)
EXACT = {
    "sum": (lambda a, b: a + b, 6.0, 1.1),
    "difference": (lambda a, b: a - b, -2.0, 1.1),
    "product": (lambda a, b: a * b, 8.0, 2 * 1 + 4 * 0.1 + 0.1),
    "reciprocal": (lambda a, b: 1 / b, 0.25, 1 / 3 - 1 / 4),
    "quotient": (lambda a, b: a / b, 0.5, 2.1 / 3 - 0.5),
    "exp": (lambda a, b: a.exp(), math.exp(2), math.exp(2.1) - math.exp(2)),
    "log": (lambda a, b: a.log(), math.log(2), math.log(2) - math.log(1.9)),
    "negative": (lambda a, b: -a, -2.0, 0.1),
    "shift": (lambda a, b: 3 - a, 1.0, 0.1),
    "scale": (lambda a, b: -3 * a, -6.0, 0.3),
    "part": (lambda a, b: a / -4, -0.5, 0.025),
    "itself": (lambda a, b: a - a, 0.0, 0.2),
}


@pytest.mark.parametrize(("fn", "value", "error"), EXACT.values(), ids=EXACT.keys())
def test_bars_are_no_wider_than_the_largest_side(fn: Callable, value: float, error: float):
    """Soundness alone is cheap: the bar is exactly the farther end of the interval's image."""
    result = fn(estimate(2.0, 0.1), estimate(4.0, 1.0))
    assert float(result.value) == pytest.approx(value, rel=1e-12, abs=1e-15)
    assert float(result.error) == pytest.approx(error, rel=1e-12)


@pytest.mark.parametrize("status", [0, torch.tensor([0, 32])])
def test_the_logarithm_of_what_is_below_zero_is_flagged(status: object):
    e = estimate([[2.0, 1.0], [1.0, -1.0]], [[0.1, 0.1], [0.1, 0.5]], status=status)
    log = e.log()
    assert log.value.isnan().tolist() == [[False, False], [False, True]]
    assert log.error[1, 1] == math.inf
    assert log.flags == Status.NON_FINITE | Status.joined(status)
    if torch.is_tensor(status):
        assert log.status.tolist() == [0, Status.NON_FINITE | 32]


# an interval that meets the pole or the edge of the domain has no finite bar
@pytest.mark.parametrize("error", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("fn", [lambda b: 1 / b, lambda b: estimate(3.0, 0.1) / b, Estimate.log])
def test_no_finite_bar_at_a_pole(fn: Callable, error: float):
    assert float(fn(estimate(1.0, error)).error) == math.inf


@pytest.mark.parametrize(
    "fn",
    [
        lambda a: a + 1,
        lambda a: a * 2,
        lambda a: a * estimate(3.0, 0.1),
        lambda a: a + estimate(3.0, 0.1),
        lambda a: a.exp(),
        lambda a: 1 / a,
        lambda a: a[()],
    ],
)
def test_no_bar_stays_no_bar(fn: Callable):
    assert float(fn(estimate(5.0, math.inf)).error) == math.inf


NO_BAR_TIMES_ZERO = {
    "estimate": lambda: estimate(0.0, 0.0) * estimate(5.0, math.inf),
    "number": lambda: estimate(5.0, math.inf) * 0.0,
    "infinity": lambda: Estimate.exact(math.inf) * estimate(2.0, 0.1) * 0.0,
}


@pytest.mark.parametrize("fn", NO_BAR_TIMES_ZERO.values(), ids=NO_BAR_TIMES_ZERO.keys())
def test_a_bar_is_never_nan(fn: Callable):
    assert not fn().error.isnan().any()


def test_confidences_combine_by_the_union_bound():
    a, b = estimate(2.0, 0.1, confidence=0.99), estimate(4.0, 1.0, confidence=0.95)
    for op in (operator.add, operator.sub, operator.mul, operator.truediv):
        assert op(a, b).confidence == pytest.approx(0.94)
    for alone in (a + 1, 2 * a, -a, a.exp(), a.log(), 1 / a, a[()]):
        assert alone.confidence == 0.99
    low = estimate(1.0, 0.1, confidence=0.4)
    assert (low + low).confidence == 0.0


@pytest.mark.parametrize("op", [OPERATIONS[name] for name in BINARY])
def test_statuses_are_joined_and_costs_added(op: Callable):
    batch = torch.tensor([0, int(Status.NON_FINITE)])
    a = estimate([1.0, 2.0], [0.1, 0.1], status=batch, num_evals=5)
    b = estimate(
        [3.0, 4.0], [0.1, 0.1], status=int(Status.ROUNDOFF), num_evals=torch.tensor([1, 2])
    )
    result = op(a, b)
    assert result.status.tolist() == [32, 40]
    assert result.num_evals.tolist() == [6, 7]


@pytest.mark.parametrize(
    "fn", [lambda a: a + 1, lambda a: 2 * a, operator.neg, Estimate.exp, Estimate.log]
)
def test_flags_and_costs_survive_functions_of_one(fn: Callable):
    result = fn(FLAGGED)
    assert result.flags == Status.NON_FINITE
    assert result.num_evals == 7
    assert "rule" in result.method


def test_scale_keeps_the_standard_error():
    doubled = -2 * VECTOR
    torch.testing.assert_close(doubled.std_error, 2 * VECTOR.std_error)
    assert doubled.dof == VECTOR.dof
    torch.testing.assert_close((VECTOR + 1).std_error, VECTOR.std_error)


def test_shapes_broadcast_together():
    total = estimate([[1.0], [2.0]], [[0.1], [0.2]]) + estimate([1.0, 2.0, 3.0], [0.0, 0.1, 0.2])
    assert total.value.shape == total.error.shape == (2, 3)
    scaled = estimate(1.0, 0.1) * number([1.0, -2.0])
    assert scaled.error.tolist() == [0.1, 0.2]


def test_a_shift_by_a_larger_tensor_keeps_one_error_an_entry():
    shifted = estimate(1.0, 0.1) + number([1.0, 2.0])
    assert shifted.error.shape == shifted.value.shape == (2,)


def test_values_keep_gradients_and_bars_do_not():
    x = number([1.0, 2.0]).requires_grad_()
    a = Estimate(x.square(), number([0.1, 0.2]))
    result = (3 * a + a * a - 1 / a + a.log()).exp()
    assert not result.error.requires_grad
    (got,) = torch.autograd.grad(result.value.sum(), x)
    y = number([1.0, 2.0]).requires_grad_()
    plain = (3 * y**2 + y**4 - 1 / y**2 + (y**2).log()).exp()
    torch.testing.assert_close(got, torch.autograd.grad(plain.sum(), y)[0])


def test_gradients_in_a_factor_stay_out_of_the_bar():
    result = estimate(2.0, 0.1) * number(3.0).requires_grad_()
    assert result.value.requires_grad
    assert not result.error.requires_grad


# name -> what becomes of x; every member must give under a transform what it gives without
MEMBERS: dict[str, Callable[[torch.Tensor], Estimate]] = {
    "sum": lambda x: bar(x) + bar(x.cos()),
    "difference": lambda x: 3.0 - bar(x),
    "product": lambda x: bar(x) * bar(x.cos()) * 2.0,
    "quotient": lambda x: bar(x) / bar(x + 4.0),
    "pole": lambda x: 1.0 / Estimate(x, 2 * x.detach().abs()),
    "exp": lambda x: bar(x).exp(),
    "log": lambda x: bar(x + 1.0).log(),
    "replicates": lambda x: Estimate.from_replicates(torch.stack([x, x.sin(), x**2])),
    "exact": lambda x: Estimate.exact(x),
    "indexed": lambda x: bar(torch.stack([x, -x]))[1],
}


def bar(x: torch.Tensor) -> Estimate:
    return Estimate(x, 0.1 * x.detach().abs(), num_evals=3, method="bar")


POINTS = torch.tensor([0.3, 0.7, 1.1, 2.0], dtype=torch.float64)


def same(a: Estimate, b: Estimate) -> None:
    torch.testing.assert_close(a.value, b.value)
    torch.testing.assert_close(a.error, b.error)
    assert (a.confidence, a.dof, a.method) == (b.confidence, b.dof, b.method)
    assert a.flags == b.flags


def stacked(fn: Callable[[torch.Tensor], Estimate]) -> Estimate:
    rows = [fn(x) for x in POINTS]
    one = rows[0]
    return Estimate(
        torch.stack([e.value for e in rows]),
        torch.stack([e.error for e in rows]),
        None,
        one.dof,
        one.confidence,
        method=one.method,
    )


@pytest.mark.parametrize("fn", MEMBERS.values(), ids=MEMBERS.keys())
def test_under_vmap_as_one_by_one(fn: Callable):
    same(vmap(fn)(POINTS), stacked(fn))


@pytest.mark.parametrize("fn", MEMBERS.values(), ids=MEMBERS.keys())
def test_under_make_fx_as_without(fn: Callable):
    """The graph traced at one point is right at the others: nothing was read on the host."""
    traced = make_fx(fn)(POINTS[0])
    for x in POINTS:
        same(traced(x), fn(x))


@pytest.mark.parametrize("fn", MEMBERS.values(), ids=MEMBERS.keys())
def test_under_grad_as_under_autograd(fn: Callable):
    """First and second derivative of the value, and the estimate itself as by-product."""
    x = POINTS[1].clone().requires_grad_()
    value = fn(x).value
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    second = torch.autograd.grad(first, x)[0] if first.requires_grad else torch.zeros_like(x)
    got, by_product = grad(lambda z: (fn(z).value, fn(z)), has_aux=True)(POINTS[1])
    torch.testing.assert_close(got, first.detach())
    same(by_product, fn(POINTS[1]))
    torch.testing.assert_close(grad(grad(lambda z: fn(z).value))(POINTS[1]), second)
    torch.testing.assert_close(
        jacrev(lambda z: vmap(fn)(z).value)(POINTS).diagonal(),
        torch.stack([grad(lambda z: fn(z).value)(x) for x in POINTS]),
    )


@pytest.mark.parametrize("fn", MEMBERS.values(), ids=MEMBERS.keys())
def test_bars_are_detached_and_shaped_as_values(fn: Callable):
    result = fn(POINTS.clone().requires_grad_())
    assert result.error.shape == result.value.shape
    assert not result.error.requires_grad
    assert not result.error.isnan().any()
    assert (result.error >= 0).all()


@pytest.mark.parametrize("fn", MEMBERS.values(), ids=MEMBERS.keys())
def test_dtype_is_kept(fn: Callable):
    result = fn(POINTS.float())
    assert result.value.dtype == result.error.dtype == torch.float32
