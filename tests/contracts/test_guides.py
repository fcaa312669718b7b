"""Laws that every guide obeys; a new one joins by its line in `GUIDES`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
from laws import assert_mean_is
from torch import Tensor, nn
from torch.func import grad, vmap

import probcalc as pc
from probcalc.inference.guides import (
    GUIDES,
    Amortised,
    DefensiveMixture,
    Delta,
    Flow,
    FullRank,
    GaussianMixture,
    Guide,
    LowRank,
    Structured,
    StudentT,
)

D, F64 = 3, torch.float64
BLOCKS = ((0, 1), (1, 3))


@dataclass(frozen=True)
class LaplaceMeanField:
    """A guide as a user writes one: independent Laplace distributions, and no option more."""

    def init(self, target: Any, generator: torch.Generator) -> dict[str, Tensor]:
        loc = target.starts(1, generator)[0]
        return {"loc": loc, "log_scale": torch.zeros_like(loc)}

    def base_dim(self, dim: int) -> int:
        return dim

    def transform(self, params: dict[str, Tensor], eps: Tensor) -> tuple[Tensor, Tensor]:
        tail = torch.special.ndtr(-eps.abs()).log() + math.log(2)  # log of a uniform
        scale = params["log_scale"].exp()[..., None, :]
        z = params["loc"][..., None, :] - scale * eps.sign() * tail
        return z, self.log_prob(params, z)

    def log_prob(self, params: dict[str, Tensor], z: Tensor) -> Tensor:
        log_scale = params["log_scale"][..., None, :]
        u = (z - params["loc"][..., None, :]) / log_scale.exp()
        return (-u.abs() - log_scale - math.log(2)).sum(dim=-1)


def network(num_outputs: int) -> nn.Module:
    stream = torch.Generator().manual_seed(1)
    module = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, num_outputs)).double()
    for p in module.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=stream, dtype=F64)
    return module


ROWS = torch.tensor([[0.3, -1.0], [0.5, 2.0]], dtype=F64)
SETTINGS = {
    "structured": (BLOCKS, (0,)),
    "flow": (2, (8,), 4),
    "defensive_mixture": (2,),
}
CASES: dict[str, Any] = {
    **{name: family(*SETTINGS.get(name, ())) for name, family in GUIDES.items()},
    "low rank of one": LowRank(1),
    "blocks without a global one": Structured(BLOCKS),
    "blocks of one size": Structured(((0, 1), (1, 2), (2, 3)), (1,)),
    "a diagonal block": Structured(BLOCKS, (0,), (1,)),
    "one global block": Structured(((0, 3),), (0,)),
    "weighted mixture": GaussianMixture(3, weighted=True),
    "mixture of three": GaussianMixture(3),
    "light t": StudentT(14),
    "light defensive mixture": DefensiveMixture(2, 40),
    "affine flow": Flow(2, (8,), bins=None),
    "autoregressive flow": Flow(2, (8,), bins=4, autoregressive=True),
    "diagonal flow": Flow(2, (8,), bins=4, full_rank=False),
    "amortised": Amortised(network(2), ROWS, 1, start=1),
    "amortised full rank": Amortised(network(2), ROWS[:1], 1, family=FullRank()),
    "amortised low rank": Amortised(network(9), ROWS[:1], 3, family=LowRank(1)),
    "written by a user": LaplaceMeanField(),
}
WITH_DENSITY = [n for n, guide in CASES.items() if getattr(guide, "has_density", True)]
# mean and covariance of a Gaussian are kept
MATCHING = ["full_rank", "low_rank", "flow", "gaussian_mixture", "student_t", "mixture of three"]
MATCHING += ["weighted mixture", "one global block", "light t", "affine flow", "defensive_mixture"]
# the Gaussian is a member
CONTAINING = ["full_rank", "low_rank", "one global block", "flow", "affine flow"]
CONTAINING += ["autoregressive flow"]
# the member of least KL(q‖p) is found
NEAREST = ["mean_field", "structured", "blocks without a global one", "blocks of one size"]
NEAREST += ["a diagonal block", "one global block", "full_rank", "low_rank"]


# squares of a t with few degrees of freedom have no third moment: lighter ones stand for them
HEAVY = ["student_t", "defensive_mixture"]
TRIANGULAR = ["full_rank", "student_t", "gaussian_mixture", "weighted mixture", "flow"]
TRIANGULAR += ["defensive_mixture"]


def with_(attribute: str) -> list[str]:
    return [name for name in CASES if hasattr(CASES[name], attribute)]


@lru_cache(maxsize=2)
def target(dim: int = D) -> pc.Target:
    return pc.Target.from_log_density(lambda x: -0.5 * x.square().sum(), dim)


def params_of(name: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Random parameters of a guide in D dimensions; components of a mixture overlap."""
    out = {}
    for k, v in CASES[name].init(target(), generator).items():
        noise = torch.randn(v.shape, generator=generator, dtype=F64)
        if "scale_tril" in k or k == "global_tril":
            diagonal = 1 + 0.1 * noise.diagonal(dim1=-2, dim2=-1)
            out[k] = 0.3 * noise.tril(-1) + torch.diag_embed(diagonal)
        else:
            start = 0.5 * v if k == "loc" else v
            out[k] = start + (0.1 if k.startswith("flow") else 0.3) * noise
    return out


