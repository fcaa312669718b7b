"""Discrete latents: draws, the bound by every route, and models that are trained with them."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import assert_mean_is, assert_within, draws_to_see
from scipy.integrate import quad
from sklearn.datasets import load_digits
from torch import Tensor

import probcalc as pc
from probcalc.integration.gradient_estimators import NoBaseline
from probcalc.models.vae.chain import Chain
from probcalc.models.vae.latents import BernoulliLatents, Bits, CategoricalLatents, Classes
from probcalc.models.vae.model import VAE
from probcalc.models.vae.networks import Perceptron
from probcalc.models.vae.priors import LearnedNormal

F64 = {"dtype": torch.float64}
SMALL = Perceptron((6,))
QUICK = {"max_steps": 20, "batch_size": 32}


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


X = (torch.rand(120, 10, generator=seed(7)) < 0.5).double()
X[:, 5:] = X[:, :5]  # five bits, twice


def small(latents: Any, dim: int = 2, **settings: Any) -> VAE:
    return VAE(dim, encoder=SMALL, decoder=SMALL, latents=latents, **settings)


def built(latents: Any, dim: int = 2) -> Chain:
    """An untrained chain in double precision, its decoder steep enough for latents to matter."""
    chain = small(latents, dim, num_draws=2)._built(X, 0, seed=3).double()
    with torch.no_grad():
        for p in chain.parameters():
            p.mul_(2)
    return chain


LAWS = {
    "bits": (Bits(torch.tensor([-1.0, 0.3, 2.0], **F64)), 3),
    "classes": (
        Classes(torch.tensor([[0.1, -1.0, 0.5], [2.0, 0.0, 0.0]], **F64).log_softmax(1)),
        6,
    ),
}


@pytest.mark.parametrize(("q", "size"), LAWS.values(), ids=LAWS)
def test_draws_have_their_probabilities(q: Any, size: int):
    """And relaxed ones of a low temperature are the draws."""
    n = draws_to_see(0.02, tests=size)
    eps = torch.randn(n, size, generator=seed(), **F64)
    z = q.draw(eps)
    assert_mean_is(z, q.mean.flatten(), bias=0.02)
    soft = q.relaxed(eps, torch.tensor(1e-3, **F64))
    assert float((soft - z).abs().mean()) < 2e-3
    assert bool(((soft >= 0) & (soft <= 1)).all())


VALUES = {"bits": (BernoulliLatents(), 3), "classes": (CategoricalLatents(3), 2)}


@pytest.mark.parametrize(("latents", "dim"), VALUES.values(), ids=VALUES)
def test_probabilities_of_all_values_add_to_one(latents: Any, dim: int):
    size = latents.size * dim
    z = latents.values(torch.zeros(1, size, **F64))
    assert len(z) == latents.radix**dim == len({tuple(row) for row in z.tolist()})
    q = latents.q(torch.randn(size, generator=seed(), **F64))
    log_q = q.log_prob(z)
    assert float(log_q.exp().sum()) == pytest.approx(1.0)
    p = latents.q(torch.randn(size, generator=seed(1), **F64))
    kl = (log_q.exp() * (log_q - p.log_prob(z))).sum()
    assert float(q.kl(p)) == pytest.approx(float(kl))


ONES: dict[str, Callable[..., Any]] = {
    "bits": BernoulliLatents,
    "classes": lambda gradient: CategoricalLatents(3, gradient),
}


def brute_force(chain: Chain, x: Tensor) -> Tensor:
    """Σ q (ln p(x, z) − ln q) row by row and value by value, of two latents of k values."""
    logits = chain.evidence(x, (10,), None)["level0"]
    if isinstance(chain.latents, BernoulliLatents):
        code = {0: [0.0], 1: [1.0]}
        probs = [[(1 - p, p) for p in row] for row in logits.sigmoid()]
    else:
        code = {i: [float(i == j) for j in range(3)] for i in range(3)}
        probs = [list(row.reshape(2, 3).softmax(dim=1)) for row in logits]
    bounds = []
    for row, each in zip(x, probs, strict=True):
        total = 0.0
        for a, b in itertools.product(code, repeat=2):
            z = torch.tensor([*code[a], *code[b]], **F64)
            mass = each[0][a] * each[1][b]
            logit = chain.decoder(z[None]).flatten()
            likelihood = torch.distributions.Bernoulli(logits=logit).log_prob(row).sum()
            total = total + mass * (likelihood - 2 * math.log(len(code)) - mass.log())
        bounds.append(total)
    return torch.stack(bounds)


def slopes(chain: Chain, x: Tensor, eps: Tensor) -> Tensor:
    """The gradient of the mean bound in all parameters."""
    bound = chain.bound(x, chain.evidence(x, (10,), None), eps, None)
    wanted = [p for p in chain.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(bound.elbo.mean(), wanted)])


@pytest.mark.parametrize("kind", ONES)
def test_summed_bound_is_brute_force(kind: str):
    """Values and gradients."""
    chain, x = built(ONES[kind](pc.Enumerate())).train(), X[:4]
    bound = chain.bound(
        x, chain.evidence(x, (10,), None), torch.zeros(4, 1, chain.dims[0], **F64), None
    )
    exact = brute_force(chain, x)
    torch.testing.assert_close(bound.elbo[:, 0], exact)
    wanted = [p for p in chain.parameters() if p.requires_grad]
    direct = torch.cat([g.flatten() for g in torch.autograd.grad(exact.mean(), wanted)])
    torch.testing.assert_close(slopes(chain, x, torch.zeros(4, 1, chain.dims[0], **F64)), direct)


@pytest.mark.parametrize("baseline", [None, NoBaseline()], ids=["others", "none"])
@pytest.mark.parametrize("kind", ONES)
def test_score_function_has_the_gradient_of_the_sum(kind: str, baseline: Any):
    """Of encoder and decoder, along random directions; means of 128 draws are little skewed."""
    exact_chain, chain = (
        built(ONES[kind](way)).train() for way in (pc.Enumerate(), pc.ScoreFunction(baseline))
    )
    x, b = X[:4], chain.dims[0]
    exact = slopes(exact_chain, x, torch.zeros(4, 1, b, **F64))
    ways = torch.randn(len(exact), 3, generator=seed(1), **F64) / math.sqrt(len(exact))
    stream, n = seed(2), draws_to_see(0.35, tests=3)
    found = torch.stack(
        [slopes(chain, x, torch.randn(4, 128, b, generator=stream, **F64)) for _ in range(n)]
    )
    assert_mean_is(found @ ways, exact @ ways, bias=0.35)


def test_the_baseline_of_the_others_quietens():
    spread = {}
    for name, baseline in (("others", None), ("none", NoBaseline())):
        chain, stream = built(BernoulliLatents(pc.ScoreFunction(baseline))).train(), seed()
        eps = [torch.randn(4, 8, 2, generator=stream, **F64) for _ in range(60)]
        spread[name] = torch.stack([slopes(chain, X[:4], e) for e in eps]).var(dim=0).sum()
    assert float(spread["others"]) < 0.5 * float(spread["none"])


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_relaxed_draws_have_the_gradient_of_their_own_target(temperature: float):
    """Of one bit: ∫ f(σ((l + logit u)/t)) du by quadrature, which is not that of the bit."""
    f = lambda z: (2.0 * z - 0.4).sin() + z**3  # noqa: E731

    def target(logit: float) -> float:
        at = lambda u: (logit + math.log(u / (1 - u))) / temperature  # noqa: E731
        value = lambda u: float(f(torch.tensor(at(u), **F64).sigmoid()))  # noqa: E731
        return quad(value, 0, 1, limit=200, epsabs=1e-11)[0]

    h, place = 1e-4, 0.7
    exact = (target(place + h) - target(place - h)) / (2 * h)
    n = draws_to_see(0.02)
    logits = torch.full((n, 1, 1), place, **F64).requires_grad_()
    eps = torch.randn(n, 1, 1, generator=seed(), **F64)
    latents = BernoulliLatents(pc.RelaxedDraws(temperature))
    terms = latents.reconstruction(
        lambda z: f(z[..., 0]), Bits(logits), eps, torch.tensor(temperature, **F64)
    )
    (each,) = torch.autograd.grad(terms.sum(), logits)
    assert_mean_is(each.reshape(n, 1), exact, bias=0.02)
    p = torch.tensor(place, **F64).sigmoid()
    bit = float(p * (1 - p) * (f(torch.ones(())) - f(torch.zeros(()))))
    assert abs(exact - bit) > 1e-3


MODELS: dict[str, VAE] = {
    "bits, summed": small(BernoulliLatents(), 4),
    "bits, score": small(BernoulliLatents(pc.ScoreFunction()), 10, num_draws=4),
    "bits, relaxed": small(BernoulliLatents(pc.RelaxedDraws(0.5)), 10),
    "bits, many": small(BernoulliLatents(), 12),
    "classes, summed": small(CategoricalLatents(3), 3),
    "classes, score": small(CategoricalLatents(4, pc.ScoreFunction()), 6, num_draws=4),
    "classes, relaxed": small(CategoricalLatents(4, pc.RelaxedDraws(1.0)), 6),
    "learned prior": small(CategoricalLatents(4, learned_prior=True), 3),
    "VIMCO": small(BernoulliLatents(), 10, objective=pc.VIMCO(5), num_draws=5),
    "score of the ELBO": small(
        BernoulliLatents(), 6, objective=pc.ELBO(pc.ScoreFunction()), num_draws=4
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_and_answers(name: str, tmp_path: Path):
    model, x = MODELS[name], X.float()
    before = model.fit(x, max_steps=1, batch_size=40, generator=seed())
    fit = model.fit(x, max_steps=300, batch_size=40, optimizer=pc.Adam(1e-2), generator=seed())
    last, first = (f.elbo(x, generator=seed()) for f in (fit, before))
    assert float(last.value - first.value) > float(last.error + first.error)
    d, k = model.latent_dim, model.latents.size
    assert fit.encode(x).mean.shape == ((120, d) if k == 1 else (120, d, k))
    assert fit.reconstruct(x).shape == x.shape
    drawn = fit.sample(7, generator=seed())
    model.likelihood.check(drawn)
    found = fit.diagnose(x, generator=seed())
    assert len(found.unit_kl) == len(found.unit_variance) == d
    assert found.information < float(found.rate.sum()) + 0.3
    assert float(found.unit_kl.sum()) == pytest.approx(float(found.rate.sum()), rel=1e-4)
    fit.save(tmp_path)
    back = model.load(tmp_path)
    assert torch.equal(back.sample(7, generator=seed()), drawn)


@pytest.mark.parametrize("name", ["bits, summed", "classes, summed", "learned prior"])
def test_importance_weights_find_the_exact_evidence(name: str):
    fit = MODELS[name].fit(X, max_steps=200, batch_size=40, generator=seed())
    chain, x = fit.chain, X
    z = chain.latents.values(torch.zeros(1, chain.dims[0], **F64)).expand(len(x), -1, -1)
    exact = (chain.log_prior(z) + chain.reconstruction(z, x, None)).logsumexp(dim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pc.EstimateWarning)
        found = fit.log_likelihood(x, num_importance=2_000, generator=seed())
    assert_within(found, exact.mean())
    elbo = fit.elbo(x, generator=seed())
    assert float(elbo.value) < float(exact.mean()) + float(elbo.error)


def test_the_temperature_follows_its_schedule():
    falling = lambda step: max(0.5, 1.0 - 0.01 * step)  # noqa: E731
    own = small(BernoulliLatents(pc.RelaxedDraws(falling)), 4)
    given = small(BernoulliLatents(pc.RelaxedDraws(0.9)), 4)
    a = own.fit(X, **QUICK, generator=seed())
    b = given.fit(X, **QUICK, schedules={"temperature": falling}, generator=seed())
    assert float(a.chain.temperature) == pytest.approx(falling(19))
    assert torch.equal(a.chain.decoder[0].weight, b.chain.decoder[0].weight)
    c = given.fit(X, **QUICK, generator=seed())
    assert float(c.chain.temperature) == pytest.approx(0.9)
    with pytest.raises(ValueError, match="function of the step"):
        pc.discrete_elbo(
            lambda z: z["b"],
            lambda p: {"b": torch.distributions.Bernoulli(logits=p["l"])},
            {"l": torch.zeros(())},
            gradient=pc.RelaxedDraws(falling),
        )


WAYS = {
    "sum over 64 values": (BernoulliLatents(), 6, 1),
    "score function": (BernoulliLatents(pc.ScoreFunction()), 16, 4),
    "relaxed draws": (BernoulliLatents(pc.RelaxedDraws(0.5)), 16, 1),
}


@pytest.mark.parametrize(("latents", "dim", "num_draws"), WAYS.values(), ids=WAYS)
def test_bits_are_trained_on_digits(latents: Any, dim: int, num_draws: int):
    """Binarised digits, of which independent pixels cost 25.1 nats a picture."""
    x = (torch.tensor(load_digits().images) > 7).float()
    test = x[::5]
    train = x[torch.arange(len(x)) % 5 > 0]
    model = VAE(dim, latents=latents, num_draws=num_draws)
    fit = model.fit(train, max_epochs=40, optimizer=pc.Adam(3e-3), generator=seed())
    assert float(fit.elbo(test, num_draws=8, generator=seed()).value) > -22.5
    assert fit.diagnose(test, num_draws=4, generator=seed()).active_units >= 5


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "several levels": (lambda: VAE((3, 2), latents=BernoulliLatents()), ValueError, "one level"),
    "another prior": (
        lambda: VAE(3, latents=BernoulliLatents(), prior=LearnedNormal()),
        ValueError,
        "prior of their own",
    ),
    "derivatives of draws": (
        lambda: VAE(3, latents=BernoulliLatents(), objective=pc.ImportanceWeighted(3)),
        ValueError,
        "VIMCO",
    ),
    "two gradients": (
        lambda: VAE(3, latents=BernoulliLatents(pc.Enumerate()), objective=pc.VIMCO(3)),
        ValueError,
        "leave that of `latents` out",
    ),
    "too many values": (
        lambda: VAE(20, latents=BernoulliLatents(pc.Enumerate())),
        ValueError,
        "1,048,576 values",
    ),
    "no other draw": (
        lambda: VAE(3, latents=BernoulliLatents(pc.ScoreFunction())),
        ValueError,
        "num_draws",
    ),
    "no choice": (lambda: CategoricalLatents(1), ValueError, "at least 2"),
    "no gradient": (lambda: BernoulliLatents(pc.Pathwise()), TypeError, "RelaxedDraws"),
    "frozen": (lambda: pc.RelaxedDraws(0.0), ValueError, "temperature"),
}


@pytest.mark.parametrize(("call", "kind", "words"), BAD.values(), ids=BAD)
def test_mistakes_are_named(call: Callable[[], Any], kind: type[Exception], words: str):
    with pytest.raises(kind, match=words):
        call()
