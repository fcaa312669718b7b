r"""Annealed importance sampling between a guide q and a target p, in both directions.

    log w = Σ_t (β_t − β_{t−1}) [log p(z_t) − log q(z_t)],     0 = β_0 < … < β_T = 1

Forward, z_1 ~ q and z_{t+1} comes from z_t by Hamiltonian moves that leave q^{1−β_t} p^{β_t} as
it is: E w = Z. In reverse, from a draw of the posterior and through the same moves backwards:
E 1/w = 1/Z. Temperatures and step sizes are found by particles of their own, which are then
thrown away, so that both equalities hold exactly.

Neal (2001), Annealed importance sampling; Zhou, Johansen & Aston (2016), Toward automatic model
comparison, section 3.3 (conditional effective sample size); Grosse, Ghahramani & Adams (2015),
Sandwiching the marginal likelihood using bidirectional Monte Carlo; Neal (2011), MCMC using
Hamiltonian dynamics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.inference.importance import num_strata
from probcalc.inference.target import Target
from probcalc.linalg import cholesky_or_none

_DENSE = 512  # dimensions up to which moves are shaped by a full covariance
_FINEST = 1e-7  # smallest step in temperature, as a share of what is left
_GRID = 512  # steps in temperature that are compared
_FIRST_STEP = 0.7  # leapfrog step, times d^(-1/4), before any adaptation
_WARM_UP = 8  # moves at the guide that adapt the step before the first temperature
_RESAMPLE_BELOW = 0.5  # share of effective particles, of those that find the temperatures


@dataclass(frozen=True)
class AnnealedImportance:
    """Settings of annealed importance sampling.

    Args:
        num_particles: Particles in each of the independent blocks behind the error bar.
        conditional_ess: Share of effective particles that one step in temperature may leave;
            nearer to 1: more steps, a tighter bound.
        num_moves: Hamiltonian moves at each temperature.
        num_leapfrog: Leapfrog steps of a move, one gradient a particle each.
        max_temperatures: Most steps; the last one goes the rest of the way.
        acceptance: Share of moves accepted, to which step sizes are adapted.
        num_pilots: Particles that find temperatures and step sizes.
    """

    num_particles: int = 64
    conditional_ess: float = 0.98
    num_moves: int = 3
    num_leapfrog: int = 8
    max_temperatures: int = 256
    acceptance: float = 0.8
    num_pilots: int = 256

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If a count is below 1 or a share not between 0 and 1.
        """
        for name in ("num_particles", "num_moves", "num_leapfrog", "max_temperatures"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.num_pilots < 16:
            raise ValueError(f"`num_pilots` must be at least 16, got {self.num_pilots}.")
        for name in ("conditional_ess", "acceptance"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(
                    f"`{name}` must lie strictly between 0 and 1, got {getattr(self, name)}."
                )


@dataclass(frozen=True, eq=False)
class Bridge:
    """The two ends, and the shape of the moves between them.

    Args:
        target: p, maybe unnormalised.
        guide: Family of q.
        params: Its parameters.
        root: Moves are isotropic in coordinates u with z = root u; ``(d, d)`` or, diagonal,
            ``(d,)``.
    """

    target: Target
    guide: Any
    params: dict[str, Tensor]
    root: Tensor

    @classmethod
    def between(
        cls, target: Target, guide: Any, params: dict[str, Tensor], z: Float[Tensor, "n d"]
    ) -> Bridge:
        """Moves shaped by draws `z` of the guide."""
        params = {name: t.detach() for name, t in params.items()}
        n, d = z.shape
        root = None
        if d <= _DENSE and n > 4 * d:
            root = cholesky_or_none(torch.cov(z.mT).reshape(d, d))
        return cls(target, guide, params, z.std(dim=0) if root is None else root)

    def draws(self, r: int, n: int, generator: torch.Generator) -> Float[Tensor, "r n d"]:
        """Independent blocks of the guide's own draws."""
        return guide_draws(self.target, self.guide, self.params, r, n, generator)[0]

    def at(self, z: Float[Tensor, "n d"]) -> Particles:
        """Densities and gradients of both ends."""
        log_p, grad_p = self.target.value_and_grad(z)
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            log_q = self.guide.log_prob(self.params, leaf)
            (grad_q,) = torch.autograd.grad(log_q.sum(), leaf)
        log_p = torch.where(log_p.isnan(), -torch.inf, log_p)
        return Particles(z, log_p, log_q.detach(), _finite(grad_p), _finite(grad_q))

    def spread(self, u: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """From the coordinates of the moves to those of the target."""
        return u @ self.root.mT if self.root.ndim == 2 else u * self.root

    def pulled(self, grad: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """A gradient in the coordinates of the moves."""
        return grad @ self.root if self.root.ndim == 2 else grad * self.root


def guide_draws(
    target: Target,
    guide: Any,
    params: dict[str, Tensor],
    num_blocks: int,
    num_draws: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "r n d"], Float[Tensor, "r n"]]:
    """Plain draws of a guide in independent blocks, and their log density."""
    like = next(iter(params.values()))
    shape = (num_blocks, num_draws, guide.base_dim(target.dim))
    eps = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
    with torch.no_grad():
        return guide.transform(params, eps)


@dataclass(frozen=True, eq=False)
class Particles:
    """Points with the densities and gradients of both ends."""

    z: Float[Tensor, "n d"]
    log_p: Float[Tensor, " n"]
    log_q: Float[Tensor, " n"]
    grad_p: Float[Tensor, "n d"]
    grad_q: Float[Tensor, "n d"]

    @property
    def log_ratio(self) -> Float[Tensor, " n"]:
        """Log p − log q; a point outside the support of p has −∞."""
        return self.log_p - self.log_q

    def log_bridge(self, beta: float) -> Float[Tensor, " n"]:
        """Log density between the ends; where β is 0 the target has no say."""
        if beta == 0.0:
            return self.log_q
        return (1 - beta) * self.log_q + beta * self.log_p

    def grad_bridge(self, beta: float) -> Float[Tensor, "n d"]:
        """Its gradient."""
        return (1 - beta) * self.grad_q + beta * self.grad_p

    def where(self, accepted: Tensor, other: Particles) -> Particles:
        """Of two sets, particle by particle: `other` where accepted."""
        a = accepted[:, None]
        return Particles(
            torch.where(a, other.z, self.z),
            torch.where(accepted, other.log_p, self.log_p),
            torch.where(accepted, other.log_q, self.log_q),
            torch.where(a, other.grad_p, self.grad_p),
            torch.where(a, other.grad_q, self.grad_q),
        )

    def chosen(self, index: Tensor) -> Particles:
        """The particles with these numbers."""
        return Particles(*(t[index] for t in vars(self).values()))


@dataclass(frozen=True)
class Schedule:
    """What the pilots found.

    Args:
        betas: 0 = β_0 < … < β_T = 1.
        steps: Leapfrog step at β_1 … β_{T−1}.
        acceptance: Of the pilots' moves, on average.
        is_complete: Whether every step in temperature is as short as was asked.
        num_evals: Gradients spent by the pilots.
    """

    betas: tuple[float, ...]
    steps: tuple[float, ...]
    acceptance: float
    is_complete: bool
    num_evals: int

    @property
    def num_temperatures(self) -> int:
        """Steps from the guide to the target."""
        return len(self.betas) - 1

    def gradients(self, settings: AnnealedImportance) -> int:
        """Evaluations with gradient that one particle costs on its way."""
        moves = (self.num_temperatures - 1) * settings.num_moves
        return 1 + moves * settings.num_leapfrog


def find_schedule(
    bridge: Bridge, settings: AnnealedImportance, generator: torch.Generator
) -> Schedule:
    """Temperatures with a constant conditional effective size, and step sizes for them."""
    strata = num_strata(bridge.guide)
    n = strata * math.ceil(settings.num_pilots / strata)
    now = bridge.at(bridge.draws(1, n, generator)[0])
    log_step = math.log(_FIRST_STEP * bridge.target.dim**-0.25)
    log_step = _adapted(bridge, now, 0.0, log_step, _WARM_UP, settings, generator)[1]
    log_w = torch.zeros_like(now.log_p)
    betas, steps, accepted, is_complete = [0.0], [], [], True
    while True:
        beta, is_short = _next_beta(now.log_ratio, log_w, betas[-1], settings.conditional_ess)
        is_last = len(betas) == settings.max_temperatures
        is_complete &= is_short and (beta == 1.0 or not is_last)
        betas.append(1.0 if is_last else beta)
        if betas[-1] == 1.0:
            break
        log_w = log_w + (beta - betas[-2]) * now.log_ratio
        now, log_w = _resampled(now, log_w, generator)
        now, log_step, rate = _adapted(
            bridge, now, beta, log_step, settings.num_moves, settings, generator
        )
        steps.append(math.exp(log_step))
        accepted.append(rate)
    gradients = n * (1 + settings.num_leapfrog * (_WARM_UP + len(steps) * settings.num_moves))
    mean_rate = sum(accepted) / len(accepted) if accepted else 1.0
    return Schedule(tuple(betas), tuple(steps), mean_rate, is_complete, gradients)


def forward(
    bridge: Bridge,
    schedule: Schedule,
    settings: AnnealedImportance,
    num_blocks: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "r n"], Particles]:
    """Log weights of particles from the guide, and where they end.

    The mean of exp(log weight) over a block has mean Z.
    """
    strata = num_strata(bridge.guide)
    n = strata * math.ceil(settings.num_particles / strata)
    now = bridge.at(bridge.draws(num_blocks, n, generator).flatten(0, 1))
    betas, log_w = schedule.betas, torch.zeros_like(now.log_p)
    for t in range(1, len(betas)):
        log_w = log_w + (betas[t] - betas[t - 1]) * now.log_ratio
        if t < len(betas) - 1:
            now = _moved(bridge, now, betas[t], schedule.steps[t - 1], settings, generator)
    return log_w.reshape(num_blocks, n), now


def reverse(
    bridge: Bridge,
    schedule: Schedule,
    settings: AnnealedImportance,
    z: Float[Tensor, "r n d"],
    generator: torch.Generator,
) -> Float[Tensor, "r n"]:
    """Log weights of particles from draws of p; the mean of exp(−·) over a block has mean 1/Z."""
    now = bridge.at(z.flatten(0, 1))
    betas, log_w = schedule.betas, torch.zeros_like(now.log_p)
    for t in reversed(range(1, len(betas))):
        log_w = log_w + (betas[t] - betas[t - 1]) * now.log_ratio
        if t > 1:
            step = schedule.steps[t - 2]
            now = _moved(bridge, now, betas[t - 1], step, settings, generator)
    return log_w.reshape(z.shape[:2])


def _next_beta(log_ratio: Tensor, log_w: Tensor, beta: float, wanted: float) -> tuple[float, bool]:
    """The farthest temperature whose conditional effective size is the one wanted.

    And whether there is one: where even the finest step costs more, that one is taken.
    """
    left = 1.0 - beta
    shares = torch.logspace(math.log10(_FINEST), 0.0, _GRID, dtype=torch.float64)
    shares = shares.to(log_ratio.device)
    log_v = left * shares[:, None] * torch.where(log_ratio.isnan(), -torch.inf, log_ratio)
    log_weights = log_w.log_softmax(dim=0)
    log_ess = 2 * (log_weights + log_v).logsumexp(dim=1)
    log_ess = log_ess - (log_weights + 2 * log_v).logsumexp(dim=1)
    good = (log_ess >= math.log(wanted)).nonzero()
    share = float(shares[int(good[-1])]) if len(good) else float(shares[0])
    return (1.0 if share >= 1.0 - 1e-9 else beta + left * share), len(good) > 0


def _resampled(
    now: Particles, log_w: Tensor, generator: torch.Generator
) -> tuple[Particles, Tensor]:
    """Particles drawn anew by their weights, where few are effective (systematic)."""
    w, n = log_w.softmax(dim=0), len(log_w)
    if not float(w.square().sum()) * n > 1 / _RESAMPLE_BELOW:
        return now, log_w
    shift = torch.rand((), generator=generator, dtype=w.dtype, device=w.device)
    points = (torch.arange(n, device=w.device) + shift) / n
    index = torch.searchsorted(w.cumsum(dim=0), points).clamp(max=n - 1)
    return now.chosen(index), torch.zeros_like(log_w)


def _adapted(
    bridge: Bridge,
    now: Particles,
    beta: float,
    log_step: float,
    num: int,
    settings: AnnealedImportance,
    generator: torch.Generator,
) -> tuple[Particles, float, float]:
    """Moves that leave a better step size behind, and the share accepted in the last."""
    rate = 0.0
    for _ in range(num):
        step = math.exp(log_step)
        now, accepted = hamiltonian(bridge, now, beta, step, settings.num_leapfrog, generator)
        rate = float(accepted.mean())
        log_step += rate - settings.acceptance
    return now, log_step, rate


def _moved(
    bridge: Bridge,
    now: Particles,
    beta: float,
    step: float,
    settings: AnnealedImportance,
    generator: torch.Generator,
) -> Particles:
    for _ in range(settings.num_moves):
        now, _ = hamiltonian(bridge, now, beta, step, settings.num_leapfrog, generator)
    return now


def hamiltonian(
    bridge: Bridge,
    now: Particles,
    beta: float,
    step: float,
    num_leapfrog: int,
    generator: torch.Generator,
) -> tuple[Particles, Float[Tensor, " n"]]:
    """One Metropolised Hamiltonian move of every particle, and how likely each was accepted.

    Each particle's step is up to twice as long or as short, against resonance.
    """
    n = len(now.z)
    p = torch.randn(now.z.shape, generator=generator, dtype=now.z.dtype, device=now.z.device)
    jitter, u = torch.rand((2, n), generator=generator, dtype=p.dtype, device=p.device)
    eps = step * (2.0 ** (2 * jitter - 1))[:, None]
    energy = now.log_bridge(beta) - 0.5 * p.square().sum(dim=-1)
    new = now
    for _ in range(num_leapfrog):
        p = p + 0.5 * eps * bridge.pulled(new.grad_bridge(beta))
        new = bridge.at(new.z + bridge.spread(eps * p))
        p = p + 0.5 * eps * bridge.pulled(new.grad_bridge(beta))
    log_rate = new.log_bridge(beta) - 0.5 * p.square().sum(dim=-1) - energy
    rate = torch.where(log_rate.isnan(), -torch.inf, log_rate).clamp(max=0.0).exp()
    return now.where(u < rate, new), rate


def _finite(grad: Tensor) -> Tensor:
    """Beyond the support of a density nothing pulls; such a point is refused in any case."""
    return torch.where(grad.isfinite(), grad, 0.0)
