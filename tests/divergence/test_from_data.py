"""Divergences from samples and from log probabilities: values, bars, gradients, refusals."""

from __future__ import annotations

import math

import laws
import pytest
import torch
from problems.expectations import number
from torch import Tensor
from torch import distributions as td

import probcalc as pc
from probcalc import K1, K2, K3, Controlled, kl_from_log_probs
from probcalc.divergence.from_log_probs import Terms

RUNS, DRAWS = 1000, 4000


def normal_draws(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def log_normal(x: Tensor, m: float = 0.0, s: float = 1.0) -> Tensor:
    return td.Normal(number(m), number(s)).log_prob(x)


@pytest.mark.parametrize("terms", [K1(), K3(), Controlled()], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize(("mean", "sd"), [(0.1, 1.0), (0.7, 1.0), (0.2, 0.8), (0.3, 0.9)])
def test_unbiased_with_bars_that_hold(
    terms: Terms, mean: float, sd: float, generator: torch.Generator
):
    x = normal_draws(generator, RUNS, DRAWS)
    truth = float(pc.kl(td.Normal(number(0.0), number(1.0)), td.Normal(number(mean), number(sd))))
    found = [kl_from_log_probs(log_normal(r), log_normal(r, mean, sd), terms=terms) for r in x]
    values = torch.stack([f.value for f in found])
    laws.assert_mean_is(values, truth, bias=0.4)
    usable = [f for f in found if f.ok]
    assert len(usable) > 0.6 * RUNS
    hits = torch.tensor([abs(float(f) - truth) <= float(f.error) for f in usable])
    laws.assert_covers(hits, 0.99, caught=0.9)


def test_the_control_variate_is_the_best_of_both(generator: torch.Generator):
    """Where q is near k3 is best, where q is wide k1 is; the combination keeps up with either."""
    x = normal_draws(generator, 20_000)
    for mean, sd in [(0.1, 1.0), (0.0, 1.3)]:
        errors = {
            type(terms).__name__: float(
                kl_from_log_probs(log_normal(x), log_normal(x, mean, sd), terms=terms).std_error
            )
            for terms in (K1(), K3(), Controlled())
        }
        assert errors["Controlled"] <= 1.05 * min(errors["K1"], errors["K3"])


def test_k2_is_biased(generator: torch.Generator):
    """At a shift of one: E ½ u² is ½ (1 + ¼), not ½."""
    x = normal_draws(generator, 200_000)
    found = kl_from_log_probs(log_normal(x), log_normal(x, 1.0), terms=K2())
    laws.assert_within(found, 0.625)


def test_k3_without_variance_is_flagged(generator: torch.Generator):
    x = normal_draws(generator, 20_000)
    found = kl_from_log_probs(log_normal(x), log_normal(x, 0.0, 3.0), terms=K3())
    assert pc.Status.INFINITE_VARIANCE in found.flags
    assert found.error == math.inf
    sound = kl_from_log_probs(log_normal(x), log_normal(x, 0.0, 3.0))
    truth = pc.kl(td.Normal(number(0.0), number(1.0)), td.Normal(number(0.0), number(3.0)))
    assert sound.ok
    laws.assert_within(sound, float(truth))


@pytest.mark.parametrize("terms", [K1(), K2(), K3(), Controlled()], ids=lambda t: type(t).__name__)
def test_gradients_are_those_of_the_divergence(terms: Terms, generator: torch.Generator):
    """In both arguments, of given draws, whatever the terms."""
    truth = {"m": -0.5 / 1.44, "log_s": 1 / 1.44 - 1, "q_m": 0.5 / 1.44}
    slopes: dict[str, list[float]] = {name: [] for name in truth}
    for x in normal_draws(generator, 1500, 1600):
        m, log_s, q_m = (number(v).requires_grad_() for v in (0.0, 0.0, 0.5))
        log_p = td.Normal(m, log_s.exp()).log_prob(x)
        log_q = td.Normal(q_m, number(1.2)).log_prob(x)
        found = kl_from_log_probs(log_p, log_q, terms=terms)
        for name, slope in zip(
            truth, torch.autograd.grad(found.value, (m, log_s, q_m)), strict=True
        ):
            slopes[name].append(float(slope))
    for name, expected in truth.items():
        values = number(*slopes[name])
        laws.assert_mean_is(values, expected, bias=0.5)


def test_sequences_and_their_tokens(generator: torch.Generator):
    """Steps of unequal length: the divergence of a sequence is that of a step times its length."""
    x = normal_draws(generator, 4000, 6)
    length = torch.randint(1, 7, (4000, 1), generator=generator)
    mask = torch.arange(6) < length
    step = 0.5 * 0.3**2
    args = (log_normal(x), log_normal(x, 0.3))
    tokens = kl_from_log_probs(*args, mask=mask)
    whole = kl_from_log_probs(*args, mask=mask, event_dim=1)
    laws.assert_within(tokens, step)
    laws.assert_within(whole, step * float(length.double().mean()))
    # what belongs to one sequence is not independent: repeated tokens tell nothing new
    once = kl_from_log_probs(args[0][:, 0], args[1][:, 0], terms=K1())
    again = kl_from_log_probs(*(t[:, :1].expand(-1, 6) for t in args), terms=K1())
    assert float(again.std_error) == pytest.approx(float(once.std_error), rel=1e-9)


def test_rewards_to_go_along_a_sequence(generator: torch.Generator):
    """Steps of a walk whose drift is the parameter."""
    slopes = []
    for _ in range(600):
        drift = number(0.2).requires_grad_()
        noise = normal_draws(generator, 800, 4)
        x = noise + 0.2
        log_p = td.Normal(drift, number(1.0)).log_prob(x)
        log_q = td.Normal(number(0.0), number(1.0)).log_prob(x)
        found = kl_from_log_probs(log_p, log_q, event_dim=1)
        slopes.append(float(torch.autograd.grad(found.value, drift)[0]))
    values = number(*slopes)
    laws.assert_mean_is(values, 4 * 0.2, bias=0.6)


def test_weights_change_the_law(generator: torch.Generator):
    x = normal_draws(generator, 100_000) * 1.5
    weights = (log_normal(x) - log_normal(x, 0.0, 1.5)).exp()
    found = kl_from_log_probs(log_normal(x), log_normal(x, 0.4), weights=weights)
    laws.assert_within(found, 0.08)


BAD_LOGS = {
    "one draw": (lambda x: (x[:1], x[:1]), {}, "at least 2 draws"),
    "probabilities above one": (lambda x: (x, x), {"discrete": True}, "none above 0"),
    "not a number": (lambda x: (x * math.nan, x), {}, "NaN"),
    "nothing left": (lambda x: (x, x), {"mask": torch.zeros(8, dtype=torch.bool)}, "nothing"),
    "no sequence": (lambda x: (x, x), {"event_dim": 1}, "`event_dim`"),
    "negative weights": (lambda x: (x, x), {"weights": -torch.ones(8)}, "`weights`"),
}


@pytest.mark.parametrize(("make", "how", "text"), BAD_LOGS.values(), ids=BAD_LOGS.keys())
def test_log_probabilities_that_cannot_be(make, how: dict, text: str):
    with pytest.raises(ValueError, match=text):
        kl_from_log_probs(*make(torch.linspace(-1, 1, 8)), **how)


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("known", [True, False], ids=["density of q", "draws of q"])
def test_samples_of_shifted_normals(dim: int, known: bool, generator: torch.Generator):
    """KL is ½; noise and bias are in the bar."""
    shift = dim**-0.5
    hits = []
    for _ in range(40):
        x, y = (normal_draws(generator, 1000, dim) for _ in range(2))
        other = (
            {"log_q": lambda z: log_normal(z - shift).sum(dim=-1)} if known else {"y": y + shift}
        )
        found = pc.kl_from_samples(x, **other)
        hits.append(abs(float(found) - 0.5) <= float(found.error))
        assert "low" in found.diagnostics["bias"]
    laws.assert_covers(torch.tensor(hits), 0.99, caught=0.5)


def test_mutual_information_of_a_normal_pair(generator: torch.Generator):
    correlation = 0.8
    z = normal_draws(generator, 2, 3000)
    y = correlation * z[0] + math.sqrt(1 - correlation**2) * z[1]
    found = pc.mutual_information_from_samples(z[0], y)
    laws.assert_within(found, -0.5 * math.log(1 - correlation**2))
    apart = pc.mutual_information_from_samples(z[0], z[1])
    laws.assert_within(apart, 0.0)


def test_estimates_from_samples_do_not_know_the_order(generator: torch.Generator):
    x, y = normal_draws(generator, 300, 2), normal_draws(generator, 200, 2)
    order = torch.randperm(300, generator=generator)
    one, other = pc.kl_from_samples(x, y), pc.kl_from_samples(x[order], y)
    assert float(one) == pytest.approx(float(other), rel=1e-12)
    doubled = pc.kl_from_samples(2 * x, 2 * y)
    assert float(doubled) == pytest.approx(float(one), rel=1e-9)


BAD_SAMPLES = {
    "dimensions": (lambda x: (x, x[:, :1] + 1), {}, "one dimension"),
    "few": (lambda x: (x[:4], x), {}, "at least 12 draws"),
    "repeated": (lambda x: (torch.cat([x, x]), x), {}, "more than once"),
    "infinite": (lambda x: (x / 0, x), {}, "finite"),
    "no neighbour": (lambda x: (x, x + 1), {"k": 0}, "`k`"),
    "nothing to compare with": (lambda x: (x,), {}, "either draws"),
}


@pytest.mark.parametrize(("make", "how", "text"), BAD_SAMPLES.values(), ids=BAD_SAMPLES.keys())
def test_samples_that_cannot_be(make, how: dict, text: str, generator: torch.Generator):
    with pytest.raises(ValueError, match=text):
        pc.kl_from_samples(*make(normal_draws(generator, 50, 2)), **how)
