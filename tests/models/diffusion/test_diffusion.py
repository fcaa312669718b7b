"""Laws of the diffusion model, against closed forms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import assert_mean_is
from torch import Tensor, nn

import probcalc as pc
from probcalc.models.diffusion import (
    Ancestral,
    Data,
    Deterministic,
    Diffusion,
    Epsilon,
    LearnedSchedule,
    LevelLogits,
    Levels,
    LinearSchedule,
    Midpoint,
    Real,
    ResidualPerceptron,
    Velocity,
)
from probcalc.models.diffusion.chain import DiffusionChain, step_back
from probcalc.models.diffusion.sampling import Step
from probcalc.models.diffusion.schedules import low_discrepancy, signal_and_noise

F64 = {"dtype": torch.float64}
LINE = LinearSchedule(-4.5, 5.0)
SMALL = ResidualPerceptron(16, 1)


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


class Known(nn.Module):
    """A denoiser in closed form, in the place of a network: its one number is x̂."""

    def __init__(self, mean: Any) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, z: Tensor, gamma: Tensor, condition: Tensor | None) -> Tensor:
        return self.mean(z, gamma)[:, None]


def known(mean: Any, kind: Any, schedule: Any = LINE, pixels: int = 1) -> DiffusionChain:
    gamma = schedule.build().double()
    chain = DiffusionChain(Known(mean), gamma, Data(), kind, torch.zeros(1, pixels, **F64))
    chain.bias.requires_grad_(False)
    return chain.double()


def sign(z: Tensor, gamma: Tensor) -> Tensor:
    """E[x|z] for x = ±1, alike: tanh(α z/σ²)."""
    alpha, sigma = (s[:, None] for s in signal_and_noise(gamma))
    return torch.tanh(alpha * z / sigma.square())


def normal(z: Tensor, gamma: Tensor, variance: float = 0.5) -> Tensor:
    """E[x|z] for x ~ N(0, variance)."""
    alpha, sigma = (s[:, None] for s in signal_and_noise(gamma))
    return variance * alpha * z / (variance * alpha.square() + sigma.square())


def mean_bound(chain: DiffusionChain, rows: Tensor, num_steps: int | None = None) -> Tensor:
    """Minus the bound, one independent draw a row."""
    x = chain.kind.encoded(rows)
    t = torch.rand(len(x), generator=seed(1), **F64)
    eps, noise = torch.randn(2, *x.shape, generator=seed(2), **F64)
    prior, reconstruction = chain.ends(rows, x, noise)
    return (chain.diffusion(x, t, eps, None, num_steps) + prior - reconstruction).detach()


def moments(chain: DiffusionChain, num_times: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of ‖ε − ε̂‖² and of its square at x = 1 by time, and γ′, by sums over a fine grid."""
    t = (torch.arange(num_times, **F64) + 0.5) / num_times
    gamma, slope = (part.detach() for part in chain.gamma(t))
    eps = torch.linspace(-9, 9, 2_001, **F64)
    density = torch.distributions.Normal(0 * eps, 0 * eps + 1).log_prob(eps).exp()
    weight = density / density.sum()
    at = gamma[:, None].expand(-1, len(eps)).reshape(-1)
    noise = eps.repeat(num_times)[:, None]
    error = chain.error(torch.ones_like(noise), at, noise, None).detach().reshape(num_times, -1)
    return error @ weight, error.square() @ weight, slope


def integral(chain: DiffusionChain) -> float:
    """The diffusion term of the bound: the integral of γ′ E‖ε − ε̂‖²/2 over time."""
    error, _, slope = moments(chain)
    return float((0.5 * slope * error).mean())


def scatter(chain: DiffusionChain) -> float:
    """Second moment of one draw of it."""
    _, square, slope = moments(chain)
    return float((0.25 * slope.square() * square).mean())


def test_perfect_denoiser_reaches_the_entropy():
    """Half the integral of the mean square error over SNR is ln 2 for one fair bit.

    Guo, Shamai & Verdú (2005), Mutual information and minimum mean-square error.
    """
    chain = known(sign, Levels(2), LinearSchedule(-6.0, 12.0))
    assert integral(chain) == pytest.approx(math.log(2), abs=1e-5)


