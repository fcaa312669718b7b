"""Targets on which a fit goes wrong in silence, with their exact moments and evidence.

Truth is a closed form or a quadrature to 1e-10, whose formula stands in the docstring. A case
without moments has none (or no finite ones): its fit must be flagged.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from problems.eight_schools import schools_centred, schools_data
from scipy.integrate import quad
from scipy.special import log_ndtr
from scipy.stats import norm
from torch import Tensor
from torch.distributions import Beta, Gamma, LogNormal, constraints

from probcalc import Target
from probcalc.inference.guides import MeanField

LogDensity = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Hard:
    """A target with what is known exactly of its posterior.

    Args:
        target: Makes it.
        mean: Of some sites.
        std: Of some sites.
        log_evidence: None where it is unknown or infinite.
        must_flag: The posterior or its moments do not exist, so no number can be right.
        options: Of `fit`.
    """

    target: Callable[[], Target]
    mean: dict[str, Tensor] = field(default_factory=dict)
    std: dict[str, Tensor] = field(default_factory=dict)
    log_evidence: float | None = None
    must_flag: bool = False
    options: dict = field(default_factory=dict)


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def flat(log_prob: Callable[[Tensor], Tensor], dim: int = 1, **options) -> Callable[[], Target]:
    return lambda: Target.from_log_density(log_prob, dim, **options)


def by_quadrature(log_density: LogDensity, pieces: list[float]) -> tuple[float, float, float]:
    """Mean, sd and log evidence of a density of one variable, piece by piece."""
    grid = np.concatenate([np.linspace(a, b, 2001) for a, b in itertools.pairwise(pieces)])
    top = np.nanmax([float(log_density(x)) for x in grid])

    def integral(power: int, about: float = 0.0) -> float:
        f = lambda x: (x - about) ** power * math.exp(float(log_density(x)) - top)  # noqa: E731
        parts = [
            quad(f, a, b, epsabs=1e-13, epsrel=1e-11, limit=500)
            for a, b in itertools.pairwise(pieces)
        ]
        return math.fsum(p[0] for p in parts)

    total = integral(0)
    mean = integral(1) / total
    return mean, math.sqrt(integral(2, mean) / total), math.log(total) + top


def one_dimensional(log_prob, log_density: LogDensity, pieces: list[float]) -> Hard:
    """A target of one unconstrained variable, its truth by quadrature."""
    mean, std, log_z = by_quadrature(log_density, pieces)
    return Hard(flat(log_prob), {"x": row(mean)}, {"x": row(std)}, log_z)


# --- conjugate and nearly so -------------------------------------------------------------------


def no_success() -> Hard:
    """Beta(1, 1) prior, none of 1,000: the posterior is Beta(1, 1001)."""
    target = lambda: Target.from_function(
        lambda v: 1000.0 * torch.log1p(-v["p"]), {"p": ()}, {"p": constraints.unit_interval}
    )
    exact = torch.distributions.Beta(row(1.0)[0], row(1001.0)[0])
    return Hard(target, {"p": exact.mean}, {"p": exact.stddev}, -math.log(1001.0))


def normal_mean() -> Hard:
    """N(0, 1) prior, 20 observations of unit variance with mean 1.7."""
    y = 1.7 + torch.linspace(-1.0, 1.0, 20, dtype=torch.float64)
    target = lambda: Target.from_function(
        lambda v: dist.Normal(0.0, 1.0).log_prob(v["m"]),
        {"m": ()},
        log_likelihood=lambda v, r: dist.Normal(v["m"], 1.0).log_prob(r),
        data=y,
    )
    cov = np.eye(20) + 1.0
    log_z = -0.5 * (20 * math.log(2 * math.pi) + math.log(21.0) + y @ np.linalg.solve(cov, y))
    return Hard(target, {"m": row(34 / 21)[0]}, {"m": row(21**-0.5)[0]}, float(log_z))


def poisson_rate() -> Hard:
    """Gamma(2, 1) prior, counts 3, 0, 2, 5: the posterior is Gamma(12, 5)."""

    def model() -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", 4):
            pyro.sample("y", dist.Poisson(rate), obs=row(3.0, 0.0, 2.0, 5.0))

    mean, std = row(2.4)[0], row(12**0.5 / 5)[0]
    return Hard(lambda: Target.from_pyro(model), {"rate": mean}, {"rate": std}, -9.0833454959)


def laplace_prior() -> Hard:
    """Laplace(0, 1) prior, 0.5 observed with unit noise: a density with a kink."""
    return one_dimensional(
        lambda z: (dist.Laplace(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(row(0.5)))[0],
        lambda x: -abs(x) - math.log(2) + norm.logpdf(0.5, x, 1.0),
        [-12.0, 0.0, 12.0],
    )


def separated_with_prior() -> Hard:
    """N(0, 2.5²) slope, x = 1..5, every y = 1."""
    x = torch.arange(1.0, 6.0, dtype=torch.float64)
    return one_dimensional(
        lambda b: (
            dist.Normal(0.0, 2.5).log_prob(b)[0] + torch.nn.functional.logsigmoid(b * x).sum()
        ),
        lambda b: norm.logpdf(b, 0, 2.5) - np.logaddexp(0, -b * np.arange(1, 6)).sum(),
        [-30.0, 0.0, 30.0],
    )


def cauchy_data() -> Hard:
    """N(0, 10²) prior, Cauchy observations at -10 and 10: two modes."""
    y = np.array([-10.0, 10.0])
    return one_dimensional(
        lambda z: (
            dist.Normal(0.0, 10.0).log_prob(z)[0]
            + dist.Cauchy(z, 1.0).log_prob(row(-10.0, 10.0)).sum()
        ),
        lambda m: norm.logpdf(m, 0, 10) - np.log(math.pi * (1 + (y - m) ** 2)).sum(),
        [-100.0, -10.0, 0.0, 10.0, 100.0],
    )


def cauchy_location() -> Hard:
    """Wide prior, seven Cauchy observations in three clusters."""
    y = np.array([-12.0, -11.5, -11.0, 0.0, 0.3, 9.0, 9.5])
    return one_dimensional(
        lambda z: (
            dist.Normal(0.0, 20.0).log_prob(z)[0]
            + dist.Cauchy(z, 0.5).log_prob(torch.as_tensor(y)).sum()
        ),
        lambda m: norm.logpdf(m, 0, 20) - np.log(0.5 * math.pi * (1 + 4 * (y - m) ** 2)).sum(),
        [-150.0, -11.5, -5.0, 0.0, 5.0, 9.2, 150.0],
    )


def gaussian(correlation: float, **options) -> Hard:
    cov = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)
    target = torch.distributions.MultivariateNormal(row(0.0, 0.0), cov)
    return Hard(
        lambda: Target.from_distribution(target),
        {"x": row(0.0, 0.0)},
        {"x": row(1.0, 1.0)},
        0.0,
        options=options,
    )


def schools() -> dict[str, Tensor | float]:
    """Moments of eight schools: given τ all is Gaussian, one quadrature over τ is left."""
    sigma, y = (t.double().numpy() for t in schools_data())

    def given(tau: float) -> tuple[float, float, float]:
        v = sigma**2 + tau**2
        precision = 1 / 25.0 + (1 / v).sum()
        m = (y / v).sum() / precision
        log_p = (
            -0.5 * np.log(2 * math.pi * v).sum()
            - 0.5 * math.log(25.0 * precision)
            - 0.5 * ((y**2 / v).sum() - m**2 * precision)
            + math.log(2 / (5 * math.pi))
            - math.log1p(tau**2 / 25.0)
        )
        return log_p, m, 1 / precision

    def integral(of) -> float:
        f = lambda tau: of(tau) * math.exp(given(tau)[0] + 30.0)  # noqa: E731
        return sum(
            quad(f, a, b, epsrel=1e-11, limit=300)[0]
            for a, b in ((0.0, 5.0), (5.0, 50.0), (50.0, 1000.0), (1000.0, math.inf))
        )

    total = integral(lambda _: 1.0)
    mu = integral(lambda tau: given(tau)[1]) / total
    square = integral(lambda tau: given(tau)[1] ** 2 + given(tau)[2]) / total
    tau = integral(lambda tau: tau) / total
    tau_square = integral(lambda tau: tau**2) / total
    return {
        "mean": {"mu": row(mu)[0], "tau": row(tau)[0]},
        "std": {
            "mu": row(math.sqrt(square - mu**2))[0],
            "tau": row(math.sqrt(tau_square - tau**2))[0],
        },
        "log_evidence": math.log(total) - 30.0,
    }


def schools_in_pyro() -> Hard:
    return Hard(lambda: Target.from_pyro(schools_centred, *schools_data()), **schools())


def schools_as_a_function() -> Hard:
    """Centred, and nothing can re-write it."""
    sigma, y = (t.double() for t in schools_data())

    def log_joint(v: dict[str, Tensor]) -> Tensor:
        prior = dist.Normal(0.0, 5.0).log_prob(v["mu"]) + dist.HalfCauchy(5.0).log_prob(v["tau"])
        effects = dist.Normal(v["mu"], v["tau"]).log_prob(v["theta"]).sum()
        return prior + effects + dist.Normal(v["theta"], sigma).log_prob(y).sum()

    shapes = {"mu": (), "tau": (), "theta": (8,)}
    made = lambda: Target.from_function(log_joint, shapes, {"tau": constraints.positive})
    return Hard(made, **schools())


# --- bent, heavy, many-moded -------------------------------------------------------------------


def funnel(dim: int) -> Hard:
    """v ~ N(0, 3²), x ~ N(0, e^v): Var x = e^4.5."""

    def log_joint(v: dict[str, Tensor]) -> Tensor:
        return (
            dist.Normal(0.0, 3.0).log_prob(v["v"])
            + dist.Normal(0.0, (v["v"] / 2).exp()).log_prob(v["x"]).sum()
        )

    zeros = torch.zeros(dim, dtype=torch.float64)
    return Hard(
        lambda: Target.from_function(log_joint, {"v": (), "x": (dim,)}),
        {"v": row(0.0)[0], "x": zeros},
        {"v": row(3.0)[0], "x": zeros + math.exp(2.25)},
        0.0,
    )


def banana(bend: float, scale: float, dim: int = 2) -> Hard:
    """x₀ ~ N(0, s²), x₁ | x₀ ~ N(b(x₀² − s²), 1): Var x₁ = 1 + 2 b² s⁴; the others standard."""

    def log_prob(z: Tensor) -> Tensor:
        first = dist.Normal(0.0, scale).log_prob(z[0])
        second = dist.Normal(bend * (z[0] ** 2 - scale**2), 1.0).log_prob(z[1])
        return first + second + dist.Normal(0.0, 1.0).log_prob(z[2:]).sum()

    std = torch.ones(dim, dtype=torch.float64)
    std[0], std[1] = scale, math.sqrt(1 + 2 * bend**2 * scale**4)
    return Hard(flat(log_prob, dim), {"x": 0 * std}, {"x": std}, 0.0)


def modes(
    locs: list[float], shares: list[float], sds: list[float] | None = None, dim: int = 1
) -> Hard:
    """A mixture of Gaussians along the first axis, standard along the others."""
    at, log_share = row(*locs), row(*shares).log()
    sd = torch.ones_like(at) if sds is None else row(*sds)

    def log_prob(z: Tensor) -> Tensor:
        parts = dist.Normal(at, sd).log_prob(z[0]) + log_share
        return parts.logsumexp(0) + dist.Normal(0.0, 1.0).log_prob(z[1:]).sum()

    share = log_share.exp()
    first = share @ at
    std = torch.ones(dim, dtype=torch.float64)
    std[0] = (share @ (sd**2 + at**2) - first**2).sqrt()
    mean = torch.zeros(dim, dtype=torch.float64)
    mean[0] = first
    return Hard(flat(log_prob, dim), {"x": mean}, {"x": std}, math.log(sum(shares)))


def ring() -> Hard:
    """Radius 4 with sd 0.25, any angle."""
    r, s = 4.0, 0.25
    mean, std, log_z = by_quadrature(
        lambda t: -0.5 * ((t - r) / s) ** 2 + math.log(2 * math.pi * t), [1e-9, r, r + 12 * s]
    )
    each = math.sqrt((std**2 + mean**2) / 2)
    log_prob = lambda z: -0.5 * ((z.square().sum().sqrt() - r) / s) ** 2
    return Hard(flat(log_prob, 2), {"x": row(0.0, 0.0)}, {"x": row(each, each)}, log_z)


def student_t(dof: float) -> Hard:
    """Its sd is infinite up to two degrees of freedom, its mean does not exist up to one."""
    exact = torch.distributions.StudentT(row(dof)[0])
    std = math.sqrt(dof / (dof - 2)) if dof > 2 else math.inf
    has_mean = dof > 1
    return Hard(
        flat(lambda z: exact.log_prob(z)[0]),
        {"x": row(0.0)} if has_mean else {},
        {"x": row(std)} if has_mean else {},
        0.0,
        must_flag=not has_mean,
    )


def distribution(exact: torch.distributions.Distribution) -> Hard:
    return Hard(
        lambda: Target.from_distribution(exact),
        {"x": exact.mean},
        {"x": exact.variance.sqrt()},
        0.0,
    )


# --- not smooth, not defined everywhere, not proper --------------------------------------------


def step() -> Hard:
    """N(0, 1) with a fifth of its height below zero."""
    low = 0.2
    z = 0.5 * (1 + low)
    mean = (1 - low) * norm.pdf(0.0) / z
    return Hard(
        flat(
            lambda x: (dist.Normal(0.0, 1.0).log_prob(x) + torch.where(x > 0, 0.0, math.log(low)))[
                0
            ]
        ),
        {"x": row(mean)},
        {"x": row(math.sqrt(1 - mean**2))},
        math.log(z),
    )


def edge(at: float) -> Hard:
    """N(0, 1) cut off below a point: zero density where the guide has mass."""
    log_z = float(log_ndtr(-at))
    mean = math.exp(norm.logpdf(at) - log_z)
    return Hard(
        flat(lambda x: torch.where(x > at, dist.Normal(0.0, 1.0).log_prob(x), -math.inf)[0]),
        {"x": row(mean)},
        {"x": row(math.sqrt(1 + at * mean - mean**2))},
        log_z,
    )


def uniform_bound() -> Hard:
    """Five draws of U(0, θ), the largest 1.3; prior 1/θ²: θ is a Pareto of index 6."""
    top, n = 1.3, 6.0
    return Hard(
        flat(lambda z: torch.where(z > top, -(n + 1) * z.clamp(min=top).log(), -math.inf)[0]),
        {"x": row(n * top / (n - 1))},
        {"x": row(math.sqrt(n * top**2 / ((n - 1) ** 2 * (n - 2))))},
        -math.log(n) - n * math.log(top),
    )


def nan_below(at: float) -> Hard:
    """Half a log of a negative number below `at`, where the guide has mass; zero density there."""
    mean, std, log_z = by_quadrature(
        lambda x: norm.logpdf(x) + 0.5 * math.log(max(x - at, 1e-300)), [at, at + 2.0, 14.0]
    )
    return Hard(
        flat(lambda x: (dist.Normal(0.0, 1.0).log_prob(x) + 0.5 * (x - at).log())[0]),
        {"x": row(mean)},
        {"x": row(std)},
        log_z,
    )


def nan_inside() -> Hard:
    """No number for x in (1, 1.5): nobody can say what is right."""

    def log_prob(x: Tensor) -> Tensor:
        hole = (x > 1.0) & (x < 1.5)
        return torch.where(hole, math.nan, dist.Normal(0.0, 1.0).log_prob(x))[0]

    return Hard(flat(log_prob), must_flag=True)


def haldane() -> Hard:
    """Prior 1/(p(1−p)) and no success in ten: infinite mass at p = 0."""
    return Hard(
        lambda: Target.from_function(
            lambda v: -v["p"].log() + 9 * torch.log1p(-v["p"]),
            {"p": ()},
            {"p": constraints.unit_interval},
        ),
        must_flag=True,
    )


def separated_flat(dim: int) -> Hard:
    x = torch.linspace(-2.0, 2.0, 8, dtype=torch.float64)
    X = torch.stack([x**k for k in range(1, dim + 1)], dim=1)
    sign = torch.where(x > 0, 1.0, -1.0).double()
    return Hard(
        flat(lambda b: torch.nn.functional.logsigmoid(sign * (X @ b)).sum(), dim), must_flag=True
    )


def flat_direction() -> Hard:
    """Only the sum of two coefficients is seen, without a prior."""
    return Hard(flat(lambda b: -0.5 * (b.sum() - 1) ** 2, 2), must_flag=True)


def many(dim: int) -> Hard:
    """Independent Gaussians with scales over four decades."""
    sd = torch.logspace(-2, 2, dim, dtype=torch.float64)
    return Hard(
        flat(lambda z: dist.Normal(0.0, sd).log_prob(z).sum(), dim), {"x": 0 * sd}, {"x": sd}, 0.0
    )


def chain(dim: int, correlation: float) -> Hard:
    """A stationary autoregression of unit variance."""
    s = math.sqrt(1 - correlation**2)

    def log_prob(z: Tensor) -> Tensor:
        first = dist.Normal(0.0, 1.0).log_prob(z[0])
        return first + dist.Normal(correlation * z[:-1], s).log_prob(z[1:]).sum()

    one = torch.ones(dim, dtype=torch.float64)
    return Hard(flat(log_prob, dim), {"x": 0 * one}, {"x": one}, 0.0)


def t64(cls: type, *args: float) -> torch.distributions.Distribution:
    return cls(*(torch.tensor(a, dtype=torch.float64) for a in args))


def as_float32(case: Hard) -> Hard:
    """The same target in single precision."""
    return replace(case, target=lambda: case.target().to(dtype=torch.float32))


HARD: dict[str, Callable[[], Hard]] = {
    "no success": no_success,
    "normal mean": normal_mean,
    "Poisson rate": poisson_rate,
    "Laplace prior": laplace_prior,
    "separated, prior": separated_with_prior,
    "Cauchy data": cauchy_data,
    "Cauchy location": cauchy_location,
    "rho 0.95": lambda: gaussian(0.95),
    "rho 0.999": lambda: gaussian(0.999),
    "rho 0.95, mean-field": lambda: gaussian(0.95, guide=MeanField()),
    "rho 0.999, mean-field": lambda: gaussian(0.999, guide=MeanField()),
    "schools, Pyro": schools_in_pyro,
    "schools, function": schools_as_a_function,
    "funnel 1": lambda: funnel(1),
    "funnel 9": lambda: funnel(9),
    "banana": lambda: banana(0.5, 1.0),
    "banana, strong": lambda: banana(0.1, 10.0),
    "banana, 5-d": lambda: banana(0.3, 2.0, 5),
    **{
        f"modes {gap:g} apart, {share:.0%}, {dim}-d": partial(
            modes, [-gap / 2, gap / 2], [share, 1 - share], dim=dim
        )
        for gap in (4.0, 8.0, 20.0)
        for share in (0.5, 0.1)
        for dim in (1, 5)
    },
    "a mode 20 away": lambda: modes([0.0, 20.0], [0.7, 0.3]),
    "three modes": lambda: modes([-10.0, 0.0, 10.0], [1 / 3] * 3),
    "spike in a slab": lambda: modes([0.0, 3.0], [0.5, 0.5], [1.0, 0.01]),
    "spike at the mode": lambda: modes([0.0, 0.0], [0.5, 0.5], [1.0, 0.01]),
    "spike in a slab, 5-d": lambda: modes([0.0, 2.0], [0.7, 0.3], [1.0, 0.05], 5),
    "ring": ring,
    "Student t(5)": lambda: student_t(5.0),
    "Student t(3)": lambda: student_t(3.0),
    "Student t(2)": lambda: student_t(2.0),
    "Cauchy": lambda: student_t(1.0),
    "log-normal 2": lambda: distribution(t64(LogNormal, 0.0, 2.0)),
    "gamma 0.1": lambda: distribution(t64(Gamma, 0.1, 1.0)),
    "beta 0.2": lambda: distribution(t64(Beta, 0.2, 0.2)),
    "step": step,
    "edge at -1": lambda: edge(-1.0),
    "edge at 1": lambda: edge(1.0),
    "uniform bound": uniform_bound,
    "NaN below -2": lambda: nan_below(-2.0),
    "NaN below 0": lambda: nan_below(0.0),
    "NaN inside": nan_inside,
    "Haldane": haldane,
    "separated, flat": lambda: separated_flat(1),
    "separated, flat, 2-d": lambda: separated_flat(2),
    "a flat direction": flat_direction,
    "float32 Poisson": lambda: as_float32(poisson_rate()),
    "float32 banana": lambda: as_float32(banana(0.5, 1.0)),
}
LARGE: dict[str, Callable[[], Hard]] = {
    "10,000 scales": lambda: many(10_000),
    "a chain of 10,000": lambda: chain(10_000, 0.9),
}
# minutes together
SLOW = {
    "schools, Pyro",
    "schools, function",
    "funnel 1",
    "funnel 9",
    "banana, strong",
    "banana, 5-d",
    "Haldane",
    "uniform bound",
    "separated, flat",
    "separated, flat, 2-d",
    "float32 banana",
    "ring",
    "gamma 0.1",
    "modes 4 apart, 10%, 5-d",
}
# modes or clusters that no start within two units of zero leads to, and no draw tells of
UNSEEN = {"a mode 20 away", "three modes", "Cauchy location", "spike in a slab"}
