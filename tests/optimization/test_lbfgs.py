from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from probcalc.optimization.lbfgs import LBFGS, inverse_hessian_product
from probcalc.status import Status


def two_loops(steps: Tensor, changes: Tensor, grad: Tensor) -> Tensor:
    """Nocedal & Wright (2006), algorithm 7.4, one problem at a time; zero pairs are not stored."""
    pairs = [(s, y) for s, y in zip(steps, changes, strict=True) if float(s @ y) != 0.0]
    q, a = grad.clone(), []
    for s, y in reversed(pairs):
        a.append((s @ q) / (s @ y))
        q = q - a[-1] * y
    if pairs:
        s, y = pairs[-1]
        q = q * (s @ y) / (y @ y)
    for (s, y), alpha in zip(pairs, reversed(a), strict=True):
        q = q + s * (alpha - (y @ q) / (s @ y))
    return q


def pairs_of(b: int, m: int, d: int, stored: int, generator: torch.Generator) -> tuple:
    """Steps and the changes that a positive definite quadratic answers them with."""
    root = torch.randn(b, d, d, generator=generator, dtype=torch.float64)
    hessian = root @ root.mT + torch.eye(d)
    steps = torch.randn(b, m, d, generator=generator, dtype=torch.float64)
    steps[:, : m - stored] = 0.0  # newest last
    grad = torch.randn(b, d, generator=generator, dtype=torch.float64)
    return steps, steps @ hessian, grad


@pytest.mark.parametrize("stored", [0, 1, 3, 5])
@pytest.mark.parametrize("d", [1, 2, 8])
def test_compact_product_equals_the_two_loop_recursion(
    stored: int, d: int, generator: torch.Generator
):
    steps, changes, grad = pairs_of(4, 5, d, stored, generator)
    expected = torch.stack([two_loops(*row) for row in zip(steps, changes, grad, strict=True)])
    got = inverse_hessian_product(steps, changes, grad)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


def test_product_satisfies_the_secant_equation(generator: torch.Generator):
    """H y = s for the newest pair, whatever the older ones."""
    steps, changes, _ = pairs_of(3, 4, 6, 4, generator)
    got = inverse_hessian_product(steps, changes, changes[:, -1])
    torch.testing.assert_close(got, steps[:, -1])


def test_product_is_a_positive_definite_matrix(generator: torch.Generator):
    steps, changes, _ = pairs_of(1, 4, 6, 4, generator)
    eye = torch.eye(6, dtype=torch.float64)
    H = inverse_hessian_product(steps.expand(6, -1, -1), changes.expand(6, -1, -1), eye)
    torch.testing.assert_close(H, H.mT)
    assert torch.linalg.eigvalsh(H).min() > 0


def test_no_pair_means_steepest_descent(generator: torch.Generator):
    grad = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    none = torch.zeros(3, 5, 4, dtype=torch.float64)
    assert torch.equal(inverse_hessian_product(none, none, grad), grad)


BAD = {
    "memory": ({"memory": 0}, "`LBFGS(memory=...)` must be at least 1, got 0"),
    "decrease": ({"decrease": 0.0}, "0 < decrease < curvature < 1, got decrease=0.0"),
    "order": ({"decrease": 0.5, "curvature": 0.4}, "got decrease=0.5, curvature=0.4"),
    "curvature": ({"curvature": 1.0}, "got decrease=0.0001, curvature=1.0"),
    "nan": ({"curvature": math.nan}, "curvature=nan"),
}


@pytest.mark.parametrize(("settings", "text"), BAD.values(), ids=BAD.keys())
def test_settings_out_of_range_are_refused(settings: dict, text: str):
    with pytest.raises(ValueError, match=r"`LBFGS") as error:
        LBFGS(**settings)
    assert text in str(error.value)


def rosenbrock(x: Tensor) -> tuple[Tensor, Tensor]:
    a, b = x.unbind(-1)
    value = (1 - a) ** 2 + 100 * (b - a**2) ** 2
    grad = torch.stack([-2 * (1 - a) - 400 * a * (b - a**2), 200 * (b - a**2)], -1)
    return value, grad


STARTS = torch.tensor([[-1.2, 1.0], [3.0, -2.0], [1.0, 1.0], [0.0, 5.0]], dtype=torch.float64)