def base_draws(name: str, n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, CASES[name].base_dim(D), generator=generator, dtype=F64)


def gaussian(generator: torch.Generator, *batch: int) -> tuple[Tensor, Tensor]:
    loc, L = (torch.randn(*batch, *s, generator=generator, dtype=F64) for s in ((D,), (D, D)))
    return loc, L.tril(-1) + torch.diag_embed(0.5 + L.diagonal(dim1=-2, dim2=-1).abs())


@pytest.mark.parametrize("name", CASES)
def test_it_has_the_protocol(name: str):
    assert isinstance(CASES[name], Guide)


@pytest.mark.parametrize("name", CASES)
def test_transform_and_log_prob_agree(name: str, generator: torch.Generator):
    guide, params = CASES[name], params_of(name, generator)
    z, log_q = guide.transform(params, base_draws(name, 12, generator))
    assert z.shape == (12, D)
    torch.testing.assert_close(log_q, guide.log_prob(params, z))


@pytest.mark.parametrize("name", WITH_DENSITY)
def test_density_integrates_to_one(name: str, generator: torch.Generator):
    """E_r[q/r] = 1 for a wide Student t r, by its own draws."""
    guide, params = CASES[name], params_of(name, generator)
    own = guide.transform(params, base_draws(name, 3_000, generator))[0]
    wide = StudentT(4)
    L = 1.3 * torch.linalg.cholesky(torch.cov(own.mT))
    r = {"loc": own.mean(dim=0), "scale_tril": L}
    z, log_r = wide.transform(r, torch.randn(60_000, D + 2, generator=generator, dtype=F64))
    assert_mean_is((guide.log_prob(params, z) - log_r).exp(), 1.0, bias=0.04)


@pytest.mark.parametrize("name", WITH_DENSITY)
def test_draws_follow_the_density(name: str, generator: torch.Generator):
    """E_q[r/q] = 1 for r uniform over a box that holds a seventh of the draws."""
    guide, params = CASES[name], params_of(name, generator)
    pilot, density = guide.transform(params, base_draws(name, 3_000, generator))
    centre, scale = pilot[density.argmax()], pilot.std(dim=0)
    size = ((pilot - centre).abs() / scale).amax(dim=1).quantile(1 / 7)
    z, log_q = guide.transform(params, base_draws(name, 120_000, generator))
    inside = ((z - centre).abs() < size * scale).all(dim=1)
    box = (2 * size * scale).prod()
    assert_mean_is(inside / (log_q.exp() * box), 1.0, bias=0.04)


