"""KL divergences: right for every pair of families, and known how."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import assert_within
from problems.answers import TABLE, answers, row
from problems.expectations import number
from problems.pairs import FAMILIES, INF, KNOWN, logistic, matrix, normals
from torch import Tensor
from torch import distributions as td
from torch.fx.experimental.proxy_tensor import make_fx

from probcalc import GaussKronrod, MonteCarlo, expect, kl
from probcalc.distributions.draw import draw
from probcalc.distributions.rebuild import taken_apart
from probcalc.divergence.cross import cross_terms
from probcalc.divergence.kl import FORMULAS
from probcalc.divergence.ratio import log_ratio
from probcalc.integration.enumeration import Enumeration

ONE, ZERO = number(1.0), number(0.0)


@pytest.mark.parametrize(("p", "q", "truth"), KNOWN.values(), ids=KNOWN.keys())
def test_known_values(p: td.Distribution, q: td.Distribution, truth: float):
    found = kl(p, q)
    assert found.ok
    if truth == INF:
        assert float(found.value) == INF
        assert float(found.error) == 0
        assert found.diagnostics["reason"]
    else:
        assert float(found.value) == pytest.approx(truth, rel=1e-10)
        assert abs(float(found.value) - truth) <= max(float(found.error), 1e-10 * truth)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_pair_is_answered(name: str, generator: torch.Generator):
    """A value, an infinity with its reason, or a flag; text where draws differ in shape."""
    found = answers(name, generator)
    assert set(found) == set(FAMILIES)
    assert "flagged" not in found.values()
    assert list(found.values()).count("formula") >= 1
    assert row(name, found) in TABLE.read_text(), "run `python tests/problems/answers.py`"
    assert kl(FAMILIES[name], FAMILIES[name]).value == 0


def closed_pairs() -> list[tuple[str, str]]:
    """Pairs on the line or of counts that have a formula, in which p and q are not the same."""
    found = []
    for a, p in FAMILIES.items():
        for b, q in FAMILIES.items():
            if p.event_shape or q.event_shape:
                continue
            known = any((x, y) in FORMULAS for x in type(p).__mro__ for y in type(q).__mro__)
            if known or cross_terms(p, q) is not None:
                found.append((a, b))
    return found


def moved(dist: td.Distribution) -> td.Distribution:
    """The same family with parameters a tenth away."""
    tensors, build = taken_apart(dist)
    return build([t * 1.1 if t.is_floating_point() else t for t in tensors])


@pytest.mark.parametrize(("name", "other"), closed_pairs())
@pytest.mark.filterwarnings("ignore::probcalc.EstimateWarning")
def test_formulas_are_what_sums_and_integrals_give(name: str, other: str):
    p, q = FAMILIES[name], moved(FAMILIES[other]) if name == other else FAMILIES[other]
    if name == other == "Uniform":
        q = td.Uniform(number(0.0), number(1.3))
    if name == other == "Pareto":
        q = td.Pareto(number(0.9), number(3.3))
    if name == other == "Binomial":
        q = td.Binomial(5, number(0.45))
    if name == other == "NegativeBinomial":
        q = td.NegativeBinomial(number(4.0), number(0.45))
    exact = kl(p, q)
    if math.isinf(float(exact.value)):
        return
    method = Enumeration() if p.support.is_discrete else GaussKronrod()
    taken = kl(p, q, method=method)
    assert taken.method != exact.method
    bars = float(exact.error + taken.error)
    assert abs(float(exact.value - taken.value)) <= bars + 1e-11 * float(exact.value)


VECTORS = {
    "normal": (
        td.MultivariateNormal(
            number(0.3, -0.1), scale_tril=number(1.0, 0.0, 0.5, 0.8).reshape(2, 2)
        ),
        td.MultivariateNormal(
            number(0.0, 0.0), scale_tril=number(1.2, 0.0, -0.2, 1.0).reshape(2, 2)
        ),
    ),
    "low rank": (
        FAMILIES["LowRankMultivariateNormal"],
        FAMILIES["MultivariateNormal"],
    ),
    "Dirichlet": (td.Dirichlet(number(2.0, 3.0, 1.5)), td.Dirichlet(number(2.5, 2.0, 2.0))),
    "Wishart": (
        td.Wishart(number(6.0), scale_tril=matrix((1.0, 0.0), (0.3, 1.1))),
        td.Wishart(number(5.0), scale_tril=matrix((1.1, 0.0), (0.1, 0.9))),
    ),
    "multinomial": (
        td.Multinomial(4, number(0.2, 0.5, 0.3)),
        td.Multinomial(4, number(0.3, 0.4, 0.3)),
    ),
    "one hot": (
        td.OneHotCategorical(number(0.2, 0.5, 0.3)),
        td.OneHotCategorical(number(0.3, 0.4, 0.3)),
    ),
}


@pytest.mark.parametrize(("p", "q"), VECTORS.values(), ids=VECTORS.keys())
@pytest.mark.filterwarnings("ignore::probcalc.EstimateWarning", "ignore:Singular sample")
def test_formulas_of_vectors_are_what_draws_give(p, q, generator: torch.Generator):
    exact = kl(p, q)
    drawn = kl(p, q, method=MonteCarlo(2**16), confidence=1 - 1e-6, generator=generator)
    assert exact.method == "closed form"
    assert abs(float(exact.value - drawn.value)) <= float(drawn.error)


def test_torch_has_these_normals_and_wisharts_too():
    for p, q in (VECTORS["normal"], VECTORS["Wishart"], VECTORS["Dirichlet"]):
        assert float(kl(p, q).value) == pytest.approx(
            float(td.kl_divergence(p, q).detach()), rel=1e-10
        )


def folded(loc: float) -> td.Distribution:
    return td.TransformedDistribution(td.Normal(number(loc), ONE), [td.AbsTransform()])


def beside(name: str) -> td.Distribution:
    """A member of the family that is nowhere much larger."""
    if name == "Uniform":
        return td.Uniform(number(0.2), number(0.8), validate_args=False)
    return logistic(0.4, 1.6) if name == "TransformedDistribution" else moved(FAMILIES[name])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore::probcalc.EstimateWarning", "ignore:Singular sample")
def test_every_sampler_draws_from_its_density(name: str, generator: torch.Generator):
    """E_p[q/p] = 1."""
    p, q = FAMILIES[name], beside(name)
    found = expect(
        lambda x: (log_ratio(q, p, x)).exp(),
        p,
        method=MonteCarlo(2**14),
        confidence=1 - 1e-6,
        generator=generator,
    )
    assert_within(found, 1)
    assert float(found.error) < 0.1


class TestDefectsOfTorch:
    """Section by section what `torch.distributions.kl_divergence` gets wrong or refuses."""

    def test_a_support_that_ends_where_the_other_does(self):
        assert float(kl(td.ContinuousBernoulli(number(0.3)), td.Uniform(ZERO, ONE)).value) < 0.03

    @pytest.mark.filterwarnings("ignore::probcalc.EstimateWarning")
    def test_a_transform_that_folds(self):
        """|X| for X ~ N(1, 1) and for X ~ N(−1, 1) are one distribution."""
        assert float(kl(folded(1.0), folded(-1.0)).value) == pytest.approx(0, abs=1e-9)
        other, half = kl(folded(1.0), folded(0.0)), td.HalfNormal(ONE)
        assert other.ok
        assert float(other.value) == pytest.approx(float(kl(folded(1.0), half).value), rel=1e-7)
        # ∫ φ(x − 1) ln cosh x dx − ½
        x = torch.linspace(-12, 14, 20001, dtype=torch.float64)
        density = (-0.5 * (x - 1).square()).exp() / math.sqrt(2 * math.pi)
        truth = torch.trapezoid(density * x.cosh().log(), x) - 0.5
        assert float(other.value) == pytest.approx(float(truth), rel=1e-7)

    def test_correlations_are_drawn_from_their_law(self, generator: torch.Generator):
        """R₂₀ of three rows and concentration 2 has variance 1/(2η + d − 1)."""
        rows = draw(td.LKJCholesky(3, number(2.0)), (2**15,), generator)
        found = (rows @ rows.mT)[:, 2, 0]
        std = found.square().std() / 2**7.5
        assert abs(float(found.square().mean()) - 1 / 6) <= 5 * float(std)
        by_draws = kl(*KNOWN["LKJ"][:2], method=MonteCarlo(2**14), generator=generator)
        assert_within(by_draws, KNOWN["LKJ"][2])

    def test_no_rate_at_all(self):
        assert float(kl(td.Poisson(ZERO), td.Poisson(ONE)).value) == 1

    def test_gradient_at_a_category_that_is_impossible(self):
        logits = number(0.0, 0.0, -INF).requires_grad_()
        found = kl(td.Categorical(logits=logits), td.Categorical(number(0.2, 0.4, 0.4)))
        (slope,) = torch.autograd.grad(found.value, logits)
        p, ratio = number(0.5, 0.5), (number(0.5, 0.5) / number(0.2, 0.4)).log()
        assert float(found.value.detach()) == pytest.approx(float((p * ratio).sum()), rel=1e-12)
        assert slope.isfinite().all()
        torch.testing.assert_close(slope[:2], p * (ratio - (p * ratio).sum()))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_nothing_cancels(self, dtype: torch.dtype):
        """Against the second-order term: half the Fisher information times the squared step."""
        a = torch.full((100,), 10.0, dtype=dtype)
        b = a * torch.tensor(1.001, dtype=dtype)
        step = (b.double() - a.double())[0]
        fisher = torch.polygamma(1, number(10.0)) * 100 - torch.polygamma(1, number(1000.0)) * 1e4
        found = kl(td.Dirichlet(a), td.Dirichlet(b))
        assert float(found.value) == pytest.approx(float(0.5 * fisher * step**2), rel=2e-3)

    def test_fewer_trials(self):
        fewer, more = td.Binomial(5, number(0.3)), td.Binomial(8, number(0.3))
        direct = sum(
            math.exp(float(fewer.log_prob(number(float(k)))))
            * float(fewer.log_prob(number(float(k))) - more.log_prob(number(float(k))))
            for k in range(6)
        )
        assert float(kl(fewer, more).value) == pytest.approx(direct, rel=1e-12)
        assert float(kl(more, fewer).value) == INF

    @pytest.mark.parametrize(
        ("p", "q"),
        [
            (td.Normal(ZERO, ONE), td.Beta(ONE, ONE)),
            (td.Cauchy(ZERO, ONE), td.Gamma(ONE, ONE)),
            (td.Poisson(ONE), td.Normal(ZERO, ONE)),
            (td.Normal(ZERO, ONE), td.Poisson(ONE)),
            (td.Gamma(ONE, ONE), td.Pareto(ONE, ONE)),
        ],
    )
    def test_supports_that_differ_are_infinitely_far(self, p, q):
        found = kl(p, q)
        assert float(found.value) == INF
        assert "no mass" in found.diagnostics["reason"]


NEAR = {
    "normal": (td.Normal, (1.5, 2.0)),
    "gamma": (td.Gamma, (5.0, 1.5)),
    "beta": (td.Beta, (50.0, 50.0)),
    "Laplace": (lambda b: td.Laplace(0 * b, b), (1.5,)),
    "Cauchy": (td.Cauchy, (1.5, 2.0)),
    "Gumbel": (td.Gumbel, (1.5, 2.0)),
    "Weibull": (td.Weibull, (1.5, 2.0)),
    "Pareto": (lambda s, a: td.Pareto(s.detach() * 0 + 1, s + a), (1.5, 2.0)),
    "exponential": (td.Exponential, (1.5,)),
    "Poisson": (td.Poisson, (3.0,)),
    "Bernoulli": (td.Bernoulli, (0.3,)),
    "geometric": (td.Geometric, (0.3,)),
    "continuous Bernoulli": (td.ContinuousBernoulli, (0.3,)),
    "von Mises": (td.VonMises, (1.5, 2.0)),
    "half-normal": (td.HalfNormal, (1.5,)),
    "half-Cauchy": (td.HalfCauchy, (1.5,)),
}


@pytest.mark.parametrize("name", NEAR)
@pytest.mark.parametrize("step", [1e-2, 1e-4, 1.2e-6])
def test_near_pairs_in_single_precision(name: str, step: float):
    """Against the same formula's second derivative: ½ h² ∂² KL, from float64 and a large step."""
    make, values = NEAR[name]
    one = [torch.tensor(v) for v in values]
    other = [v * (1 + step) for v in one]
    found = float(kl(make(*one), make(*other)).value)
    base = [v.double().requires_grad_() for v in one]
    h = [b.double() - a.double() for a, b in zip(one, other, strict=True)]

    def along(t: Tensor) -> Tensor:
        return kl(
            make(*[b.detach() for b in base]),
            make(*[b.detach() + t * s for b, s in zip(base, h, strict=True)]),
        ).value

    t = number(0.0).requires_grad_()
    (first,) = torch.autograd.grad(along(t), t, create_graph=True)
    (second,) = torch.autograd.grad(first, t)
    assert float(first.detach()) == 0
    assert found == pytest.approx(0.5 * float(second), rel=max(3 * step, 1e-3))
    assert found >= 0


