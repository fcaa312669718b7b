"""What happens close to an end, where no rule has its points: layers, weak poles.

A few points approach the end geometrically, and the interpolant of the panel there predicts their
values. What they deviate, times their distance, is mass that the rule has not seen; where that
does not get less on the way, the integral diverges however small the residue.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from probcalc.integration.measure import Measure, Sums
from probcalc.integration.panels import Panels
from probcalc.integration.rules import barycentric, gauss_kronrod

PROBES = 5
CLOSEST = 1e-12  # to an end, relative to its panel
_RESOLVED = 1e8  # roundings of a place, closer to it than which nothing is probed
STEADY = 0.9999  # ratio of deviation times distance at which it does not get less
_CLOSE = 1e-4  # to an end, that an approach has to come to show a pole
_WIDEST = 0.1  # of an approach that has no room
CLEAR = 1e-6  # of the values: a deviation that is none of rounding
SHARE = 5.0  # of a probe's deviation times distance, as the mass between it and the next
_EPS = torch.finfo(torch.float64).eps


def probed(
    measure: Measure, panels: Panels, sums: Sums, num_elements: int
) -> tuple[Sums, Bool[Tensor, " b"]]:
    """Sums with the mass near ends among their errors, and elements with a pole at an end."""
    poles = torch.zeros(num_elements, dtype=torch.bool, device=panels.lo.device)
    at = (panels.touching & (panels.shell < 0)).nonzero()[:, 0]
    if not len(at):
        return sums, poles
    ends, some = measure.ends, panels[at]
    rule = gauss_kronrod(at.device, 1)
    nodes = rule.nodes[: rule.weights.shape[1], None]
    t = _approach(measure, some)
    f = measure.at(torch.cat([nodes.expand(-1, len(at)), t]) * some.hi, some)[1]
    at_nodes, near = f[: len(nodes)], f[len(nodes) :]
    good = f.isfinite().reshape(len(f), len(at), -1).all(dim=0).all(dim=1)
    mass, pole = deviation(at_nodes, near, t)
    pole &= (t[-1] < _CLOSE)[:, None]  # else nothing has been approached
    extra = torch.where(good[:, None], mass, 0.0)
    error = sums.error.index_put((at,), sums.error[at].maximum(extra))
    poles.index_put_((ends.elem[some.end[pole.any(dim=1) & good]],), torch.ones_like(poles[0]))
    return Sums(sums.value, error, sums.size, sums.noise), poles


def _approach(measure: Measure, panels: Panels) -> Float[Tensor, "p k"]:
    """Distances from the ends, relative to their panels, falling geometrically."""
    ends = measure.ends
    place = ends.anchor[panels.end].abs() / (ends.reach[panels.end].abs() * panels.hi)
    place = torch.where(ends.infinite[panels.end], 0.0, place)
    nearest = (_RESOLVED * _EPS * place).clamp(min=CLOSEST, max=_WIDEST)
    step = torch.arange(1, PROBES + 1, dtype=torch.float64, device=place.device) / PROBES
    return nearest ** step[:, None]


def deviation(
    at_nodes: Inexact[Tensor, "n k o"], near: Inexact[Tensor, "p k o"], t: Float[Tensor, "p k"]
) -> tuple[Float[Tensor, "k o"], Bool[Tensor, "k o"]]:
    """Mass near an end that the panel's rule has not seen, and whether a pole stands there.

    Args:
        at_nodes: The integrand at the nodes, per unit of the panel.
        near: The same at the probes.
        t: Distance of the probes, relative to the panel.
    """
    predicted = torch.einsum("pkn,nko->pko", barycentric(t).to(at_nodes.dtype), at_nodes)
    missed = (near - predicted).abs()
    mass = missed * t[..., None]
    clear = missed[-2:] > CLEAR * near[-2:].abs().maximum(predicted[-2:].abs())
    pole = (mass[-1] >= STEADY * mass[-2]) & clear.all(dim=0)
    return SHARE * mass.sum(dim=0), pole
