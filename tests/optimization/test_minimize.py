from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import scipy.optimize
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from probcalc.optimization.lbfgs import LBFGS
from probcalc.optimization.minimize import descend, minimize
from probcalc.result import Solution
from probcalc.status import Status


def tensor(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def quadratic(condition: float, d: int = 10) -> Callable[[Tensor], Tensor]:
    weights = torch.logspace(0, math.log10(condition), d, dtype=torch.float64)
    return lambda x: 0.5 * (weights * (x - 1).square()).sum()


def beale(x: Tensor) -> Tensor:
    a, b = x
    return (1.5 - a + a * b) ** 2 + (2.25 - a + a * b**2) ** 2 + (2.625 - a + a * b**3) ** 2


def powell(x: Tensor) -> Tensor:
    a, b, c, d = x
    return (a + 10 * b) ** 2 + 5 * (c - d) ** 2 + (b - 2 * c) ** 4 + 10 * (a - d) ** 4


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2).square() + (1 - x[:-1]).square()).sum()


ROWS = torch.cos(torch.arange(60.0, dtype=torch.float64).square()).reshape(20, 3)
LABELS = (torch.arange(20) % 3 == 0).double()


def logistic(x: Tensor) -> Tensor:
    return torch.nn.functional.softplus(ROWS @ x).sum() - LABELS @ (ROWS @ x) + 0.05 * x @ x


def walled(x: Tensor) -> Tensor:
    """Minimum at 1/2; not a number beyond 1, right where the first long steps land."""
    return -(x.log() + (1 - x).log()).sum()


def log_sum_exp(x: Tensor) -> Tensor:
    return torch.logsumexp(torch.cat([ROWS @ x, -(ROWS @ x)]), 0)


@dataclass(frozen=True)
class Problem:
    """A function, a start and what is known about its minimum."""

    fn: Callable[[Tensor], Tensor]
    start: Tensor
    x: Tensor | None  # None: taken from scipy
    evals: int  # more than this means that the method has lost its speed
    atol: float = 1e-6


