r"""What a guide is fitted to, each with the estimators of its gradient.

    ELBO   E_q[log w]                    w = p(z)/q(z)
    IW     E log (1/K) Σ w_k                                        ≥ ELBO, rising with K
    Rényi  1/(1 − α) E log (1/K) Σ w_k^{1−α}                        α = 0: IW

`terms` returns independent terms: their mean estimates the objective and the derivative of their
mean its gradient, both without bias. All of them go up; a loss is minus their mean.

Kingma & Welling (2014), Auto-encoding variational Bayes; Roeder, Wu & Duvenaud (2017), Sticking
the landing; Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders; Tucker,
Lawson, Gu & Maddison (2019), Doubly reparameterized gradient estimators, section 4; Li & Turner
(2016), Rényi divergence variational inference; Mnih & Rezende (2016), Variational inference for
Monte Carlo objectives (VIMCO).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.inference.guides import Guide
from probcalc.integration.gradient_estimators import (
    Fixed,
    ScoreFunction,
    surrogate,
)

LogDensity = Callable[[Tensor], Tensor]
Params = dict[str, Tensor]


@runtime_checkable
class Objective(Protocol):
    """An objective of a guide; `num_weights` is the number of draws of one term."""

    num_weights: int

    def terms(
        self,
        log_density: LogDensity,
        guide: Guide,
        params: Params,
        eps: Float[Tensor, "*batch n b"],
    ) -> Float[Tensor, "*batch m"]:
        """Terms from `n` base draws, m = n / `num_weights`, differentiable in the parameters."""
        ...

    def refused(self, guide: Guide) -> str:
        """Why it cannot be had of this guide, saying what to use instead; else empty."""
        ...


@runtime_checkable
class ElboGradient(Protocol):
    """An estimator of the ELBO's gradient."""

    def elbo_terms(
        self,
        log_density: LogDensity,
        guide: Guide,
        params: Params,
        eps: Float[Tensor, "*batch n b"],
    ) -> Float[Tensor, "*batch n"]:
        """One term a draw."""
        ...

    def refused(self, guide: Guide) -> str:
        """See `Objective.refused`."""
        ...


@dataclass(frozen=True)
class ClosedEntropy:
    """Log p(z) + H[q], the entropy exact; of affine Gaussians the same as `TotalGradient`."""

    def elbo_terms(
        self, log_density: LogDensity, guide: Any, params: Params, eps: Tensor
    ) -> Tensor:
        """One term a draw."""
        z, _ = guide.transform(params, eps)
        return log_density(z) + guide.entropy(params)[..., None]

    def refused(self, guide: Any) -> str:
        """A guide without an entropy in closed form."""
        if hasattr(guide, "entropy"):
            return ""
        return f"{type(guide).__name__} has no entropy in closed form: use `StickTheLanding()`."


@dataclass(frozen=True)
class TotalGradient:
    """Log p(z) − log q(z), all of it differentiated; noisy even at the optimum."""

    def elbo_terms(
        self, log_density: LogDensity, guide: Any, params: Params, eps: Tensor
    ) -> Tensor:
        """One term a draw."""
        z, log_q = guide.transform(params, eps)
        return log_density(z) - log_q

    def refused(self, guide: Any) -> str:
        """Nothing."""
        return ""


@dataclass(frozen=True)
class StickTheLanding:
    """Log p(z) − log q(z), differentiated through the draws alone: no noise where q = p."""

    def elbo_terms(
        self, log_density: LogDensity, guide: Any, params: Params, eps: Tensor
    ) -> Tensor:
        """One term a draw."""
        z, _ = guide.transform(params, eps)
        return log_density(z) - guide.log_prob(held(params), z)

    def refused(self, guide: Any) -> str:
        """A guide without density."""
        return _without_density(guide)


