from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, vmap

from probcalc.differentiation.curvature import central_hessian

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quadratic": lambda z: (z * torch.arange(1.0, 4.0)).square().sum() + z[0] * z[2],
    "log-sum-exp": lambda z: z.logsumexp(0),
    "quartic": lambda z: z.pow(4).sum() + z.prod(),
    "exponential": lambda z: (z[0] + 2 * z[1] - z[2]).exp(),
    "normal": lambda z: z[2] + (z[0] - z[1]).square() * (-2 * z[2]).exp() / 2,
    "linear": lambda z: z.sum(),
}


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("fn", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_hessians_equal_autodiff(fn: Callable, n: int, generator: torch.Generator):
    """Within 1e-9 of the size of the curvature: the error of central differences in float64."""
    points = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    exact = vmap(hessian(fn))(points)
    got = central_hessian(vmap(grad(fn)), points)
    size = max(1.0, float(exact.abs().max()))
    torch.testing.assert_close(got, exact, rtol=0.0, atol=2e-9 * size)
    assert torch.equal(got, got.mT)


@pytest.mark.parametrize("length", [1e-6, 1e6])
def test_the_scale_is_the_length_of_change(length: float):
    """With the right scale the relative error does not depend on the units."""
    scale = torch.tensor([length, 1.0, 1.0], dtype=torch.float64)
    fn = lambda z: (z / scale).logsumexp(0)  # noqa: E731
    points = scale * torch.tensor([[0.3, -0.2, 0.4]], dtype=torch.float64)
    units = scale[:, None] * scale
    got = central_hessian(vmap(grad(fn)), points, scale) * units
    torch.testing.assert_close(got, vmap(hessian(fn))(points) * units, rtol=0.0, atol=2e-9)
    wrong = central_hessian(vmap(grad(fn)), points) * units
    assert (got - wrong).abs().max() > 1e-7


def test_all_gradients_are_one_batch():
    calls = []

    def gradient(points: Tensor) -> Tensor:
        calls.append(points.shape)
        return points * 2

    H = central_hessian(gradient, torch.zeros(4, 3, dtype=torch.float64))
    assert calls == [(24, 3)]
    torch.testing.assert_close(H, 2 * torch.eye(3).double().expand(4, 3, 3), atol=1e-9, rtol=0)


def test_float32_keeps_its_precision():
    """Half the digits of float32, as the step of eps to the third promises."""
    points = torch.tensor([[0.5, -0.3, 0.1]])
    fn = FUNCTIONS["log-sum-exp"]
    got = central_hessian(vmap(grad(fn)), points)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, vmap(hessian(fn))(points), rtol=0.0, atol=2e-4)
