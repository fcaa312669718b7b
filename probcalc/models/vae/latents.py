r"""What latents are: normal numbers, bits, or one of several classes each.

    bits       z = [l + Λ > 0],               relaxed σ((l + Λ)/t),           Λ logistic
    classes    z = one-hot of argmax l + G,   relaxed softmax((l + G)/t),     G Gumbel

Draws of the discrete ones have no derivative. That of E_q ln p(x|z) comes from the sum over all
values, from the score function with a row's other draws as baseline, or through relaxed draws,
which is the gradient of another objective, near this one at low temperatures; the KL is exact in
all. Mnih & Gregor (2014), Neural variational inference and learning in belief networks; Jang, Gu
& Poole (2017); Maddison, Mnih & Teh (2017), The concrete distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch import distributions as td
from torch.nn.functional import one_hot, softplus
from torch.special import log_ndtr

from probcalc.inference.discrete import Enumerate, RelaxedDraws
from probcalc.inference.hierarchical import Normals
from probcalc.integration.gradient_estimators import LeaveOneOut, ScoreFunction, surrogate

Fn = Callable[[Tensor], Tensor]

_SUMMED = 2**8  # values up to which the sum is the way where none is asked for
_MOST = 2**12  # and up to which it may be asked for
_DRAWS = 4  # of a row, for the score function where nothing is asked for


@dataclass(frozen=True, eq=False)
class Bits:
    """Independent bits ``(*n, d)``.

    Args:
        logits: Of ones.
    """

    logits: Tensor

    @property
    def mean(self) -> Tensor:
        """Probabilities of ones."""
        return self.logits.sigmoid()

    def draw(self, eps: Float[Tensor, "*m d"]) -> Float[Tensor, "*n d"]:
        """Zeros and ones, from standard normal numbers."""
        return (self.logits + _logistic(eps) > 0).to(self.logits.dtype)

    def relaxed(self, eps: Float[Tensor, "*m d"], temperature: Tensor) -> Float[Tensor, "*n d"]:
        """Numbers between zero and one."""
        return ((self.logits + _logistic(eps)) / temperature).sigmoid()

    def log_prob(self, z: Float[Tensor, "*m d"]) -> Float[Tensor, "*n"]:
        """Of bits, all together."""
        return (z * self.logits - softplus(self.logits)).sum(dim=-1)

    def kl_each(self, other: Bits) -> Float[Tensor, "*n d"]:
        """KL(self‖other) of every bit."""
        away = self.mean * (self.logits - other.logits)
        return away - softplus(self.logits) + softplus(other.logits)

    def kl(self, other: Bits) -> Float[Tensor, "*n"]:
        """Summed over bits."""
        return self.kl_each(other).sum(dim=-1)


@dataclass(frozen=True, eq=False)
class Classes:
    """Independent classes; draws are one-hot vectors in a row, ``(*n, d k)``.

    Args:
        log_probs: Of the classes, ``(*n, d, k)``.
    """

    log_probs: Tensor

    @property
    def mean(self) -> Tensor:
        """Probabilities ``(*n, d, k)``."""
        return self.log_probs.exp()

    def draw(self, eps: Float[Tensor, "*m b"]) -> Float[Tensor, "*n b"]:
        """One-hot vectors, from standard normal numbers."""
        return _hot(self._noisy(eps))

    def relaxed(self, eps: Float[Tensor, "*m b"], temperature: Tensor) -> Float[Tensor, "*n b"]:
        """Points of the simplex."""
        return (self._noisy(eps) / temperature).softmax(dim=-1).flatten(-2)

    def log_prob(self, z: Float[Tensor, "*m b"]) -> Float[Tensor, "*n"]:
        """Of one-hot vectors, all together."""
        return (z.unflatten(-1, self.log_probs.shape[-2:]) * self.log_probs).sum(dim=(-2, -1))

    def kl_each(self, other: Classes) -> Float[Tensor, "*n d"]:
        """KL(self‖other) of every class."""
        return (self.mean * (self.log_probs - other.log_probs)).sum(dim=-1)

    def kl(self, other: Classes) -> Float[Tensor, "*n"]:
        """Summed over classes."""
        return self.kl_each(other).sum(dim=-1)

    def _noisy(self, eps: Tensor) -> Tensor:
        gumbel = -(-log_ndtr(eps)).log()
        return self.log_probs + gumbel.unflatten(-1, self.log_probs.shape[-2:])


@dataclass(frozen=True)
class NormalLatents:
    """Real numbers, of normal posteriors."""

    width: ClassVar[int] = 2  # numbers of a posterior
    size: ClassVar[int] = 1  # numbers of a draw, and of its noise
    gradient: ClassVar[None] = None

    def q(self, numbers: Float[Tensor, "*n e"]) -> Normals:
        """The posterior that a network's numbers mean."""
        return Normals(*numbers.chunk(2, dim=-1))

    def distribution(self, q: Normals) -> td.Normal:
        """As one of torch's."""
        return td.Normal(q.loc, q.log_scale.exp())

    def code(self, q: Normals) -> Tensor:
        """What a row is decoded from: the mean."""
        return q.loc