@dataclass(frozen=True)
class ELBO:
    """Evidence lower bound.

    Args:
        gradient: `ClosedEntropy()`, `TotalGradient()`, `StickTheLanding()`, or `ScoreFunction()`
            for draws or densities without derivatives. None: a solver takes the one that it
            measures to be the quietest; where nobody measures, `TotalGradient()`.
    """

    gradient: Any = None
    num_weights: int = 1

    def __post_init__(self) -> None:
        """Check the estimator.

        Raises:
            TypeError: If it is none.
            ValueError: If a term of the ELBO is to have several draws.
        """
        known = (ElboGradient, ScoreFunction, type(None))
        if not isinstance(self.gradient, known):
            raise TypeError(
                "`ELBO(gradient=...)` takes ClosedEntropy(), TotalGradient(), StickTheLanding() "
                f"or ScoreFunction(), got {self.gradient!r}."
            )
        if self.num_weights != 1:
            raise ValueError("a term of the ELBO has one draw: use `ImportanceWeighted`.")

    def terms(
        self, log_density: LogDensity, guide: Any, params: Params, eps: Float[Tensor, "*batch n b"]
    ) -> Float[Tensor, "*batch n"]:
        """One term a draw."""
        if isinstance(self.gradient, ScoreFunction):
            return _scored(self.gradient, log_density, guide, params, eps)
        return (self.gradient or TotalGradient()).elbo_terms(log_density, guide, params, eps)

    def refused(self, guide: Any) -> str:
        """As the estimator."""
        if isinstance(self.gradient, ScoreFunction):
            return _without_density(guide)
        return "" if self.gradient is None else self.gradient.refused(guide)


