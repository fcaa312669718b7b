r"""Logistic and Poisson regression by Newton's method, in batches, with standard errors.

    ℓ(β) = Σ_i [y_i η_i − b(η_i)] − ½ λ ‖β‖²,   η = Xβ
    ∇ℓ = Xᵀ (y − b′(η)) − λβ,   −∇²ℓ = Xᵀ diag(b″(η)) X + λ

with b(η) = ln(1 + e^η) of logistic and e^η of Poisson regression; the intercept is not penalised.
Of λ = 0 the inverse of the last is the covariance of β̂, the observed and the expected one at once;
the sandwich H⁻¹ (Σ s_i s_iᵀ) H⁻¹ of scores s_i holds where the model does not. McCullagh & Nelder
(1989), Generalized linear models, section 2.5; White (1982), Econometrica 50.

Classes that a plane separates have no maximum: the fit is flagged, not reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from probcalc.inference.target import Target
from probcalc.models.canonical import Rows
from probcalc.models.design import checked, refuse_collinear, starved, with_intercept
from probcalc.optimization.minimize import descend
from probcalc.optimization.newton import Newton
from probcalc.status import Status

_STRAIGHT = 40.0  # from which on ln(1 + e^η) is η to rounding


@dataclass(frozen=True)
class _Regression:
    """Common to all of them.

    Args:
        penalty: λ, of the squares of the coefficients but the intercept.
        intercept: Whether there is a coefficient of one.
    """

    penalty: float = 0.0
    intercept: bool = True

    def __post_init__(self) -> None:
        """Check the penalty.

        Raises:
            ValueError: If it is negative.
        """
        if not self.penalty >= 0:
            raise ValueError(f"`penalty` must be at least 0, got {self.penalty}.")

    def normaliser(self, eta: Tensor) -> Tensor:
        """The function b."""
        raise NotImplementedError

    def mean(self, eta: Tensor) -> Tensor:
        """Its first derivative: the expected response."""
        raise NotImplementedError

    def variance(self, eta: Tensor) -> Tensor:
        """Its second derivative: the variance of the response."""
        raise NotImplementedError

    def moments(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance at once, to the digits that single precision has."""
        return self.mean(eta), self.variance(eta)

    def check_response(self, y: Tensor) -> None:
        """Refuse what cannot be a response."""
        raise NotImplementedError

    def fit(self, x: Tensor, y: Tensor, *, method: Newton | None = None) -> RegressionFit:
        """The maximum of the likelihood, penalised or not, of a batch of data sets at once.

        Args:
            x: Covariates ``(*batch, n, d)``.
            y: Responses ``(*batch, n)``.
            method: Settings of Newton's method.

        Returns:
            The fit; flagged `UNBOUNDED` where there is no maximum.

        Raises:
            ValueError: If shapes do not match, a number is not finite, a response is impossible,
                there are fewer rows than coefficients, or columns are not independent.
        """
        x, y = checked(x, y)
        self.check_response(y)
        batch, n = x.shape[:-2], x.shape[-2]
        ridge = x.new_full((x.shape[-1] + self.intercept,), self.penalty)
        ridge[: self.intercept] = 0.0
        data = Rows.of(
            x.reshape(-1, *x.shape[-2:]),
            y.reshape(-1, n),
            self.intercept,
            family=self,
            ridge=ridge,
        )
        start, suspect, steps = data.start()
        if not self.penalty and bool(suspect.any()):
            refuse_collinear(data.columns[suspect].mT, self.intercept)
        found = descend(
            data.value_and_grad,
            start,
            method=method or Newton(),
            max_evals=1000,
            curvature=data.curvature,
        )
        p = len(ridge)
        information, status = data.information(found.x), found.status
        if not self.penalty:
            lost = starved(information, lambda rows: data.gram(rows))
            status = torch.where(lost, int(Status.UNBOUNDED), status)
        return RegressionFit(
            self,
            found.x.reshape(*batch, p),
            -found.value.reshape(batch),
            information.reshape(*batch, p, p),
            data.columns.mT.reshape(*batch, n, p) if len(batch) != 1 else data.columns.mT,
            y,
            (found.num_iterations + steps).reshape(batch),
            status.reshape(batch),
        )

    def target(self, x: Tensor, y: Tensor) -> Target:
        """The posterior of the coefficients, for `pc.fit` and `pc.laplace`.

        The penalty is the prior: normal, of variance 1/λ, and flat for the intercept.

        Args:
            x: Covariates ``(n, d)``.
            y: Responses ``(n)``.

        Raises:
            ValueError: If there is no penalty, or the data cannot be fitted.
        """
        if not self.penalty:
            raise ValueError("a posterior needs a proper prior: give `penalty`.")
        if x.ndim != 2:
            raise ValueError(f"`x` must be (n, d), got {tuple(x.shape)}.")
        x, y = checked(x, y)
        self.check_response(y)
        X = with_intercept(x, self.intercept)

        def log_prior(values: dict[str, Tensor]) -> Tensor:
            return -0.5 * self.penalty * values["beta"][int(self.intercept) :].square().sum()

        def log_likelihood(values: dict[str, Tensor], row: tuple[Tensor, Tensor]) -> Tensor:
            eta = (row[0] * values["beta"]).sum()
            return row[1] * eta - self.normaliser(eta)

        return Target.from_function(
            log_prior, {"beta": (X.shape[1],)}, log_likelihood=log_likelihood, data=(X, y)
        )


