"""Surrogates with right derivatives, estimators without bias, and refusals of the wrong ones."""

from __future__ import annotations

import math
import re

import laws
import pytest
import torch
from problems.expectations import number
from torch import Tensor
from torch import distributions as td

from probcalc import (
    EstimateWarning,
    Fixed,
    LeaveOneOut,
    MeasureValued,
    MonteCarlo,
    NoBaseline,
    Pathwise,
    QuasiMonteCarlo,
    Relaxation,
    ScoreFunction,
    compare_gradient_estimators,
    expect,
    expect_grad,
)
from probcalc.integration.gradient_estimators import (
    clipped_surrogate,
    score_weights,
    surrogate,
)

ESTIMATORS = {
    "pathwise": Pathwise(),
    "score": ScoreFunction(NoBaseline()),
    "leave-one-out": ScoreFunction(),
    "fixed": ScoreFunction(Fixed(0.7)),
    "measure-valued": MeasureValued(),
    "relaxation": Relaxation(),
}


def step(x: Tensor) -> Tensor:
    return (x > 0).double()


def pair(x: Tensor) -> Tensor:
    return x[..., 0] * x[..., 1] ** 2


# name -> (function, distribution of t, t, exact gradient)
LIST = {
    "step": (step, lambda t: td.Normal(t, 1.0), number(0.3), 0.3813878154605241),
    "cubic": (lambda x: x**3 + x**2, lambda t: td.Normal(0.3, t), number(0.7), 2.66),
    "Bernoulli": (lambda x: x, lambda t: td.Bernoulli(t), number(0.3), 1.0),
    "uniform": (lambda x: x, lambda t: td.Uniform(0.0, t), number(1.5), 0.5),
    "root": (lambda x: x.abs().sqrt(), lambda t: td.Normal(t, 1.0), number(0.5), 0.1932422988),
    "von Mises": (torch.cos, lambda t: td.VonMises(number(0.0), t), number(2.0), 0.1642231977),
    "beta": (lambda x: x, lambda t: td.Beta(t, number(2.0)), number(0.5), 0.32),
    "Poisson": (lambda x: 3 * x, lambda t: td.Poisson(t), number(2.0), 3.0),
    "exponential": (lambda x: x**2, lambda t: td.Exponential(t), number(2.0), -0.5),
    "normals": (
        pair,
        lambda t: td.Independent(td.Normal(t, 1.0), 1),
        number(0.3, 0.5),
        (1.25, 0.3),
    ),
}


@pytest.mark.parametrize("name", LIST)
@pytest.mark.parametrize("kind", ESTIMATORS)
def test_no_bias_or_a_refusal(name: str, kind: str, generator: torch.Generator):
    fn, family, t, exact = LIST[name]
    estimator = ESTIMATORS[kind]
    call = lambda: expect_grad(  # noqa: E731
        fn,
        lambda p: family(p["t"]),
        {"t": t},
        method=MonteCarlo(40_000),
        gradient=estimator,
        generator=generator,
    )["t"]
    refused = {
        "pathwise": {"step", "Bernoulli", "von Mises", "Poisson"},
        "measure-valued": {"uniform", "von Mises", "beta"},
        "relaxation": set(LIST) - {"Bernoulli"},
    }.get(kind, {"uniform"})
    if name in refused:
        with pytest.raises(ValueError, match="would be wrong here"):
            call()
        return
    if (kind, name) == ("pathwise", "root"):  # |x|^-½ has no variance
        with pytest.warns(EstimateWarning, match="no finite variance"):
            assert float(call().error) == math.inf
        return
    result = call()
    assert result.ok
    gap = (result.value - torch.tensor(exact, dtype=torch.float64)).abs()
    # 5.3 standard errors: missed with probability 1e-7
    assert (gap <= 5.3 * result.std_error + 1e-9).all()


def chosen(x: Tensor) -> Tensor:
    """Of one-hot vectors, or of what lies between them."""
    return (x @ number(1.0, -0.5, 2.0, 0.3)) ** 2


def votes(x: Tensor) -> Tensor:
    return (x.sum(-1) - 1.2) ** 2