def test_accepted_steps_satisfy_strong_wolfe():
    """Decrease of at least c₁ of the promise, slope at most c₂ of what it was."""
    method = LBFGS()
    state = method.init(STARTS, *rosenbrock(STARTS))
    for _ in range(60):
        value, grad = rosenbrock(method.point(state))
        new = method.step(state, value, grad)
        accepted = new.num_iterations > state.num_iterations
        step = new.x - state.x
        promised = (state.grad * step).sum(-1)
        decreased = new.value <= state.value + 1e-4 * promised + 1e-12 * state.value.abs()
        flat = (new.grad * step).sum(-1).abs() <= 0.9 * promised.abs() + 1e-15
        assert (decreased & flat)[accepted].all()
        assert torch.equal(new.x[~accepted], state.x[~accepted])
        assert (new.value <= state.value * (1 + 1e-12) + 1e-15).all()
        state = new
    assert not state.active.any()
    assert (state.grad.abs() < 1e-8).all()


# value and slope met one unit downhill of a point with value 0 and slope -1
TRIALS = {
    "lower and flat": (-0.5, 0.1, True),
    "lower, slope nearly kept": (-0.95, -0.95, False),
    "lower, slope reversed": (-0.3, 0.95, False),
    "flat but higher": (5.0, 0.0, False),
    "higher by a little": (1e-9, 0.0, False),
    "no lower, but past the bottom": (0.0, 0.5, True),  # Hager & Zhang's test by slopes
    "no lower, slope reversed": (0.0, 1.0, False),
    "not a number": (math.nan, 0.0, False),
    "infinitely low": (-math.inf, 0.0, False),
}


@pytest.mark.parametrize(("value", "slope", "taken"), TRIALS.values(), ids=TRIALS.keys())
def test_what_a_line_search_takes(value: float, slope: float, taken: bool):
    """Decrease and flatness, each alone in deciding somewhere."""
    number = lambda x: torch.tensor([x], dtype=torch.float64)  # noqa: E731
    method = LBFGS()
    state = method.init(number(0.0)[None], number(0.0), number(-1.0)[None])
    assert method.point(state).item() == 1.0
    after = method.step(state, number(value), number(slope)[None])
    assert bool(after.num_iterations) is taken
    assert after.x.item() == (1.0 if taken else 0.0)


def test_a_step_changes_no_state():
    """The functional core: the state that goes in is as it was."""
    method = LBFGS()
    state = method.init(STARTS, *rosenbrock(STARTS))
    before = {f.name: getattr(state, f.name).clone() for f in fields(state)}
    method.step(state, *rosenbrock(method.point(state)))
    for name, tensor in before.items():
        assert torch.equal(getattr(state, name), tensor)


def test_finished_problems_stand_still():
    method = LBFGS()
    state = method.init(STARTS, *rosenbrock(STARTS))
    assert state.active.tolist() == [True, True, False, True]
    for _ in range(5):
        state = method.step(state, *rosenbrock(method.point(state)))
    assert torch.equal(state.x[2], STARTS[2])
    assert state.num_iterations[2] == 0


def test_memory_holds_the_newest_pairs():
    method = LBFGS(memory=2)
    state = method.init(STARTS[:1], *rosenbrock(STARTS[:1]))
    xs, gs = [state.x], [state.grad]
    while int(state.num_iterations) < 4:
        state = method.step(state, *rosenbrock(method.point(state)))
        if not torch.equal(state.x, xs[-1]):
            xs.append(state.x)
            gs.append(state.grad)
    torch.testing.assert_close(state.steps, torch.stack([xs[3] - xs[2], xs[4] - xs[3]], 1))
    torch.testing.assert_close(state.changes, torch.stack([gs[3] - gs[2], gs[4] - gs[3]], 1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_start_that_is_not_finite_is_flagged(bad: float):
    x = torch.zeros(2, 2, dtype=torch.float64)
    value = torch.tensor([1.0, bad], dtype=torch.float64)
    state = LBFGS().init(x, value, torch.ones(2, 2, dtype=torch.float64))
    assert state.status.tolist() == [Status.OK, Status.NON_FINITE]
    assert state.active.tolist() == [True, False]
