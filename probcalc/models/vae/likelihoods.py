"""Likelihoods of pixels: what the numbers of a decoder mean.

Rows are vectors of p pixels here, and a decoder gives k numbers a pixel, ``(*n, k, p)``; log
densities are summed over the pixels of a row, never averaged, so that bounds are in nats a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, logsigmoid, one_hot

from probcalc.training.parallel import rows_rand

Extra = dict[str, Tensor]

_LEAST = 0.5  # observations added to every count, so that no log probability starts at −∞
_FLOOR = 1e-3  # of a starting standard deviation
TINY = 1e-6  # nearest that uniform draws come to 0 and 1


@runtime_checkable
class Likelihood(Protocol):
    """p(x | outputs of the decoder)."""

    @property
    def num_outputs(self) -> int:
        """Numbers a pixel."""
        ...

    def check(self, x: Tensor) -> None:
        """Refuse data that it does not fit."""
        ...

    def seen(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """What a step sees of the data: themselves, or a draw from them."""
        ...

    def encoded(self, x: Tensor) -> Tensor:
        """The data in units that suit a network."""
        ...

    def start(self, x: Tensor) -> Float[Tensor, " k p"]:
        """Outputs that fit the marginals of the data, pixel by pixel."""
        ...

    def extra(self, x: Tensor) -> Extra:
        """Parameters that are trained beside the decoder's."""
        ...

    def log_prob(self, outputs: Tensor, extra: Extra, x: Tensor) -> Float[Tensor, "*n"]:
        """Of rows."""
        ...

    def mean(self, outputs: Tensor, extra: Extra) -> Float[Tensor, "*n p"]:
        """Of pixels."""
        ...

    def sample(self, outputs: Tensor, extra: Extra, generator: torch.Generator) -> Tensor:
        """One draw a row."""
        ...


class NoExtra:
    """A likelihood without parameters beside the decoder's."""

    def extra(self, x: Tensor) -> Extra:
        """None."""
        return {}