# name -> (function, distribution of t, t): what can be summed
RELAXED = {
    "one-hot": (chosen, lambda t: td.OneHotCategorical(logits=t), number(0.2, -0.3, 0.5, 0.0)),
    "binary": (votes, lambda t: td.Independent(td.Bernoulli(logits=t), 1), number(0.2, -1.0, 0.6)),
}


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("name", RELAXED)
def test_relaxations_have_no_bias_and_less_noise(name: str, temperature: float):
    """Against the exact sum over the support, at any temperature."""
    fn, family, t = RELAXED[name]
    leaf = t.clone().requires_grad_()
    dist = family(leaf)
    if name == "one-hot":
        support = dist.enumerate_support()
    else:
        support = torch.cartesian_prod(*[number(0.0, 1.0)] * len(t))
    mean = (dist.log_prob(support).exp() * fn(support)).sum()
    (exact,) = torch.autograd.grad(mean, leaf)
    found = {}
    for estimator in (Relaxation(temperature), ScoreFunction(NoBaseline())):
        found[type(estimator)] = expect_grad(
            fn,
            lambda p: family(p["t"]),
            {"t": t},
            method=MonteCarlo(40_000),
            gradient=estimator,
            generator=laws.generator(1),
        )["t"]
    result = found[Relaxation]
    assert ((result.value - exact).abs() <= 5.3 * result.std_error).all()
    if temperature >= 0.5:  # colder ones are too noisy to be of use
        assert result.std_error.norm() < found[ScoreFunction].std_error.norm()


@pytest.mark.parametrize("name", [name for name in LIST if name not in {"uniform", "normals"}])
def test_integrals_have_digits(name: str):
    fn, family, t, exact = LIST[name]
    result = expect_grad(fn, lambda p: family(p["t"]), {"t": t})["t"]
    assert result.ok
    assert result.std_error is None
    laws.assert_within(result, exact, atol=1e-10)
    assert float(result.error) < 1e-9


def test_a_gradient_that_no_number_can_reach(generator: torch.Generator):
    """Half a percent of E log x, x ~ Gamma(0.01), lies below the least number."""
    result = expect_grad(
        torch.log,
        lambda p: td.Gamma(p["a"], number(1.0)),
        {"a": number(0.01)},
        generator=generator,
    )["a"]
    assert not result.ok or abs(float(result.value) - 10001.6212135) <= 2 * float(result.error)


@pytest.mark.parametrize("kind", ["pathwise", "leave-one-out", "measure-valued"])
def test_the_bars_of_gradients_cover(kind: str):
    exact, hits = math.cos(0.5) * math.exp(-0.5), []
    for seed in range(700):
        result = expect_grad(
            torch.sin,
            lambda p: td.Normal(p["t"], 1.0),
            {"t": number(0.5)},
            method=MonteCarlo(1_000),
            gradient=ESTIMATORS[kind],
            confidence=0.95,
            generator=laws.generator(seed),
        )["t"]
        hits.append(abs(float(result.value) - exact) <= float(result.error))
    laws.assert_covers(torch.tensor(hits), 0.95, caught=0.865)


def test_second_derivatives(generator: torch.Generator):
    """E[m x²] under N(m, s): Hessian [[6m, 2s], [2s, 2m]]."""
    t = number(0.3, 0.8).requires_grad_()
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
    found = []
    for _ in range(400):
        dist = td.Normal(t[0], t[1])
        x = dist.sample((500,))
        f = t[0] * x**2
        value = surrogate(dist.log_prob(x), f, f).mean()
        (slope,) = torch.autograd.grad(value, t, create_graph=True)
        rows = [torch.autograd.grad(s, t, retain_graph=True)[0] for s in slope]
        found.append(torch.stack(rows))
    hessians = torch.stack(found)
    exact = number(1.8, 1.6, 1.6, 0.6).reshape(2, 2)
    gap = (hessians.mean(dim=0) - exact).abs()
    assert (gap <= 5.3 * hessians.std(dim=0) / 400**0.5).all()


