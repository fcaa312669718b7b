"""The pictures of an autoencoder: what it draws, what it keeps, and what its latents do."""

from __future__ import annotations

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from probcalc.models.vae.fitted import VAEFit
from probcalc.reporting.generative_plots import (
    plot_codes,
    plot_images,
    plot_reconstructions,
    plot_training,
    plot_traversal,
)

_ENDS, _STEPS = 2.5, 11  # of a latent that is moved, in standard deviations of the prior
_SAMPLES, _SHOWN = 60, 12


def autoencoder_figures(
    fit: VAEFit,
    x: Float[Tensor, "n h w"],
    labels: Tensor,
    *,
    greatest: float = 1.0,
    num_latents: int = 20,
    generator: torch.Generator | None = None,
) -> dict[str, Figure]:
    """Samples, reconstructions, traversals, codes and the course of training.

    Args:
        fit: An autoencoder of images, with normal latents.
        x: Images that it has not seen.
        labels: Their classes.
        greatest: What is black.
        num_latents: Of the traversal, those whose codes move most with the data.
        generator: Source of the samples.
    """
    q = fit.encode(x)
    order = q.mean.var(dim=0).argsort(descending=True)
    names = [f"z[{i}]" for i in order.tolist()]
    values = torch.linspace(-_ENDS, _ENDS, _STEPS)
    moved = order[:num_latents]
    z = torch.zeros(len(moved), len(values), len(order))
    z[torch.arange(len(moved)), :, moved.cpu()] = values
    pictures = fit.decode(z.flatten(0, 1).to(q.mean)).reshape(*z.shape[:2], *x.shape[1:])
    history = fit.training.history if fit.training is not None else []
    shown = {
        name: words
        for name, words in {"loss": "−bound", "distortion": "distortion", "rate": "rate"}.items()
        if any(name in record for record in history)
    }
    samples = fit.sample(_SAMPLES, mean=True, generator=generator)
    kept, scale = x[:_SHOWN], {"greatest": greatest}
    figures = {
        "samples": plot_images(samples, title="samples", **scale),
        "reconstructions": plot_reconstructions(kept, fit.reconstruct(kept), **scale),
        "traversal": plot_traversal(
            pictures, values.tolist(), names[:num_latents], greatest=greatest
        ),
        "codes": plot_codes(q.mean[:, order[:2]].cpu(), labels, (names[0], names[1])),
    }
    return figures | ({"training": plot_training(history, shown)} if shown else {})
