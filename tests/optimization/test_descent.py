"""Gradient descent with its searches, trust regions, least squares and constraints."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize as so
import torch
from torch import Tensor

import probcalc as pc


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def quadratic(condition: float, d: int = 10):
    """½ xᵀHx with eigenvalues from 1 to the condition number, in turned axes."""
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    eigenvalues = torch.logspace(0, math.log10(condition), d, dtype=torch.float64)
    h = q @ torch.diag(eigenvalues) @ q.T
    return (lambda x: 0.5 * x @ h @ x), q, eigenvalues


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1].square()).square() + (1 - x[:-1]).square()).sum()


@pytest.mark.parametrize("condition", [3.0, 30.0, 300.0])
def test_exact_steps_shrink_by_kantorovich_s_rate(condition: float):
    """From the worst start each step shrinks f by ((κ − 1)/(κ + 1))²; from none by less."""
    fn, q, eigenvalues = quadratic(condition)
    worst = q[:, 0] / eigenvalues[0] + q[:, -1] / eigenvalues[-1]
    rate = ((condition - 1) / (condition + 1)) ** 2
    method = pc.SteepestDescent(gtol=1e-9)
    found = pc.minimize(fn, worst, method=method, max_evals=30, trajectory=True)
    values = found.trajectory["value"]
    ratios = values[1:8] / values[:7]
    torch.testing.assert_close(ratios, torch.full_like(ratios, rate), rtol=1e-6, atol=0)
    start = torch.randn(10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = pc.minimize(fn, start, method=method, max_evals=400, trajectory=True)
    assert found.ok == (condition < 100)
    ratios = found.trajectory["value"][1:] / found.trajectory["value"][:-1]
    assert (ratios[:20] <= rate + 1e-9).all()


@pytest.mark.parametrize("condition", [3.0, 30.0])
def test_backtracking_never_goes_up_and_arrives(condition: float):
    fn, _, _ = quadratic(condition)
    start = torch.ones(10, dtype=torch.float64)
    for lr in (1e-3, 1.0, 1e3):
        found = pc.minimize(fn, start, method=pc.GradientDescent(lr=lr), trajectory=True)
        assert found.ok
        assert float(found.grad_norm) <= 1e-6
        assert float(found.value) <= 1e-12


def test_a_trajectory_is_every_point_evaluated():
    start = f64(-1.2, 1.0)
    found = pc.minimize(rosenbrock, start, trajectory=True)
    points, values = found.trajectory["x"], found.trajectory["value"]
    assert len(points) == int(found.num_evals)
    assert torch.equal(points[0], start)
    torch.testing.assert_close(torch.stack([rosenbrock(p) for p in points]), values)
    named = pc.minimize(
        lambda p: (p["a"] - 1).square(), {"a": torch.zeros(3)}, batch_dims=1, trajectory=True
    )
    assert named.trajectory["x"]["a"].shape[1:] == (3,)
    assert pc.minimize(rosenbrock, start).trajectory is None


@pytest.mark.parametrize("d", [2, 10, 50])
def test_trust_regions_find_rosenbrock_s_minimum(d: int):
    start = f64(*([-1.2, 1.0] * (d // 2)))
    found = pc.minimize(rosenbrock, start, method=pc.TrustRegion(gtol=1e-8))
    assert found.ok
    peer = so.minimize(
        so.rosen, start.numpy(), jac=so.rosen_der, hess=so.rosen_hess, method="trust-ncg"
    )
    if d == 2:
        torch.testing.assert_close(found.x, torch.ones(2).double(), rtol=1e-6, atol=1e-6)
        assert int(found.num_iterations) <= 1.5 * peer.nit
    assert float(found.value) <= peer.fun + 1e-10


def test_trust_regions_leave_saddles_and_never_form_the_matrix():
    """20,000 parameters: a Hessian would be 3 GB."""
    weights = torch.linspace(1, 5, 20_000, dtype=torch.float64)
    found = pc.minimize(
        lambda x: (weights * (x.square() - 1).square()).sum() / 4,
        torch.full((20_000,), 0.1, dtype=torch.float64),
        method=pc.TrustRegion(),
    )
    assert found.ok
    torch.testing.assert_close(found.x, torch.ones_like(found.x), rtol=1e-4, atol=0)
    saddle = pc.minimize(
        lambda x: x[0].square() - x[1].square() + x[1] ** 4,
        f64(1.0, 1e-3),
        method=pc.TrustRegion(),
    )
    assert saddle.ok
    assert float(saddle.value) == pytest.approx(-0.25)


def test_a_batch_is_its_problems():
    start = torch.randn(20, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for method in (pc.TrustRegion(gtol=1e-8), pc.GradientDescent(), pc.LBFGS(gtol=1e-8)):
        many = pc.minimize(rosenbrock, start, batch_dims=1, method=method, max_evals=300)
        for i in (0, 7, 19):
            one = pc.minimize(rosenbrock, start[i], method=method, max_evals=300)
            torch.testing.assert_close(many.x[i], one.x, rtol=1e-5, atol=1e-5)
            assert bool(one.ok) == bool(many.status[i] == 0)


T = torch.linspace(0, 4, 30, dtype=torch.float64)


def decay(p: Tensor, y: Tensor) -> Tensor:
    return p[0] * torch.exp(-p[1] * T) + p[2] - y


def test_least_squares_are_scipy_s():
    rng = np.random.default_rng(0)
    y = 3 * torch.exp(-0.8 * T) + 0.5 + 0.05 * torch.from_numpy(rng.normal(size=(6, 30)))
    start = torch.ones(6, 3, dtype=torch.float64)
    found = pc.least_squares(decay, start, args=(y,), batch_dims=1)
    assert found.ok
    for i in range(6):
        peer = so.least_squares(
            lambda p, i=i: decay(torch.from_numpy(p), y[i]).numpy(), start[i].numpy(),
            xtol=1e-15, ftol=1e-15, gtol=1e-15,
        )  # fmt: skip
        np.testing.assert_allclose(found.x[i], peer.x, rtol=1e-6)
        assert float(found.value[i]) == pytest.approx(peer.cost, rel=1e-10)
    line = pc.least_squares(lambda p: p[0] * T + p[1] - 2 * T, f64(0.0, 0.0))
    assert int(line.num_iterations) <= 2
    with pytest.raises(ValueError, match="must be a vector"):
        pc.least_squares(lambda p: p.sum(), f64(1.0))


def test_boxes_are_scipy_s():
    """Curved objectives whose minima lie on ends and inside."""
    rng = np.random.default_rng(3)
    for _ in range(5):
        a = torch.from_numpy(rng.normal(size=(6, 6)))
        h, b = a @ a.T + torch.eye(6), torch.from_numpy(3 * rng.normal(size=6))
        found = pc.minimize_constrained(
            lambda x, h=h, b=b: 0.5 * x @ h @ x - b @ x,
            torch.zeros(6, dtype=torch.float64),
            lower=-0.5,
            upper=torch.linspace(0.1, 1, 6),
        )
        bounds = [(-0.5, float(u)) for u in torch.linspace(0.1, 1, 6)]
        peer = so.minimize(
            lambda x, h=h, b=b: 0.5 * x @ h.numpy() @ x - b.numpy() @ x,
            np.zeros(6),
            bounds=bounds,
            options={"ftol": 1e-14, "gtol": 1e-10},
        )
        assert found.ok
        np.testing.assert_allclose(found.x, peer.x, atol=2e-5)
        assert float(found.value) <= peer.fun + 1e-8


def test_equations_give_multipliers():
    """The largest entropy with a given mean is exponential in the value; λ by its own equation."""
    k = torch.arange(1.0, 7.0, dtype=torch.float64)

    def minus_entropy(p: Tensor) -> Tensor:
        return torch.special.xlogy(p, p).sum()

    def constraints(p: Tensor) -> Tensor:
        return torch.stack([p.sum() - 1, (k * p).sum() - 4.5])

    found = pc.minimize_constrained(
        minus_entropy,
        torch.full((6,), 1 / 6).double(),
        lower=1e-12,
        equality=constraints,
        gtol=1e-6,
    )
    assert found.ok
    slope = so.brentq(lambda t: float((k * (t * k).softmax(0)).sum()) - 4.5, -3, 3)
    torch.testing.assert_close(found.x, (slope * k).softmax(0), rtol=1e-4, atol=1e-6)
    assert float(found.multipliers[1]) == pytest.approx(-slope, abs=1e-4)


def test_the_nearest_point_of_a_sphere_in_a_batch():
    points = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = pc.minimize_constrained(
        lambda x, p: (x - p).square().sum(),
        torch.ones(5, 3).double(),
        equality=lambda x, p: x.square().sum()[None] - 1,
        args=(points,),
        batch_dims=1,
    )
    assert found.ok
    want = points / points.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found.x, want, rtol=1e-5, atol=1e-6)


def test_no_point_fulfils_and_says_so():
    found = pc.minimize_constrained(
        lambda x: x.square().sum(), f64(1.0), equality=lambda x: x.square() + 1
    )
    assert not found.ok
    assert float(found.violation) >= 1 - 1e-6


ORIGIN = f64(0.0, 0.0)
BAD = {
    "box": (lambda: pc.minimize_constrained(rosenbrock, ORIGIN, lower=1.0, upper=0.0), "empty"),
    "vector": (lambda: pc.minimize_constrained(lambda x: x, ORIGIN), "must return a scalar"),
    "equality": (
        lambda: pc.minimize_constrained(rosenbrock, ORIGIN, equality=lambda x: x.sum()),
        "must return a vector",
    ),
    "rate": (lambda: pc.GradientDescent(lr=0.0), "`lr` must be positive"),
    "radius": (lambda: pc.TrustRegion(radius=-1.0), "0 < radius"),
    "detached": (lambda: pc.minimize(lambda x: x.detach().sum(), f64(1.0)), "does not depend"),
}


@pytest.mark.parametrize(("call", "text"), BAD.values(), ids=BAD)
def test_mistakes_are_named(call, text: str):
    with pytest.raises(ValueError, match=text):
        call()
