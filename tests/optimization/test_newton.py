"""Newton's method: quadratic convergence, saddles left, and what has no minimum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor
from torch.nn.functional import softplus

from probcalc import LBFGS, Newton, Status, minimize
from probcalc.optimization.minimize import descend

OPTIMUM = 37.7589459619  # of the penalised breast-cancer regression


def breast_cancer() -> tuple[Tensor, Tensor]:
    x, y = load_breast_cancer(return_X_y=True)
    x = torch.tensor((x - x.mean(axis=0)) / x.std(axis=0))
    return x, torch.tensor(y, dtype=torch.float64)


def regression(penalty: float) -> Callable[[Tensor], Tensor]:
    x, y = breast_cancer()

    def loss(w: Tensor) -> Tensor:
        eta = x @ w[:-1] + w[-1]
        return (softplus(eta) - y * eta).sum() + 0.5 * penalty * w[:-1].square().sum()

    return loss


def test_logistic_regression():
    start = torch.zeros(31, dtype=torch.float64)
    found = minimize(regression(1.0), start, method=Newton())
    assert found.ok
    assert float(found.value) == pytest.approx(OPTIMUM, abs=1e-9)
    assert int(found.num_iterations) <= 12
    other = minimize(regression(1.0), start, method=LBFGS())
    torch.testing.assert_close(found.x, other.x, rtol=1e-5, atol=1e-6)


def test_separated_classes_have_no_optimum():
    start = torch.zeros(31, dtype=torch.float64)
    found = minimize(regression(0.0), start, method=Newton())
    assert found.flags == Status.UNBOUNDED


def rosenbrock(x: Tensor) -> Tensor:
    return 100 * (x[1:] - x[:-1].square()).square().sum() + (1 - x[:-1]).square().sum()


@pytest.mark.parametrize("d", [2, 5])
def test_rosenbrock(d: int):
    start = torch.full((d,), -1.2, dtype=torch.float64)
    found = minimize(rosenbrock, start, method=Newton())
    assert found.ok
    assert float(found.value) < 1e-15 or d > 2  # there is a second minimum from four on


def test_quadratics_take_one_step():
    found = minimize(
        lambda x: (x - 3).square().sum() + x[0] * x[1],
        torch.zeros(4, dtype=torch.float64),
        method=Newton(),
    )
    assert found.ok
    assert int(found.num_iterations) == 1


def test_convergence_is_quadratic():
    """The number of right digits doubles with each step."""
    method, x = Newton(), torch.tensor([[0.8]], dtype=torch.float64)
    errors = []
    for num in range(2, 6):
        found = descend(
            lambda x, rows: ((x.exp() - x)[:, 0], x.exp() - 1),
            x,
            method=method,
            max_evals=num,
            curvature=lambda x, rows: x.exp()[..., None],
        )
        errors.append(float(found.x.abs()))
    for before, after in zip(errors, errors[1:], strict=False):
        assert after <= before**2


SADDLES = {
    "on it": (lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4, [0.0, 0.0], -0.25),
    "next to it": (lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4, [0.5, 1e-9], -0.25),
    "on a maximum": (lambda x: (x.square() - 1).square().sum(), [0.0, 0.0], 0.0),
}


@pytest.mark.parametrize(("fn", "start", "value"), SADDLES.values(), ids=SADDLES.keys())
def test_saddles_are_left(fn: Callable, start: list[float], value: float):
    found = minimize(fn, torch.tensor(start, dtype=torch.float64), method=Newton())
    assert found.ok
    assert float(found.value) == pytest.approx(value, abs=1e-12)


ENDLESS = {
    "falls for ever": (lambda x: (-x).exp().sum(), Status.UNBOUNDED),
    "concave": (lambda x: -x.square().sum(), Status.NOT_CONVERGED),
}


@pytest.mark.parametrize(("fn", "flag"), ENDLESS.values(), ids=ENDLESS.keys())
def test_what_has_no_minimum_is_flagged(fn: Callable, flag: Status):
    found = minimize(fn, torch.ones(2, dtype=torch.float64), method=Newton(), max_evals=100)
    assert found.flags == flag


def test_batches_are_what_their_problems_are():
    """Hard and easy ones, each at its own place of its own search."""
    starts = torch.tensor([[-1.2, 1.0], [1.0, 1.0], [5.0, -3.0], [0.0, 0.0]]).double()
    both = minimize(rosenbrock, starts, batch_dims=1, method=Newton())
    assert both.ok
    for i in range(len(starts)):
        one = minimize(rosenbrock, starts[i], method=Newton())
        torch.testing.assert_close(both.x[i], one.x, rtol=1e-9, atol=1e-12)
        assert both.num_evals[i] == one.num_evals


def test_starts_that_are_not_finite_are_flagged():
    start = torch.tensor([[-1.0], [4.0]], dtype=torch.float64)
    found = minimize(lambda x: (x.log().square()).sum(), start, batch_dims=1, method=Newton())
    assert found.status.tolist() == [int(Status.NON_FINITE), 0]
    assert float(found.x[1]) == pytest.approx(1.0)


def test_second_derivatives_are_asked_for():
    with pytest.raises(ValueError, match="second derivatives"):
        descend(
            lambda x, rows: (x.sum(dim=-1), torch.ones_like(x)),
            torch.zeros(1, 2),
            method=Newton(),
            max_evals=5,
        )


@pytest.mark.parametrize("settings", [{"gtol": -1.0}, {"damping": -1.0}])
def test_settings_are_not_negative(settings: dict[str, float]):
    with pytest.raises(ValueError, match="at least 0"):
        Newton(**settings)
