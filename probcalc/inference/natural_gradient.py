r"""Natural gradient ascent of the ELBO of a Gaussian, by steps that keep its precision positive.

    g = E_q[∇ log p],   G = −E_q[∇² log p] = −E_q[Λ (z − m) ∇ log pᵀ]       (Stein, symmetrised)
    R = Λ − G
    Λ ← Λ − ρ R + ½ ρ² R Λ⁻¹ R,     m ← m + ρ Λ⁻¹ g

With Λ = L⁻ᵀL⁻¹ and A = LᵀGL the new precision is L⁻ᵀ(½ I + ½ (I − ρ (I − A))²) L⁻¹, positive for
every ρ and A. One step with ρ = 1 solves a Gaussian target up to the noise of A. For independent
coordinates all matrices are diagonal.

The rate is cut where the step would be long, and falls like 1/t once the ELBO no longer rises, as
in stochastic approximation; the averages of the later steps are what is returned. Lin, Schmidt &
Khan (2020), Handling the positive-definite constraint in the Bayesian learning rule, section 3;
Khan & Rue (2023), The Bayesian learning rule, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc._random import child
from probcalc.inference.convergence import standard_error
from probcalc.inference.guides import FullRank, Guide, MeanField
from probcalc.inference.guides.gaussian import lower_root
from probcalc.inference.solved import Progress, Solved
from probcalc.integration.normal_draws import normal_draws
from probcalc.linalg import symmetric
from probcalc.status import Status

if TYPE_CHECKING:
    from probcalc.inference.target import Target

_DRAWS, _PAIRS = 0, 1  # streams of the seed
_WINDOW = 10  # steps whose ELBO is compared with that of the steps before
_PARTS = 8  # of the averaged steps, for their standard error
_LONGEST = 2.0  # step of the mean, in standard deviations a coordinate, root mean square
_NUM_PAIRS = 256  # base draws behind a divergence


@dataclass(frozen=True)
class NaturalGradient:
    """Natural gradient steps for `FullRank` and `MeanField`.

    Args:
        rate: ρ of the first steps, at most 1.
        num_draws: Of a step; None: 4 d for `FullRank`, as A has d² entries, and 32 otherwise.
        max_steps: Steps after which an average that has not settled is flagged.
        tolerance: Of the average: each coordinate's error in its own standard deviations, root
            mean square.
    """

    rate: float = 0.5
    num_draws: int | None = None
    max_steps: int = 1_000
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If the rate is not in (0, 1] or a number is not positive.
        """
        if not 0 < self.rate <= 1:
            raise ValueError(f"`NaturalGradient(rate=...)` must be in (0, 1], got {self.rate}.")
        for name in ("num_draws", "max_steps", "tolerance"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`NaturalGradient({name}=...)` must be positive, got {value}.")

    def solve(
        self,
        target: Target,
        guide: Guide,
        params: dict[str, Tensor],
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> Solved:
        """Step, average, and judge.

        Raises:
            ValueError: If the guide is neither full-rank nor mean-field.
        """
        if not isinstance(guide, (FullRank, MeanField)):
            raise ValueError(
                "`NaturalGradient` is for `FullRank()` and `MeanField()`, whose natural "
                f"parameters are known, got {type(guide).__name__}; use `Stochastic()`."
            )
        d = target.dim
        n = self.num_draws or (max(32, 4 * d) if isinstance(guide, FullRank) else 32)
        n += n % 2
        stream = child(seed, _DRAWS, target.device)
        path, elbos, falling, skipped = [], [], 0, 0
        done = False
        for step in range(self.max_steps):
            eps = normal_draws(1, n, d, generator=stream)[0]
            rate = self.rate / (1 + falling / _WINDOW)
            new, elbo = _stepped(target, guide, params, eps, rate)
            if new is None:
                skipped += 1
                params = _drawn_in(guide, params)  # nearer to where the density was finite
                continue
            params = new
            elbos.append(elbo)
            falling = falling + 1 if falling or _is_flat(elbos) else 0
            if falling:
                path.append(params)
            if progress and step % _WINDOW == 0:
                progress(f"natural gradient ({step + 1} steps)", (step + 1) * n)
            if falling and falling % (2 * _PARTS) == 0:
                done = self._is_exact(guide, path, d, seed)
                if done:
                    break
        used = len(elbos) + skipped
        found = _average(guide, path or [params])
        status, reasons = _verdict(done, skipped, used, bool(elbos))
        return Solved(
            guide,
            found,
            f"natural gradient ({used} steps of {n} draws)",
            used * n,
            used * n,
            status,
            reasons,
            torch.stack(elbos) if elbos else None,
            {"num_averaged": len(path), "skipped": skipped},
        )

    def _is_exact(self, guide: Any, path: list[dict[str, Tensor]], d: int, seed: int) -> bool:
        """Whether the average over the later half of the steps is known well enough."""
        late = path[len(path) // 2 :]
        size = len(late) // _PARTS
        if size == 0:
            return False
        parts = [_average(guide, late[i * size : (i + 1) * size]) for i in range(_PARTS)]
        names = list(parts[0])
        stacked = torch.stack([torch.cat([p[k].flatten() for k in names]) for p in parts])
        shapes = {k: parts[0][k].shape for k in names}

        def unflatten(flat: Tensor) -> dict[str, Tensor]:
            pieces = flat.split([s.numel() for s in shapes.values()], dim=-1)
            return {
                k: t.reshape(*flat.shape[:-1], *shapes[k])
                for k, t in zip(names, pieces, strict=True)
            }

        stream = child(seed, _PAIRS, stacked.device)
        eps = normal_draws(1, _NUM_PAIRS, d, generator=stream)
        error = standard_error(guide, unflatten, stacked[:, None], eps) / d
        return bool(error[0] <= self.tolerance**2)


def _stepped(
    target: Target,
    guide: Guide,
    params: dict[str, Tensor],
    eps: Float[Tensor, "n d"],
    rate: float,
) -> tuple[dict[str, Tensor] | None, Tensor]:
    """Parameters after a step and the ELBO before it; None where a number is not finite."""
    z, _ = guide.transform(params, eps)
    value, grad = target.value_and_grad(z)
    elbo = value.mean() + guide.entropy(params)
    if not bool(elbo.isfinite() & grad.isfinite().all()):
        return None, elbo
    if isinstance(guide, MeanField):
        return _diagonal(params, eps, grad, rate), elbo
    return _dense(params, eps, grad, rate), elbo


def _dense(
    params: dict[str, Tensor], eps: Float[Tensor, "n d"], grad: Float[Tensor, "n d"], rate: float
) -> dict[str, Tensor]:
    L = params["scale_tril"].tril()
    white = grad @ L  # rows Lᵀ∇log p
    A = -symmetric(eps.mT @ white) / len(eps)
    a, Q = torch.linalg.eigh(A)
    precision = 0.5 + 0.5 * (1 - rate * (1 - a)).square()
    shift = Q @ ((Q.mT @ white.mean(dim=0)) / precision)
    loc = params["loc"] + L @ _limited(rate * shift)
    return {"loc": loc, "scale_tril": lower_root(L @ (Q * precision.rsqrt()))}


def _diagonal(
    params: dict[str, Tensor], eps: Float[Tensor, "n d"], grad: Float[Tensor, "n d"], rate: float
) -> dict[str, Tensor]:
    s = params["log_scale"].exp()
    white = grad * s
    a = -(eps * white).mean(dim=0)
    precision = 0.5 + 0.5 * (1 - rate * (1 - a)).square()
    loc = params["loc"] + s * _limited(rate * white.mean(dim=0) / precision)
    return {"loc": loc, "log_scale": params["log_scale"] - 0.5 * precision.log()}


def _limited(step: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """The step in standard deviations, not too long."""
    size = step.square().mean().sqrt()
    return step * (_LONGEST / size).clamp(max=1.0)


def _drawn_in(guide: Guide, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same mean, the scale halved."""
    if isinstance(guide, MeanField):
        return {**params, "log_scale": params["log_scale"] - 0.7}
    return {**params, "scale_tril": 0.5 * params["scale_tril"]}


def _is_flat(elbos: list[Tensor]) -> bool:
    """Whether the mean ELBO of the last steps is within its noise of that of the steps before."""
    if len(elbos) < 2 * _WINDOW:
        return False
    last = torch.stack(elbos[-_WINDOW:])
    before = torch.stack(elbos[-2 * _WINDOW : -_WINDOW])
    noise = ((last.var() + before.var()) / _WINDOW).sqrt()
    rounding = 1e-10 * (1 + last.mean().abs())
    return bool(last.mean() - before.mean() <= 2 * noise + rounding)


def _average(guide: Guide, path: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Means of the parameters, over the later half of the steps."""
    late = path[len(path) // 2 :]
    return {name: torch.stack([p[name] for p in late]).mean(dim=0) for name in late[0]}


def _verdict(
    done: bool, skipped: int, used: int, any_finite: bool
) -> tuple[Status, tuple[str, ...]]:
    notes = (f"{skipped} steps without finite gradients were skipped",) if skipped else ()
    if not any_finite:
        return Status.NON_FINITE, (f"no finite gradient in {used} steps",)
    if not done:
        why = f"after {used} steps the average of the iterates has not settled"
        return Status.NOT_CONVERGED, (why, *notes)
    return Status.OK, notes
