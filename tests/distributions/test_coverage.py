"""Which supports lie inside which."""

from __future__ import annotations

import pyro.distributions as pyro_dist
import pytest
import torch
from problems.expectations import number
from torch import distributions as td

from probcalc.distributions.coverage import covers


def _uniforms(*ends: tuple[float, float]) -> td.Distribution:
    low, high = (number(*v) for v in zip(*ends, strict=True))
    return td.MixtureSameFamily(td.Categorical(torch.ones_like(low)), td.Uniform(low, high))


NORMAL, GAMMA, BETA = td.Normal(0.0, 1.0), td.Gamma(1.0, 1.0), td.Beta(1.0, 1.0)
POISSON, BINOMIAL = td.Poisson(1.0), td.Binomial(5, torch.tensor(0.5))
VECTOR = td.MultivariateNormal(torch.zeros(2), torch.eye(2))
POINT = pyro_dist.Delta(torch.tensor(0.3))
GAP = _uniforms((0.0, 1.0), (2.0, 3.0))
# (q, p, whether q covers p)
CASES = [
    (NORMAL, GAMMA, True),
    (GAMMA, NORMAL, False),
    (GAMMA, BETA, True),
    (td.Uniform(0.0, 0.5), BETA, False),
    (td.Uniform(0.0, 2.0), BETA, True),
    (NORMAL, POISSON, False),
    (POISSON, NORMAL, False),
    (POISSON, BINOMIAL, True),
    (BINOMIAL, POISSON, False),
    (BINOMIAL, td.Binomial(7, torch.tensor(0.5)), False),
    (NORMAL, POINT, False),
    (POINT, POINT, True),
    (POINT, pyro_dist.Delta(torch.tensor(0.4)), False),
    (POISSON, POINT, False),
    (POISSON, pyro_dist.Delta(torch.tensor(2.0)), True),
    (GAP, td.Uniform(number(0.2), number(0.9)), True),
    (GAP, td.Uniform(number(0.2), number(2.5)), False),
    (GAP, GAP, True),
    (td.Uniform(number(0.0), number(3.0)), GAP, True),
    (td.Uniform(number(0.0), number(2.5)), GAP, False),
    (_uniforms((0.0, 1.0), (0.5, 3.0)), td.Uniform(number(0.0), number(3.0)), True),
    (td.Independent(td.Normal(torch.zeros(2), 1.0), 1), VECTOR, True),
    (VECTOR, td.Independent(td.Gamma(torch.ones(2), 1.0), 1), True),
    (td.Independent(td.Gamma(torch.ones(2), 1.0), 1), VECTOR, False),
    (
        td.Independent(td.Uniform(torch.zeros(2), number(2.0, 0.5)), 1),
        td.Independent(td.Beta(torch.ones(2), 1.0), 1),
        False,
    ),
    (VECTOR, td.Dirichlet(torch.ones(2)), False),
    (td.Dirichlet(torch.ones(2)), td.Dirichlet(3 * torch.ones(2)), True),
    (td.Wishart(3.0, torch.eye(2)), td.Wishart(4.0, torch.eye(2)), True),
    (td.LKJCholesky(2, 1.0), td.LKJCholesky(2, 2.0), True),
    (td.LKJCholesky(2, 1.0), td.Wishart(4.0, torch.eye(2)), False),
    (td.OneHotCategorical(torch.ones(3)), td.OneHotCategorical(number(0.5, 0.5, 0.0)), True),
    (td.OneHotCategorical(number(0.5, 0.5, 0.0)), td.OneHotCategorical(torch.ones(3)), False),
    (td.OneHotCategorical(torch.ones(3)), td.Dirichlet(torch.ones(3)), False),
    (td.Multinomial(3, torch.ones(3)), td.Multinomial(3, torch.ones(3)), True),
    (td.Multinomial(3, torch.ones(3)), td.Multinomial(4, torch.ones(3)), False),
    (td.Categorical(torch.ones(4)), td.Categorical(torch.ones(3)), True),
    (td.Categorical(torch.ones(3)), td.Categorical(torch.ones(4)), False),
    (td.Bernoulli(1.0), td.Bernoulli(0.5), False),
    (POISSON, td.Bernoulli(0.5), True),
]


@pytest.mark.parametrize(("q", "p", "expected"), CASES)
def test_who_covers_whom(q: td.Distribution, p: td.Distribution, expected: bool):
    inside = covers(q, p)
    assert inside.shape == torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    assert bool(inside) is expected


def test_every_element_of_a_batch_has_its_own_answer():
    q = td.Uniform(number(0.0, 0.0, -1.0), number(1.0, 0.5, 3.0))
    assert covers(q, BETA).tolist() == [True, False, True]
    parts = td.Uniform(number(0.0, 1.0).expand(3, 2), number(1.0, 2.0).expand(3, 2))
    mixed = td.MixtureSameFamily(td.Categorical(torch.ones(3, 2)), parts)
    assert covers(q, mixed).tolist() == [False, False, True]


def test_what_cannot_be_told():
    with pytest.raises(
        ValueError, match=r"draws of one shape, got events of shapes \(\) and \(2,\)"
    ):
        covers(NORMAL, VECTOR)
    strange = td.TransformedDistribution(VECTOR, [td.StickBreakingTransform()])
    strange = td.TransformedDistribution(VECTOR, [td.CumulativeDistributionTransform(NORMAL)])
    with pytest.raises(NotImplementedError, match="of no kind that can be compared"):
        covers(strange, VECTOR)
