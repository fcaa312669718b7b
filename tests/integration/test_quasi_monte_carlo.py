"""Scrambled Sobol points: nets, the rates that theory promises, bars that cover, every family."""

from __future__ import annotations

import math

import laws
import pytest
import torch
from problems.expectations import number
from torch import Tensor
from torch import distributions as td

from probcalc import EstimateWarning, MonteCarlo, QuasiMonteCarlo, Status, expect, integrate
from probcalc.integration.cube import image_of
from probcalc.integration.lattice import ShiftedLattice
from probcalc.integration.sobol import MAX_DIM, ScrambledSobol

CPU = torch.device("cpu")


def sobol(seed: int, replicates: int, dim: int) -> ScrambledSobol:
    return ScrambledSobol.of(seed, replicates, dim, CPU)


@pytest.mark.parametrize("dim", [1, 3, 40])
def test_points_are_nets(dim: int, seed: int):
    """One point in every cell of each axis, and of the plane of the first two."""
    u = sobol(seed, 3, dim).points(0, 256)
    assert u.shape == (3, 256, dim)
    assert ((u > 0) & (u < 1)).all()
    cells = (u * 256).long().sort(dim=1).values
    assert torch.equal(cells, torch.arange(256)[:, None].expand(3, 256, dim))
    if dim > 1:
        squares = (u[..., 0] * 16).long() * 16 + (u[..., 1] * 16).long()
        assert torch.equal(squares.sort(dim=1).values, torch.arange(256).expand(3, 256))


def test_blocks_continue_the_sequence(seed: int):
    points = sobol(seed, 2, 5)
    whole = points.points(0, 1024)
    parts = torch.cat([points.points(start, 256) for start in range(0, 1024, 256)], dim=1)
    assert torch.equal(parts, whole)
    late = points.points(2**29, 4)
    assert ((late > 0) & (late < 1)).all()


def test_every_point_is_uniform(seed: int):
    """Over scrambles, at fixed places of the sequence; replicates are independent."""
    u = sobol(seed, 20_000, 2).points(0, 4)
    for place, axis in [(0, 0), (3, 1)]:
        x = u[:, place, axis]
        laws.assert_distributed(x, x, distance=0.04)
    pairs = u[::2, 1, 0] - u[1::2, 1, 0]
    laws.assert_distributed(pairs, 0.5 + pairs - 0.5 * pairs * pairs.abs(), distance=0.055)


def test_there_is_no_floor():
    """30 bits would leave 8e-10."""
    points = sobol(1, 1, 1)
    step = 2**18
    means = [points.points(k * step, step).exp().mean() for k in range(16)]
    assert abs(float(torch.stack(means).mean()) - (math.e - 1)) < 1e-14


def root_mean_square(fn, exact: float, dim: int, num: int) -> float:
    points, step = sobol(num, 64, dim), min(num, 2**8)
    blocks = (points.points(start, step).flatten(0, 1) for start in range(0, num, step))
    means = sum(fn(u).reshape(64, step).sum(dim=1) for u in blocks) / num
    return float((means - exact).square().mean().sqrt())


FIVE = 1 / torch.arange(1, 6).double()
# name -> (function, integral, d, slope at most)
SMOOTH = {
    "exponential": (lambda u: u[:, 0].exp(), math.e - 1, 1, -1.3),
    "wave": (
        lambda u: (3 * u.sum(dim=1)).cos(),
        (((complex(math.cos(3), math.sin(3)) - 1) / 3j) ** 2).real,
        2,
        -1.3,
    ),
    "Gauss": (
        lambda u: (-4 * (u - 0.4).square().sum(dim=1)).exp(),
        (math.sqrt(math.pi) / 4 * (math.erf(1.2) + math.erf(0.8))) ** 5,
        5,
        -1.0,
    ),
    "anisotropic": (
        lambda u: (-u @ FIVE).exp(),
        float(((1 - (-FIVE).exp()) / FIVE).prod()),
        5,
        -1.0,
    ),
}


