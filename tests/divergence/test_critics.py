from __future__ import annotations

import math

import pytest
import torch
from laws import assert_mean_is
from torch import Tensor
from torch.distributions import Normal

import probcalc as pc
from probcalc.divergence.duals import (
    DonskerVaradhan,
    JensenShannonDual,
    NguyenWainwrightJordan,
    info_nce,
)

F64 = {"dtype": torch.float64}
P, Q = Normal(torch.tensor(0.5, **F64), 1.0), Normal(torch.tensor(0.0, **F64), 1.0)
UNIT = Normal(torch.tensor(0.0, **F64), 1.0)
KL = 0.125  # of P from Q
QUICK = {"hidden": (32,), "rate": 1e-2, "max_epochs": 60}


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def draws(n: int) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(2, n, generator=seed(), **F64)
    return x + 0.5, y


def best(x: Tensor) -> Tensor:
    return P.log_prob(x) - Q.log_prob(x)


BEST = {
    "Donsker-Varadhan": (DonskerVaradhan(), best, KL),
    "shifted": (DonskerVaradhan(), lambda x: best(x) + 3.0, KL),
    "Nguyen-Wainwright-Jordan": (NguyenWainwrightJordan(), lambda x: best(x) + 1.0, KL),
    "Jensen-Shannon": (JensenShannonDual(), best, float(pc.jensen_shannon(P, Q).value)),
}


@pytest.mark.parametrize(("dual", "critic", "exact"), BEST.values(), ids=BEST.keys())
def test_the_best_critic_reaches_the_divergence(dual, critic, exact: float):
    x, y = draws(400_000)
    found, error = dual.bound(critic(x), critic(y)), dual.std_error(critic(x), critic(y))
    assert abs(float(found) - exact) < 5.1 * float(error)
    assert float(error) < 0.01


@pytest.mark.parametrize(("dual", "critic", "exact"), BEST.values(), ids=BEST.keys())
def test_other_critics_stay_below(dual, critic, exact: float):
    x, y = draws(400_000)
    for other in (lambda t: 0.5 * critic(t), lambda t: critic(t) + t.sin(), torch.zeros_like):
        found, error = dual.bound(other(x), other(y)), dual.std_error(other(x), other(y))
        assert float(found) < exact + 5.1 * float(error)


@pytest.mark.parametrize(("dual", "critic", "exact"), BEST.values(), ids=BEST.keys())
def test_standard_errors_are_those_of_repeats(dual, critic, exact: float):
    x, y = (t.view(400, 1_000) for t in draws(400_000))
    pairs = [(critic(a), critic(b)) for a, b in zip(x, y, strict=True)]
    values = torch.stack([dual.bound(*pair) for pair in pairs])
    errors = torch.stack([dual.std_error(*pair) for pair in pairs])
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.15)


def test_telling_partners_apart_tells_the_information():
    """The best scores are ln p(y|x)/p(y); of n pairs at most ln n is seen."""
    rho, n = 0.6, 200
    x = torch.randn(300, n, generator=seed(), **F64)
    y = rho * x + math.sqrt(1 - rho**2) * torch.randn(300, n, generator=seed(1), **F64)
    width = math.sqrt(1 - rho**2)
    terms = [
        info_nce(Normal(rho * a[:, None], width).log_prob(b[None]) - UNIT.log_prob(b[None])).mean()
        for a, b in zip(x, y, strict=True)
    ]
    exact = -0.5 * math.log(1 - rho**2)
    found = torch.stack(terms)[:, None]
    # the bias of n pairs is about the variance of the density ratio over 2 n
    assert float(found.mean()) == pytest.approx(exact, abs=0.02)
    assert float(info_nce(1e3 * torch.eye(8, **F64)).max()) == pytest.approx(math.log(8))
    assert_mean_is(found, found.mean(), bias=0.5)


DUALS = {"DV": DonskerVaradhan(), "NWJ": NguyenWainwrightJordan()}


@pytest.mark.parametrize("name", DUALS)
def test_trained_critics_bound_the_divergence(name: str):
    x, y = draws(3_000)
    method = pc.TrainedCritic(DUALS[name], **QUICK)
    found = pc.kl_from_samples(x, y, method=method, generator=seed())
    assert abs(float(found.value) - KL) < float(found.error) + 0.05
    assert found.diagnostics["bound"] == "lower"
    again = pc.kl_from_samples(x, y, method=method, generator=seed())
    assert float(again.value) == float(found.value)


@pytest.mark.parametrize("dual", [DonskerVaradhan(), pc.InfoNCE()], ids=["DV", "InfoNCE"])
def test_trained_critics_bound_the_information(dual):
    x = torch.randn(2_000, generator=seed(), **F64)
    y = 0.8 * x + 0.6 * torch.randn(2_000, generator=seed(1), **F64)
    method = pc.TrainedCritic(dual, **QUICK)
    found = pc.mutual_information_from_samples(x, y, method=method, generator=seed())
    assert abs(float(found.value) + math.log(0.6)) < float(found.error) + 0.15


def test_samples_alike_have_no_divergence():
    x, y = torch.randn(2, 2_000, 3, generator=seed(), **F64)
    found = pc.kl_from_samples(x, y, method=pc.TrainedCritic(**QUICK), generator=seed())
    assert float(found.value) < float(found.error)


def test_mistakes_are_named():
    x, y = draws(100)
    with pytest.raises(ValueError, match="at least 50"):
        pc.kl_from_samples(x[:40], y, method=pc.TrainedCritic(**QUICK))
    with pytest.raises(ValueError, match="draws `y`"):
        pc.kl_from_samples(x, log_q=Q.log_prob, method=pc.TrainedCritic(**QUICK))
    for dual in (JensenShannonDual(), pc.InfoNCE()):
        with pytest.raises(ValueError, match="DonskerVaradhan"):
            pc.kl_from_samples(x, y, method=pc.TrainedCritic(dual))
