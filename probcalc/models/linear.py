r"""Linear regression by least squares, with standard errors.

    β̂ = argmin ‖y − Xβ‖²,   X = QR,   R β̂ = Qᵀ y

    classical    cov β̂ = s² (XᵀX)⁻¹,   s² = ‖y − Xβ̂‖²/(n − p)
    HC0 to HC3   (XᵀX)⁻¹ Xᵀ diag(w) X (XᵀX)⁻¹,   w = e², e² n/(n − p), e²/(1 − h), e²/(1 − h)²

with leverages h, the diagonal of QQᵀ. White (1980), Econometrica 48; MacKinnon & White (1985), J.
Econometrics 29.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.models.design import checked, refuse_collinear, with_intercept
from probcalc.optimization.minimize import Method, minimize
from probcalc.status import Status


@dataclass(frozen=True)
class LinearRegression:
    """Settings.

    Args:
        intercept: Whether there is a coefficient of one.
    """

    intercept: bool = True

    def fit(self, x: Tensor, y: Tensor, *, method: Method | None = None) -> LinearFit:
        """Least squares.

        Args:
            x: Covariates ``(n, d)``.
            y: Responses ``(n)``.
            method: Of `minimize`; None: by orthogonal factors, at once.

        Raises:
            ValueError: If shapes do not match, a number is not finite, there are not more rows
                than coefficients, or columns are not independent.

        >>> x = torch.tensor([[0.0], [1.0], [2.0]])
        >>> LinearRegression().fit(x, torch.tensor([1.0, 3.0, 5.0])).coefficients.round(decimals=6)
        tensor([1., 2.], dtype=torch.float64)
        """
        if x.ndim != 2:
            raise ValueError(f"`x` must be (n, d), got {tuple(x.shape)}.")
        x, y = checked(x, y)
        X = with_intercept(x, self.intercept)
        refuse_collinear(X, self.intercept)
        if len(X) == X.shape[1]:
            raise ValueError(
                f"there are {len(X)} rows and as many coefficients: nothing is left for errors."
            )
        Q, R = torch.linalg.qr(X)
        status = Status.OK
        if method is None:
            beta = torch.linalg.solve_triangular(R, (Q.mT @ y)[:, None], upper=True)[:, 0]
        else:
            start = torch.zeros_like(X[0])
            found = minimize(lambda b: 0.5 * (y - X @ b).square().mean(), start, method=method)
            beta, status = found.x, found.flags
        return LinearFit(beta, X, y, Q, R, self.intercept, status)


@dataclass(frozen=True, eq=False)
class LinearFit:
    """A regression that is fitted.

    Args:
        coefficients: The intercept first, where there is one.
        design: X, with its column of ones.
        response: y.
        Q: Orthogonal factor of X.
        R: Triangular factor of X.
        intercept: Whether there is one.
        status: Of the solver.
    """

    coefficients: Float[Tensor, " p"]
    design: Float[Tensor, "n p"]
    response: Float[Tensor, " n"]
    Q: Float[Tensor, "n p"]
    R: Float[Tensor, "p p"]
    intercept: bool
    status: Status = Status.OK

    @property
    def residuals(self) -> Float[Tensor, " n"]:
        """What is left of the responses."""
        return self.response - self.design @ self.coefficients

    @property
    def r_squared(self) -> float:
        """Share of the variance that is explained."""
        y = self.response
        total = (y - y.mean() * self.intercept).square().sum()
        return float(1 - self.residuals.square().sum() / total)

    def predict(self, x: Float[Tensor, "m d"]) -> Float[Tensor, " m"]:
        """Expected responses of new rows."""
        return with_intercept(x.double(), self.intercept) @ self.coefficients

    def score(self, x: Float[Tensor, "m d"], y: Float[Tensor, " m"]) -> float:
        """Share of the variance of these responses that is explained."""
        away = (y.double() - self.predict(x)).square().sum()
        return float(1 - away / (y.double() - y.double().mean()).square().sum())

    def covariance(self, kind: str = "classical") -> Float[Tensor, "p p"]:
        """Of the coefficients.

        Args:
            kind: "classical", for errors of one variance; "HC0" to "HC3" for any.

        Raises:
            ValueError: If the kind is unknown.
        """
        n, p = self.design.shape
        e2 = self.residuals.square()
        # X R⁻¹ = Q: with R⁻¹ outside, everything is orthogonal inside
        inverse = torch.linalg.solve_triangular(self.R, torch.eye(p).to(self.R), upper=True)
        if kind == "classical":
            return e2.sum() / (n - p) * inverse @ inverse.mT
        leverage = self.Q.square().sum(dim=1)
        weights = {
            "HC0": e2,
            "HC1": e2 * n / (n - p),
            "HC2": e2 / (1 - leverage),
            "HC3": e2 / (1 - leverage).square(),
        }
        if kind not in weights:
            raise ValueError(
                f"unknown kind {kind!r}; known: 'classical', {', '.join(map(repr, weights))}."
            )
        spread = inverse @ (self.Q.mT * weights[kind]) @ self.Q @ inverse.mT
        return 0.5 * (spread + spread.mT)

    def std_error(self, kind: str = "classical") -> Float[Tensor, " p"]:
        """Standard errors of the coefficients."""
        return self.covariance(kind).diagonal().sqrt()
