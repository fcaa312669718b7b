r"""Sums over the rows of many regressions, in blocks that stay in the cache.

    η = Xβ,   Xᵀ(b′(η) − y),   Xᵀ diag(b″(η)) X

Large batches are begun by a few steps of iteratively reweighted least squares in single precision,
half the memory and twice the speed; Newton's method in double precision goes on from there, and
has the last word. Green (1984), J. R. Stat. Soc. B 46.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_CACHE = 2**18  # numbers of a block
_MANY = 2**19  # numbers from which on a start in single precision pays
_STEPS = 4  # in single precision
_LEAST = 1e-6  # weights, which are divided by
_APART = 1e-4  # squared distance of a scaled column from the ones before it: far from collinear


@dataclass(eq=False)
class Rows:
    """Covariates as columns, and responses, of `b` data sets.

    Args:
        columns: Shape ``(b, p, n)``, contiguous.
        response: Shape ``(b, n)``.
        family: With `normaliser` b, `mean` b′ and `variance` b″.
        ridge: Penalty by coefficient, shape ``(p)``.
    """

    columns: Float[Tensor, "b p n"]
    response: Float[Tensor, "b n"]
    family: Any
    ridge: Float[Tensor, " p"]
    _last: tuple[Tensor, Tensor, Tensor, Tensor] | None = field(default=None, init=False)
    _bent: tuple[Tensor, Tensor] | None = field(default=None, init=False)
    _guessed: bool = field(default=False, init=False)

    @classmethod
    def of(
        cls, x: Float[Tensor, "b n d"], y: Float[Tensor, "b n"], intercept: bool, **settings: Any
    ) -> Rows:
        """From a table, with a row of ones where there is an intercept."""
        b, n, d = x.shape
        columns = torch.empty(b, d + intercept, n, dtype=x.dtype, device=x.device)
        columns[:, :intercept] = 1.0
        for block in cls._blocks(b, n * d):
            columns[block, intercept:] = x[block].mT
        return cls(columns, y, **settings)

    @staticmethod
    def _blocks(b: int, size: int) -> list[slice]:
        step = max(1, _CACHE // max(1, size))
        return [slice(i, i + step) for i in range(0, b, step)]

    def _by_blocks(self, fn: Callable[..., Any], *tensors: Tensor) -> tuple[Tensor, ...]:
        size = self.columns.shape[1] * self.columns.shape[2]
        parts = [fn(*(t[s] for t in tensors)) for s in self._blocks(len(tensors[0]), size)]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def value_and_grad(
        self, beta: Float[Tensor, "k p"], rows: Tensor
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, "k p"]]:
        """Penalised minus log-likelihood of some data sets, and its slope."""
        whole = len(rows) == len(self.columns)
        if whole and self._last is not None and torch.equal(self._last[0], beta):
            return self._last[1], self._last[2]
        X, y = (self.columns, self.response) if whole else self._taken(rows)
        value, slope, weights = self._by_blocks(self._slopes, X, y, beta)
        value = value + 0.5 * (self.ridge * beta.square()).sum(dim=-1)
        slope = slope + self.ridge * beta
        if whole:
            self._last = (beta, value, slope, weights)
        return value, slope

    def curvature(self, beta: Float[Tensor, "k p"], rows: Tensor) -> Float[Tensor, "k p p"]:
        """Second derivatives of the same."""
        whole = len(rows) == len(self.columns)
        if whole and self._bent is not None and torch.equal(self._bent[0], beta):
            return self._bent[1]
        X = self.columns if whole else self._taken(rows)[0]
        if whole and self._last is not None and torch.equal(self._last[0], beta):
            weights = self._last[3]
        else:
            (weights,) = self._by_blocks(
                lambda a, c: (self.family.variance((c[:, None] @ a)[:, 0]),), X, beta
            )
        (found,) = self._by_blocks(lambda a, w: ((w[:, None] * a) @ a.mT,), X, weights)
        found = found + torch.diag(self.ridge)
        if whole:
            self._bent, self._guessed = (beta, found), False
        elif self._bent is not None and not self._guessed:
            at, bent = self._bent
            self._bent = at.index_copy(0, rows, beta), bent.index_copy(0, rows, found)
        return found

    def information(self, beta: Float[Tensor, "b p"]) -> Float[Tensor, "b p p"]:
        """The curvature of all data sets, which is never that of a start nearby."""
        if self._guessed:
            self._bent, self._guessed = None, False
        return self.curvature(beta, torch.arange(len(beta), device=beta.device))

    def gram(self, rows: Tensor) -> Float[Tensor, "k p p"]:
        """XᵀX of some data sets."""
        X = self.columns[rows]
        return X @ X.mT

    def _taken(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.columns[rows], self.response[rows]

    def _slopes(self, X: Tensor, y: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        eta = (beta[:, None] @ X)[:, 0]
        value = (self.family.normaliser(eta) - y * eta).sum(dim=-1)
        slope = (X @ (self.family.mean(eta) - y)[..., None])[..., 0]
        return value, slope, self.family.variance(eta)

    def start(self) -> tuple[Float[Tensor, "b p"], Bool[Tensor, " b"], int]:
        """Where to begin, which data sets may have collinear columns, and steps made."""
        b, p, n = self.columns.shape
        zero = self.columns.new_zeros(b, p)
        if b * p * n < _MANY or b < 2:
            return zero, torch.ones(b, dtype=torch.bool, device=zero.device), 0
        found = self._by_blocks(self._begun, self.columns, self.response)
        beta, suspect, bent, value, slope, weights = found
        value = value + 0.5 * (self.ridge * beta.square()).sum(dim=-1)
        self._last = (beta, value, slope + self.ridge * beta, weights)
        at_zero = n * self.family.normaliser(zero[0, 0])
        better = value < at_zero  # false for NaN
        if bool(better.all()):
            # the curvature a step before is near enough to go on with, once
            self._bent, self._guessed = (beta, bent.double()), True
            return beta, suspect, _STEPS
        return torch.where(better[:, None], beta, zero), suspect, _STEPS

    def _begun(self, X: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """A start, and the sums there while the block is in the cache."""
        beta, suspect, bent = self._single(X, y)
        return beta, suspect, bent, *self._slopes(X, y, beta)

    def _single(self, X: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reweighted least squares in single precision."""
        k, p, n = X.shape
        both = torch.empty(k, p + 1, n, dtype=torch.float32, device=X.device)
        both[:, :p] = X
        x, working, y = both[:, :p], both[:, p], y.float()
        ridge = self.ridge.float()
        beta = torch.zeros(k, p, dtype=torch.float32, device=X.device)
        suspect = torch.zeros(k, dtype=torch.bool, device=X.device)
        for step in range(_STEPS):
            eta = (beta[:, None] @ x)[:, 0] if step else torch.zeros_like(y[:, :1])
            mean, weights = self.family.moments(eta)
            weights = weights.clamp(min=_LEAST)
            torch.div(y - mean, weights, out=working)
            # at first all weights are one number, and go in front of the sums
            sums = (weights[:, None] * x) @ both.mT if step else weights[:, None] * (x @ both.mT)
            hessian = sums[..., :p] + torch.diag(ridge)
            factor, info = torch.linalg.cholesky_ex(hessian)
            slope = sums[..., p] - ridge * beta
            beta = beta + torch.cholesky_solve(slope[..., None], factor)[..., 0]
            if step == 0:
                pivots = factor.diagonal(dim1=-2, dim2=-1).square()
                share = pivots / hessian.diagonal(dim1=-2, dim2=-1)
                suspect = (info != 0) | ~(share > _APART).all(dim=-1)
        return beta.double(), suspect, hessian
