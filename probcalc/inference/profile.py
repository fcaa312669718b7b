r"""Profile likelihoods, and the intervals that they give.

    ℓ_p(ψ) = max_λ ℓ(ψ, λ),   {ψ : 2 (ℓ̂ − ℓ_p(ψ)) ≤ χ²_{1, level}}

The signed root r(ψ) = ±√(2(ℓ̂ − ℓ_p)) is nearly a straight line, so that secants find the ends in a
few steps. Venzon & Moolgavkar (1988), J. R. Stat. Soc. C 37.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.inference.likelihood import Likelihood
from probcalc.result import half_width

_MAX_SEARCH = 60  # evaluations of a profile for one end
_FAR = 40.0  # standard errors after which an end that was not met is at infinity
_CLOSE = 1e-9  # of the signed root


@dataclass(frozen=True, eq=False)
class Profile:
    """Of one entry, of a batch of fits.

    Args:
        likelihood: Of the flattened batch.
        z: Its unconstrained maximum.
        best: Log-likelihood there.
        index: Of the entry.
        sd: Its standard error on the unconstrained scale.
        batch: Shape of the results.
    """

    likelihood: Likelihood
    z: Float[Tensor, "b d"]
    best: Float[Tensor, " b"]
    index: int
    sd: Float[Tensor, " b"]
    batch: tuple[int, ...]

    def log_likelihood(self, values: Float[Tensor, " m *batch"]) -> Float[Tensor, " m *batch"]:
        """At values of the entry on its constrained scale."""
        rows = values.reshape(len(values), -1).to(self.z)
        vector = self.likelihood.parameters.vector(self.z)
        found = []
        for row in rows:
            moved = vector.index_copy(1, self._place(), row[:, None])
            z = self._unconstrained(moved)
            found.append(self._profiled(z[:, self.index])[0])
        return torch.stack(found).reshape(values.shape)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Both ends on the constrained scale; an end that the data do not set is at infinity.

        Raises:
            ValueError: If the level is not inside (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"`level` must lie strictly between 0 and 1, got {level}.")
        wanted = float(half_width(torch.ones(()).double(), None, level))
        ends = [self._end(side * wanted) for side in (-1.0, 1.0)]
        values = []
        for end in ends:
            z = self.z.index_copy(1, self._place(), end[:, None])
            values.append(self.likelihood.parameters.vector(z)[:, self.index].reshape(self.batch))
        return torch.minimum(*values), torch.maximum(*values)

    def _place(self) -> Tensor:
        return torch.tensor([self.index], device=self.z.device)

    def _unconstrained(self, vector: Tensor) -> Tensor:
        parameters = self.likelihood.parameters
        return parameters.unconstrain(parameters.layout.unflatten(vector))

    def _profiled(self, entry: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Largest log-likelihood with the entry held, and where the others are then."""
        center = self.z.index_copy(1, self._place(), entry[:, None])
        d = self.z.shape[1]
        if d == 1:
            return self.likelihood.value(center), center
        others = torch.tensor([i for i in range(d) if i != self.index], device=self.z.device)
        rest = self.likelihood.restricted(center, others)
        begun = self.z[:, others] if start is None else start[:, others]
        found = rest.maximum(begun)
        return -found.value * self.likelihood.total, rest.full(found.x)

    def _root(self, entry: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        value, z = self._profiled(entry, start)
        size = (2 * (self.best - value)).clamp(min=0.0).sqrt()
        return torch.where(entry < self.z[:, self.index], -size, size), z

    def _end(self, wanted: float) -> Tensor:
        """Where the signed root has this value: steps out, then secants inside a bracket."""
        middle = self.z[:, self.index]
        near, near_root = middle, torch.zeros_like(middle)
        far = middle + wanted * self.sd
        far_root, z = self._root(far)
        sign = 1.0 if wanted > 0 else -1.0
        for _ in range(_MAX_SEARCH):
            short = sign * far_root < abs(wanted)
            if not bool((short & ((far - middle).abs() < _FAR * self.sd)).any()):
                break
            near, near_root = (
                torch.where(short, far, near),
                torch.where(short, far_root, near_root),
            )
            far = torch.where(short, middle + 1.6 * (far - middle), far)
            moved, z = self._root(far, z)
            far_root = torch.where(short, moved, far_root)
        endless = sign * far_root < abs(wanted)
        for _ in range(_MAX_SEARCH):
            # Illinois would stall on a straight line; a secant inside the bracket does not
            share = ((wanted - near_root) / (far_root - near_root)).nan_to_num(0.5)
            entry = near + share.clamp(0.01, 0.99) * (far - near)
            root, z = self._root(entry, z)
            inside = sign * root < abs(wanted)
            done = (root - wanted).abs() <= _CLOSE
            near = torch.where(inside | done, entry, near)
            near_root = torch.where(inside | done, root, near_root)
            far = torch.where(inside & ~done, far, entry)
            far_root = torch.where(inside & ~done, far_root, root)
            if bool((done | endless | ((far - near).abs() <= 1e-13 * far.abs())).all()):
                break
        return torch.where(endless, sign * torch.inf, far)
