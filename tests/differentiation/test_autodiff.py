"""Exact derivatives: equal to closed forms and to finite differences, in batches and not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

import probcalc as pc

POINT = torch.tensor([0.4, -1.2, 0.7], dtype=torch.float64)
MATRIX = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, -0.4], [0.0, -0.4, 3.0]], dtype=torch.float64)

# scalar function, gradient, Hessian
SCALARS: dict[str, tuple[Callable, Callable, Callable]] = {
    "quadratic": (lambda x: 0.5 * x @ MATRIX @ x, lambda x: MATRIX @ x, lambda x: MATRIX),
    "log-sum-exp": (
        lambda x: x.logsumexp(0),
        lambda x: x.softmax(0),
        lambda x: x.softmax(0).diag() - torch.outer(x.softmax(0), x.softmax(0)),
    ),
    "squared norm, squared": (
        lambda x: x.square().sum().square(),
        lambda x: 4 * x.square().sum() * x,
        lambda x: 4 * x.square().sum() * torch.eye(3, dtype=x.dtype) + 8 * torch.outer(x, x),
    ),
}


@pytest.mark.parametrize(("fn", "slope", "curve"), SCALARS.values(), ids=SCALARS.keys())
def test_gradients_and_hessians_are_the_formulas(fn: Callable, slope: Callable, curve: Callable):
    batch = torch.stack([POINT, 2 * POINT, -POINT])
    for x, n in ((POINT, 0), (batch, 1), (batch[None], 2)):
        rows = x.reshape(-1, 3)
        gradients = torch.stack([slope(r) for r in rows]).reshape(x.shape)
        hessians = torch.stack([curve(r) for r in rows]).reshape(*x.shape, 3)
        torch.testing.assert_close(pc.grad(fn, x, batch_dims=n), gradients)
        torch.testing.assert_close(pc.hessian(fn, x, batch_dims=n), hessians)
        along = torch.ones_like(x)
        torch.testing.assert_close(pc.hvp(fn, x, along, batch_dims=n), hessians.sum(dim=-1))
        torch.testing.assert_close(
            pc.directional_derivative(fn, x, along, batch_dims=n), gradients.sum(dim=-1)
        )
        torch.testing.assert_close(pc.partial(fn, x, 1, batch_dims=n), gradients[..., 1])


def swirl(x: Tensor) -> Tensor:
    return torch.stack([x[0] * x[1], x[1].sin() + x[2], x.prod(), x.square().sum()])


@pytest.mark.parametrize("forward", [None, True, False])
def test_jacobians(forward: bool | None):
    found = pc.jacobian(swirl, POINT, forward=forward)
    x, y, z = POINT.tolist()
    truth = [[y, x, 0], [0, np.cos(y), 1], [y * z, x * z, x * y], [2 * x, 2 * y, 2 * z]]
    torch.testing.assert_close(found, torch.tensor(truth, dtype=torch.float64))
    wide = pc.jacobian(lambda x: x.sum()[None], torch.ones(2, 5), batch_dims=1, forward=forward)
    assert wide.shape == (2, 1, 5)


class OnlyReverse(torch.autograd.Function):
    """The identity, of which forward passes know no derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        del ctx, inputs, output

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> Tensor:
        del ctx
        return grad_output


def test_jacobians_take_the_shorter_way():
    """Of a tall map forward, of a wide one in reverse."""
    tall = torch.arange(120, dtype=torch.float64).reshape(40, 3)
    reverse = lambda x, a: a @ OnlyReverse.apply(x)  # noqa: E731
    wide = pc.jacobian(reverse, torch.ones(40).double(), args=(tall.T,))
    torch.testing.assert_close(wide, tall.T)
    with pytest.raises(RuntimeError, match="jvp"):
        pc.jacobian(reverse, POINT, args=(tall,))


def test_dicts_of_parameters():
    point = {"w": POINT, "b": torch.tensor(0.5, dtype=torch.float64)}
    fn = lambda p: (p["w"].sum() * p["b"]).square()  # noqa: E731
    found = pc.grad(fn, point)
    total = float(POINT.sum())
    torch.testing.assert_close(found["b"], torch.tensor(2 * total**2 * 0.5, dtype=torch.float64))
    torch.testing.assert_close(found["w"], torch.full_like(POINT, 2 * total * 0.25))
    along = {"w": torch.zeros(3).double(), "b": torch.tensor(1.0).double()}
    curved = pc.hvp(fn, point, along)
    torch.testing.assert_close(curved["b"], torch.tensor(2 * total**2, dtype=torch.float64))