def test_perfect_denoiser_of_normal_data_reaches_their_entropy():
    """Of N(0, ½) the bound is the entropy, but for the width of p(x|z_0)."""
    x = math.sqrt(0.5) * torch.randn(400_000, 1, generator=seed(), **F64)
    terms = mean_bound(known(normal, Real()), x)
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.5)
    assert_mean_is(terms[:, None], entropy, bias=0.02)


def test_bounds_of_more_steps_are_tighter_down_to_continuous_time():
    rows = torch.randint(2, (400_000, 1), generator=seed()).double()
    chain = known(sign, Levels(2))
    means = [float(mean_bound(chain, rows, steps).mean()) for steps in (2, 4, 16, 256, None)]
    assert means == sorted(means, reverse=True)
    assert means[-2] == pytest.approx(means[-1], abs=0.03)
    assert means[0] > means[-1] + 0.5


def bent(strength: float) -> Any:
    schedule = LearnedSchedule(-4.5, 5.0, 4)

    class Bent:
        def build(self) -> nn.Module:
            module = schedule.build()
            with torch.no_grad():
                module.shape.height.fill_(strength)
                module.shape.place.copy_(torch.linspace(0.2, 0.4, 4))
            return module

    return Bent()


def test_shape_of_the_schedule_moves_the_scatter_and_not_the_mean():
    straight, crooked = (known(sign, Levels(2), schedule) for schedule in (LINE, bent(0.2)))
    assert integral(crooked) == pytest.approx(integral(straight), rel=1e-4)
    assert scatter(crooked) > 1.2 * scatter(straight)


def test_schedules_follow_the_gradient_of_squared_terms():
    """The parameters of the shape get d/dη of the mean of squares; the end points have none."""
    chain = known(sign, Levels(2), LearnedSchedule(-4.5, 5.0, 8))
    x = 2 * torch.randint(2, (500, 1), generator=seed()).double() - 1
    eps, t = torch.randn(500, 1, generator=seed(1), **F64), low_discrepancy(500, seed(2), x)
    params = list(chain.gamma.parameters())
    given = torch.autograd.grad(chain.diffusion(x, t, eps, None).mean(), params)
    gamma, slope = chain.gamma(t)
    squares = (0.5 * slope * chain.error(x, gamma, eps, None)).square().mean()
    for got, exact in zip(given, torch.autograd.grad(squares, params), strict=True):
        torch.testing.assert_close(got, exact)


