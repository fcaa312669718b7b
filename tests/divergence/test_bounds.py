"""Bounds of mixtures: the divergence is between them, and they meet it where they can."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from problems.expectations import number
from torch import Tensor
from torch import distributions as td

from probcalc import MonteCarlo, kl, kl_bounds

INF = math.inf
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
PLACES = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
SCALES = torch.tensor([0.5, 1.0, 0.8], dtype=torch.float64)

Draw = Callable[[int, float, torch.Generator], td.Distribution]


def uniform(*shape: int, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(shape, dtype=torch.float64, generator=generator) - 1


def on_the_line(k: int, spread: float, g: torch.Generator) -> td.Distribution:
    return td.Normal(spread * uniform(k, generator=g), uniform(k, generator=g).exp())


def independent(k: int, spread: float, g: torch.Generator) -> td.Distribution:
    scales = uniform(k, 3, generator=g).exp()
    return td.Independent(td.Normal(spread * uniform(k, 3, generator=g), scales), 1)


def correlated(k: int, spread: float, g: torch.Generator) -> td.Distribution:
    root = uniform(k, 2, 2, generator=g).tril(-1) + uniform(k, 2, generator=g).exp().diag_embed()
    return td.MultivariateNormal(spread * uniform(k, 2, generator=g), scale_tril=root)


def low_rank(k: int, spread: float, g: torch.Generator) -> td.Distribution:
    factor, diagonal = uniform(k, 2, 1, generator=g), uniform(k, 2, generator=g).exp()
    return td.LowRankMultivariateNormal(spread * uniform(k, 2, generator=g), factor, diagonal)


def laplaces(k: int, spread: float, g: torch.Generator) -> td.Distribution:
    return td.Laplace(spread * uniform(k, generator=g), uniform(k, generator=g).exp())


def counts(k: int, spread: float, g: torch.Generator) -> td.Distribution:
    return td.Poisson((spread * uniform(k, generator=g)).exp())


GENERATOR = torch.Generator().manual_seed(0)
LINE = {"normal": on_the_line, "Laplace": laplaces, "Poisson": counts}
VECTORS = {"independent": independent, "correlated": correlated, "low rank": low_rank}


def mixture(parts: td.Distribution, g: torch.Generator) -> td.MixtureSameFamily:
    logits = 2 * uniform(*parts.batch_shape, generator=g)
    return td.MixtureSameFamily(td.Categorical(logits=logits), parts)


def weighed(probs: Tensor, parts: td.Distribution) -> td.MixtureSameFamily:
    return td.MixtureSameFamily(td.Categorical(probs), parts)


def normals(
    weights: Tensor = WEIGHTS, places: Tensor = PLACES, scales: Tensor = SCALES
) -> td.MixtureSameFamily:
    return weighed(weights, td.Normal(places, scales))


def pair_of(draw: Draw, seed: int) -> tuple[td.Distribution, td.Distribution]:
    g = torch.Generator().manual_seed(seed)
    spread = (0.5, 2.0, 8.0)[seed % 3]
    k, m = [(3, 3), (2, 5), (4, 1)][seed // 3 % 3]
    return mixture(draw(k, spread, g), g), mixture(draw(m, spread, g), g)


@pytest.mark.parametrize("seed", range(9))
@pytest.mark.parametrize("draw", LINE.values(), ids=LINE.keys())
def test_divergence_is_between_them(draw: Draw, seed: int):
    p, q = pair_of(draw, seed)
    found, true = kl_bounds(p, q), kl(p, q, rtol=1e-8)
    assert 0 <= float(found.lower) <= float(true.value + true.error)
    assert float(true.value - true.error) <= float(found.upper) < INF


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("draw", VECTORS.values(), ids=VECTORS.keys())
def test_divergence_of_vectors_is_between_them(draw: Draw, seed: int):
    p, q = pair_of(draw, seed)
    g = torch.Generator().manual_seed(seed)
    found = kl_bounds(p, q)
    true = kl(p, q, method=MonteCarlo(), max_evals=20_000, confidence=0.9999, generator=g)
    assert 0 <= float(found.lower) <= float(true.value + true.error)
    assert float(true.value - true.error) <= float(found.upper) < INF


@pytest.mark.parametrize("draw", [on_the_line, correlated], ids=["line", "plane"])
def test_one_distribution_is_at_no_distance_of_itself(draw: Draw):
    """In any order of its components."""
    p, _ = pair_of(draw, 3)
    back = p.component_distribution
    assert kl_bounds(p, p).upper == 0
    order = torch.tensor([1, 0])
    if isinstance(back, td.Normal):
        back = td.Normal(back.loc[order], back.scale[order])
    else:
        back = td.MultivariateNormal(back.loc[order], scale_tril=back.scale_tril[order])
    q = weighed(p.mixture_distribution.probs[order], back)
    assert kl_bounds(p, q).upper < 1e-15


@pytest.mark.parametrize("draw", [on_the_line, laplaces, correlated, independent])
def test_single_components_have_their_divergence(draw: Draw):
    g = torch.Generator().manual_seed(0)
    f, h = draw(1, 1.0, g), draw(1, 1.0, g)
    found, true = kl_bounds(mixture(f, g), mixture(h, g)), kl(f, h).value[0]
    torch.testing.assert_close(found.upper, true, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.lower, true, rtol=1e-12, atol=0)
    assert found.lower_by == "one component"


def test_component_without_an_axis_is_a_mixture_of_one():
    one, whole = td.Normal(number(0.3), number(1.2)), normals()
    alone = normals(torch.ones(1).double(), number(0.3)[None], number(1.2)[None])
    for pair, same in (((one, whole), (alone, whole)), ((whole, one), (whole, alone))):
        found, expected = kl_bounds(*pair), kl_bounds(*same)
        assert found.lower == expected.lower
        assert found.upper == expected.upper


def test_far_components_leave_nothing_between():
    """Of components that do not overlap, the divergence is that of weights and of pairs."""
    q = normals(WEIGHTS.flip(0), 100 * PLACES + 0.5, 2 * SCALES)
    p = normals(WEIGHTS, 100 * PLACES, SCALES)
    found, true = kl_bounds(p, q), kl(p, q, rtol=1e-10).value
    torch.testing.assert_close(found.upper, true, rtol=1e-9, atol=0)
    each = kl(p.component_distribution, q.component_distribution).value
    expected = (WEIGHTS * (each + (WEIGHTS / WEIGHTS.flip(0)).log())).sum()
    torch.testing.assert_close(found.upper, expected, rtol=1e-9, atol=0)


def test_variational_weights_are_the_best():
    """No worse than after many steps of Hershey & Olsen's equations (23) and (24)."""
    for seed in range(3):
        p, q = pair_of(laplaces, 3 + seed)
        parts = p.component_distribution, q.component_distribution
        f, h = (td.Laplace(d.loc, d.scale) for d in parts)
        each = kl(td.Laplace(f.loc[:, None], f.scale[:, None]), h).value
        pi, omega = p.mixture_distribution.probs, q.mixture_distribution.probs
        phi = pi[:, None] * omega
        for _ in range(3000):
            psi = omega * phi / phi.sum(0)
            phi = psi * (-each).exp()
            phi = pi[:, None] * phi / phi.sum(1, keepdim=True)
        psi = omega * phi / phi.sum(0)
        naive = (torch.xlogy(phi, phi) - torch.xlogy(phi, psi) + phi * each).sum()
        assert float(kl_bounds(p, q).upper) <= float(naive) * (1 + 1e-9)


