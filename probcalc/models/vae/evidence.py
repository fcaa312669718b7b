r"""The evidence of rows from importance weights: ln (1/K) Σ w_k, row by row.

In the mean it is below ln p(x), by about Var(w)/(2 K E[w]²) where weights have a variance. Where
their tail is that of a Pareto law of index 1/k with ½ < k < 1, the bias falls like K^(1 − 1/k)
only. The bound of K/10 draws, from the same weights in groups, shows how large it was; what is
left of it follows from k. Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders;
Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.integration.tails import pareto_khat
from probcalc.result import Estimate
from probcalc.status import Status

_LOST, _FLAGGED = 0.85, 0.05  # tail, and share of rows that have it, that is flagged
_EVEN = 0.5  # share of effective draws above which the tail is of no account
_STEP = 10  # of the number of draws, from which the bias is told
_MARGIN = 0.1  # of k̂, which is low where the tail has hardly been seen
_SLOWEST = 0.1  # power of K by which a bias is taken to fall at least
_CURVE = (1, 10, 100, 1_000, 10_000)


@dataclass(frozen=True, eq=False)
class Weighed:
    """What the weights of rows say.

    Args:
        log_p: Estimate of the log evidence.
        ess: Effective draws, 1/Σ w̄².
        khat: Shape of the tail.
        bias: How far the estimate is still below, in the mean.
        curve: Bounds of few and of many draws.
    """

    log_p: Float[Tensor, " n"]
    ess: Float[Tensor, " n"]
    khat: Float[Tensor, " n"]
    bias: Float[Tensor, " n"]
    curve: Float[Tensor, "n c"]

    @classmethod
    def of(cls, log_w: Float[Tensor, "n k"]) -> Weighed:
        """From the log weights of rows."""
        num = log_w.shape[1]
        log_p, khat = bound_of(log_w, num), pareto_khat(log_w)
        gain = log_p - bound_of(log_w, max(1, num // _STEP))
        power = (1 / (khat + _MARGIN).clamp(0.5, 1.0) - 1).clamp(min=_SLOWEST)
        shrink = _STEP**-power
        return cls(
            log_p,
            1 / log_w.softmax(dim=1).square().sum(dim=1),
            khat,
            gain * shrink / (1 - shrink),
            torch.stack([bound_of(log_w, k) for k in counts(num)], dim=1),
        )

    def estimate(self, confidence: float, num: int) -> Estimate:
        """Mean over the rows."""
        n = len(self.log_p)
        relative = (1 / self.ess - 1 / num).clamp(min=0.0)  # variances of mean weights
        std_error = relative.sum().sqrt() / n
        width = math.sqrt(2) * torch.erfinv(torch.tensor(confidence, dtype=torch.float64))
        matters = self.ess < _EVEN * num
        lost = float(((self.khat >= _LOST) & matters).double().mean())
        status = Status.INFINITE_VARIANCE if lost > _FLAGGED else Status.OK
        return Estimate(
            self.log_p.mean(),
            width.to(std_error.device) * std_error + self.bias.mean(),
            std_error=std_error,
            confidence=confidence,
            status=torch.tensor(int(status)),
            num_evals=n * num,
            method=f"importance weights, {num:,} draws a row",
            diagnostics={
                "each": self.log_p,
                "ess": self.ess,
                "khat": self.khat,
                "bias": float(self.bias.mean()),
                "curve": dict(zip(counts(num), self.curve.mean(dim=0).tolist(), strict=True)),
                "data_std_error": float(self.log_p.std() / math.sqrt(n)) if n > 1 else math.inf,
            },
        )


def joined(parts: Sequence[Weighed]) -> Weighed:
    """All rows together."""
    return Weighed(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Weighed)))


def bound_of(log_w: Float[Tensor, "n k"], num: int) -> Float[Tensor, " n"]:
    """Importance-weighted bound of `num` draws, its mean over all groups of so many.

    Of groups within groups, bounds of more draws are never below.
    """
    groups = log_w[:, : log_w.shape[1] // num * num].unflatten(1, (-1, num))
    return (groups.logsumexp(dim=2) - math.log(num)).mean(dim=1)


def counts(num: int) -> list[int]:
    """Numbers of draws of the curve."""
    return [k for k in _CURVE if k < num] + [num]