class AsGiven:
    """Data that every step sees as they are."""

    def seen(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """As they are."""
        return x


class WholeNumbers(AsGiven):
    """Levels 0 … V − 1."""

    levels: int

    def check(self, x: Tensor) -> None:
        """Whole numbers below V."""
        check_levels(x, self.levels)

    def encoded(self, x: Tensor) -> Tensor:
        """From 0 to 1."""
        return x / (self.levels - 1)


@dataclass(frozen=True)
class Bernoulli(NoExtra):
    """Pixels of 0 and 1.

    Args:
        dynamic: The data are probabilities, of which every step, and every evaluation, draws
            pixels anew (Salakhutdinov & Murray 2008; Burda et al. 2016, section 5).
    """

    dynamic: bool = False
    num_outputs: ClassVar[int] = 1

    def check(self, x: Tensor) -> None:
        """Zeros and ones, or numbers between them where pixels are drawn.

        Raises:
            ValueError: If the data are something else.
        """
        if bool(((x < 0) | (x > 1)).any()):
            raise ValueError(
                f"Bernoulli pixels are 0 or 1, got values from {float(x.min()):g} to "
                f"{float(x.max()):g}: divide by the greatest level, or use `Binomial(levels)` or "
                "`DiscretizedLogistic(levels)`."
            )
        if not self.dynamic and bool(((x != 0) & (x != 1)).any()):
            raise ValueError(
                "Bernoulli pixels are 0 or 1, got grey ones, whose bound would be no likelihood: "
                "threshold them, draw them with `Bernoulli(dynamic=True)`, or use "
                "`DiscretizedLogistic(levels)`."
            )

    def seen(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Pixels drawn from the data, where these are probabilities."""
        if not self.dynamic:
            return x
        return (rows_rand(*x.shape, generator=generator, like=x) < x).to(x.dtype)

    def encoded(self, x: Tensor) -> Tensor:
        """As they are."""
        return x

    def start(self, x: Tensor) -> Tensor:
        """Logits of the share of ones."""
        share = (x.sum(dim=0) + _LEAST) / (len(x) + 2 * _LEAST)
        return share.logit()[None]

    def log_prob(self, outputs: Tensor, extra: Extra, x: Tensor) -> Tensor:
        """Σ x ln p + (1 − x) ln(1 − p)."""
        logits = outputs.squeeze(-2)
        loss = binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
        return -loss.sum(dim=-1)

    def mean(self, outputs: Tensor, extra: Extra) -> Tensor:
        """Probabilities."""
        return outputs[..., 0, :].sigmoid()

    def sample(self, outputs: Tensor, extra: Extra, generator: torch.Generator) -> Tensor:
        """Pixels."""
        return torch.bernoulli(self.mean(outputs, extra), generator=generator)


@dataclass(frozen=True)
class Categorical(WholeNumbers, NoExtra):
    """Levels 0 … V − 1 with a probability each, k = V.

    Args:
        levels: V.
    """

    levels: int

    @property
    def num_outputs(self) -> int:
        """One a level."""
        return self.levels

    def start(self, x: Tensor) -> Tensor:
        """Log shares of the levels."""
        return _counts(x, self.levels).log()

    def log_prob(self, outputs: Tensor, extra: Extra, x: Tensor) -> Tensor:
        """Σ ln p_x."""
        logs = log_softmax(outputs, dim=-2)
        index = x.long().unsqueeze(-2)
        rows = torch.broadcast_shapes(index.shape[:-2], logs.shape[:-2])
        logs, index = logs.expand(*rows, -1, -1), index.expand(*rows, -1, -1)
        return logs.gather(-2, index).sum(dim=(-2, -1))

    def mean(self, outputs: Tensor, extra: Extra) -> Tensor:
        """Mean level."""
        level = torch.arange(self.levels, dtype=outputs.dtype, device=outputs.device)
        return level @ outputs.softmax(dim=-2)

    def sample(self, outputs: Tensor, extra: Extra, generator: torch.Generator) -> Tensor:
        """Levels."""
        return drawn(outputs, generator).to(outputs.dtype)


@dataclass(frozen=True)
class Binomial(WholeNumbers, NoExtra):
    """Levels 0 … V − 1 as V − 1 trials.

    Args:
        levels: V.
    """

    levels: int
    num_outputs: ClassVar[int] = 1

    def start(self, x: Tensor) -> Tensor:
        """Logits of the mean."""
        n = self.levels - 1
        return ((x.sum(dim=0) + _LEAST) / (n * len(x) + 2 * _LEAST)).logit()[None]

    def log_prob(self, outputs: Tensor, extra: Extra, x: Tensor) -> Tensor:
        """Σ ln C(n, x) + x ln p + (n − x) ln(1 − p)."""
        n, logits = self.levels - 1, outputs.squeeze(-2)
        ways = math.lgamma(n + 1) - torch.lgamma(x + 1) - torch.lgamma(n - x + 1)
        return (ways + x * logsigmoid(logits) + (n - x) * logsigmoid(-logits)).sum(dim=-1)

    def mean(self, outputs: Tensor, extra: Extra) -> Tensor:
        """Mean level."""
        return (self.levels - 1) * outputs[..., 0, :].sigmoid()

    def sample(self, outputs: Tensor, extra: Extra, generator: torch.Generator) -> Tensor:
        """Levels."""
        p = outputs[..., 0, :].sigmoid()
        return torch.binomial(torch.full_like(p, self.levels - 1), p, generator=generator)


@dataclass(frozen=True)
class Gaussian(AsGiven):
    """Real numbers.

    Args:
        scale: Standard deviation of every pixel, where it is known; None: trained.
        per_pixel: Whether the decoder gives one a pixel and row, rather than one for all.
    """

    scale: float | None = None
    per_pixel: bool = False

    def __post_init__(self) -> None:
        """Check the scale.

        Raises:
            ValueError: If it is not positive, or given and to be trained.
        """
        if self.scale is not None and (self.per_pixel or not self.scale > 0):
            raise ValueError(
                "`Gaussian(scale=...)` must be positive, and None where the decoder gives it; got "
                f"{self.scale}, per_pixel={self.per_pixel}."
            )

    @property
    def num_outputs(self) -> int:
        """Means, and log scales where these differ from pixel to pixel."""
        return 2 if self.per_pixel else 1

    def check(self, x: Tensor) -> None:
        """Any finite numbers."""

    def encoded(self, x: Tensor) -> Tensor:
        """As they are."""
        return x

    def start(self, x: Tensor) -> Tensor:
        """Means, and log standard deviations."""
        loc = x.mean(dim=0)
        if not self.per_pixel:
            return loc[None]
        return torch.stack([loc, x.std(dim=0).clamp(min=_FLOOR).log()])

    def extra(self, x: Tensor) -> Extra:
        """The log scale that all pixels share."""
        if self.per_pixel or self.scale is not None:
            return {}
        return {"log_scale": (x - x.mean(dim=0)).std().clamp(min=_FLOOR).log()}

    def log_prob(self, outputs: Tensor, extra: Extra, x: Tensor) -> Tensor:
        """Normal log density."""
        loc, log_scale = self._parts(outputs, extra)
        away = (x - loc) * (-log_scale).exp()
        return (-0.5 * away.square() - log_scale - 0.5 * math.log(2 * math.pi)).sum(dim=-1)

    def mean(self, outputs: Tensor, extra: Extra) -> Tensor:
        """Means."""
        return outputs[..., 0, :]

    def sample(self, outputs: Tensor, extra: Extra, generator: torch.Generator) -> Tensor:
        """Draws."""
        loc, log_scale = self._parts(outputs, extra)
        eps = torch.randn(loc.shape, generator=generator, dtype=loc.dtype, device=loc.device)
        return loc + log_scale.exp() * eps

    def _parts(self, outputs: Tensor, extra: Extra) -> tuple[Tensor, Tensor]:
        loc = outputs[..., 0, :]
        if self.per_pixel:
            return loc, outputs[..., 1, :]
        if self.scale is not None:
            return loc, torch.full_like(loc, math.log(self.scale))
        return loc, extra["log_scale"]


def _counts(x: Tensor, levels: int) -> Float[Tensor, " v p"]:
    seen = one_hot(x.long(), levels).sum(dim=0).mT.to(x.dtype)
    return (seen + _LEAST) / (len(x) + levels * _LEAST)


def drawn(logits: Float[Tensor, "*n k p"], generator: torch.Generator) -> Tensor:
    """Indices of pixels, by the largest of noisy logits (Gumbel 1954)."""
    u = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
    return (logits - (-u.clamp(TINY, 1 - TINY).log()).log()).argmax(dim=-2)


def check_levels(x: Tensor, levels: int) -> None:
    """Whole numbers from 0 to V − 1.

    Raises:
        ValueError: If one is not.
    """
    if bool((x != x.round()).any()):
        raise ValueError(
            f"pixels must be whole numbers from 0 to {levels - 1}; for real ones use `Gaussian`."
        )
    if bool(((x < 0) | (x >= levels)).any()):
        raise ValueError(
            f"pixels must be from 0 to {levels - 1}, got {float(x.min()):g} to {float(x.max()):g}."
        )
