"""`Posterior`: what is known about the parameters, how well, and whether to believe it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from probcalc._random import child, draw_seed
from probcalc._tree import Layout
from probcalc.inference import summary
from probcalc.inference.guides import GUIDES, Guide
from probcalc.inference.guides.saved import guide_of, record_of
from probcalc.inference.importance import control_of
from probcalc.inference.inference_data import to_inference_data
from probcalc.inference.moments import (
    Control,
    kept_unless_moved,
    mean_of_terms,
    weighted_covariance,
    weighted_mean,
    weighted_moments,
    weighted_quantile,
)
from probcalc.inference.parameters import Values
from probcalc.inference.target import Target
from probcalc.result import Estimate
from probcalc.status import Status

_FORMAT = 2
_ROUNDING = 64  # units in the last place: a log density sums terms that cancel
# flags under which weighted draws carry no usable error bar
_NO_BAR = Status.UNRELIABLE_WEIGHTS | Status.IMPROPER | Status.UNBOUNDED | Status.NON_FINITE


@dataclass(frozen=True, eq=False, repr=False)
class Posterior:
    """A guide, weighted draws that correct it, and a verdict.

    Moments are the guide's own where the weights move them by less than their noise, and the
    weighted ones elsewhere; every one is an `Estimate`. Where the status says that the weights
    cannot be trusted, error bars are infinite.

    Args:
        layout: Names and shapes of the constrained values.
        guide: Family of the approximation on the unconstrained space.
        params: Its parameters.
        z: Draws of the guide, ``(r, n, d)``, in r independent replicates.
        x: The same draws as constrained values, ``(r, n, p)``, columns as `names`.
        log_ratios: Log p(data, z) − log q(z), ``(r, n)``.
        log_weights: The same, Pareto smoothed.
        khat: Shape of the ratios' tail.
        status: Flags.
        reasons: The verdict's reasons, in words.
        num_evals: Evaluations of the log density, with or without gradient.
        num_gradients: Those with gradient.
        method: What was done.
        confidence: Of all error bars.
        seed: From which every draw came.
        target: What was approximated; None where loaded from a file without it.
        trace: ELBO by step of the solver, as it saw it.
        elbo_terms: Log ratios of the Gaussian that was fitted, where another proposal took its
            place for the weights; None: `log_ratios`.
    """

    layout: Layout
    guide: Guide
    params: dict[str, Tensor]
    z: Float[Tensor, "r n d"]
    x: Float[Tensor, "r n p"]
    log_ratios: Float[Tensor, "r n"]
    log_weights: Float[Tensor, "r n"]
    khat: float
    status: Status
    reasons: tuple[str, ...]
    num_evals: int
    method: str
    confidence: float = 0.99
    seed: int = 0
    num_gradients: int = 0
    target: Target | None = field(default=None, compare=False)
    trace: Float[Tensor, " t"] | None = None
    elbo_terms: Float[Tensor, "r m"] | None = None

    @property
    def ok(self) -> bool:
        """No flag stands."""
        return self.status == Status.OK

    @property
    def verdict(self) -> str:
        """``good``, ``corrected`` (the weights moved a moment) or ``unreliable`` (flagged)."""
        if not self.ok:
            return "unreliable"
        return "corrected" if self._is_corrected else "good"

    @property
    def names(self) -> tuple[str, ...]:
        """One name a constrained entry."""
        return self.layout.labels

    @property
    def mean(self) -> dict[str, Estimate]:
        """Posterior mean of every site."""
        return self._by_site(self._mean)

    @property
    def std(self) -> dict[str, Estimate]:
        """Posterior standard deviation of every site."""
        return self._by_site(self._std)

    @property
    def covariance(self) -> Estimate:
        """Posterior covariance of all constrained entries, in the order of `names`."""
        control = self._control
        weighted = weighted_covariance(self.x, self._weights, self.confidence, control)
        plain = weighted_covariance(self.x, self._equal_weights, self.confidence, control).value
        std = weighted.value.diagonal().clamp(min=0.0).sqrt()
        return self._judged(plain, weighted, std[:, None] * std)[0]

    def quantile(self, level: float) -> dict[str, Estimate]:
        """Posterior quantile of every site, elementwise.

        Raises:
            ValueError: If `level` is not strictly between 0 and 1.
        """
        if not 0.0 < level < 1.0:
            raise ValueError(f"`level` must lie strictly between 0 and 1, got {level}.")
        return self._by_site(self._quantile(level))

    def expect(self, fn: Callable[[Values], Tensor]) -> Estimate:
        """Posterior expectation of a function of the constrained values.

        Args:
            fn: Takes a dict of tensors with the draws along the first axis, and returns one
                value a draw, shape ``(n, *out)``.

        Raises:
            ValueError: If the result does not have the draws along its first axis.
        """
        r, n, p = self.x.shape
        h = fn(self.layout.unflatten(self.x.reshape(-1, p)))
        if not torch.is_tensor(h) or h.ndim < 1 or h.shape[0] != r * n:
            got = tuple(h.shape) if torch.is_tensor(h) else type(h).__name__
            raise ValueError(
                f"the function must return shape ({r * n}, *out) for {r * n} draws, got {got}."
            )
        out = h.shape[1:]
        h = h.to(self.x.dtype).reshape(r, n, -1)
        control = self._control_of(h)
        weighted = weighted_mean(h, self._weights, self.confidence, control)
        plain = weighted_mean(h, self._equal_weights, self.confidence, control).value
        flat = self._judged(plain, weighted, h.std(dim=(0, 1)))[0]
        return replace(
            flat,
            value=flat.value.reshape(out),
            error=flat.error.reshape(out),
            std_error=flat.std_error.reshape(out),
        )

    @property
    def elbo(self) -> Estimate:
        """Evidence lower bound of what was fitted to maximise it, in nats.

        Of the guide, or of the Gaussian before a mixture took its place for the weights: the
        bound of a proposal whose tails are made heavy on purpose says nothing. Where its terms
        have such tails that draws cannot find their mean, the bar is infinite.
        """
        terms = self.log_ratios if self.elbo_terms is None else self.elbo_terms
        bound = mean_of_terms(terms, self.confidence)
        lost = Status.OK if bool(bound.error.isfinite()) else Status.INFINITE_VARIANCE
        lost = lost if bool(bound.value.isfinite()) else Status.NON_FINITE
        return replace(bound, status=int(lost), num_evals=terms.numel(), method="ELBO")

    @property
    def log_evidence(self) -> Estimate:
        """Log of the integral of the target, by importance sampling, in nats."""
        r, n = self.log_weights.shape
        value = self.log_weights.flatten().logsumexp(dim=0) - math.log(r * n)
        relative = mean_of_terms(torch.exp(self.log_weights - value), self.confidence)
        rounding = _ROUNDING * torch.finfo(value.dtype).eps * value.abs()
        bar = replace(relative, value=value, error=relative.error + rounding)
        return self._flagged(replace(bar, method="importance sampling", num_evals=r * n))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Values:
        """Draws of constrained values that have the reported moments.

        From the guide where its weights correct nothing; otherwise a systematic resample of the
        weighted draws, which repeats draws when `n` is large against their number.

        Raises:
            ValueError: If `n` is below 1.
        """
        if n < 1:
            raise ValueError(f"`n` must be at least 1, got {n}.")
        stream = child(draw_seed(generator), 0)
        if self.target is not None and self.ok and not self._is_corrected:
            return self.sample_guide(n, stream)
        points = (torch.arange(n) + torch.rand((), generator=stream)).double() / n
        cumulative = self._weights.flatten().cumsum(dim=0)
        index = torch.searchsorted(cumulative, points.to(cumulative) * cumulative[-1])
        order = torch.randperm(n, generator=stream).to(index.device)
        rows = self.x.flatten(0, 1)[index.clamp(max=cumulative.numel() - 1)[order]]
        return self.layout.unflatten(rows)

    def sample_guide(self, n: int, generator: torch.Generator | None = None) -> Values:
        """Raw draws of the guide, uncorrected, as constrained values.

        Raises:
            ValueError: If the posterior was loaded without its target.
        """
        target = self._needed_target("drawing fresh values")
        stream = child(draw_seed(generator), 0)
        d = self.guide.base_dim(self.z.shape[-1])
        eps = torch.randn(n, d, generator=stream, dtype=self.z.dtype).to(self.z.device)
        return target.constrain(self.guide.transform(self.params, eps)[0])

    def log_prob(self, values: Values) -> Float[Tensor, " n"]:
        """Log density of the guide at constrained values, draws along the first axis.

        Raises:
            ValueError: If the posterior was loaded without its target.
        """
        target = self._needed_target("a log density of constrained values")
        z = target.unconstrain_rows(values)
        return self.guide.log_prob(self.params, z) - target.log_abs_det_jacobian(z)

    def summary(self, *sites: str) -> str:
        """Table of means, standard deviations and 90 % intervals, with the verdict below.

        Args:
            *sites: Names of the sites to show; none: all, the middle of a long table left out.

        Raises:
            ValueError: For an unknown site, naming the nearest.
        """
        return "\n".join([*summary.table(self, sites), "", *self.verdict_lines()])

    def verdict_lines(self) -> list[str]:
        """ELBO, evidence, k̂, cost and verdict, one line each."""
        return summary.verdict_lines(self)

    def __repr__(self) -> str:
        return f"Posterior of {len(self.names)} values: {self.verdict}\n{self.summary()}"

    def to_inference_data(self, **settings: Any) -> Any:
        """For ArviZ; see `probcalc.to_inference_data`, which takes the same settings."""
        return to_inference_data(self, **settings)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: tensors, and everything else as JSON in its header."""
        kept = ("z", "x", "log_ratios", "log_weights")
        tensors = {name: getattr(self, name) for name in kept}
        if self.elbo_terms is not None:
            tensors["elbo_terms"] = self.elbo_terms
        tensors |= {f"params.{name}": value for name, value in self.params.items()}
        record = {
            "format": _FORMAT,
            "shapes": {name: list(shape) for name, shape in self.layout.shapes.items()},
            **record_of(self.guide, GUIDES),
            "khat": self.khat,
            "status": int(self.status),
            "reasons": list(self.reasons),
            "num_evals": self.num_evals,
            "num_gradients": self.num_gradients,
            "method": self.method,
            "confidence": self.confidence,
            "seed": self.seed,
        }
        save_file(
            {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()},
            str(path),
            metadata={"probcalc": json.dumps(record)},
        )

    def _needed_target(self, purpose: str) -> Target:
        if self.target is None:
            raise ValueError(
                f"{purpose} needs the target; load with `load_posterior(path, target=...)`."
            )
        return self.target

    @cached_property
    def _weights(self) -> Tensor:
        return self.log_weights.flatten().softmax(dim=0).view_as(self.log_weights)

    @cached_property
    def _equal_weights(self) -> Tensor:
        return torch.full_like(self.log_weights, 1.0 / self.log_weights.numel())

    @cached_property
    def _control(self) -> Control | None:
        return self._control_of(self.x)

    def _control_of(self, h: Float[Tensor, "r n p"]) -> Control | None:
        return control_of(self.guide, self.params, self.z, h)

    @cached_property
    def _plain_moments(self) -> tuple[Estimate, Estimate]:
        return weighted_moments(self.x, self._equal_weights, self.confidence, self._control)

    @cached_property
    def _judged_moments(self) -> tuple[tuple[Estimate, Tensor], tuple[Estimate, Tensor]]:
        mean, std = weighted_moments(self.x, self._weights, self.confidence, self._control)
        return (
            self._judged(self._plain_moments[0].value, mean, std.value),
            self._judged(self._plain_moments[1].value, std, std.value),
        )

    @property
    def _mean(self) -> Estimate:
        return self._judged_moments[0][0]

    @property
    def _std(self) -> Estimate:
        return self._judged_moments[1][0]

    def _quantile(self, level: float) -> Estimate:
        weighted = weighted_quantile(self.x, self._weights, level, self.confidence)
        plain = weighted_quantile(self.x, self._equal_weights, level, self.confidence)
        return self._judged(plain.value, weighted, self._std.value)[0]

    @cached_property
    def _is_corrected(self) -> bool:
        (_, mean_moved), (_, std_moved) = self._judged_moments
        return bool((mean_moved | std_moved).any())

    def _judged(self, plain: Tensor, weighted: Estimate, scale: Tensor) -> tuple[Estimate, Tensor]:
        estimate, moved = kept_unless_moved(plain, weighted, scale)
        named = replace(estimate, num_evals=self.num_evals, method=self.method)
        return self._flagged(named), moved

    def _flagged(self, estimate: Estimate) -> Estimate:
        error = estimate.error
        if self.status & _NO_BAR:
            error = torch.full_like(error, math.inf)
        return replace(estimate, error=error, status=int(self.status))

    def _by_site(self, estimate: Estimate) -> dict[str, Estimate]:
        pieces: dict[str, dict[str, Any]] = {name: {} for name in self.layout.shapes}
        for attribute in ("value", "error", "std_error"):
            flat = getattr(estimate, attribute)
            parts = self.layout.unflatten(flat) if flat is not None else {}
            for name in pieces:
                pieces[name][attribute] = parts.get(name)
        return {name: replace(estimate, **piece) for name, piece in pieces.items()}


