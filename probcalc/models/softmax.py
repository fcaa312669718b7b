r"""Softmax regression by Newton's method, with standard errors.

    P(y = k) = e^{η_k} / Σ_l e^{η_l},   η_k = x·β_k
    −∇²ℓ = blockdiag(Xᵀ diag(p_k) X) − ZᵀZ,   Z = [p_1 X, …, p_K X]

Adding one vector to all β_k changes nothing: without a penalty β of the first class is zero, with
one only its intercept is. McCullagh & Nelder (1989), section 5.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probcalc.models.design import checked, refuse_collinear, starved, with_intercept
from probcalc.optimization.minimize import descend
from probcalc.optimization.newton import Newton
from probcalc.status import Status


@dataclass(frozen=True)
class SoftmaxRegression:
    """Settings.

    Args:
        penalty: λ, of ½ λ times the squares of the coefficients but intercepts.
        intercept: Whether there are coefficients of one.

    >>> x = torch.linspace(-3, 3, 30)[:, None]
    >>> y = (x[:, 0] + x[:, 0].mul(7).sin()).div(2).round().clamp(-1, 1).long() + 1
    >>> fit = SoftmaxRegression().fit(x, y)
    >>> fit.ok, fit.coefficients.shape
    (True, torch.Size([3, 2]))
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

    def fit(self, x: Tensor, y: Tensor, *, method: Newton | None = None) -> SoftmaxFit:
        """The maximum of the likelihood.

        Args:
            x: Covariates ``(n, d)``.
            y: Labels ``(n)``, 0 to K − 1, each of them at least once.
            method: Settings of Newton's method.

        Raises:
            ValueError: If shapes do not match, a number is not finite, a label is out of range or
                has no row, or columns are not independent.
        """
        if x.ndim != 2:
            raise ValueError(f"`x` must be (n, d), got {tuple(x.shape)}.")
        x, labels = checked(x, y.to(x.dtype) if x.is_floating_point() else y)
        num = _classes(labels)
        X = with_intercept(x, self.intercept)
        if not self.penalty:
            refuse_collinear(X, self.intercept)
        one_hot = torch.nn.functional.one_hot(labels.long(), num).to(X)
        p = X.shape[1]
        free, ridge = self._free(num, p, X)

        def oracle(z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            eta = X @ _spread(z[0], free, num, p).T
            loss = (eta.logsumexp(dim=1) - (one_hot * eta).sum(dim=1)).sum()
            slope = ((eta.softmax(dim=1) - one_hot).T @ X).reshape(-1)[free]
            return (loss + 0.5 * (ridge * z[0].square()).sum())[None], (slope + ridge * z[0])[None]

        def curvature(z: Tensor, rows: Tensor) -> Tensor:
            chance = (X @ _spread(z[0], free, num, p).T).softmax(dim=1)
            spread = (chance[:, :, None] * X[:, None]).reshape(len(X), -1)
            own = torch.einsum("nka,nb->kab", spread.reshape(len(X), num, p), X)
            full = torch.block_diag(*own) - spread.T @ spread
            return (full[free][:, free] + torch.diag(ridge))[None]

        start = X.new_zeros(1, len(free))
        own = method or Newton()
        found = descend(oracle, start, method=own, max_evals=1000, curvature=curvature)
        information = curvature(found.x, found.status)[0]
        status = Status(int(found.status[0]))
        if not self.penalty and bool(starved(information[None], lambda _: (X.T @ X)[None])):
            status = Status.UNBOUNDED
        return SoftmaxFit(
            self,
            _spread(found.x[0], free, num, p),
            -found.value[0],
            information,
            free,
            found.num_iterations[0],
            status,
        )

    def _free(self, num: int, p: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Which coefficients are free, flattened, and the penalty of each."""
        free = torch.ones(num, p, dtype=torch.bool, device=like.device)
        penalty = like.new_full((num, p), self.penalty)
        if self.intercept:
            penalty[:, 0] = 0.0
            free[0, 0] = False
        if not self.penalty:
            free[0] = False
        index = free.reshape(-1).nonzero()[:, 0]
        return index, penalty.reshape(-1)[index]


def _classes(labels: Tensor) -> int:
    bad = (labels < 0) | (labels != labels.round())
    if bool(bad.any()):
        raise ValueError(f"labels must be 0, 1, 2, ..., got {float(labels[bad][0])}.")
    count = labels.long().bincount()
    if len(count) < 2 or bool((count == 0).any()):
        missing = [k for k in range(max(2, len(count))) if k >= len(count) or count[k] == 0]
        raise ValueError(f"every class needs a row; there is none of {missing}.")
    return len(count)


def _spread(z: Tensor, free: Tensor, num: int, p: int) -> Tensor:
    return z.new_zeros(num * p).index_copy(0, free, z).reshape(num, p)


@dataclass(frozen=True, eq=False)
class SoftmaxFit:
    """A softmax regression that is fitted.

    Args:
        model: The settings.
        coefficients: Shape ``(K, p)``, the intercept first.
        objective: Log-likelihood less the penalty.
        information: Minus its Hessian over the free coefficients.
        free: Which these are, of the flattened coefficients.
        num_iterations: Newton steps.
        status: `UNBOUNDED` where planes separate the classes.
    """

    model: SoftmaxRegression
    coefficients: Float[Tensor, "k p"]
    objective: Float[Tensor, ""]
    information: Float[Tensor, "f f"]
    free: Int[Tensor, " f"]
    num_iterations: Int[Tensor, ""]
    status: Status

    @property
    def ok(self) -> bool:
        """Whether there is a maximum, and it was found."""
        return self.status == Status.OK

    def predict_proba(self, x: Float[Tensor, "m d"]) -> Float[Tensor, "m k"]:
        """Probabilities of the classes."""
        X = with_intercept(x.double(), self.model.intercept)
        return (X @ self.coefficients.T).softmax(dim=1)

    def predict(self, x: Float[Tensor, "m d"]) -> Int[Tensor, " m"]:
        """The likeliest class."""
        return self.predict_proba(x).argmax(dim=1)

    def score(self, x: Float[Tensor, "m d"], y: Tensor) -> float:
        """Share of rows whose class is predicted."""
        return float((self.predict(x) == y).double().mean())

    def std_error(self) -> Float[Tensor, "k p"]:
        """Standard errors; 0 of what is held at zero, NaN where the fit is flagged."""
        k, p = self.coefficients.shape
        if not self.ok:
            return torch.full_like(self.coefficients, torch.nan)
        sd = torch.linalg.inv(self.information).diagonal().sqrt()
        return _spread(sd, self.free, k, p)
