r"""How much of a gradient is signal: from gradients of groups of episodes.

    SNR = |ḡ|² / (tr Σ̂ / G) − 1

with ḡ the mean of G gradients and Σ̂ their covariance. Its mean is about |∇J|² over the variance of
the mean: 0 where a step is nothing but noise. The bar is the jackknife's.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

GROUPS = 16


def signal_to_noise(grads: Float[Tensor, "g p"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The ratio and its standard error, from the products of gradients alone."""
    products = grads.double() @ grads.double().T
    g = len(products)
    whole = _ratio(products.sum(), products.diagonal().sum(), g)
    if g < 3:
        return whole.to(grads), torch.full_like(whole, torch.inf).to(grads)
    rows, own = products.sum(dim=0), products.diagonal()
    total = products.sum() - 2 * rows + own
    left_out = _ratio(total, own.sum() - own, g - 1)
    spread = (left_out - left_out.mean()).square().sum() * (g - 1) / g
    return whole.to(grads), spread.sqrt().to(grads)


def _ratio(total: Tensor, own: Tensor, g: int) -> Tensor:
    mean = total / g**2
    variance = (own / g - mean) / (g - 1)  # of the mean
    return mean / variance.clamp(min=1e-300) - 1