@pytest.mark.parametrize("name", FAMILIES)
def test_a_distribution_is_at_no_distance_from_itself(name: str):
    tensors, build = taken_apart(FAMILIES[name])
    given = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in tensors]
    found = kl(build(given), build([t.detach() for t in given]))
    assert float(found) == 0
    assert float(found.error) == 0
    if found.value.requires_grad:
        moving = [g for g in given if g.requires_grad]
        slopes = torch.autograd.grad(found.value, moving, allow_unused=True)
        # where a parameter moves the support there is a slope on one side only
        one_sided = name in ("Pareto", "Uniform", "TransformedDistribution")
        assert one_sided or all(s is None or (s == 0).all() for s in slopes)


MOVING = {
    "normal": lambda a: (td.Normal(a[0], a[1].exp()), td.Normal(a[2], a[3].exp())),
    "gamma": lambda a: (td.Gamma(*a[:2].exp()), td.Gamma(*a[2:].exp())),
    "gamma, Weibull": lambda a: (td.Gamma(*a[:2].exp()), td.Weibull(*a[2:].exp())),
    "beta": lambda a: (td.Beta(*a[:2].exp()), td.Beta(*a[2:].exp())),
    "Student, normal": lambda a: (
        td.StudentT(3 + a[0].exp(), a[1]),
        td.Normal(a[2], a[3].exp()),
    ),
    "normal, Student": lambda a: (
        td.Normal(a[1], ONE),
        td.StudentT(3 + a[0].exp(), a[2], a[3].exp()),
    ),
    "Wishart": lambda a: (
        td.Wishart(3 + a[0].exp(), scale_tril=torch.diag(a[1:3].exp())),
        td.Wishart(3 + a[3].exp(), scale_tril=torch.eye(2).double()),
    ),
    "Poisson, negative binomial": lambda a: (
        td.Poisson(a[0].exp()),
        td.NegativeBinomial(a[1].exp(), logits=a[2]),
    ),
    "von Mises": lambda a: (td.VonMises(a[0], a[1].exp()), td.VonMises(a[2], a[3].exp())),
}


