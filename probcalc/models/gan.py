r"""Generative adversarial networks: a critic measures a divergence, a generator makes it small.

    critic      max  ½ (E_p ln σ(T(x)) + E_z ln σ(−T(G(z)))) − ½ γ E_p ‖∇T(x)‖²/2
    generator   min  −E_z ln σ(T(G(z)))

The critic's goal is the dual form of the Jensen-Shannon divergence (`divergence.duals`); the
generator's gradient is the one that does not fade where the critic is sure. The penalty on the
slope of the critic at data makes the game converge where it would circle. Goodfellow et al.
(2014); Mescheder, Geiger & Nowozin (2018), Which training methods for GANs do actually converge?
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from probcalc._random import draw_seed
from probcalc.divergence.duals import JensenShannonDual
from probcalc.models.fitted import Fitted, Readable, trained
from probcalc.models.rows import checked, seeded
from probcalc.optimization.first_order import Adam
from probcalc.result import Estimate
from probcalc.training.gradients import LossAndGradients
from probcalc.training.parallel import rows_randn

_BATCH, _EMA, _STEPS = 256, 0.999, 6_000


class Players(nn.Module):
    """Generator and critic, and whose turn it is."""

    turn: Tensor
    last: Tensor
    last_generator: Tensor

    def __init__(self, generator: nn.Module, critic: nn.Module, event: tuple[int, ...]) -> None:
        super().__init__()
        self.generator, self.critic, self.event = generator, critic, event
        for name in ("turn", "last", "last_generator"):
            self.register_buffer(name, torch.zeros(()))

    def drawn(self, z: Float[Tensor, "n d"]) -> Float[Tensor, " n *event"]:
        """Rows."""
        return self.generator(z).reshape(len(z), *self.event)

    def score(self, x: Float[Tensor, " n *event"]) -> Float[Tensor, " n"]:
        """The critic's T."""
        return self.critic(x).reshape(len(x))


class GANFit(Fitted):
    """Both networks with their values."""

    @property
    def players(self) -> Players:
        """The networks."""
        return self.network

    @torch.no_grad()
    def sample(
        self, n: int, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, " n *event"]:
        """New rows."""
        stream = self._stream(generator)
        return self.players.drawn(self._noise(n, self.settings.latent_dim, stream=stream))

    @torch.no_grad()
    def divergence(
        self,
        x: Float[Tensor, " n *event"],
        *,
        confidence: float = 0.99,
        generator: torch.Generator | None = None,
    ) -> Estimate:
        """Lower bound of the Jensen-Shannon divergence of rows and samples, by this critic.

        Of rows that it was not trained on; 0 to ln 2. The bar is that of the bound.
        """
        made = self.sample(len(x), generator=generator)
        rows = self._rows(x).reshape(made.shape)
        at_p, at_q = (self.players.score(t).double() for t in (rows, made))
        dual = JensenShannonDual()
        std_error = dual.std_error(at_p, at_q)
        width = math.sqrt(2) * torch.erfinv(torch.tensor(confidence, dtype=torch.float64))
        return Estimate(
            dual.bound(at_p, at_q),
            width * std_error,
            std_error=std_error,
            confidence=confidence,
            num_evals=2 * len(x),
            method=f"{dual.name} by the critic",
        )


