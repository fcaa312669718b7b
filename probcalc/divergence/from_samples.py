r"""KL divergence, mutual information and distances from samples alone.

Distances to nearest neighbours tell densities:

    KL(p‖q) ≈ d/n Σ ln(ν_i/ρ_i) + ln(m/(n − 1))

with ρ_i and ν_i those from draw i of p to its k-th neighbour among the draws of p and of q. Wang,
Kulkarni & Verdú (2009), Divergence estimation for multidimensional densities via
k-nearest-neighbor distances, IEEE Trans. Inf. Theory 55. In many dimensions, or where p and q
lie far apart, it is too low, and falls in with the truth as slowly as n^(−1/d): the bar holds what
halving the samples shows of that, which is not all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc._random import draw_seed
from probcalc.divergence.critics import TrainedCritic
from probcalc.divergence.duals import DonskerVaradhan, NguyenWainwrightJordan
from probcalc.result import Estimate, half_width

_CHUNK = 2**22  # distances held at once
_BIAS = "low in many dimensions and for distant samples; the bar holds what halving them shows"


def kl_from_samples(
    x: Float[Tensor, " n *d"],
    y: Float[Tensor, " m *e"] | None = None,
    *,
    log_q: Callable[[Tensor], Tensor] | None = None,
    k: int = 5,
    method: TrainedCritic | None = None,
    confidence: float = 0.99,
    generator: torch.Generator | None = None,
) -> Estimate:
    """KL(p‖q) from draws of p, and of q or its log density.

    With draws of both, the neighbourhoods are as wide around a draw for p as for q, which takes
    most of the bias of fixed numbers of neighbours away (section III of Wang, Kulkarni & Verdú).

    Args:
        x: Draws of p, ``(n)`` or ``(n, d)``.
        y: Draws of q.
        log_q: Log density of q at points ``(n, d)`` or ``(n)``, as `x` is; then `y` is not needed.
        k: Neighbours.
        method: None for nearest neighbours; or `TrainedCritic()`, a lower bound by a network that
            is trained on the draws, for many dimensions. Its bar is that of the bound.
        confidence: Level of the bar, which is of noise, and of bias as far as it shows.
        generator: For the critic.

    Returns:
        Estimate of one number in float64, without derivatives; it may be negative.

    Raises:
        ValueError: If dimensions differ, draws are not finite, are fewer than twice k + 1 or
            repeat, or not one of `y` and `log_q` is given.
    """
    if (y is None) == (log_q is None):
        raise ValueError("give either draws `y` of q or its `log_q`.")
    if method is not None:
        if y is None:
            raise ValueError("a critic needs draws `y` of q.")
        if not isinstance(method.dual, (DonskerVaradhan, NguyenWainwrightJordan)):
            raise ValueError(
                "the KL divergence has the duals `DonskerVaradhan()` and "
                f"`NguyenWainwrightJordan()`, got {method.dual!r}."
            )
        samples = paired(x.detach(), y.detach())
        return method.divergence(*samples, confidence, draw_seed(generator))
    if y is not None:
        first, second = paired(x.detach(), y.detach())
        _check_neighbours("y", second, k)
        terms = lambda a, b: _two_samples(a, b, k)  # noqa: E731
        rest: tuple[Tensor, ...] = (first, second)
    else:
        assert log_q is not None
        first = _draws("x", x.detach())
        at = log_q(x).double().reshape(len(first))
        terms = lambda a, b: _one_sample(a, b[:, 0], k)  # noqa: E731
        rest = (_centred(first), at[:, None])
    _check_neighbours("x", first, k)
    return _estimate(terms, rest, first.shape[1], confidence, f"{k} nearest neighbours")


def mutual_information_from_samples(
    x: Float[Tensor, " n *d"],
    y: Float[Tensor, " n *e"],
    *,
    k: int = 5,
    method: TrainedCritic | None = None,
    confidence: float = 0.99,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Mutual information of paired draws: KL of the joint law from the product of its margins.

    Kraskov, Stögbauer & Grassberger (2004), Estimating mutual information, Phys. Rev. E 69,
    equation (8).

    Args:
        x: Draws, ``(n)`` or ``(n, d)``.
        y: Those that belong to them.
        k: Neighbours.
        method: None for nearest neighbours; or `TrainedCritic()`, whose dual may be `InfoNCE()`.
        confidence: Level of the bar.
        generator: For the critic.

    Raises:
        ValueError: If numbers of draws differ; as of `kl_from_samples`.
    """
    first, second = (_centred(_draws(name, t.detach())) for name, t in (("x", x), ("y", y)))
    if len(first) != len(second):
        raise ValueError(f"draws must be paired, got {len(first)} and {len(second)}.")
    if method is not None:
        return method.information(first, second, confidence, draw_seed(generator))
    for name, t in (("x", first), ("y", second)):
        _check_neighbours(name, t, k)
    terms = lambda a, b: _shared(a, b, k)  # noqa: E731
    dim = first.shape[1] + second.shape[1]
    return _estimate(terms, (first, second), dim, confidence, f"{k} nearest neighbours")