def test_trained_schedule_scatters_less():
    chain = known(sign, Levels(2), LearnedSchedule(-4.5, 5.0, 16))

    def loss(module: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        x = module.kind.encoded(rows)
        eps = torch.randn(x.shape, generator=generator, **F64)
        return module.diffusion(x, low_discrepancy(len(x), generator, x), eps, None).mean()

    before, mean = scatter(chain), integral(chain)
    rows = torch.randint(2, (20_000, 1), generator=seed()).double()
    settings = {"batch_size": 2_000, "max_steps": 400, "optimizer": pc.Adam(0.02)}
    falling = pc.CosineSchedule(400)
    pc.train(loss, chain, rows, generator=seed(), schedule=falling, **settings)
    assert scatter(chain) < 0.9 * before
    assert integral(chain) == pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize("learned", [False, True])
def test_schedules_rise_from_end_to_end(learned: bool):
    schedule = LearnedSchedule(-5.0, 3.0, 8) if learned else LinearSchedule(-5.0, 3.0)
    module = schedule.build().double()
    t = torch.linspace(0, 1, 101, **F64)
    gamma, slope = (part.detach() for part in module(t))
    assert float(gamma[0]) == pytest.approx(-5.0)
    assert float(gamma[-1]) == pytest.approx(3.0)
    assert bool((slope > 0).all())
    numeric = torch.gradient(gamma, spacing=(t,))[0][1:-1]
    torch.testing.assert_close(numeric, slope[1:-1], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("schedule", [LinearSchedule, LearnedSchedule])
def test_ends_in_the_wrong_order_are_refused(schedule: type):
    with pytest.raises(ValueError, match="start < end"):
        schedule(3.0, -3.0)


def test_shared_bound_is_the_formula_of_the_chain():
    """Level by level the KL is ½ (e^{γ_t − γ_s} − 1) ‖ε − ε̂‖² at the draw above it, T = 3."""
    chain = known(sign, Levels(2), LinearSchedule(-4.0, 3.0), pixels=2)
    rows = torch.randint(2, (50, 2), generator=seed()).double()
    x = chain.kind.encoded(rows)
    eps = torch.randn(4, 50, 2, generator=seed(1), **F64)
    bound = chain.hierarchical_bound(rows, x, eps, None)
    gammas = torch.linspace(-4.0, 3.0, 4, **F64)
    z = chain.noised(x, gammas[3].expand(50), eps[3])
    for i in (2, 1, 0):
        earlier, later = gammas[i].expand(50), gammas[i + 1].expand(50)
        alpha, sigma = (s[:, None] for s in signal_and_noise(later))
        true, guessed = ((z - alpha * v) / sigma for v in (x, chain.guess(z, later, None)))
        error = (true - guessed).square().sum(dim=1)
        formula = 0.5 * torch.expm1(later - earlier) * error
        torch.testing.assert_close(bound.kl[i], formula, rtol=1e-9, atol=1e-12)
        z = step_back(z, x, earlier, later).draw(eps[i])
    prior, _ = chain.ends(rows, x, eps[0])
    torch.testing.assert_close(bound.kl[3], prior)
    last = chain.kind.log_prob(rows, z, gammas[0].expand(50))
    torch.testing.assert_close(bound.reconstruction, last)


def test_shared_bound_has_the_mean_of_the_chain_with_drawn_steps():
    chain = known(sign, Levels(2), LinearSchedule(-4.0, 3.0))
    rows = torch.randint(2, (200_000, 1), generator=seed()).double()
    eps = torch.randn(4, *rows.shape, generator=seed(1), **F64)
    whole = -chain.hierarchical_bound(rows, chain.kind.encoded(rows), eps, None).elbo
    drawn = mean_bound(chain, rows, 3)
    spread = math.hypot(float(whole.std()), float(drawn.std())) / math.sqrt(len(rows))
    assert abs(float(whole.mean() - drawn.mean())) < 5.1 * spread


def test_one_step_back_of_the_true_posterior_is_the_forward_process():
    """z_t from x and then z_s from both has the law of z_s from x: mean α_s x, variance σ_s²."""
    n, earlier, later = 200_000, torch.tensor(-1.0, **F64), torch.tensor(2.0, **F64)
    x = torch.full((n, 1), 0.7, **F64)
    eps, noise = torch.randn(2, n, 1, generator=seed(), **F64)
    alpha, sigma = signal_and_noise(later)
    z = step_back(alpha * x + sigma * eps, x, earlier.expand(n), later.expand(n)).draw(noise)
    a, s = signal_and_noise(earlier)
    assert_mean_is(z, a * 0.7, bias=0.02)
    assert_mean_is((z - a * 0.7).square(), s.square(), bias=0.02)


PREDICTIONS = {"noise": Epsilon(), "data": Data(), "velocity": Velocity()}


@pytest.mark.parametrize("name", PREDICTIONS)
def test_predictions_of_the_truth_give_the_data_back(name: str):
    x, eps = torch.randn(2, 30, 4, generator=seed(), **F64)
    gamma = torch.linspace(-6, 6, 30, **F64)
    alpha, sigma = (s[:, None] for s in signal_and_noise(gamma))
    z = alpha * x + sigma * eps
    out = {"noise": eps, "data": x, "velocity": alpha * eps - sigma * x}[name]
    found = PREDICTIONS[name].x(out[:, None], z, gamma, Real())
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)


def test_level_logits_are_the_exact_posterior():
    """With the log shares as logits: against Bayes' rule written out."""
    kind, shares = Levels(5), torch.tensor([0.1, 0.2, 0.4, 0.1, 0.2], **F64)
    z, gamma = torch.randn(20, 1, generator=seed(), **F64), torch.linspace(-4, 4, 20, **F64)
    alpha, sigma = (s[:, None] for s in signal_and_noise(gamma))
    places = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], **F64)
    weights = shares * torch.distributions.Normal(alpha * places, sigma).log_prob(z).exp()
    exact = (weights * places).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)
    out = shares.log()[:, None].expand(20, 5, 1)
    torch.testing.assert_close(LevelLogits().x(out, z, gamma, kind), exact)


