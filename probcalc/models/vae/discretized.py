r"""Levels by logistic distributions cut at the edges, and by mixtures of them.

Level v of 0 … V − 1 has the mass between its edges, the outer levels all that is beyond them:

    ln (σ(b) − σ(a)) = ln σ(b) + ln σ(−a) + ln(1 − e^{a − b})

in which nothing cancels. Salimans, Karpathy, Chen & Kingma (2017), PixelCNN++, section 2.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from probcalc.models.vae.likelihoods import TINY, Extra, WholeNumbers, drawn

_NARROW = -7.0  # log scale, in units of the range: far below a level's width


@dataclass(frozen=True)
class DiscretizedLogistic(WholeNumbers):
    """Levels 0 … V − 1 by logistic distributions, or mixtures of them, cut at the edges.

    Args:
        levels: V.
        num_components: Of the mixture of every pixel.
        shared_scale: Whether a pixel has the same scales in every row, rather than ones that the
            decoder gives: fewer numbers to overfit.
    """

    levels: int
    num_components: int = 1
    shared_scale: bool = False

    @property
    def num_outputs(self) -> int:
        """Locations, log scales, and log weights of several components."""
        kinds = 1 + (not self.shared_scale) + (self.num_components > 1)
        return kinds * self.num_components

    def start(self, x: Tensor) -> Tensor:
        """Means and standard deviations, in units of the range; components spread over them."""
        loc, log_scale = self._marginals(x)
        scales = [] if self.shared_scale else [log_scale]
        weights = [torch.zeros_like(loc)] if self.num_components > 1 else []
        return torch.cat([loc, *scales, *weights])

    def extra(self, x: Tensor) -> Extra:
        """Log scales by component and pixel, where all rows share them."""
        return {"log_scale": self._marginals(x)[1].clone()} if self.shared_scale else {}

    def _marginals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u, m = self.encoded(x), self.num_components
        sd = u.std(dim=0).clamp(min=1 / self.levels)
        places = torch.linspace(-1, 1, m).to(u)[:, None] if m > 1 else 0.0
        loc = u.mean(dim=0) + places * sd[None]
        return loc, (sd * (math.sqrt(3) / math.pi / m)).log().expand_as(loc)

    def log_prob(self, outputs: Tensor, extra: Extra, x: Tensor) -> Tensor:
        """Masses of the levels."""
        loc, log_scale, weights = self._parts(outputs, extra)
        u, half, rate = self.encoded(x).unsqueeze(-2), 0.5 / (self.levels - 1), (-log_scale).exp()
        upper, lower = (u + half - loc) * rate, (u - half - loc) * rate
        # the outer levels reach to infinity, where both terms below are zero
        last, first = u > 1 - half, u < half
        top = torch.where(last, 0.0, logsigmoid(upper))
        bottom = torch.where(first, 0.0, logsigmoid(-lower))
        width = 2 * half * rate.expand_as(upper)
        between = torch.where(last | first, 0.0, torch.log(-torch.expm1(-width)))
        masses = top + bottom + between
        if weights is not None:
            masses = masses + log_softmax(weights, dim=-2)
        return masses.logsumexp(dim=-2).sum(dim=-1)

    def mean(self, outputs: Tensor, extra: Extra) -> Tensor:
        """Location in levels, within the range; of a mixture the mean of them."""
        loc, _, weights = self._parts(outputs, extra)
        loc = loc.clamp(0, 1)
        if weights is not None:
            loc = loc * weights.softmax(dim=-2)
        return (self.levels - 1) * loc.sum(dim=-2)

    def sample(self, outputs: Tensor, extra: Extra, generator: torch.Generator) -> Tensor:
        """Levels."""
        loc, log_scale, weights = self._parts(outputs, extra)
        if weights is not None:
            chosen = drawn(weights, generator).unsqueeze(-2)
            loc, log_scale = loc.gather(-2, chosen), log_scale.gather(-2, chosen)
        u = torch.rand(loc.shape, generator=generator, dtype=loc.dtype, device=loc.device)
        x = loc + log_scale.exp() * u.clamp(TINY, 1 - TINY).logit()
        return ((self.levels - 1) * x).round().clamp(0, self.levels - 1).squeeze(-2)

    def _parts(self, outputs: Tensor, extra: Extra) -> tuple[Tensor, Tensor, Tensor | None]:
        parts = list(outputs.split(self.num_components, dim=-2))
        loc = parts.pop(0)
        log_scale = extra["log_scale"] if self.shared_scale else parts.pop(0)
        weights = parts.pop(0) if parts else None
        return loc, log_scale.clamp(min=_NARROW).expand_as(loc), weights
