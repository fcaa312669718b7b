r"""Gaussian mixtures by expectation maximisation, from many starts at once.

    p(x) = Σ_k π_k N(x; μ_k, Σ_k)
    E: r_ik ∝ π_k N(x_i; μ_k, Σ_k);   M: π_k = n_k/n, μ_k = Σ_i r_ik x_i / n_k,
                                         Σ_k = Σ_i r_ik (x_i − μ_k)(x_i − μ_k)ᵀ / n_k

The likelihood has no bound: a component that shrinks to a point lets it grow without end. Starts
that go there are dropped, and a fit of nothing but such starts is flagged.

Starts are those of k-means++ (Arthur & Vassilvitskii 2007), with a few of Lloyd's steps.
McLachlan & Peel (2000), Finite mixture models, chapters 2 and 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probcalc._random import child, draw_seed
from probcalc.inference.expectation_maximization import (
    ExpectationMaximization,
    Params,
    expectation_maximization,
)
from probcalc.models.design import checked_rows
from probcalc.status import Status

_LLOYD = 10  # steps of k-means before the first M-step
_POINT = 1e-10  # of the data's variance: a component this thin is a point
_EMPTY = 1e-8  # rows: a component with fewer is none


@dataclass(frozen=True)
class GaussianMixture:
    """Settings of the model.

    Args:
        num_components: K.
        diagonal: Whether coordinates are independent within a component.
        restarts: Starts, run as one batch; the best is returned.

    >>> x = torch.cat([torch.linspace(-1, 1, 20), torch.linspace(9, 11, 20)])[:, None]
    >>> fit = GaussianMixture(2).fit(x, generator=torch.Generator().manual_seed(0))
    >>> fit.means[:, 0].sort().values.round(decimals=3)
    tensor([ 0., 10.], dtype=torch.float64)
    """

    num_components: int
    diagonal: bool = False
    restarts: int = 20

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If a number is not positive.
        """
        if self.num_components < 1 or self.restarts < 1:
            raise ValueError(
                "`GaussianMixture` needs num_components and restarts of at least 1, got "
                f"{self.num_components}, {self.restarts}."
            )

    def fit(
        self,
        x: Tensor,
        *,
        init: Params | None = None,
        tol: float = 1e-10,
        max_steps: int = 5_000,
        generator: torch.Generator | None = None,
    ) -> MixtureFit:
        """Fit rows.

        Args:
            x: Shape ``(n, d)``.
            init: Weights ``(r, k)``, means ``(r, k, d)``, covariances ``(r, k, d, d)`` of starts.
            tol: Of the increase of the mean log-likelihood in one step.
            max_steps: Of every start.
            generator: Source of the starts.

        Raises:
            ValueError: If there are fewer distinct rows than components, a number is not finite,
                or a column is constant.
        """
        x = checked_rows(x)
        distinct = len(x.unique(dim=0))
        if distinct < self.num_components:
            raise ValueError(
                f"{self.num_components} components need as many distinct rows, got {distinct}."
            )
        variance = x.var(dim=0, unbiased=False)
        if not bool((variance > 0).all()):
            column = int((variance <= 0).nonzero()[0])
            raise ValueError(f"column {column} of `x` is constant: leave it out.")
        params = init if init is not None else self._starts(x, child(draw_seed(generator), 0))
        found = expectation_maximization(
            self, params, x, num_rows=len(x), tol=tol, max_steps=max_steps
        )
        return self._best(found, x, variance)

    def expect(
        self, params: Params, x: Float[Tensor, "n d"]
    ) -> tuple[Float[Tensor, "r n k"], Float[Tensor, " r"]]:
        """E-step: responsibilities and the log-likelihood."""
        joint = log_joint(params, x)
        each = joint.logsumexp(dim=-1)
        return (joint - each[..., None]).exp(), each.sum(dim=-1)

    def maximize(self, posterior: Float[Tensor, "r n k"], x: Float[Tensor, "n d"]) -> Params:
        """M-step: weighted means and covariances."""
        size = posterior.sum(dim=1).clamp(min=_EMPTY)
        means = torch.einsum("rnk,nd->rkd", posterior, x) / size[..., None]
        away = x[None, :, None] - means[:, None]
        weighted = posterior[..., None] * away
        if self.diagonal:
            variances = (weighted * away).sum(dim=1) / size[..., None]
            covariances = torch.diag_embed(variances)
        else:
            covariances = torch.einsum("rnkd,rnke->rkde", weighted, away) / size[..., None, None]
        return {
            "weights": size / size.sum(dim=-1, keepdim=True),
            "means": means,
            "covariances": covariances,
        }

    def _starts(self, x: Tensor, generator: torch.Generator) -> Params:
        """Centres far from each other, by k-means++, then M-steps of hard assignments."""
        n, r = len(x), self.restarts
        scaled = x / x.std(dim=0, unbiased=False)
        centres = scaled[torch.randint(n, (r, 1), generator=generator).to(x.device)]
        while centres.shape[1] < self.num_components:
            gap = torch.cdist(scaled.expand(r, -1, -1), centres).amin(dim=-1).square()
            pick = torch.multinomial(gap.cpu(), 1, generator=generator).to(x.device)
            centres = torch.cat([centres, scaled[pick]], dim=1)
        for _ in range(_LLOYD):
            nearest = torch.cdist(scaled.expand(r, -1, -1), centres).argmin(dim=-1)
            hard = torch.nn.functional.one_hot(nearest, self.num_components).to(x)
            size = hard.sum(dim=1)[..., None]
            moved = torch.einsum("rnk,nd->rkd", hard, scaled) / size.clamp(min=1.0)
            centres = torch.where(size > 0, moved, centres)
        whole = torch.diag_embed(x.var(dim=0, unbiased=False)) / self.num_components**2
        start = self.maximize(hard, x)
        # clusters of too few rows have no covariance of their own yet
        _, info = torch.linalg.cholesky_ex(start["covariances"])
        thin = ((info != 0) | (size[..., 0] <= x.shape[1]))[..., None, None]
        return {**start, "covariances": torch.where(thin, whole, start["covariances"])}

    def _best(self, found: ExpectationMaximization, x: Tensor, variance: Tensor) -> MixtureFit:
        scale = variance.sqrt()
        unit = found.params["covariances"] / scale[:, None] / scale
        least = torch.linalg.eigvalsh(unit.nan_to_num(0.0))[..., 0]
        point = (least <= _POINT).any(dim=-1)
        lost = point | (found.status & int(Status.NON_FINITE | Status.ROUNDOFF) != 0)
        value = torch.where(lost, -math.inf, found.log_likelihood)
        best = int(value.argmax())
        flags = Status(int(found.status[best]))
        if bool(lost.all()):
            flags |= Status.UNBOUNDED
        return MixtureFit(
            settings=self,
            weights=found.params["weights"][best],
            means=found.params["means"][best],
            covariances=found.params["covariances"][best],
            log_likelihood=found.log_likelihood[best],
            history=found.history[: int(found.num_iterations[best]) + 1, best],
            num_rows=len(x),
            num_dropped=int(lost.sum()),
            status=flags,
        )


