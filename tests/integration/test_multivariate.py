"""Expectations of vectors: cubature over independent coordinates, right or left to draws."""

from __future__ import annotations

import math

import pytest
import torch
from laws import assert_within
from problems.expectations import number
from torch import Tensor
from torch import distributions as td

from probcalc import Cubature, expect

COVARIANCE = torch.tensor([[1.0, 0.5], [0.5, 2.0]], dtype=torch.float64)
NORMAL = td.MultivariateNormal(number(0.0, 1.0), COVARIANCE)
EYE = torch.eye(3, dtype=torch.float64)
# name -> (function, distribution, value, whether it is smooth)
CASES = {
    "wave": (
        lambda x: x.sum(-1).sin(),
        NORMAL,
        math.sin(1) * math.exp(-2),
        True,
    ),
    "half-plane": (
        lambda x: (x[..., 0] > x[..., 1]).double(),
        NORMAL,
        0.5 * math.erfc(0.5),
        False,
    ),
    "length": (
        lambda x: x.norm(dim=-1),
        td.MultivariateNormal(torch.zeros(3).double(), EYE),
        2 * math.sqrt(2 / math.pi),
        False,
    ),
    "log of Dirichlet": (
        lambda x: x.log().sum(-1),
        td.Dirichlet(number(2.0, 3.0, 4.0)),
        float(torch.digamma(number(2.0, 3.0, 4.0)).sum() - 3 * torch.digamma(number(9.0))),
        True,
    ),
    "gammas": (
        lambda x: (-x).exp().prod(-1),
        td.Independent(td.Gamma(number(2.0, 3.0, 1.5), number(1.0, 2.0, 1.0)), 1),
        0.25 * (2 / 3) ** 3 * 0.5**1.5,
        True,
    ),
    "log-normals": (
        lambda x: x.prod(-1),
        td.Independent(td.LogNormal(number(0.1, 0.2), number(0.5, 0.3)), 1),
        math.exp(0.3 + 0.5 * 0.34),
        True,
    ),
    "betas": (
        lambda x: x.sum(-1),
        td.Independent(td.Beta(number(0.5, 2.0), number(1.0, 3.0)), 1),
        0.5 / 1.5 + 0.4,
        True,
    ),
}


@pytest.mark.parametrize(("fn", "dist", "value", "smooth"), CASES.values(), ids=CASES.keys())
def test_right_with_a_bar_that_says_so(fn, dist, value: float, smooth: bool):
    result = expect(fn, dist)
    assert result.ok
    assert "is an image of" in result.diagnostics["reason"]
    assert_within(result, value, atol=1e-13)
    assert float(result.error) <= (1e-7 if smooth else 3e-3) * max(abs(value), 1)


def test_batches_with_arguments_and_with_closures():
    mean = torch.linspace(-1, 1, 6).double().reshape(3, 2)
    a = number(0.5, 1.0, 2.0)
    dist = td.MultivariateNormal(mean, COVARIANCE)
    scale = (a**2 * COVARIANCE.sum()) / 2
    exact = (a * mean.sum(-1)).sin() * (-scale).exp()
    gathered = expect(lambda x, a: (a * x.sum(-1)).sin(), dist, args=(a,))
    closed = expect(lambda x: (a * x.sum(-1)).sin(), dist)
    for result in (gathered, closed):
        torch.testing.assert_close(result.value, exact, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "family",
    [
        lambda t: td.MultivariateNormal(torch.stack([t, -t]), scale_tril=t * COVARIANCE.tril()),
        lambda t: td.Dirichlet(torch.stack([t, 2 * t, t + 1])),
        lambda t: td.Independent(td.Gamma(torch.stack([t, t + 1]), 1 + t), 1),
    ],
    ids=["normal", "Dirichlet", "gammas"],
)
def test_derivatives_in_parameters(family):
    def value(t: Tensor) -> Tensor:
        return expect(lambda x: (x[..., 0] * x[..., 1]).tanh(), family(t), rtol=1e-9).value

    t = number(1.3).requires_grad_()
    assert torch.autograd.gradcheck(value, t, eps=1e-5, atol=1e-6)
    assert torch.autograd.gradgradcheck(value, t, eps=1e-5, atol=1e-5)


def test_what_has_no_such_image_is_drawn(generator: torch.Generator):
    dist = td.Independent(td.StudentT(number(5.0, 5.0)), 1)
    result = expect(lambda x: x.sum(-1).sin() + 1, dist, generator=generator)
    assert "VEGAS" in result.method
    assert "Independent is an image of uniform numbers" in result.diagnostics["reason"]
    with pytest.raises(NotImplementedError, match="StudentT is not known as an image"):
        expect(lambda x: x.sum(-1), dist, method=Cubature())
    many = td.MultivariateNormal(torch.zeros(9), torch.eye(9))
    with pytest.raises(NotImplementedError, match="2 to 7 independent coordinates, got 9"):
        expect(lambda x: x.sum(-1), many, method=Cubature())


def test_the_reason_stands_in_the_result():
    reasons = {
        "has a density on the line": expect(torch.sin, td.Normal(0.0, 1.0)),
        "is discrete": expect(torch.sin, td.Poisson(3.0)),
    }
    for reason, result in reasons.items():
        assert reason in result.diagnostics["reason"]


# name -> (transforms of a parameter, E of the image of a standard normal)
IMAGES = {
    "scale": (
        lambda q: [td.AffineTransform(number(0.0), q), td.ExpTransform()],
        lambda q: (q * q / 2).exp(),
    ),
    "place": (
        lambda q: [td.AffineTransform(q, number(1.0)), td.ExpTransform()],
        lambda q: (q + 0.5).exp(),
    ),
    "place after all": (
        lambda q: [td.ExpTransform(), td.AffineTransform(q, number(2.0))],
        lambda q: q + 2 * math.exp(0.5),
    ),
}


@pytest.mark.parametrize(("transforms", "exact"), IMAGES.values(), ids=IMAGES.keys())
def test_parameters_of_transforms(transforms, exact):
    """The ends of a support may or may not move with them; neither makes a NaN."""
    q = number(0.7).requires_grad_()
    dist = td.TransformedDistribution(td.Normal(number(0.0), number(1.0)), transforms(q))
    result, truth = expect(lambda x: x, dist), exact(q)
    assert result.ok
    assert_within(result, truth)
    slopes = [torch.autograd.grad(t, q)[0] for t in (result.value, truth)]
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-8)
