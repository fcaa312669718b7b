"""Draws from a target's prior: by the model, by the user's sampler, or by fitting its density."""

from __future__ import annotations

from probcalc._random import child
from probcalc.inference.fit import fit
from probcalc.inference.parameters import Values
from probcalc.inference.pointwise import simulator_of
from probcalc.inference.simulation import FunctionSimulator
from probcalc.inference.target import Target
from probcalc.status import Status

_FIT, _SAMPLE = 0, 1  # streams of the seed


def prior_draws(
    target: Target, num_draws: int, seed: int
) -> tuple[Values, Status, tuple[str, ...]]:
    """Latent values from the prior, with the flags of the fit that they came from, if one did.

    A Pyro model is run; a target made of functions is asked for its `prior`; without one its
    prior density is fitted and weighed like any other.

    Args:
        target: With data.
        num_draws: How many.
        seed: Of every draw.

    Raises:
        ValueError: If the target does not know its data.
    """
    simulator = simulator_of(target)
    if not isinstance(simulator, FunctionSimulator) or simulator.sampler is not None:
        return simulator.prior(num_draws, seed), Status.OK, ()
    parameters = simulator.parameters
    density = Target.from_function(
        simulator.log_prior,
        parameters.layout.shapes,
        parameters.supports,
        device=target.device,
        dtype=target.dtype,
    )
    found = fit(density, generator=child(seed, _FIT))
    reasons = tuple(f"fit of the prior: {reason}" for reason in found.reasons)
    return found.sample(num_draws, child(seed, _SAMPLE)), found.status, reasons
