"""Layers and networks of flows: zuko's, with all parameters passed in from outside."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from probcalc._random import forked
from probcalc.inference.guides.functional import outside

_VALIDATES = Distribution._validate_args
import zuko  # noqa: E402, I001

Distribution._validate_args = _VALIDATES  # zuko's import turns validation off for everybody

_ANY_SEED = 0  # of values that are replaced in every call


class Layers(nn.Module):
    """The composed transformation, evaluated inside `forward` as `functional_call` needs it.

    Args:
        dim: Coordinates.
        num_layers: Transformations, the order of coordinates reversed from each to the next.
        hidden: Widths of the networks.
        bins: Of a spline; None: affine.
        autoregressive: Or coupled in two halves.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        hidden: tuple[int, ...],
        bins: int | None,
        autoregressive: bool,
    ) -> None:
        super().__init__()
        kind = zuko.flows.MAF if bins is None else zuko.flows.NSF
        splines = {} if bins is None else {"bins": bins}
        self.stack = kind(
            dim,
            transforms=num_layers,
            hidden_features=hidden,
            passes=None if autoregressive else 2,
            activation=nn.SiLU,  # smooth: quasi-Newton methods see no kinks
            **splines,
        ).transform

    def forward(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """The map or its inverse, and in both cases the log determinant of the map."""
        f = self.stack()
        if not inverse:
            return f.call_and_ladj(x)
        eps, log_slope = f.inv.call_and_ladj(x)
        return eps, -log_slope


Shape = tuple[int, int, tuple[int, ...], int | None, bool]  # arguments of `Layers`


@lru_cache(maxsize=32)
def layers(shape: Shape, device: torch.device) -> nn.Module:
    """The structure, built once; its values are never used."""
    return outside(lambda: _built(shape, _ANY_SEED).requires_grad_(False).to(device))


def identity_parameters(shape: Shape, seed: int) -> dict[str, Tensor]:
    """Random hidden layers; the last of each network is zero, so that the map is the identity."""
    return outside(lambda: _identity(_built(shape, seed)))


def _identity(module: Layers) -> dict[str, Tensor]:
    params = {name: p.detach() for name, p in module.named_parameters()}
    for name in params:
        if ".phi." in name:  # in one dimension there is no network, only its output
            params[name].zero_()
    for name, sub in module.named_modules():
        linear = [k for k, m in sub.named_children() if isinstance(m, nn.Linear)]
        if isinstance(sub, nn.Sequential) and linear:
            for kind in ("weight", "bias"):
                params[f"{name}.{linear[-1]}.{kind}"].zero_()
    return params


def _built(shape: Shape, seed: int) -> Layers:
    with forked(seed):
        return Layers(*shape)