def test_values_are_the_signal():
    log_prob = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    signal = torch.randn(5, 3, dtype=torch.float64)
    for baseline in (NoBaseline(), LeaveOneOut(), Fixed(2.0)):
        assert torch.equal(surrogate(log_prob, signal, baseline=baseline), signal)


def test_rewards_to_go(generator: torch.Generator):
    """Of steps, each log probability is weighed by what comes after it."""
    log_prob = torch.randn(4, 3, dtype=torch.float64, generator=generator).requires_grad_()
    reward = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    later = torch.ones(3, 3).triu().bool()
    total = surrogate(log_prob, reward, baseline=NoBaseline(), downstream=later).sum()
    (slope,) = torch.autograd.grad(total, log_prob)
    torch.testing.assert_close(slope, reward.flip(1).cumsum(1).flip(1))
    total = surrogate(log_prob, reward, downstream=later).sum()
    (slope,) = torch.autograd.grad(total, log_prob)
    returns = reward.flip(1).cumsum(1).flip(1)
    others = (returns.sum(0) - returns) / 3
    torch.testing.assert_close(slope, returns - others)


def test_baselines_cut_the_variance(generator: torch.Generator):
    rows = compare_gradient_estimators(
        lambda x: x**2 + 10,
        lambda p: td.Poisson(p["t"]),
        {"t": number(2.0)},
        estimators=(ScoreFunction(NoBaseline()), ScoreFunction()),
        generator=generator,
    )
    assert isinstance(rows[0].estimator.baseline, type(None))
    assert float(rows[0].std_error) * 1.2 < float(rows[1].std_error)
    assert "standard error" in repr(rows[0])


def test_paths_that_miss_a_jump_are_found_out(generator: torch.Generator):
    rows = compare_gradient_estimators(
        lambda x: torch.where(x > 0, x + 1, x),
        lambda p: td.Normal(p["t"], 1.0),
        {"t": number(0.3)},
        generator=generator,
    )
    refused = [row for row in rows if row.refused]
    assert [type(row.estimator) for row in refused] == [Pathwise]
    assert "jumps" in repr(refused[0])


def test_heavy_gradients_are_flagged(generator: torch.Generator):
    """The path through log x near zero has no variance."""
    with pytest.warns(EstimateWarning):
        result = expect_grad(
            lambda x: torch.where(x > 0, x.clamp(min=1e-300).log(), 0.0),
            lambda p: td.Normal(p["t"], 1.0),
            {"t": number(0.3)},
            method=MonteCarlo(),
            gradient=Pathwise(),
            generator=generator,
        )["t"]
    assert float(result.error) == math.inf


def test_all_parameters_at_once(generator: torch.Generator):
    result = expect_grad(
        pair,
        lambda p: td.Independent(td.Normal(p["loc"], p["log_scale"].exp()), 1),
        {"loc": number(0.3, 0.5), "log_scale": number(0.0, 0.5)},
        generator=generator,
    )
    assert set(result) == {"loc", "log_scale"}
    scale = math.exp(1.0)
    exact = {"loc": number(0.25 + scale, 0.3), "log_scale": number(0.0, 0.6 * scale)}
    for name, estimate in result.items():
        assert estimate.value.shape == (2,)
        laws.assert_within(estimate, exact[name])


NORMAL = lambda p: td.Normal(p["t"], 1.0)  # noqa: E731
T = {"t": number(0.3)}
BAD = {
    "function": (lambda: expect_grad(1.0, NORMAL, T), TypeError, "must be functions"),
    "parameters": (lambda: expect_grad(step, NORMAL, number(0.3)), TypeError, "dict of tensors"),
    "integers": (
        lambda: expect_grad(step, NORMAL, {"t": torch.tensor(1)}),
        TypeError,
        "floating-point",
    ),
    "no distribution": (lambda: expect_grad(step, lambda p: p["t"], T), TypeError, "Distribution"),
    "batch": (
        lambda: expect_grad(step, NORMAL, {"t": number(0.3, 0.4)}),
        ValueError,
        "empty batch",
    ),
    "unused": (
        lambda: expect_grad(step, NORMAL, {**T, "other": number(1.0)}),
        ValueError,
        r"params\['other'\]` receives no gradient",
    ),
    "method": (lambda: expect_grad(step, NORMAL, T, method=3), TypeError, "MonteCarlo"),
    "shape": (
        lambda: expect_grad(lambda x: x.sum(), NORMAL, T),
        ValueError,
        "must return",
    ),
    "one draw": (
        lambda: surrogate(torch.zeros(1), torch.zeros(1)),
        ValueError,
        "at least 2 draws",
    ),
    "shapes": (
        lambda: surrogate(torch.zeros(2), torch.zeros(3)),
        ValueError,
        "must have one shape",
    ),
}


