"""Draws: of the distribution that they claim, from the generator that they are given."""

from __future__ import annotations

import laws
import pyro.distributions as pyro_dist
import pytest
import torch
from problems.expectations import mixture, number
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.cdf import cdf
from probcalc.distributions.draw import draw

# on the line: compared with the distribution function
LINE = {
    "normal": td.Normal(number(1.0), number(0.5)),
    "lognormal": td.LogNormal(number(0.3), number(1.2)),
    "half-normal": td.HalfNormal(number(2.0)),
    "gamma": td.Gamma(number(0.01), number(2.0)),
    "chi-squared": td.Chi2(number(3.0)),
    "inverse gamma": td.InverseGamma(number(2.5), number(1.5)),
    "exponential": td.Exponential(number(0.2)),
    "Weibull": td.Weibull(number(2.0), number(0.7)),
    "beta": td.Beta(number(0.5), number(2.0)),
    "Student": td.StudentT(number(3.3), number(1.0), number(2.0)),
    "F": td.FisherSnedecor(number(3.0), number(7.0)),
    "Cauchy": td.Cauchy(number(1.0), number(2.0)),
    "Gumbel": td.Gumbel(number(1.0), number(2.0)),
    "Pareto": td.Pareto(number(2.0), number(1.5)),
    "affine": td.TransformedDistribution(
        td.Exponential(number(1.0)), [td.AffineTransform(number(2.0), number(-3.0))]
    ),
    "mixture": mixture((0.2, 0.8), (-3.0, 4.0), (0.5, 1.0)),
}
COUNTS = {
    "Poisson": td.Poisson(number(3.0)),
    "binomial": td.Binomial(6, number(0.3)),
    "geometric": td.Geometric(number(0.2)),
    "negative binomial": td.NegativeBinomial(number(4.5), number(0.4)),
    "Bernoulli": td.Bernoulli(number(0.3)),
    "categorical": td.Categorical(number(0.2, 0.5, 0.3)),
    "mixture of counts": td.MixtureSameFamily(
        td.Categorical(number(0.4, 0.6)), td.Poisson(number(1.0, 9.0))
    ),
}
VECTORS = {
    "independent": td.Independent(td.Normal(torch.zeros(3, 2), 1.0), 1),
    "Dirichlet": td.Dirichlet(number(0.5, 2.0, 1.0)),
    "multivariate normal": td.MultivariateNormal(
        number(1.0, -1.0), torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    ),
    "low rank": td.LowRankMultivariateNormal(
        number(0.0, 1.0, 2.0), torch.ones(3, 1, dtype=torch.float64), number(1.0, 2.0, 3.0)
    ),
    "one-hot": td.OneHotCategorical(number(0.2, 0.5, 0.3)),
    "multinomial": td.Multinomial(5, number(0.2, 0.5, 0.3)),
    "mixture of vectors": td.MixtureSameFamily(
        td.Categorical(number(0.5, 0.5)),
        td.Independent(td.Normal(torch.tensor([[0.0, 1.0], [5.0, 6.0]]).double(), 1.0), 1),
    ),
    "LKJ": td.LKJCholesky(3, 1.5),
    "von Mises": td.VonMises(number(0.3), number(1.0)),
    "point": pyro_dist.Delta(number(0.3)),
    "uniforms in a batch": td.Uniform(torch.zeros(3, 1), torch.ones(2)),
    "categorical batch": td.Categorical(torch.ones(3, 2, 4)),
}
ALL = {**LINE, **COUNTS, **VECTORS}


@pytest.mark.parametrize("name", LINE)
def test_draws_on_the_line_follow_the_distribution_function(name: str, generator):
    x = draw(LINE[name], (20_000,), generator)
    laws.assert_distributed(x, cdf(LINE[name], x), distance=0.05)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_have_their_probabilities(name: str, generator):
    dist = COUNTS[name]
    k = draw(dist, (400_000,), generator)
    values = number(0.0, 1.0, 2.0)
    probabilities = cdf(dist, values) - cdf(dist, values - 1)
    seen = probabilities > 0
    hits = (k[:, None] == values).double()
    laws.assert_mean_is(hits[:, seen], probabilities[seen], bias=0.05)


