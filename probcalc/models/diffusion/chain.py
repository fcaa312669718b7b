r"""The bound of a diffusion model: the hierarchical ELBO of a chain whose posterior is fixed.

    −ln p(x) ≤ KL(q(z_1|x) ‖ N(0, I)) − E ln p(x|z_0) + L,
    L = ½ E γ′(t) ‖ε − ε̂(z_t)‖²,   or, in T steps,   ½ T E expm1(γ_t − γ_s) ‖ε − ε̂(z_t)‖²

with ‖ε − ε̂‖² = SNR ‖x − x̂‖². Kingma, Salimans, Poole & Ho (2021), sections 3-4 and E.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcalc.inference.hierarchical import Bound, Normals, hierarchical_elbo
from probcalc.models.diffusion.schedules import signal_and_noise


class DiffusionChain(nn.Module):
    """Denoiser and schedule.

    Args:
        network: From z, γ and a condition to numbers ``(n, k, p)``.
        gamma: The schedule's module.
        prediction: What the numbers mean.
        kind: What diffuses.
        bias: Added to the numbers.
    """

    def __init__(
        self, network: nn.Module, gamma: nn.Module, prediction: Any, kind: Any, bias: Tensor
    ) -> None:
        super().__init__()
        self.network, self.gamma = network, gamma
        self.bias = nn.Parameter(bias.clone())
        self.prediction, self.kind = prediction, kind

    def guess(
        self, z: Float[Tensor, "n p"], gamma: Float[Tensor, " n"], condition: Tensor | None
    ) -> Float[Tensor, "n p"]:
        """x̂, from what diffused."""
        out = self.network(z, gamma, condition) + self.bias
        return self.prediction.x(out, z, gamma, self.kind)

    def noised(self, x: Tensor, gamma: Tensor, eps: Tensor) -> Tensor:
        """z_t."""
        alpha, sigma = (s[..., None] for s in signal_and_noise(gamma))
        return alpha * x + sigma * eps

    def error(
        self,
        x: Float[Tensor, "n p"],
        gamma: Float[Tensor, " n"],
        eps: Float[Tensor, "n p"],
        condition: Tensor | None,
    ) -> Float[Tensor, " n"]:
        """‖ε − ε̂‖² at one draw a row."""
        found = self.guess(self.noised(x, gamma, eps), gamma, condition)
        return (-gamma).exp() * (x - found).square().sum(dim=-1)

    def diffusion(
        self,
        x: Float[Tensor, "n p"],
        t: Float[Tensor, " n"],
        eps: Float[Tensor, "n p"],
        condition: Tensor | None,
        num_steps: int | None = None,
    ) -> Float[Tensor, " n"]:
        """One term a row of the diffusion loss; in steps, t is taken up to the next step."""
        if num_steps is None:
            gamma, slope = self.gamma(t)
            factor: list[Tensor] = []
            for part in (gamma, slope):
                if part.requires_grad:  # the schedule goes where squares of terms are small
                    part.register_hook(lambda grad: 2 * factor[0] * grad)
            terms = 0.5 * slope * self.error(x, gamma, eps, condition)
            factor.append(terms.detach())
            return terms
        t = ((t * num_steps).floor() + 1) / num_steps
        later, earlier = self.gamma(t)[0], self.gamma(t - 1 / num_steps)[0]
        weight = 0.5 * num_steps * torch.expm1(later - earlier)
        return weight * self.error(x, later, eps, condition)

    def ends(
        self, rows: Float[Tensor, "n p"], x: Float[Tensor, "n p"], eps: Float[Tensor, "n p"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Prior KL and reconstruction; `rows` as they were given, `x` as they diffuse."""
        first, last = self.gamma.start.expand(len(x)), self.gamma.end.expand(len(x))
        reconstruction = self.kind.log_prob(rows, self.noised(x, first, eps), first)
        return self._last(x, last).kl(_standard(x)), reconstruction

    def hierarchical_bound(
        self,
        rows: Float[Tensor, "n p"],
        x: Float[Tensor, "n p"],
        eps: Float[Tensor, "l n p"],
        condition: Tensor | None,
    ) -> Bound:
        """The same bound level by level, down a chain of T = l − 1 steps."""
        num = len(eps) - 1
        times = torch.arange(num + 1, dtype=x.dtype, device=x.device) / num
        gammas = self.gamma(times)[0]
        q = self._last(x, gammas[-1].expand(len(x)))
        levels, z = [(q, _standard(x))], q.draw(eps[-1])
        for i in reversed(range(num)):
            earlier, later = gammas[i].expand(len(x)), gammas[i + 1].expand(len(x))
            q = step_back(z, x, earlier, later)
            p = step_back(z, self.guess(z, later, condition), earlier, later)
            levels.insert(0, (q, p))
            z = q.draw(eps[i])
        return hierarchical_elbo(self.kind.log_prob(rows, z, gammas[0].expand(len(x))), levels)

    def _last(self, x: Tensor, gamma: Tensor) -> Normals:
        alpha, sigma = (s[..., None] for s in signal_and_noise(gamma))
        return Normals(alpha * x, sigma.log().expand_as(x))


def step_back(
    z: Float[Tensor, "n p"],
    x: Float[Tensor, "n p"],
    earlier: Float[Tensor, " n"],
    later: Float[Tensor, " n"],
) -> Normals:
    """Q(z_s | z_t, x): with a guess in the place of x, the model's step."""
    share = -torch.expm1(earlier - later)[..., None]  # of the variance that is new since s
    a_s, sigma_s = (s[..., None] for s in signal_and_noise(earlier))
    a_t, _ = (s[..., None] for s in signal_and_noise(later))
    loc = (a_s / a_t) * (1 - share) * z + a_s * share * x
    return Normals(loc, (sigma_s.log() + 0.5 * share.log()).expand_as(loc))


def _standard(x: Tensor) -> Normals:
    return Normals(torch.zeros_like(x), torch.zeros_like(x))
