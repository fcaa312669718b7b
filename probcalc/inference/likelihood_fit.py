r"""What a likelihood says at its maximum: standard errors, tests, intervals, criteria.

With J = −∇²ℓ (observed), I = E J (expected) and K = Σ w_i s_i s_iᵀ of the scores s_i:

    observed J⁻¹,   expected I⁻¹,   opg K⁻¹,   sandwich J⁻¹ K J⁻¹

of which the last holds where the model does not. On the constrained scale they are carried by the
derivative of the map (delta method). White (1982), Econometrica 50; Efron & Hinkley (1978),
Biometrika 65; van der Vaart (1998), Asymptotic statistics, chapters 3, 5 and 16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from scipy.stats import chi2
from torch import Tensor
from torch.distributions import Distribution
from torch.func import hessian, jacfwd, vmap

from probcalc._check import unknown_name
from probcalc.inference.likelihood import Likelihood
from probcalc.inference.marginal import log_marginal_likelihood
from probcalc.inference.parameters import Values
from probcalc.inference.profile import Profile
from probcalc.inference.scope import model_scope
from probcalc.integration.expect import expect
from probcalc.linalg import symmetric
from probcalc.result import Estimate, half_width
from probcalc.status import Status

_KINDS = ("observed", "expected", "opg", "sandwich")
_TESTS = ("likelihood ratio", "wald", "score")


@dataclass(frozen=True)
class TestResult:
    """A test of a restriction.

    Args:
        statistic: Asymptotically χ² under the restriction, shape ``(*batch)``.
        df: Its degrees of freedom.
        p_value: Probability of a larger one, shape ``(*batch)``.
        kind: Which of the three.
    """

    __test__ = False  # pytest would take the name for its own

    statistic: Float[Tensor, "*batch"]
    df: int
    p_value: Float[Tensor, "*batch"]
    kind: str


@dataclass(frozen=True, eq=False)
class LikelihoodFit:
    """Maximum likelihood estimates, of shape ``(*batch)``.

    Args:
        likelihood: Of the flattened batch.
        z: Unconstrained estimates ``(b, d)``.
        batch: Its shape.
        log_likelihood: At the estimates, ``(*batch)``.
        status: Bit flags, ``(*batch)``.
        num_iterations: Newton steps, 0 where a formula gave the answer.
        reasons: Why it is flagged, in words.
        family: The family and what was fixed of it, or None.
    """

    likelihood: Likelihood
    z: Float[Tensor, "b d"]
    batch: tuple[int, ...]
    log_likelihood: Float[Tensor, "*batch"]
    status: Int[Tensor, "*batch"]
    num_iterations: Int[Tensor, "*batch"]
    reasons: tuple[str, ...] = ()
    family: tuple[Any, Values] | None = field(default=None, repr=False)

    @property
    def flags(self) -> Status:
        """All flags, joined."""
        return Status.joined(self.status)

    @property
    def ok(self) -> bool:
        """Whether every data set has a maximum, and it was found."""
        return self.flags == Status.OK

    @property
    def params(self) -> Values:
        """Estimates on the constrained scale, ``(*batch, *shape)``."""
        return self._shaped(self.likelihood.parameters.constrain(self.z))

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the entries of the covariance."""
        return self.likelihood.parameters.layout.labels

    @property
    def std_error(self) -> Values:
        """Standard errors from the observed information, by name; NaN where flagged."""
        return self.std_errors()

    def std_errors(self, kind: str = "observed") -> Values:
        """Standard errors from one kind of covariance, by name."""
        variance = self.covariance(kind).diagonal(dim1=-2, dim2=-1)
        return self.likelihood.parameters.layout.unflatten(variance.sqrt())

    def covariance(self, kind: str = "observed") -> Float[Tensor, "*batch p p"]:
        """Of the constrained estimates, in the order of `labels`; NaN where a fit is flagged.

        Args:
            kind: observed, expected (families only), opg or sandwich.

        Raises:
            ValueError: If the kind is unknown, or cannot be had.
        """
        return self._batched(self._carried(self._map_slope, kind))

    def estimate(
        self,
        fn: Callable[[Values], Tensor],
        *,
        kind: str = "observed",
        confidence: float = 0.95,
    ) -> Estimate:
        """A function of the parameters, with the bar of the delta method.

        Args:
            fn: Of the constrained values of one data set; returns a tensor.
            kind: Of the covariance.
            confidence: Of the bar.
        """
        constrain = self.likelihood.parameters.constrain
        one = lambda z: fn(constrain(z))  # noqa: E731
        value = vmap(one)(self.z)
        slope = vmap(jacfwd(one))(self.z).reshape(len(self.z), -1, self.z.shape[-1])
        variance = self._carried(slope, kind).diagonal(dim1=-2, dim2=-1)
        std_error = variance.sqrt().reshape(value.shape)
        shape = (*self.batch, *value.shape[1:])
        return Estimate(
            value.reshape(shape),
            half_width(std_error, None, confidence).reshape(shape),
            std_error.reshape(shape),
            None,
            confidence,
            self.status,
            int(self.num_iterations.max()) + 1,
            f"maximum likelihood, {kind} information",
        )

    def interval(self, level: float = 0.95, kind: str = "observed") -> dict[str, tuple]:
        """Wald intervals by name: lower and upper ends.

        Of parameters with elementwise constraints they are taken on the unconstrained scale and
        mapped, so that they stay inside; of others on the constrained scale.

        Raises:
            ValueError: If the level is not inside (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"`level` must lie strictly between 0 and 1, got {level}.")
        parameters = self.likelihood.parameters
        if parameters.elementwise:
            sd = self._free_covariance(kind).diagonal(dim1=-2, dim2=-1).sqrt()
            bar = half_width(sd, None, level)
            ends = [self._shaped(parameters.constrain(z)) for z in (self.z - bar, self.z + bar)]
        else:
            bars = {k: half_width(v, None, level) for k, v in self.std_errors(kind).items()}
            ends = [{k: v + s * bars[k] for k, v in self.params.items()} for s in (-1, 1)]
        lower = {k: torch.minimum(ends[0][k], ends[1][k]) for k in ends[0]}
        return {k: (lower[k], torch.maximum(ends[0][k], ends[1][k])) for k in lower}

    def profile(self, label: str) -> Profile:
        """The likelihood maximised over all other entries, as a function of one.

        Args:
            label: One of `labels`.

        Raises:
            ValueError: If there is no such entry, or its constraint ties it to others.
        """
        if label not in self.labels:
            raise ValueError(unknown_name("entry", label, self.labels))
        if not self.likelihood.parameters.elementwise:
            raise ValueError("profiles need parameters whose constraints are elementwise.")
        sd = self._free_covariance("observed").diagonal(dim1=-2, dim2=-1).sqrt()
        index = self.labels.index(label)
        return Profile(
            self.likelihood,
            self.z,
            self._flat(self.log_likelihood),
            index,
            sd[:, index],
            self.batch,
        )

    def test(self, null: dict[str, Any], kind: str = "likelihood ratio") -> TestResult:
        """Test that some parameters have given values.

        Args:
            null: Values by name, for all entries of the parameter.
            kind: likelihood ratio, wald or score.

        Raises:
            ValueError: If a name or the kind is unknown, or a value is outside its constraint.
        """
        if kind not in _TESTS:
            raise ValueError(unknown_name("test", kind, _TESTS))
        restricted, held, free, z0 = self._restricted(null)
        if kind == "likelihood ratio":
            statistic = 2 * (self._flat(self.log_likelihood) - restricted)
        elif kind == "wald":
            away = (self.z - z0)[:, held]
            block = self._free_covariance("observed")[:, held][:, :, held]
            solved = torch.linalg.solve(block, away[..., None])[..., 0]
            statistic = (away * solved).sum(dim=-1)
        else:
            _, score = self.likelihood.value_and_grad(z0)
            information = -self.likelihood.hessian(z0)
            solved = torch.linalg.solve(information, score[..., None])[..., 0]
            statistic = (score * solved).sum(dim=-1)
        df = len(held)
        p = torch.from_numpy(chi2.sf(statistic.clamp(min=0).cpu().numpy(), df))
        return TestResult(self._batched(statistic), df, self._batched(p.to(statistic)), kind)

    def log_marginal_likelihood(self, prior: dict[str, Distribution], **settings: Any) -> Estimate:
        """Log of ∫ p(data | θ) p(θ) dθ under independent priors, with an error bar.

        Args:
            prior: A proper distribution for every parameter, by name.
            **settings: Of `log_expect`.

        Raises:
            ValueError: If a parameter has no prior, there are several data sets, or likelihood
                times prior has no mode.
        """
        return log_marginal_likelihood(self, prior, **settings)

    @property
    def aic(self) -> Float[Tensor, "*batch"]:
        """−2ℓ + 2d. Akaike (1974)."""
        return 2 * self.z.shape[-1] - 2 * self.log_likelihood

    @property
    def bic(self) -> Float[Tensor, "*batch"]:
        """−2ℓ + d ln n. Schwarz (1978)."""
        n = self._batched(self.likelihood.total)
        return self.z.shape[-1] * n.log() - 2 * self.log_likelihood

    @property
    def tic(self) -> Float[Tensor, "*batch"]:
        """−2ℓ + 2 tr(J⁻¹ K), which is AIC where the model is right. Takeuchi (1976)."""
        trace = torch.einsum("bij,bji->b", self._inverse(self._observed), self._outer)
        return 2 * self._batched(trace) - 2 * self.log_likelihood

    def __repr__(self) -> str:
        if self.batch:
            return f"maximum likelihood fits of shape {self.batch}, {self.flags.words}"
        errors = self.likelihood.parameters.layout.flatten(self.std_error).tolist()
        values = self.likelihood.parameters.layout.flatten(self.params).tolist()
        lines = [
            f"{label}  {v:.6g} (standard error {e:.3g})"
            for label, v, e in zip(self.labels, values, errors, strict=True)
        ]
        lines.append(f"log-likelihood {float(self.log_likelihood):.8g}")
        return "\n".join([*lines, *self.reasons])

    @cached_property
    def _observed(self) -> Tensor:
        return -self.likelihood.hessian(self.z)

    @cached_property
    def _outer(self) -> Tensor:
        scores = self.likelihood.scores(self.z)
        return torch.einsum("bn,bni,bnj->bij", self.likelihood.weights, scores, scores)

    @cached_property
    def _map_slope(self) -> Tensor:
        return vmap(jacfwd(self.likelihood.parameters.vector))(self.z)

    @cached_property
    def _expected(self) -> Tensor:
        if self.family is None or set(self.likelihood.data) != {"x"}:
            raise ValueError(
                "expected information needs a family of distributions and rows that are neither "
                "censored nor truncated; take 'observed' or 'sandwich'."
            )
        family, fixed = self.family
        parameters = self.likelihood.parameters

        def log_prob(z: Tensor, x: Tensor) -> Tensor:
            return family(**parameters.constrain(z), **fixed, validate_args=False).log_prob(x)

        second = vmap(vmap(hessian(log_prob), in_dims=(0, 0)), in_dims=(None, 0))
        with model_scope(torch.float64):
            found = expect(
                lambda x, z: -second(z, x),
                family(**parameters.constrain(self.z), **fixed, validate_args=False),
                args=(self.z,),
            )
        return self.likelihood.total[:, None, None] * symmetric(found.value)

    def _free_covariance(self, kind: str) -> Tensor:
        """On the unconstrained scale."""
        if kind not in _KINDS:
            raise ValueError(unknown_name("covariance", kind, _KINDS))
        if kind == "opg":
            return self._inverse(self._outer)
        if kind == "expected":
            return self._inverse(self._expected)
        inverse = self._inverse(self._observed)
        return inverse if kind == "observed" else symmetric(inverse @ self._outer @ inverse)

    def _carried(self, slope: Tensor, kind: str) -> Tensor:
        return slope @ self._free_covariance(kind) @ slope.mT

    def _inverse(self, information: Tensor) -> Tensor:
        flagged = (self._flat(self.status) != 0)[:, None, None]
        one = torch.eye(information.shape[-1]).to(information)
        inverse = torch.linalg.inv(torch.where(flagged, one, information))
        return torch.where(flagged, torch.nan, symmetric(inverse))

    def _restricted(self, null: dict[str, Any]) -> tuple[Tensor, list[int], list[int], Tensor]:
        """Largest log-likelihood with some parameters held, which entries, and where."""
        parameters = self.likelihood.parameters
        extra = sorted(set(null) - set(parameters.layout.shapes))
        if extra or not null:
            raise ValueError(
                f"`null` must name some of {sorted(parameters.layout.shapes)}, got {sorted(null)}."
            )
        values = parameters.constrain(self.z)
        for name, value in null.items():
            given = torch.as_tensor(value, dtype=self.z.dtype, device=self.z.device)
            if not bool(parameters.supports[name].check(given).all()):
                raise ValueError(
                    f"`null[{name!r}]` = {value} violates its constraint "
                    f"{parameters.supports[name]}."
                )
            values[name] = given.expand_as(values[name])
        z0 = parameters.unconstrain(values)
        owners = [label.split("[")[0] for label in parameters.free.labels]
        held = [i for i, name in enumerate(owners) if name in null]
        free = [i for i, name in enumerate(owners) if name not in null]
        if not free:
            return self.likelihood.value(z0), held, free, z0
        index = torch.tensor(free, device=z0.device)
        rest = self.likelihood.restricted(z0, index)
        found = rest.maximum(z0[:, index])
        return -found.value * self.likelihood.total, held, free, rest.full(found.x)

    def _flat(self, t: Tensor) -> Tensor:
        return t.reshape((-1, *t.shape[len(self.batch) :]))

    def _batched(self, t: Tensor) -> Tensor:
        return t.reshape((*self.batch, *t.shape[1:]))

    def _shaped(self, values: Values) -> Values:
        return {k: self._batched(v) for k, v in values.items()}
