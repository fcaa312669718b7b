"""First-order methods: the textbook's formulas, torch's, and their known rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, optim

from probcalc import SGD, Adam, AdamW, RMSprop, Status, minimize
from probcalc.optimization.first_order import FirstOrder

STEPS = 50
CURVES = torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)
Textbook = Callable[[], Iterator[Tensor]]


def gradient(x: Tensor) -> Tensor:
    """Of a function that is no quadratic."""
    return CURVES * x + x.sin()


def start() -> Tensor:
    return torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def gradient_descent(lr: float = 0.05) -> Iterator[Tensor]:
    x = start()
    while True:
        x = x - lr * gradient(x)
        yield x


def momentum(nesterov: bool, lr: float = 0.02, mu: float = 0.9) -> Iterator[Tensor]:
    x, v = start(), torch.zeros(3, dtype=torch.float64)
    while True:
        g = gradient(x)
        v = mu * v + g
        x = x - lr * (g + mu * v if nesterov else v)
        yield x


def rmsprop(lr: float = 0.02, rho: float = 0.9, eps: float = 1e-8) -> Iterator[Tensor]:
    x, s = start(), torch.zeros(3, dtype=torch.float64)
    while True:
        g = gradient(x)
        s = rho * s + (1 - rho) * g**2
        x = x - lr * g / (s.sqrt() + eps)
        yield x


def adam(decay: float = 0.0, lr: float = 0.05, eps: float = 1e-8) -> Iterator[Tensor]:
    x, m, s, t = start(), torch.zeros(3).double(), torch.zeros(3).double(), 0
    while True:
        g, t = gradient(x), t + 1
        m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g**2
        x = x - lr * decay * x
        x = x - lr * (m / (1 - 0.9**t)) / ((s / (1 - 0.999**t)).sqrt() + eps)
        yield x


METHODS: dict[str, tuple[FirstOrder, Textbook, Callable]] = {
    "gradient descent": (SGD(0.05), gradient_descent, lambda p: optim.SGD(p, 0.05)),
    "momentum": (
        SGD(0.02, momentum=0.9),
        lambda: momentum(False),
        lambda p: optim.SGD(p, 0.02, momentum=0.9),
    ),
    "Nesterov": (
        SGD(0.02, momentum=0.9, nesterov=True),
        lambda: momentum(True),
        lambda p: optim.SGD(p, 0.02, momentum=0.9, nesterov=True),
    ),
    "RMSprop": (
        RMSprop(0.02, smoothing=0.9),
        rmsprop,
        lambda p: optim.RMSprop(p, 0.02, alpha=0.9),
    ),
    "Adam": (Adam(0.05), adam, lambda p: optim.Adam(p, 0.05)),
    "AdamW": (
        AdamW(0.05, weight_decay=0.1),
        lambda: adam(0.1),
        lambda p: optim.AdamW(p, 0.05, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize(("method", "textbook", "torchs"), METHODS.values(), ids=METHODS.keys())
def test_updates_are_the_formulas_and_torch(
    method: FirstOrder, textbook: Textbook, torchs: Callable
):
    parameter = torch.nn.Parameter(start())
    optimizer, formula = torchs([parameter]), textbook()
    at = torch.stack([start(), 2 * start()])
    state = method.init(at, at.sum(dim=-1), gradient(at))
    for _ in range(STEPS):
        parameter.grad = gradient(parameter.detach())
        optimizer.step()
        torch.testing.assert_close(state.at[0], next(formula), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state.at[0], parameter.detach(), rtol=1e-12, atol=1e-12)
        at = method.point(state)
        state = method.step(state, at.sum(dim=-1), gradient(at))


def contraction(method: FirstOrder, x: Tensor, num: int) -> float:
    """By which the distance to the minimum of a quadratic shrinks in a step, far along."""
    state = method.init(x, 0.5 * (CURVES * x * x).sum(dim=-1), CURVES * x)
    sizes = []
    for _ in range(num):
        at = method.point(state)
        sizes.append(float(at.norm()))
        state = method.step(state, 0.5 * (CURVES * at * at).sum(dim=-1), CURVES * at)
    return (sizes[-1] / sizes[num // 2]) ** (1 / (num - 1 - num // 2))


def test_rates_on_a_quadratic():
    """(κ − 1)/(κ + 1) of gradient descent, (√κ − 1)/(√κ + 1) with momentum; Polyak (1964)."""
    low, high = float(CURVES.min()), float(CURVES.max())
    kappa = high / low
    plain = SGD(2 / (low + high), gtol=0.0)
    assert contraction(plain, start()[None], 400) == pytest.approx(
        (kappa - 1) / (kappa + 1), abs=1e-6
    )
    root = math.sqrt(kappa)
    ball = SGD(
        (2 / (math.sqrt(low) + math.sqrt(high))) ** 2,
        gtol=0.0,
        momentum=((root - 1) / (root + 1)) ** 2,
    )
    # but for a factor that grows as the number of steps
    found = contraction(ball, start()[None], 160)
    assert found == pytest.approx((root - 1) / (root + 1), abs=0.02)


@pytest.mark.parametrize("method", [m for m, *_ in METHODS.values() if not isinstance(m, AdamW)])
def test_minima_are_found(method: FirstOrder):
    """RMSprop and Adam take steps of one length and circle a minimum: the best is kept."""
    x = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0]], dtype=torch.float64)
    found = minimize(
        lambda x: 0.5 * (CURVES * x.square()).sum(),
        x,
        batch_dims=1,
        method=method,
        max_evals=4000,
    )
    assert found.x.abs().max() < 0.1
    assert (found.value <= 0.5 * (CURVES * x.square()).sum(dim=-1)).all()
    if isinstance(method, SGD):
        assert found.ok
        assert (found.grad_norm <= method.gtol).all()


def test_batches_are_what_their_problems_are():
    x = torch.tensor([[1.0, -2.0], [30.0, 4.0]], dtype=torch.float64)
    fn = lambda x: x.square().sum() + x.prod().cos()  # noqa: E731
    both = minimize(fn, x, batch_dims=1, method=Adam(0.1), max_evals=300)
    for i in range(2):
        one = minimize(fn, x[i], method=Adam(0.1), max_evals=300)
        torch.testing.assert_close(both.x[i], one.x, rtol=1e-12, atol=0)
        assert both.num_evals[i] == one.num_evals


def test_too_long_steps_are_flagged_and_the_best_point_kept():
    x = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    found = minimize(lambda x: (CURVES * x.square()).sum(), x, method=SGD(1.0), max_evals=2000)
    assert found.flags in (Status.NON_FINITE, Status.NOT_CONVERGED)
    assert found.value <= (CURVES * x.square()).sum()


@pytest.mark.parametrize("make", [SGD, Adam, AdamW, RMSprop])
def test_step_sizes_are_positive(make: type[FirstOrder]):
    with pytest.raises(ValueError, match="`lr` must be positive"):
        make(lr=0.0)
