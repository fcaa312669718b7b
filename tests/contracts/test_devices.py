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
    GaussianMixture,
    GaussQuadrature,
    MonteCarlo,
    QuasiMonteCarlo,
    Stratified,
    Vegas,
    expect,
    integrate,
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
    guide = GUIDES[name]()
    k = (guide.num_components,) if isinstance(guide, GaussianMixture) else ()
    scale = {"log_scale": meta(*k, 3)} if name == "mean_field" else {"scale_tril": meta(*k, 3, 3)}
    params = {"loc": meta(*k, 3), **scale}
    z, log_q = guide.transform(params, meta(8, guide.base_dim(3)))
    return z, log_q, guide.log_prob(params, z)


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


METHODS = {
    "defaults": None,
    "Gauss": GaussQuadrature(20),
    "plain": MonteCarlo(),
    "antithetic": MonteCarlo(antithetic=True),
    "a long stream": MonteCarlo(2**21),
    "scrambled Sobol": QuasiMonteCarlo(),
    "stratified": Stratified(),
    "Vegas": Vegas(),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_expectations_on_cuda_are_those_on_cpu(name: str):
    """Two bars apart at most, values and gradients."""
    found = []
    for device in ("cpu", "cuda"):
        mean = torch.tensor(0.3, dtype=torch.float64, device=device, requires_grad=True)
        result = expect(
            lambda x: (x + 1).sin(),
            td.Normal(mean, torch.ones_like(mean)),
            method=METHODS[name],
            generator=torch.Generator().manual_seed(1),
            confidence=0.999999,
        )
        (slope,) = torch.autograd.grad(result.value, mean)
        assert result.value.device.type == result.error.device.type == device
        found.append((float(result.value.detach()), float(result.error), float(slope)))
    (value, bar, slope), (other, other_bar, other_slope) = found
    assert abs(value - other) <= bar + other_bar
    assert abs(slope - other_slope) <= 10 * (bar + other_bar) + 1e-9


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [0, 1, 3, 8])
def test_integrals_on_cuda_are_those_on_cpu(dim: int):
    found = []
    for device in ("cpu", "cuda"):
        shape = (5, dim) if dim else (5,)
        lower = torch.zeros(shape, dtype=torch.float64, device=device)
        rate = torch.linspace(0.5, 2, 5, dtype=torch.float64, device=device)
        result = integrate(
            (lambda x, a: (-a * x.sum(-1)).exp()) if dim else (lambda x, a: (-a * x).exp()),
            lower,
            lower + 1,
            args=(rate,),
            event_dim=min(dim, 1),
        )
        assert result.value.device.type == device
        found.append((result.value.cpu(), result.error.cpu()))
    (value, bar), (other, other_bar) = found
    assert ((value - other).abs() <= bar + other_bar).all()


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