def _estimate(
    terms: Callable[[Tensor, Tensor], Tensor],
    samples: tuple[Tensor, ...],
    dim: int,
    confidence: float,
    method: str,
) -> Estimate:
    """Mean of the terms; noise from their scatter, bias from both halves of the samples."""
    found = terms(*samples)
    n, value = len(found), found.mean()
    halves = [terms(*(t[i::2] for t in samples)).mean() for i in range(2)]
    # what falls as n^(−1/d) is this much of the step from half the samples to all
    shown = (value - torch.stack(halves).mean()).abs() / (2 ** (1 / dim) - 1)
    # and that step is noisy itself: by about as much as the mean of all
    std_error = found.std() / n**0.5
    noise = half_width(std_error, n - 1, confidence)
    error = noise * (1 + 1 / (2 ** (1 / dim) - 1)) + shown
    diagnostics: dict[str, Any] = {"bias": _BIAS, "shown_bias": float(shown)}
    return Estimate(value, error, std_error, float(n - 1), confidence, 0, n, method, diagnostics)


def paired(x: Tensor, y: Tensor) -> tuple[Float[Tensor, " n d"], Float[Tensor, " m d"]]:
    """Draws of one dimension, in float64, from where the middle of them all is.

    So that what is computed does not depend on where zero is.

    Raises:
        ValueError: If dimensions differ, there are fewer than 2 draws, or they are not finite.
    """
    first, second = _draws("x", x), _draws("y", y)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"`x` and `y` must have draws of one dimension, got {first.shape[1]} and "
            f"{second.shape[1]}."
        )
    middle = torch.cat([first, second]).detach().mean(dim=0)
    return first - middle, second - middle


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(dim=0)


def _draws(name: str, x: Tensor) -> Float[Tensor, " n d"]:
    if x.ndim not in (1, 2) or len(x) < 2 or x.numel() == 0:
        raise ValueError(
            f"`{name}` must hold at least 2 draws, of shape (n) or (n, d), got shape "
            f"{tuple(x.shape)}."
        )
    x = x.double().reshape(len(x), -1)
    if not bool(x.isfinite().all()):
        row = int((~x.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"`{name}` must be finite, but draw {row} is {x[row].tolist()}.")
    return x


def _check_neighbours(name: str, x: Float[Tensor, " n d"], k: int) -> None:
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}.")
    if len(x) < 2 * (k + 1):
        raise ValueError(
            f"`{name}` must hold at least {2 * (k + 1)} draws for {k} neighbours, got {len(x)}."
        )
    repeated = len(x) - len(x.unique(dim=0))
    if repeated:
        raise ValueError(
            f"`{name}` holds {repeated} draws more than once: neighbours at distance 0 have no "
            "density. Discrete families have `kl`."
        )


def _nearest(x: Tensor, y: Tensor, k: int) -> Float[Tensor, " n k"]:
    """Distances from each x to its k nearest among y, ascending."""
    rows = max(1, _CHUNK // len(y))
    return torch.cat(
        [torch.cdist(part, y).topk(k, largest=False).values for part in x.split(rows)]
    )


def _within(x: Tensor, y: Tensor, radius: Float[Tensor, " n"]) -> tuple[Tensor, Tensor]:
    """How many y lie within a radius of each x, and how far the last of them is."""
    rows = max(1, _CHUNK // len(y))
    counts, reach = [], []
    for part, limit in zip(x.split(rows), radius.split(rows), strict=True):
        distance = torch.cdist(part, y)
        near = distance <= limit[:, None]
        counts.append(near.sum(dim=1))
        reach.append(torch.where(near, distance, 0.0).amax(dim=1))
    return torch.cat(counts), torch.cat(reach)


def _two_samples(x: Tensor, y: Tensor, k: int) -> Float[Tensor, " n"]:
    """Equation (25) of Wang, Kulkarni & Verdú, term by term."""
    n, m, d = len(x), len(y), x.shape[1]
    radius = torch.maximum(_nearest(x, x, k + 1)[:, -1], _nearest(x, y, k)[:, -1])
    radius = radius * (1 + 1e-12)  # the neighbour that sets it is inside
    mine, rho = _within(x, x, radius)
    other, nu = _within(x, y, radius)
    counts = torch.digamma((mine - 1).double()) - torch.digamma(other.double())
    return d * (nu / rho).log() + counts + math.log(m / (n - 1))


def _one_sample(x: Tensor, log_q: Tensor, k: int) -> Float[Tensor, " n"]:
    """Kozachenko & Leonenko's entropy (1987), and the log density."""
    n, d = x.shape
    rho = _nearest(x, x, k + 1)[:, -1]
    ball = 0.5 * d * math.log(math.pi) - math.lgamma(0.5 * d + 1)
    log_p = torch.digamma(torch.tensor(float(k))).item() - math.log(n - 1) - ball - d * rho.log()
    return log_p - log_q


def _shared(x: Tensor, y: Tensor, k: int) -> Float[Tensor, " n"]:
    """By the largest of both distances."""
    n = len(x)
    rows = max(1, _CHUNK // n)
    terms = []
    for a, b in zip(x.split(rows), y.split(rows), strict=True):
        apart, besides = torch.cdist(a, x), torch.cdist(b, y)
        radius = torch.maximum(apart, besides).topk(k + 1, largest=False).values[:, -1:]
        inside = ((t < radius).sum(dim=1).double() for t in (apart, besides))
        terms.append(sum(torch.digamma(count) for count in inside))
    whole = torch.tensor([float(k), float(n)], dtype=torch.float64)
    return torch.digamma(whole).sum().item() - torch.cat(terms)
