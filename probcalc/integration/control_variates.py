"""Functions with known means, which take the noise out of the terms of a mean.

    E[f] = E[f − βᵀ(g − E g)],   β = Cov(g)⁻¹ Cov(g, f)

β comes from draws of its own, so that the mean stays unbiased. Where the caller knows no such g,
the score of a density on all of ℝ^d makes some: E[∇ log p] = 0, E[x ∇ log pᵀ] = −I. Owen (2013),
Monte Carlo theory, methods and examples, section 8.9; Mira, Solgi & Imparato (2013), Zero variance
Markov chain Monte Carlo for Bayesian estimators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, constraints

from probcalc._random import child, forked
from probcalc.integration.expectation import Expectation

_PILOT = 2**12  # draws for the coefficients
_FLAT = 1e-12  # of the largest variance: a direction with less has none


@runtime_checkable
class Control(Protocol):
    """What `MonteCarlo` asks of control variates."""

    def applied(self, posed: Expectation, seed: int) -> Expectation:
        """The expectation of a function of smaller variance and equal mean."""
        ...


@dataclass(frozen=True, eq=False)
class ControlVariates:
    """Functions g with a known mean.

    Args:
        fn: ``fn(x, *args)``: draws ``(n, *batch, *event)`` to ``(n, *batch, k)``.
        mean: E[g], ``(k)`` or ``(*batch, k)``.
    """

    fn: Callable[..., Tensor]
    mean: Tensor

    def __post_init__(self) -> None:
        """Check what was given."""
        if not callable(self.fn):
            raise TypeError(f"`fn` must be a function, got {type(self.fn).__name__}.")
        if not torch.is_tensor(self.mean) or not self.mean.ndim:
            raise ValueError(
                "`mean` must be the known means of the control variates, a tensor (k) or "
                f"(*batch, k), got {self.mean!r}. Where none are known, use `ScoreControl()`."
            )

    def applied(self, posed: Expectation, seed: int) -> Expectation:
        """The expectation of f − βᵀ(g − E g)."""

        def centred(x: Tensor, args: tuple[Any, ...]) -> Tensor:
            g = self.fn(x, *args)
            lead = (len(x), *posed.batch)
            if not torch.is_tensor(g) or g.ndim != len(lead) + 1 or g.shape[: len(lead)] != lead:
                got = tuple(g.shape) if torch.is_tensor(g) else type(g).__name__
                raise ValueError(
                    f"control variates must have shape (n, *batch, k), here {lead} and k; got "
                    f"{got}."
                )
            return g.double() - self.mean.double()

        return _lightened(posed, centred, seed)


@dataclass(frozen=True)
class ScoreControl:
    """Control variates made of ∇ log p, for densities on all of ℝ^d.

    Args:
        degree: 1 for ∇ log p, which takes out what is linear where p is normal; 2 for products
            with x as well, which takes out what is quadratic, at d² + d functions.
    """

    degree: int = 1

    def __post_init__(self) -> None:
        """Check the degree."""
        if self.degree not in (1, 2):
            raise ValueError(f"`degree` must be 1 or 2, got {self.degree}.")

    def applied(self, posed: Expectation, seed: int) -> Expectation:
        """The expectation of f − βᵀg.

        Raises:
            ValueError: If the density has a border: its score need not have mean zero there.
        """
        if not _everywhere(posed.dist):
            raise ValueError(
                f"the score of {type(posed.dist).__name__} has mean zero only if its support is "
                "all of the real numbers: give `ControlVariates(fn, mean)`."
            )
        return _lightened(posed, lambda x, args: self._functions(posed.dist, x), seed)

    def _functions(self, dist: Distribution, x: Tensor) -> Float[Tensor, "n *batch k"]:
        lead = x.ndim - len(dist.event_shape)
        with torch.enable_grad():
            place = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(dist.log_prob(place).sum(), place)
        z, s = (t.detach().double().reshape(*x.shape[:lead], -1) for t in (x, slope))
        if self.degree == 1:
            return s
        eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        products = (z[..., None] * s[..., None, :] + eye).flatten(-2)
        return torch.cat([s, products], dim=-1)


def _everywhere(dist: Distribution) -> bool:
    support = dist.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real or support is constraints.real_vector


def _lightened(
    posed: Expectation, centred: Callable[[Tensor, tuple[Any, ...]], Tensor], seed: int
) -> Expectation:
    """The function less what the control variates say of it."""
    with torch.no_grad(), forked(child(seed, 0).initial_seed(), posed.device):
        x = posed.dist.sample((_PILOT,))
        x = x.to(posed.dtype) if x.is_floating_point() else x
        beta = _coefficients(posed.values(x), centred(x, posed.args), len(posed.batch))

    def fn(x: Tensor, *args: Any) -> Tensor:
        f, g = posed.fn(x, *args), centred(x, args).detach()
        lead = 1 + len(posed.batch)
        known = torch.einsum("...k,...ko->...o", g.to(beta.dtype), beta[None])
        return f - known.reshape([*f.shape[:lead], *f.shape[lead:]])

    return replace(posed, fn=fn)


def _coefficients(f: Tensor, g: Tensor, batch: int) -> Tensor:
    """Least squares of f on g, ``(*batch, k, o)``."""
    f = f.flatten(1 + batch) if f.ndim > 1 + batch else f[..., None]
    f, g = (t.movedim(0, -2) for t in (f, g))  # (*batch, n, columns)
    f, g = f - f.mean(dim=-2, keepdim=True), g - g.mean(dim=-2, keepdim=True)
    value, vector = torch.linalg.eigh(g.mT @ g)
    kept = value > _FLAT * value[..., -1:]
    inverse = torch.where(kept, 1 / torch.where(kept, value, 1.0), 0.0)
    root = (vector * inverse[..., None, :]).to(f.dtype)
    return root @ (vector.mT @ g.mT).to(f.dtype) @ f
