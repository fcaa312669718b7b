"""A function of draws whose distribution has parameters, and gradients of its mean.

Where draws are numbers f less its mean, times the score, is integrated or summed, with the bar of
that rule. From draws, the gradient of every single one is taken, so that their tail can be judged;
where the family has no forward derivatives, that of blocks of draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution
from torch.func import jvp

from probcalc._random import child, forked
from probcalc.integration.expect import best
from probcalc.integration.expectation import expectation
from probcalc.integration.gradient_estimators import GradientEstimator, moves
from probcalc.integration.monte_carlo import judged
from probcalc.integration.problem import Solved, Tolerance
from probcalc.integration.running import Running, tail_length
from probcalc.result import Estimate, half_width
from probcalc.status import Status

Params = dict[str, Tensor]
_BLOCK = 2**14  # draws that are made together
_BLOCKS = 256  # whose gradients are compared, where those of draws are not to be had
_ROUGH = 1e-3  # relative error of an integral that draws may undercut
_NO_VARIANCE, _SURE = 0.5, 1.5  # shape of a tail without variance, and standard errors beyond it
_MANY = 64  # parameters, beyond which draws are cheaper than an integral each


@dataclass(frozen=True, eq=False)
class GradientProblem:
    """A function of draws whose distribution has parameters."""

    fn: Callable[..., Tensor]
    dist_fn: Callable[[Params], Distribution]
    params: Params
    args: tuple[Any, ...]
    dist: Distribution

    @classmethod
    def checked(cls, fn: Any, dist_fn: Any, params: Any, args: tuple[Any, ...]) -> GradientProblem:
        """The same, if it is what it should be."""
        if not callable(fn) or not callable(dist_fn):
            raise TypeError("`fn` and `dist_fn` must be functions.")
        if not isinstance(params, dict) or not params:
            raise TypeError("`params` must be a dict of tensors, with at least one.")
        for name, value in params.items():
            if not torch.is_tensor(value) or not value.is_floating_point():
                raise TypeError(
                    f"`params[{name!r}]` must be a floating-point tensor, got {value!r}."
                )
        leaves = {k: v.detach().clone().requires_grad_() for k, v in params.items()}
        with torch.enable_grad():
            dist = dist_fn(leaves)
            if not isinstance(dist, Distribution):
                raise TypeError(
                    f"`dist_fn` must return a Distribution, got {type(dist).__name__}."
                )
            if dist.batch_shape:
                raise ValueError(
                    f"the distribution must have an empty batch, got {tuple(dist.batch_shape)}: "
                    "wrap it in `Independent`, or call once an element."
                )
            log_p = dist.log_prob(dist.sample((2,))).sum()
            for name, leaf in leaves.items():
                used = log_p.requires_grad and _grads(log_p, [leaf])[0] is not None
                if not used and not moves(dist):
                    raise ValueError(
                        f"`params[{name!r}]` receives no gradient: it has no part in the "
                        "distribution's density."
                    )
        return cls(fn, dist_fn, leaves, args, dist)

    def values(self, x: Tensor) -> Tensor:
        """The function at draws ``(n, *event)``."""
        f = self.fn(x, *self.args)
        if not torch.is_tensor(f) or f.shape != x.shape[:1] or f.is_complex():
            got = tuple(f.shape) if torch.is_tensor(f) else type(f).__name__
            raise ValueError(f"the function must return real numbers ({len(x)},), got {got}.")
        return f if f.is_floating_point() else f.to(torch.get_default_dtype())

    def integrable(self) -> bool:
        """Whether f times the score may be integrated or summed."""
        few = sum(v.numel() for v in self.params.values()) <= _MANY
        return few and not moves(self.dist) and not self.dist.event_shape

    def refused(self, estimator: GradientEstimator) -> str:
        """Why the estimator would be wrong here."""
        with forked(0):
            return estimator.refused(self.values, self.dist)

    def integrated(self, tolerance: Tolerance) -> dict[str, Estimate] | None:
        """E[f ∂ log p/∂θ], component by component, as one expectation of a vector.

        None where there is no rule for it, or draws would be the sharper.
        """
        still = self.dist_fn({k: v.detach() for k, v in self.params.items()})
        try:
            middle = self._best(self.values, still, replace(tolerance, rtol=None, atol=None)).value
        except NotImplementedError:  # a family without a density or a support that is known
            return None
        middle = torch.where(middle.isfinite(), middle, 0.0).detach()
        # E ∂ log p/∂θ = 0, and a rounded normaliser of the density then does not matter either
        moved = lambda x: (self.values(x) - middle)[:, None] * self._scores(x)  # noqa: E731
        solved = self._best(moved, still, tolerance)
        rough = solved.error > _ROUGH * solved.value.abs().amax()
        if solved.std_error is not None or bool((rough | solved.error.isinf()).any()):
            return None
        dtype = next(iter(self.params.values())).dtype
        return self._parts(solved.estimate((1,), dtype, tolerance, stacklevel=3))

    @staticmethod
    def _best(fn: Callable[..., Tensor], dist: Distribution, tolerance: Tolerance) -> Solved:
        return best(expectation(fn, dist, args=(), breaks=None, dtype=None), tolerance)

    def _scores(self, x: Tensor) -> Float[Tensor, "n p"]:
        """Derivatives of the log density in every parameter."""
        names = list(self.params)
        values = tuple(self.params[k].detach() for k in names)

        def log_prob(*given: Tensor) -> Tensor:
            return self.dist_fn(dict(zip(names, given, strict=True))).log_prob(x)

        columns = [jvp(log_prob, values, one)[1] for one in _directions(values)]
        return torch.stack(columns, dim=-1)

    def gradients(
        self, estimator: GradientEstimator, num: int, seed: int
    ) -> Iterator[tuple[Float[Tensor, "k p"], bool]]:
        """Forward, draw by draw, where the family has forward derivatives; else backward.

        Yields:
            Gradients of draws, or of blocks of them, and whether each is that of one draw.
        """
        each = self._draw_by_draw
        try:
            each(estimator, 2, seed)
        except (NotImplementedError, RuntimeError):
            yield self._block_by_block(estimator, num, seed), False
            return
        for block, start in enumerate(range(0, num, _BLOCK)):
            size = max(2, min(_BLOCK, num - start))
            yield each(estimator, size, child(seed, block).initial_seed()), True

    def _draw_by_draw(self, estimator: GradientEstimator, num: int, seed: int) -> Tensor:
        names = list(self.params)
        values = tuple(self.params[k].detach() for k in names)
        if sum(v.numel() for v in values) > _MANY:
            raise NotImplementedError("too many parameters for a pass each.")

        def terms(*given: Tensor) -> Tensor:
            with forked(seed, given[0].device):
                dist = self.dist_fn(dict(zip(names, given, strict=True)))
                return estimator.terms(self.values, dist, num)

        moves_ = _directions(values)
        return torch.stack([jvp(terms, values, one)[1].double() for one in moves_], dim=-1)

    def _block_by_block(self, estimator: GradientEstimator, num: int, seed: int) -> Tensor:
        blocks, leaves = max(8, min(_BLOCKS, num // 8)), list(self.params.values())
        found = []
        with torch.enable_grad():
            for block in range(blocks):
                with forked(child(seed, block).initial_seed(), leaves[0].device):
                    dist = self.dist_fn(self.params)
                    terms = estimator.terms(self.values, dist, max(2, num // blocks))
                grads = _grads(terms.mean(), leaves)
                filled = [
                    torch.zeros_like(v) if g is None else g
                    for g, v in zip(grads, leaves, strict=True)
                ]
                found.append(torch.cat([g.reshape(-1).double() for g in filled]))
        return torch.stack(found)

    def averaged(self, estimator: GradientEstimator, num: int, seed: int) -> tuple[Running, bool]:
        """What the gradients were like, and whether they were those of single draws."""
        top, terms, of_draws = tail_length(num) + 1, None, True
        for g, of_draws in self.gradients(estimator, num, seed):  # noqa: B007
            own = Running.of(g[:, None].detach(), top)
            terms = own if terms is None else terms.joined(own, top)
        assert terms is not None
        return terms, of_draws

    def drawn(
        self, estimator: GradientEstimator, num: int, seed: int, tolerance: Tolerance
    ) -> dict[str, Estimate]:
        """Mean over draws, with the tail of their gradients checked."""
        terms, single = self.averaged(estimator, num, seed)
        dtype = next(iter(self.params.values())).dtype
        dof = math.inf if single else terms.num - 1.0
        bar = half_width(terms.std_error, dof, tolerance.confidence)
        bar = bar + torch.finfo(dtype).eps * terms.size / terms.num
        constant = terms.equal(torch.finfo(dtype).eps) & terms.finite
        status = judged(terms, torch.zeros_like(constant), constant) if single else _judged(terms)
        bar = torch.where((status != 0)[:, None], math.inf, bar)
        count = torch.full_like(status, num)
        name = f"Monte Carlo, {type(estimator).__name__}"
        solved = Solved(terms.mean, bar, status, count, name, terms.std_error, dof)
        return self._parts(solved.estimate((1,), dtype, tolerance, stacklevel=3))

    def _parts(self, result: Estimate) -> dict[str, Estimate]:
        """One estimate a parameter, of one of all in a row."""
        parts, start = {}, 0
        for name, value in self.params.items():
            stop = start + value.numel()
            cut = lambda t, a=start, b=stop, s=value.shape: t[0, a:b].reshape(s)  # noqa: E731
            parts[name] = replace(
                result,
                value=cut(result.value.detach()),
                error=cut(result.error),
                std_error=None if result.std_error is None else cut(result.std_error),
                status=result.status[0],
                num_evals=result.num_evals[0],
            )
            start = stop
        return parts


def _directions(values: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """Every component of every value in turn."""
    directions = []
    for i, value in enumerate(values):
        for one in torch.eye(value.numel(), dtype=value.dtype, device=value.device):
            moved = [torch.zeros_like(v) for v in values]
            moved[i] = one.reshape(value.shape)
            directions.append(tuple(moved))
    return directions


def _judged(terms: Running) -> Int[Tensor, " b"]:
    """Flags of the gradients of blocks, whose tail is that of the gradients of draws."""
    khat, still = terms.khat(), terms.top[0] == 0
    doubt = (1 + khat) / max(1, tail_length(terms.num)) ** 0.5
    flags = {
        Status.NON_FINITE: ~terms.finite,
        Status.INFINITE_VARIANCE: (khat - _SURE * doubt > _NO_VARIANCE) & khat.isfinite(),
        Status.UNRESOLVED_MASS: still.all(dim=-1, keepdim=True),
    }
    status = torch.zeros(len(terms.mean), dtype=torch.long, device=terms.mean.device)
    for flag, where in flags.items():
        status = status | torch.where(where.any(dim=-1), int(flag), 0)
    return status


def _grads(of: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    if not of.requires_grad:
        return (None,) * len(leaves)
    return torch.autograd.grad(of, list(leaves), allow_unused=True, retain_graph=True)