def test_batches_are_loops():
    g = torch.Generator().manual_seed(0)
    weights = uniform(4, 1, 3, generator=g).exp()
    places, scales = 3 * uniform(4, 2, 3, generator=g), uniform(4, 2, 3, generator=g).exp()
    p = normals(weights.expand(4, 2, 3), places, scales)
    q = normals(WEIGHTS.expand(2, 3), PLACES.expand(2, 3), SCALES.expand(2, 3))
    found = kl_bounds(p, q)
    assert found.upper.shape == (4, 2)
    for i in range(4):
        for j in range(2):
            one = kl_bounds(normals(weights[i, 0], places[i, j], scales[i, j]), normals())
            torch.testing.assert_close(one.lower, found.lower[i, j], rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(one.upper, found.upper[i, j], rtol=1e-9, atol=1e-14)
            assert one.upper_by == found.upper_by[i][j]
            assert one.lower_by == found.lower_by[i][j]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("side", ["lower", "upper"])
def test_derivatives(side: str, seed: int):
    g = torch.Generator().manual_seed(seed)
    spread = (1.0, 4.0)[seed % 2]
    given = [uniform(2, generator=g), spread * uniform(2, generator=g), uniform(2, generator=g)]
    given += [uniform(3, generator=g), spread * uniform(3, generator=g), uniform(3, generator=g)]

    def bound(*t: Tensor) -> Tensor:
        p, q = (
            td.MixtureSameFamily(td.Categorical(logits=w), td.Normal(m, s.exp()))
            for w, m, s in (t[:3], t[3:])
        )
        return getattr(kl_bounds(p, q), side)

    torch.autograd.gradcheck(bound, [t.requires_grad_() for t in given], atol=2e-5, fast_mode=True)


def test_no_weight_is_no_component():
    """Neither its place nor what does not cover it counts; derivatives stay numbers."""
    probs = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    q = normals(WEIGHTS)
    found = kl_bounds(normals(probs), q)
    less = kl_bounds(normals(WEIGHTS.new_tensor([0.5, 0.5]), PLACES[:2], SCALES[:2]), q)
    torch.testing.assert_close(found.upper, less.upper, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.lower, less.lower, rtol=1e-12, atol=0)
    found.upper.backward()
    assert probs.grad is not None
    assert probs.grad.isfinite().all()
    reverse = kl_bounds(q, normals(probs))
    true = kl(q, normals(probs.detach())).value
    assert reverse.lower <= true <= reverse.upper < INF


def intervals(*ends: tuple[float, float]) -> td.MixtureSameFamily:
    low, high = (torch.tensor(t, dtype=torch.float64) for t in zip(*ends, strict=True))
    return weighed(torch.ones_like(low), td.Uniform(low, high))


def test_what_is_not_covered_is_infinite():
    """And what one component does cover, is not."""
    q = intervals((0.0, 2.0), (4.0, 7.0))
    inside = kl_bounds(intervals((0.5, 1.0), (4.5, 5.0)), q)
    assert inside.upper == pytest.approx(0.5 * math.log(4) + 0.5 * math.log(6), rel=1e-12)
    assert kl_bounds(intervals((0.5, 1.0), (3.0, 5.0)), q).upper == INF


def test_result_is_rounded_outwards():
    p, q = (normals(*(t.float() for t in (WEIGHTS, m, SCALES))) for m in (PLACES, PLACES + 3))
    found = kl_bounds(p, q)
    exact = kl_bounds(
        *(
            normals(*(t.float().double() for t in (WEIGHTS, m, SCALES)))
            for m in (PLACES, PLACES + 3)
        )
    )
    assert found.lower.dtype == found.upper.dtype == torch.float32
    assert found.lower.double() <= exact.lower + 1e-7
    torch.testing.assert_close(found.upper.double(), exact.upper, rtol=1e-6, atol=0)


REFUSED = {
    "no mixture": (td.Normal(0.0, 1.0), TypeError, "MixtureSameFamily"),
    "shapes": (mixture(correlated(2, 1.0, GENERATOR), GENERATOR), ValueError, "one shape"),
    "batches": (normals(WEIGHTS.expand(2, 3), PLACES.expand(2, 3)), ValueError, "broadcast"),
}


@pytest.mark.parametrize(("q", "error", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(q: td.Distribution, error: type[Exception], text: str):
    with pytest.raises(error, match=text):
        kl_bounds(td.Normal(torch.zeros(3), torch.ones(3)), q)


def test_draws_are_no_bounds():
    """Components whose divergence is known from draws only."""
    parts = td.Independent(td.Laplace(torch.zeros(2, 12), 1.0), 1)
    other = td.MultivariateNormal(torch.zeros(2, 12), torch.eye(12))
    p, q = weighed(torch.ones(2), parts), weighed(torch.ones(2), other)
    with pytest.raises(NotImplementedError, match="from draws"):
        kl_bounds(p, q)
