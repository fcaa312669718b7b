from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Categorical,
    Dirichlet,
    Gamma,
    LKJCholesky,
    LogNormal,
    MultivariateNormal,
    Normal,
    Uniform,
    constraints,
)

from probcalc import Target

F64 = torch.float64


def t(*values: float) -> Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=F64)


# one distribution for every kind of support
SUPPORTS = {
    "real line": Normal(t(1.0), t(2.0)),
    "positive": Gamma(t(2.0), t(3.0)),
    "log-normal": LogNormal(t(0.0), t(1.0)),
    "unit interval": Beta(t(2.0), t(3.0)),
    "bounded": Uniform(t(-1.0), t(4.0)),
    "simplex": Dirichlet(t(1.0, 2.0, 3.0)),
    "vector": MultivariateNormal(t(0.0, 1.0), torch.eye(2, dtype=F64)),
    "correlation factor": LKJCholesky(3, t(1.5)),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_density_is_that_of_the_distribution_times_the_jacobian(name: str):
    """log p(T(z)) + log |dT/dz|, and its gradient, at random vectors."""
    distribution = SUPPORTS[name]
    target = Target.from_distribution(distribution)
    z = torch.randn(7, target.dim, generator=torch.Generator().manual_seed(1), dtype=F64)
    x = target.constrain(z)["x"]
    assert bool(distribution.support.check(x).all())
    expected = distribution.log_prob(x) + target.log_abs_det_jacobian(z)
    torch.testing.assert_close(target.log_density(z), expected)
    leaf = z.clone().requires_grad_()
    value, grad = target.value_and_grad(z)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, torch.autograd.grad(target.log_density(leaf).sum(), leaf)[0])


@pytest.mark.parametrize("name", SUPPORTS)
def test_unconstrain_undoes_constrain(name: str):
    target = Target.from_distribution(SUPPORTS[name])
    z = torch.randn(4, target.dim, generator=torch.Generator().manual_seed(2), dtype=F64)
    values = target.constrain(z)
    torch.testing.assert_close(target.unconstrain_rows(values), z)
    torch.testing.assert_close(target.unconstrain({"x": values["x"][0]}), z[0])


@pytest.mark.parametrize("name", ["real line", "positive", "unit interval", "bounded"])
def test_the_jacobian_makes_the_density_integrate_to_one(name: str):
    target = Target.from_distribution(SUPPORTS[name])
    z = torch.linspace(-60.0, 60.0, 200_001, dtype=F64)
    total = torch.trapezoid(target.log_density(z[:, None]).exp(), z)
    assert float(total) == pytest.approx(1.0, abs=1e-6)


def test_any_leading_shape():
    target = Target.from_distribution(SUPPORTS["simplex"])
    z = torch.randn(2, 3, 5, target.dim, dtype=F64)
    value, grad = target.value_and_grad(z)
    assert value.shape == (2, 3, 5)
    assert grad.shape == z.shape
    assert target.constrain(z)["x"].shape == (2, 3, 5, 3)
    assert target.log_density(z[0, 0, 0]).shape == ()
    torch.testing.assert_close(target.log_density(z)[1, 2, 3], target.log_density(z[1, 2, 3]))


def test_chunks_do_not_show():
    """A number of rows that takes several chunks gives the rows' own values."""
    X = torch.randn(2000, 2, dtype=F64)
    target = Target.from_function(
        lambda v: Normal(X @ v["b"], 1.0).log_prob(t(0.0)).sum(), {"b": (2,)}
    )
    z = torch.randn(300, 2, dtype=F64)
    assert len(z) > target._chunk
    torch.testing.assert_close(
        target.log_density(z), torch.stack([target.log_density(row) for row in z])
    )


def test_prior_and_likelihood_over_rows_is_the_joint():
    """The two forms of `from_function` are one density."""
    x, y = torch.randn(9, 2, dtype=F64), torch.randn(9, dtype=F64)
    prior = lambda v: Normal(0.0, 2.0).log_prob(v["b"]).sum() - v["s"]
    shapes, supports = {"b": (2,), "s": ()}, {"s": constraints.positive}
    by_row = Target.from_function(
        prior,
        shapes,
        supports,
        log_likelihood=lambda v, row: Normal(row["x"] @ v["b"], v["s"]).log_prob(row["y"]),
        data={"x": x, "y": y},
    )
    joint = Target.from_function(
        lambda v: prior(v) + Normal(x @ v["b"], v["s"]).log_prob(y).sum(), shapes, supports
    )
    z = torch.randn(5, 3, dtype=F64)
    torch.testing.assert_close(by_row.log_density(z), joint.log_density(z))
    assert by_row.names == ("b[0]", "b[1]", "s")


def test_float32_data_do_not_drag_the_density_down():
    """Float32 constants become float64 ones: the density has float64 rounding."""
    y32 = torch.tensor([0.1, 0.7, -0.3])
    build = lambda y: Target.from_function(
        lambda v: Normal(v["m"], 1.0).log_prob(y).sum(), {"m": ()}
    )
    z = t(0.3)[None]
    assert build(y32).log_density(z).dtype == F64
    torch.testing.assert_close(
        build(y32).log_density(z), build(y32.double()).log_density(z), rtol=1e-15, atol=0
    )


def test_other_precision_is_another_trace():
    target = Target.from_distribution(SUPPORTS["positive"])
    single = target.to(dtype=torch.float32)
    z = torch.tensor([[0.4]])
    assert single.log_density(z).dtype == torch.float32
    torch.testing.assert_close(single.log_density(z).double(), target.log_density(z.double()))
    assert target.dtype == F64


