"""Mixtures by expectation maximisation: known optima, never down, and what has none."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_iris, load_wine
from sklearn.mixture import GaussianMixture as Peer

import probcalc as pc
from probcalc.models.mixture import GaussianMixture, log_joint


def table(name: str) -> torch.Tensor:
    x = torch.from_numpy((load_iris if name == "iris" else load_wine)().data).double()
    return x if name == "iris" else (x - x.mean(dim=0)) / x.std(dim=0, unbiased=False)


KNOWN = {"iris": -1.201237, "wine": -11.618135}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", KNOWN)
def test_known_optima_with_default_restarts(name: str, seed: int):
    x = table(name)
    fit = GaussianMixture(3).fit(x, generator=torch.Generator().manual_seed(seed))
    assert fit.ok
    assert float(fit.score(x)) == pytest.approx(KNOWN[name], abs=1e-5)
    assert float(fit.log_likelihood) == pytest.approx(len(x) * float(fit.score(x)), rel=1e-12)


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("name", KNOWN)
def test_the_likelihood_never_falls(name: str, diagonal: bool):
    """In every step of every start, from bad ones too."""
    x = table(name)
    model = GaussianMixture(4, diagonal=diagonal, restarts=30)
    generator = torch.Generator().manual_seed(2)
    hard = torch.rand(30, len(x), 4, generator=generator, dtype=torch.float64).softmax(dim=-1)
    found = pc.expectation_maximization(
        model, model.maximize(hard, x), x, num_rows=len(x), max_steps=300
    )
    rounding = 1e-12 * found.history.abs()[:-1]
    kept = found.history.isfinite().all(dim=0)
    assert int(kept.sum()) >= 20
    assert (found.history.diff(dim=0) >= -rounding)[:, kept].all()
    assert not bool((found.status[kept] & int(pc.Status.ROUNDOFF)).any())


@pytest.mark.parametrize("diagonal", [False, True])
def test_no_lower_than_scikit_learn(diagonal: bool):
    x = table("wine")[:, :4]
    kind = "diag" if diagonal else "full"
    peer = Peer(3, covariance_type=kind, n_init=20, random_state=0, tol=1e-9, max_iter=5000)
    peer.fit(x.numpy())
    fit = GaussianMixture(3, diagonal=diagonal).fit(x, generator=torch.Generator().manual_seed(0))
    assert float(fit.score(x)) >= peer.score(x.numpy()) - 1e-6
    # one step of the same start is the same step
    params = {
        "weights": torch.from_numpy(peer.weights_)[None],
        "means": torch.from_numpy(peer.means_)[None],
        "covariances": torch.from_numpy(
            peer.covariances_
            if not diagonal
            else peer.covariances_[..., None] * torch.eye(4).numpy()
        )[None],
    }
    posterior, value = fit.settings.expect(params, x)
    assert float(value) == pytest.approx(len(x) * peer.score(x.numpy()), rel=1e-12)
    torch.testing.assert_close(
        posterior[0], torch.from_numpy(peer.predict_proba(x.numpy())), rtol=1e-9, atol=1e-12
    )
    assert float(fit.bic) == pytest.approx(
        fit.num_parameters * math.log(len(x)) - 2 * float(fit.log_likelihood)
    )


def unpacked(p: dict) -> dict:
    """Free numbers as weights, means and covariances."""
    tril = p["tril"].tril(-1) + torch.diag_embed(p["tril"].diagonal(dim1=-2, dim2=-1).exp())
    return {
        "weights": p["logits"].softmax(dim=-1)[None],
        "means": p["means"][None],
        "covariances": (tril @ tril.mT)[None],
    }


def test_gradient_ascent_comes_to_the_same_optimum():
    x = table("iris")
    fit = GaussianMixture(3).fit(x, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    factor = torch.linalg.cholesky(fit.covariances)
    start = {
        "logits": torch.zeros(3).double(),
        "means": fit.means + 0.2 * torch.randn(3, 4, generator=generator).double(),
        "tril": factor.tril(-1) + torch.diag_embed(factor.diagonal(dim1=-2, dim2=-1).log() + 0.2),
    }
    found = pc.minimize(
        lambda p: -log_joint(unpacked(p), x).logsumexp(dim=-1).mean(), start, max_evals=3000
    )
    assert found.ok
    assert -float(found.value) == pytest.approx(KNOWN["iris"], abs=1e-5)
    torch.testing.assert_close(unpacked(found.x)["means"][0], fit.means, rtol=1e-3, atol=1e-3)


def test_the_score_is_the_expected_complete_score():
    """Fisher's identity: ∇ ln p(x) = E_posterior ∇ ln p(x, z), anywhere."""
    x = table("iris")
    generator = torch.Generator().manual_seed(4)
    p = {
        "logits": torch.randn(3, generator=generator).double(),
        "means": x[:3] + 0.1,
        "tril": 0.3 * torch.randn(3, 4, 4, generator=generator).double(),
    }
    leaves = {k: v.clone().requires_grad_() for k, v in p.items()}
    joint = log_joint(unpacked(leaves), x)
    direct = torch.autograd.grad(
        joint.logsumexp(dim=-1).sum(), list(leaves.values()), retain_graph=True
    )
    posterior = joint.softmax(dim=-1).detach()
    complete = torch.autograd.grad((posterior * joint).sum(), list(leaves.values()))
    for a, b in zip(direct, complete, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_components_that_shrink_to_points_are_dropped_or_flagged():
    """Rows that come twice draw components onto themselves."""
    x = torch.tensor([[0.0], [0.0], [1.0], [1.0], [2.0], [2.0]]).double()
    fit = GaussianMixture(3, restarts=5).fit(x, generator=torch.Generator().manual_seed(0))
    assert not fit.ok
    assert fit.num_dropped == 5
    assert pc.Status.UNBOUNDED in fit.status


def test_what_a_fit_says_of_rows():
    x = table("iris")
    fit = GaussianMixture(3).fit(x, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fit.distribution().log_prob(x), fit.log_prob(x))
    assert torch.equal(fit.predict_proba(x).argmax(dim=-1), fit.predict(x))
    species = torch.from_numpy(load_iris().target)
    table_ = torch.zeros(3, 3).index_put((species, fit.predict(x)), torch.ones(150), True)
    assert float(table_.max(dim=1).values.sum()) >= 140


BAD = {
    "shape": (lambda: GaussianMixture(2).fit(torch.zeros(5)), r"\(n, d\)"),
    "rows": (lambda: GaussianMixture(3).fit(torch.eye(2)), "3 components need"),
    "constant": (
        lambda: GaussianMixture(2).fit(torch.tensor([[1.0, 0], [1, 2], [1, 3]])),
        "column 0",
    ),
    "NaN": (lambda: GaussianMixture(1).fit(torch.tensor([[1.0], [math.nan]])), "finite"),
    "empty": (lambda: GaussianMixture(1).fit(torch.zeros(0, 2)), "no rows"),
    "none": (lambda: GaussianMixture(0), "at least 1"),
}


@pytest.mark.parametrize(("call", "text"), BAD.values(), ids=BAD)
def test_mistakes_are_named(call, text: str):
    with pytest.raises(ValueError, match=text):
        call()
