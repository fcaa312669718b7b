r"""`SampleAverage`: the solver that holds its draws still, for any reparametrised guide.

    max_λ  (1/M) Σ_k log p(T_λ(ε_k)) + H[q_λ]

is a deterministic problem with a stopping rule. It can be made better than the truth by fitting
the draws themselves, which shows as a gap between the ELBO over the fixed draws and over fresh
ones: M is doubled until the gap closes. Several sets of draws are solved as one batch.

Burroni, Domke & Sheldon (2024), Sample average approximation for black-box variational
inference, sections 3-4; Giordano, Ingram & Broderick (2024), Black box variational inference
with a deterministic objective.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc._random import child
from probcalc._tree import Layout
from probcalc.inference.gaussian_average import gaussian_average
from probcalc.inference.guides import FullRank, Guide
from probcalc.inference.solved import Progress, Solved
from probcalc.integration.normal_draws import matched_normal_draws, normal_draws
from probcalc.optimization.lbfgs import LBFGS
from probcalc.optimization.minimize import descend
from probcalc.result import Solution
from probcalc.status import Status

if TYPE_CHECKING:
    from probcalc.inference.target import Target

_FIXED, _FRESH = 0, 1  # streams of the seed
_NUM_FRESH = 1024  # draws of each set on which the gap is measured
_FLEXIBLE = 512  # draws at first for a guide that could fit few of them too well
_FLAT = 0.02  # gradient in nats below which what is left does not matter
_RUNAWAY = 1e8  # size of a location or scale at which an ELBO has no maximum


@dataclass(frozen=True)
class SampleAverage:
    """Settings of the sample-average approximation.

    Args:
        num_draws: Fixed draws of a set at first; None: max(32, 2 b) for base draws of length b,
            at most 256; 4 b where a guide has a full covariance, and at least 512 where it has no
            closed entropy to keep it from fitting the draws: flows are better left to
            `Stochastic()`.
        max_draws: Largest number after doubling.
        num_sets: Sets of draws, solved as one batch.
        tolerance: Gap in nats between fixed and fresh draws at which doubling stops.
        max_steps: Evaluations of each set's draws in one solution.
        gtol: See `LBFGS`.
    """

    num_draws: int | None = None
    max_draws: int = 2048
    num_sets: int = 2
    tolerance: float = 0.1
    max_steps: int = 200
    gtol: float = 1e-4

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If a number of draws is odd or below 2.
        """
        for name in ("num_draws", "max_draws"):
            value = getattr(self, name)
            if value is not None and (value < 2 or value % 2):
                raise ValueError(f"`{name}` must be even and at least 2, got {value}.")
        if self.num_sets < 1:
            raise ValueError(f"`num_sets` must be at least 1, got {self.num_sets}.")

    def solve(
        self,
        target: Target,
        guide: Guide,
        params: dict[str, Tensor],
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> Solved:
        """Fit the guide from these parameters, with more draws while fresh ones tell a gap."""
        b = guide.base_dim(target.dim)
        streams = [child(seed, k, target.device) for k in (_FIXED, _FRESH)]
        now = {name: t.expand(self.num_sets, *t.shape).clone() for name, t in params.items()}
        m = min(self.max_draws, self.num_draws or self._first(guide, b))
        gradients = values = 0
        trace: list[Tensor] = []
        while True:
            eps = matched_normal_draws(self.num_sets, m, b, generator=streams[0])
            now, elbo, status, spent = self._solved(target, guide, now, eps)
            gradients += spent
            trace.append(elbo.max())
            fresh = _fresh_elbo(target, guide, now, b, streams[1])
            values += self.num_sets * _NUM_FRESH
            gap = float((elbo - fresh).abs().min())
            if progress:
                progress(f"SAA ({m} draws)", gradients + values)
            settled = gap <= self.tolerance and not status
            if settled or 2 * m > self.max_draws or status & Status.UNBOUNDED or runs_away(now):
                break
            m *= 2
        best = int(fresh.nan_to_num(-torch.inf).argmax())
        flags, reasons = _verdict({k: t[best] for k, t in now.items()}, status, gap)
        return Solved(
            guide,
            {name: t[best].detach() for name, t in now.items()},
            f"{_name(guide)} SAA ({self.num_sets} sets of {m} draws)",
            gradients,
            gradients + values,
            flags,
            reasons,
            torch.stack(trace),
            {"gap": gap, "num_draws": m, "params": now},
        )

    def _first(self, guide: Guide, b: int) -> int:
        if not hasattr(guide, "entropy"):
            return max(_FLEXIBLE, 4 * b)
        return max(32, 4 * b) if isinstance(guide, FullRank) else min(max(32, 2 * b), 256)

    def _solved(
        self, target: Target, guide: Guide, params: dict[str, Tensor], eps: Float[Tensor, "r m b"]
    ) -> tuple[dict[str, Tensor], Tensor, Status, int]:
        if isinstance(guide, FullRank):
            done = gaussian_average(
                target.value_and_grad, params["loc"], params["scale_tril"], eps
            )
            flags = Status.OK if bool(done.converged.any()) else Status.NOT_CONVERGED
            params = {"loc": done.loc, "scale_tril": done.scale_tril}
            return params, done.elbo, flags, done.num_gradients
        found, params = solve_fixed(
            target.value_and_grad, guide, params, eps, gtol=self.gtol, max_steps=self.max_steps
        )
        good = (found.status == Status.OK) | (found.grad_norm <= _FLAT)
        flags = Status.OK if bool(good.any()) else Status.joined(found.status)
        return params, -found.value, flags, int(found.num_evals.sum()) * eps.shape[1]


def solve_fixed(
    value_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]],
    guide: Guide,
    params: dict[str, Tensor],
    eps: Float[Tensor, "r m b"],
    *,
    gtol: float,
    max_steps: int,
) -> tuple[Solution, dict[str, Tensor]]:
    """Maximise the ELBO of a guide over fixed draws, for a batch of sets; the value is −ELBO.

    Args:
        value_and_grad: Log density and gradient of rows.
        guide: The family.
        params: Starts, one along the first axis for each set.
        eps: Base draws.
        gtol: See `LBFGS`.
        max_steps: Evaluations of a set.
    """
    layout = Layout({name: tuple(t.shape[1:]) for name, t in params.items()})
    m = eps.shape[1]

    def oracle(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            z, log_q = guide.transform(layout.unflatten(leaf), eps[rows])
            spread = _entropy(guide, layout.unflatten(leaf), log_q)
            log_p, g = value_and_grad(z.detach())
            (slope,) = torch.autograd.grad(
                [z, spread], leaf, [-g / m, -torch.ones_like(spread)], allow_unused=True
            )
        return -log_p.mean(dim=1) - spread.detach(), slope

    found = descend(oracle, layout.flatten(params), method=LBFGS(gtol=gtol), max_evals=max_steps)
    return found, layout.unflatten(found.x)


def _entropy(guide: Any, params: dict[str, Tensor], log_q: Float[Tensor, "r m"]) -> Tensor:
    exact = getattr(guide, "entropy", None)
    return -log_q.mean(dim=1) if exact is None else exact(params)


def _fresh_elbo(
    target: Target, guide: Guide, params: dict[str, Tensor], b: int, stream: torch.Generator
) -> Float[Tensor, " r"]:
    r = len(next(iter(params.values())))
    eps = normal_draws(r, _NUM_FRESH, b, generator=stream)
    with torch.no_grad():
        z, log_q = guide.transform(params, eps)
        return target.log_density(z).mean(dim=1) + _entropy(guide, params, log_q)


def runs_away(params: dict[str, Tensor]) -> bool:
    """Has a location or scale left every reasonable place?"""
    logs = [t.exp() if name.startswith("log_") else t for name, t in params.items()]
    return any(not bool(t.abs().max() < _RUNAWAY) for t in logs)


def _verdict(
    params: dict[str, Tensor], status: Status, gap: float
) -> tuple[Status, tuple[str, ...]]:
    if runs_away(params) or not gap < torch.inf or status & Status.UNBOUNDED:
        return Status.IMPROPER, ("the ELBO has no maximum: it grows without bound",)
    if status:
        return status, ("no set of draws was solved to a small gradient",)
    return Status.OK, ()


def _name(guide: Guide) -> str:
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in type(guide).__name__)
    return words.strip().replace(" ", "-")