@pytest.mark.parametrize(("fn", "exact", "dim", "slope"), SMOOTH.values(), ids=SMOOTH.keys())
def test_rates(fn, exact: float, dim: int, slope: float):
    few, many = (root_mean_square(fn, exact, dim, n) for n in (2**6, 2**12))
    assert math.log2(many / few) / 6 <= slope


def normals(d: int) -> td.Distribution:
    return td.Independent(td.Normal(torch.zeros(d, dtype=torch.float64), 1.0), 1)


# name -> (function, distribution, value)
FAMILIES = {
    "normal": (lambda x: x.exp(), td.Normal(number(0.0), number(0.5)), math.exp(0.125)),
    "t": (lambda x: 1 / (1 + x * x / 5), td.StudentT(number(5.0)), 5 / 6),
    "gamma": (lambda x: x**2, td.Gamma(number(2.0), number(1.5)), 6 / 2.25),
    "counts": (lambda x: x**2, td.Poisson(number(3.0)), 12.0),
    "mixture": (
        lambda x: x**2,
        td.MixtureSameFamily(
            td.Categorical(number(0.3, 0.7)), td.Normal(number(-1.0, 1.0), number(0.5, 1.0))
        ),
        0.3 * 1.25 + 0.7 * 2,
    ),
    "normals": (lambda x: x.square().sum(-1), normals(20), 20.0),
    "covariance": (
        lambda x: x[..., 0] * x[..., 1],
        td.MultivariateNormal(number(1.0, 2.0), torch.tensor([[2.0, 0.7], [0.7, 1.0]]).double()),
        2.7,
    ),
    "simplex": (lambda x: x[..., 0] * x[..., 2], td.Dirichlet(number(1.0, 2.0, 3.0)), 3 / 42),
    "log-normals": (
        lambda x: x.prod(-1),
        td.Independent(td.LogNormal(number(0.1, 0.2), number(0.5, 0.3)), 1),
        math.exp(0.3 + 0.5 * 0.34),
    ),
}


@pytest.mark.parametrize(("fn", "dist", "exact"), FAMILIES.values(), ids=FAMILIES.keys())
def test_families_through_their_quantiles(fn, dist, exact: float, generator: torch.Generator):
    result = expect(fn, dist, method=QuasiMonteCarlo(), generator=generator)
    plain = expect(fn, dist, method=MonteCarlo(), generator=generator)
    assert result.ok
    assert "quasi-Monte Carlo, 16 scrambles" in result.method
    laws.assert_within(result, exact, atol=1e-5)
    assert float(result.error) < float(plain.error)
    assert int(result.num_evals) <= 2**17 + 2**11


COVERED = {
    "normal tail": (lambda x: (0.5 * x[..., 0]).exp(), normals(1), math.exp(0.125)),
    "squares": (lambda x: x.square().sum(-1), normals(3), 3.0),
    "step": (lambda x: (x.sum(-1) > 0.5).double(), normals(2), 0.36183680491588153),
}


@pytest.mark.slow
@pytest.mark.parametrize(("fn", "dist", "exact"), COVERED.values(), ids=COVERED.keys())
def test_intervals_cover(fn, dist, exact: float):
    hits = []
    for seed in range(800):
        result = expect(
            fn,
            dist,
            method=QuasiMonteCarlo(num_points=256),
            confidence=0.95,
            generator=laws.generator(seed),
        )
        hits.append(abs(float(result.value) - exact) <= float(result.error))
    laws.assert_covers(torch.tensor(hits), 0.95, caught=0.87)


def test_a_tolerance_is_met_and_its_bar_still_covers():
    exact = (math.e - 1) ** 2
    hits, spent = [], []
    for seed in range(400):
        result = integrate(
            lambda x: x.sum(-1).exp(),
            torch.zeros(2, dtype=torch.float64),
            torch.ones(2, dtype=torch.float64),
            event_dim=1,
            method=QuasiMonteCarlo(),
            rtol=2e-5,
            confidence=0.95,
            generator=laws.generator(seed),
        )
        assert result.ok
        assert float(result.error) <= 2e-5 * exact
        hits.append(abs(float(result.value) - exact) <= float(result.error))
        spent.append(int(result.num_evals))
    assert len(set(spent)) > 1
    assert max(spent) <= 2**17
    laws.assert_covers(torch.tensor(hits), 0.95, caught=0.83)


