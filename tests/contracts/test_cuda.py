"""Results on a CUDA device are those on the CPU, within the error bars of both."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch import distributions as td

import probcalc as pc
from probcalc import (
    Estimate,
    GaussQuadrature,
    ImportanceSampling,
    MonteCarlo,
    QuasiMonteCarlo,
    ScoreControl,
    Stratified,
    Vegas,
    expect,
    integrate,
)
from probcalc.distributions.cdf import cdf
from probcalc.distributions.draw import draw
from probcalc.distributions.quantile import quantile
from probcalc.distributions.truncated import Truncated

pytestmark = pytest.mark.gpu

DEVICES = ("cpu", "cuda")
INF = math.inf


def number(device: str, *values: float) -> Tensor:
    return torch.tensor(values if len(values) != 1 else values[0], device=device).double()


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


METHODS = {
    "defaults": None,
    "Gauss": GaussQuadrature(20),
    "plain": MonteCarlo(),
    "antithetic": MonteCarlo(antithetic=True),
    "a long stream": MonteCarlo(2**21),
    "a control of the score": MonteCarlo(control=ScoreControl()),
    "scrambled Sobol": QuasiMonteCarlo(),
    "lattice": QuasiMonteCarlo(points="lattice"),
    "stratified": Stratified(),
    "Vegas": Vegas(),
}


@pytest.mark.parametrize("name", METHODS)
def test_expectations(name: str):
    """Two bars apart at most, values and gradients."""
    found = []
    for device in DEVICES:
        mean = number(device, 0.3).requires_grad_()
        result = expect(
            lambda x: (x + 1).sin(),
            td.Normal(mean, torch.ones_like(mean)),
            method=METHODS[name],
            generator=seeded(),
            confidence=0.999999,
        )
        (slope,) = torch.autograd.grad(result.value, mean)
        assert result.value.device.type == result.error.device.type == device
        found.append((float(result.value.detach()), float(result.error), float(slope)))
    (value, bar, slope), (other, other_bar, other_slope) = found
    assert abs(value - other) <= bar + other_bar
    assert abs(slope - other_slope) <= 10 * (bar + other_bar) + 1e-9


@pytest.mark.parametrize("batch", [(), (5,)], ids=["one", "five"])
@pytest.mark.parametrize("dim", [0, 1, 2, 3, 5, 8])
@pytest.mark.parametrize("slopes", [False, True], ids=["values", "gradients"])
def test_integrals(dim: int, batch: tuple[int, ...], slopes: bool):
    found = []
    for device in DEVICES:
        lower = torch.zeros((*batch, *([dim] if dim else [])), device=device).double()
        rate = torch.linspace(0.5, 2, 5, device=device).double()[: math.prod(batch)]
        rate = rate.reshape(batch).requires_grad_(slopes)
        result = integrate(
            (lambda x, a: (-a * x.sum(-1)).exp()) if dim else (lambda x, a: (-a * x).exp()),
            lower,
            lower + 1,
            args=(rate,),
            event_dim=min(dim, 1),
            rtol=1e-7 if dim < 8 else 1e-3,
        )
        assert result.value.device.type == device
        slope = torch.autograd.grad(result.value.sum(), rate)[0] if slopes else rate
        found.append((result.value.detach().cpu(), result.error.cpu(), slope.detach().cpu()))
    (value, bar, slope), (other, other_bar, other_slope) = found
    assert ((value - other).abs() <= bar + other_bar).all()
    torch.testing.assert_close(slope, other_slope, rtol=1e-6 if dim < 8 else 1e-2, atol=1e-9)


normal = lambda device: td.Normal(number(device, 0.3), number(device, 1.2))  # noqa: E731
vector = lambda device: td.MultivariateNormal(  # noqa: E731
    number(device, 0.3, -0.2), number(device, 1.0, 0.4, 0.4, 2.0).reshape(2, 2)
)
mixture = lambda device: td.MixtureSameFamily(  # noqa: E731
    td.Categorical(number(device, 0.3, 0.7)),
    td.Normal(number(device, -1.0, 2.0), number(device, 0.5, 1.0)),
)
CALLS: dict[str, Callable[[str], Estimate | Tensor]] = {
    "an infinite interval": lambda d: integrate(
        lambda x, a: (-a * x * x).exp(), -INF, INF, args=(number(d, 2.0),)
    ),
    "a singular end": lambda d: integrate(
        lambda x: x.rsqrt(), torch.zeros((), device=d).double(), torch.ones((), device=d).double()
    ),
    "breaks": lambda d: integrate(
        lambda x: (x - 0.3).abs(), number(d, 0.0, 0.1), number(d, 1.0, 2.0), breaks=number(d, 0.3)
    ),
    "complex values": lambda d: integrate(
        lambda x: torch.exp(1j * x), number(d, 0.0), number(d, 3.0)
    ),
    "an infinite box": lambda d: integrate(
        lambda x: (-x.square().sum(-1)).exp(),
        number(d, -INF, 0.0),
        number(d, INF, INF),
        event_dim=1,
    ),
    "a rough box": lambda d: integrate(
        lambda x: (x.sum(-1) - 0.9).abs(),
        number(d, 0.0, 0.0),
        number(d, 1.0, 1.0),
        event_dim=1,
        rtol=1e-4,
    ),
    "gamma": lambda d: expect(
        lambda x: x.log(), td.Gamma(number(d, 0.3, 3.0), number(d, 1.0, 2.0))
    ),
    "Student": lambda d: expect(
        lambda x: x.cos(), td.StudentT(number(d, 3.0), number(d, 0.2), number(d, 1.0))
    ),
    "Poisson": lambda d: expect(lambda x: (x + 1).log(), td.Poisson(number(d, 3.5))),
    "categorical": lambda d: expect(
        lambda x: x.double().square(), td.Categorical(number(d, 0.2, 0.5, 0.3))
    ),
    "correlated": lambda d: expect(lambda x: x.prod(-1).cos(), vector(d)),
    "independent": lambda d: expect(
        lambda x: x.sum(-1).sigmoid(), td.Independent(td.Normal(number(d, 0.0, 1.0), 1.0), 1)
    ),
    "a mixture": lambda d: expect(lambda x: x.exp(), mixture(d)),
    "float32": lambda d: expect(
        lambda x: x.exp(), td.Normal(torch.zeros((), device=d), torch.ones((), device=d))
    ),
    "von Mises": lambda d: expect(lambda x: x.cos(), td.VonMises(number(d, 0.4), number(d, 2.0))),
    "logistic": lambda d: expect(
        lambda x: x.sigmoid(),
        td.TransformedDistribution(
            td.Uniform(number(d, 0.0), number(d, 1.0)),
            [td.SigmoidTransform().inv, td.AffineTransform(number(d, 0.5), number(d, 2.0))],
        ),
    ),
    "truncated": lambda d: expect(lambda x: x.exp(), Truncated(normal(d), 0.5, 2.0)),
    "Bernoulli": lambda d: expect(lambda x: (x - 0.3).abs(), td.Bernoulli(number(d, 0.2, 0.9))),
    "a uniform box": lambda d: expect(
        lambda x: x.prod(-1), td.Independent(td.Uniform(number(d, 0.0, 1.0), 2.0), 1)
    ),
    "KL by quadrature": lambda d: pc.kl(normal(d), td.StudentT(number(d, 3.0), number(d, 0.1))),
    "KL of gammas": lambda d: pc.kl(
        td.Gamma(number(d, 2.0, 3.0), number(d, 1.0)),
        td.Gamma(number(d, 2.1, 9.0), number(d, 1.5)),
    ),
    "KL of moments": lambda d: pc.kl(
        td.Gamma(number(d, 2.0), number(d, 1.0)), td.Weibull(number(d, 1.0), number(d, 1.4))
    ),
    "KL, infinite and not": lambda d: pc.kl(
        td.StudentT(number(d, 1.0, 3.0)), td.Laplace(number(d, 0.0), number(d, 1.0))
    ),
    "KL of counts": lambda d: pc.kl(
        td.Poisson(number(d, 3.0)), td.NegativeBinomial(number(d, 4.0), number(d, 0.5))
    ),
    "KL of vectors": lambda d: pc.kl(vector(d), vector(d)),
    "KL of Dirichlets": lambda d: pc.kl(
        td.Dirichlet(number(d, 1.0, 2.0)), td.Dirichlet(number(d, 1.5, 1.0))
    ),
    "total variation": lambda d: pc.total_variation(normal(d), mixture(d)),
    "Jensen–Shannon": lambda d: pc.jensen_shannon(normal(d), mixture(d)),
    "Rényi": lambda d: pc.renyi(normal(d), mixture(d), 0.5),
    "Wasserstein": lambda d: pc.wasserstein(normal(d), mixture(d)),
    "many dimensions": lambda d: integrate(
        lambda x: (1 + x.sum(-1)).reciprocal(),
        torch.zeros(10, device=d).double(),
        torch.ones(10, device=d).double(),
        event_dim=1,
        rtol=1e-4,
        generator=seeded(),
    ),
    "a moment": lambda d: expect(pc.Moment(4), normal(d)),
    "log of a mean": lambda d: pc.log_expect(lambda x: -1000 - x.square(), normal(d)),
    "a probability": lambda d: pc.probability(normal(d), 1.0, INF),
    "a ratio": lambda d: pc.ratio(
        lambda x: x * (-x.square()).exp(),
        lambda x: (-x.square()).exp(),
        normal(d),
        generator=seeded(),
    ),
    "importance sampling": lambda d: expect(
        lambda x: (x > 3).double(),
        normal(d),
        method=ImportanceSampling(td.Normal(number(d, 3.5), number(d, 1.0))),
        generator=seeded(),
    ),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore::probcalc.EstimateWarning")
def test_calls(name: str):
    one, other = (CALLS[name](device) for device in DEVICES)
    assert (one.value.device.type, other.value.device.type) == DEVICES
    bars = one.error + other.error.cpu()
    same = one.value == other.value.cpu()  # infinities too
    near = (one.value - other.value.cpu()).abs() <= bars + 1e-12 * one.value.abs()
    assert (same | near).all()
    assert (torch.as_tensor(one.ok) == torch.as_tensor(other.ok).cpu()).all()


def families(device: str) -> dict[str, td.Distribution]:
    a, b = number(device, 0.7, 2.0), number(device, 1.5, 3.0)
    return {
        "normal": td.Normal(a, b),
        "gamma": td.Gamma(a, b),
        "beta": td.Beta(a, b),
        "Student": td.StudentT(b, a, b),
        "inverse gamma": td.InverseGamma(a, b),
        "Weibull": td.Weibull(a, b),
        "F": td.FisherSnedecor(a, b),
        "Poisson": td.Poisson(b),
        "binomial": td.Binomial(12, a / 3),
        "negative binomial": td.NegativeBinomial(b, a / 3),
        "mixture": td.MixtureSameFamily(td.Categorical(a), td.Normal(a, b)),
    }


@pytest.mark.parametrize("name", families("cpu"))
@pytest.mark.parametrize("upper", [False, True])
def test_tails_and_quantiles(name: str, upper: bool):
    found = []
    for device in DEVICES:
        dist = families(device)[name]
        level = number(device, 1e-30, 0.2)
        x = quantile(dist, level, upper=upper)
        tail = cdf(dist, number(device, 0.4, 1.0), upper=upper)
        assert x.device.type == tail.device.type == device
        found.append((x.cpu(), tail.cpu()))
    (x, tail), (other_x, other_tail) = found
    torch.testing.assert_close(x, other_x, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(tail, other_tail, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("name", families("cpu"))
def test_draws_live_on_their_device(name: str):
    dist = families("cuda")[name]
    before = torch.cuda.get_rng_state()
    draws = [draw(dist, (10,), torch.Generator("cuda").manual_seed(3)) for _ in range(2)]
    assert draws[0].device.type == "cuda"
    assert torch.equal(*draws)
    assert torch.equal(before, torch.cuda.get_rng_state())


@pytest.mark.parametrize(
    "gradient", [None, pc.Pathwise(), pc.ScoreFunction(), pc.MeasureValued()], ids=str
)
def test_gradients_of_expectations(gradient: object):
    found = []
    for device in DEVICES:
        params = {"mean": number(device, 0.3), "log_sd": number(device, -0.1)}
        slopes = pc.expect_grad(
            lambda x: (x + 1).sin(),
            lambda p: td.Normal(p["mean"], p["log_sd"].exp()),
            params,
            gradient=gradient,
            generator=seeded(),
            confidence=0.999999,
        )
        assert slopes["mean"].value.device.type == device
        found.append(slopes)
    for key in ("mean", "log_sd"):
        one, other = (float(slopes[key].value) for slopes in found)
        assert abs(one - other) <= sum(float(slopes[key].error) for slopes in found)


def test_estimators_of_gradients_compared():
    rows = pc.compare_gradient_estimators(
        lambda x: (x + 1).sin(),
        lambda p: td.Normal(p["mean"], p["log_sd"].exp()),
        {"mean": number("cuda", 0.3), "log_sd": number("cuda", -0.1)},
        generator=seeded(),
    )
    assert not rows[0].refused
    assert {type(row.estimator) for row in rows} >= {pc.Pathwise, pc.ScoreFunction}


def test_a_stream_is_repeatable_and_its_bar_holds():
    mean = number("cuda", 0.0)
    runs = [
        expect(
            lambda x: x * x,
            td.Normal(mean, mean + 1),
            method=MonteCarlo(2**24),
            generator=seeded(),
            confidence=0.999999,
        )
        for _ in range(2)
    ]
    assert torch.equal(runs[0].value, runs[1].value)
    assert abs(float(runs[0].value) - 1) <= float(runs[0].error)


def test_fit():
    import pyro
    import pyro.distributions as dist

    def model(y: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(torch.zeros((), device=y.device), 1.0))
        pyro.sample("y", dist.Normal(m, 0.5), obs=y)

    y = torch.tensor(10.0, dtype=torch.float64, device="cuda")
    p = pc.fit(pc.Target.from_pyro(model, y), generator=seeded(0))
    assert p.z.device.type == "cuda"
    assert float(p.mean["m"]) == pytest.approx(8.0, abs=1e-6)