@dataclass(frozen=True)
class Renyi:
    r"""Rényi's bound 1/(1 − α) E log (1/K) Σ w_k^{1−α}.

    For α < 1 it is at least the ELBO, and for K → ∞ and 0 < α < 1 a lower bound of the log
    evidence; smaller α cover more of the mass.

    Args:
        alpha: Order; 1 is the ELBO.
        num_weights: K, draws of one term.
        doubly_reparametrised: Whether the gradient goes through the draws alone, by
            α r̃_k + (1 − α) r̃_k² with r̃ the normalised w^{1−α}; else the total gradient, whose
            signal drowns in its noise as K grows.
    """

    alpha: float
    num_weights: int = 10
    doubly_reparametrised: bool = True

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If α is 1 or no number, or K is below 1.
        """
        if self.alpha == 1 or not math.isfinite(self.alpha):
            raise ValueError(f"`alpha` must be finite and not 1 (use `ELBO()`), got {self.alpha}.")
        _check_count(self.num_weights)

    def terms(
        self, log_density: LogDensity, guide: Any, params: Params, eps: Float[Tensor, "*batch n b"]
    ) -> Float[Tensor, "*batch m"]:
        """One term for every K draws."""
        return _bound(self, self.alpha, log_density, guide, params, eps)

    def refused(self, guide: Any) -> str:
        """A guide without density."""
        return _without_density(guide)


@dataclass(frozen=True)
class ImportanceWeighted:
    """Importance-weighted bound E log (1/K) Σ w_k, which rises to the log evidence with K.

    Args:
        num_weights: K, draws of one term; 1 is the ELBO.
        doubly_reparametrised: Whether the gradient goes through the draws alone, by w̃_k² (DReG):
            its signal-to-noise ratio grows with K, that of the total gradient falls.
    """

    num_weights: int = 10
    doubly_reparametrised: bool = True

    def __post_init__(self) -> None:
        """Check the count.

        Raises:
            ValueError: If K is below 1.
        """
        _check_count(self.num_weights)

    def terms(
        self, log_density: LogDensity, guide: Any, params: Params, eps: Float[Tensor, "*batch n b"]
    ) -> Float[Tensor, "*batch m"]:
        """One term for every K draws."""
        return _bound(self, 0.0, log_density, guide, params, eps)

    def refused(self, guide: Any) -> str:
        """A guide without density."""
        return _without_density(guide)


@dataclass(frozen=True)
class VIMCO:
    """The importance-weighted bound by the score function, for draws without derivatives.

    Each draw's signal is the bound minus what it would be with that draw's weight replaced by
    the geometric mean of the others.

    Args:
        num_weights: K, at least 2.
    """

    num_weights: int = 10

    def __post_init__(self) -> None:
        """Check the count.

        Raises:
            ValueError: If there is no other draw to compare with.
        """
        _check_count(self.num_weights, least=2)

    def terms(
        self, log_density: LogDensity, guide: Any, params: Params, eps: Float[Tensor, "*batch n b"]
    ) -> Float[Tensor, "*batch m"]:
        """One term for every K draws."""
        z = guide.transform(held(params), eps)[0].detach()
        log_q = guide.log_prob(params, z)
        groups = (grouped(t, self.num_weights).movedim(-2, 0) for t in (log_density(z), log_q))
        return vimco_terms(*groups)

    def refused(self, guide: Any) -> str:
        """A guide without density."""
        return _without_density(guide)


def vimco_terms(
    log_p: Float[Tensor, " k *out"], log_q: Float[Tensor, " k *out"]
) -> Float[Tensor, "*out"]:
    """Importance-weighted bounds of K draws along the first axis, with VIMCO's derivatives.

    Args:
        log_p: Log joint densities of the draws; differentiable or not.
        log_q: Log probabilities of the draws.
    """
    log_w = log_p - log_q
    k = len(log_w)
    own = log_w.logsumexp(dim=0) - math.log(k)
    others = (log_w.sum(dim=0) - log_w).detach() / (k - 1)  # log geometric means
    eye = torch.eye(k, dtype=torch.bool, device=log_w.device).view(k, k, *[1] * (log_w.ndim - 1))
    replaced = torch.where(eye, others[:, None], log_w.detach()[None])  # (without, k, *out)
    baseline = Fixed(replaced.logsumexp(dim=1) - math.log(k))
    signal = own.detach().expand_as(log_q)
    scored = surrogate(log_q, signal, baseline=baseline)
    return own + (scored - signal).sum(dim=0)


def grouped(x: Float[Tensor, "*batch n"], num: int) -> Float[Tensor, "*batch num m"]:
    """Draws in groups of `num`, as rows: draw i is in group i mod m, so strata stay strata.

    Raises:
        ValueError: If the number of draws is no multiple of `num`.
    """
    n = x.shape[-1]
    if n % num:
        raise ValueError(f"the number of draws must be a multiple of `num_weights` = {num}: {n}.")
    return x.unflatten(-1, (num, n // num))


def held(params: Params) -> Params:
    """The parameters without derivatives."""
    return {name: t.detach() for name, t in params.items()}


def named(objective: Any) -> str:
    """The objective and its estimator in words."""
    if isinstance(objective, ELBO):
        if objective.gradient is None:
            return "ELBO"
        return f"ELBO, {_spaced(type(objective.gradient).__name__)}"
    if isinstance(objective, VIMCO):
        return f"importance-weighted bound of {objective.num_weights}, VIMCO"
    if not isinstance(objective, (ImportanceWeighted, Renyi)):
        return _spaced(type(objective).__name__)
    how = "doubly reparametrised" if objective.doubly_reparametrised else "total gradient"
    kind = (
        f"Rényi bound of order {objective.alpha:g},"
        if isinstance(objective, Renyi)
        else "importance-weighted bound"
    )
    return f"{kind} of {objective.num_weights}, {how}"


def _bound(
    settings: Renyi | ImportanceWeighted,
    alpha: float,
    log_density: LogDensity,
    guide: Any,
    params: Params,
    eps: Tensor,
) -> Tensor:
    """The bound of every group; log weights carry the derivatives that the estimator asks for."""
    num = settings.num_weights
    z, log_q = guide.transform(params, eps)
    if not settings.doubly_reparametrised:
        log_w = grouped(log_density(z) - log_q, num)
        return (((1 - alpha) * log_w).logsumexp(dim=-2) - math.log(num)) / (1 - alpha)
    # what comes back through the draws weighs α r + (1 − α) r², all else (a model's own
    # parameters) r: the ratio is put on where the gradient passes
    factor: list[Tensor] = []
    z = z.view_as(z)
    if z.requires_grad:
        z.register_hook(lambda grad: grad * factor[0][..., None])
    log_w = grouped(log_density(z) - guide.log_prob(held(params), z), num)
    log_r = (1 - alpha) * log_w.detach()
    value, r = (log_r.logsumexp(dim=-2) - math.log(num)) / (1 - alpha), log_r.softmax(dim=-2)
    factor.append((alpha + (1 - alpha) * r).flatten(-2))
    path = (r * log_w).sum(dim=-2)
    return value + path - path.detach()


def _scored(
    estimator: ScoreFunction, log_density: LogDensity, guide: Any, params: Params, eps: Tensor
) -> Tensor:
    """The ELBO with derivatives of log q alone; −log q itself has none in the mean."""
    z = guide.transform(held(params), eps)[0].detach()
    log_q = guide.log_prob(params, z).movedim(-1, 0)
    log_p = log_density(z).movedim(-1, 0)
    path = log_p - log_q.detach() if log_p.requires_grad else None  # of a model's own parameters
    terms = surrogate(log_q, log_p - log_q, path, baseline=estimator.baseline)
    return terms.movedim(0, -1)


def _without_density(guide: Any) -> str:
    if getattr(guide, "has_density", True):
        return ""
    return f"{type(guide).__name__} has no density: use `ELBO(gradient=ClosedEntropy())`."


def _check_count(num: int, least: int = 1) -> None:
    if num < least:
        raise ValueError(f"`num_weights` must be at least {least}, got {num}.")


def _spaced(name: str) -> str:
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()
