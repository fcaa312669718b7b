"""A thousand regressions with standard errors, one small minimum, and what the loop costs."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.optimize
import statsmodels.api as sm
import torch
from sklearn.linear_model import LogisticRegression as PeerRegression
from torch import Tensor, nn

import probcalc as pc
from benchmarks.harness import Case, Contestant, Scores

NOTES = (
    "1,000 logistic regressions of 500 rows and 10 covariates: ours as one batch, the peers in a "
    "loop, all to a gradient of 1e-8; ours and statsmodels with standard errors, scikit-learn "
    "(no penalty, `newton-cholesky`, the fastest solver of its for this shape, and its default "
    "`lbfgs`) without. `off` is the largest difference of a coefficient from statsmodels'.",
    "One minimum: Rosenbrock's function in ten dimensions from the usual start; scipy's L-BFGS-B "
    "gets its gradient from the same torch function. `value` is the objective reached.",
    "The loop: `pc.train` against loops written out, for the same 3,000 Adam steps of a network "
    "64-64-10 with batches of 64; `µs a step` is the time of a step. One bare loop uses torch's "
    "default optimiser, the other the fused one, which ours takes.",
)
_SETS, _ROWS, _COLUMNS = 1_000, 500, 10
_STEPS = 3_000


def cases(device: str) -> list[Case]:
    """The three of them."""
    return [_regressions(device), _rosenbrock(device), _loop(device)]


def _regressions(device: str) -> Case:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_SETS, _ROWS, _COLUMNS, generator=generator, dtype=torch.float64)
    slopes = torch.randn(_SETS, _COLUMNS, 1, generator=generator, dtype=torch.float64) / 3
    chance = (x @ slopes)[..., 0].sigmoid()
    y = torch.bernoulli(chance, generator=generator)
    there = (x.to(device), y.to(device))
    rows, labels = x.numpy(), y.numpy()

    def ours(_: int) -> Tensor:
        fit = pc.models.LogisticRegression().fit(*there)
        return torch.stack([fit.coefficients, fit.std_error()])

    def statsmodels(_: int) -> np.ndarray:
        fits = [
            sm.Logit(b, sm.add_constant(a)).fit(disp=0, tol=1e-10)
            for a, b in zip(rows, labels, strict=True)
        ]
        return np.stack([[f.params for f in fits], [f.bse for f in fits]])

    def sklearn(solver: str) -> Any:
        def run(_: int) -> np.ndarray:
            model = PeerRegression(C=np.inf, solver=solver, tol=1e-8, max_iter=1000)
            found = []
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for a, b in zip(rows, labels, strict=True):
                    model.fit(a, b)
                    found.append(np.concatenate([model.intercept_, model.coef_[0]]))
            return np.stack(found)[None]

        return run

    exact = statsmodels(0)[0]

    def score(found: Any) -> Scores:
        coefficients = found[0].cpu().numpy() if torch.is_tensor(found) else found[0]
        return {"off": float(np.abs(coefficients - exact).max())}

    return Case(
        "1,000 logistic regressions",
        [
            Contestant("probcalc", ours, score=score),
            Contestant("scikit-learn, newton-cholesky", sklearn("newton-cholesky"), score=score),
            Contestant("scikit-learn, lbfgs", sklearn("lbfgs"), score=score),
            Contestant("statsmodels", statsmodels, score=score),
        ],
    )


def rosenbrock(x: Tensor) -> Tensor:
    """Of any dimension; its least value is 0, at ones."""
    return (100 * (x[1:] - x[:-1].square()).square() + (1 - x[:-1]).square()).sum()


def _rosenbrock(device: str) -> Case:
    start = torch.tensor([-1.2, 1.0] * 5, dtype=torch.float64, device=device)

    def ours(method: Any) -> Any:
        return lambda _: float(pc.minimize(rosenbrock, start, method=method).value)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.tensor(flat, device=device, requires_grad=True)
        value = rosenbrock(x)
        (grad,) = torch.autograd.grad(value, x)
        return float(value.detach()), grad.cpu().numpy()

    def peer(_: int) -> float:
        found = scipy.optimize.minimize(
            objective,
            start.cpu().numpy(),
            jac=True,
            method="L-BFGS-B",
            options={"ftol": 1e-15, "gtol": 1e-6},
        )
        return float(found.fun)

    def score(value: float) -> Scores:
        return {"value": value}

    return Case(
        "Rosenbrock, 10 parameters",
        [
            Contestant("scipy, L-BFGS-B", peer, score=score),
            Contestant("probcalc, LBFGS", ours(pc.LBFGS(gtol=1e-6)), score=score),
            Contestant("probcalc, Newton", ours(pc.Newton()), score=score),
        ],
    )


def _network(device: str) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return net.to(device)


def _loss(module: nn.Module, batch: Any, generator: Any) -> Tensor:
    return nn.functional.cross_entropy(module(batch[0]), batch[1])


def _loop(device: str) -> Case:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 64, generator=generator).to(device)
    y = torch.randint(10, (4096,), generator=generator).to(device)

    def ours(seed: int) -> nn.Module:
        module = _network(device)
        pc.train(
            _loss,
            module,
            (x, y),
            batch_size=64,
            max_steps=_STEPS,
            generator=torch.Generator().manual_seed(seed),
        )
        return module

    def bare(fused: bool) -> Any:
        def run(seed: int) -> nn.Module:
            module = _network(device)
            optimizer = torch.optim.Adam(module.parameters(), 1e-3, fused=fused)
            order = torch.Generator().manual_seed(seed)
            done = 0
            while True:
                rows = torch.randperm(4096, generator=order).to(device)
                for i in range(0, 4096, 64):
                    index = rows[i : i + 64]
                    optimizer.zero_grad()
                    _loss(module, (x[index], y[index]), None).backward()
                    optimizer.step()
                    done += 1
                    if done == _STEPS:
                        return module

        return run

    def score(module: nn.Module) -> Scores:
        with torch.no_grad():
            return {"loss": float(_loss(module, (x, y), None))}

    return Case(
        "3,000 steps of Adam",
        [
            Contestant("bare loop", bare(False), score=score),
            Contestant("bare loop, fused", bare(True), score=score),
            Contestant("pc.train", ours, score=score),
        ],
    )
