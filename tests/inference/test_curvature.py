"""Curvatures for Laplace: they agree where theory says so, and none is repaired."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch import distributions as td

import probcalc as pc
from probcalc import Status, Target

X = torch.linspace(-2, 2, 40, dtype=torch.float64)
Y = (X + 0.5 * (7 * X).sin() > 0).double()


def log_prior(p) -> Tensor:
    return td.Normal(0.0, 2.0).log_prob(p["w"]).sum()


def output(p, row) -> Tensor:
    return p["w"][0] + p["w"][1] * row[0]


def of_output(f: Tensor, row) -> Tensor:
    return td.Bernoulli(logits=f[0]).log_prob(row[1])


def log_likelihood(p, row) -> Tensor:
    return of_output(output(p, row)[None], row)


def target() -> Target:
    return Target.from_function(log_prior, {"w": (2,)}, log_likelihood=log_likelihood, data=(X, Y))


def run(curvature):
    return pc.laplace(target(), curvature=curvature, generator=torch.Generator().manual_seed(0))


def tril(posterior) -> Tensor:
    return posterior.params["scale_tril"]


def exact(z: Tensor) -> tuple[Tensor, Tensor]:
    """Fisher and empirical Fisher of a logistic regression, by their formulas."""
    design = torch.stack([torch.ones_like(X), X], dim=1)
    mean = (design @ z).sigmoid()
    prior = 0.25 * torch.eye(2).double()
    fisher = design.T @ ((mean * (1 - mean))[:, None] * design) + prior
    scores = (Y - mean)[:, None] * design
    return fisher, scores.T @ scores + prior


def test_gauss_newton_is_the_hessian_of_a_canonical_model():
    hessian, newton = run(pc.Hessian()), run(pc.GaussNewton(output, of_output))
    torch.testing.assert_close(tril(newton), tril(hessian), rtol=1e-6, atol=1e-9)
    fisher, empirical = exact(hessian.params["loc"])
    torch.testing.assert_close(
        torch.linalg.inv(tril(newton) @ tril(newton).T), fisher, rtol=1e-6, atol=1e-8
    )
    found = tril(run(pc.EmpiricalFisher()))
    torch.testing.assert_close(torch.linalg.inv(found @ found.T), empirical, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(tril(run(None)), tril(hessian), rtol=1e-10, atol=0)


@pytest.mark.filterwarnings("ignore::probcalc.EstimateWarning")  # some are far from the posterior
@pytest.mark.parametrize("kind", ["diagonal", "matrix", "vector", "Kronecker"])
def test_diagonals_and_given_matrices(kind: str):
    fisher, _ = exact(run(None).params["loc"])
    left, right = fisher[:1, :1], torch.diag(torch.tensor([2.0, 3.0])).double()
    curvature, want = {
        "diagonal": (pc.Hessian(diagonal=True), torch.diag(fisher.diagonal())),
        "matrix": (pc.Precision(fisher), fisher),
        "vector": (pc.Precision(fisher.diagonal()), torch.diag(fisher.diagonal())),
        "Kronecker": (pc.Precision([(left, right)]), torch.kron(left, right)),
    }[kind]
    found = run(curvature)
    torch.testing.assert_close(
        torch.linalg.inv(tril(found) @ tril(found).T), want, rtol=1e-5, atol=1e-8
    )


def test_evidence_does_not_depend_on_the_curvature():
    """Weights correct the Gaussian: all say the same within their bars."""
    found = [run(c) for c in (None, pc.Hessian(diagonal=True), pc.EmpiricalFisher())]
    values = [p.log_evidence for p in found]
    for value in values[1:]:
        gap = abs(float(value) - float(values[0]))
        # both bars of 99 %, widened to the suite's false-alarm rate
        assert gap <= 2.5 * float(value.error + values[0].error)


def test_what_is_not_positive_is_flagged():
    with pytest.warns(pc.EstimateWarning, match="not positive definite"):
        found = run(pc.Precision(torch.tensor([[1.0, 2.0], [2.0, 1.0]]).double()))
    assert Status.INDEFINITE in found.status
    assert "by Precision" in found.reasons[0]


BAD = {
    "size": (lambda: run(pc.Precision(torch.ones(3).double())), "of 3 parameters"),
    "another model": (
        lambda: run(pc.GaussNewton(output, lambda f, row: -f[0].square())),
        "not that of the target",
    ),
    "no rows": (
        lambda: pc.laplace(
            Target.from_log_density(lambda x: -x.square().sum(), 2), curvature=pc.EmpiricalFisher()
        ),
        "single rows",
    ),
}


@pytest.mark.parametrize(("call", "text"), BAD.values(), ids=BAD)
def test_mistakes_are_named(call, text: str):
    with pytest.raises(ValueError, match=text):
        call()
