from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from laws import assert_mean_is
from torch import Tensor
from torch import distributions as td

from probcalc.models.vae.discretized import DiscretizedLogistic
from probcalc.models.vae.likelihoods import Bernoulli, Binomial, Categorical, Gaussian, Likelihood

F64 = {"dtype": torch.float64}
LEVELS = {
    "categorical": Categorical(5),
    "binomial": Binomial(5),
    "logistic": DiscretizedLogistic(5),
    "mixture": DiscretizedLogistic(5, num_components=3),
}
ALL = {
    "bernoulli": Bernoulli(),
    "known scale": Gaussian(0.5),
    "shared scale": Gaussian(),
    "scale by pixel": Gaussian(per_pixel=True),
    "shared logistic": DiscretizedLogistic(5, shared_scale=True),
    "shared mixture": DiscretizedLogistic(5, num_components=3, shared_scale=True),
    **LEVELS,
}
LARGE = 30.0


def data(likelihood: Likelihood, generator: torch.Generator, n: int = 40, p: int = 3) -> Tensor:
    if isinstance(likelihood, Gaussian):
        return torch.randn(n, p, generator=generator, **F64)
    top = 2 if isinstance(likelihood, Bernoulli) else likelihood.levels
    return torch.randint(top, (n, p), generator=generator).double()


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("scale", [0.1, 1.0, LARGE])
def test_masses_of_the_levels_sum_to_one(name: str, scale: float, generator: torch.Generator):
    likelihood = LEVELS[name]
    outputs = scale * torch.randn(7, likelihood.num_outputs, 1, generator=generator, **F64)
    levels = torch.arange(5.0, **F64)[:, None, None].expand(5, 7, 1)
    total = likelihood.log_prob(outputs, {}, levels).logsumexp(dim=0)
    torch.testing.assert_close(total, torch.zeros(7, **F64), rtol=0, atol=1e-10)


ORACLES: dict[str, Callable[[Tensor, dict], td.Distribution]] = {
    "bernoulli": lambda o, _: td.Bernoulli(logits=o[:, 0]),
    "categorical": lambda o, _: td.Categorical(logits=o.mT),
    "binomial": lambda o, _: td.Binomial(4, logits=o[:, 0]),
    "known scale": lambda o, _: td.Normal(o[:, 0], 0.5),
    "shared scale": lambda o, e: td.Normal(o[:, 0], e["log_scale"].exp()),
    "scale by pixel": lambda o, _: td.Normal(o[:, 0], o[:, 1].exp()),
}


@pytest.mark.parametrize("name", ORACLES)
def test_log_probability_is_that_of_torch(name: str, generator: torch.Generator):
    likelihood = ALL[name]
    x = data(likelihood, generator)
    extra = likelihood.extra(x)
    outputs = torch.randn(40, likelihood.num_outputs, 3, generator=generator, **F64)
    expected = ORACLES[name](outputs, extra).log_prob(x).sum(dim=1)
    torch.testing.assert_close(likelihood.log_prob(outputs, extra, x), expected)


