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
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from probcalc._random import child, draw_seed
from probcalc.divergence.duals import JensenShannonDual
from probcalc.models.rows import checked, loaded, seeded
from probcalc.optimization.first_order import Adam
from probcalc.result import Estimate
from probcalc.training.checkpoint import save_checkpoint
from probcalc.training.gradients import LossAndGradients
from probcalc.training.loop import TrainResult, train
from probcalc.training.parallel import rows_randn

_BATCH, _EMA, _STEPS = 256, 0.999, 6_000


@dataclass(frozen=True, eq=False)
class GAN:
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
        x = checked("x", x, _Anything())
        seed = draw_seed(generator)
        players = self._built(x, 0, seed)
        chosen = {
            "batch_size": _BATCH,
            "optimizer": Adam(1e-3, betas=(0.0, 0.99)),
            "ema": _EMA,
            **settings,
            "max_steps": 2 * num_rounds,
            "allow_unused": True,
            "schedules": {"turn": lambda step: float(step % 2)},
        }
        result = train(self._loss, players, x, generator=child(seed, 1), **chosen)
        if result.averaged is not None:
            players.load_state_dict({**players.state_dict(), **result.averaged})
        about = tuple(x.shape[1:]), result, len(x), self.latent_dim
        return GANFit(players.eval().requires_grad_(False), *about)

    def load(self, path: Path | str) -> GANFit:
        """What `GANFit.save` wrote of a model with these settings.

        Raises:
            CheckpointError: If the file is damaged, or no file of ours.
            ValueError: If it is of other settings.
        """
        players, record = loaded(path, "turn", lambda example, _: self._built(example, 0, 0))
        fitted = players.eval().requires_grad_(False)
        event = tuple(record["event"])
        return GANFit(fitted, event, None, record["num_rows"], self.latent_dim)

    def _loss(self, players: Players, x: Tensor, generator: torch.Generator) -> LossAndGradients:
        """The loss of the player whose turn it is, and its gradients alone."""
        z = rows_randn(len(x), self.latent_dim, generator=generator, like=x)
        if players.turn.item():
            names, mine = _own(players, "generator")
            loss = softplus(-players.score(players.drawn(z))).mean()
            metrics = {"generator": loss.detach(), "critic": players.last.clone()}
        else:
            names, mine = _own(players, "critic")
            loss, divergence = self._critic_loss(players, x, players.drawn(z).detach())
            players.last.copy_(divergence)
            metrics = {"generator": players.last_generator.clone(), "critic": divergence}
        grads = torch.autograd.grad(loss, mine)
        if players.turn.item():
            players.last_generator.copy_(loss.detach())
        return LossAndGradients(loss.detach(), dict(zip(names, grads, strict=True)), metrics)

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


@dataclass(frozen=True, eq=False)
class GANFit:
    """Both networks with their values.

    Args:
        players: Generator and critic.
        event: Shape of a row.
        training: How it went; None for a model from a file.
        num_rows: Rows that it was trained on.
        latent_dim: Normal numbers that a row is made of.
    """

    players: Players
    event: tuple[int, ...]
    training: TrainResult | None
    num_rows: int
    latent_dim: int

    @property
    def ok(self) -> bool:
        """Whether training met nothing that is not finite."""
        return self.training is None or self.training.ok

    @torch.no_grad()
    def sample(
        self, n: int, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, " n *event"]:
        """New rows."""
        like = self.players.turn
        stream = child(draw_seed(generator), 0, like.device)
        shape = (n, self.latent_dim)
        z = torch.randn(shape, generator=stream, dtype=like.dtype, device=like.device)
        return self.players.drawn(z)

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
        at_p, at_q = (self.players.score(t.to(self.players.turn)).double() for t in (x, made))
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

    def save(self, folder: Path | str) -> Path:
        """Write the values to a folder, checked by sums, without code in it."""
        record = {"event": list(self.event), "condition": 0, "num_rows": self.num_rows}
        return save_checkpoint(Path(folder), 0, self.players.state_dict(), record)


class _Anything:
    def check(self, x: Tensor) -> None:
        pass


def _own(players: Players, name: str) -> tuple[list[str], list[Tensor]]:
    """Parameters of one player."""
    named = getattr(players, name).named_parameters(prefix=name)
    names, params = zip(*named, strict=True)
    return list(names), list(params)


def _layers(widths: tuple[int, ...], activation: Callable[[], nn.Module]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return layers
