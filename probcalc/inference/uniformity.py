r"""Ranks of true parameters in their fits: are they uniform, and if not, what is wrong?

With p the probability that a fit gives to values below the true one and u = Φ⁻¹(p), the mean of u
tests the location, its variance the width, χ² over bins the whole. The asymmetry test compares
p with 1 − p: it is blind to the width, and sees bias alone.

Yao, Vehtari, Simpson & Gelman (2018), Yes, but did it work?: Evaluating variational inference,
section 3; Butler (1969), A test for symmetry using the sample distribution function, for the
limit of its statistic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from probcalc._table import text_table

_NUM_BINS = 20
_NUM_TESTS = 4  # a parameter: location, width, bins, asymmetry
_MIN_FITS = 100
_SURELY_INSIDE = 0.3  # √n times the statistic below which its p-value is one to rounding


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """Ranks of the true parameters in their fits, and what they say.

    Args:
        names: Of the parameters' entries.
        pit: Probability that each fit gave to values below the true one; NaN rows were left out.
        location_p: p-values of the mean of the normal scores.
        width_p: p-values of their variance.
        uniform_p: p-values of χ² over 20 bins.
        symmetry_p: p-values of the asymmetry test.
        shift: Mean of the normal scores: minus the bias, in posterior standard deviations.
        width: Fitted over true width, roughly: 1 / sd of the normal scores.
        level: Probability of any false verdict at all, over all parameters and tests.
        num_left_out: Fits that failed or were flagged.
        method: What was calibrated.
    """

    names: tuple[str, ...]
    pit: Float[Tensor, "n p"]
    location_p: Float[Tensor, " p"]
    width_p: Float[Tensor, " p"]
    uniform_p: Float[Tensor, " p"]
    symmetry_p: Float[Tensor, " p"]
    shift: Float[Tensor, " p"]
    width: Float[Tensor, " p"]
    level: float
    num_left_out: int
    method: str

    @property
    def num_simulations(self) -> int:
        """Fits that counted."""
        return len(self.pit)

    @property
    def ok(self) -> bool:
        """No test of any parameter fired."""
        return all(words == "calibrated" for words in self.verdicts.values())

    @property
    def verdicts(self) -> dict[str, str]:
        """In words, by name: ``calibrated``, ``too narrow``, ``biased upward``, ..."""
        return {name: self._verdict(j) for j, name in enumerate(self.names)}

    def _verdict(self, j: int) -> str:
        alpha = self.level / (_NUM_TESTS * len(self.names))
        words = []
        if min(float(self.location_p[j]), float(self.symmetry_p[j])) < alpha:
            words.append("biased upward" if float(self.shift[j]) < 0 else "biased downward")
        if float(self.width_p[j]) < alpha:
            words.append("too narrow" if float(self.width[j]) < 1 else "too wide")
        if not words and float(self.uniform_p[j]) < alpha:
            words.append("of the wrong shape")
        return " and ".join(words) or "calibrated"

    def __repr__(self) -> str:
        verdict = "CALIBRATED" if self.ok else "NOT CALIBRATED"
        left = f", {self.num_left_out} more left out" if self.num_left_out else ""
        rows = [
            [name, f"{float(self.shift[j]):+.2f}", f"{float(self.width[j]):.2f}"]
            + [f"{float(p[j]):.2g}" for p in (self.uniform_p, self.symmetry_p)]
            + [words]
            for j, (name, words) in enumerate(self.verdicts.items())
        ]
        head = ["", "shift", "width", "uniform p", "symmetry p", "verdict"]
        return "\n".join(
            [
                f"{self.method}, {self.num_simulations} simulations{left}: {verdict}",
                "",
                text_table(head, rows),
            ]
        )


def judged(
    names: tuple[str, ...],
    pit: Float[Tensor, "n p"],
    level: float,
    num_left_out: int,
    method: str,
) -> Calibration:
    """Test columns of probabilities for uniformity.

    Raises:
        ValueError: If too few rows are left to say anything.
    """
    if len(pit) < _MIN_FITS:
        raise ValueError(
            f"only {len(pit)} fits succeeded, and {num_left_out} did not: nothing can be said "
            "about calibration. Look at single fits first."
        )
    n = len(pit)
    u = torch.special.ndtri(pit.double()).cpu()
    shift, variance = u.mean(dim=0), u.var(dim=0)
    counts = torch.stack(
        [torch.histc(column, _NUM_BINS, 0.0, 1.0) for column in pit.double().cpu().mT]
    )
    expected = n / _NUM_BINS
    chi2 = ((counts - expected).square() / expected).sum(dim=1)
    return Calibration(
        names,
        pit,
        _tensor(2 * stats.norm.sf((shift.abs() * n**0.5).numpy())),
        _two_sided(stats.chi2(n - 1), (variance * (n - 1)).numpy()),
        _tensor(stats.chi2.sf(chi2.numpy(), _NUM_BINS - 1)),
        torch.stack([_symmetry_p(column) for column in pit.double().cpu().mT]),
        shift,
        variance.rsqrt(),
        level,
        num_left_out,
        method,
    )


def _symmetry_p(p: Float[Tensor, " n"]) -> Tensor:
    """P-value of sup |F(x) + F(1 − x) − 1|, whose limit is the largest |Brownian motion|."""
    n = len(p)
    t = p.sort().values
    t = torch.cat([t, 1 - t]).sort().values
    below = (p[None, :] <= t[:, None]).double().mean(dim=1)
    above = (1 - p[None, :] <= t[:, None]).double().mean(dim=1)
    c = float((below - above).abs().max()) * n**0.5
    if c < _SURELY_INSIDE:
        return torch.tensor(1.0, dtype=torch.float64)
    k = torch.arange(50, dtype=torch.float64)
    odd = 2 * k + 1
    inside = ((-1.0) ** k / odd * (-(math.pi**2) * odd.square() / (8 * c**2)).exp()).sum()
    return (1 - 4 / math.pi * inside).clamp(0.0, 1.0)


def _two_sided(law: Any, x: Any) -> Tensor:
    return 2 * torch.minimum(_tensor(law.cdf(x)), _tensor(law.sf(x)))


def _tensor(x: Any) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64)