def test_compiled_density_is_the_same():
    pytest.importorskip("torch._inductor")
    target = Target.from_distribution(SUPPORTS["unit interval"])
    z = torch.randn(3, 1, dtype=F64)
    quick = target.compile()
    torch.testing.assert_close(quick.log_density(z), target.log_density(z))
    torch.testing.assert_close(quick.value_and_grad(z)[1], target.value_and_grad(z)[1])
    assert quick.rows.how == "compiled graph"


def test_hessian_is_that_of_autograd():
    target = Target.from_distribution(SUPPORTS["simplex"])
    z = torch.randn(3, 2, dtype=F64)
    expected = torch.stack(
        [torch.autograd.functional.hessian(target.log_density, row) for row in z]
    )
    torch.testing.assert_close(target.hessian(z), expected, rtol=1e-8, atol=1e-8)


# functions that a trace cannot hold, and what the note says of each
UNTRACEABLE = {
    "control flow on a value": (lambda x: -x.abs().sum() if x[0] > 0 else -(x**2).sum(), "data"),
    "a detour through NumPy": (
        lambda x: -(x**2).sum() - torch.as_tensor(np.square(x.detach().numpy())).sum(),
        "does it leave torch",
    ),
    "random numbers": (lambda x: -(x**2).sum() + 0 * torch.randn(()), "draws random numbers"),
}


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_what_cannot_be_traced_runs_untraced_and_says_so(name: str):
    fn, words = UNTRACEABLE[name]
    target = Target.from_log_density(fn, 2)
    assert not target.is_traced
    assert "runs untraced" in target.notes[0]
    assert words in target.notes[0]
    z = torch.randn(4, 2, dtype=F64)
    torch.testing.assert_close(target.log_density(z), torch.stack([fn(row) for row in z]))


def test_data_changed_in_place_later_do_not_change_the_target():
    y = torch.zeros(3, dtype=F64)
    target = Target.from_function(lambda v: Normal(v["m"], 1.0).log_prob(y).sum(), {"m": ()})
    z = t(0.5)[None]
    before = target.log_density(z)
    y.add_(100.0)
    torch.testing.assert_close(target.log_density(z), before)


def test_starts_are_finite_and_follow_the_generator():
    target = Target.from_log_density(lambda x: (x - 1.5).log().sum() - x.sum(), 1)
    first = target.starts(5, torch.Generator().manual_seed(3))
    assert bool(target.log_density(first).isfinite().all())
    assert torch.equal(first, target.starts(5, torch.Generator().manual_seed(3)))


# bad input -> what the message must say
BAD = {
    "no dimension": (lambda: Target.from_log_density(lambda x: x.sum(), 0), "`dim` must be at"),
    "wrong shape": (
        lambda: Target.from_log_density(lambda x: -(x**2), 3),
        r"must return a scalar tensor, got shape \(3,\); sum its terms",
    ),
    "not a tensor": (lambda: Target.from_log_density(lambda x: 1.0, 3), "got float"),
    "likelihood of one row": (
        lambda: Target.from_function(
            lambda v: v["m"] * 0,
            {"m": ()},
            log_likelihood=lambda v, row: Normal(v["m"], 1.0).log_prob(row),
            data=torch.zeros(4, 2),
        ),
        r"`log_likelihood` must return a scalar tensor for one row of the data, got shape \(2,\)",
    ),
    "NaN in the data": (
        lambda: Target.from_function(
            lambda v: v["m"] * 0,
            {"m": ()},
            log_likelihood=lambda v, row: row.sum() * v["m"],
            data=torch.tensor([[1.0, 2.0], [3.0, float("nan")]]),
        ),
        r"`data` must be finite, got nan at row 1, column 1",
    ),
    "unequal rows": (
        lambda: Target.from_function(
            lambda v: v["m"] * 0,
            {"m": ()},
            log_likelihood=lambda v, row: v["m"],
            data=(torch.zeros(3), torch.zeros(4)),
        ),
        r"got \[3, 4\] rows",
    ),
    "no rows": (
        lambda: Target.from_function(
            lambda v: v["m"] * 0,
            {"m": ()},
            log_likelihood=lambda v, row: v["m"],
            data=torch.zeros(0),
        ),
        r"got \[0\] rows",
    ),
    "likelihood without data": (
        lambda: Target.from_function(
            lambda v: v["m"], {"m": ()}, log_likelihood=lambda v, row: v["m"]
        ),
        "go together",
    ),
    "no parameter": (lambda: Target.from_function(lambda v: t(0.0), {}), "at least one parameter"),
    "unknown constraint": (
        lambda: Target.from_function(lambda v: v["m"], {"m": ()}, {"s": constraints.positive}),
        r"`constraints` names \['s'\], which `shapes` does not; it has \['m'\]",
    ),
    "constraint without a bijection": (
        lambda: Target.from_function(
            lambda v: v["m"], {"m": ()}, {"m": constraints.nonnegative_integer}
        ),
        "no bijection",
    ),
    "too few axes": (
        lambda: Target.from_function(lambda v: v["m"], {"m": ()}, {"m": constraints.simplex}),
        r"'m' has shape \(\), but its constraint needs at least 1 axes",
    ),
    "batch of distributions": (
        lambda: Target.from_distribution(Normal(torch.zeros(3), 1.0)),
        r"got batch_shape \(3,\); wrap it in torch.distributions.Independent",
    ),
    "discrete distribution": (
        lambda: Target.from_distribution(Categorical(torch.ones(3))),
        "Categorical is discrete",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str):
    build, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        build()


def test_nan_at_every_start_names_the_value():
    target = Target.from_function(
        lambda v: torch.log(-v["s"]), {"s": ()}, {"s": constraints.positive}
    )
    with pytest.raises(ValueError, match=r"site 'log_joint' has log density nan at \{'s': "):
        target.starts(3)