def load_posterior(path: str | Path, target: Target | None = None) -> Posterior:
    """Read a posterior that `Posterior.save` wrote.

    Args:
        path: The file.
        target: What it approximates; needed only for `log_prob` and fresh draws.

    Raises:
        ValueError: If the file is not a saved posterior of this format.
    """
    with safe_open(str(path), framework="pt") as file:
        record = json.loads((file.metadata() or {}).get("probcalc", "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if record.get("format") != _FORMAT:
        raise ValueError(
            f"{path} is not a saved posterior of format {_FORMAT} "
            f"(it says {record.get('format')!r})."
        )
    params = {k.removeprefix("params."): v for k, v in tensors.items() if k.startswith("params.")}
    return Posterior(
        layout=Layout({name: tuple(shape) for name, shape in record["shapes"].items()}),
        guide=guide_of(record, GUIDES),
        params=params,
        **{name: tensors[name] for name in ("z", "x", "log_ratios", "log_weights")},
        khat=record["khat"],
        status=Status(record["status"]),
        reasons=tuple(record["reasons"]),
        num_evals=record["num_evals"],
        num_gradients=record["num_gradients"],
        method=record["method"],
        confidence=record["confidence"],
        seed=record["seed"],
        target=target,
        elbo_terms=tensors.get("elbo_terms"),
    )
