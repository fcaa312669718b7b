r"""Variational autoencoders: p(x) = ∫ p(x|z) p(z) dz with networks for p(x|z) and for q(z|x).

Encoder and decoder are trained together on the evidence lower bound, in nats a row: the sum over
pixels, the mean over rows, the KL with weight one unless it is asked otherwise. Kingma & Welling
(2014), Auto-encoding variational Bayes; Rezende, Mohamed & Wierstra (2014).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probcalc.inference.discrete import RelaxedDraws
from probcalc.inference.elbo import draws_of
from probcalc.inference.objectives import VIMCO, Objective
from probcalc.integration.gradient_estimators import ScoreFunction
from probcalc.models.fitted import Generative
from probcalc.models.rows import seeded
from probcalc.models.vae.chain import Chain, ChainGuide, Ladder
from probcalc.models.vae.fitted import VAEFit
from probcalc.models.vae.latents import Discrete, NormalLatents
from probcalc.models.vae.likelihoods import Bernoulli, Likelihood
from probcalc.models.vae.networks import Perceptron
from probcalc.models.vae.priors import StandardNormal
from probcalc.training.gradients import NoiseFirst
from probcalc.training.parallel import rows_randn


@dataclass(frozen=True, eq=False)
class VAE(Generative[VAEFit]):
    """Settings of the model.

    Trained by Adam at 2e-3 falling along a cosine, in batches of 128 and 200 epochs, unless `fit`
    is told otherwise.

    Args:
        latent_dim: Latents; a tuple for several levels, next to the data first.
        likelihood: Of the pixels.
        encoder: `Perceptron`, `Convolutional`, or a module from rows ``(n, *event)`` to features;
            with as many as twice the latents of a single level they are means and log scales.
        decoder: `Perceptron`, `Convolutional`, or a module from latents ``(n, d)`` to the
            likelihood's numbers ``(n, k, *event)``. A condition is joined to the inputs of both.
        prior: Of the last level.
        merge: How the levels below the last see data and prior: `Ladder()` or `TopDown()`.
        latents: `NormalLatents()`; or `BernoulliLatents()` or `CategoricalLatents(k)`, on a
            single level and with a prior of their own, whose settings say how their gradient is
            found.
        objective: What is maximised; None: the ELBO with the KL of every level in closed form.
            `ImportanceWeighted(k)`, `ELBO(StickTheLanding())` and the others go as for guides;
            with discrete latents `VIMCO(k)` and `ELBO(ScoreFunction())`.
        num_draws: Draws of the latents for a row in a step; a multiple for bounds of several.
        beta: Weight of the KL in training, or a function of the step (a warm-up, cycles).
        free_nats: KL of a level, mean over a batch, below which it is not pushed down.

    >>> x = (torch.arange(400).reshape(100, 4) % 3 == 0).float()
    >>> seed = torch.Generator().manual_seed(0)
    >>> fit = VAE(latent_dim=2).fit(x, max_epochs=200, generator=seed)
    >>> fit.sample(5, generator=seed).shape
    torch.Size([5, 4])
    """

    latent_dim: int | tuple[int, ...] = 8
    likelihood: Likelihood = Bernoulli()  # noqa: RUF009 (frozen)
    encoder: Any = Perceptron()  # noqa: RUF009
    decoder: Any = Perceptron()  # noqa: RUF009
    prior: Any = StandardNormal()  # noqa: RUF009
    merge: Any = Ladder()  # noqa: RUF009
    latents: Any = NormalLatents()  # noqa: RUF009
    objective: Objective | None = None
    num_draws: int = 1
    beta: float | Callable[[int], float] = 1.0
    free_nats: float = 0.0

    answer, sample, rate = VAEFit, "beta", 2e-3
    training = {"batch_size": 128, "max_epochs": 200}  # noqa: RUF012 (read only)

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If a number is out of range, or settings exclude each other.
        """
        if min(self.dims) < 1 or self.num_draws < 1 or not self.free_nats >= 0:
            raise ValueError(
                "`VAE` needs latent_dim and num_draws of at least 1 and free_nats of at least 0, "
                f"got {self.latent_dim}, {self.num_draws}, {self.free_nats}."
            )
        is_plain = self.free_nats == 0 and self.beta == 1.0
        if self.objective is not None and not is_plain:
            raise ValueError(
                "`beta` and `free_nats` weigh the KL of the ELBO in closed form: leave "
                "`objective` out."
            )
        if isinstance(self.latents, Discrete):
            self._check_discrete()

    def _check_discrete(self) -> None:
        if len(self.dims) > 1 or self.prior != StandardNormal():
            raise ValueError(
                f"`{type(self.latents).__name__}` have one level, and a prior of their own: leave "
                "`prior` out, and give `latent_dim` one number."
            )
        self.latents.draws(*self.dims, self.num_draws)
        scored = isinstance(getattr(self.objective, "gradient", None), ScoreFunction)
        if not (self.objective is None or scored or isinstance(self.objective, VIMCO)):
            raise ValueError(
                "draws of discrete latents have no derivative: leave `objective` out, or use "
                "`VIMCO(k)` or `ELBO(ScoreFunction())`."
            )
        if self.objective is not None and self.latents.gradient is not None:
            raise ValueError("an `objective` brings its gradient: leave that of `latents` out.")

    @property
    def dims(self) -> tuple[int, ...]:
        """Latents of every level."""
        return (self.latent_dim,) if isinstance(self.latent_dim, int) else tuple(self.latent_dim)

    @property
    def kind_of_rows(self) -> Likelihood:
        """What the likelihood takes."""
        return self.likelihood

    def _loss(
        self, event: tuple[int, ...]
    ) -> tuple[Callable[..., Any], dict[str, Callable[[int], float]]]:
        """Minus the bound, with rate and distortion beside it, and the schedule of β."""

        def draw(chain: Chain, batch: Any, generator: torch.Generator) -> Any:
            x, condition = batch if isinstance(batch, tuple) else (batch, None)
            x = self.likelihood.seen(x.flatten(1), generator)
            shape = self._draws(ChainGuide(chain)), sum(chain.dims)
            return x, condition, rows_randn(len(x), *shape, generator=generator, like=x)

        def loss(chain: Chain, drawn: Any) -> Any:
            x, condition, eps = drawn
            evidence = chain.evidence(x, event, condition)
            if self.objective is None:
                bound = chain.bound(x, evidence, eps, condition)
                metrics = {
                    "elbo": bound.elbo.detach().mean(),
                    "rate": bound.rate.detach().mean(),
                    "distortion": -bound.reconstruction.detach().mean(),
                }
                return -bound.tempered(chain.beta, self.free_nats), metrics

            def log_joint(z: Tensor) -> Tensor:
                return chain.log_prior(z) + chain.reconstruction(z, x, condition)

            terms = self.objective.terms(log_joint, ChainGuide(chain), evidence, eps)
            return -terms.mean(), {"bound": terms.detach().mean()}

        schedules = {"beta": self.beta}
        if isinstance(self.latents.gradient, RelaxedDraws):
            schedules["temperature"] = self.latents.gradient.temperature
        objective = NoiseFirst(draw, loss)
        return objective, {name: _as_schedule(value) for name, value in schedules.items()}

    def _draws(self, guide: ChainGuide) -> int:
        """Of a row in a step."""
        if self.objective is not None:
            return draws_of(guide, self.objective, self.num_draws, paired=False)
        if isinstance(self.latents, Discrete):
            return self.latents.draws(*self.dims, self.num_draws)
        return self.num_draws

    def _built(self, x: Tensor, condition: int, seed: int) -> Chain:
        build = lambda: self._modules(x, condition, seed)  # noqa: E731
        return seeded(build, seed).to(x.device, x.dtype)

    def _modules(self, x: Tensor, condition: int, seed: int) -> Chain:
        event, dims, flat = tuple(x.shape[1:]), self.dims, x.flatten(1)
        size, numbers = self.latents.size, self.latents.width
        # what the user gives is the start of every fit, and stays as it is
        between = self.encoder if not isinstance(self.encoder, nn.Module) else Perceptron()
        body, width = self._encoder(x, condition)
        bodies, heads, downs, priors = [body], [], [], []
        for i, d in enumerate(dims):
            if i:
                net, width = between.features(width)
                bodies.append(net)
            below = 0
            if i < len(dims) - 1:
                net, below = between.features(dims[i + 1])
                downs.append(net)
                priors.append(nn.Linear(below, 2 * d))
            own = isinstance(self.encoder, nn.Module) and len(dims) == 1 and width == numbers * d
            is_last = i == len(dims) - 1
            fan_in = width if is_last else self.merge.width(width, below)
            heads.append(nn.Identity() if own else nn.Linear(fan_in, numbers * d))
        code = size * dims[0] + condition
        if isinstance(self.decoder, nn.Module):
            decoder = self._own_decoder(code, event, x)
        else:
            decoder = self.decoder.decoder(code, event, self.likelihood.start(flat))
        return Chain(
            bodies,
            heads,
            downs,
            priors,
            self._top(x, seed),
            decoder,
            self.likelihood.extra(flat),
            self.likelihood,
            self.merge,
            tuple(size * d for d in dims),
            self.latents,
        )

    def _top(self, x: Tensor, seed: int) -> nn.Module:
        """The prior of the last level."""
        if isinstance(self.latents, Discrete):
            return self.latents.prior(*self.dims)
        rows = self.likelihood.encoded(x.flatten(1)).reshape(x.shape)
        return self.prior.build(self.dims[-1], rows, seed)

    def _encoder(self, x: Tensor, condition: int) -> tuple[nn.Module, int]:
        event = tuple(x.shape[1:])
        if not isinstance(self.encoder, nn.Module):
            return self.encoder.encoder(event, condition)
        example = (
            x[:2]
            if not condition
            else torch.cat([x[:2].flatten(1), x.new_zeros(len(x[:2]), condition)], dim=1)
        )
        own = copy.deepcopy(self.encoder)
        got = _tried(own, example)
        if got.ndim != 2 or len(got) != len(example):
            raise ValueError(
                f"the encoder must map rows {tuple(example.shape)} to features (n, f), got "
                f"{tuple(got.shape)}."
            )
        return own, got.shape[1]

    def _own_decoder(self, dim: int, event: tuple[int, ...], x: Tensor) -> nn.Module:
        own = copy.deepcopy(self.decoder)
        got = _tried(own, x.new_zeros(2, dim))
        k, pixels = self.likelihood.num_outputs, math.prod(event)
        if got.numel() != 2 * k * pixels:
            raise ValueError(
                f"the decoder must map latents (n, {dim}) to {k} × {pixels} numbers a row for "
                f"{type(self.likelihood).__name__}, got {tuple(got.shape)} for two rows."
            )
        return own


@torch.no_grad()
def _tried(module: nn.Module, example: Tensor) -> Tensor:
    """What a module makes of rows, whose statistics it is not to remember."""
    was = module.training
    out = module.eval()(example)
    module.train(was)
    return out


def _as_schedule(value: float | Callable[[int], float]) -> Callable[[int], float]:
    return value if callable(value) else lambda _: value