def log_joint(params: Params, x: Float[Tensor, "n d"]) -> Float[Tensor, "r n k"]:
    """The log of π_k N(x_i; μ_k, Σ_k) for restarts ``(r)``; differentiable in the parameters."""
    factor, info = torch.linalg.cholesky_ex(params["covariances"])
    away = x[None, None] - params["means"][:, :, None]
    solved = torch.linalg.solve_triangular(factor, away.mT, upper=False)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    constant = 0.5 * x.shape[-1] * math.log(2 * math.pi)
    density = -0.5 * solved.square().sum(dim=-2) - (log_det + constant)[..., None]
    density = torch.where((info == 0)[..., None], density, torch.nan)
    return (density + params["weights"].log()[..., None]).mT


@dataclass(frozen=True, eq=False)
class MixtureFit:
    """A mixture that is fitted.

    Args:
        settings: The model.
        weights: Shape ``(k)``.
        means: Shape ``(k, d)``.
        covariances: Shape ``(k, d, d)``.
        log_likelihood: Of all rows.
        history: It by iteration.
        num_rows: Rows.
        num_dropped: Starts that ended in a point, or fell.
        status: `UNBOUNDED` where every start did.
    """

    settings: GaussianMixture
    weights: Float[Tensor, " k"]
    means: Float[Tensor, "k d"]
    covariances: Float[Tensor, "k d d"]
    log_likelihood: Float[Tensor, ""]
    history: Float[Tensor, " steps"]
    num_rows: int
    num_dropped: int
    status: Status

    @property
    def ok(self) -> bool:
        """Whether it is a maximum."""
        return self.status == Status.OK

    @property
    def num_parameters(self) -> int:
        """Free ones."""
        k, d = self.means.shape
        return k - 1 + k * d + k * (d if self.settings.diagonal else d * (d + 1) // 2)

    @property
    def aic(self) -> Tensor:
        """−2ℓ + 2p."""
        return 2 * self.num_parameters - 2 * self.log_likelihood

    @property
    def bic(self) -> Tensor:
        """−2ℓ + p ln n."""
        return self.num_parameters * math.log(self.num_rows) - 2 * self.log_likelihood

    def _joint(self, x: Tensor) -> Tensor:
        params = {"weights": self.weights, "means": self.means, "covariances": self.covariances}
        return log_joint({k: v[None] for k, v in params.items()}, x.to(self.means))[0]

    def log_prob(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Log density of rows."""
        return self._joint(x).logsumexp(dim=-1)

    def score(self, x: Float[Tensor, "n d"]) -> Tensor:
        """Mean log density of rows."""
        return self.log_prob(x).mean()

    def predict_proba(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Probabilities of the components."""
        return self._joint(x).softmax(dim=-1)

    def predict(self, x: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """The likeliest component."""
        return self._joint(x).argmax(dim=-1)

    def distribution(self) -> torch.distributions.MixtureSameFamily:
        """It as an object of `torch.distributions`."""
        return torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(probs=self.weights),
            torch.distributions.MultivariateNormal(self.means, self.covariances),
        )
