"""Importance sampling: draws of one distribution, weighted to stand for another.

    E_p[f] ≈ (1/n) Σ w(x_i) f(x_i)   or   Σ w f / Σ w,   w = p/q,   x_i ~ q

A part of the draws may come from p itself, which bounds the weights: the defensive mixture of
Hesterberg (1995), Weighted average importance sampling and defensive mixture distributions.
Owen (2013), Monte Carlo theory, methods and examples, ch. 9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from probcalc._random import draw_seed
from probcalc.distributions.coverage import covers
from probcalc.distributions.log_density import log_density
from probcalc.distributions.rebuild import taken_apart
from probcalc.integration.expectation import Expectation
from probcalc.integration.monte_carlo import Draws, judged
from probcalc.integration.problem import Solved, Tolerance
from probcalc.integration.ratios import quotient
from probcalc.integration.running import Running
from probcalc.result import half_width
from probcalc.status import Status

_MAX_EVALS = 2**17
_ROUNDING = 4.0  # units in the last place of the mean of |w f|
_CHECKS = 2**10  # draws of p, that check the weighted ones
_FAR = 6.0  # standard errors by which both means may differ
_RARE = 7.0  # times one over their number, up to which an event may have escaped all of them
_EQUAL = 1e-6  # of the mean of |w f|, by which they may differ whatever the scatter


@dataclass(frozen=True, eq=False)
class ImportanceSampling:
    """Draws of a proposal, weighted by p/q.

    The tail of the weighted terms is checked, and their mean against that of a few draws of p.

    Args:
        proposal: The distribution q that is drawn from, of the same batch and event.
        self_normalised: Divide by the mean weight: for a density p that is known up to a factor,
            at the price of a bias of order 1/n.
        defensive: Share of the draws that come from p itself, in [0, 1).
        num_draws: How many; default `max_evals`, or 131,072.
    """

    proposal: Distribution
    self_normalised: bool = False
    defensive: float = 0.0
    num_draws: int | None = None

    def __post_init__(self) -> None:
        """Check what was given."""
        if not isinstance(self.proposal, Distribution):
            raise TypeError(
                f"`proposal` must be a torch Distribution, got {type(self.proposal).__name__}."
            )
        if not 0 <= self.defensive < 1:
            raise ValueError(f"`defensive` must lie in [0, 1), got {self.defensive}.")
        if self.num_draws is not None and self.num_draws < 2:
            raise ValueError(
                f"`num_draws` must be at least 2 to give an error bar, got {self.num_draws}."
            )

    def expect(self, posed: Expectation, tolerance: Tolerance) -> Solved:
        """Weighted mean; differentiable in p through the weights, never in q.

        Raises:
            ValueError: If the proposal has no mass where p has some, or other shapes.
        """
        proposal = self._checked(posed)
        n = self.num_draws or max(2, tolerance.max_evals or _MAX_EVALS)
        weighed = replace(posed, fn=_Weighed(posed, proposal), dist=proposal, shift=None)
        seed = draw_seed(tolerance.generator)
        if self.self_normalised:
            found = quotient(weighed, seed, n, tolerance.confidence)
            error, status, std_error = found.bar, found.status, found.std_error
            return self._solved(found.value, error, status, n, std_error)
        value, terms = Draws(weighed, seed).averaged(n)
        own = terms.column(0)
        status = judged(own, torch.zeros_like(own.finite))
        wrong = (
            self._contradicted(posed, seed + 1, own, terms.column(2))
            .reshape(len(status), -1)
            .any(dim=1)
        )
        status = status | torch.where(wrong, int(Status.UNRESOLVED_MASS), 0)
        bar = half_width(own.std_error, None, tolerance.confidence)
        bar = bar + _ROUNDING * torch.finfo(posed.dtype).eps * own.size / n
        wide = (status != 0).reshape(-1, *[1] * (bar.ndim - 1))
        return self._solved(value[..., 0], bar.where(~wide, math.inf), status, n, own.std_error)

    def _contradicted(self, posed: Expectation, seed: int, own: Running, bare: Running) -> Tensor:
        """Where a few draws of p itself give another mean: mass that the proposal never meets."""
        try:
            with torch.no_grad():
                terms = Draws(posed, seed).averaged(_CHECKS)[1]
        except NotImplementedError:  # a density that cannot be drawn from
            return torch.zeros_like(own.finite)
        # as far as values that the proposal met may be too rare for the few draws
        rare = torch.maximum((bare.high - terms.mean).abs(), (bare.low - terms.mean).abs())
        room = _FAR * (terms.std_error + own.std_error) + _RARE / _CHECKS * rare
        return (terms.mean - own.mean).abs() > room + _EQUAL * own.size / own.num

    def _solved(
        self, value: Tensor, error: Tensor, status: Tensor, n: int, std_error: Tensor
    ) -> Solved:
        count = torch.full_like(status, n)
        kind = "self-normalised importance" if self.self_normalised else "importance"
        method = f"{kind} sampling from {type(self.proposal).__name__}"
        return Solved(value, error, status, count, method, std_error, math.inf)

    def _checked(self, posed: Expectation) -> Distribution:
        q, p = self.proposal, posed.dist
        if q.batch_shape != p.batch_shape or q.event_shape != p.event_shape:
            raise ValueError(
                "`proposal` must have the shapes of the distribution, batch "
                f"{tuple(p.batch_shape)} and event {tuple(p.event_shape)}; got "
                f"{tuple(q.batch_shape)} and {tuple(q.event_shape)}."
            )
        if self.defensive:
            return Defensive(_still(q), p, self.defensive)
        try:
            inside = bool(covers(q, p).all())
        except NotImplementedError:  # supports of no known kind
            inside = True
        if not inside:
            raise ValueError(
                f"the proposal {type(q).__name__} has no mass where {type(p).__name__} has some: "
                "no weight can make up for it. Take a proposal with a wider support, or "
                "`defensive=0.1`."
            )
        return _still(q)


def _still(dist: Distribution) -> Distribution:
    """The same distribution without derivatives: what is estimated does not depend on it."""
    try:
        tensors, build = taken_apart(dist)
    except NotImplementedError:
        return dist
    return build([t.detach() for t in tensors])


@dataclass(frozen=True, eq=False)
class _Weighed:
    """The weighted function, the weight and the function, along a last axis."""

    posed: Expectation
    proposal: Distribution

    def __call__(self, x: Tensor, *args: Any) -> Tensor:
        posed, lead = self.posed, x.ndim - len(self.posed.event)
        x = x.detach()
        weight = (log_density(posed.dist, x) - log_density(self.proposal, x)).exp()
        f = posed.values(x)
        axes = [1] * (f.ndim - lead)
        if posed.shift is not None:
            f = (f - posed.shift.reshape([*posed.shift.shape, *axes])).exp()
        weight = weight.reshape([*weight.shape, *axes]).expand(f.shape)
        # where p has no mass, the function need not be defined
        f = torch.where(weight == 0, 0.0, f)
        return torch.stack([f * weight, weight.to(f.dtype), f], dim=-1)


class Defensive(Distribution):
    """A mixture of a proposal and of the distribution that it stands for."""

    def __init__(self, proposal: Distribution, target: Distribution, share: float) -> None:
        self.proposal, self.target, self.share = proposal, _still(target), share
        super().__init__(proposal.batch_shape, proposal.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """That of the distribution it stands for."""
        return self.target.support

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Some draws of the one, the others of the other."""
        x, y = self.proposal.sample(sample_shape), self.target.sample(sample_shape)
        batch = x.ndim - len(self.event_shape)
        own = torch.rand(x.shape[:batch], device=x.device) >= self.share
        return torch.where(own.reshape(*own.shape, *[1] * len(self.event_shape)), x, y)

    def log_prob(self, value: Tensor) -> Float[Tensor, " ..."]:
        """Of the mixture."""
        parts = [log_density(d, value) for d in (self.proposal, self.target)]
        return torch.logaddexp(parts[0] + math.log1p(-self.share), parts[1] + math.log(self.share))
