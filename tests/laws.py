"""Statistical assertions with one false-alarm rate for the whole repository.

Each fails with probability at most ALPHA where the law holds, whatever the seed, and refuses to
run on too little data to see the violation that it is asked to see: where the law is broken by
that much, it passes with probability at most MISS. Two hundred such assertions in a run raise a
false alarm once in ten thousand runs.
"""

from __future__ import annotations

import math

import torch
from scipy.stats import binom, norm
from torch import Tensor

from probcalc import Estimate
from probcalc.result import half_width

ALPHA = 5e-7  # false alarms of one assertion: 1e-4 over the 200 that the suite may hold
MISS = 1e-3  # violations of the stated size that one assertion may let through


def generator(seed: int) -> torch.Generator:
    """A fresh CPU generator."""
    return torch.Generator().manual_seed(seed)


def draws_to_see(bias: float, *, tests: int = 1) -> int:
    """Draws after which a mean that is off by `bias` standard deviations is seen.

    n = ((z_{1−α/2} + z_{1−β}) / bias)², with ALPHA shared by the `tests` means compared at once.
    """
    return math.ceil(((norm.isf(ALPHA / (2 * tests)) + norm.isf(MISS)) / bias) ** 2)


def assert_mean_is(samples: Tensor, expected: Tensor | float, *, bias: float) -> None:
    """The independent rows of `samples` have this mean.

    Args:
        samples: Shape ``(n, *out)``; rows independent with a finite third moment.
        expected: Shape ``(*out)``.
        bias: Deviation, in standard deviations of a row, that must not go unseen.
    """
    x = samples.double()
    n, tests = len(x), x[0].numel()
    need = draws_to_see(bias, tests=tests)
    assert n >= need, f"{n} draws cannot see a bias of {bias} sd; {need} can"
    z = norm.isf(ALPHA / (2 * tests))
    centred, sd = x - x.mean(dim=0), x.std(dim=0)
    # Edgeworth: the tail beyond z grows by about exp(|skewness| z³ / 6√n)
    skewness = (centred.pow(3).mean(dim=0) / sd.pow(3)).nan_to_num().abs().max()
    assert float(skewness) * z**3 < 1.8 * n**0.5, f"{n} draws are too few for skewness {skewness}"
    off = (x.mean(dim=0) - expected).abs()
    rounding = 1e-14 * x.abs().mean(dim=0)
    assert (off <= z * sd / n**0.5 + rounding).all(), (
        f"mean {x.mean(dim=0)} is not {expected}: {off / (sd / n**0.5)} standard errors off"
    )


def assert_covers(hits: Tensor, claimed: float, *, caught: float) -> None:
    """Intervals that hit the truth independently do so with probability at least `claimed`.

    Args:
        hits: Did each interval contain the truth, shape ``(n)``.
        claimed: Probability that the intervals promise.
        caught: A true coverage this low must not go unseen.
    """
    n, hit = hits.numel(), int(hits.sum())
    least = int(binom.ppf(ALPHA, n, claimed))  # P(hit < least) < ALPHA at the claimed coverage
    seen = binom.cdf(least - 1, n, caught)
    assert seen >= 1 - MISS, (
        f"{n} intervals tell a coverage of {caught} from {claimed} with probability {seen:.4f}"
    )
    assert hit >= least, f"{hit} of {n} intervals hit; {claimed:.1%} promises at least {least}"


def assert_distributed(samples: Tensor, cdf: Tensor, *, distance: float) -> None:
    """Independent draws have this distribution (Dvoretzky-Kiefer-Wolfowitz, Massart's constant).

    Args:
        samples: Draws, shape ``(n)``.
        cdf: Distribution function claimed, at each draw, shape ``(n)``.
        distance: Largest difference of distribution functions that must not go unseen.
    """
    n = samples.numel()
    band = math.sqrt(math.log(2 / ALPHA) / (2 * n))
    seen = band + math.sqrt(math.log(2 / MISS) / (2 * n))
    assert seen <= distance, f"{n} draws see a distance of {seen:.4f}, not of {distance}"
    u = cdf.double()[samples.argsort()]
    above = torch.arange(1, n + 1, dtype=torch.float64) / n
    worst = torch.maximum((above - u).abs(), (u - above + 1 / n).abs()).max()
    assert float(worst) <= band, (
        f"distribution functions differ by {float(worst):.4f} > {band:.4f}"
    )


def assert_within(estimate: Estimate, truth: Tensor | float, *, atol: float = 0.0) -> None:
    """The truth lies within the bar; a random bar is widened to the confidence 1 − ALPHA.

    Bars of 99 % miss once in a hundred seeds, and on another processor a fixed seed is another
    seed as soon as rounding decides how a method adapts.
    """
    value, error = estimate.value.detach(), estimate.error
    if estimate.std_error is not None:
        error = error + half_width(estimate.std_error, estimate.dof, 1 - ALPHA)
        error = error - half_width(estimate.std_error, estimate.dof, estimate.confidence)
    away = (value - torch.as_tensor(truth, dtype=value.dtype).detach()).abs()
    assert (away <= error + atol).all(), f"{truth} is not within {estimate!r}"
