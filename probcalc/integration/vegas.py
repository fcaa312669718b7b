"""Adaptive importance sampling along the axes, then scrambled points.

    ∫ f(x) dx = ∫ f(x(y)) |x'(y)| dy,   x_i piecewise linear in y_i

The map of every axis is drawn together where |f| has been large: Lepage (1978), A new algorithm
for adaptive multidimensional integration; (2021), Adaptive multidimensional integration: VEGAS
enhanced, section II. Its last stage keeps the map still, so that the mean is unbiased and its bar
that of independent replicates; scrambled points take the place of its strata.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probcalc._random import draw_seed
from probcalc.integration.cube import Cube, beyond_ends, cube_of, cube_of_boxes
from probcalc.integration.expectation import Expectation
from probcalc.integration.problem import Problem, Solved, Tolerance
from probcalc.integration.quasi_monte_carlo import QuasiMonteCarlo
from probcalc.integration.sobol import ScrambledSobol
from probcalc.integration.steps import BINS

_MAX_EVALS = 2**17
_BINS, _FEWEST, _IN_EACH = 128, 8, 32  # bins of an axis, and points that fill each; powers of two
_SHARE = 0.4  # of the budget, at most, for the map
_POINTS = 2**12  # of a round
_FEW = 50.0  # effective number of points below which a function is as good as unseen
_FAR = 5.0  # standard errors by which two means may differ
_EVEN = 0.05  # share of the points that are spread evenly, which bounds the slope of an axis


@dataclass(frozen=True)
class Vegas:
    """Importance sampling by a map of every axis, adapted in rounds.

    For integrands with peaks or ridges along the axes, in up to some tens of dimensions.

    Args:
        rounds: Of 4,096 points, in which the map is adapted.
        damping: How boldly a round changes it, 0 for not at all.
        replicates: Scrambles of the last stage, at least 8.
    """

    rounds: int = 6
    damping: float = 1.0
    replicates: int = 16

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.rounds < 1:
            raise ValueError(f"`rounds` must be at least 1, got {self.rounds}.")
        if not 0 <= self.damping < math.inf:
            raise ValueError(f"`damping` must be a number ≥ 0, got {self.damping}.")
        QuasiMonteCarlo(self.replicates)  # for its refusal

    def expect(self, posed: Expectation, tolerance: Tolerance) -> Solved:
        """Expectation over draws made of uniform numbers, of which the map is taken.

        Raises:
            NotImplementedError: If the draws of the family are not made of uniform numbers.
        """
        return self._solved(cube_of(posed), tolerance)

    def solve(self, problem: Problem, tolerance: Tolerance) -> Solved:
        """Integrate a batch of intervals or boxes, all with the same map and points.

        Raises:
            NotImplementedError: If limits are to be differentiated.
        """
        return self._solved(cube_of_boxes(problem), tolerance, ends=True)

    def _solved(self, cube: Cube, tolerance: Tolerance, ends: bool = False) -> Solved:
        seed, most = draw_seed(tolerance.generator), tolerance.max_evals or _MAX_EVALS
        num = 2 ** int(math.log2(max(2, min(_POINTS, _SHARE * most / (self.rounds + 2)))))
        with torch.no_grad():
            edges = self._adapted(cube, seed + 1, num)

        mapped, spent = replace(cube, at=partial(_through, cube, edges)), (self.rounds + 2) * num
        bins = edges.shape[1] - 1
        slopes = (bins * edges.diff(dim=1)).repeat_interleave(BINS // bins, dim=1)
        if not self._helps(cube, mapped, seed + 2, num):
            mapped, slopes = cube, None
        last = QuasiMonteCarlo(self.replicates)
        found = last.averaged(mapped, seed, tolerance, spent, slopes)
        beyond, looked = torch.zeros_like(found.bar), 0
        if ends:
            beyond, looked = beyond_ends(mapped, found.terms.low, found.terms.high)
        solved = last.solved(mapped, found, beyond > found.bar, spent + looked)
        method = f"VEGAS, {self.rounds} rounds, then {self.replicates} scrambles"
        return replace(solved, method=method)

    def _helps(self, cube: Cube, mapped: Cube, seed: int, num: int) -> bool:
        """Whether the map leaves less variance than none, about the same mean.

        Over many axes its noise adds up, until no point meets the larger slopes. Where even points
        meet next to nothing of the function, the map is all that there is.
        """
        u = _net(seed, 1, cube, num)[0]
        with torch.no_grad():
            before, after = (c.at(u).flatten(1).abs().double() for c in (cube, mapped))
        means = [f.mean(dim=0) for f in (before, after)]
        errors = [f.std(dim=0) / num**0.5 for f in (before, after)]
        met = before.sum(dim=0).square() >= _FEW * before.square().sum(dim=0)
        same = (means[0] - means[1]).abs() <= _FAR * (errors[0] + errors[1])
        better = ~met | ((errors[1] < errors[0]) & same)
        return bool(better.sum() * 2 >= len(better))

    def _adapted(self, cube: Cube, seed: int, num: int) -> Float[Tensor, "d e"]:
        """Edges of the bins of every axis."""
        bins = max(_FEWEST, min(_BINS, num // _IN_EACH))
        even = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=cube.device)
        edges = even.expand(cube.dim, -1)
        points = _net(seed, self.rounds, cube, num)
        for y in points:
            x, slope, place = _mapped(edges, y)
            f = cube.at(x).flatten(1).abs() * slope[:, None]
            f = torch.where(f.isfinite(), f, 0.0)
            squares = (f / f.mean(dim=0).clamp(min=torch.finfo(f.dtype).tiny)).square().sum(dim=1)
            edges = self._moved(edges, squares, place)
        return edges

    def _moved(
        self, edges: Float[Tensor, "d e"], squares: Float[Tensor, " n"], place: Int[Tensor, "n d"]
    ) -> Float[Tensor, "d e"]:
        """Bins that hold equal shares of the damped squares."""
        d, bins = len(edges), edges.shape[1] - 1
        total = torch.zeros(d, bins, dtype=squares.dtype, device=squares.device)
        total.scatter_add_(1, place.T, squares.expand(d, -1))
        count = torch.zeros_like(total).scatter_add_(
            1, place.T, torch.ones_like(squares).expand(d, -1)
        )
        mean = total / count.clamp(min=1.0)
        # a bin next to one that matters matters: an edge of f must not hide in a wide bin
        padded = torch.cat([mean[:, :1], mean, mean[:, -1:]], dim=1)
        near = torch.stack([padded[:, :-2], mean, padded[:, 2:]]).amax(dim=0)
        share = near / near.sum(dim=1, keepdim=True).clamp(min=torch.finfo(total.dtype).tiny)
        damped = _damped(share, self.damping)
        whole = damped.sum(dim=1, keepdim=True)
        damped = torch.where(whole > 0, damped / whole.clamp(min=1e-300), 1 / bins)
        damped = (1 - _EVEN) * damped + _EVEN * edges.diff(dim=1)
        cumulative = torch.cat([torch.zeros_like(damped[:, :1]), damped.cumsum(dim=1)], dim=1)
        wanted = cumulative[:, -1:] * torch.linspace(
            0, 1, bins + 1, dtype=edges.dtype, device=edges.device
        )
        bin_ = (torch.searchsorted(cumulative, wanted, right=True) - 1).clamp(0, bins - 1)
        low, high = cumulative.gather(1, bin_), cumulative.gather(1, bin_ + 1)
        share = ((wanted - low) / (high - low).clamp(min=torch.finfo(low.dtype).tiny)).clamp(0, 1)
        new = torch.lerp(edges.gather(1, bin_), edges.gather(1, bin_ + 1), share)
        new[:, 0], new[:, -1] = 0.0, 1.0
        return new


def _through(cube: Cube, edges: Float[Tensor, "d e"], y: Float[Tensor, "n d"]) -> Tensor:
    x, slope, _ = _mapped(edges, y)
    f = cube.at(x)
    return f * slope.reshape(-1, *[1] * (f.ndim - 1))


def _damped(share: Tensor, power: float) -> Tensor:
    """Lepage's compression ((1 − s)/log(1/s))^α of shares s."""
    inside = share.clamp(min=1e-300, max=1 - 1e-12)
    return torch.where(share > 0, ((inside - 1) / inside.log()) ** power, 0.0)


def _mapped(
    edges: Float[Tensor, "d e"], y: Float[Tensor, "n d"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"], Int[Tensor, "n d"]]:
    """Places, the determinant of the slope there, and the bins."""
    bins = edges.shape[1] - 1
    scaled = y * bins
    place = scaled.long().clamp(max=bins - 1)
    low = edges.T.gather(0, place)
    width = edges.T.gather(0, place + 1) - low
    return low + (scaled - place) * width, (bins * width).prod(dim=1), place


def _net(seed: int, replicates: int, cube: Cube, num: int) -> Float[Tensor, "r n d"]:
    """The first points of independent nets; a power of two of them."""
    log = max(1, num.bit_length() - 1)
    return ScrambledSobol.of(seed, replicates, cube.dim, cube.device, log).points(0, num)
