"""A posterior as it is written down here: a target, and how its values name the reference's.

posteriordb stores draws of a model's parameters and of some transformed ones, under names such
as ``theta[3]``. A model says which of its values these are, in the reference's order, and how to
go back from them to the latent values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

import probcalc as pc

Values = dict[str, Tensor]
Data = Mapping[str, Any]


def same(values: Values) -> Values:
    """The reference holds the latent values themselves."""
    return values


@dataclass(frozen=True)
class Model:
    """A posterior over named values.

    Args:
        target: Its density.
        sites: Names of the reference's values, in its order.
        derive: From the target's constrained values, draws along the first axis, to a dict with
            `sites`.
        invert: From `sites` to the target's latent values.
        is_proper: Whether every prior is a probability distribution, so that the evidence exists.
    """

    target: pc.Target
    sites: tuple[str, ...]
    derive: Callable[[Values], Values] = same
    invert: Callable[[Values], Values] = same
    is_proper: bool = True


def log_prior(values: Values, priors: Mapping[str, Distribution]) -> Tensor:
    """Sum of independent priors' log densities."""
    terms = [prior.log_prob(values[name]).sum() for name, prior in priors.items()]
    return sum(terms[1:], start=terms[0])
