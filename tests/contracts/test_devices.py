"""No forward path mixes devices: each runs on tensors of the `meta` device, without a GPU.

Fake CUDA tensors cannot be indexed on a build without CUDA; meta tensors can, and an operation
that meets a CPU tensor among them fails as it would on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from probcalc import Estimate, GaussianMixture
from probcalc.inference.guides import GUIDES
from probcalc.inference.moments import (
    kept_unless_moved,
    weighted_covariance,
    weighted_mean,
    weighted_moments,
    weighted_quantile,
)
from probcalc.integration.tails import smoothed_log_weights
from probcalc.linalg import whitened
from probcalc.optimization.lbfgs import LBFGS, inverse_hessian_product


def meta(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta", dtype=torch.float64)


def guide_passes(name: str) -> object:
    guide = GUIDES[name]()
    k = (guide.num_components,) if isinstance(guide, GaussianMixture) else ()
    scale = {"log_scale": meta(*k, 3)} if name == "mean_field" else {"scale_tril": meta(*k, 3, 3)}
    params = {"loc": meta(*k, 3), **scale}
    z, log_q = guide.transform(params, meta(8, guide.base_dim(3)))
    return z, log_q, guide.log_prob(params, z)


PATHS = {
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


@pytest.mark.gpu
def test_fit_on_cuda_is_fit_on_cpu():
    import pyro
    import pyro.distributions as dist

    import probcalc as pc

    def model(y: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(torch.zeros((), device=y.device), 1.0))
        pyro.sample("y", dist.Normal(m, 0.5), obs=y)

    y = torch.tensor(10.0, dtype=torch.float64, device="cuda")
    p = pc.fit(pc.Target.from_pyro(model, y), generator=torch.Generator().manual_seed(0))
    assert p.z.device.type == "cuda"
    assert float(p.mean["m"]) == pytest.approx(8.0, abs=1e-6)