def test_a_tolerance_that_is_missed_is_flagged():
    with pytest.warns(EstimateWarning, match="tolerance"):
        result = expect(
            lambda x: x.abs(), td.Normal(0.0, 1.0), method=QuasiMonteCarlo(), rtol=1e-12
        )
    assert result.flags == Status.TOLERANCE_NOT_REACHED


HEAVY = {
    "no variance": (lambda x: x, td.Pareto(number(1.0), number(1.2)), Status.INFINITE_VARIANCE),
    "nothing seen": (lambda x: (x > 9).double(), td.Normal(0.0, 1.0), Status.UNRESOLVED_MASS),
    "not finite": (lambda x: x.log(), td.Normal(0.0, 1.0), Status.NON_FINITE),
}


@pytest.mark.parametrize(("fn", "dist", "flag"), HEAVY.values(), ids=HEAVY.keys())
def test_what_has_no_bar_is_flagged(fn, dist, flag: Status, generator: torch.Generator):
    with pytest.warns(EstimateWarning):
        result = expect(fn, dist, method=QuasiMonteCarlo(), generator=generator)
    assert flag in result.flags
    assert float(result.error) == math.inf


GRADIENTS = {
    "location": (lambda t: td.Normal(t, 1.0), lambda x: x**3, lambda t: t**3 + 3 * t),
    "shape": (lambda t: td.Gamma(t, 2.0), lambda x: x**2, lambda t: t * (t + 1) / 4),
    "counts": (lambda t: td.Poisson(t), lambda x: x**2, lambda t: t + t**2),
    "root": (
        lambda t: td.MultivariateNormal(
            torch.zeros(2).double(), scale_tril=torch.stack([t, t * 0, t / 2, t]).reshape(2, 2)
        ),
        lambda x: x[..., 0] * x[..., 1],
        lambda t: t**2 / 2,
    ),
}


@pytest.mark.parametrize(("family", "fn", "exact"), GRADIENTS.values(), ids=GRADIENTS.keys())
def test_gradients(family, fn, exact, generator: torch.Generator):
    t = number(1.3).requires_grad_()
    value = expect(fn, family(t), method=QuasiMonteCarlo(), generator=generator).value
    (ours,) = torch.autograd.grad(value, t)
    (theirs,) = torch.autograd.grad(exact(t), t)
    torch.testing.assert_close(ours, theirs, rtol=5e-3, atol=5e-3)


def test_one_seed_gives_one_answer(seed: int):
    runs = [
        integrate(
            torch.exp, 0.0, 1.0, method=QuasiMonteCarlo(), generator=laws.generator(seed)
        ).value
        for _ in range(2)
    ]
    assert torch.equal(*runs)


def test_intervals_and_boxes_by_plain_draws(generator: torch.Generator):
    lower, upper = number(0.0, 1.0), number(2.0, -1.0)
    exact = upper.exp() - lower.exp()
    for method in (MonteCarlo(), QuasiMonteCarlo()):
        result = integrate(torch.exp, lower, upper, method=method, generator=generator)
        assert result.ok
        laws.assert_within(result, exact)
        boxes = torch.stack([lower, lower], dim=-1), torch.stack([upper, upper], dim=-1)
        result = integrate(
            lambda x: x.sum(-1).exp(), *boxes, event_dim=1, method=method, generator=generator
        )
        laws.assert_within(result, exact**2)
        infinite = integrate(
            lambda x: (-x * x).exp(), -math.inf, math.inf, method=method, generator=generator
        )
        laws.assert_within(infinite, math.pi**0.5)


