"""Distances of two samples: means over pairs, bars at p = q and away from it, derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable

import laws
import pytest
import torch
from scipy import stats
from torch import Tensor

from probcalc import Estimate, Status, energy_distance, maximum_mean_discrepancy
from probcalc.divergence import distances

Distance = Callable[[Tensor, Tensor], Estimate]
BANDWIDTH = 1.5


def draws(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def discrepancy(x: Tensor, y: Tensor) -> Estimate:
    return maximum_mean_discrepancy(x, y, bandwidth=BANDWIDTH)


DISTANCES = {"energy": energy_distance, "discrepancy": discrepancy}


def energy_of_normals(dim: int, shift: float, scale: float) -> float:
    """Of N(0, 1) and N(shift, scale²) along the first axis, N(0, 1) along the others."""

    def mean_distance(m: float, v: float) -> float:
        # ‖Z‖ with one coordinate N(m, v): integral of (1 − E e^(−t‖Z‖²))/t^1.5 over t, by √
        u = torch.linspace(-30, 30, 6001, dtype=torch.float64).exp()
        first = (1 + 2 * u * v).rsqrt() * (-u * m**2 / (1 + 2 * u * v)).exp()
        rest = (1 + 4 * u) ** (-0.5 * (dim - 1))
        return float(((1 - first * rest) / u.sqrt()).sum() * 0.01 / (2 * math.sqrt(math.pi)))

    across = mean_distance(shift, 1 + scale**2)
    return 2 * across - mean_distance(0.0, 2.0) - mean_distance(0.0, 2 * scale**2)


def discrepancy_of_normals(dim: int, shift: float, scale: float) -> float:
    def mean_kernel(m: float, v: float) -> float:
        h = BANDWIDTH**2
        first = math.sqrt(h / (h + v)) * math.exp(-0.5 * m**2 / (h + v))
        return first * (h / (h + 2)) ** (0.5 * (dim - 1))

    across = mean_kernel(shift, 1 + scale**2)
    return mean_kernel(0.0, 2.0) + mean_kernel(0.0, 2 * scale**2) - 2 * across


TRUE = {"energy": energy_of_normals, "discrepancy": discrepancy_of_normals}


@pytest.mark.parametrize(
    ("dim", "shift", "scale"),
    [(1, 0.0, 1.0), (3, 0.0, 1.0), (1, 0.2, 1.0), (2, 1.5, 1.0), (1, 0.0, 2.0), (4, 0.5, 0.7)],
)
@pytest.mark.parametrize("name", DISTANCES)
def test_bars_hold(name: str, dim: int, shift: float, scale: float, generator: torch.Generator):
    truth = TRUE[name](dim, shift, scale)
    found = []
    for _ in range(500):
        x, y = draws(generator, 120, dim), draws(generator, 80, dim)
        y[:, 0] = scale * y[:, 0] + shift
        found.append(DISTANCES[name](x, y))
    values = torch.stack([f.value for f in found])
    hits = torch.tensor([abs(float(f) - truth) <= float(f.error) for f in found])
    laws.assert_covers(hits, 0.985, caught=0.91)
    # at p = q, what is not there of the linear part shows as a little
    claimed = torch.stack([f.std_error for f in found]).square().mean().sqrt()
    assert 0.75 < float(claimed / values.std()) < 1.7


def test_a_large_sample_tells_the_distance(generator: torch.Generator):
    x, y = draws(generator, 200_000), 1.1 * draws(generator, 300_000)
    found = energy_distance(x, y)
    truth = energy_of_normals(1, 0.0, 1.1)
    laws.assert_within(found, truth)
    assert float(found.error) < 0.2 * truth


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("dim", [1, 3])
def test_as_the_mean_over_distinct_pairs(name: str, dim: int, generator: torch.Generator):
    x, y = draws(generator, 9, dim), draws(generator, 7, dim) + 1

    def kernel(a: Tensor, b: Tensor) -> float:
        apart = float((a - b).square().sum())
        return -math.sqrt(apart) if name == "energy" else math.exp(-0.5 * apart / BANDWIDTH**2)

    def mean(a: Tensor, b: Tensor, same: bool) -> float:
        values = [
            kernel(s, t) for i, s in enumerate(a) for j, t in enumerate(b) if not same or i != j
        ]
        return sum(values) / len(values)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert float(DISTANCES[name](x, y)) == pytest.approx(expected, rel=1e-12)


def test_energy_of_empirical_laws_is_that_of_scipy(generator: torch.Generator):
    x, y = draws(generator, 40), 2 * draws(generator, 30)
    theirs = stats.energy_distance(x.numpy(), y.numpy()) ** 2
    # theirs counts each draw as a pair with itself, at distance 0
    within = [float(torch.cdist(t[:, None], t[:, None]).mean()) for t in (x, y)]
    bias = within[0] / 39 + within[1] / 29
    assert float(energy_distance(x, y)) == pytest.approx(theirs - bias, rel=1e-10)


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("dim", [1, 2])
def test_where_zero_is_does_not_matter(name: str, dim: int, generator: torch.Generator):
    # numbers that stay what they are when a large one is added
    x = (draws(generator, 30, dim) * 1024).round() / 1024
    y = (draws(generator, 20, dim) * 1024).round() / 1024 + 0.5
    here, there = (DISTANCES[name](x + at, y + at) for at in (0.0, 2.0**30))
    assert float(there) == pytest.approx(float(here), rel=1e-11)
    assert float(there.error) == pytest.approx(float(here.error), rel=1e-6)


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("dim", [1, 2])
def test_derivatives(name: str, dim: int, generator: torch.Generator):
    x, y = (draws(generator, n, dim).requires_grad_() for n in (8, 6))
    torch.autograd.gradcheck(lambda a, b: DISTANCES[name](a, b).value, (x, y))


def test_pieces_make_the_whole(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator):
    x, y = draws(generator, 33, 2), draws(generator, 20, 2).requires_grad_()
    whole = discrepancy(x, y)
    slope = torch.autograd.grad(whole.value, y)[0]
    monkeypatch.setattr(distances, "_CHUNK", 100)
    again = discrepancy(x, y)
    assert float(again) == pytest.approx(float(whole), rel=1e-12)
    assert float(again.error) == pytest.approx(float(whole.error), rel=1e-9)
    torch.testing.assert_close(torch.autograd.grad(again.value, y)[0], slope)


def test_median_bandwidth_and_other_kernels(generator: torch.Generator):
    x, y = draws(generator, 50, 2), draws(generator, 40, 2) + 0.5
    h = float(torch.nn.functional.pdist(torch.cat([x, y])).median())
    found = maximum_mean_discrepancy(x, y)
    assert float(found) == pytest.approx(float(maximum_mean_discrepancy(x, y, bandwidth=h)))
    scaled = maximum_mean_discrepancy(10 * x, 10 * y)
    assert float(scaled) == pytest.approx(float(found))

    # of the product of draws it is the distance of means
    linear = maximum_mean_discrepancy(x, y, kernel=lambda a, b: a @ b.T)
    apart = (x.mean(dim=0) - y.mean(dim=0)).square().sum()
    noise = x.var(dim=0).sum() / 50 + y.var(dim=0).sum() / 40
    assert float(linear) == pytest.approx(float(apart - noise))


def test_tails_without_a_variance_are_flagged(generator: torch.Generator):
    x, y = (draws(generator, 4000) / draws(generator, 4000) for _ in range(2))
    found = energy_distance(x, y)
    assert found.flags == Status.INFINITE_VARIANCE
    assert found.error == math.inf
    assert maximum_mean_discrepancy(x, y).ok


BAD = {
    "dimensions": (lambda x: (x, x[:, :1]), {}, "one dimension"),
    "one draw": (lambda x: (x[:1], x), {}, "at least 2 draws"),
    "no number": (lambda x: (x, x * math.nan), {}, "`y` must be finite"),
    "bandwidth": (lambda x: (x, x), {"bandwidth": 0.0}, "positive"),
    "both": (lambda x: (x, x), {"bandwidth": 1.0, "kernel": torch.cdist}, "either"),
    "one point": (lambda x: (0 * x, 0 * x), {}, "one point"),
}


@pytest.mark.parametrize(("make", "how", "text"), BAD.values(), ids=BAD.keys())
def test_what_has_no_distance(make, how: dict, text: str, generator: torch.Generator):
    with pytest.raises(ValueError, match=text):
        maximum_mean_discrepancy(*make(draws(generator, 8, 2)), **how)
