"""The stochastic solver: known answers, exact resumption, independent restarts, and its flags."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from laws import assert_within
from problems.posteriors import PROBLEMS
from torch import Tensor

import probcalc as pc
from probcalc._tree import Layout
from probcalc.inference.elbo import elbo
from probcalc.inference.objectives import (
    ELBO,
    ClosedEntropy,
    ImportanceWeighted,
    Renyi,
    StickTheLanding,
    TotalGradient,
)
from probcalc.inference.step import fisher_scale, step_of
from probcalc.inference.stochastic import Stochastic
from probcalc.optimization.dowg import DoWG

F64 = torch.float64
P = torch.tensor([[2.0, 0.9], [0.9, 1.0]], dtype=F64)
MEAN = torch.tensor([1.0, -2.0], dtype=F64)


def normal() -> pc.Target:
    return pc.Target.from_log_density(lambda x: -0.5 * (x - MEAN) @ P @ (x - MEAN), 2)


def solved(target: pc.Target, guide, method: Stochastic, seed: int = 0):
    params = guide.init(target, torch.Generator().manual_seed(seed))
    return method.solve(target, guide, params, seed=seed)


METHODS = {
    "default": Stochastic(),
    "no step size": Stochastic(optimizer=DoWG()),
    "one draw": Stochastic(num_draws=1),
    "noisy to the end": Stochastic(objective=ELBO(TotalGradient())),
    "importance weighted": Stochastic(objective=ImportanceWeighted(4)),
    "renyi": Stochastic(objective=Renyi(0.5, 4)),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_far_observation_is_not_missed(name: str):
    """x ~ N(0, 1), 10 observed from N(x, 0.5): 8.0 with sd 0.447, neither 3.1 nor 8.5 % wider."""
    problem = PROBLEMS["far_observation"]()
    found = solved(problem.target(), pc.MeanField(), METHODS[name])
    assert found.status == pc.Status.OK, found.reasons
    sd = float(problem.std["x"])
    assert abs(float(found.params["loc"][0]) - 8.0) <= 0.15 * sd  # three tolerances
    assert abs(float(found.params["log_scale"][0].exp()) / sd - 1) <= 0.12


def test_the_quietest_estimator_is_taken():
    found = solved(normal(), pc.FullRank(), Stochastic())
    noise = found.diagnostics["gradient_variance"]
    assert found.diagnostics["objective"] == ELBO(StickTheLanding())
    assert noise["ELBO, stick the landing"] == min(noise.values())
    assert "stick the landing" in found.method
    torch.testing.assert_close(found.params["loc"], MEAN.clone(), rtol=0, atol=1e-4)


def test_a_fit_weighs_what_it_found(generator: torch.Generator):
    posterior = pc.fit(normal(), guide=pc.FullRank(), method=Stochastic(), generator=generator)
    assert posterior.ok
    assert "stochastic" in posterior.method
    assert_within(posterior.mean["x"], MEAN)
    assert_within(posterior.std["x"], P.inverse().diagonal().sqrt())


@pytest.mark.parametrize("guide", [pc.MeanField(), pc.FullRank(), pc.GaussianMixture(2)])
@pytest.mark.parametrize("objective", [ELBO(TotalGradient()), ImportanceWeighted(4)])
def test_a_traced_step_is_the_step(guide, objective, generator: torch.Generator):
    """Values and gradients of autograd through the guide and the density themselves."""
    target = PROBLEMS["linear_regression"]().target()
    starts = [guide.init(target, generator) for _ in range(2)]
    params = {k: torch.stack([p[k] for p in starts]) for k in starts[0]}
    layout = Layout({k: tuple(t.shape[1:]) for k, t in params.items()})
    x = layout.flatten(params)
    base, scale = 0.1 * torch.ones_like(x), torch.full_like(x, 0.5)
    eps = torch.randn(2, 8, guide.base_dim(target.dim), generator=generator, dtype=F64)
    example = (x, base, scale, eps)
    step = step_of(target.value_and_grad, guide, layout, objective, example)
    assert step.is_traced
    leaf = x.clone().requires_grad_()
    value = objective.terms(target.log_density, guide, layout.unflatten(base + scale * leaf), eps)
    value = value.mean(dim=1)
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    found = step.call(*example)
    torch.testing.assert_close(found[0], value.detach())
    torch.testing.assert_close(found[1], slope)


def test_units_are_standard_errors(generator: torch.Generator):
    """Of a normal: σ for its mean, √½ for the log of σ."""
    log_scale = torch.tensor([[0.0, 2.0]], dtype=F64)
    params = {"loc": torch.zeros_like(log_scale), "log_scale": log_scale}
    scale = fisher_scale(pc.MeanField(), params, 2, generator)
    ratio = scale["loc"] / params["log_scale"].exp()
    assert bool((ratio - 1).abs().max() < 0.5)
    assert bool((scale["log_scale"] * 2**0.5 - 1).abs().max() < 0.7)


def test_restarts_are_independent_fits():
    """Two modes: restarts find both, and the higher one is kept."""
    locs, heights = torch.tensor([-4.0, 4.0], dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    target = pc.Target.from_log_density(
        lambda x: (heights - 2 * (x - locs).square()).logsumexp(dim=0), 1
    )
    found = solved(target, pc.MeanField(), Stochastic(num_restarts=8, max_steps=1_000))
    locs = found.diagnostics["params"]["loc"][:, 0]
    assert locs.min() < -3.5
    assert locs.max() > 3.5
    assert abs(float(found.params["loc"][0]) - 4.0) < 0.1
    assert found.diagnostics["elbo"].shape == (8,)


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path):
    """Past changes of units and estimator."""
    target = PROBLEMS["linear_regression"]().target()

    def run(folder: str, steps: int, resume: bool = False):
        method = Stochastic(
            num_draws=4,
            max_steps=steps,
            tolerance=1e-6,
            folder=tmp_path / folder,
            resume=resume,
            num_restarts=2,
        )
        return solved(target, pc.FullRank(), method)

    whole = run("whole", 300)
    run("parts", 150)
    parts = run("parts", 300, resume=True)
    assert set(whole.params) == set(parts.params)
    for name, value in whole.diagnostics["params"].items():
        assert torch.equal(value, parts.diagnostics["params"][name])
    assert torch.equal(whole.trace, parts.trace)


def test_a_settled_run_that_is_resumed_stays_as_it_is(tmp_path: Path):
    first = solved(normal(), pc.MeanField(), Stochastic(folder=tmp_path))
    again = solved(normal(), pc.MeanField(), Stochastic(folder=tmp_path, resume=True))
    assert again.status == first.status == pc.Status.OK
    assert again.diagnostics["reason"] == first.diagnostics["reason"]
    for name, value in first.params.items():
        assert torch.equal(value, again.params[name])


def test_steps_that_are_not_finite_are_skipped_and_counted():
    """A density that is NaN beyond 3 sds: now and then a draw falls there."""
    target = pc.Target.from_log_density(
        lambda x: torch.where(x.abs() < 3.0, -0.5 * x.square(), torch.nan).sum(), 1
    )
    found = solved(target, pc.MeanField(), Stochastic(num_draws=8, max_steps=3_000))
    assert int(found.diagnostics["skipped"][0]) > 0
    assert any("without a finite gradient were skipped" in why for why in found.reasons)
    assert all(bool(t.isfinite().all()) for t in found.params.values())


def test_a_density_that_is_finite_nowhere_ends_flagged():
    params = {"loc": torch.zeros(1, dtype=F64), "log_scale": torch.zeros(1, dtype=F64)}
    target = pc.Target.from_log_density(lambda x: (x - 100).sqrt().sum(), 1)
    found = Stochastic().solve(target, pc.MeanField(), params, seed=0)
    assert found.status & pc.Status.NON_FINITE
    assert found.reasons[0].startswith("no finite gradient in 100 steps")


def test_too_few_steps_are_flagged():
    found = solved(normal(), pc.MeanField(), Stochastic(max_steps=150))
    assert found.status & pc.Status.NOT_CONVERGED
    assert "has not settled" in found.reasons[0]


def test_an_untraced_target_runs():
    def log_density(x: Tensor) -> Tensor:
        return -0.5 * x.square().sum() * (1.0 if float(x.detach().sum()) < 1e9 else 2.0)

    target = pc.Target.from_log_density(log_density, 1)
    assert not target.is_traced
    found = solved(target, pc.MeanField(), Stochastic(num_draws=2, max_steps=300))
    assert not found.diagnostics["is_traced"]
    assert abs(float(found.params["loc"][0])) < 0.5


def test_elbo_of_a_posterior_is_its_own(generator: torch.Generator):
    """Of a Gaussian target log p/q does not vary: log Z = log 2π − ½ log |P|."""
    posterior = pc.laplace(normal(), generator=generator)
    exact = math.log(2 * math.pi) - 0.5 * float(torch.logdet(P))
    found = elbo(normal(), posterior, objective=ELBO(StickTheLanding()), generator=generator)
    assert abs(float(found) - exact) < 1e-6  # of finite differences in the curvature
    assert_within(elbo(normal(), posterior, objective=ELBO(ClosedEntropy())), exact, atol=1e-6)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="max_steps=...\\)` must be positive, got 0"):
        Stochastic(max_steps=0)
    with pytest.raises(ValueError, match="no entropy in closed form"):
        solved(normal(), pc.StudentT(), Stochastic(objective=ELBO(ClosedEntropy())))
