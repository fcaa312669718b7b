"""What one stochastic step costs: ours, Pyro's, and a loop that someone wrote by hand in torch.

All fit a mean-field normal by Adam in float64 on the same draws' number; the time is that of a
step, without what comes before the first one.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch.nn.functional import softplus

import probcalc as pc
from benchmarks.harness import Case, Clocked, Contestant
from benchmarks.problems import eight_schools
from benchmarks.vi_pyro import float64

STEPS = 1_000
RESTARTS = 64
_QUICK, _RATE = 400, 0.01
_ROWS, _COLUMNS = 1_000, 25
_NEVER = 1e-9  # a tolerance that no fit reaches: every step is to be paid
_WARM = 20  # steps before the clock starts
_FEW = 5  # steps of the slowest contestant

Density = Callable[[Tensor], Tensor]
Data = tuple[Tensor, ...]


NOTES = (
    "A step is one update: a gradient of the ELBO and Adam's step, without what comes before the "
    "first. Pyro's defaults take the draws of a step one by one, `vectorized_particles` all at "
    "once. `fit` is the whole of `pc.fit`.",
)


def quick_cases(device: str) -> Iterator[Case]:
    """Fewer steps.

    Yields:
        Cases.
    """
    yield from cases(device, _QUICK)


def cases(device: str, steps: int = STEPS) -> Iterator[Case]:
    """Eight schools with 1 and 100 draws, a logistic regression, and 64 restarts.

    Yields:
        Cases, the first contestant ours.
    """
    problem = eight_schools()
    schools = tuple(t.to(device) for t in problem.data)
    for draws in (1, 100):
        name = f"step: eight schools, {draws} draw{'s' * (draws > 1)}"
        yield _case(name, problem.model, schools, schools_density, draws, steps)
    data = logistic_data(device)
    name = f"step: logistic regression, {_ROWS:,} × {_COLUMNS}, 1 draw"
    yield _case(name, logistic, data, logistic_density, 1, steps)
    target = pc.Target.from_pyro(problem.model, *schools)
    yield _restarted(target, steps)
    yield _refitted(target)


def schools_density(z: Tensor, effect: Tensor, std_error: Tensor) -> Tensor:
    """Eight schools at rows ``(n, 10)`` of mu, log tau and the raw effects, up to a constant."""
    mu, log_tau, raw = z[:, :1], z[:, 1:2], z[:, 2:]
    tau = log_tau.exp()
    prior = -0.5 * (mu / 5.0).square() + log_tau - (tau / 5.0).square().log1p()
    residual = (effect - mu - tau * raw) / std_error
    return prior[:, 0] - 0.5 * (raw.square() + residual.square()).sum(dim=1)


def logistic(x: Tensor, y: Tensor) -> None:
    """Coefficients ~ N(0, 1)."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def logistic_density(z: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The same at rows ``(n, 25)``, up to a constant."""
    logits = z @ x.T
    return (logits * y - softplus(logits)).sum(dim=1) - 0.5 * z.square().sum(dim=1)


def logistic_data(device: str) -> Data:
    """Normal covariates; responses of the model."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    x, w = draw(_ROWS, _COLUMNS), 0.3 * draw(_COLUMNS)
    y = torch.bernoulli((x @ w).sigmoid(), generator=generator)
    return x.to(device), y.to(device)


def _case(
    name: str, model: Any, data: Data, density: Callable[..., Tensor], draws: int, steps: int
) -> Case:
    target = pc.Target.from_pyro(model, *data)
    by_hand = partial(_by_hand, lambda z: density(z, *data), target, draws, steps)
    ours = partial(_ours, target, draws, 1, steps)
    theirs = partial(_pyro, model, data, draws, steps)
    contestants = [
        Contestant("probcalc: a step of pc.Stochastic", ours, warmups=0),
        Contestant("hand-written torch loop, fused Adam", by_hand, "eager", warmups=0),
        Contestant("Pyro SVI: a step, AutoNormal, Trace_ELBO", theirs, "eager", warmups=0),
    ]
    if draws > 1:
        plain = partial(_pyro, model, data, draws, _FEW, vectorized=False)
        contestants[-1] = replace(contestants[-1], name=f"{contestants[-1].name}, vectorised")
        name_of = "Pyro SVI: a step with its defaults, draw by draw"
        contestants.append(Contestant(name_of, plain, "eager", warmups=0))
    return Case(name, contestants)


def _restarted(target: pc.Target, steps: int) -> Case:
    """A step of many fits at once."""
    draws = pc.Stochastic().num_draws
    runs = ((1, "one fit"), (RESTARTS, f"{RESTARTS} restarts"))
    return Case(
        f"step: {RESTARTS} restarts of eight schools, {draws} draws",
        [
            Contestant(name, partial(_ours, target, draws, num, steps), warmups=0)
            for num, name in runs
        ],
    )


def _refitted(target: pc.Target) -> Case:
    """The whole of `fit`; two restarts are the fewest that it makes."""

    def run(num: int, seed: int) -> pc.Posterior:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pc.EstimateWarning)
            generator = torch.Generator().manual_seed(seed)
            return pc.fit(target, restarts=num, generator=generator)

    return Case(
        f"fit: {RESTARTS} restarts of eight schools",
        [Contestant(f"pc.fit, {num} restarts", partial(run, num)) for num in (2, RESTARTS)],
    )


def _ours(target: pc.Target, draws: int, restarts: int, steps: int, seed: int) -> Clocked:
    guide, stamps = pc.MeanField(), []
    solver = pc.Stochastic(
        num_draws=draws, max_steps=steps, tolerance=_NEVER, num_restarts=restarts
    )
    params = guide.init(target, torch.Generator().manual_seed(seed))
    note = lambda _, num: stamps.append((time.perf_counter(), num))  # noqa: E731
    solver.solve(target, guide, params, seed=seed, progress=note)
    (start, before), (end, after) = stamps[0], stamps[-1]
    return Clocked((end - start) / ((after - before) / (draws * restarts)), None)


def _by_hand(density: Density, target: pc.Target, draws: int, steps: int, seed: int) -> Clocked:
    generator = torch.Generator(target.device).manual_seed(seed)
    options = {"dtype": torch.float64, "device": target.device}
    loc = torch.zeros(target.dim, **options).requires_grad_()
    log_scale = torch.full((target.dim,), -1.0, **options).requires_grad_()
    optimizer = torch.optim.Adam([loc, log_scale], lr=_RATE, fused=True)

    def step() -> None:
        eps = torch.randn(draws, target.dim, generator=generator, **options)
        loss = -density(loc + log_scale.exp() * eps).mean() - log_scale.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return _clocked(step, steps)


def _pyro(
    model: Any, data: Data, draws: int, steps: int, seed: int, *, vectorized: bool = True
) -> Clocked:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    options = (
        {"vectorize_particles": True, "max_plate_nesting": 1} if draws > 1 and vectorized else {}
    )
    with float64(), torch.device(data[0].device):
        svi = SVI(
            model,
            AutoNormal(model),
            pyro.optim.Adam({"lr": _RATE}),
            Trace_ELBO(num_particles=draws, **options),
        )
        return _clocked(lambda: svi.step(*data), steps)


def _clocked(step: Callable[[], Any], steps: int) -> Clocked:
    for _ in range(min(_WARM, steps)):
        step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return Clocked((time.perf_counter() - start) / steps, None)