@pytest.mark.parametrize("name", with_("entropy"))
def test_entropy_is_minus_the_mean_log_density(name: str, generator: torch.Generator):
    guide, params = CASES[name], params_of(name, generator)
    _, log_q = guide.transform(params, base_draws(name, 60_000, generator))
    exact = float(guide.entropy(params))
    if name == "delta":
        assert exact == 0
        assert not log_q.any()
    else:
        assert_mean_is(-log_q, exact, bias=0.04)


@pytest.mark.parametrize("name", [n for n in with_("moments") if n not in HEAVY])
def test_moments_are_those_of_draws(name: str, generator: torch.Generator):
    guide, params = CASES[name], params_of(name, generator)
    z, _ = guide.transform(params, base_draws(name, 240_000, generator))
    mean, covariance = guide.moments(params)
    if name == "delta":
        assert torch.equal(z, mean.expand_as(z))
        assert not covariance.any()
        return
    assert_mean_is(z, mean, bias=0.02)
    centred = z - mean
    assert_mean_is(centred[:, :, None] * centred[:, None, :], covariance, bias=0.02)


@pytest.mark.parametrize("name", CASES)
def test_parameters_with_leading_axes_are_independent_fits(name: str, generator: torch.Generator):
    guide = CASES[name]
    several = [params_of(name, generator) for _ in range(4)]
    stacked = {k: torch.stack([p[k] for p in several]).unflatten(0, (2, 2)) for k in several[0]}
    eps = base_draws(name, 24, generator).view(4, 6, -1)
    z, log_q = guide.transform(stacked, eps.view(2, 2, 6, -1))
    for i, params in enumerate(several):
        expected_z, expected_log_q = guide.transform(params, eps[i])
        torch.testing.assert_close(z[i // 2, i % 2], expected_z)
        torch.testing.assert_close(log_q[i // 2, i % 2], expected_log_q)
        for option in {"entropy", "moments"} & set(dir(guide)):
            got, want = getattr(guide, option)(stacked), getattr(guide, option)(params)
            pairs = zip(got, want, strict=True) if option == "moments" else [(got, want)]
            for g, w in pairs:
                torch.testing.assert_close(g[i // 2, i % 2], w)
    torch.testing.assert_close(guide.log_prob(stacked, z), log_q)


@pytest.mark.parametrize("name", CASES)
def test_one_fit_serves_several_sets_of_draws(name: str, generator: torch.Generator):
    guide, params = CASES[name], params_of(name, generator)
    eps = base_draws(name, 24, generator).view(4, 6, -1)
    z, log_q = guide.transform(params, eps)
    assert z.shape == (4, 6, D)
    torch.testing.assert_close(guide.log_prob(params, z), log_q)
    for i in range(4):
        for got, want in zip((z[i], log_q[i]), guide.transform(params, eps[i]), strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", CASES)
def test_it_works_under_vmap_and_grad(name: str, generator: torch.Generator):
    guide = CASES[name]
    several = [params_of(name, generator) for _ in range(2)]
    stacked = {k: torch.stack([p[k] for p in several]) for k in several[0]}
    eps = base_draws(name, 12, generator).view(2, 6, -1)
    mapped = vmap(guide.transform)(stacked, eps)
    for got, want in zip(mapped, guide.transform(stacked, eps), strict=True):
        torch.testing.assert_close(got, want)
    params = several[0]
    z = torch.randn(5, D, generator=generator, dtype=F64)
    rows = vmap(lambda row: guide.log_prob(params, row[None])[0])(z)
    torch.testing.assert_close(rows, guide.log_prob(params, z))


def functionals(name: str, z: Tensor, eps: Tensor) -> dict[str, Any]:
    """Smooth functions of the parameters that use everything a guide computes."""
    guide = CASES[name]

    def of_draws(params: dict[str, Tensor]) -> Tensor:
        x, log_q = guide.transform(params, eps)
        return (x.sin().sum(dim=-1) + 0.3 * log_q).mean()

    found = {"transform": of_draws}
    if getattr(guide, "has_density", True):
        found["log_prob"] = lambda params: guide.log_prob(params, z).mean()
    if hasattr(guide, "entropy"):
        found["entropy"] = guide.entropy
    if hasattr(guide, "moments"):
        found["moments"] = lambda params: sum(m.sin().sum() for m in guide.moments(params))
    return found


@pytest.mark.parametrize("name", CASES)
def test_gradients_agree_with_finite_differences(name: str, generator: torch.Generator):
    """Along a random direction, by central differences."""
    params = params_of(name, generator)
    z = torch.randn(5, D, generator=generator, dtype=F64)
    h = 1e-5
    for which, fn in functionals(name, z, base_draws(name, 6, generator)).items():
        # draws of a mixture have no derivative in its weights, by its own words
        way = {
            k: torch.zeros_like(v)
            if k == "logits" and which == "transform"
            else torch.randn(v.shape, generator=generator, dtype=F64)
            for k, v in params.items()
        }
        at = lambda step, way=way, fn=fn: fn({k: v + step * way[k] for k, v in params.items()})
        slope = sum((g * way[k]).sum() for k, g in grad(fn)(params).items())
        numeric = (8 * (at(h) - at(-h)) - at(2 * h) + at(-2 * h)) / (12 * h)
        torch.testing.assert_close(slope, numeric, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_single_precision_stays_single(name: str, generator: torch.Generator):
    """Up to its rounding, to which a spline's inverse adds."""
    guide, params = CASES[name], params_of(name, generator)
    eps = base_draws(name, 12, generator)
    z, log_q = guide.transform(params, eps)
    single = {k: v.float() for k, v in params.items()}
    z32, log_q32 = guide.transform(single, eps.float())
    assert (z32.dtype, log_q32.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(z32.double(), z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_q32.double(), log_q, rtol=1e-4, atol=1e-4)
    again = guide.log_prob(single, z32)
    assert again.dtype == torch.float32
    torch.testing.assert_close(again.double(), log_q, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", TRIANGULAR)
def test_entries_above_a_diagonal_do_not_count(name: str, generator: torch.Generator):
    """A solver moves all entries of a triangle."""
    guide, params = CASES[name], params_of(name, generator)
    filled = {
        k: v + torch.ones_like(v).triu(1) if k == "scale_tril" else v for k, v in params.items()
    }
    eps, z = base_draws(name, 6, generator), torch.randn(4, D, generator=generator, dtype=F64)
    pairs = zip(guide.transform(filled, eps), guide.transform(params, eps), strict=True)
    assert all(torch.equal(got, want) for got, want in pairs)
    assert torch.equal(guide.log_prob(filled, z), guide.log_prob(params, z))
    if hasattr(guide, "moments"):
        assert torch.equal(guide.moments(filled)[1], guide.moments(params)[1])


@pytest.mark.parametrize("name", with_("from_gaussian"))
def test_from_gaussian_gives_the_parameters_of_init(name: str, generator: torch.Generator):
    """Same names and shapes, leading axes kept, each fit on its own."""
    guide = CASES[name]
    start = guide.init(target(), generator)
    loc, L = gaussian(generator, 2)
    params = guide.from_gaussian(loc, L)
    assert {k: (2, *v.shape) for k, v in start.items()} == {k: v.shape for k, v in params.items()}
    for i in range(2):
        for k, v in guide.from_gaussian(loc[i], L[i]).items():
            torch.testing.assert_close(params[k][i], v)
    torch.testing.assert_close(guide.moments(params)[0] if hasattr(guide, "moments") else loc, loc)


@pytest.mark.parametrize("name", [n for n in MATCHING if hasattr(CASES[n], "moments")])
def test_from_gaussian_keeps_its_moments(name: str, generator: torch.Generator):
    loc, L = gaussian(generator)
    mean, covariance = CASES[name].moments(CASES[name].from_gaussian(loc, L))
    torch.testing.assert_close(mean, loc)
    torch.testing.assert_close(covariance, L @ L.mT)


@pytest.mark.parametrize("name", CONTAINING)
def test_from_gaussian_is_that_gaussian(name: str, generator: torch.Generator):
    loc, L = gaussian(generator)
    z = 2 * torch.randn(9, D, generator=generator, dtype=F64)
    exact = torch.distributions.MultivariateNormal(loc, scale_tril=L).log_prob(z)
    params = CASES[name].from_gaussian(loc, L)
    torch.testing.assert_close(CASES[name].log_prob(params, z), exact)


@pytest.mark.parametrize("name", NEAREST)
def test_from_gaussian_minimises_the_divergence(name: str, generator: torch.Generator):
    """KL(q‖p) = −H(q) + ½ tr(P Σ_q) + ½ |L⁻¹(m_q − m)|² + const has no slope, and curves up."""
    guide = CASES[name]
    loc, L = gaussian(generator)
    P = torch.cholesky_inverse(L)

    def divergence(params: dict[str, Tensor]) -> Tensor:
        mean, covariance = guide.moments(params)
        away = mean - loc
        return 0.5 * (P * covariance).sum() + 0.5 * away @ P @ away - guide.entropy(params)

    best = guide.from_gaussian(loc, L)
    for k, slope in grad(divergence)(best).items():
        wanted = slope.tril() if "tril" in k else slope
        torch.testing.assert_close(wanted, torch.zeros_like(slope), rtol=0, atol=1e-9)
    for _ in range(20):
        noise = {
            k: 0.2 * torch.randn(v.shape, generator=generator, dtype=F64) for k, v in best.items()
        }
        assert divergence({k: v + noise[k] for k, v in best.items()}) > divergence(best)


def test_student_t_is_that_of_scipy():
    """One dimension, scaled to unit variance."""
    from scipy.stats import t

    for dof in (4, 6, 10):
        params = {"loc": torch.zeros(1, dtype=F64), "scale_tril": torch.eye(1, dtype=F64)}
        x = torch.linspace(-8, 8, 9, dtype=F64)
        expected = t.logpdf(x.numpy(), dof, scale=math.sqrt((dof - 2) / dof))
        got = StudentT(dof).log_prob(params, x[:, None])
        torch.testing.assert_close(got, torch.from_numpy(expected))


def test_a_point_has_no_density_elsewhere():
    params = {"loc": torch.tensor([1.0, 2.0], dtype=F64)}
    z = torch.tensor([[1.0, 2.0], [1.0, 2.5]], dtype=F64)
    assert Delta().log_prob(params, z).tolist() == [0.0, -math.inf]


# settings -> what the message says
REFUSED = {
    "must be even and at least 4, got 5": lambda: StudentT(5),
    "at least 1, got 0; without a factor": lambda: LowRank(0),
    "num_components=...\\)` must be >= 1, got 0": lambda: GaussianMixture(0),
    "num_layers=...\\)` must be at least 1, got 0": lambda: Flow(0),
    "bins=...\\)` must be at least 2, got 1": lambda: Flow(bins=1),
    "at least one positive width": lambda: Flow(hidden=()),
    "without gap or overlap": lambda: Structured(((0, 2), (3, 4))),
    "must be positions in the 2 blocks": lambda: Structured(BLOCKS, (2,)),
    "the blocks cover 3 coordinates, the target has 4": lambda: Structured(BLOCKS).init(
        target(4), torch.Generator()
    ),
    "multiple of the 2 components, got 3": lambda: GaussianMixture(2).transform(
        {"loc": torch.zeros(2, D), "scale_tril": torch.eye(D).expand(2, D, D)}, torch.zeros(3, D)
    ),
    "equal weights stay equal": lambda: GaussianMixture(2).reweighted(
        {}, torch.zeros(3, D), torch.zeros(3)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_settings_are_refused(message: str):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