@pytest.mark.parametrize("name", MOVING)
def test_gradients_in_both_arguments(name: str):
    at = number(0.3, -0.2, 0.1, 0.4)
    torch.autograd.gradcheck(
        lambda a: kl(*MOVING[name](a)).value, at.requires_grad_(), atol=1e-5, rtol=1e-4
    )


@given(
    shift=st.floats(-2, 2),
    scale=st.floats(0.3, 3),
    place=st.floats(-1, 1),
    width=st.floats(0.4, 2.5),
)
def test_bijections_change_nothing(shift: float, scale: float, place: float, width: float):
    p, q = td.Normal(ZERO, ONE), td.StudentT(number(5.0), number(place), number(width))
    transforms = [td.AffineTransform(number(shift), number(scale)), td.ExpTransform()]
    images = (td.TransformedDistribution(d, transforms) for d in (p, q))
    assert float(kl(*images).value) == pytest.approx(float(kl(p, q).value), rel=1e-9, abs=1e-14)


@given(st.lists(st.floats(0.2, 5), min_size=4, max_size=4))
def test_independent_divergences_add_up(values: list[float]):
    a, b = number(*values[:2]), number(*values[2:])
    p, q = td.Gamma(a, b), td.LogNormal(b, a)
    joint = kl(td.Independent(p, 1), td.Independent(q, 1))
    assert float(joint.value) == pytest.approx(float(kl(p, q).value.sum()), rel=1e-12)