def test_logistic_masses_are_differences_of_its_distribution_function():
    loc, scale, x = 0.3, 0.2, torch.arange(5.0, **F64)[:, None]
    outputs = torch.tensor([[loc], [math.log(scale)]], **F64).expand(5, 2, 1)
    cdf = lambda v: torch.sigmoid((torch.as_tensor(v) / 4 - loc) / scale)  # noqa: E731
    edges = torch.cat([torch.zeros(1), cdf([0.5, 1.5, 2.5, 3.5]), torch.ones(1)]).double()
    got = DiscretizedLogistic(5).log_prob(outputs, {}, x)
    torch.testing.assert_close(got, edges.diff().log(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_finite_far_out(name: str, generator: torch.Generator):
    """Levels at both ends, and outputs at which masses are below the least number."""
    likelihood = ALL[name]
    x = data(likelihood, generator)
    shape = (40, likelihood.num_outputs, 3)
    outputs = LARGE * torch.randn(*shape, generator=generator)
    if isinstance(likelihood, Gaussian):  # squares of far pixels in tiny units overflow
        outputs[:, 1:] /= LARGE
    outputs.requires_grad_()
    value = likelihood.log_prob(outputs, likelihood.extra(x.float()), x.float())
    (grad,) = torch.autograd.grad(value.sum(), outputs)
    assert bool(value.isfinite().all())
    assert bool(grad.isfinite().all())


@pytest.mark.parametrize("name", ALL)
def test_starts_fit_the_marginals(name: str, generator: torch.Generator):
    """The mean of a pixel is that of the data, without a latent."""
    likelihood = ALL[name]
    x = data(likelihood, generator, n=4_000)
    outputs = likelihood.start(x)[None]
    mean = likelihood.mean(outputs, likelihood.extra(x))
    torch.testing.assert_close(mean[0], x.mean(dim=0), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", ["bernoulli", "binomial", "categorical", "scale by pixel"])
def test_draws_have_the_mean(name: str, generator: torch.Generator):
    likelihood, n = ALL[name], 20_000
    outputs = 0.3 * torch.randn(1, likelihood.num_outputs, 3, generator=generator, **F64)
    draws = likelihood.sample(outputs.expand(n, -1, -1), {}, generator)
    exact = likelihood.mean(outputs, {})[0]
    assert_mean_is(draws, exact, bias=0.1)


@pytest.mark.parametrize("name", ["logistic", "mixture"])
def test_draws_have_the_masses(name: str, generator: torch.Generator):
    likelihood, n = ALL[name], 50_000
    m = likelihood.num_components
    parts = [torch.linspace(0.3, 0.7, m, **F64), torch.full((m,), -0.7, **F64)]
    parts += [torch.zeros(m, **F64)] if m > 1 else []
    outputs = torch.cat(parts)[None, :, None]
    draws = likelihood.sample(outputs.expand(n, -1, -1), {}, generator)
    levels = torch.arange(5.0, **F64)[:, None, None]
    mass = likelihood.log_prob(outputs, {}, levels).exp().flatten()
    assert_mean_is((draws == levels[:, 0, 0]).double(), mass, bias=0.1)


def test_log_probabilities_are_sums_over_pixels(generator: torch.Generator):
    """Twice the pixels have twice the nats."""
    for likelihood in ALL.values():
        x = data(likelihood, generator)
        extra = likelihood.extra(x)
        outputs = torch.randn(40, likelihood.num_outputs, 3, generator=generator, **F64)
        one = likelihood.log_prob(outputs, extra, x)
        two = likelihood.log_prob(
            torch.cat([outputs, outputs], -1),
            {k: torch.cat([t, t], -1) if t.ndim else t for k, t in extra.items()},
            torch.cat([x, x], dim=-1),
        )
        torch.testing.assert_close(two, 2 * one)


def test_dynamic_pixels_are_drawn_anew(generator: torch.Generator):
    x = torch.full((20_000, 1), 0.3, **F64)
    seen = Bernoulli(dynamic=True).seen(x, generator)
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    assert_mean_is(seen, 0.3, bias=0.1)
    assert Bernoulli().seen(x, generator) is x


def test_scales_that_rows_share_are_those_of_the_decoder(generator: torch.Generator):
    x = data(LEVELS["mixture"], generator)
    own, shared = LEVELS["mixture"], ALL["shared mixture"]
    extra, outputs = shared.extra(x), torch.randn(40, 9, 3, generator=generator, **F64)
    outputs[:, 3:6] = extra["log_scale"]
    fewer = torch.cat([outputs[:, :3], outputs[:, 6:]], dim=1)
    expected = own.log_prob(outputs, {}, x)
    torch.testing.assert_close(shared.log_prob(fewer, extra, x), expected)


REFUSED = {
    "grey pixels": (Bernoulli(), torch.tensor([[0.0, 0.5]]), "grey"),
    "levels in Bernoulli": (Bernoulli(), torch.tensor([[0.0, 16.0]]), "0 or 1"),
    "below zero, drawn": (Bernoulli(dynamic=True), torch.tensor([[-0.1]]), "0 or 1"),
    "too high a level": (Binomial(17), torch.tensor([[17.0]]), "from 0 to 16"),
    "negative level": (Categorical(17), torch.tensor([[-1.0]]), "from 0 to 16"),
    "half a level": (DiscretizedLogistic(17), torch.tensor([[0.5]]), "whole numbers"),
}


@pytest.mark.parametrize(("likelihood", "x", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_data_of_another_kind_are_refused(likelihood: Likelihood, x: Tensor, words: str):
    with pytest.raises(ValueError, match=words):
        likelihood.check(x)


def test_scales_must_be_positive_and_not_given_twice():
    with pytest.raises(ValueError, match="positive"):
        Gaussian(-1.0)
    with pytest.raises(ValueError, match="None where"):
        Gaussian(1.0, per_pixel=True)
