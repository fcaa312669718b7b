"""Routes to the gradient of one ELBO with discrete latents."""

from __future__ import annotations

import math

import pytest
import torch
from laws import assert_mean_is, assert_within
from torch import Tensor
from torch import distributions as td

import probcalc as pc
from probcalc.inference.discrete import Enumerate, RelaxedDraws, discrete_elbo
from probcalc.inference.objectives import VIMCO

F64 = torch.float64
LOGITS = torch.tensor([0.3, -0.8, 0.5], dtype=F64)
WEIGHTS = torch.tensor([1.0, -0.7, 0.4], dtype=F64)


def log_joint(draws: dict[str, Tensor]) -> Tensor:
    """Bernoulli(0.4) priors, a normal observation of a weighted sum, and one of three classes."""
    k, c = draws["k"], draws["c"]
    prior = (k * math.log(0.4) + (1 - k) * math.log(0.6)).sum(dim=-1) - math.log(3)
    total = k @ WEIGHTS + c @ torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    return prior - 0.5 * (total - 1.2).square()


def guide(params: dict[str, Tensor]) -> dict[str, td.Distribution]:
    return {
        "k": td.Independent(td.Bernoulli(logits=params["k"]), 1),
        "c": td.OneHotCategorical(logits=params["c"]),
    }


def params() -> dict[str, Tensor]:
    start = {"k": LOGITS.clone(), "c": torch.tensor([0.2, 0.0, -0.4], dtype=F64)}
    return {name: t.requires_grad_() for name, t in start.items()}


def by_hand(leaves: dict[str, Tensor]) -> Tensor:
    total = 0.0
    p, c = leaves["k"].sigmoid(), leaves["c"].softmax(dim=0)
    for i in range(8):
        bits = torch.tensor([(i >> j) & 1 for j in range(3)], dtype=F64)
        q = (p * bits + (1 - p) * (1 - bits)).prod()
        for j in range(3):
            draws = {"k": bits[None], "c": torch.eye(3, dtype=F64)[j : j + 1]}
            total = total + q * c[j] * (log_joint(draws)[0] - (q * c[j]).log())
    return total


def gradient(value: Tensor, leaves: dict[str, Tensor]) -> Tensor:
    return torch.cat(torch.autograd.grad(value, list(leaves.values())))


def test_the_sum_is_exact():
    leaves = params()
    found, expected = discrete_elbo(log_joint, guide, leaves), by_hand(leaves)
    assert found.method == "ELBO, enumeration"
    torch.testing.assert_close(found.value, expected)
    torch.testing.assert_close(gradient(found.value, leaves), gradient(expected, leaves))


def repeated(route, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    values, grads = [], []
    for _ in range(num):
        leaves = params()
        found = discrete_elbo(
            log_joint, guide, leaves, gradient=route, num_draws=32, generator=generator
        )
        values.append(found.value.detach())
        grads.append(gradient(found.value, leaves))
    return torch.stack(values), torch.stack(grads)


def test_score_function_agrees_with_the_sum(generator: torch.Generator):
    leaves = params()
    exact = by_hand(leaves)
    value, grad = repeated(pc.ScoreFunction(), 600, generator)
    assert_mean_is(value, exact.detach(), bias=0.35)
    assert_mean_is(grad, gradient(exact, leaves), bias=0.35)


def test_vimco_agrees_with_the_sum(generator: torch.Generator):
    """Of two draws: the bound is a sum over pairs of values."""

    def pairs(leaves: dict[str, Tensor]) -> Tensor:
        p = leaves["k"].sigmoid()
        bits = torch.tensor([[(i >> j) & 1 for j in range(3)] for i in range(8)], dtype=F64)
        draws = {
            "k": bits.repeat_interleave(3, dim=0),
            "c": torch.eye(3, dtype=F64).repeat(8, 1),
        }
        q = (p * bits + (1 - p) * (1 - bits)).prod(dim=1)
        q = (q[:, None] * leaves["c"].softmax(dim=0)).flatten()
        log_w = log_joint(draws) - q.log()
        both = torch.logaddexp(log_w[:, None], log_w) - math.log(2)
        return (q[:, None] * q * both).sum()

    leaves = params()
    exact = pairs(leaves)
    value, grad = repeated(VIMCO(2), 600, generator)
    assert_mean_is(value, exact.detach(), bias=0.35)
    assert_mean_is(grad, gradient(exact, leaves), bias=0.35)


def test_relaxed_draws_are_near_and_say_that_they_are_biased(generator: torch.Generator):
    leaves = params()
    exact = gradient(by_hand(leaves), leaves)
    biases = []
    for temperature in (2.0, 0.2):
        found = discrete_elbo(
            log_joint,
            guide,
            leaves,
            gradient=RelaxedDraws(temperature),
            num_draws=40_000,
            generator=generator,
        )
        assert found.diagnostics["biased"]
        assert "biased" in found.method
        biases.append(float((gradient(found.value, leaves) - exact).norm()))
    assert biases[1] < 0.5 * biases[0]
    assert biases[1] < 0.2 * float(exact.norm())


def test_the_gradient_of_the_model_comes_along(generator: torch.Generator):
    """Parameters of the joint density get theirs by every unbiased route."""
    shift = torch.tensor(0.3, dtype=F64, requires_grad=True)
    joint = lambda draws: log_joint(draws) + shift * draws["k"].sum(dim=-1)
    exact = torch.autograd.grad(LOGITS.sigmoid().sum() * shift, shift)[0]
    for route in (Enumerate(), pc.ScoreFunction()):
        found = discrete_elbo(
            joint, guide, params(), gradient=route, num_draws=50_000, generator=generator
        )
        slope = torch.autograd.grad(found.value, shift)[0]
        assert float((slope - exact).abs()) < 6 * (0.75 / 50_000) ** 0.5


def test_an_honest_bar(generator: torch.Generator):
    found = discrete_elbo(
        log_joint, guide, params(), gradient=pc.ScoreFunction(), generator=generator
    )
    assert_within(found, by_hand(params()).detach())


def test_what_does_not_fit_is_refused():
    poisson = lambda p: {"k": td.Poisson(p["k"].exp())}
    total = lambda draws: -draws["k"].sum(dim=-1)
    with pytest.raises(ValueError, match="is Poisson, which is not relaxed"):
        discrete_elbo(total, poisson, params(), gradient=RelaxedDraws())
    with pytest.raises(ValueError, match="inf joint values"):
        discrete_elbo(total, poisson, params(), gradient=Enumerate())
    with pytest.raises(ValueError, match="`temperature` must be positive, got 0"):
        RelaxedDraws(0.0)