def test_pixels_without_training_cost_their_entropy():
    """The untrained denoiser of levels knows the marginals: bits of independent pixels."""
    generator = seed()
    shares = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]], **F64)
    x = torch.multinomial(shares, 50_000, replacement=True, generator=generator).mT.double()
    model = Diffusion(Levels(4), SMALL, schedule=LinearSchedule(-10.0, 6.0))
    fit = model.fit(x, max_steps=1, optimizer=pc.SGD(1e-12), ema=None, generator=seed())
    entropy = -(shares * shares.log2()).sum(dim=1).mean()
    found = fit.bits_per_dim(x, num_draws=8, confidence=1 - 5e-7, generator=seed())
    sampled = 4 * found.diagnostics["data_std_error"]
    assert abs(float(found.value - entropy)) < float(found.error) + sampled + 2e-3


METHODS = {"ancestral": Ancestral(), "deterministic": Deterministic(), "midpoint": Midpoint()}


@pytest.mark.parametrize("name", METHODS)
def test_samplers_of_the_perfect_denoiser_draw_the_data(name: str):
    """x ~ N(0, ½): the variance of the draws is that of the data, but for the steps' width."""
    n, steps, chain = 20_000, 800, known(normal, Real(), LinearSchedule(-12.0, 10.0))
    z = torch.randn(n, 1, generator=seed(), **F64)
    guess = lambda at, gamma: chain.guess(at, gamma, None)  # noqa: E731
    gammas = torch.linspace(-12.0, 10.0, steps + 1, **F64)
    with torch.no_grad():
        for i in reversed(range(steps)):
            ends = gammas[i].expand(n), gammas[i + 1].expand(n)
            z = METHODS[name].step(guess, Step(z, *ends, seed(i)))
    assert float(z.var()) == pytest.approx(0.5, rel=0.06)


def test_second_order_steps_beat_first_order_ones():
    """The flow of normal data is linear: its exact slope is known from the variances."""
    chain, exact = known(normal, Real(), LinearSchedule(-8.0, 8.0)), []
    gammas = torch.linspace(-8.0, 8.0, 21, **F64)
    for g in (gammas[0], gammas[-1]):
        alpha, sigma = signal_and_noise(g)
        exact.append(float((0.5 * alpha.square() + sigma.square()).sqrt()))
    errors = {}
    guess = lambda at, gamma: chain.guess(at, gamma, None)  # noqa: E731
    for name in ("deterministic", "midpoint"):
        z = torch.ones(1, 1, **F64)
        for i in reversed(range(20)):
            ends = gammas[i : i + 1], gammas[i + 1 : i + 2]
            z = METHODS[name].step(guess, Step(z, *ends, seed()))
        errors[name] = abs(float(z.detach()) - exact[0] / exact[1])
    assert errors["midpoint"] < 0.2 * errors["deterministic"]


def pairs(n: int = 400) -> Tensor:
    """Four pixels of three levels, in equal pairs."""
    x = torch.randint(3, (n, 2, 1), generator=seed(3)).float()
    return x.expand(-1, -1, 2).clone()


