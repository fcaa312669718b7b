r"""Pathfinder: Gaussians along the way to a mode, and the one of them that fits best.

A quasi-Newton run towards the mode passes through the bulk of the posterior. At each point x of
its path with gradient g the curvature met so far gives

    q = N(x + H g, H),   H ≈ (−∇² log p)⁻¹

and the q of highest ELBO is kept. All paths and all their points are weighed as one batch, and a
path that fails leaves the others alone.

Zhang, Carpenter, Gelman & Vehtari (2022), Pathfinder: parallel quasi-Newton variational
inference, section 2; the inverse Hessians are Nocedal & Wright (2006), equation 6.17.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probcalc.inference.gaussian_average import log_det, standard_log_prob
from probcalc.integration.normal_draws import normal_draws
from probcalc.optimization.lbfgs import LBFGS
from probcalc.optimization.minimize import descend

ValueAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]

_MAX_CONDITION = 1e12  # of a pair (yᵀy / yᵀs) above which it is left out, as in the paper
_MAX_POINTS = 24  # of a path that are weighed: the last ones, and earlier ones evenly spread
_MAX_ENTRIES = 2**23  # of the inverse Hessians kept
_NUM_DRAWS = 16  # for the ELBO of one point
_GTOL = 1e-6  # of the unscaled gradient: parameters may be in units that make it small far away
_MAX_SCALE = 1e6  # largest entry of a scale, beyond which an inverse Hessian is no covariance


@dataclass(frozen=True, eq=False)
class Paths:
    """The best Gaussian of each of `r` paths, and what the paths cost.

    Args:
        loc: Centres.
        scale_tril: Lower triangular scales; or diagonal ones, as vectors, in high dimension.
        elbo: Estimates, −inf where a path failed.
        mode: Where each path ended.
        status: Of the runs.
        num_gradients: Evaluations with gradient.
        num_values: Evaluations without.
    """

    loc: Float[Tensor, "r d"]
    scale_tril: Float[Tensor, "r d d"]
    elbo: Float[Tensor, " r"]
    mode: Float[Tensor, "r d"]
    status: Int[Tensor, " r"]
    num_gradients: int
    num_values: int


def pathfinder(
    value_and_grad: ValueAndGrad,
    log_density: Callable[[Tensor], Tensor],
    starts: Float[Tensor, "r d"],
    *,
    generator: torch.Generator,
    max_steps: int = 100,
) -> Paths:
    """Run all paths and weigh their points.

    Args:
        value_and_grad: Log density and gradient of rows.
        log_density: Log density of rows.
        starts: Where the paths begin.
        generator: Of the draws that weigh the points.
        max_steps: Evaluations a path.
    """
    track: list[tuple[Tensor, Tensor, Tensor]] = []

    def oracle(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = value_and_grad(x)
        track.append((rows, x, grad))
        return -value, -grad

    run = descend(oracle, starts, method=LBFGS(gtol=_GTOL), max_evals=max_steps)
    x, g = _columns(track, starts)
    chosen = _spread(x)
    H = _inverse_hessians(x, g, chosen)
    rows = torch.arange(len(starts))[:, None]
    loc, scale, elbo = _weighed(log_density, x[rows, chosen], g[rows, chosen], H, generator)
    best = elbo.argmax(dim=1)
    every = torch.arange(len(starts))
    return Paths(
        loc[every, best],
        scale[every, best],
        elbo[every, best],
        run.x,
        run.status,
        int(run.num_evals.sum()),
        chosen.numel() * _NUM_DRAWS,
    )


def _columns(
    track: list[tuple[Tensor, Tensor, Tensor]], starts: Float[Tensor, "r d"]
) -> tuple[Float[Tensor, "r l d"], Float[Tensor, "r l d"]]:
    """Every evaluated point of every path, NaN where a path had ended already."""
    r, d = starts.shape
    points = starts.new_full((r, len(track), d), math.nan)
    grads = points.clone()
    for i, (rows, x, grad) in enumerate(track):
        points[rows, i], grads[rows, i] = x, grad
    return points, grads


def _spread(x: Float[Tensor, "r l d"]) -> Int[Tensor, "r k"]:
    """The points of each path that are weighed."""
    length = x.isfinite().all(dim=-1).sum(dim=1)
    affordable = max(2, _MAX_ENTRIES // (x.shape[0] * x.shape[-1] ** 2))
    k = min(_MAX_POINTS, x.shape[1], affordable)
    share = torch.linspace(0.0, 1.0, k, device=x.device, dtype=torch.float64)
    return ((length - 1).clamp(min=0)[:, None] * share).round().long()


def _inverse_hessians(
    x: Float[Tensor, "r l d"], g: Float[Tensor, "r l d"], chosen: Int[Tensor, "r k"]
) -> Float[Tensor, "r k d d"]:
    """BFGS along each path, kept at the chosen points; pairs without curvature are left out."""
    r, num, d = x.shape
    eye = torch.eye(d, dtype=x.dtype, device=x.device)
    H, fresh = eye.expand(r, d, d), torch.ones(r, dtype=torch.bool, device=x.device)
    kept = H[:, None].repeat(1, chosen.shape[1], 1, 1)
    wanted: dict[int, list[tuple[int, int]]] = {}
    for row, points in enumerate(chosen.tolist()):
        for column, i in enumerate(points):
            wanted.setdefault(i, []).append((row, column))
    for i in range(1, num):
        s, y = x[:, i] - x[:, i - 1], g[:, i - 1] - g[:, i]
        sy, yy = (s * y).sum(dim=-1), (y * y).sum(dim=-1)
        good = (sy > 0) & (yy <= _MAX_CONDITION * sy)  # False for NaN
        gamma = torch.where(good, sy / yy, 1.0)
        H = torch.where((fresh & good)[:, None, None], gamma[:, None, None] * eye, H)
        fresh = fresh & ~good
        s, y = (torch.where(good[:, None], t, 0.0) for t in (s, y))
        H = _updated(H, s, y, torch.where(good, 1 / sy, 0.0))
        for row, column in wanted.get(i, ()):
            kept[row, column] = H[row]
    return kept


def _updated(
    H: Float[Tensor, "r d d"],
    s: Float[Tensor, "r d"],
    y: Float[Tensor, "r d"],
    rho: Float[Tensor, " r"],
) -> Float[Tensor, "r d d"]:
    """(I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ, by its terms of rank one; ρ = 1/sᵀy."""
    Hy = (H @ y[..., None])[..., 0]
    half = (0.5 * (rho.square() * (y * Hy).sum(dim=-1) + rho))[:, None] * s - rho[:, None] * Hy
    term = s[:, :, None] * half[:, None, :]
    return H + term + term.mT


def _weighed(
    log_density: Callable[[Tensor], Tensor],
    x: Float[Tensor, "r k d"],
    g: Float[Tensor, "r k d"],
    H: Float[Tensor, "r k d d"],
    generator: torch.Generator,
) -> tuple[Float[Tensor, "r k d"], Float[Tensor, "r k d d"], Float[Tensor, "r k"]]:
    """Centres, scales and ELBOs of the Gaussians at the points."""
    r, k, d = x.shape
    L, failed = torch.linalg.cholesky_ex(H.nan_to_num(0.0, 0.0, 0.0))
    usable = (failed == 0) & (L.abs().amax(dim=(-1, -2)) < _MAX_SCALE)
    L = torch.where(usable[..., None, None], L, torch.eye(d, dtype=x.dtype, device=x.device))
    loc = x + (H @ g[..., None])[..., 0]
    eps = normal_draws(1, _NUM_DRAWS, d, generator=generator, dtype=x.dtype)[0]
    z = loc[..., None, :] + eps @ L.mT  # (r, k, n, d)
    log_q = standard_log_prob(eps) - log_det(L)[..., None]
    elbo = (log_density(z.nan_to_num()) - log_q).mean(dim=-1)
    known = loc.isfinite().all(dim=-1)
    loc = torch.where(known[..., None], loc, x.nan_to_num(0.0))
    return loc, L, torch.where(usable & known & elbo.isfinite(), elbo, -math.inf)
