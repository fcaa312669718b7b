"""The speed of training a variational autoencoder: ours, Pyro's, and a loop written in torch.

784-400-20 pixels, hidden units and latents, batches of 128 rows of black and white pixels, Adam.
The time is that of a step: a batch picked, the noise, gradients, the update and, in ours, the look
for numbers that are not finite and the records. Compiling comes before the clock starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

import probcalc as pc
from benchmarks.harness import Case, Clocked, Contestant, Scores
from benchmarks.vae_by_hand import BATCH, HIDDEN, LATENTS, PIXELS, Batches, Loop, Network, clocked
from probcalc.models.vae import VAE, Bernoulli, Perceptron

STEPS, _QUICK = 500, 100
ROWS = 60 * BATCH
RATE = 1e-3
_WARM = 50  # steps before the clock starts, a whole record of ours
_DARK = 3  # power of a uniform number that a pixel is bright

NETWORK = Perceptron((HIDDEN,), nn.ReLU)
MODEL = VAE(LATENTS, Bernoulli(), NETWORK, NETWORK)

NOTES = (
    f"A step is a batch of {BATCH} of {ROWS:,} rows in memory; {STEPS} of them after {_WARM} that "
    "are not timed. `compiled=True` of `fit` is torch's compiler for the loss, as in the compiled "
    "loop. Pyro's is the loop of its own example, without a DataLoader.",
)


def quick_cases(device: str) -> Iterator[Case]:
    """Fewer steps.

    Yields:
        Cases.
    """
    yield from cases(device, _QUICK)


def cases(device: str, steps: int = STEPS) -> Iterator[Case]:
    """One network, five ways to train it.

    Yields:
        The case.
    """
    x = data(device)
    loop = Loop(_WARM + steps, RATE, warm=_WARM)
    compiled = Loop(_WARM + steps, RATE, warm=_WARM, compiled=True)
    runs = [
        ("probcalc: VAE.fit(compiled=True)", "warm", partial(_ours, x, steps, True)),
        ("hand-written torch loop, loss compiled", "warm", partial(_by_hand, x, compiled)),
        ("probcalc: VAE.fit", "eager", partial(_ours, x, steps, False)),
        ("hand-written torch loop", "eager", partial(_by_hand, x, loop)),
        ("Pyro SVI, Trace_ELBO", "eager", partial(_pyro, x, steps)),
    ]
    yield Case(
        f"step: VAE {PIXELS}-{HIDDEN}-{LATENTS}, batch {BATCH}",
        [Contestant(name, run, state, _score, warmups=0) for name, state, run in runs],
    )


def data(device: str) -> Tensor:
    """Black and white pixels, dark at the most."""
    generator = torch.Generator().manual_seed(0)
    bright = torch.rand(PIXELS, generator=generator) ** _DARK
    return torch.bernoulli(bright.expand(ROWS, PIXELS), generator=generator).to(device)


class PyroVAE(nn.Module):
    """Model and guide of Pyro's example."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def model(self, x: Tensor) -> None:
        """Latents, and pixels given them."""
        pyro.module("decoder", self.network.decoder)
        with pyro.plate("rows", len(x)):
            zero, one = x.new_zeros(len(x), LATENTS), x.new_ones(len(x), LATENTS)
            z = pyro.sample("z", dist.Normal(zero, one).to_event(1))
            logits = self.network.decoder(z)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Latents given pixels."""
        pyro.module("encoder", self.network.encoder)
        with pyro.plate("rows", len(x)):
            loc, log_scale = self.network.encoder(x).chunk(2, dim=1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def _ours(x: Tensor, steps: int, compiled: bool, seed: int) -> Clocked:
    fit = MODEL.fit(
        x,
        batch_size=BATCH,
        max_steps=_WARM + steps,
        log_every=_WARM,
        optimizer=pc.Adam(RATE),
        compiled=compiled,
        generator=torch.Generator().manual_seed(seed),
    )
    if note := fit.training.diagnostics.get("compiled"):
        raise RuntimeError(note)
    first, last = fit.training.history[0], fit.training.history[-1]
    seconds = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
    return Clocked(seconds, seconds)


def _by_hand(x: Tensor, loop: Loop, seed: int) -> Clocked:
    seconds = loop.run(x, seed)[1]
    return Clocked(seconds, seconds)


def _pyro(x: Tensor, steps: int, seed: int) -> Clocked:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    vae, batches = PyroVAE().to(x.device), Batches(x)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": RATE}), Trace_ELBO())
    seconds = clocked(lambda: svi.step(next(batches)), steps, _WARM)
    return Clocked(seconds, seconds)


def _score(seconds: float) -> Scores:
    return {"rows a second": BATCH / seconds}