@dataclass(frozen=True, eq=False)
class GAN(Readable[GANFit]):
    """Settings of the model.

    Args:
        latent_dim: Normal numbers that a row is made of.
        hidden: Widths of both networks.
        activation: Class of the modules between layers.
        penalty: γ, of the critic's squared slope at data (R1).
        generator: A module from ``(n, d)`` to rows, in place of a perceptron.
        critic: A module from rows to ``(n, 1)`` or ``(n)``.

    >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) * 0.1 + 3.0
    >>> fit = GAN(2, (16,)).fit(x, num_rounds=300, generator=torch.Generator().manual_seed(1))
    >>> fit.sample(4, generator=torch.Generator().manual_seed(2)).shape
    torch.Size([4, 2])
    """

    latent_dim: int = 2
    hidden: tuple[int, ...] = (128, 128)
    activation: Callable[[], nn.Module] = nn.LeakyReLU
    penalty: float = 0.1
    generator: nn.Module | None = None
    critic: nn.Module | None = None

    answer, sample = GANFit, "turn"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If a number is out of range.
        """
        if self.latent_dim < 1 or not self.penalty >= 0:
            raise ValueError(
                "`GAN` needs latent_dim of at least 1 and penalty of at least 0, got "
                f"{self.latent_dim}, {self.penalty}."
            )

    @property
    def kind_of_rows(self) -> _Anything:
        """Any finite numbers."""
        return _Anything()

    def fit(
        self,
        x: Tensor,
        *,
        num_rounds: int = _STEPS,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> GANFit:
        """Train on rows: a step of the critic, then one of the generator, in every round.

        Args:
            x: Shape ``(n, *event)``, of about unit scale.
            num_rounds: Of both players.
            generator: Source of the starts, the order of rows and the noise.
            **settings: Of `train`; by default Adam at 1e-3 without momentum for both, batches of
                256 and moving averages of the weights at 0.999, which samples are drawn with.

        Raises:
            ValueError: If there are no rows, or a number is not finite.
        """
        x = checked("x", x, self.kind_of_rows)
        seed = draw_seed(generator)
        players, turns = self._built(x, 0, seed), _Turns()

        def loss(players: Players, rows: Tensor, noise: torch.Generator) -> LossAndGradients:
            step = self._generators_step if turns.now else self._critics_step
            return step(players, rows, noise)

        chosen = {
            "batch_size": _BATCH,
            "optimizer": Adam(1e-3, betas=(0.0, 0.99)),
            "ema": _EMA,
            **settings,
            "max_steps": 2 * num_rounds,
            "allow_unused": True,
            "schedules": {"turn": turns},
        }
        result = trained(loss, players, x, seed, chosen)
        return self._fitted(players, tuple(x.shape[1:]), result, len(x))

    def _critics_step(
        self, players: Players, x: Tensor, generator: torch.Generator
    ) -> LossAndGradients:
        """The critic's loss, and its gradients alone."""
        made = players.drawn(self._noise(x, generator)).detach()
        loss, divergence = self._critic_loss(players, x, made)
        players.last.copy_(divergence)
        metrics = {"generator": players.last_generator.clone(), "critic": divergence}
        return _for_one(players, "critic", loss, metrics)

    def _generators_step(
        self, players: Players, x: Tensor, generator: torch.Generator
    ) -> LossAndGradients:
        """The generator's."""
        loss = softplus(-players.score(players.drawn(self._noise(x, generator)))).mean()
        players.last_generator.copy_(loss.detach())
        metrics = {"generator": loss.detach(), "critic": players.last.clone()}
        return _for_one(players, "generator", loss, metrics)

    def _noise(self, x: Tensor, generator: torch.Generator) -> Float[Tensor, "n d"]:
        return rows_randn(len(x), self.latent_dim, generator=generator, like=x)

    def _critic_loss(self, players: Players, x: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
        real = x.detach().requires_grad_(self.penalty > 0)
        at_p, at_q = players.score(real), players.score(made)
        bound = JensenShannonDual().bound(at_p, at_q)
        loss = -2 * bound
        if self.penalty:
            (slope,) = torch.autograd.grad(at_p.sum(), real, create_graph=True)
            loss = loss + 0.5 * self.penalty * slope.flatten(1).square().sum(dim=1).mean()
        return loss, bound.detach()

    def _built(self, x: Tensor, condition: int, seed: int) -> Players:
        event = tuple(x.shape[1:])
        pixels = math.prod(event)

        def build() -> Players:
            made = copy.deepcopy(self.generator) or nn.Sequential(
                *_layers((self.latent_dim, *self.hidden), self.activation),
                nn.Linear(self.hidden[-1], pixels),
            )
            told = copy.deepcopy(self.critic) or nn.Sequential(
                nn.Flatten(),
                *_layers((pixels, *self.hidden), self.activation),
                nn.Linear(self.hidden[-1], 1),
            )
            return Players(made, told, event)

        return seeded(build, seed).to(x.device, x.dtype)


class _Anything:
    def check(self, x: Tensor) -> None:
        pass


class _Turns:
    """Whose turn it is, on the host, which need not wait for the device to know it."""

    now = 0

    def __call__(self, step: int) -> float:
        self.now = step % 2
        return float(self.now)


def _for_one(
    players: Players, name: str, loss: Tensor, metrics: dict[str, Tensor]
) -> LossAndGradients:
    """A loss with the gradients of one player's parameters."""
    mine = dict(getattr(players, name).named_parameters(prefix=name))
    grads = torch.autograd.grad(loss, list(mine.values()))
    return LossAndGradients(loss.detach(), dict(zip(mine, grads, strict=True)), metrics)


def _layers(widths: tuple[int, ...], activation: Callable[[], nn.Module]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return layers