@given(st.lists(st.floats(-2, 2), min_size=6, max_size=6))
def test_chain_rule_of_a_normal_vector(values: list[float]):
    """KL of the joint is that of the margin, and of what is left given it."""
    a, b, c, d, e, f = values
    p = td.MultivariateNormal(
        number(a, b), scale_tril=torch.tensor([[1.0, 0.0], [c, 0.7]], dtype=torch.float64)
    )
    q = td.MultivariateNormal(
        number(d, e), scale_tril=torch.tensor([[1.3, 0.0], [f, 0.9]], dtype=torch.float64)
    )
    first = kl(td.Normal(number(a), ONE), td.Normal(number(d), number(1.3))).value
    # given x, the second coordinate has mean b + c (x − a) under p and e + f (x − d)/1.3 under q
    slope = c - f / 1.3
    gap = (b - e - f / 1.3 * (a - d)) ** 2 + slope**2
    rest = kl(td.Normal(ZERO, number(0.7)), td.Normal(number(gap**0.5), number(0.9))).value
    assert float(kl(p, q).value) == pytest.approx(float(first + rest), rel=1e-9, abs=1e-12)


def test_a_batch_is_its_elements():
    """Known and unknown, finite and infinite ones side by side, broadcast."""
    df = number(0.8, 2.0, 2.5, 6.0)
    scale = number(0.7, 1.0, 2.0).reshape(3, 1)
    p, q = td.StudentT(df, ZERO, scale), td.Laplace(number(0.3), ONE)
    found = kl(p, q)
    assert found.value.shape == (3, 4)
    assert (found.value[:, 0] == INF).all()
    for i in range(3):
        for j in range(4):
            one = kl(td.StudentT(df[j], ZERO, scale[i, 0]), q)
            assert float(found.value[i, j]) == pytest.approx(float(one.value), rel=1e-8)


