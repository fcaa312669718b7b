r"""Distances of two laws from draws of each, with kernels: unbiased, and with bars at p = q too.

    E k(X, X′) + E k(Y, Y′) − 2 E k(X, Y)

is the square of the maximum mean discrepancy where k is a positive definite kernel (Gretton,
Borgwardt, Rasch, Schölkopf & Smola, 2012, A kernel two-sample test, JMLR 13, lemma 6), and the
energy distance where k is −‖x − y‖ (Székely & Rizzo, 2013, Energy statistics, J. Stat. Planning
and Inference 143). Means over distinct draws are unbiased for it. Their noise has two parts: that
of E[k(x, X′) − k(x, Y)], which is normal and vanishes at p = q, and that of pairs, which does not
and is a sum of centred squares of normal numbers. Both are in the bar.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from scipy.stats import chi2
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from probcalc.distributions.special import tracked
from probcalc.divergence.from_log_probs import heavy_tailed
from probcalc.divergence.from_samples import paired
from probcalc.result import Estimate, half_width
from probcalc.status import Status

Kernel = Callable[[Tensor, Tensor], Tensor]  # (n, d), (m, d) to (n, m)

_CHUNK = 2**20  # values of a kernel held at once
_SURE = 2.0  # standard errors by which tails must look too heavy
_MEDIAN_OF = 1000  # draws of each law whose distances set the bandwidth


def maximum_mean_discrepancy(
    x: Float[Tensor, " n *d"],
    y: Float[Tensor, " m *e"],
    *,
    kernel: Kernel | None = None,
    bandwidth: float | None = None,
    confidence: float = 0.99,
) -> Estimate:
    """Square of the maximum mean discrepancy of the laws of x and of y, from draws.

    Args:
        x: Draws of p, ``(n)`` or ``(n, d)``.
        y: Draws of q.
        kernel: Bounded, positive definite, of points ``(n, d)`` and ``(m, d)``; None:
            exp(−‖x − y‖²/2h²).
        bandwidth: h of that kernel; None: the median distance of all draws, which counts as a
            constant. It makes the estimate depend on what is drawn, and no longer quite unbiased.
        confidence: Level of the bar.

    Returns:
        Estimate of one number in float64, which may be negative; differentiable in the draws.

    Raises:
        ValueError: If dimensions differ, there are fewer than 2 draws of either, draws are not
            finite, the bandwidth is not positive, or it is given along with a kernel.

    >>> x = torch.linspace(-1, 1, 8)
    >>> maximum_mean_discrepancy(x, x + 9, bandwidth=1.0).value.round(decimals=4)
    tensor(1.3598, dtype=torch.float64)
    """
    first, second = paired(x, y)
    if kernel is not None and bandwidth is not None:
        raise ValueError("give either a `kernel` or the `bandwidth` of the normal one.")
    if kernel is None:
        h = _median_distance(first, second) if bandwidth is None else float(bandwidth)
        if not h > 0:
            raise ValueError(
                f"`bandwidth` must be positive, got {h}."
                if bandwidth is not None
                else "all draws are one point: give a `bandwidth`."
            )
        kernel = lambda a, b: (-0.5 * (_apart(a, b) / h).square()).exp()  # noqa: E731
    return _estimate(partial(_of_kernel, kernel), first, second, confidence)


def energy_distance(
    x: Float[Tensor, " n *d"], y: Float[Tensor, " m *e"], *, confidence: float = 0.99
) -> Estimate:
    """Energy distance 2 E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖ of the laws of x and of y, from draws.

    On the line it is twice the integral of the squared difference of distribution functions, and
    takes n ln n operations. `scipy.stats.energy_distance` is the root of it for the draws'
    empirical laws, which is not unbiased.

    Args:
        x: Draws of p, ``(n)`` or ``(n, d)``.
        y: Draws of q.
        confidence: Level of the bar.

    Returns:
        Estimate of one number in float64, which may be negative; differentiable in the draws.
        Flagged where tails are so heavy that the bar is none.

    Raises:
        ValueError: As of `maximum_mean_discrepancy`.

    >>> energy_distance(torch.tensor([0.0, 1.0]), torch.tensor([4.0, 5.0])).value
    tensor(6., dtype=torch.float64)
    """
    first, second = paired(x, y)
    line = first.shape[1] == 1
    means = _on_the_line if line else partial(_of_kernel, lambda a, b: -_apart(a, b))
    found = _estimate(means, first, second, confidence)
    heavy = any(heavy_tailed(t.detach().norm(dim=1), _SURE) for t in (first, second))
    return _without_bar(found) if heavy else found


@dataclass(frozen=True, eq=False)
class _Means:
    """Of a kernel between draws x and draws y that are not the same draw.

    Args:
        rows: Over y, of each x.
        columns: Over x, of each y.
        square: Of its square, over all, without derivatives.
    """

    rows: Float[Tensor, " n"]
    columns: Float[Tensor, " m"]
    square: Float[Tensor, ""]

    def unexplained(self) -> Float[Tensor, ""]:
        """Variance of the kernel, less that of its means over rows and over columns."""
        each = self.rows.var(correction=0) + self.columns.var(correction=0)
        return (self.square - self.rows.mean().square() - each).clamp(min=0.0)


def _estimate(
    means: Callable[[Tensor, Tensor], _Means], x: Tensor, y: Tensor, confidence: float
) -> Estimate:
    xx, yy, xy = means(x, x), means(y, y), means(x, y)
    shares = xx.rows - xy.rows, yy.rows - xy.columns
    value = shares[0].mean() + shares[1].mean()
    n, m = len(x), len(y)
    df = float(min(n, m) - 1)
    with torch.no_grad():
        jackknife = sum(4 * s.var() / len(s) for s in shares)
        within = [2 * s.unexplained() / (k * (k - 1)) for s, k in ((xx, n), (yy, m))]
        pairs = within[0] + within[1] + 4 * xy.unexplained() / (n * m)
        linear = (jackknife - 2 * pairs).clamp(min=0.0)  # in which those of pairs count twice
        # of all sums of centred squares, a single one has the widest upper tail: Székely & Bakirov
        # (2003), Extremal probabilities for Gaussian quadratic forms
        square = (float(chi2.ppf(confidence, 1)) - 1) / math.sqrt(2)
        widest = torch.maximum(half_width(pairs.sqrt(), df, confidence), square * pairs.sqrt())
        error = half_width(linear.sqrt(), df, confidence) + widest
        std_error = (linear + pairs).sqrt()
    return Estimate(
        value, error, std_error, df, confidence, Status.OK, n + m, "all pairs of draws"
    )


def _without_bar(found: Estimate) -> Estimate:
    none = torch.full_like(found.error, math.inf)
    return replace(found, error=none, std_error=none, status=Status.INFINITE_VARIANCE)


def _of_kernel(kernel: Kernel, x: Tensor, y: Tensor) -> _Means:
    """In pieces, which are made again for derivatives rather than held."""
    same = x is y

    def sums(part: Tensor, y: Tensor, at: int) -> tuple[Tensor, Tensor, Tensor]:
        k = kernel(part, y)
        if same:
            k = torch.diagonal_scatter(k, k.new_zeros(len(k)), at)
        return k.sum(dim=1), k.sum(dim=0), k.detach().square().sum()

    pieces, at = [], 0
    for part in x.split(max(1, _CHUNK // len(y))):
        found = checkpoint(sums, part, y, at, use_reentrant=False) if tracked(x, y) else None
        pieces.append(found or sums(part, y, at))
        at += len(part)
    rows, columns, squares = zip(*pieces, strict=True)
    n, m = len(x) - same, len(y) - same
    return _Means(torch.cat(rows) / m, sum(columns) / n, sum(squares) / (len(x) * m))


def _on_the_line(x: Tensor, y: Tensor) -> _Means:
    """Of −|x − y|, from sorted numbers."""
    same = x is y
    x, y = x[:, 0], y[:, 0]
    n, m = len(x) - same, len(y) - same
    square = len(y) * x.square().sum() - 2 * x.sum() * y.sum() + len(x) * y.square().sum()
    rows = -_summed_distances(x, y) / m
    columns = rows if same else -_summed_distances(y, x) / n
    return _Means(rows, columns, square.detach() / (len(x) * m))


def _summed_distances(x: Float[Tensor, " n"], y: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
    """From each x to all y."""
    y = y.sort().values
    below = torch.searchsorted(y.detach(), x.detach())
    up_to = torch.cat([y.new_zeros(1), y.cumsum(dim=0)])
    return x * (2 * below - len(y)) + up_to[-1] - 2 * up_to[below]


def _apart(x: Float[Tensor, " n d"], y: Float[Tensor, " m d"]) -> Float[Tensor, " n m"]:
    """Distances, by differences: products of what lies far from zero would cancel."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _median_distance(x: Tensor, y: Tensor) -> float:
    """Of draws spread evenly over the samples."""
    some = [t.detach()[:: -(-len(t) // _MEDIAN_OF)] for t in (x, y)]
    return float(torch.nn.functional.pdist(torch.cat(some)).median())
