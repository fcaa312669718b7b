r"""Is a way of fitting calibrated? Simulation-based calibration, and the VSBC asymmetry test.

    θ ~ p(θ),  y ~ p(y | θ),  q ≈ p(θ | y):     p_j = Q_j(θ_j) is uniform if q is the posterior

for every parameter j. Low p_j pile up where q lies too high (biased upward), both ends where it
is too narrow, the middle where it is too wide; `uniformity` has the tests. Uniformity holds given
any event of the data, so that fits that failed or were flagged may be left out.

Talts, Betancourt, Simpson, Vehtari & Gelman (2018), Validating Bayesian inference algorithms with
simulation-based calibration; Yao, Vehtari, Simpson & Gelman (2018), Yes, but did it work?,
section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils import _pytree as pytree

from probcalc._random import child, draw_seed
from probcalc.inference.data_sets import DataSets
from probcalc.inference.guides import FullRank, Guide
from probcalc.inference.pointwise import simulator_of
from probcalc.inference.posterior import Posterior
from probcalc.inference.prior import prior_draws
from probcalc.inference.pyro_simulation import PyroSimulator
from probcalc.inference.simulation import FunctionSimulator
from probcalc.inference.target import Target
from probcalc.inference.uniformity import Calibration, judged
from probcalc.integration.tails import khat_limit, smoothed_log_weights

Fit = Callable[[Target], Posterior]
_PRIOR, _DATA, _FIXED, _DRAWS, _TIES = range(5)  # streams of the seed
_MIN_SIMULATIONS = 100


def calibrate(
    target: Target,
    *,
    guide: Guide | None = None,
    fit: Fit | None = None,
    weighted: bool = False,
    num_simulations: int = 500,
    num_draws: int = 511,
    level: float = 0.01,
    generator: torch.Generator | None = None,
) -> Calibration:
    """Test a way of fitting on data sets that the model itself makes from its prior.

    A guide is fitted to all data sets in one batch; any other way of fitting is called for one
    data set after the other.

    Args:
        target: A Pyro model, or functions with `simulate` (and `prior`, or a proper log prior).
        guide: Family to test; None: `FullRank()`.
        fit: Instead of a guide: ``fit(target)`` returns a posterior, such as `pc.fit`.
        weighted: Whether to weigh the guide's draws, as `pc.fit` does; fits whose k̂ is above the
            limit are left out.
        num_simulations: Data sets; 500 see a bias of 0.25 sd, and a width that is off by 15 %.
        num_draws: Of each fit.
        level: Probability of any false verdict over all parameters.
        generator: Source of randomness; one seed is drawn from it.

    Returns:
        Ranks, tests and a verdict in words for every parameter.

    Raises:
        ValueError: If the target cannot simulate, the prior could not be drawn from, both `guide`
            and `fit` are given, fewer than 100 simulations are asked for, or too few fits
            succeeded.
    """
    _check(guide, fit, weighted, num_simulations)
    seed = draw_seed(generator)
    simulator = simulator_of(target)
    truth, status, reasons = prior_draws(target, num_simulations, seed + _PRIOR)
    if status:
        raise ValueError(
            f"the prior could not be drawn from ({'; '.join(reasons)}); give "
            "Target.from_function(..., prior=fn)."
        )
    data, _ = simulator.simulate(truth, seed + _DATA)
    z = target.unconstrain_rows(truth)
    x = target.constrained_vector(z)
    if fit is not None:
        ranks = _one_by_one(target, data, fit, x, num_draws, seed)
        method = "fits one by one"
    else:
        sets = DataSets(simulator, data, target.dim, target.dtype)
        fits = sets.fitted(guide or FullRank(), z, child(seed, _FIXED, target.device))
        stream = child(seed, _DRAWS, target.device)
        ranks = _together(target, sets, fits, x, num_draws, weighted, stream)
        method = type(fits.guide).__name__ + (", weighted" if weighted else "")
    pit = ranks.probabilities(child(seed, _TIES))
    return judged(target.names, pit[ranks.good], level, int((~ranks.good).sum()), method)


@dataclass(frozen=True, eq=False)
class _Ranks:
    """Of the true values among the draws of their fits.

    Args:
        below: Weight of draws below.
        equal: Weight of draws that are equal, as those of a constant entry.
        size: Effective draws of each fit.
        good: Which fits count.
    """

    below: Float[Tensor, "b p"]
    equal: Float[Tensor, "b p"]
    size: Float[Tensor, " b"]
    good: Bool[Tensor, " b"]

    def probabilities(self, generator: torch.Generator) -> Float[Tensor, "b p"]:
        """Exactly uniform for equal weights and an exact fit: ties are broken at random."""
        u = torch.rand(self.below.shape, generator=generator, dtype=torch.float64)
        n = self.size[:, None]
        return (self.below * n + u.to(self.below.device) * (self.equal * n + 1)) / (n + 1)


def _together(
    target: Target,
    sets: DataSets,
    fits: Any,
    x: Float[Tensor, "b p"],
    num_draws: int,
    weighted: bool,
    stream: torch.Generator,
) -> _Ranks:
    b = fits.guide.base_dim(sets.dim)
    eps = torch.randn(
        sets.num, num_draws, b, generator=stream, dtype=sets.dtype, device=target.device
    )
    z, log_q = fits.guide.transform(fits.params, eps)
    good = fits.good
    log_w = torch.zeros_like(log_q)
    if weighted:
        every = torch.arange(sets.num, device=z.device)
        log_ratios = sets.value(z, every) - log_q
        log_ratios = torch.where(log_ratios.isnan(), -torch.inf, log_ratios)
        log_w, khat = smoothed_log_weights(log_ratios)
        good = good & (khat <= khat_limit(num_draws))
    w = log_w.softmax(dim=1)
    draws, truth = target.constrained_vector(z), x[:, None]
    below, equal = (
        torch.einsum("bn,bnp->bp", w, hit.to(w)) for hit in (draws < truth, draws == truth)
    )
    return _Ranks(below, equal, 1 / w.square().sum(dim=1), good)


def _one_by_one(
    target: Target, data: Any, fit: Fit, x: Float[Tensor, "b p"], num_draws: int, seed: int
) -> _Ranks:
    below, equal, good = [], [], []
    for i in range(len(x)):
        posterior = fit(with_data(target, pytree.tree_map(lambda t: t[i], data)))  # noqa: B023
        draws = target.layout.flatten(posterior.sample(num_draws, child(seed + _DRAWS, i)))
        below.append((draws < x[i]).to(x).mean(dim=0))
        equal.append((draws == x[i]).to(x).mean(dim=0))
        good.append(posterior.ok)
    size = torch.full_like(x[:, 0], float(num_draws))
    return _Ranks(
        torch.stack(below), torch.stack(equal), size, torch.tensor(good, device=x.device)
    )


def with_data(target: Target, data: Any) -> Target:
    """The target, had its data been others.

    Args:
        target: Made of functions, or a Pyro model.
        data: Of the same structure: like `data`, or values of the observed sites by name.

    Raises:
        ValueError: If the target does not know its data.
    """
    simulator = simulator_of(target)
    if isinstance(simulator, PyroSimulator):
        return Target.from_pyro(
            simulator.conditioned(data),
            *simulator.args,
            pyro_device=target.device,
            pyro_dtype=target.dtype,
            **simulator.kwargs,
        )
    assert isinstance(simulator, FunctionSimulator)
    return Target.from_function(
        simulator.log_prior,
        simulator.parameters.layout.shapes,
        simulator.parameters.supports,
        log_likelihood=simulator.log_likelihood,
        data=data,
        simulate=simulator.simulator,
        prior=simulator.sampler,
        device=target.device,
        dtype=target.dtype,
    )


def _check(guide: Guide | None, fit: Fit | None, weighted: bool, num_simulations: int) -> None:
    if fit is not None and (guide is not None or weighted):
        raise ValueError("`fit` is a way of fitting of its own: leave out `guide` and `weighted`.")
    if num_simulations < _MIN_SIMULATIONS:
        raise ValueError(
            f"`num_simulations` must be at least {_MIN_SIMULATIONS} to see anything, "
            f"got {num_simulations}."
        )
