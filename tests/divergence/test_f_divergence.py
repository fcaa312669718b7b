"""Other divergences against what is known of normal, exponential and finite distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate as si
import scipy.stats as st
import torch
from laws import assert_within
from problems.expectations import number
from problems.pairs import FAMILIES, INF, matrix, normals
from torch import distributions as td

import probcalc as pc

ONE, ZERO = number(1.0), number(0.0)


def normal(m: float, s: float) -> td.Normal:
    return td.Normal(number(m), number(s))


def normal_hellinger(m: float, s: float, n: float, t: float) -> float:
    total = s * s + t * t
    return 1 - math.sqrt(2 * s * t / total) * math.exp(-0.25 * (m - n) ** 2 / total)


def normal_chi_squared(m: float, s: float, n: float, t: float) -> float:
    room = 2 * t * t - s * s
    return t * t / (s * math.sqrt(room)) * math.exp((m - n) ** 2 / room) - 1


def normal_renyi(m: float, s: float, n: float, t: float, alpha: float) -> float:
    mixed = alpha * t * t + (1 - alpha) * s * s
    shape = math.log(t / s) + math.log(t * t / mixed) / (2 * (alpha - 1))
    return shape + 0.5 * alpha * (m - n) ** 2 / mixed


PAIRS = [
    (0.0, 1.0, 0.5, 1.2),
    (0.0, 1.0, 0.0, 1.0001),
    (2.0, 0.5, -1.0, 0.8),
    (0.0, 1.0, 9.0, 1.0),
]


@pytest.mark.parametrize("pair", PAIRS)
class TestNormals:
    def test_hellinger(self, pair):
        found = pc.hellinger(normal(*pair[:2]), normal(*pair[2:]))
        truth = normal_hellinger(*pair)
        assert abs(float(found) - truth) <= max(float(found.error), 1e-15)
        assert found.ok

    def test_chi_squared(self, pair):
        found = pc.chi_squared(normal(*pair[:2]), normal(*pair[2:]))
        truth = normal_chi_squared(*pair)
        assert abs(float(found) - truth) <= max(float(found.error), 1e-9 * truth)

    @pytest.mark.parametrize("alpha", [0.3, 0.999, 1.001, 1.5])
    def test_renyi(self, pair, alpha: float):
        found = pc.renyi(normal(*pair[:2]), normal(*pair[2:]), alpha)
        truth = normal_renyi(*pair, alpha)
        assert abs(float(found) - truth) <= max(float(found.error), 1e-9 * truth)

    def test_total_variation(self, pair):
        """Between the places where the densities cross, by the distribution functions."""
        m, s, n, t = pair
        a, b, c = (
            1 / t**2 - 1 / s**2,
            2 * (m / s**2 - n / t**2),
            n**2 / t**2 - m**2 / s**2 + 2 * math.log(t / s),
        )
        cuts = np.roots([a, b, c] if a else [b, c]).real
        signs = st.norm.cdf(cuts, m, s) - st.norm.cdf(cuts, n, t)
        truth = abs(signs[0]) if len(cuts) == 1 else abs(signs[0] - signs[1])
        found = pc.total_variation(normal(m, s), normal(n, t))
        assert abs(float(found) - truth) <= max(float(found.error), 1e-9 * truth)
        assert found.ok

    def test_jensen_shannon(self, pair):
        p, q = st.norm(*pair[:2]), st.norm(*pair[2:])

        def at(x: float) -> float:
            a, b = p.pdf(x), q.pdf(x)
            mean = 0.5 * (a + b)
            return sum(0.5 * w * math.log(w / mean) for w in (a, b) if w > 0)

        places = sorted([*p.ppf([1e-12, 0.5, 1 - 1e-12]), *q.ppf([1e-12, 0.5, 1 - 1e-12])])
        truth = si.quad(at, places[0], places[-1], points=places[1:-1], limit=500, epsabs=1e-12)[0]
        found = pc.jensen_shannon(normal(*pair[:2]), normal(*pair[2:]))
        assert float(found) == pytest.approx(truth, rel=1e-5, abs=1e-9)

    def test_wasserstein(self, pair):
        m, s, n, t = pair
        found = pc.wasserstein(normal(m, s), normal(n, t), 2)
        assert float(found) == pytest.approx(math.hypot(m - n, s - t), rel=1e-12)
        apart = st.foldnorm(abs(m - n) / max(abs(s - t), 1e-300), scale=abs(s - t)).mean()
        first = pc.wasserstein(normal(m, s), normal(n, t))
        truth = apart if s != t else abs(m - n)
        assert abs(float(first) - truth) <= max(float(first.error), 1e-7 * truth)


BOUNDED = {
    "Jensen–Shannon": (pc.jensen_shannon, math.log(2)),
    "total variation": (pc.total_variation, 1.0),
    "Hellinger": (pc.hellinger, 1.0),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_bounds_are_reached_where_nothing_is_shared(name: str):
    of, most = BOUNDED[name]
    p, q = td.Uniform(ZERO, ONE), td.Uniform(number(2.0), number(3.0))
    assert float(of(p, q)) == pytest.approx(most, rel=1e-12)
    assert float(of(td.Poisson(ONE), td.Normal(ZERO, ONE))) == pytest.approx(most, rel=1e-9)
    assert float(of(p, p)) == 0


@pytest.mark.parametrize("name", [*BOUNDED, "chi-squared"])
def test_finite_distributions(name: str):
    of = BOUNDED[name][0] if name in BOUNDED else pc.chi_squared
    a, b = number(0.2, 0.5, 0.3), number(0.3, 0.3, 0.4)
    mean = 0.5 * (a + b)
    truth = {
        "Jensen–Shannon": 0.5 * (a * (a / mean).log() + b * (b / mean).log()).sum(),
        "total variation": 0.5 * (a - b).abs().sum(),
        "Hellinger": 0.5 * (a.sqrt() - b.sqrt()).square().sum(),
        "chi-squared": ((a - b).square() / b).sum(),
    }[name]
    found = of(td.Categorical(a), td.Categorical(b))
    assert float(found) == pytest.approx(float(truth), rel=1e-12)


@pytest.mark.parametrize("name", BOUNDED)
def test_tails_of_either_are_not_lost(name: str):
    """Normal against Cauchy: one in sixty of the second lies where the first underflows."""
    of = BOUNDED[name][0]
    p, q = td.Normal(ZERO, ONE), td.Cauchy(ZERO, ONE)
    f, g = st.norm.pdf, st.cauchy.pdf
    h = {
        "Jensen–Shannon": lambda a, b: (
            0.5 * sum(w * math.log(2 * w / (a + b)) for w in (a, b) if w > 0)
        ),
        "total variation": lambda a, b: 0.5 * abs(a - b),
        "Hellinger": lambda a, b: 0.5 * (math.sqrt(a) - math.sqrt(b)) ** 2,
    }[name]
    inner = si.quad(
        lambda x: h(f(x), g(x)), 0, 40, points=[0.5, 1, 1.5, 2, 4, 8], limit=500, epsabs=1e-13
    )[0]
    rest = {"Jensen–Shannon": 0.5 * math.log(2), "total variation": 0.5, "Hellinger": 0.5}[name]
    truth = 2 * (inner + rest * st.cauchy.sf(40))
    found = of(p, q)
    assert abs(float(found) - truth) <= max(float(found.error), 1e-7 * truth)


def test_infinite_ones():
    assert float(pc.chi_squared(normal(0, 1), td.Exponential(ONE))) == INF
    assert float(pc.renyi(normal(0, 1), td.Exponential(ONE), 2.0)) == INF
    assert float(pc.renyi(td.Uniform(ZERO, ONE), td.Uniform(ONE, number(2.0)), 0.5)) > 700
    with pytest.warns(pc.EstimateWarning):
        assert not pc.chi_squared(normal(0, 1.5), normal(0, 1)).ok
    with pytest.raises(ValueError, match="positive number"):
        pc.renyi(normal(0, 1), normal(0, 1), -1.0)


def test_orders_meet():
    p, q = FAMILIES["Gamma"], FAMILIES["Weibull"]
    assert float(pc.renyi(p, q, 1.0)) == float(pc.kl(p, q))
    assert float(pc.alpha_divergence(p, q, 1.0)) == float(pc.kl(p, q))
    # at one half Rényi's is −2 ln(1 − H²), Amari's 4 H²
    squared = float(pc.hellinger(p, q))
    assert float(pc.renyi(p, q, 0.5)) == pytest.approx(-2 * math.log1p(-squared), rel=1e-7)
    assert float(pc.alpha_divergence(p, q, 0.5)) == pytest.approx(4 * squared, rel=1e-7)
    both = float(pc.kl(p, q)) + float(pc.kl(q, p))
    assert float(pc.jeffreys(p, q)) == pytest.approx(both, rel=1e-12)


@pytest.mark.parametrize(
    "of", [pc.jensen_shannon, pc.hellinger, pc.total_variation, pc.chi_squared]
)
def test_batches_and_gradients(of):
    shift = number(0.3, 0.8).requires_grad_()
    p, q = td.Normal(shift, ONE), td.Normal(ZERO, number(1.5))
    found = of(p, q)
    assert found.value.shape == (2,)
    (slope,) = torch.autograd.grad(found.value.sum(), shift)
    step = 1e-5
    up, down = (of(td.Normal(shift.detach() + d, ONE), q).value for d in (step, -step))
    torch.testing.assert_close(slope, (up - down) / (2 * step), rtol=1e-4, atol=1e-7)


def test_wasserstein_of_vectors_mixtures_and_others():
    p = td.MultivariateNormal(number(0.0, 1.0), matrix((2.0, 0.3), (0.3, 1.0)))
    q = td.MultivariateNormal(number(1.0, 0.0), matrix((1.0, -0.2), (-0.2, 0.5)))
    a, b = (d.covariance_matrix.numpy() for d in (p, q))
    values, vectors = np.linalg.eigh(b)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ a @ root)).sum()
    truth = math.sqrt(2 + np.trace(a) + np.trace(b) - 2 * shared)
    assert float(pc.wasserstein(p, q, 2)) == pytest.approx(truth, rel=1e-10)
    first, second = td.Exponential(ONE), td.Exponential(number(2.0))
    assert float(pc.wasserstein(first, second)) == pytest.approx(0.5, rel=1e-7)
    assert float(pc.wasserstein(first, second, 2)) == pytest.approx(math.sqrt(0.5), rel=1e-6)
    mixture = normals((0.5, 0.5), (-3.0, 3.0), (1.0, 1.0))
    moved = normals((0.5, 0.5), (-2.0, 4.0), (1.0, 1.0))
    assert float(pc.wasserstein(mixture, moved)) == pytest.approx(1.0, rel=1e-7)
    with pytest.raises(NotImplementedError, match="on the line"):
        pc.wasserstein(FAMILIES["Dirichlet"], FAMILIES["Dirichlet"])
    with pytest.raises(ValueError, match="must be 1 or 2"):
        pc.wasserstein(first, second, 3)


# pairs of which one has no mass where the other has some: p, q, and ½ ∫ |p − q| by SciPy
ENDS = {
    "normal, exponential": (td.Normal(ZERO, ONE), td.Exponential(ONE), 0.5),
    "Pareto": (td.Pareto(ONE, number(3.0)), td.Pareto(number(1.1), number(3.3)), 0.2501943124212),
    "normal, Weibull": (td.Normal(ZERO, ONE), td.Weibull(ONE, number(2.0)), 0.5460616771957),
    "exponential, Pareto": (td.Exponential(ONE), td.Pareto(ONE, number(3.0)), 0.6526677405324),
    "normal, uniform by another name": (
        td.Normal(ZERO, ONE),
        td.ContinuousBernoulli(number(0.5)),
        0.6586552539314570,
    ),
    "half-normal, normal": (td.HalfNormal(ONE), td.Normal(ZERO, ONE), 0.5),
    "more trials": (td.Binomial(3, number(0.5)), td.Binomial(1, number(0.5)), 0.5),
    "Bernoulli, Poisson": (
        td.Bernoulli(number(0.5)),
        td.Poisson(ONE),
        1 - 2 * math.exp(-1),
    ),
}


@pytest.mark.parametrize(("p", "q", "truth"), ENDS.values(), ids=ENDS.keys())
def test_mass_where_the_other_has_none(p: td.Distribution, q: td.Distribution, truth: float):
    for found in (pc.total_variation(p, q), pc.total_variation(q, p)):
        assert_within(found, truth, atol=1e-9)


def test_vectors_of_which_one_has_no_mass_below_zero(generator: torch.Generator):
    """Of two independent coordinates, a quarter of the normal's mass is shared at most."""
    p = td.Independent(td.Normal(torch.zeros(2).double(), 1.0), 1)
    q = td.Independent(td.HalfNormal(torch.ones(2).double()), 1)
    found = pc.total_variation(p, q, method=pc.MonteCarlo(2**14), generator=generator)
    assert_within(found, 0.75)