def test_a_batch_with_equal_pairs_and_supports_that_end():
    p = td.Uniform(number(0.0, 0.0, 0.5), number(1.0, 2.0, 1.0))
    assert kl(p, td.Uniform(ZERO, ONE)).value.tolist() == pytest.approx([0.0, INF, math.log(2)])
    one = torch.ones(2).double()
    mixed = kl(td.Kumaraswamy(number(2.0, 3.0), one), td.Kumaraswamy(number(2.0, 2.0), one))
    assert mixed.value[0] == 0
    assert float(mixed.value[1]) == pytest.approx(math.log(1.5) - 1 / 3, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_that_of_the_parameters(dtype: torch.dtype):
    one = torch.ones((), dtype=dtype)
    for q in (td.Normal(one, one), td.Cauchy(one, one)):
        found = kl(td.Laplace(one, one), q)
        assert found.value.dtype == found.error.dtype == dtype
        exact = kl(td.Laplace(ONE, ONE), type(q)(ONE, ONE))
        assert_within(found, float(exact.value))


def normal_kl(m: Tensor, s: Tensor) -> Tensor:
    return kl(
        td.Normal(m, s, False), td.Normal(torch.zeros_like(m), torch.ones_like(s), False)
    ).value


def gamma_kl(a: Tensor, b: Tensor) -> Tensor:
    return kl(td.Gamma(a, b, False), td.Gamma(torch.ones_like(a), torch.ones_like(b), False)).value


@pytest.mark.parametrize("fn", [normal_kl, gamma_kl])
def test_formulas_run_under_transforms(fn):
    a, b = number(0.5, 1.2, 3.0), number(1.1, 0.7, 2.0)
    plain = fn(a, b)
    torch.testing.assert_close(torch.vmap(fn)(a, b), plain)
    torch.testing.assert_close(make_fx(fn)(a, b)(b, a), fn(b, a))
    slopes = torch.vmap(torch.func.grad(fn))(a, b)
    with torch.enable_grad():
        c = a.clone().requires_grad_()
        (expected,) = torch.autograd.grad(fn(c, b).sum(), c)
    torch.testing.assert_close(slopes, expected)


COMPILED = """
import torch
from torch import distributions as td
from probcalc import kl

def fn(a, b):
    first, second = td.Normal(a, b, False), td.Gamma(a, b, False)
    return kl(first, td.Normal(b, a, False)).value + kl(second, td.Gamma(b, a, False)).value

a = torch.tensor([0.5, 1.2, 3.0]).double()
b = torch.tensor([1.1, 0.7, 2.0]).double()
expected = fn(a, b)
torch.testing.assert_close(torch.compile(fn, backend="aot_eager")(a, b), expected)
"""


def test_formulas_compile():
    """In a process of its own: the compiler traces no run-time type checks, and sets flags."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


BAD = {
    "no distribution": (lambda: (td.Normal(ZERO, ONE), 3.0), TypeError, "Distribution"),
    "shapes of draws": (
        lambda: (td.Normal(ZERO, ONE), FAMILIES["Dirichlet"]),
        ValueError,
        r"\(\) for `p` and \(3,\)",
    ),
    "batches": (
        lambda: (td.Normal(torch.zeros(2), 1.0), td.Normal(torch.zeros(3), 1.0)),
        ValueError,
        r"\(2,\) for `p` and \(3,\)",
    ),
    "a negative scale": (
        lambda: (td.Normal(ZERO, -ONE, validate_args=False), td.Normal(ZERO, ONE)),
        ValueError,
        "`scale`",
    ),
    "a rate that is not a number": (
        lambda: (td.Normal(ZERO, ONE), td.Normal(number(math.nan), ONE, validate_args=False)),
        ValueError,
        "`loc`",
    ),
    "shares beyond one": (
        lambda: (
            td.Bernoulli(number(0.2)),
            td.Bernoulli(number(1.2), validate_args=False),
        ),
        ValueError,
        "`probs`",
    ),
}


@pytest.mark.parametrize(("make", "error", "text"), BAD.values(), ids=BAD.keys())
def test_bad_input(make, error, text: str):
    with pytest.raises(error, match=text):
        kl(*make())


def test_mixtures_near_and_far():
    away = kl(
        normals((0.5, 0.5), (0.0, 4.0), (1.0, 1.0)), normals((0.5, 0.5), (0.0, 40.0), (1.0, 1.0))
    )
    # the second half at a distance of 4 from where q has any
    assert away.ok
    assert float(away.value) == pytest.approx(0.5 * 8, abs=0.1)
    assert kl(logistic(0.0, 1.0), logistic(0.3, 2.0)).ok
