"""What went wrong, in bits, and what to do about it, in words."""

from __future__ import annotations

import enum

from jaxtyping import Int
from torch import Tensor


class EstimateWarning(UserWarning):
    """A result carries a flag: read its status before using the number."""


class Status(enum.IntFlag):
    """Bit flags of a result; 0 is good. Each flag carries its `advice`."""

    OK = 0
    TOLERANCE_NOT_REACHED = 1
    DIVERGENT = 2
    INFINITE_VARIANCE = 4
    NON_FINITE = 8
    SUPPORT_MISMATCH = 16
    ROUNDOFF = 32
    UNRESOLVED_MASS = 64
    NOT_CONVERGED = 128
    UNBOUNDED = 256
    INDEFINITE = 512
    UNRELIABLE_WEIGHTS = 1024
    IMPROPER = 2048
    NOT_SMOOTH = 4096

    @property
    def advice(self) -> str:
        """What the flags mean and what to try, one sentence a flag."""
        return " ".join(_ADVICE[flag] for flag in self) or "nothing to report."

    @property
    def words(self) -> str:
        """The flags in lower-case words, such as ``not converged, non finite``."""
        return ", ".join(flag.name.lower().replace("_", " ") for flag in self) or "ok"

    @classmethod
    def joined(cls, bits: Int[Tensor, "*batch"] | int) -> Status:
        """OR of all flags in a tensor of bits (reads from the device)."""
        if isinstance(bits, int):
            return cls(bits)
        joined = 0
        for value in bits.unique().tolist():
            joined |= value
        return cls(joined)


_ADVICE = {
    Status.TOLERANCE_NOT_REACHED: (
        "The tolerance asked for was not reached: raise `max_evals` or loosen it."
    ),
    Status.DIVERGENT: "The integral looks infinite: check the tails and the singular points.",
    Status.INFINITE_VARIANCE: (
        "The terms of the mean have no finite variance, so the error bar means nothing: "
        "change the proposal or the integrand's tails."
    ),
    Status.NON_FINITE: (
        "Not-a-number or infinite values were met: of random methods, `diagnostics` has their "
        "number and an example."
    ),
    Status.SUPPORT_MISMATCH: (
        "One distribution has no mass where the other has some: compare their supports."
    ),
    Status.ROUNDOFF: "Rounding dominates the error: use float64 or rescale the problem.",
    Status.UNRESOLVED_MASS: "Probability mass may lie where nobody looked: give `breaks`.",
    Status.NOT_CONVERGED: (
        "The iteration stopped before its gradient was small: allow more iterations, "
        "rescale the parameters or start closer."
    ),
    Status.UNBOUNDED: (
        "The objective has no interior optimum: it runs off to the boundary or to infinity. "
        "Give proper priors, or write the model in non-centred form."
    ),
    Status.INDEFINITE: (
        "The curvature at the solution is not positive definite, so it is no isolated optimum: "
        "look for redundant parameters or another mode."
    ),
    Status.UNRELIABLE_WEIGHTS: (
        "The approximation is too far from the posterior for its importance weights to correct "
        "it (Pareto k-hat above the limit): write hierarchical sites non-centred, "
        "reparametrise, or sample with NUTS."
    ),
    Status.IMPROPER: (
        "The posterior does not seem to integrate to a finite number: "
        "give every parameter a proper prior."
    ),
    Status.NOT_SMOOTH: (
        "There is no limit or derivative here: it differs from side to side, oscillates or grows "
        "without end. Ask for one `side`."
    ),
}