@pytest.mark.parametrize(
    "name", ["Dirichlet", "multivariate normal", "low rank", "one-hot", "multinomial"]
)
def test_vectors_have_their_means_and_variances(name: str, generator):
    dist = VECTORS[name]
    x = draw(dist, (200_000,), generator).double()
    squares = (x - dist.mean).square()
    moments = torch.cat([x, squares], dim=1)
    laws.assert_mean_is(moments, torch.cat([dist.mean, dist.variance]), bias=0.05)


@pytest.mark.parametrize("name", ALL)
def test_shapes_types_seeds_and_the_global_generator(name: str, seed: int):
    dist = ALL[name]
    before = torch.random.get_rng_state()
    first, again = (draw(dist, (4, 2), laws.generator(seed)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, again)
    with torch.random.fork_rng():
        theirs = dist.sample((4, 2))
    assert first.shape == theirs.shape
    assert first.dtype == theirs.dtype
    if name != "point":
        assert not torch.equal(first, draw(dist, (4, 2), laws.generator(seed + 1)))


# family, parameters: dE[X]/dθ by draws against the mean's own
REPARAMETRISED = {
    "normal": (td.Normal, (1.0, 0.5)),
    "gamma": (td.Gamma, (0.6, 2.0)),
    "beta": (td.Beta, (0.5, 2.0)),
    "inverse gamma": (td.InverseGamma, (25.0, 1.5)),
    "F": (td.FisherSnedecor, (5.0, 40.0)),
    "Student": (lambda m, s: td.StudentT(number(7.0), m, s), (1.0, 2.0)),
    "exponential": (td.Exponential, (0.2,)),
    "Kumaraswamy": (td.Kumaraswamy, (2.0, 3.0)),
    "mixture": (
        lambda w, m: td.MixtureSameFamily(
            td.Categorical(torch.stack([w, 1 - w])), td.Normal(torch.stack([m, -m]), 1.0)
        ),
        (0.3, 0.7),
    ),
}


@pytest.mark.parametrize("name", REPARAMETRISED)
def test_gradients_of_draws_are_unbiased(name: str, generator):
    make, values = REPARAMETRISED[name]
    theta = [number(v).requires_grad_() for v in values]
    exact = torch.autograd.grad(
        make(*theta).mean, theta, allow_unused=True, materialize_grads=True
    )
    n = 100_000
    wide = [number(v).expand(n).clone().requires_grad_() for v in values]
    mixed = name == "mixture"
    x = draw(_batched(make, wide) if mixed else make(*wide), (), generator)
    slopes = torch.stack(torch.autograd.grad(x.sum(), wide), dim=1)
    laws.assert_mean_is(slopes, torch.stack(exact), bias=0.05)


def _batched(make: object, wide: list[Tensor]) -> td.Distribution:
    weights, m = wide
    return td.MixtureSameFamily(
        td.Categorical(torch.stack([weights, 1 - weights], dim=-1)),
        td.Normal(torch.stack([m, -m], dim=-1), 1.0),
    )


def test_float32_draws_reach_beyond_float32_uniforms(generator):
    """A uniform number of float32 is at least 2^-24: no exponential draw from it is below that."""
    x = draw(td.Exponential(torch.tensor(1.0)), (200_000,), generator)
    assert x.dtype == torch.float32
    assert ((x > 0) & (x.log2() * 2**24 != (x.log2() * 2**24).round())).any()
    small = draw(td.Beta(torch.tensor(1e-3), torch.tensor(1e-3)), (1000,), generator)
    assert small.isfinite().all()
