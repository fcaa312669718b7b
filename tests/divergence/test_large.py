"""Large batches of divergences: in blocks, and by the trapezoidal rule."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from problems.expectations import number
from problems.pairs import FAMILIES
from torch import distributions as td

from probcalc import GaussKronrod, kl
from probcalc.distributions.rebuild import taken_apart
from probcalc.divergence.formula import _BLOCK
from probcalc.divergence.pair import pair
from probcalc.divergence.trapezoid import by_trapezoids

ONE, ZERO = number(1.0), number(0.0)
LARGE = _BLOCK + 7  # more than one block


def large(family: Any, *others: float) -> td.Distribution:
    rising = torch.linspace(0.3, 3, LARGE, dtype=torch.float64)
    return family(rising, *(torch.full_like(rising, o) for o in others))


MANY = {
    "normal": (large(td.Normal, 1.2), td.Normal(ZERO, ONE)),
    "gamma": (large(td.Gamma, 1.2), td.Gamma(ONE, ONE)),
    "gamma, normal": (large(td.Gamma, 1.2), td.Normal(ONE, ONE)),
    "Dirichlet": (
        td.Dirichlet(torch.linspace(0.3, 3, 3 * LARGE, dtype=torch.float64).reshape(-1, 3)),
        FAMILIES["Dirichlet"],
    ),
    "geometric": (
        td.Geometric(torch.linspace(0.1, 1, LARGE, dtype=torch.float64)),
        td.Geometric(number(0.4)),
    ),
}


@pytest.mark.parametrize(("p", "q"), MANY.values(), ids=MANY.keys())
def test_large_batches_are_their_elements(p: td.Distribution, q: td.Distribution):
    found = kl(p, q)
    tensors, build = taken_apart(p)
    for i in (0, 17, int(0.26 * LARGE), LARGE // 2, LARGE - 1):
        one = kl(build([t[i] for t in tensors]), q)
        assert abs(float(found.value[i] - one.value)) <= float(found.error[i] + one.error)
        assert float(found.error[i]) == pytest.approx(float(one.error), rel=1e-6)


def test_threads_do_not_meet():
    """What one leaves for later is its own."""
    p, q = MANY["gamma"]
    small = td.Gamma(number(1.0, 1.001), ONE), td.Gamma(number(1.0, 1.0), ONE)
    alone = [kl(p, q).value, kl(*small).value]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: kl(*((p, q), small)[i % 2]).value, range(40)))
    assert all(torch.equal(value, alone[i % 2]) for i, value in enumerate(found))


def test_bars_that_are_read_too_late():
    """Of terms that cancel they need the parameters as they were."""
    rate = torch.full((LARGE,), 1.3, dtype=torch.float64)
    found = kl(td.Exponential(rate), td.Normal(ZERO, ONE))
    rate.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        found.error  # noqa: B018
    again = kl(td.Exponential(rate), td.Normal(ZERO, ONE))
    assert (again.error > 0).all()
    rate.add_(1)
    assert (again.error > 0).all()


SMOOTH = {
    "Student, mixture": (
        lambda t: td.StudentT(2.5 + 6 * t, 2 * t - 1, 0.5 + t),
        lambda t: td.MixtureSameFamily(
            td.Categorical(torch.stack([t + 0.1, 1.2 - t], -1)),
            td.Normal(torch.stack([3 * t, -4 * t], -1), torch.stack([0.3 + t, 1.3 - t], -1)),
        ),
    ),
    "mixture, Cauchy": (
        lambda t: td.MixtureSameFamily(
            td.Categorical(torch.stack([t + 0.1, 1.2 - t], -1)),
            td.Normal(torch.stack([3 * t, -4 * t], -1), torch.stack([0.3 + t, 1.3 - t], -1)),
        ),
        lambda t: td.Cauchy(t, 0.1 + t),
    ),
    "normal, needles": (
        lambda t: td.Normal(t, 1 + t),
        lambda t: td.MixtureSameFamily(
            td.Categorical(torch.stack([t + 0.1, 1.2 - t], -1)),
            td.Normal(torch.stack([t, 0 * t], -1), torch.stack([10 ** (-1 - 2 * t), 2 + t], -1)),
        ),
    ),
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("rtol", [1e-4, 1e-6, 1e-8])
def test_many_smooth_pairs_at_once(name: str, rtol: float):
    t = torch.linspace(0, 1, 128, dtype=torch.float64)
    p, q = (make(t) for make in SMOOTH[name])
    exact = kl(p, q, rtol=1e-11, method=GaussKronrod())
    settled = by_trapezoids(pair(p, q), rtol, 0.0)
    assert settled is not None
    done = settled.done
    assert done.any()  # the rest has parts that are too narrow, or turns
    away = (settled.value - exact.value).abs()
    assert (away <= settled.error + exact.error)[done].all()
    assert (settled.error <= rtol * settled.value)[done].all()
    found = kl(p, q, rtol=rtol)
    assert found.ok
    assert found.method.startswith("trapezoidal rule")
    assert (found.value == settled.value)[done].all()
    assert ((found.value - exact.value).abs() <= rtol * exact.value).all()


def test_few_pairs_or_derivatives_are_left_to_quadrature():
    t = torch.linspace(0, 1, 32, dtype=torch.float64)
    p, q = (make(t) for make in SMOOTH["mixture, Cauchy"])
    assert by_trapezoids(pair(p, q), 1e-6, 0.0) is None
    place = torch.zeros(128, dtype=torch.float64, requires_grad=True)
    assert by_trapezoids(pair(td.Normal(place, 1.0), td.Cauchy(ZERO, ONE)), 1e-6, 0.0) is None
    assert (
        by_trapezoids(pair(td.Laplace(place.detach(), 1.0), td.Cauchy(ZERO, ONE)), 1e-6, 0.0)
        is None
    )
