r"""What the latents of an autoencoder carry.

    rate R = E KL(q(z|x) ‖ p(z)),   distortion D = −E ln p(x|z),   ELBO = −R − D
    R = I(x; z) + KL(q(z) ‖ p(z))

with q(z) the posterior averaged over rows. A unit is active where the mean code moves with the
data, Var_x E[z|x] > 0.01 (Burda, Grosse & Salakhutdinov 2016, section 5.2). Of n rows no estimate
of the information exceeds ln n. Alemi et al. (2018), Fixing a broken ELBO; Hoffman & Johnson
(2016), ELBO surgery.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc._table import text_table
from probcalc.inference.hierarchical import Bound

_ACTIVE = 0.01
_COLLAPSED = 0.1  # nats: a rate below it carries nothing
_FULL = 0.9  # of ln n, at which the information is only bounded


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Nats a row.

    Args:
        rate: Mean KL of posteriors to priors, by level.
        distortion: Mean of −ln p(x|z).
        unit_kl: Mean KL of every latent.
        unit_variance: Variance over rows of its mean code.
        information: Estimate of I(x; z).
        num_rows: Rows looked at.
        verdict: In words.
    """

    rate: Float[Tensor, " l"]
    distortion: float
    unit_kl: Float[Tensor, " b"]
    unit_variance: Float[Tensor, " b"]
    information: float
    num_rows: int
    verdict: str

    @property
    def elbo(self) -> float:
        """Mean evidence lower bound."""
        return -float(self.rate.sum()) - self.distortion

    @property
    def active_units(self) -> int:
        """Latents whose code moves with the data."""
        return int((self.unit_variance > _ACTIVE).sum())

    @property
    def is_collapsed(self) -> bool:
        """Whether the decoder ignores the latents."""
        return float(self.rate.sum()) < _COLLAPSED or self.active_units == 0

    def __str__(self) -> str:
        rows = [
            ("ELBO", f"{self.elbo:.4g}"),
            ("rate", ", ".join(f"{r:.4g}" for r in self.rate.tolist())),
            ("distortion", f"{self.distortion:.4g}"),
            ("active units", f"{self.active_units} of {len(self.unit_kl)}"),
            ("information", f"{self.information:.4g} (at most {math.log(self.num_rows):.4g})"),
        ]
        return text_table(("nats a row", ""), rows) + f"\n{self.verdict}"


def diagnosis(
    bound: Bound,
    q: Any,
    unit_kl: Float[Tensor, " b"],
    generator: torch.Generator,
) -> Diagnosis:
    """From bounds of rows and draws, codes, and KLs of units."""
    rate = bound.kl.flatten(1).mean(dim=1).double()
    variance = q.mean.double().var(dim=0).reshape(len(unit_kl), -1).sum(dim=1)
    information = _information(q, generator)
    active = int((variance > _ACTIVE).sum())
    total, n, units = float(rate.sum()), len(q.mean), len(unit_kl)
    if total < _COLLAPSED or not active:
        verdict = (
            "Collapsed: the posterior is the prior, and the decoder ignores the latents. Try a "
            "warm-up of `beta`, `free_nats`, or a weaker decoder."
        )
    elif active < units:
        dead = [i for i in range(units) if float(variance[i]) <= _ACTIVE]
        verdict = f"{len(dead)} of {units} units carry nothing: {', '.join(map(str, dead))}."
    else:
        verdict = "Every unit is in use."
    if information > _FULL * math.log(n):
        verdict += f" {n:,} rows are too few to measure the information: it is a lower bound."
    return Diagnosis(
        rate,
        -float(bound.reconstruction.mean()),
        unit_kl.double(),
        variance,
        information,
        n,
        verdict,
    )


def _information(q: Any, generator: torch.Generator) -> float:
    """E ln q(z|x) − ln (1/n) Σ q(z|x_j), one draw a row, blocks of rows against all."""
    like, total = q.mean.flatten(1), 0.0
    kind = {"dtype": like.dtype, "device": like.device}
    z, n = q.draw(torch.randn(like.shape, generator=generator, **kind)), len(like)
    own, size = q.log_prob(z), max(1, 2**24 // like.numel())
    for i in range(0, n, size):
        all_rows = q.log_prob(z[i : i + size, None]).logsumexp(dim=1) - math.log(n)
        total += float((own[i : i + size] - all_rows).double().sum())
    return total / n
