"""What flows add to a Gaussian, and that zuko leaves no trace."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

import probcalc as pc
from probcalc.inference.guides import Flow, FullRank
from probcalc.inference.sample_average import SampleAverage

F64 = torch.float64
SMALL = {
    "splines": Flow(2, (8,), bins=4),
    "affine": Flow(2, (8,), bins=None),
    "autoregressive": Flow(2, (8,), bins=4, autoregressive=True),
    "diagonal": Flow(2, (8,), bins=4, full_rank=False),
}
CASES = [(name, d) for name in SMALL for d in (1, 2, 5)]


def moved(params: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    noise = lambda v: 0.2 * torch.randn(v.shape, generator=generator, dtype=v.dtype)  # noqa: E731
    return {k: v + noise(v) if k.startswith("flow.") else v for k, v in params.items()}


def gaussian(d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    L = torch.randn(d, d, generator=generator, dtype=F64).tril()
    return torch.randn(d, generator=generator, dtype=F64), L + 3 * torch.eye(d, dtype=F64)


@pytest.mark.parametrize(("name", "d"), CASES)
def test_density_is_that_of_the_change_of_variables(name: str, d: int, generator: torch.Generator):
    """By the determinant of the Jacobian of the draws, from automatic differentiation."""
    guide = SMALL[name]
    params = moved(guide.from_gaussian(*gaussian(d, generator)), generator)
    eps = 2 * torch.randn(7, d, generator=generator, dtype=F64)
    one = lambda e: guide.transform(params, e[None])[0][0]  # noqa: E731
    base = torch.distributions.Normal(0.0, 1.0).log_prob(eps).sum(dim=1)
    exact = base - torch.linalg.slogdet(vmap(jacrev(one))(eps)).logabsdet
    z, log_q = guide.transform(params, eps)
    torch.testing.assert_close(log_q, exact)
    torch.testing.assert_close(guide.log_prob(params, z), exact)


@pytest.mark.parametrize(("name", "d"), CASES)
def test_it_is_no_gaussian_once_moved(name: str, d: int, generator: torch.Generator):
    """Each coordinate's draws are bent, not only shifted and scaled."""
    guide = SMALL[name]
    params = moved(guide.from_gaussian(*gaussian(d, generator)), generator)
    grid = torch.linspace(-2, 2, 9, dtype=F64)[:, None].expand(9, d)
    second = guide.transform(params, grid)[0].diff(dim=0).diff(dim=0)
    bent = second.abs().amax(dim=0) > 1e-4
    # affine maps cannot bend their first coordinate, nor one alone
    assert bent.all() if name != "affine" else bent.any() == (d > 1)


def test_starts_are_the_generator_s(generator: torch.Generator):
    """Same seed, same networks; the default generator is not touched."""
    target = pc.Target.from_log_density(lambda x: -0.5 * x.square().sum(), 3)
    before = torch.get_rng_state()
    a, b, c = (Flow().init(target, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[k], b[k]) for k in a)
    hidden = [k for k in a if k.startswith("flow.") and a[k].any()]
    assert hidden
    assert not any(torch.equal(a[k], c[k]) for k in hidden)
    # it starts as the Gaussian of its affine part
    z = torch.randn(5, 3, generator=generator, dtype=F64)
    torch.testing.assert_close(Flow().log_prob(a, z), FullRank().log_prob(a, z))


def test_importing_leaves_validation_as_it_was():
    """Importing zuko turns the validation of torch.distributions off."""
    code = (
        "from torch.distributions import Distribution as D\n"
        "before = D._validate_args\n"
        "import probcalc.inference.guides\n"
        "assert before and D._validate_args"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("name", SMALL)
def test_its_first_use_may_be_inside_a_transformation(name: str):
    """What is built once and kept does not belong to the transformation that was at work."""
    guide = replace(SMALL[name], hidden=(7,))  # met nowhere else
    eps = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=F64)

    def total(loc: Tensor) -> Tensor:
        params = guide.from_gaussian(loc, torch.eye(3, dtype=F64))
        return guide.transform(params, eps)[0].sum()

    points = torch.zeros(2, 3, dtype=F64)
    inside = vmap(grad(total))(points)
    assert torch.equal(inside, torch.full((2, 3), 4.0, dtype=F64))
    torch.testing.assert_close(grad(total)(points[0]), inside[0])
    assert float(total(points[0])) == pytest.approx(float(eps.sum()))


@pytest.mark.slow
def test_it_fits_what_no_gaussian_can():
    """A banana: nearly all of the divergence that the best Gaussian leaves goes."""

    def log_density(x: Tensor) -> Tensor:
        return -0.5 * (x[0].square() + ((x[1] - x[0].square()) / 0.5).square())

    target = pc.Target.from_log_density(log_density, 2)
    log_evidence = math.log(2 * math.pi * 0.5)
    solver = SampleAverage(num_draws=128, max_draws=128, num_sets=1, max_steps=150)
    loc, L = torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64)
    eps = torch.randn(4_000, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    gaps = []
    for guide in (FullRank(), Flow(2, (8,), bins=None)):
        solved = solver.solve(target, guide, guide.from_gaussian(loc, L), seed=3)
        loc, L = (solved.params[k] for k in ("loc", "scale_tril"))  # the next one's start
        z, log_q = guide.transform(solved.params, eps)
        gaps.append(log_evidence - float((target.log_density(z) - log_q).mean()))
    assert 0 < gaps[1] < 0.2 * gaps[0]
