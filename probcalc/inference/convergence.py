r"""When the steps of a stochastic optimiser have settled, and how exact their average is.

Iterates around an optimum are a Markov chain: split R̂ says whether it is stationary, and their
average has a standard error. Both are computed from sums over blocks of steps, which are merged
in pairs as they grow in number, so that memory does not grow with the run.

The standard error is measured on the distributions themselves, in any parametrisation: with the
averages λ_j of J parts of a window and λ̄ of all of it,

    E SKL(q_λ̄, q_λ*)  ≈  mean_j SKL(q_λ_j, q_λ̄) / (J − 1)

where SKL(q, r) = KL(q‖r) + KL(r‖q), in nats: δ² for a mean that is off by δ standard deviations.

Dhaka, Catalina, Andersen, Magnusson, Huggins & Vehtari (2020), Robust, accurate stochastic
optimization for variational inference; Welandawe, Andersen, Vehtari & Huggins (2024), A framework
for improving the reliability of black-box variational inference, sections 4-5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_CAPACITY = 64  # blocks; merged in pairs when full
_PARTS = 8  # of a window, for its standard error
_SHARES = (0.95, 0.76, 0.57, 0.38, 0.19)  # of all blocks: the windows that are tried


class Iterates(nn.Module):
    """Sums and sums of squares of iterates ``(r, p)`` by blocks; buffers, so they are saved."""

    sums: Tensor
    squares: Tensor
    counts: Tensor

    def __init__(self, like: Float[Tensor, "r p"]) -> None:
        super().__init__()
        blank = like.detach().new_zeros(_CAPACITY + 1, *like.shape)
        self.register_buffer("sums", blank)
        self.register_buffer("squares", blank.clone())
        # full blocks, steps of a block, steps of the open block (the row after the full ones)
        self.register_buffer("counts", torch.tensor([0, 1, 0]))

    def clear(self) -> None:
        """Forget everything."""
        self.sums.zero_()
        self.squares.zero_()
        self.counts.copy_(torch.tensor([0, 1, 0]))

    def add(self, x: Float[Tensor, "r p"]) -> None:
        """One more iterate."""
        k, length, steps = self.counts.tolist()
        self.sums[k] += x
        self.squares[k].addcmul_(x, x)
        if steps + 1 < length:
            self.counts[2] = steps + 1
            return
        k += 1
        if k == _CAPACITY:
            k, length = k // 2, 2 * length
            for t in (self.sums, self.squares):
                t[:k] = t[: 2 * k].view(k, 2, *t.shape[1:]).sum(dim=1)
                t[k:] = 0.0
        self.counts.copy_(torch.tensor([k, length, 0]))

    def average(self, num_blocks: int | None = None) -> Float[Tensor, "r p"]:
        """Mean over the last blocks; None: over the later half of all steps."""
        k, length, steps = self.counts.tolist()
        if k == 0:
            return self.sums[0] / max(1, steps)
        last = max(1, num_blocks or k // 2)
        return self.sums[k - last : k].mean(dim=0) / length

    def settled(self, limit: float) -> Float[Tensor, "j r p"] | None:
        """Averages over the parts of the window that is nearest to stationary, if one is.

        None where no window's R̂ is below the limit for every parameter.
        """
        k, length, _ = self.counts.tolist()
        best, chosen = limit, 0
        for share in _SHARES:
            window = int(share * k) // _PARTS * _PARTS
            if window == 0:
                continue
            rhat = float(self._split_rhat(k, window, length).max())
            if rhat <= best:
                best, chosen = rhat, window
        if not chosen:
            return None
        parts = self.sums[k - chosen : k].view(_PARTS, chosen // _PARTS, *self.sums.shape[1:])
        return parts.mean(dim=1) / length

    def _split_rhat(self, k: int, window: int, length: int) -> Float[Tensor, "r p"]:
        """√((n − 1)/n + B/(n W)) of the halves of the last blocks."""
        halves = (t[k - window : k].view(2, window // 2, *t.shape[1:]) for t in self._both())
        means, squares = (t.mean(dim=1) / length for t in halves)
        n = window // 2 * length
        within = (squares - means.square()).mean(dim=0).clamp(min=0.0)
        between = (means[0] - means[1]).square() / 2
        # a parameter that does not move at all is settled; so is one that moves by rounding
        rounding = torch.finfo(means.dtype).eps * (1 + means.square().mean(dim=0))
        return ((n - 1) / n + between / (within + rounding)).sqrt()

    def _both(self) -> tuple[Tensor, Tensor]:
        return self.sums, self.squares


def symmetrised_kl(
    guide: Any,
    p: dict[str, Tensor],
    q: dict[str, Tensor],
    eps: Float[Tensor, "*batch n b"],
) -> Float[Tensor, "*batch"]:
    """KL(p‖q) + KL(q‖p) of two members of a family, on common base draws.

    The draws of both come from the same numbers, so that the noise falls with the difference.
    """
    with torch.no_grad():
        at_p, at_q = guide.transform(p, eps)[0], guide.transform(q, eps)[0]
        apart: Callable[[Tensor], Tensor] = lambda z: (  # noqa: E731
            guide.log_prob(p, z) - guide.log_prob(q, z)
        )
        return (apart(at_p) - apart(at_q)).mean(dim=-1).clamp(min=0.0)  # below: rounding


def standard_error(
    guide: Any,
    unflatten: Callable[[Tensor], dict[str, Tensor]],
    parts: Float[Tensor, "j r p"],
    eps: Float[Tensor, "r n b"],
) -> Float[Tensor, " r"]:
    """Expected SKL of the average over the parts from where it tends to, in nats."""
    mean = unflatten(parts.mean(dim=0))
    each = torch.stack([symmetrised_kl(guide, unflatten(part), mean, eps) for part in parts])
    return each.mean(dim=0) / (len(parts) - 1)
