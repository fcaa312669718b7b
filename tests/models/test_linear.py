"""Linear regression: statsmodels' numbers, one answer of all solvers, and honest refusals."""

from __future__ import annotations

import pytest
import statsmodels.api as sm
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor

from probcalc import LBFGS, SGD, Newton
from probcalc.models.linear import LinearRegression


def diabetes() -> tuple[Tensor, Tensor]:
    x, y = load_diabetes(return_X_y=True)
    return torch.tensor(x), torch.tensor(y)


def test_diabetes():
    fit = LinearRegression().fit(*diabetes())
    assert fit.r_squared == pytest.approx(0.517748, abs=1e-6)
    assert fit.score(*diabetes()) == pytest.approx(fit.r_squared, rel=1e-12)
    assert float(fit.coefficients[0]) == pytest.approx(152.133484, abs=1e-6)
    assert float(fit.residuals.square().mean()) == pytest.approx(2859.696348, abs=1e-6)


@pytest.mark.parametrize("kind", ["classical", "HC0", "HC1", "HC2", "HC3"])
@pytest.mark.parametrize("intercept", [True, False])
def test_standard_errors_are_those_of_statsmodels(kind: str, intercept: bool):
    x, y = diabetes()
    fit = LinearRegression(intercept).fit(x, y)
    theirs = sm.OLS(y.numpy(), sm.add_constant(x.numpy()) if intercept else x.numpy())
    theirs = theirs.fit(cov_type="nonrobust" if kind == "classical" else kind)
    torch.testing.assert_close(fit.coefficients, torch.tensor(theirs.params), rtol=1e-8, atol=0)
    torch.testing.assert_close(fit.std_error(kind), torch.tensor(theirs.bse), rtol=1e-8, atol=0)
    assert fit.r_squared == pytest.approx(theirs.rsquared, rel=1e-10)


@pytest.mark.parametrize(
    "method", [Newton(), LBFGS(), SGD(0.3, gtol=1e-9)], ids=lambda m: type(m).__name__
)
def test_all_solvers_have_one_answer(method):
    """Of standardised columns: descent needs a condition that is not too bad."""
    x, y = diabetes()
    x = (x - x.mean(dim=0)) / x.std(dim=0)
    y = (y - y.mean()) / y.std()
    exact, found = LinearRegression().fit(x, y), LinearRegression().fit(x, y, method=method)
    assert not found.status
    torch.testing.assert_close(found.coefficients, exact.coefficients, rtol=0, atol=1e-6)


X = torch.arange(12.0).reshape(6, 2).sin()
Y = torch.arange(6.0)
BAD = {
    "shapes": (X, Y[:4], "`x` must be"),
    "batch": (X[None], Y[None], "must be \\(n, d\\)"),
    "nothing": (X[:0], Y[:0], "no rows"),
    "no number": (X.index_fill(1, torch.tensor([1]), float("nan")), Y, r"x\[0, 1\] is nan"),
    "infinite response": (X, Y / 0, r"y\[0\] is nan"),
    "constant column": (torch.cat([X, 0 * X[:, :1] + 2], 1), Y, r"intercept, x\[2\]"),
    "the same column twice": (torch.cat([X, 2 * X[:, :1]], 1), Y, r"x\[0\], x\[2\]"),
    "few rows": (X[:2], Y[:2], "3 coefficients and 2 rows"),
    "no row to spare": (X[:3], Y[:3], "nothing is left"),
}


@pytest.mark.parametrize(("x", "y", "text"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_fitted(x: Tensor, y: Tensor, text: str):
    with pytest.raises(ValueError, match=text):
        LinearRegression().fit(x, y)


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="known: 'classical', 'HC0'"):
        LinearRegression().fit(X, Y).covariance("HC9")