@dataclass(frozen=True)
class LogisticRegression(_Regression):
    """P(y = 1) = 1/(1 + e^(−η)).

    Args:
        penalty: λ, of the squares of the coefficients but the intercept.
        intercept: Whether there is a coefficient of one.

    >>> x = torch.tensor([[-2.0], [-1.0], [0.0], [1.0]])
    >>> fit = LogisticRegression().fit(x, torch.tensor([0.0, 1.0, 0.0, 1.0]))
    >>> bool(fit.coefficients[1] > 0), fit.ok
    (True, True)
    """

    def normaliser(self, eta: Tensor) -> Tensor:
        """ln(1 + e^η)."""
        return softplus(eta, threshold=_STRAIGHT)

    def mean(self, eta: Tensor) -> Tensor:
        """The probability of 1."""
        return eta.sigmoid()

    def variance(self, eta: Tensor) -> Tensor:
        """Of the response."""
        return eta.sigmoid() * (-eta).sigmoid()

    def moments(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance at once, to the digits that single precision has."""
        mean = eta.sigmoid()
        return mean, mean - mean.square()

    def check_response(self, y: Tensor) -> None:
        """Refuse labels that are neither 0 nor 1.

        Raises:
            ValueError: If there are any.
        """
        bad = (y != 0) & (y != 1)
        if bool(bad.any()):
            raise ValueError(f"labels must be 0 or 1, got {float(y[bad][0])}.")


@dataclass(frozen=True)
class PoissonRegression(_Regression):
    """E y = e^η.

    Args:
        penalty: λ, of the squares of the coefficients but the intercept.
        intercept: Whether there is a coefficient of one.
    """

    def normaliser(self, eta: Tensor) -> Tensor:
        """e^η."""
        return eta.exp()

    def mean(self, eta: Tensor) -> Tensor:
        """The rate."""
        return eta.exp()

    def variance(self, eta: Tensor) -> Tensor:
        """Of the response: the rate."""
        return eta.exp()

    def check_response(self, y: Tensor) -> None:
        """Refuse what is no count.

        Raises:
            ValueError: If a response is negative or no whole number.
        """
        bad = (y < 0) | (y != y.round())
        if bool(bad.any()):
            raise ValueError(f"responses must be counts, got {float(y[bad][0])}.")


@dataclass(frozen=True, eq=False)
class RegressionFit:
    """Regressions that are fitted, of shape ``(*batch)``.

    Args:
        model: The settings.
        coefficients: The intercept first, where there is one.
        objective: Log-likelihood without its constant, less the penalty.
        information: Minus the Hessian of that.
        design: X, with its column of ones.
        response: y.
        num_iterations: Newton steps.
        status: Bit flags.
    """

    model: _Regression
    coefficients: Float[Tensor, "*batch p"]
    objective: Float[Tensor, "*batch"]
    information: Float[Tensor, "*batch p p"]
    design: Float[Tensor, "*batch n p"]
    response: Float[Tensor, "*batch n"]
    num_iterations: Int[Tensor, "*batch"]
    status: Int[Tensor, "*batch"]

    @property
    def flags(self) -> Status:
        """All flags, joined."""
        return Status.joined(self.status)

    @property
    def ok(self) -> bool:
        """Whether every fit has a maximum, and is there."""
        return self.flags == Status.OK

    def predict(self, x: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
        """Expected responses of new rows: of logistic regression the probability of 1."""
        X = with_intercept(x.double(), self.model.intercept)
        return self.model.mean((X @ self.coefficients[..., None])[..., 0])

    def score(self, x: Float[Tensor, "*batch m d"], y: Float[Tensor, "*batch m"]) -> Tensor:
        """Mean log-likelihood of new rows, without what does not depend on the coefficients."""
        X = with_intercept(x.double(), self.model.intercept)
        eta = (X @ self.coefficients[..., None])[..., 0]
        return (y * eta - self.model.normaliser(eta)).mean(dim=-1)

    def covariance(self, robust: bool = False) -> Float[Tensor, "*batch p p"]:
        """Of the coefficients; NaN where a fit is flagged.

        With a penalty it is that of the posterior under the normal prior that the penalty is,
        as Laplace has it, and no longer that of an unbiased estimate.

        Args:
            robust: Whether by the sandwich (HC0), which does not need the model to be right.
        """
        flagged = (self.status != 0)[..., None, None]
        one = torch.eye(self.information.shape[-1]).to(self.information)
        bread = torch.linalg.inv(torch.where(flagged, one, self.information))
        if robust:
            eta = (self.design @ self.coefficients[..., None])[..., 0]
            scores = (self.response - self.model.mean(eta))[..., None] * self.design
            bread = bread @ (scores.mT @ scores) @ bread
        return torch.where(flagged, torch.nan, 0.5 * (bread + bread.mT))

    def std_error(self, robust: bool = False) -> Float[Tensor, "*batch p"]:
        """Standard errors of the coefficients."""
        return self.covariance(robust).diagonal(dim1=-2, dim2=-1).sqrt()
