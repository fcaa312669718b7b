"""Plain Monte Carlo.

    E_p[f] ≈ (1/n) Σ f(x_i),   x_i ~ p,   standard error s/√n

The bar is the central limit theorem's, and refused where the terms' tail says that they have no
variance. No bar speaks of values that were never met: some draws are stretched about their mean,
and where f leaves the range it had, E[f; there] is estimated with weights p(y)/q(y),
y = m + c (x − m), q(y) = p(x) c^−d. Owen (2013), Monte Carlo theory, methods and examples, ch. 2
and 9.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor
from torch import distributions as td
from torch.distributions import Distribution

from probcalc._random import child, draw_seed, forked
from probcalc.distributions.draw import sampled
from probcalc.distributions.log_density import log_density
from probcalc.distributions.rebuild import copied
from probcalc.integration.clipped import clipped
from probcalc.integration.control_variates import Control
from probcalc.integration.cube import Cube, beyond_ends, cube_of, cube_of_boxes
from probcalc.integration.expectation import Expectation
from probcalc.integration.gradient_estimators import NoBaseline, ScoreFunction, surrogate
from probcalc.integration.problem import Problem, Solved, Tolerance
from probcalc.integration.replay import piecewise
from probcalc.integration.running import Running, tail_length
from probcalc.integration.stream import Stream
from probcalc.result import half_width
from probcalc.status import Status

_MAX_EVALS = 2**17
_FIRST = 2**14  # draws before the first look
# draws that are made and evaluated together: in a processor's cache; elsewhere, where starting a
# block costs as much as a million draws; and for large batches
_BLOCK, _LARGE_BLOCK, _LEAST_BLOCK = 2**14, 2**20, 2**6
_HELD = 2**24  # numbers that are drawn together
_BEGUN = 2**20  # draws from which single numbers are streamed in longer blocks
_FAR = 2**32  # number of the first of these
_NO_VARIANCE = 0.5  # shape of the terms' tail from which their variance is infinite
_NO_MEAN = 1.0  # shape that cannot be told from it: no mean
_SPREAD = 2.0  # standard errors (1 + k)/√m of the shape, Zhang & Stephens (2009)
_FEW = 50.0  # effective number of terms below which the bar means nothing
_STRETCHES = (2.0, 4.0)
STRETCHED, _SHARE = 2**9, 8  # draws for each, and the part of all that they may be
_SINGLE = 2**13  # draws that tell what pairs cancel
_ROUNDING = 4.0  # units in the last place of the mean of |f|


@dataclass(frozen=True)
class MonteCarlo:
    """Mean of independent draws.

    Args:
        num_draws: How many; default as many as a tolerance needs, or `max_evals`, or 131,072.
        antithetic: Draws in pairs u and 1 − u of the uniform numbers that they are made of, which
            halves the number of independent terms and cancels what is odd.
        control: Functions with known means that take the noise out of the terms.
    """

    num_draws: int | None = None
    antithetic: bool = False
    control: Control | None = None

    def __post_init__(self) -> None:
        """Check the number."""
        if self.num_draws is not None and self.num_draws < 2:
            raise ValueError(
                f"`num_draws` must be at least 2 to give an error bar, got {self.num_draws}."
            )

    def expect(self, posed: Expectation, tolerance: Tolerance) -> Solved:
        """Average over draws, block by block.

        Differentiable in the parameters through the draws where these are reparametrised, else
        by the score of the log density; in what the function is given and closes over, always.
        """
        seed = draw_seed(tolerance.generator)
        if self.control is not None:
            posed = self.control.applied(posed, seed + 1)
        if self.antithetic:
            cube = cube_of(posed)
            return self._of_cube(cube, seed, tolerance)
        draws = Draws(posed, seed)
        most = self.num_draws or tolerance.max_evals or _MAX_EVALS
        stretched = min(STRETCHED, most // _SHARE)
        n = self.num_draws or max(2, most - len(_STRETCHES) * stretched)
        value, terms, confidence = self._settled(draws, n, tolerance)
        eps = torch.finfo(posed.dtype).eps
        unseen, looked = draws.unseen(terms, eps, stretched)
        unseen = torch.maximum(unseen, draws.clipped(unseen))
        solved = _solved(value, terms, eps, unseen, looked, confidence)
        return replace(solved, diagnostics=draws.spoilt(terms))

    def solve(self, problem: Problem, tolerance: Tolerance) -> Solved:
        """Integrate a batch of intervals or boxes, all with the same uniform draws.

        Raises:
            NotImplementedError: If limits are to be differentiated.
            TypeError: If there are control variates: they belong to expectations.
        """
        if self.control is not None:
            raise TypeError("control variates are for `expect`; subtract them from an integrand.")
        cube = cube_of_boxes(problem)
        return self._of_cube(cube, draw_seed(tolerance.generator), tolerance, ends=True)

    def _of_cube(self, cube: Cube, seed: int, tolerance: Tolerance, ends: bool = False) -> Solved:
        """Uniform draws, in pairs or not, common to the whole batch; with a look at the ends."""
        zero = torch.zeros(cube.dim, dtype=torch.float64, device=cube.device)
        uniform = td.Independent(td.Uniform(zero, 1.0, validate_args=False), 1)
        least = 2.0**-54

        def placed(u: Tensor) -> Tensor:
            u = u.clamp(min=least)
            if not self.antithetic:
                return cube.at(u)
            f = cube.at(torch.cat([u, (1 - u).clamp(min=least)]))
            return 0.5 * (f[: len(u)] + f[len(u) :])

        posed = Expectation(placed, (), uniform, None, zero.dtype)
        each = 2 if self.antithetic else 1
        n = max(2, (self.num_draws or tolerance.max_evals or _MAX_EVALS) // each)
        value, terms, confidence = self._settled(Draws(posed, seed), n, tolerance)
        value, terms = value[0], terms.shaped(tuple(value.shape[1:]))
        unseen, more = torch.zeros_like(terms.size), (each - 1) * terms.num
        if ends:
            # of pairs, whose means leave their range by half of what one of them does
            pairs = replace(cube, at=placed)
            unseen, looked = beyond_ends(pairs, terms.low, terms.high)
            unseen, more = each * unseen, more + each * looked
        solved = _solved(value, terms, cube.rounding, unseen, more, confidence)
        return self._with_odd(cube, seed, terms, solved) if self.antithetic else solved

    @staticmethod
    def _with_odd(cube: Cube, seed: int, terms: Running, solved: Solved) -> Solved:
        """Odd functions, of which pairs leave nothing but rounding."""
        with torch.no_grad(), forked(child(seed, -1).initial_seed(), cube.device):
            u = torch.rand(_SINGLE, cube.dim, dtype=torch.float64, device=cube.device)
            single = Running.of(cube.at(u.clamp(min=2.0**-54)), tail_length(_SINGLE) + 1)
        size = single.top[0]
        rounding = _ROUNDING * cube.rounding * size
        odd = (terms.top[0] <= rounding) & (size > 0) & terms.finite
        # infinities that cancel in pairs are no mean, nor are values that are none
        alone = judged(single, torch.zeros_like(odd))
        improper = alone & int(Status.DIVERGENT | Status.NON_FINITE)
        every = odd.reshape(cube.size, -1).all(dim=1) & (alone == 0)
        odd = odd & every.reshape(-1, *[1] * (odd.ndim - 1))
        status = torch.where(every, 0, solved.status) | improper
        error = torch.where(odd, rounding, solved.error)
        undefined = (improper != 0).reshape(-1, *[1] * (odd.ndim - 1))
        return replace(solved, error=torch.where(undefined, math.inf, error), status=status)

    def _settled(
        self, draws: Draws, n: int, tolerance: Tolerance
    ) -> tuple[Tensor, Running, float]:
        """Value, terms, and the confidence that is left: looks at the bar share it."""
        if not tolerance.asked or self.num_draws is not None:
            return *draws.averaged(n), tolerance.confidence
        looks = max(1, math.ceil(math.log2(n / _FIRST)) + 1)
        shared = 1 - (1 - tolerance.confidence) / looks
        sizes = [min(n, _FIRST << k) for k in range(looks)]
        for value, terms in draws.growing(sizes):
            bar = half_width(terms.std_error, None, shared)
            if not bool(tolerance.missed(value.detach(), bar).any()):
                break
        return value, terms, shared


def _solved(
    value: Tensor, terms: Running, eps: float, unseen: Tensor, looked: int, confidence: float
) -> Solved:
    bar = half_width(terms.std_error, None, confidence)
    bar = bar + _ROUNDING * eps * terms.size / terms.num
    status = judged(terms, unseen > bar)
    bad = (status != 0).reshape(-1, *[1] * (bar.ndim - 1))
    error = torch.where(bad, math.inf, bar)
    constant = bool(terms.equal(eps).all())
    method = "Monte Carlo, all terms equal" if constant else "Monte Carlo"
    count = torch.full_like(status, terms.num + looked)
    return Solved(value, error, status, count, method, terms.std_error, math.inf)


@dataclass(frozen=True, eq=False)
class Draws:
    """Terms from draws that depend on the seed and on where their block starts alone."""

    posed: Expectation
    seed: int

    @property
    def block(self) -> int:
        """Draws that are made and evaluated together, a power of two."""
        posed = self.posed
        room = _HELD // max(1, math.prod(posed.batch) * math.prod(posed.event))
        most = _BLOCK if posed.device.type == "cpu" else _LARGE_BLOCK
        return max(_LEAST_BLOCK, min(most, 1 << max(room, 1).bit_length() - 1))

    def averaged(self, n: int) -> tuple[Tensor, Running]:
        """Mean of f over n draws, differentiable, and what the terms were like.

        Both of shape ``(b, *out)``.
        """
        return next(iter(self.growing([n])))

    def growing(self, sizes: list[int]) -> Iterator[tuple[Tensor, Running]]:
        """The same over more and more draws.

        Args:
            sizes: Numbers of draws, each larger than the one before.

        Yields:
            Mean and terms of the first so many draws.
        """
        top = tail_length(sizes[-1]) + 1
        found: Running | None = None
        stream: Stream | None = None
        total: Tensor | float = 0.0
        moving, block = self.posed.moving, self.block
        for at, n in pairwise([0, *sizes]):
            while at < n:
                if stream is None and at >= _BEGUN and _is_one_number(found, total):
                    stream = Stream(found)
                size = min(stream.block if stream else block, n - at)
                if stream:
                    stream.add(self._numbers(at, size))
                else:
                    part, *stats = piecewise(moving or total, self._block, at, size, top)
                    own = Running(size, *stats)
                    found = own if found is None else found.joined(own, top)
                    total = total + part
                at += size
            found = stream.running() if stream else found
            assert found is not None
            assert torch.is_tensor(total)
            # that of the stream is the more accurate; zero is added to it, with derivatives
            carried = (total - total.detach()) / n if total.requires_grad else None
            yield found.mean if carried is None else found.mean + carried, found

    def _numbers(self, at: int, size: int) -> Float[Tensor, " n"]:
        """Terms of a long block, in the precision in which they come."""
        posed = self.posed
        x = self.drawn(posed.dist, _FAR + at, size)
        x = x.to(posed.dtype) if x.is_floating_point() else x
        f = posed.fn(x, *posed.args)
        f = f if f.is_floating_point() else f.double()
        if posed.shift is not None:
            f = (f - posed.shift).exp()
        return f.reshape(size)

    def _block(self, at: int, size: int, top: int) -> tuple[Tensor, ...]:
        dist = _fresh(self.posed.dist)
        x = self.drawn(dist, at, size)
        f = self._terms(x)
        own = Running.of(f.detach(), top)
        if self.posed.by_score and torch.is_grad_enabled():
            f = self._by_score(dist, x, f)
        return (f.sum(dim=0), *list(vars(own).values())[1:])

    def drawn(self, dist: Distribution, at: int, size: int) -> Tensor:
        """The draws of a block that starts so far into the stream."""
        seed, posed = child(self.seed, at).initial_seed(), self.posed
        return sampled(dist, size, seed, posed.device, gradient=not posed.by_score)

    def _by_score(self, dist: Distribution, x: Tensor, f: Tensor) -> Tensor:
        log_p = dist.log_prob(x).reshape(*f.shape[:2], *[1] * (f.ndim - 2)).expand(f.shape)
        chosen = self.posed.gradient
        baseline = chosen.baseline if isinstance(chosen, ScoreFunction) else None
        alone = NoBaseline() if len(x) < 2 else baseline
        return surrogate(log_p, f, f if f.requires_grad else None, baseline=alone)

    def _terms(self, x: Tensor) -> Inexact[Tensor, " n b *out"]:
        posed = self.posed
        f, lead = posed.values(x), len(posed.batch)
        if posed.shift is not None:
            axes = [*posed.batch, *[1] * (f.ndim - 1 - lead)]
            f = (f - posed.shift.reshape(axes)).exp()
        return f.reshape([len(f), math.prod(posed.batch), *f.shape[1 + lead :]])

    def spoilt(self, terms: Running) -> dict[str, Any]:
        """How many values are not finite, among how many, and a draw where one is; or nothing.

        Looks through the beginning of the stream again.
        """
        if bool(terms.finite.all()):
            return {}
        count, example, looked = 0, None, min(terms.num, _BEGUN)
        with torch.no_grad():
            for at in range(0, looked, self.block):
                x = self.drawn(self.posed.dist, at, min(self.block, looked - at))
                f = self._terms(x)
                bad = (~f.isfinite()).reshape(*f.shape[:2], -1).any(dim=-1)
                count += int(bad.sum())
                if example is None and bool(bad.any()):
                    first, element = bad.nonzero()[0].tolist()
                    example = x.reshape(*bad.shape, *self.posed.event)[first, element]
        return {"non_finite": count, "non_finite_among": looked * f.shape[1], "example": example}

    def unseen(self, terms: Running, eps: float, num: int) -> tuple[Float[Tensor, " b *out"], int]:
        """What values outside the range met so far add to the mean, and how many were looked at.

        Zero where draws cannot be stretched.
        """
        nothing = torch.zeros_like(terms.size)
        posed, low, high = self.posed, terms.low, terms.high
        room = _ROUNDING * eps * torch.maximum(low.abs(), high.abs())
        if not num or not _on_vectors(posed.dist):
            return nothing, 0
        total = nothing
        with torch.no_grad():
            x = self.drawn(posed.dist, -1, num).detach()
            for stretch in _STRETCHES:
                y, log_weight = _stretched(posed.dist, x, stretch)
                f = self._terms(y)
                f = f.abs() if f.is_complex() else f
                beyond = torch.maximum(f - high - room, low - room - f).clamp(min=0.0)
                weight = log_weight.exp().reshape(*f.shape[:2], *[1] * (f.ndim - 2))
                # a value that is not finite matters as much as any
                beyond = torch.where(f.isfinite(), beyond, math.inf)
                share = torch.where((weight > 0) & (beyond > 0), beyond * weight, 0.0)
                total = torch.maximum(total, share.mean(dim=0))
        return total, len(_STRETCHES) * num

    def clipped(self, like: Tensor) -> Tensor:
        """What mass beyond all numbers adds to the mean, as far as it shows."""
        with torch.no_grad():
            x = self.drawn(self.posed.dist, -1, 1).detach()
            size = clipped(self.posed.dist, self._terms, x, self.posed.dtype)
        return torch.zeros_like(like) if size is None else size.reshape(like.shape)


def _is_one_number(found: Running | None, total: Tensor | float) -> bool:
    """Whether terms are single real numbers whose sum has no derivatives."""
    one = found is not None and found.mean.numel() == 1 and not found.mean.is_complex()
    return one and torch.is_tensor(total) and not total.requires_grad


def _fresh(dist: Distribution) -> Distribution:
    """A copy for a block that may be run again, where the family can be copied."""
    try:
        return copied(dist)
    except TypeError:  # a family with a constructor of its own
        return dist


def _on_vectors(dist: Distribution) -> bool:
    """Whether draws are real numbers or vectors with a density."""
    try:
        support = dist.support
    except NotImplementedError:
        return False
    return support is not None and not support.is_discrete and len(dist.event_shape) <= 1


def _stretched(dist: Distribution, x: Tensor, stretch: float) -> tuple[Tensor, Tensor]:
    """Draws moved away from their mean, those that leave the support not; log p/q, or −∞."""
    middle = x.mean(dim=0)
    y = middle + stretch * (x - middle)
    event = list(range(x.ndim - len(dist.event_shape), x.ndim))
    inside = dist.support.check(y)
    kept = inside.reshape([*inside.shape, *[1] * (y.ndim - inside.ndim)])
    y = torch.where(kept, y, x)
    d = math.prod(dist.event_shape)
    log_weight = log_density(dist, y) - log_density(dist, x) + d * math.log(stretch)
    inside = inside if inside.ndim == log_weight.ndim else kept.all(dim=event)
    return y, torch.where(inside, log_weight, -math.inf)


def judged(terms: Running, unseen: Tensor, settled: Tensor | None = None) -> Int[Tensor, " b"]:
    """Flags of the terms of a mean: their tail, their number, and whether they say anything.

    Args:
        terms: As they were.
        unseen: Where values outside their range matter.
        settled: Where no more is asked of them than to be finite.
    """
    b = len(terms.mean)
    khat, effective = terms.khat(), terms.effective
    error = (1 + _NO_MEAN) / max(1, tail_length(terms.num)) ** 0.5
    still = terms.top[0] == 0
    asked = torch.ones_like(still) if settled is None else ~settled
    flags = {
        Status.NON_FINITE: ~terms.finite,
        Status.DIVERGENT: asked & (khat > _NO_VARIANCE) & (khat >= _NO_MEAN - _SPREAD * error),
        Status.INFINITE_VARIANCE: asked & (khat > _NO_VARIANCE) & khat.isfinite(),
        Status.UNRESOLVED_MASS: asked & (still | (effective < _FEW) | unseen),
    }
    joined = torch.zeros(b, dtype=torch.long, device=terms.mean.device)
    for flag, where in flags.items():
        joined = joined | torch.where(where.reshape(b, -1).any(dim=1), int(flag), 0)
    return joined
