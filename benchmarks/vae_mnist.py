"""The experiment `vae_mnist` against the same network in a loop written in torch.

Both are trained alike, from the same images with pixels drawn anew in every step, and judged by
1,000 importance draws on the same black and white held-out images. The folder of idx files is that
of the environment variable `MNIST`, else `data/mnist` in the folder of shared data beside the
checkout.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

import probcalc as pc
from benchmarks.harness import Case, Clocked, Contestant, Row, Scores, Skipped
from benchmarks.vae_by_hand import BATCH, HIDDEN, LATENTS, PIXELS, Loop, Network
from probcalc.experiment import load

DRAWS = 1_000
_QUICK = 2  # epochs
_ROWS = 20  # images whose draws are weighed at a time
_WARM = 50
_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"

NOTES = (
    f"Seconds are those of a step of {BATCH} images, all that the loop does between two updates "
    "with it; −ln p is in nats an image, over 2,000 held-out images whose pixels were drawn once.",
)


def summary(measured: Mapping[str, Sequence[Row]]) -> tuple[str, ...]:
    """How far apart the two are, with more digits than the table has."""
    lines = []
    for rows in measured.values():
        scores = [row.scores.get("−ln p", ()) for row in rows]
        if len(scores) == 2:
            away = [a - b for a, b in zip(*scores, strict=True)]
            said = " and ".join(f"{sum(s) / len(s):.3f}" for s in scores)
            each = ", ".join(f"{a:+.3f}" for a in away)
            lines.append(f"−ln p, mean over rounds: {said} nats; ours less theirs {each}.")
    return tuple(lines)


def folder() -> Path:
    """Where the files are to be, whether they are there or not."""
    return Path(os.environ.get("MNIST", _BESIDE))


def quick_cases(device: str) -> Iterator[Case]:
    """Fewer epochs and draws.

    Yields:
        The case.
    """
    yield from cases(device, _QUICK, 10)


def cases(device: str, epochs: int = 0, draws: int = DRAWS) -> Iterator[Case]:
    """One network, trained by `fit` and by hand.

    Yields:
        The case.
    """
    name = f"VAE {PIXELS}-{HIDDEN}-{LATENTS}, dynamic binarisation, IW-{draws:,}"
    if not folder().is_dir():
        yield Case(name, [Skipped("MNIST", "set MNIST to a folder of its idx files")])
        return
    experiment = load("vae_mnist").module
    x, held, _ = experiment.data(str(folder()))
    held = torch.bernoulli(held, generator=torch.Generator().manual_seed(0)).to(device)
    epochs = epochs or experiment.EPOCHS
    steps = epochs * math.ceil(len(x) / BATCH)
    loop = Loop(steps, experiment.RATE, dynamic=True, cosine=True, warm=_WARM)
    ours = partial(_ours, experiment.MODEL, x.to(device), steps, experiment.RATE)
    by_hand = partial(_by_hand, x.flatten(1).to(device), loop)
    yield Case(
        name,
        [
            Contestant(
                "probcalc: VAE.fit", ours, "eager", partial(_score, held, draws), warmups=0
            ),
            Contestant(
                "hand-written torch loop",
                by_hand,
                "eager",
                partial(_score_by_hand, held.flatten(1), draws),
                warmups=0,
            ),
        ],
    )


def _ours(model: Any, x: Tensor, steps: int, rate: float, seed: int) -> Clocked:
    fit = model.fit(
        x,
        batch_size=BATCH,
        max_steps=steps,
        log_every=_WARM,
        optimizer=pc.Adam(rate),
        schedule=pc.CosineSchedule(steps),
        generator=torch.Generator().manual_seed(seed),
    )
    first, last = fit.training.history[0], fit.training.history[-1]
    seconds = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
    return Clocked(seconds, (seconds, fit))


def _by_hand(x: Tensor, loop: Loop, seed: int) -> Clocked:
    network, seconds = loop.run(x, seed)
    return Clocked(seconds, (seconds, network))


def _score(held: Tensor, draws: int, result: tuple[float, Any]) -> Scores:
    seconds, fit = result
    generator = torch.Generator(held.device).manual_seed(0)
    found = fit.log_likelihood(held, num_importance=draws, generator=generator)
    return {
        "images a second": BATCH / seconds,
        "−ln p": -float(found.value),
        "± draws and bias": float(found.error),
    }


def _score_by_hand(held: Tensor, draws: int, result: tuple[float, Network]) -> Scores:
    seconds, network = result
    generator = torch.Generator(held.device).manual_seed(0)
    log_p = [log_evidence(network, x, draws, generator) for x in held.split(_ROWS)]
    return {"images a second": BATCH / seconds, "−ln p": -float(torch.cat(log_p).mean())}


@torch.no_grad()
def log_evidence(network: Network, x: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Importance-weighted bound of rows ``(n, 784)``, as one writes it by hand."""
    loc, log_scale = network.encoder(x).chunk(2, dim=1)
    eps = torch.randn(draws, len(x), LATENTS, generator=generator, device=x.device)
    z = loc + log_scale.exp() * eps
    logits = network.decoder(z)
    loss = binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
    log_ratio = 0.5 * (eps.square() - z.square()).sum(dim=2) + log_scale.sum(dim=1)
    log_w = log_ratio.double() - loss.sum(dim=2).double()
    return log_w.logsumexp(dim=0) - math.log(draws)
