"""A linear regression with known noise, twice: as functions, and as a Pyro model.

    b ~ N(0, 4 I),   y_i ~ N(x_i · b, 1):     b | y ~ N(m, S),  S = (XᵀX + I/4)⁻¹,  m = S Xᵀy

so that predictions, leave-one-out and ranks are known in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Normal

from probcalc import Target

NUM_ROWS, PRIOR_SD = 20, 2.0


def data(num_rows: int = NUM_ROWS, correlation: float = 0.0) -> tuple[Tensor, Tensor]:
    """Inputs of two columns, and outcomes."""
    stream = torch.Generator().manual_seed(5)
    X = torch.randn(num_rows, 2, generator=stream, dtype=torch.float64)
    X[:, 1] = correlation * X[:, 0] + (1 - correlation**2) ** 0.5 * X[:, 1]
    noise = torch.randn(num_rows, generator=stream, dtype=torch.float64)
    return X, X @ torch.tensor([1.0, -2.0], dtype=torch.float64) + noise


@dataclass(frozen=True)
class Exact:
    """The posterior given some rows."""

    X: Tensor
    y: Tensor

    @property
    def covariance(self) -> Tensor:
        return torch.linalg.inv(self.X.mT @ self.X + torch.eye(2).double() / PRIOR_SD**2)

    @property
    def mean(self) -> Tensor:
        return self.covariance @ self.X.mT @ self.y

    def predictive(self, X: Tensor) -> Normal:
        """Of an outcome at each row of inputs."""
        variance = 1 + torch.einsum("ni,ij,nj->n", X, self.covariance, X)
        return Normal(X @ self.mean, variance.sqrt())

    def left_out(self) -> Tensor:
        """Log density of each row given all others."""
        keep = ~torch.eye(len(self.y), dtype=torch.bool)
        rows = [
            Exact(self.X[k], self.y[k]).predictive(self.X[i : i + 1]).log_prob(self.y[i])
            for i, k in enumerate(keep)
        ]
        return torch.cat(rows)


def log_prior(values: dict[str, Tensor]) -> Tensor:
    return Normal(0.0, PRIOR_SD).log_prob(values["b"]).sum()


def log_likelihood(values: dict[str, Tensor], row: tuple[Tensor, Tensor]) -> Tensor:
    return Normal((row[0] * values["b"]).sum(), 1.0).log_prob(row[1])


def prior(n: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {"b": PRIOR_SD * torch.randn(n, 2, generator=generator, dtype=torch.float64)}


def target(X: Tensor, y: Tensor, *, has_prior: bool = True) -> Target:
    def simulate(values: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.randn(len(X), generator=generator, dtype=torch.float64)
        return X, X @ values["b"] + noise

    return Target.from_function(
        log_prior,
        {"b": (2,)},
        log_likelihood=log_likelihood,
        data=(X, y),
        simulate=simulate,
        prior=prior if has_prior else None,
    )


def model(X: Tensor, y: Tensor | None = None) -> None:
    b = pyro.sample("b", dist.Normal(0.0, PRIOR_SD).expand([2]).to_event(1))
    mu = pyro.deterministic("mu", X @ b)
    with pyro.plate("rows", len(X)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