def test_arguments_go_with_their_points():
    x, a = torch.ones(4, 2).double(), torch.arange(4.0).double()
    found = pc.grad(lambda x, a: a * x.sum(), x, args=(a,), batch_dims=1)
    torch.testing.assert_close(found, a[:, None].expand(4, 2))


def logistic(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Log-likelihood of each row."""
    return y * (x @ w) - softplus(x @ w)


def test_curvature_products_of_a_logistic_model(generator: torch.Generator):
    """Gauss-Newton's is the Hessian of the loss, as the outputs are natural parameters."""
    x = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    y = (torch.rand(50, generator=generator) < 0.5).double()
    v = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = pc.gauss_newton_product(
        lambda w: x @ w, lambda eta: (softplus(eta) - y * eta).sum(), POINT, v
    )
    torch.testing.assert_close(found, pc.hessian(lambda w: -logistic(w, x, y).sum(), POINT) @ v)
    scores = (y - (x @ POINT).sigmoid())[:, None] * x
    torch.testing.assert_close(
        pc.fisher_product(logistic, POINT, v, args=(x, y)), scores.T @ scores @ v
    )


def test_what_autograd_says_values_say():
    for fn in (lambda x: (x * x.sin()).sum(), lambda x: x.logsumexp(0)):
        torch.autograd.gradcheck(fn, POINT.clone().requires_grad_())
        for i in range(3):

            def along(t: Tensor, i: int = i, fn: Callable = fn) -> Tensor:
                unit = torch.eye(3, dtype=torch.float64)[i]
                return torch.stack([fn(POINT + s * unit) for s in t])

            found = pc.derivative(along, 0.0)
            assert abs(float(found) - float(pc.partial(fn, POINT, i))) <= float(found.error)


KINDS = {
    "minimum": (lambda x: x.square().sum() + x[0] * x[1], "minimum"),
    "maximum": (lambda x: -(x.square() * torch.tensor([1.0, 4.0, 9.0])).sum(), "maximum"),
    "saddle": (lambda x: x[0] ** 2 - x[1] ** 2 + x[2] ** 2, "saddle"),
    "monkey saddle": (lambda x: x[0] ** 3 - 3 * x[0] * x[1] ** 2 + x[2] ** 2, "degenerate"),
    "valley": (lambda x: (x[0] - x[1]) ** 2 + x[2] ** 2, "degenerate"),
    "slope": (lambda x: x.sum() + x.square().sum(), "not critical"),
}


@pytest.mark.parametrize(("fn", "kind"), KINDS.values(), ids=KINDS.keys())
def test_critical_points(fn: Callable, kind: str):
    found = pc.classify_critical_point(fn, torch.zeros(3, dtype=torch.float64))
    assert found.kind == kind
    if kind == "maximum":
        assert found.condition_number == pytest.approx(9)
        torch.testing.assert_close(found.eigenvalues, torch.tensor([-18.0, -8.0, -2.0]).double())


@pytest.mark.slow
def test_large_problems_have_the_ends_of_their_spectrum():
    size = torch.linspace(1, 300, 1200, dtype=torch.float64)
    found = pc.classify_critical_point(lambda x: 0.5 * (size * x * x).sum(), 0 * size)
    assert found.kind == "minimum"
    assert found.condition_number == pytest.approx(300, rel=1e-6)
    signed = torch.where(size > 299, -size, size)
    found = pc.classify_critical_point(lambda x: 0.5 * (signed * x * x).sum(), 0 * size)
    assert found.kind == "saddle"


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: pc.grad(swirl, POINT), ValueError, "scalar value"),
        (lambda: pc.hessian(swirl, POINT), ValueError, "scalar value"),
        (lambda: pc.grad(torch.sum, torch.arange(3)), TypeError, "floating-point"),
        (lambda: pc.grad(torch.sum, POINT, batch_dims=2), ValueError, "axes of the batch"),
        (lambda: pc.hvp(torch.sum, POINT, POINT[:2]), ValueError, "shapes of the point"),
        (lambda: pc.partial(swirl, POINT, 3), IndexError, "`index`"),
        (lambda: pc.classify_critical_point(torch.sum, MATRIX), ValueError, "vector"),
        (
            lambda: pc.classify_critical_point(lambda x: x.sqrt().sum(), 0 * POINT),
            ValueError,
            "finite",
        ),
    ],
)
def test_what_cannot_be(call: Callable[[], object], error: type[Exception], text: str):
    with pytest.raises(error, match=text):
        call()