MODELS: dict[str, Diffusion] = {
    "levels": Diffusion(Levels(3), SMALL),
    "velocity": Diffusion(Levels(3), SMALL, Velocity()),
    "noise": Diffusion(Levels(3), SMALL, Epsilon()),
    "data": Diffusion(Levels(3), SMALL, Data()),
    "numbers": Diffusion(Real(), SMALL),
    "trained schedule": Diffusion(Levels(3), SMALL, schedule=LearnedSchedule(hidden=8)),
    "in steps": Diffusion(Levels(3), SMALL, num_steps=10),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_answers_and_comes_back(name: str, tmp_path: Path):
    x, model = pairs(), MODELS[name]
    before = model.fit(x, max_steps=1, generator=seed())
    fit = model.fit(x, max_steps=300, generator=seed())
    first, last = (f.elbo(x, num_draws=16, generator=seed()) for f in (before, fit))
    assert float(last.value) > float(first.value) + float(last.error)
    draws = fit.sample(9, num_steps=20, generator=seed())
    assert draws.shape == (9, 2, 2)
    assert torch.equal(draws, fit.sample(9, num_steps=20, generator=seed()))
    model.kind.check(draws)
    middles, loss, error = fit.loss_by_time(x, num_bins=5, generator=seed())
    assert middles.tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert bool((loss >= 0).all())
    assert bool((error >= 0).all())
    fit.save(tmp_path)
    back = model.load(tmp_path)
    assert torch.equal(back.sample(9, num_steps=20, generator=seed()), draws)
    assert float(back.elbo(x, num_draws=16, generator=seed()).value) == float(last.value)
    with pytest.raises(ValueError, match="another model"):
        Diffusion(Levels(3), ResidualPerceptron(8, 1)).load(tmp_path)


def test_learned_pairs_cost_half():
    """Two free pixels of four: log2(3)/2 bits a pixel, and the samples are pairs."""
    x = pairs(2_000)
    fit = Diffusion(Levels(3)).fit(x, max_steps=800, generator=seed())
    found = fit.bits_per_dim(x, generator=seed())
    assert float(found.value) == pytest.approx(math.log2(3) / 2, abs=0.05)
    draws = fit.sample(200, generator=seed())
    assert float((draws[..., 0] == draws[..., 1]).float().mean()) > 0.95


def test_conditions_choose():
    level = torch.arange(300) % 3
    x = level[:, None].expand(-1, 4).float()
    told = nn.functional.one_hot(level, 3).float()
    fit = Diffusion(Levels(3)).fit(x, condition=told, max_steps=600, generator=seed())
    draws = fit.sample(3, condition=torch.eye(3), generator=seed())
    assert draws.mean(dim=1).round().tolist() == [0.0, 1.0, 2.0]
    assert float(fit.bits_per_dim(x, condition=told, generator=seed()).value) < 0.2


def test_times_fill_the_interval():
    t = low_discrepancy(10, seed(), torch.zeros(1, **F64))
    assert sorted((10 * t).long().tolist()) == list(range(10))


BAD: dict[str, tuple[Any, str]] = {
    "levels beyond": (lambda: Diffusion(Levels(2)).fit(pairs()), "from 0 to 1"),
    "no whole numbers": (lambda: Diffusion(Levels(3)).fit(pairs() + 0.5), "whole numbers"),
    "NaN": (lambda: Diffusion(Real()).fit(pairs() / 0), "finite|NaN|nan"),
    "no rows": (lambda: Diffusion(Levels(3)).fit(pairs()[:0]), "at least 1"),
    "no steps": (lambda: Diffusion(Levels(3), num_steps=0), "num_steps"),
    "levels of real numbers": (lambda: Diffusion(Real(), prediction=LevelLogits()), "Velocity"),
}


@pytest.mark.parametrize(("call", "words"), BAD.values(), ids=BAD.keys())
def test_mistakes_are_named(call: Any, words: str):
    with pytest.raises(ValueError, match=words):
        call()


def test_answers_check_their_arguments():
    fit = Diffusion(Levels(3), SMALL).fit(pairs(), max_steps=2, generator=seed())
    for call, words in (
        (lambda: fit.elbo(pairs(), num_draws=1), "num_draws"),
        (lambda: fit.sample(2, num_steps=0), "num_steps"),
        (lambda: fit.elbo(pairs()[:, 0]), r"\(2, 2\)"),
        (lambda: fit.elbo(pairs() + 5), "from 0 to 2"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
