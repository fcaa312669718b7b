"""Softmax regression: the optima and standard errors of others."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from sklearn.datasets import load_iris, load_wine
from sklearn.linear_model import LogisticRegression as Peer

from probcalc import Status
from probcalc.models.glm import LogisticRegression
from probcalc.models.softmax import SoftmaxRegression


def simulated(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 2))
    eta = np.stack([0 * x[:, 0], 0.3 + x[:, 0], -0.4 + x[:, 1] - x[:, 0]], axis=1)
    p = np.exp(eta) / np.exp(eta).sum(axis=1, keepdims=True)
    return x, np.array([rng.choice(3, p=row) for row in p])


def test_standard_errors_are_those_of_statsmodels():
    x, y = simulated()
    fit = SoftmaxRegression().fit(torch.from_numpy(x), torch.from_numpy(y))
    peer = sm.MNLogit(y, sm.add_constant(x)).fit(disp=0, method="newton", tol=1e-13)
    assert fit.ok
    assert float(fit.objective) == pytest.approx(peer.llf, rel=1e-12)
    np.testing.assert_allclose(fit.coefficients[1:], peer.params.T, rtol=1e-8)
    np.testing.assert_allclose(fit.std_error()[1:], peer.bse.T, rtol=1e-8)
    assert (fit.std_error()[0] == 0).all()


@pytest.mark.parametrize("load", [load_iris, load_wine])
def test_penalised_optimum_is_scikit_learn_s(load):
    x, y = load(return_X_y=True)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    fit = SoftmaxRegression(penalty=1.0).fit(torch.from_numpy(x), torch.from_numpy(y))
    peer = Peer(C=1.0, solver="newton-cg", tol=1e-12, max_iter=1000).fit(x, y)
    assert fit.ok
    assert int(fit.num_iterations) <= 15
    np.testing.assert_allclose(fit.coefficients[:, 1:], peer.coef_, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        fit.predict_proba(torch.from_numpy(x)), peer.predict_proba(x), rtol=1e-5, atol=1e-9
    )
    assert fit.score(torch.from_numpy(x), torch.from_numpy(y)) == peer.score(x, y)


def test_two_classes_are_logistic_regression():
    x, y = simulated()
    x, y = torch.from_numpy(x), torch.from_numpy((y > 0).astype(int))
    two, one = SoftmaxRegression().fit(x, y), LogisticRegression().fit(x, y.double())
    torch.testing.assert_close(two.coefficients[1], one.coefficients)
    torch.testing.assert_close(two.std_error()[1], one.std_error())


def test_separated_classes_have_no_maximum():
    x, y = load_iris(return_X_y=True)
    fit = SoftmaxRegression().fit(torch.from_numpy(x), torch.from_numpy(y))
    assert not fit.ok
    assert Status.UNBOUNDED in fit.status or Status.NOT_CONVERGED in fit.status
    assert fit.std_error().isnan().all()


X, Y = torch.arange(12.0).reshape(6, 2).sin(), torch.tensor([0, 1, 2, 1, 0, 2])
BAD = {
    "label": (X, Y - 1, "labels must be 0, 1, 2"),
    "unseen": (X, Y.clamp(min=1), r"none of \[0\]"),
    "one class": (X, 0 * Y, r"none of \[1\]"),
    "constant": (torch.ones(6, 1), Y, "intercept, x"),
    "NaN": (X / 0, Y, "finite"),
    "rows": (X, Y[:3], r"\(\*batch, n\)"),
    "penalty": (None, None, "`penalty`"),
}


@pytest.mark.parametrize(("x", "y", "text"), BAD.values(), ids=BAD)
def test_mistakes_are_named(x, y, text: str):
    with pytest.raises(ValueError, match=text):
        SoftmaxRegression(penalty=-1.0 if x is None else 0.0).fit(x, y)
