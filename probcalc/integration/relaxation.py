"""Score functions of binary and one-hot draws, with relaxed draws as their control variate.

    ∇ E[f(b)] = E[(f(b) − η f(s(z̃))) ∇ log p(b) + η ∇ f(s(z)) − η ∇ f(s(z̃))]

b = H(z) is the draw, s(z) its relaxation at a temperature, and z̃ is drawn given b. Unbiased
whatever the temperature and η are. Tucker, Mnih, Maddison, Lawson & Sohl-Dickstein (2017), REBAR:
low-variance, unbiased gradient estimates for discrete latent variable models; Jang, Gu & Poole
(2017) and Maddison, Mnih & Teh (2017) for the relaxation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributions as td
from torch.distributions import Distribution

from probcalc.integration.gradient_estimators import Fn, NoBaseline, surrogate


@dataclass(frozen=True)
class Relaxation:
    """Derivatives of binary and one-hot draws: the score's, with relaxed draws against its noise.

    For `Bernoulli`, `OneHotCategorical` and independent ones, and functions that take numbers
    between zero and one as well. Derivatives of first order only.

    Args:
        temperature: Of the relaxation: the smaller, the more like draws and the noisier.
        weight: Of the control variate, η; 0 leaves the plain score function.
    """

    temperature: float = 0.5
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"`temperature` must be positive, got {self.temperature}.")
        if not math.isfinite(self.weight):
            raise ValueError(f"`weight` must be finite, got {self.weight}.")

    def refused(self, fn: Fn, dist: Distribution) -> str:
        """Draws that are neither binary nor one-hot."""
        base = dist.base_dist if isinstance(dist, td.Independent) else dist
        if type(base) not in (td.Bernoulli, td.OneHotCategorical):
            return (
                f"{type(base).__name__} is not relaxed: write Bernoulli or OneHotCategorical "
                "draws, or use `ScoreFunction()`."
            )
        return ""

    def terms(self, fn: Fn, dist: Distribution, num: int) -> Float[Tensor, " n"]:
        """Values at the draws, with the derivatives of the estimator."""
        base = dist.base_dist if isinstance(dist, td.Independent) else dist
        relaxed = _binary if isinstance(base, td.Bernoulli) else _one_hot
        draw, free, given = relaxed(base, num, self.temperature)
        f, at_free, at_given = fn(draw), fn(free), fn(given)
        signal = f.detach() - self.weight * at_given.detach()
        scored = surrogate(dist.log_prob(draw), signal, baseline=NoBaseline())
        moved = scored + self.weight * (at_free - at_given) + f
        return f.detach() + moved - moved.detach()


Draws = tuple[Tensor, Tensor, Tensor]  # hard, relaxed, relaxed given the hard ones


def _uniform(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    eps = torch.finfo(like.dtype).eps
    return torch.rand(shape, dtype=like.dtype, device=like.device).clamp(min=eps, max=1 - eps)


def _binary(dist: td.Bernoulli, num: int, temperature: float) -> Draws:
    logits = dist.logits
    shape = (num, *logits.shape)
    u, v = _uniform(logits.detach(), shape), _uniform(logits.detach(), shape)
    z = logits + torch.logit(u)
    draw = (z > 0).to(logits.dtype).detach()
    one = torch.sigmoid(logits)
    # u given the draw: above or below 1 − p
    eps = torch.finfo(logits.dtype).eps
    inside = torch.where(draw > 0, 1 - one + v * one, v * (1 - one)).clamp(min=eps, max=1 - eps)
    given = logits + torch.logit(inside)
    return draw, torch.sigmoid(z / temperature), torch.sigmoid(given / temperature)


def _one_hot(dist: td.OneHotCategorical, num: int, temperature: float) -> Draws:
    logits = torch.log_softmax(dist.logits, dim=-1)
    shape = (num, *logits.shape)
    u, v = _uniform(logits.detach(), shape), _uniform(logits.detach(), shape)
    z = logits - (-u.log()).log()
    chosen = z.detach().argmax(dim=-1, keepdim=True)
    draw = torch.zeros_like(z.detach()).scatter(-1, chosen, 1.0)
    # Gumbel variables given which is the largest: Tucker et al. (2017), appendix B
    largest = -v.gather(-1, chosen).log()
    given = torch.where(draw > 0, -largest.log(), -(-v.log() * (-logits).exp() + largest).log())
    hot = lambda t: torch.softmax(t / temperature, dim=-1)  # noqa: E731
    return draw, hot(z), hot(given)
