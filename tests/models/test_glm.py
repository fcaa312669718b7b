"""Generalised linear models: statsmodels' numbers, batches, and what has no maximum."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor

import probcalc as pc
from probcalc import Status
from probcalc.models.glm import LogisticRegression, PoissonRegression


def simulated(
    model, generator: torch.Generator, *batch: int, n: int = 300
) -> tuple[Tensor, Tensor]:
    x = torch.randn(*batch, n, 3, generator=generator, dtype=torch.float64)
    eta = 0.3 + x @ torch.tensor([0.5, -0.4, 0.2], dtype=torch.float64)
    mean = model.mean(eta)
    draw = torch.bernoulli if isinstance(model, LogisticRegression) else torch.poisson
    return x, draw(mean, generator=generator)


THEIRS = {
    "logistic": (LogisticRegression(), lambda y, x: sm.Logit(y, x)),
    "Poisson": (PoissonRegression(), lambda y, x: sm.Poisson(y, x)),
}


@pytest.mark.parametrize(("model", "theirs"), THEIRS.values(), ids=THEIRS.keys())
@pytest.mark.parametrize("robust", [False, True])
def test_standard_errors_are_those_of_statsmodels(model, theirs, robust: bool, generator):
    x, y = simulated(model, generator)
    fit = model.fit(x, y)
    assert fit.ok
    other = theirs(y.numpy(), sm.add_constant(x.numpy())).fit(
        disp=0, tol=1e-14, cov_type="HC0" if robust else "nonrobust"
    )
    torch.testing.assert_close(fit.coefficients, torch.tensor(other.params), rtol=1e-8, atol=0)
    torch.testing.assert_close(fit.std_error(robust), torch.tensor(other.bse), rtol=1e-8, atol=0)


def breast_cancer() -> tuple[Tensor, Tensor]:
    x, y = load_breast_cancer(return_X_y=True)
    x = torch.tensor((x - x.mean(axis=0)) / x.std(axis=0))
    return x, torch.tensor(y, dtype=torch.float64)


def test_breast_cancer():
    x, y = breast_cancer()
    fit = LogisticRegression(penalty=1.0).fit(x, y)
    assert fit.ok
    assert float(fit.objective) == pytest.approx(-37.7589459619, abs=1e-9)
    assert int(fit.num_iterations) <= 12
    assert float(((fit.predict(x) > 0.5) == y).double().mean()) > 0.98


def test_separated_classes_have_no_maximum():
    x, y = breast_cancer()
    fit = LogisticRegression().fit(x, y)
    assert fit.flags == Status.UNBOUNDED
    assert fit.std_error().isnan().all()
    # one of a batch
    pair = LogisticRegression().fit(
        torch.tensor([[[-1.0], [0.0], [1.0], [2.0]]]).expand(2, 4, 1),
        torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]]),
    )
    assert pair.status.tolist() == [int(Status.UNBOUNDED), 0]
    assert pair.std_error()[1].isfinite().all()


@pytest.mark.parametrize("model", [LogisticRegression(), PoissonRegression()])
def test_a_group_without_events_has_no_maximum(model, generator):
    """Quasi-complete separation: all others are estimated, one coefficient goes to −∞."""
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    x[:, 1] = (torch.arange(200) % 10 == 0).double()
    y = torch.bernoulli(torch.full((200,), 0.4).double(), generator=generator)
    y[x[:, 1] == 1] = 0
    fit = model.fit(x, y)
    assert fit.flags == Status.UNBOUNDED
    assert fit.std_error().isnan().all()
    y[0] = 1
    assert model.fit(x, y).ok


@pytest.mark.parametrize("model", [LogisticRegression(), PoissonRegression(penalty=0.5)])
def test_batches_are_what_their_data_sets_are(model, generator):
    x, y = simulated(model, generator, 3, 2, n=100)
    fit = model.fit(x, y)
    assert fit.coefficients.shape == (3, 2, 4)
    for i in range(3):
        for j in range(2):
            one = model.fit(x[i, j], y[i, j])
            torch.testing.assert_close(fit.coefficients[i, j], one.coefficients)
            torch.testing.assert_close(fit.std_error()[i, j], one.std_error())
            torch.testing.assert_close(fit.std_error(True)[i, j], one.std_error(True))


@pytest.mark.parametrize("model", [LogisticRegression(), PoissonRegression(penalty=0.5)])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e6])
def test_large_batches_that_begin_in_single_precision(model, scale: float, generator):
    """Their answers, standard errors too, are those of each alone, whatever the units."""
    x, y = simulated(model, generator, 400, n=400)
    x = x * torch.tensor([scale, 1.0, 1.0]).double()
    many = model.fit(x, y)
    assert many.ok
    for i in (0, 399):
        one = model.fit(x[i], y[i])
        torch.testing.assert_close(many.coefficients[i], one.coefficients, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(many.std_error()[i], one.std_error(), rtol=1e-8, atol=0)
    twice = torch.cat([x, x[..., :1]], dim=-1)
    twice[1:, :, 3] = x[1:, :, 0].square()
    if not model.penalty:
        with pytest.raises(ValueError, match=r"x\[0\], x\[3\] are not independent"):
            model.fit(twice, y)


def test_intervals_cover(generator):
    """95 % of intervals of a right model, classical and robust, within the binomial band."""
    model, runs = LogisticRegression(), 4000
    x, y = simulated(model, generator, runs, n=400)
    fit = model.fit(x, y)
    truth = torch.tensor([0.3, 0.5, -0.4, 0.2], dtype=torch.float64)
    for robust in (False, True):
        hits = ((fit.coefficients - truth).abs() <= 1.959964 * fit.std_error(robust)).double()
        # the asymptotic level is off by about 1/n, and noise is at most five of its sds
        band = 5 * np.sqrt(0.05 * 0.95 / runs) + 2 / 400
        assert (hits.mean(dim=0) - 0.95).abs().max() < band


X, Y = torch.arange(12.0).reshape(6, 2).sin(), torch.tensor([0.0, 1, 0, 1, 1, 0])
BAD = {
    "label": (LogisticRegression(), X, Y + 1, "0 or 1, got 2"),
    "count": (PoissonRegression(), X, Y - 0.5, "counts"),
    "constant": (LogisticRegression(), torch.ones(6, 1), Y, "intercept, x"),
    "not finite": (LogisticRegression(), X / 0, Y, "finite"),
    "few rows": (LogisticRegression(), X[:2], Y[:2], "more rows"),
}


@pytest.mark.parametrize(("model", "x", "y", "text"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_fitted(model, x: Tensor, y: Tensor, text: str):
    with pytest.raises(ValueError, match=text):
        model.fit(x, y)


@pytest.mark.parametrize(
    "model", [LogisticRegression(penalty=1.0), PoissonRegression(penalty=1.0)]
)
def test_the_posterior_on_the_same_object(model, generator):
    """Its mode is the penalised fit, its spread nearly the inverse information."""
    x, y = simulated(model, generator, n=300)
    fit, target = model.fit(x, y), model.target(x, y)
    found = pc.laplace(target, generator=generator)
    assert found.ok
    torch.testing.assert_close(found.params["loc"], fit.coefficients, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.std["beta"].value, fit.std_error(), rtol=0.05, atol=0)
    fitted = pc.fit(target, generator=generator)
    assert fitted.ok
    torch.testing.assert_close(fitted.mean["beta"].value, fit.coefficients, rtol=0.1, atol=0.05)
    rows = torch.stack([fit.score(x, y), fit.objective / 300])
    assert float(rows[0] - rows[1]) > 0  # the penalty
    with pytest.raises(ValueError, match="proper prior"):
        type(model)().target(x, y)


def test_penalties_are_not_negative():
    with pytest.raises(ValueError, match="`penalty`"):
        LogisticRegression(penalty=-1.0)