PROBLEMS = {
    "sphere": Problem(quadratic(1.0), torch.zeros(10).double(), torch.ones(10).double(), 6),
    "condition 1e3": Problem(
        quadratic(1e3), torch.zeros(10).double(), torch.ones(10).double(), 150
    ),
    "condition 1e6": Problem(
        quadratic(1e6), torch.zeros(10).double(), torch.ones(10).double(), 1_000
    ),
    "rosenbrock 2": Problem(rosenbrock, tensor(-1.2, 1.0), tensor(1.0, 1.0), 70),
    "rosenbrock 10": Problem(
        rosenbrock, torch.full((10,), -0.5).double(), torch.ones(10).double(), 150
    ),
    "beale": Problem(beale, tensor(1.0, 1.0), tensor(3.0, 0.5), 40),
    # singular Hessian: the gradient vanishes like the cube of the distance
    "powell": Problem(powell, tensor(3.0, -1.0, 0.0, 1.0), torch.zeros(4).double(), 120, 5e-3),
    "logistic": Problem(logistic, torch.zeros(3).double(), None, 30),
    "log-sum-exp": Problem(log_sum_exp, tensor(3.0, -2.0, 1.0), torch.zeros(3).double(), 40),
    "walled": Problem(walled, tensor(0.01, 0.98), tensor(0.5, 0.5), 60),
    "far away": Problem(
        quadratic(10.0), torch.full((10,), 1e6).double(), torch.ones(10).double(), 60
    ),
    "one dimension": Problem(lambda x: x.cosh().sum(), tensor(3.0), tensor(0.0), 20),
    "flat valley": Problem(
        lambda x: (x[0] + x[1] - 1) ** 2, tensor(0.0, 0.0), tensor(0.5, 0.5), 8
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
def test_known_minima_are_found(problem: Problem):
    solution = minimize(problem.fn, problem.start)
    assert solution.ok
    expected = problem.x
    if expected is None:
        value_and_grad = lambda x: _numpy(problem.fn, x)  # noqa: E731
        found = scipy.optimize.minimize(
            value_and_grad, problem.start.numpy(), jac=True, method="BFGS", options={"gtol": 1e-10}
        )
        expected = torch.from_numpy(found.x)
    torch.testing.assert_close(solution.x, expected, rtol=0.0, atol=problem.atol)
    torch.testing.assert_close(solution.value, problem.fn(solution.x))
    g = torch.func.grad(problem.fn)(solution.x)
    torch.testing.assert_close(solution.grad_norm, g.abs().max(), rtol=1e-6, atol=1e-12)
    assert int(solution.num_evals) <= problem.evals
    assert int(solution.num_iterations) < int(solution.num_evals)
    assert solution.method == "LBFGS"


def _numpy(fn: Callable, x: object) -> tuple:
    g, value = grad_and_value(fn)(torch.as_tensor(x))
    return value.item(), g.numpy()


# name -> (function, start): no minimum, so no result may look good
FLAGGED = {
    "linear": (lambda x: x.sum(), tensor(0.0, 0.0)),
    "concave": (lambda x: -x.square().sum(), tensor(1.0, 2.0)),
    "cubic": (lambda x: x.pow(3).sum(), tensor(-1.0)),
    "nan at the start": (lambda x: x.log().sum(), tensor(-1.0)),
    "infinite at the start": (lambda x: (1 / x).sum(), tensor(0.0)),
    "ends in a hole": (lambda x: x.log().sum(), tensor(1.0)),
}


@pytest.mark.parametrize(("fn", "start"), FLAGGED.values(), ids=FLAGGED.keys())
def test_no_minimum_is_never_called_one(fn: Callable, start: Tensor):
    solution = minimize(fn, start, max_evals=2_000)
    assert not solution.ok
    assert int(solution.num_evals) <= 2_000


def test_bad_starts_say_so():
    fn, start = FLAGGED["nan at the start"]
    solution = minimize(fn, start)
    assert solution.flags == Status.NON_FINITE
    assert torch.equal(solution.x, start)
    assert int(solution.num_evals) == 1


@pytest.mark.parametrize("fn", [quadratic(10.0), lambda x: x.sum() * 0 + 3.0])
def test_a_start_at_the_optimum_stays(fn: Callable):
    """A minimum, and a function that is flat everywhere: one evaluation, no step."""
    start = torch.ones(10, dtype=torch.float64)
    solution = minimize(fn, start)
    assert solution.ok
    assert torch.equal(solution.x, start)
    assert (int(solution.num_evals), int(solution.num_iterations)) == (1, 0)


@pytest.mark.parametrize("constant", [1e9, -1e9])
def test_a_constant_in_the_objective_does_not_matter(constant: float):
    solution = minimize(lambda x: constant + (x - 2).square().sum(), torch.zeros(3).double())
    torch.testing.assert_close(solution.x, torch.full((3,), 2.0).double(), rtol=0.0, atol=1e-4)


@pytest.mark.parametrize(
    "fn", [lambda x: -((1 + x.square()) ** 0.25).sum(), lambda x: -x.log().sum()]
)
def test_a_slow_descent_without_end_is_not_called_a_minimum(fn):
    """The gradient vanishes towards infinity, the step does not."""
    solution = minimize(fn, torch.ones(2).double(), max_evals=2_000)
    assert not solution.ok


@pytest.mark.parametrize("budget", [1, 2, 7])
def test_a_spent_budget_is_flagged(budget: int):
    solution = minimize(rosenbrock, tensor(-1.2, 1.0), max_evals=budget)
    assert solution.flags == Status.NOT_CONVERGED
    assert int(solution.num_evals) == budget
    assert solution.value <= rosenbrock(tensor(-1.2, 1.0))


def test_the_best_point_met_is_kept_where_the_search_ends():
    solution = minimize(rosenbrock, tensor(-1.2, 1.0), max_evals=12)
    torch.testing.assert_close(solution.value, rosenbrock(solution.x))
    g = torch.func.grad(rosenbrock)(solution.x)
    torch.testing.assert_close(solution.grad_norm, g.abs().max())


STARTS = torch.tensor([[-1.2, 1.0], [1.0, 1.0], [5.0, -3.0], [0.9, 0.9]], dtype=torch.float64)


def same(batch: Solution, i: int, one: Solution) -> None:
    torch.testing.assert_close(batch.x[i], one.x, rtol=1e-9, atol=1e-9)
    for name in ("num_iterations", "num_evals", "status"):
        assert int(getattr(batch, name)[i]) == int(getattr(one, name))


def test_a_batch_equals_one_by_one():
    """Mixed difficulty: each spends what it spends alone, to the evaluation."""
    batch = minimize(rosenbrock, STARTS, batch_dims=1)
    assert batch.x.shape == STARTS.shape
    assert batch.value.shape == batch.status.shape == batch.num_evals.shape == (4,)
    assert len(set(batch.num_evals.tolist())) > 2
    for i, start in enumerate(STARTS):
        same(batch, i, minimize(rosenbrock, start))


def test_a_failing_problem_leaves_the_others_alone():
    fn = lambda x, sign: sign * x.square().sum() + x.sum()  # noqa: E731
    batch = minimize(
        fn, torch.ones(3, 2).double(), args=(tensor(1.0, -1.0, 4.0),), batch_dims=1, max_evals=500
    )
    assert [int(s) == 0 for s in batch.status] == [True, False, True]
    torch.testing.assert_close(batch.x[0], tensor(-0.5, -0.5))
    torch.testing.assert_close(batch.x[2], tensor(-0.125, -0.125))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_batches_have_the_shape_of_the_start(shape: tuple[int, ...], generator: torch.Generator):
    """Each problem has its own arguments, of its own shape."""
    centre = torch.randn(*shape, 4, generator=generator, dtype=torch.float64)
    weight = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
    fn = lambda x, c, w: w * (x - c).cosh().sum()  # noqa: E731
    solution = minimize(fn, torch.zeros_like(centre), args=(centre, weight), batch_dims=len(shape))
    assert solution.ok
    torch.testing.assert_close(solution.x, centre, rtol=0.0, atol=1e-7)
    for name in ("value", "grad_norm", "num_iterations", "num_evals", "status"):
        assert getattr(solution, name).shape == shape
    torch.testing.assert_close(solution.value, 4 * weight)


def test_dictionaries_go_in_and_out():
    init = {"a": torch.zeros(2, dtype=torch.float64), "b": torch.zeros(2, 3, dtype=torch.float64)}
    fn = lambda v: (v["a"] - 1).square() + (v["b"] - v["a"]).square().sum()  # noqa: E731
    solution = minimize(fn, init, batch_dims=1)
    assert solution.x["a"].shape == (2,)
    torch.testing.assert_close(solution.x["a"], tensor(1.0, 1.0))
    torch.testing.assert_close(solution.x["b"], torch.ones(2, 3, dtype=torch.float64))


def test_evaluations_are_counted():
    """To the call for one problem; to the row for a batch, where those that are done drop out."""
    calls: list[Tensor] = []
    gradient = vmap(grad_and_value(rosenbrock))

    def oracle(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        assert len(points) == len(rows)
        calls.append(rows)
        g, value = gradient(points)
        return value, g

    solution = descend(oracle, STARTS, method=LBFGS(), max_evals=1_000)
    spent = torch.bincount(torch.cat(calls), minlength=4)
    assert torch.equal(spent, solution.num_evals)
    assert len(calls) == int(solution.num_evals.max())
    assert len(calls[-1]) < 4


def test_float32_converges_to_its_own_precision():
    fn = lambda x: (x - 1).square().sum() + x.cosh().sum() * 0.1  # noqa: E731
    solution = minimize(fn, torch.zeros(10), method=LBFGS(gtol=1e-5))
    assert solution.ok
    assert solution.x.dtype == torch.float32
    exact = minimize(fn, torch.zeros(10, dtype=torch.float64)).x
    torch.testing.assert_close(solution.x.double(), exact, rtol=0.0, atol=1e-5)


def test_memory_of_one_pair_is_enough():
    solution = minimize(rosenbrock, STARTS[0], method=LBFGS(memory=1))
    assert solution.ok
    torch.testing.assert_close(solution.x, tensor(1.0, 1.0), rtol=0.0, atol=1e-6)


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match=r"must return a scalar, got shape \(2,\); sum it"):
        minimize(lambda x: x.square(), tensor(1.0, 2.0))
    with pytest.raises(ValueError, match=r"at least batch_dims=2 axes, got \{'x': \(3,\)\}"):
        minimize(lambda x: x.sum(), tensor(1.0, 2.0, 3.0), batch_dims=2)
    with pytest.raises(ValueError, match="names no parameter"):
        minimize(lambda x: x.sum(), {})
    with pytest.raises(ValueError, match=r"must agree, got \{'x': \(3, 2\)\} and \[\(2,\)\]"):
        minimize(lambda x, a: a * x.sum(), torch.ones(3, 2), args=(torch.ones(2),), batch_dims=1)
