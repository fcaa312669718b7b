"""No forward path of a generative model mixes devices, or waits for one.

Each runs on tensors of the `meta` device, with its gradient: an operation that meets a CPU tensor
fails as it would on a GPU, and one that reads a number on the host fails, where it would wait.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import probcalc as pc
from probcalc.inference.hierarchical import Bound
from probcalc.models.diffusion import (
    Data,
    Deterministic,
    Diffusion,
    Epsilon,
    LearnedSchedule,
    Levels,
    Midpoint,
    Real,
    ResidualPerceptron,
)
from probcalc.models.diffusion.chain import step_back
from probcalc.models.diffusion.sampling import Step
from probcalc.models.gan import GAN
from probcalc.models.vae import (
    VAE,
    BernoulliLatents,
    Binomial,
    Categorical,
    CategoricalLatents,
    Convolutional,
    DiscretizedLogistic,
    FlowPrior,
    Gaussian,
    LearnedNormal,
    Perceptron,
    TopDown,
    VampPrior,
)
from probcalc.models.vae.evidence import Weighed

N, EVENT = 5, (4, 4)
ROWS = (torch.arange(N * 16).reshape(N, *EVENT) % 2).float()


def meta(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


def on_meta(model: Any, condition: int = 0) -> Any:
    return model._built(ROWS, condition, seed=0).to("meta").train()


def gradients(value: Tensor, network: Any) -> list[Tensor]:
    wanted = [p for p in network.parameters() if p.requires_grad]
    return [g for g in torch.autograd.grad(value, wanted, allow_unused=True) if g is not None]


def vae(model: VAE, condition: int = 0) -> list[Any]:
    """The bound with its gradient, densities, pixels and weights."""
    chain, x = on_meta(model, condition), meta(N, 16)
    told = meta(N, condition) if condition else None
    evidence = chain.evidence(x, EVENT, told)
    eps = meta(N, 4, sum(chain.dims))
    bound: Bound = chain.bound(x, evidence, eps, told)
    z, levels = chain.draw(evidence, eps)
    log_q, log_p = chain.log_q(levels, z), chain.log_prior(z)
    pixels = chain.likelihood.mean(chain.outputs(z, told), dict(chain.extra))
    q = chain.codes(evidence)
    slopes = gradients(-bound.tempered(chain.beta, 0.5), chain)
    return [bound.elbo, log_q, log_p, pixels, q.mean, *slopes]


def diffusion(model: Diffusion, condition: int = 0) -> list[Any]:
    """Terms of the bound with their gradient, the chain's bound, and steps back."""
    chain, rows = on_meta(model, condition), meta(N, 16)
    told = meta(N, condition) if condition else None
    x, t, eps = chain.kind.encoded(rows), meta(N), meta(N, 16)
    terms = chain.diffusion(x, t, eps, told, model.num_steps)
    whole = chain.hierarchical_bound(rows, x, meta(4, N, 16), told)
    guess = lambda z, gamma: chain.guess(z, gamma, told)  # noqa: E731
    step = Step(x, meta(N), meta(N), torch.Generator())
    steps = [way.step(guess, step) for way in (Deterministic(), Midpoint())]
    back = step_back(x, guess(x, t), meta(N), meta(N)).draw(eps)
    return [*chain.ends(rows, x, eps), whole.elbo, *steps, back, *gradients(terms.mean(), chain)]


def gan(model: GAN) -> list[Any]:
    """Both players' losses, with their gradients."""
    players, x = on_meta(model), meta(N, *EVENT)
    made = players.drawn(meta(N, model.latent_dim))
    loss, divergence = model._critic_loss(players, x, made.detach())
    return [made, divergence, *gradients(loss, players.critic), *gradients(made.sum(), players)]


SMALL = Perceptron((6,))
CONV = Convolutional((3, 4), 8)
PATHS: dict[str, Callable[[], list[Any]]] = {
    "VAE": partial(vae, VAE(2)),
    "VAE with conditions": partial(vae, VAE(2), 3),
    "VAE with convolutions": partial(vae, VAE(2, encoder=CONV, decoder=CONV)),
    "ladder under VampPrior": partial(vae, VAE((3, 2), prior=VampPrior(4))),
    "top-down under a flow": partial(vae, VAE((3, 2), merge=TopDown(), prior=FlowPrior(2, (4,)))),
    "VAE with a learned prior": partial(vae, VAE(2, prior=LearnedNormal())),
    "VAE of normal pixels": partial(vae, VAE(2, Gaussian(per_pixel=True))),
    "VAE of categories": partial(vae, VAE(2, Categorical(3))),
    "VAE of trials": partial(vae, VAE(2, Binomial(3))),
    "VAE of logistics": partial(vae, VAE(2, DiscretizedLogistic(3, 2))),
    "bits, summed": partial(vae, VAE(3, latents=BernoulliLatents())),
    "bits, score": partial(vae, VAE(9, latents=BernoulliLatents())),
    "bits, relaxed": partial(vae, VAE(3, latents=BernoulliLatents(pc.RelaxedDraws()))),
    "classes, summed": partial(vae, VAE(2, latents=CategoricalLatents(3))),
    "classes, relaxed": partial(vae, VAE(2, latents=CategoricalLatents(3, pc.RelaxedDraws()))),
    "diffusion": partial(diffusion, Diffusion(Levels(2), ResidualPerceptron(8, 1))),
    "diffusion with conditions": partial(diffusion, Diffusion(Levels(2)), 2),
    "diffusion in steps": partial(diffusion, Diffusion(Levels(2), num_steps=4)),
    "diffusion, learned schedule": partial(
        diffusion, Diffusion(Real(), schedule=LearnedSchedule(hidden=4))
    ),
    "diffusion of noise": partial(diffusion, Diffusion(Real(), prediction=Epsilon())),
    "diffusion of data": partial(diffusion, Diffusion(Real(), prediction=Data())),
    "GAN": partial(gan, GAN(2, (6,))),
    "GAN without penalty": partial(gan, GAN(2, (6,), penalty=0.0)),
    "importance weights": lambda: list(vars(Weighed.of(meta(N, 200))).values()),
}


@pytest.mark.parametrize("name", PATHS)
def test_stays_on_its_device(name: str):
    tensors = [x for x in pytree.tree_leaves(PATHS[name]()) if torch.is_tensor(x)]
    assert tensors
    assert {t.device.type for t in tensors} == {"meta"}