@pytest.mark.parametrize(("call", "error", "text"), BAD.values(), ids=BAD.keys())
def test_refusals(call, error: type[Exception], text: str):
    """Mistakes of type may meet a checker of annotations first, with words of its own."""
    with pytest.raises((error, TypeError)) as raised:
        call()
    said = str(raised.value)
    assert (isinstance(raised.value, error) and re.search(text, said)) or "Type-check" in said


@pytest.mark.parametrize("method", [MonteCarlo(), QuasiMonteCarlo()])
def test_expectations_by_the_gradient_asked_for(method, generator: torch.Generator):
    t = number(0.3, 0.5).requires_grad_()
    cases = [
        (torch.sin, Pathwise(), t.cos() * math.exp(-0.5)),
        (torch.sin, ScoreFunction(), t.cos() * math.exp(-0.5)),
        (step, ScoreFunction(), (-0.5 * t**2).exp() / math.sqrt(2 * math.pi)),
    ]
    for fn, gradient, exact in cases:
        options = {"method": method, "gradient": gradient, "generator": generator}
        value = expect(fn, td.Normal(t, 1.0), **options).value
        (slope,) = torch.autograd.grad(value.sum(), t)
        torch.testing.assert_close(slope, exact.detach(), rtol=0, atol=0.01)
    with pytest.raises(ValueError, match="would be wrong here"):
        expect(step, td.Normal(t, 1.0), method=method, gradient=Pathwise())
    with pytest.raises(TypeError, match="others are for `expect_grad`"):
        expect(step, td.Normal(t, 1.0), method=method, gradient=MeasureValued())


def test_weights_of_scores_are_the_gradient_of_the_surrogate():
    """With any mask and baseline."""
    g = torch.Generator().manual_seed(3)
    signal = torch.randn(6, 4, generator=g, dtype=torch.float64)
    log_prob = torch.randn(6, 4, generator=g, dtype=torch.float64, requires_grad=True)
    powers = 0.9 ** (torch.arange(4) - torch.arange(4)[:, None]).clamp(min=0).double()
    for mask in (None, torch.ones(4, 4, dtype=torch.bool).triu(), powers.triu()):
        for baseline in (NoBaseline(), LeaveOneOut(), Fixed(0.7)):
            chosen = {"baseline": baseline, "downstream": mask}
            terms = surrogate(log_prob, signal, **chosen)
            (slope,) = torch.autograd.grad(terms.sum(), log_prob)
            weights = score_weights(signal, **chosen)
            torch.testing.assert_close(slope, weights)


def test_the_clipped_surrogate_stops_where_the_ratio_has_paid():
    log_ratio = torch.tensor([0.0, 0.5, 0.5, -0.5, -0.5], requires_grad=True)
    weights = torch.tensor([2.0, 1.0, -1.0, 1.0, -1.0])
    terms = clipped_surrogate(log_ratio, weights, 0.2)
    (slope,) = torch.autograd.grad(terms.sum(), log_ratio)
    ratio = log_ratio.detach().exp()
    expected = torch.tensor([2.0, 0.0, -float(ratio[2]), float(ratio[3]), 0.0])
    torch.testing.assert_close(slope, expected)
    torch.testing.assert_close(
        terms.detach(), torch.tensor([2.0, 1.2, -float(ratio[2]), float(ratio[3]), -0.8])
    )
