"""No forward path mixes devices: each runs on tensors of the `meta` device, without a GPU.

Fake CUDA tensors cannot be indexed on a build without CUDA; meta tensors can, and an operation
that meets a CPU tensor among them fails as it would on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch import distributions as td
from torch.utils import _pytree as pytree

from probcalc import (
    Estimate,
    GaussQuadrature,
    expect,
)
from probcalc.inference.guides import GUIDES
from probcalc.inference.moments import (
    kept_unless_moved,
    weighted_covariance,
    weighted_mean,
    weighted_moments,
    weighted_quantile,
)
from probcalc.integration.cube import image_of
from probcalc.integration.gradient_estimators import surrogate
from probcalc.integration.monte_carlo import judged
from probcalc.integration.running import Running
from probcalc.integration.sobol import ScrambledSobol
from probcalc.integration.tails import smoothed_log_weights
from probcalc.linalg import whitened
from probcalc.optimization.lbfgs import LBFGS, inverse_hessian_product


def meta(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta", dtype=torch.float64)


def guide_passes(name: str) -> object:
    settings = {"structured": (((0, 1), (1, 3)), (0,))}
    guide = GUIDES[name](*settings.get(name, ()))
    params = guide.from_gaussian(meta(3), meta(3, 3))
    z, log_q = guide.transform(params, meta(8, guide.base_dim(3)))
    more = [getattr(guide, n)(params) for n in ("entropy", "moments") if hasattr(guide, n)]
    return z, log_q, guide.log_prob(params, z), more


def normals(*batch: int) -> td.Normal:
    return td.Normal(meta(*batch), meta(*batch), validate_args=False)


IMAGES = {
    "normal": lambda: normals(2),
    "vector": lambda: td.Independent(normals(3), 1),
    "multivariate": lambda: td.MultivariateNormal(
        meta(3), scale_tril=meta(3, 3), validate_args=False
    ),
    "uniform": lambda: td.Uniform(meta(2), meta(2), validate_args=False),
    "exponential": lambda: td.Exponential(meta(2), validate_args=False),
    "log-normal": lambda: td.LogNormal(meta(2), meta(2), validate_args=False),
    "Laplace": lambda: td.Laplace(meta(2), meta(2), validate_args=False),
    "Weibull": lambda: td.Weibull(meta(2), meta(2), validate_args=False),
}


def drawn_from_points(make: Callable[[], td.Distribution]) -> Tensor:
    dim, place = image_of(make())
    return place(meta(16, dim))


def running() -> tuple[object, ...]:
    both = Running.of(meta(500, 2), 40).joined(Running.of(meta(500, 2), 40), 40)
    return both.mean, both.std_error, both.khat(), judged(both, both.low > both.high)


def sobol() -> Tensor:
    columns = torch.empty(8, 3, 30, device="meta", dtype=torch.long)
    shift = torch.empty(8, 3, device="meta", dtype=torch.long)
    return ScrambledSobol(columns, shift).points(16, 16)


def gauss() -> Estimate:
    return expect(lambda x: x.cos(), normals(2), method=GaussQuadrature(8))


PATHS = {
    **{f"points made {name}": partial(drawn_from_points, make) for name, make in IMAGES.items()},
    "terms of a mean": running,
    "scrambled points": sobol,
    "a Gauss rule": gauss,
    "surrogate of a score": lambda: surrogate(meta(8, 2), meta(8, 2), None),
    "Pareto smoothing": lambda: smoothed_log_weights(meta(1000)),
    "weighted moments": lambda: weighted_moments(meta(8, 50, 3), meta(8, 50), 0.99),
    "weighted mean": lambda: weighted_mean(meta(8, 50, 3), meta(8, 50), 0.99),
    "weighted covariance": lambda: weighted_covariance(meta(8, 50, 3), meta(8, 50), 0.99),
    "weighted quantile": lambda: weighted_quantile(meta(8, 50, 3), meta(8, 50), 0.5, 0.99),
    "a correction kept or not": lambda: kept_unless_moved(
        meta(3), Estimate(meta(3), meta(3)), meta(3)
    ),
    "whitening": lambda: whitened(meta(4, 20, 3)),
    "L-BFGS direction": lambda: inverse_hessian_product(meta(2, 5, 3), meta(2, 5, 3), meta(2, 3)),
    "L-BFGS start": lambda: LBFGS().point(LBFGS().init(meta(2, 3), meta(2), meta(2, 3))),
    "estimate": lambda: (Estimate(meta(3), meta(3)) * Estimate(meta(3), meta(3)) + 1.0).exp(),
    "replicates": lambda: Estimate.from_replicates(meta(8, 3)),
    **{f"guide {name}": lambda name=name: guide_passes(name) for name in GUIDES},
}


@pytest.mark.parametrize("name", PATHS)
def test_stays_on_its_device(name: str):
    tensors = [x for x in pytree.tree_leaves(PATHS[name]()) if torch.is_tensor(x)]
    assert tensors
    assert {t.device.type for t in tensors} == {"meta"}


def test_a_mixed_path_is_caught():
    """The check itself: a CPU tensor among the others raises."""
    with pytest.raises(RuntimeError, match="device"):
        meta(3) + torch.empty(3, dtype=torch.float64)
