r"""Expectation maximisation: coordinate ascent on the free energy.

    F(q, θ) = E_q[ln p(x, z | θ)] + H[q] = ln p(x | θ) − KL(q ‖ p(z | x, θ)) ≤ ln p(x | θ)

The E-step sets q to the posterior of the latent z, where the bound (the ELBO) is tight; the M-step
maximises over θ. Neither can lower F, so the likelihood never falls: a step that lowers it by more
than rounding is a fault of the model's steps, and flagged.

Dempster, Laird & Rubin (1977), J. R. Stat. Soc. B 39; Neal & Hinton (1998), A view of the EM
algorithm that justifies incremental, sparse and other variants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probcalc.status import Status

Params = dict[str, Tensor]


@runtime_checkable
class LatentModel(Protocol):
    """A model with latent variables, whose posterior and whose complete maximum are known.

    Every parameter has the restarts in front, and all are handled at once.
    """

    def expect(self, params: Params, data: Any) -> tuple[Any, Float[Tensor, " r"]]:
        """E-step: the posterior of the latent variables, and ln p(data | θ)."""
        ...

    def maximize(self, posterior: Any, data: Any) -> Params:
        """M-step: the parameters that maximise E_q[ln p(data, latent | θ)]."""
        ...


@dataclass(frozen=True, eq=False)
class ExpectationMaximization:
    """Where the iterations ended, restarts in front.

    Args:
        params: Parameters.
        posterior: Of the latent variables there.
        log_likelihood: ln p(data | θ), shape ``(r)``.
        history: Log-likelihoods by iteration, ``(steps, r)``.
        num_iterations: Steps of each restart, shape ``(r)``.
        status: Bit flags, shape ``(r)``.
    """

    params: Params
    posterior: Any
    log_likelihood: Float[Tensor, " r"]
    history: Float[Tensor, "steps r"]
    num_iterations: Int[Tensor, " r"]
    status: Int[Tensor, " r"]


def expectation_maximization(
    model: LatentModel,
    params: Params,
    data: Any,
    *,
    num_rows: int,
    tol: float = 1e-10,
    max_steps: int = 5_000,
) -> ExpectationMaximization:
    """Alternate both steps until the log-likelihood stands still.

    Args:
        model: Its two steps.
        params: Starts, restarts in front.
        data: What the model takes.
        num_rows: Observations, for the tolerance.
        tol: Of the increase of the mean log-likelihood in one step.
        max_steps: Steps at most.

    Returns:
        The result; `NOT_CONVERGED` where steps ran out, `NON_FINITE` where the likelihood was not
        finite (it has no bound), `ROUNDOFF` where it fell.
    """
    posterior, value = model.expect(params, data)
    history = [value]
    status = torch.zeros(len(value), dtype=torch.long, device=value.device)
    steps = torch.zeros_like(status)
    active = value.isfinite()
    status = torch.where(active, status, int(Status.NON_FINITE))
    slack = 64 * torch.finfo(value.dtype).eps
    for _ in range(max_steps):
        proposed = model.maximize(posterior, data)
        params = {k: _where(active, proposed[k], params[k]) for k in params}
        posterior, value = model.expect(params, data)
        before = history[-1]
        fell = active & (value < before - slack * before.abs().clamp(min=num_rows))
        lost = active & ~value.isfinite()
        status = status | torch.where(fell, int(Status.ROUNDOFF), 0)
        status = status | torch.where(lost, int(Status.NON_FINITE), 0)
        history.append(torch.where(active, value, before))
        steps = steps + active
        active = active & ~lost & ((value - before).abs() > tol * num_rows)
        if not bool(active.any()):
            break
    status = status | torch.where(active, int(Status.NOT_CONVERGED), 0)
    return ExpectationMaximization(
        params, posterior, history[-1], torch.stack(history), steps, status
    )


def _where(active: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(active.reshape(-1, *[1] * (new.ndim - 1)), new, old)