class Discrete:
    """Latents without derivatives of their own."""

    gradient: Enumerate | ScoreFunction | RelaxedDraws | None

    def chosen(self, dim: int) -> Enumerate | ScoreFunction | RelaxedDraws:
        """The way to the gradient of so many latents.

        Raises:
            ValueError: If there are too many values to sum over.
        """
        count = self.radix**dim
        if self.gradient is None:
            return Enumerate() if count <= _SUMMED else ScoreFunction()
        if isinstance(self.gradient, Enumerate) and count > _MOST:
            raise ValueError(
                f"the latents have {count:,} values, more than the {_MOST:,} that are summed: use "
                "`ScoreFunction()` or `RelaxedDraws()`."
            )
        return self.gradient

    def draws(self, dim: int, num: int) -> int:
        """Draws of a row in a step, where `num` are asked for.

        Raises:
            ValueError: If there is no other draw for the baseline.
        """
        way = self.chosen(dim)
        if not isinstance(way, ScoreFunction) or not isinstance(
            way.baseline or LeaveOneOut(), LeaveOneOut
        ):
            return num
        if self.gradient is None:
            return max(num, _DRAWS)
        if num < 2:
            raise ValueError(
                "the score function with the other draws as baseline needs `num_draws` of at "
                f"least 2, got {num}."
            )
        return num

    def reconstruction(self, fn: Fn, q: Any, eps: Tensor, temperature: Any) -> Tensor:
        """Terms ``(n, k)`` whose mean has the value and the gradient of E_q fn(z).

        Args:
            fn: From latents ``(n, k, b)`` to numbers ``(n, k)``.
            q: Of rows, ``(n, 1, …)``.
            eps: Standard normal numbers ``(n, k, b)``.
            temperature: Of relaxed draws.
        """
        way = self.chosen(eps.shape[-1] // self.size)
        if isinstance(way, RelaxedDraws):
            return fn(q.relaxed(eps, temperature))
        if isinstance(way, Enumerate):
            z = self.values(eps).expand(len(eps), -1, -1)
            return (q.log_prob(z).exp() * fn(z)).sum(dim=1, keepdim=True)
        z = q.draw(eps).detach()
        log_q, f = (t.movedim(-1, 0) for t in (q.log_prob(z), fn(z)))
        path = f if f.requires_grad else None
        return surrogate(log_q, f, path, baseline=way.baseline).movedim(0, -1)

    def values(self, like: Float[Tensor, "*n b"]) -> Float[Tensor, "s b"]:
        """All values of the latents of a row."""
        dim, radix = like.shape[-1] // self.size, self.radix
        places = radix ** torch.arange(dim, device=like.device)
        digits = torch.arange(radix**dim, device=like.device)[:, None] // places % radix
        return self.coded(digits).to(like.dtype)

    def _check(self) -> None:
        known = (Enumerate, ScoreFunction, RelaxedDraws, type(None))
        if not isinstance(self.gradient, known):
            raise TypeError(
                f"`{type(self).__name__}(gradient=...)` takes Enumerate(), ScoreFunction() or "
                f"RelaxedDraws(), got {self.gradient!r}."
            )


@dataclass(frozen=True)
class BernoulliLatents(Discrete):
    """Bits.

    Args:
        gradient: `Enumerate()`, `ScoreFunction()`, or `RelaxedDraws(t)`, its temperature a number
            or a function of the step; None: the sum over up to 256 values, beyond them the score
            function with at least four draws a row.
        learned_prior: Whether the prior's probabilities are trained, rather than one half.
    """

    gradient: Enumerate | ScoreFunction | RelaxedDraws | None = None
    learned_prior: bool = False
    width: ClassVar[int] = 1
    size: ClassVar[int] = 1
    radix: ClassVar[int] = 2

    def __post_init__(self) -> None:
        """Check the settings."""
        self._check()

    def prior(self, dim: int) -> nn.Module:
        """Of so many bits."""
        return _Prior(self, torch.zeros(dim))

    def q(self, numbers: Float[Tensor, "*n d"]) -> Bits:
        """Logits, as they are."""
        return Bits(numbers)

    def distribution(self, q: Bits) -> td.Bernoulli:
        """As one of torch's."""
        return td.Bernoulli(logits=q.logits)

    def code(self, q: Bits) -> Tensor:
        """The likeliest bits."""
        return (q.logits > 0).to(q.logits.dtype)

    def coded(self, digits: Tensor) -> Tensor:
        """Of digits."""
        return digits


@dataclass(frozen=True)
class CategoricalLatents(Discrete):
    """One of several classes each; a decoder sees one-hot vectors, one after the other.

    Args:
        num_classes: Of every latent.
        gradient: As of `BernoulliLatents`.
        learned_prior: Whether the prior's probabilities are trained, rather than all the same.
    """

    num_classes: int
    gradient: Enumerate | ScoreFunction | RelaxedDraws | None = None
    learned_prior: bool = False

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If there is no choice.
        """
        if self.num_classes < 2:
            raise ValueError(f"`num_classes` must be at least 2, got {self.num_classes}.")
        self._check()

    @property
    def width(self) -> int:
        """Numbers of a posterior."""
        return self.num_classes

    @property
    def size(self) -> int:
        """Numbers of a draw, and of its noise."""
        return self.num_classes

    @property
    def radix(self) -> int:
        """Values of a latent."""
        return self.num_classes

    def prior(self, dim: int) -> nn.Module:
        """Of so many classes."""
        return _Prior(self, torch.zeros(dim * self.num_classes))

    def q(self, numbers: Float[Tensor, "*n b"]) -> Classes:
        """Logits by latent."""
        return Classes(numbers.unflatten(-1, (-1, self.num_classes)).log_softmax(dim=-1))

    def distribution(self, q: Classes) -> td.OneHotCategorical:
        """As one of torch's."""
        return td.OneHotCategorical(logits=q.log_probs)

    def code(self, q: Classes) -> Tensor:
        """The likeliest classes."""
        return _hot(q.log_probs)

    def coded(self, digits: Tensor) -> Tensor:
        """Of digits."""
        return one_hot(digits, self.num_classes).flatten(-2)


class _Prior(nn.Module):
    def __init__(self, latents: BernoulliLatents | CategoricalLatents, start: Tensor) -> None:
        super().__init__()
        self.latents = latents
        self.numbers = nn.Parameter(start, requires_grad=latents.learned_prior)

    def factors(self) -> Bits | Classes:
        return self.latents.q(self.numbers)

    def log_prob(self, z: Float[Tensor, "*n b"]) -> Float[Tensor, "*n"]:
        return self.factors().log_prob(z)

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n b"]:
        kind = {"dtype": self.numbers.dtype, "device": self.numbers.device}
        return self.factors().draw(torch.randn(n, len(self.numbers), generator=generator, **kind))


def _hot(scores: Float[Tensor, "*n d k"]) -> Float[Tensor, "*n b"]:
    hot = one_hot(scores.argmax(dim=-1), scores.shape[-1])
    return hot.to(scores.dtype).flatten(-2)


def _logistic(eps: Tensor) -> Tensor:
    return log_ndtr(eps) - log_ndtr(-eps)
