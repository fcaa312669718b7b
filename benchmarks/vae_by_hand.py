"""A variational autoencoder of 784-400-20 pixels, units and latents, as one writes it in torch.

Nothing is logged, checked or saved: network, loss, Adam in one kernel, and batches picked from a
tensor. The decoder starts from the mean of the data, as ours does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

PIXELS, HIDDEN, LATENTS = 784, 400, 20
BATCH = 128
_LEAST = 0.5  # of a pixel's count


class Network(nn.Module):
    """Encoder and decoder with a layer of hidden units each."""

    def __init__(self, mean: Tensor | None = None) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENTS)
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS)
        )
        if mean is not None:
            self.decoder[-1].bias.data.copy_(mean.logit())


def loss_of(network: Network, x: Tensor, eps: Tensor) -> Tensor:
    """Minus the evidence lower bound, mean over rows."""
    loc, log_scale = network.encoder(x).chunk(2, dim=1)
    logits = network.decoder(loc + log_scale.exp() * eps)
    distortion = binary_cross_entropy_with_logits(logits, x, reduction="sum")
    rate = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
    return (distortion + rate) / len(x)


@dataclass(frozen=True)
class Loop:
    """How the loop goes.

    Args:
        steps: Updates.
        rate: Of Adam.
        compiled: Whether the loss is compiled.
        dynamic: Whether pixels are drawn anew in every step.
        cosine: Whether the rate falls along a cosine.
        warm: Steps before the clock starts.
    """

    steps: int
    rate: float = 1e-3
    compiled: bool = False
    dynamic: bool = False
    cosine: bool = False
    warm: int = 0

    def run(self, x: Tensor, seed: int) -> tuple[Network, float]:
        """Train on rows ``(n, 784)``; the network, and seconds a step."""
        torch.manual_seed(seed)
        network = Network((x.sum(dim=0) + _LEAST) / (len(x) + 2 * _LEAST)).to(x.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.rate, fused=True)
        loss_fn = torch.compile(loss_of) if self.compiled else loss_of
        batches, start = Batches(x), 0.0
        for i in range(self.steps):
            if i == self.warm:
                start = time.perf_counter()
            if self.cosine:
                share = 0.5 * (1 + math.cos(math.pi * i / self.steps))
                optimizer.param_groups[0]["lr"] = self.rate * share
            rows = next(batches)
            if self.dynamic:
                rows = (torch.rand_like(rows) < rows).to(rows.dtype)
            eps = torch.randn(len(rows), LATENTS, device=x.device)
            optimizer.zero_grad()
            loss_fn(network, rows, eps).backward()
            optimizer.step()
        return network, (time.perf_counter() - start) / (self.steps - self.warm)


class Batches:
    """Rows in an order that is new in every pass."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.parts = x, []

    def __next__(self) -> Tensor:
        if not self.parts:
            order = torch.randperm(len(self.x), device=self.x.device)
            self.parts = list(order.split(BATCH))[::-1]
        return self.x.index_select(0, self.parts.pop())


def clocked(step: Callable[[], object], steps: int, warm: int) -> float:
    """Seconds a step."""
    for _ in range(warm):
        step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps
