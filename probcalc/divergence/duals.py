r"""Divergences as the best that a critic T can do, for samples without densities.

    KL ≥ E_p[T] − ln E_q[e^T]                          Donsker & Varadhan (1983)
    KL ≥ E_p[T] − E_q[e^{T − 1}]                       Nguyen, Wainwright & Jordan (2010)
    2 JS − ln 4 ≥ E_p[ln σ(T)] + E_q[ln σ(−T)]         Goodfellow et al. (2014)
    I(x; y) ≥ E[T(x, y) − ln (1/n) Σ_j e^{T(x, y_j)}]  van den Oord, Li & Vinyals (2018), InfoNCE

All but the last are f-divergences in Fenchel's dual form (Nowozin, Cseke & Tomioka 2016, f-GAN).
The critic is trained on one half of the samples and the bound taken on the other, both ways: a
bound on the samples that it was trained on is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid


@runtime_checkable
class Dual(Protocol):
    """A lower bound of a divergence by a critic's values."""

    name: str

    def bound(self, at_p: Float[Tensor, " n"], at_q: Float[Tensor, " m"]) -> Float[Tensor, ""]:
        """From the critic at draws of p and of q; goes up."""
        ...

    def std_error(self, at_p: Float[Tensor, " n"], at_q: Float[Tensor, " m"]) -> Float[Tensor, ""]:
        """Of the bound, the critic held."""
        ...


@dataclass(frozen=True)
class DonskerVaradhan:
    """KL(p‖q); the tightest, low in the mean of few draws where e^T has a heavy tail."""

    name: str = "Donsker-Varadhan bound"

    def bound(self, at_p: Tensor, at_q: Tensor) -> Tensor:
        """E_p[T] − ln E_q[e^T]."""
        return at_p.mean() - (at_q.logsumexp(dim=0) - math.log(len(at_q)))

    def std_error(self, at_p: Tensor, at_q: Tensor) -> Tensor:
        """By the delta method."""
        weights = len(at_q) * at_q.softmax(dim=0)
        return torch.hypot(_of_mean(at_p), _of_mean(weights))


@dataclass(frozen=True)
class NguyenWainwrightJordan:
    """KL(p‖q), linear in both means: without bias for the bound, and noisier."""

    name: str = "Nguyen-Wainwright-Jordan bound"

    def bound(self, at_p: Tensor, at_q: Tensor) -> Tensor:
        """E_p[T] − E_q[e^{T − 1}]."""
        return at_p.mean() - (at_q - 1).exp().mean()

    def std_error(self, at_p: Tensor, at_q: Tensor) -> Tensor:
        """Of both means."""
        return torch.hypot(_of_mean(at_p), _of_mean((at_q - 1).exp()))


@dataclass(frozen=True)
class JensenShannonDual:
    """The Jensen-Shannon divergence, at most ln 2: what a GAN's critic maximises."""

    name: str = "Jensen-Shannon bound"

    def bound(self, at_p: Tensor, at_q: Tensor) -> Tensor:
        """(E_p[ln σ(T)] + E_q[ln σ(−T)] + ln 4)/2."""
        return 0.5 * (logsigmoid(at_p).mean() + logsigmoid(-at_q).mean()) + math.log(2)

    def std_error(self, at_p: Tensor, at_q: Tensor) -> Tensor:
        """Of both means."""
        return 0.5 * torch.hypot(_of_mean(logsigmoid(at_p)), _of_mean(logsigmoid(-at_q)))


def info_nce(scores: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """Terms of InfoNCE, one a pair: scores of every x (rows) with every y; at most ln n."""
    return scores.diagonal() - (scores.logsumexp(dim=1) - math.log(scores.shape[1]))


def _of_mean(x: Tensor) -> Tensor:
    return x.std() / math.sqrt(len(x))