def test_on_another_device():
    """Everything up to the integrand, on tensors that are nowhere."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.no_grad():
        u = torch.rand(8, 3, device="cuda", dtype=torch.float64)
        for dist in (
            td.Independent(td.Normal(torch.zeros(3, device="cuda"), 1.0, validate_args=False), 1),
        ):
            x = image_of(dist)[1](u)
            assert x.device.type == "cuda"
            assert x.shape == (8, 3)


def lattice(seed: int, replicates: int, dim: int) -> ShiftedLattice:
    return ShiftedLattice.of(seed, replicates, dim, torch.device("cpu"))


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_lattice_points_continue_their_sequence(dim: int, seed: int):
    points = lattice(seed, 2, dim)
    whole = points.points(0, 1024)
    parts = torch.cat([points.points(start, 256) for start in range(0, 1024, 256)], dim=1)
    assert torch.equal(parts, whole)
    assert ((whole > 0) & (whole < 1)).all()


@pytest.mark.parametrize("dim", [1, 3])
def test_lattice_points_are_even_along_every_axis(dim: int):
    """Before the baker's transformation one point in every cell, so two, one up and one down."""
    points = ShiftedLattice(lattice(0, 1, dim).generator, torch.full((1, dim), 1e-9).double())
    cells = (points.points(0, 256) * 128).long()
    for axis in range(dim):
        assert (cells[0, :, axis].bincount(minlength=128) == 2).all()


def test_every_lattice_point_is_uniform(seed: int):
    u = lattice(seed, 20_000, 2).points(0, 4)
    for place, axis in [(0, 0), (3, 1)]:
        laws.assert_distributed(u[:, place, axis], u[:, place, axis], distance=0.04)


@pytest.mark.parametrize("name", SMOOTH)
def test_lattice_rates(name: str):
    """Nearly n^−2 in few dimensions, and no worse than what nets promise in five."""
    fn, exact, dim, promised = SMOOTH[name]
    errors = []
    for num in (2**6, 2**12):
        u = lattice(num, 64, dim).points(0, num)
        means = fn(u.flatten(0, 1)).reshape(64, num).mean(dim=1)
        errors.append(float((means - exact).square().mean().sqrt()))
    slope = math.log2(errors[1] / errors[0]) / 6
    assert slope <= (-1.8 if dim <= 2 else promised)


def test_lattices_of_many_dimensions_are_no_worse_than_nets():
    """A bad generator would line points up."""
    c = 1 / torch.arange(1, 21).double()
    fn = lambda x: (-x @ c).exp()  # noqa: E731
    exact = float(((1 - (-c).exp()) / c).prod())
    low = torch.zeros(20, dtype=torch.float64)
    errors = {}
    for points in ("sobol", "lattice"):
        result = integrate(
            fn,
            low,
            low + 1,
            event_dim=1,
            method=QuasiMonteCarlo(num_points=2**12, points=points),
            generator=laws.generator(0),
        )
        laws.assert_within(result, exact)
        errors[points] = float(result.error)
    assert errors["lattice"] <= 2 * errors["sobol"]


def test_refusals():
    with pytest.raises(ValueError, match='"sobol" or "lattice"'):
        QuasiMonteCarlo(points="halton")
    with pytest.raises(ValueError, match="at least 8"):
        QuasiMonteCarlo(replicates=4)
    with pytest.raises(ValueError, match="num_points"):
        QuasiMonteCarlo(num_points=1)
    with pytest.raises(NotImplementedError, match="not made of uniform"):
        expect(
            lambda x: x.sum(-1),
            td.Multinomial(3, number(0.5, 0.5)),
            method=QuasiMonteCarlo(),
        )
    with pytest.raises(ValueError, match=f"at most {MAX_DIM}"):
        sobol(0, 8, MAX_DIM + 1)
    with pytest.raises(NotImplementedError, match="no derivatives in the limits"):
        integrate(lambda x: x, number(0.0).requires_grad_(), number(1.0), method=QuasiMonteCarlo())


def test_closures_see_the_whole_batch(generator: torch.Generator):
    scale = number(1.0, 2.0, 3.0)

    def fn(x: Tensor) -> Tensor:
        return scale * x**2

    result = expect(fn, td.Normal(torch.zeros(3).double(), 1.0), method=QuasiMonteCarlo())
    laws.assert_within(result, scale)
