r"""Critics that are trained, and the bounds that they give on samples they have not seen.

Samples are split in halves; each half trains a critic, a fifth of it deciding when to stop, and
the other half gives the bound. Both bounds count half. In the mean they are below the divergence
whatever the critics are: how far, nobody knows who has only samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcalc._random import child, draw_seed, forked
from probcalc.divergence.duals import DonskerVaradhan, Dual, info_nce
from probcalc.integration.tails import khat_limit, pareto_khat
from probcalc.optimization.first_order import Adam
from probcalc.result import Estimate, half_width
from probcalc.status import Status
from probcalc.training.callbacks import EarlyStopping
from probcalc.training.loop import train

_HELD = 5  # every fifth row of a half says when to stop
_LEAST = 50  # draws of each sample
_BLOCK = 256  # pairs of one term of InfoNCE

Scores = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class InfoNCE:
    """Mutual information by telling the partner of x from others; at most the log of a block."""

    name: str = "InfoNCE bound"


@dataclass(frozen=True)
class TrainedCritic:
    """A perceptron whose value of a dual form bounds the divergence from below.

    The bar is that of the bound by these critics, for draws to come: the divergence itself may be
    far above, by what the critics have not learned.

    Args:
        dual: `DonskerVaradhan()`, `NguyenWainwrightJordan()` or `JensenShannonDual()`; for mutual
            information `InfoNCE()` too.
        hidden: Widths of the layers.
        rate: Of Adam.
        batch_size: Draws of each sample in a step.
        max_epochs: Passes at most.
        patience: Epochs without a better bound on the rows held back.
    """

    dual: Any = DonskerVaradhan()  # noqa: RUF009 (frozen)
    hidden: tuple[int, ...] = (64, 64)
    rate: float = 1e-3
    batch_size: int = 256
    max_epochs: int = 200
    patience: int = 20

    def divergence(
        self, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], confidence: float, seed: int
    ) -> Estimate:
        """Lower bound of the divergence of two samples.

        Raises:
            ValueError: If there are too few draws, or the dual is of pairs.
            TypeError: If the dual is none.
        """
        if not isinstance(self.dual, Dual):
            raise TypeError(
                f"two samples need a dual form such as `DonskerVaradhan()`, got {self.dual!r}."
            )
        _check_enough(x, y)
        x, y = (t[torch.randperm(len(t), generator=child(seed, i))] for i, t in enumerate((x, y)))
        halves = [(x[i::2], y[i::2]) for i in range(2)]
        return self._crossed(halves, confidence, seed)

    def _crossed(
        self, halves: list[tuple[Tensor, Tensor]], confidence: float, seed: int
    ) -> Estimate:
        """Each half's critic on the other half."""
        parts = []
        for own, other in ((0, 1), (1, 0)):
            critic = self._trained(halves[own], child(seed, 2 + own))
            with torch.no_grad():
                at_p, at_q = (critic(t.float())[:, 0].double() for t in halves[other])
            parts.append((at_p, at_q))
        return self._joined(parts, confidence, sum(len(t) for half in halves for t in half))

    def information(
        self, x: Float[Tensor, "n d"], y: Float[Tensor, "n e"], confidence: float, seed: int
    ) -> Estimate:
        """Lower bound of the mutual information of pairs.

        Raises:
            ValueError: If there are too few pairs.
        """
        _check_enough(x, y)
        order = torch.randperm(len(x), generator=child(seed, 0))
        x, y = x[order], y[order]
        if not isinstance(self.dual, InfoNCE):
            # the joint law against pairs that do not belong together, within each half
            halves = [
                (
                    torch.cat([x[i::2], y[i::2]], dim=1),
                    torch.cat([x[i::2], y[i::2].roll(1, dims=0)], dim=1),
                )
                for i in range(2)
            ]
            return self._crossed(halves, confidence, seed)
        terms = []
        for own, other in ((0, 1), (1, 0)):
            critic = self._trained_on_pairs(x[own::2], y[own::2], child(seed, 2 + own))
            with torch.no_grad():
                blocks = (t[other::2].float().split(_BLOCK) for t in (x, y))
                for pair in zip(*blocks, strict=True):
                    terms.append(info_nce(_all_pairs(critic, *pair)).double())
        means = torch.stack([t.mean() for t in terms if len(t) == _BLOCK] or [terms[0].mean()])
        each = torch.cat(terms)
        std_error = each.std() / math.sqrt(len(each))
        return Estimate(
            means.mean(),
            half_width(std_error, len(each) - 1, confidence),
            std_error,
            float(len(each) - 1),
            confidence,
            0,
            len(each),
            self._method,
            {"bound": "lower", "at_most": math.log(min(_BLOCK, len(x) // 2))},
        )

    @property
    def _method(self) -> str:
        return f"{self.dual.name} by a trained critic; the bar is of the bound"

    def _joined(self, parts: list[tuple[Tensor, Tensor]], confidence: float, num: int) -> Estimate:
        values = torch.stack([self.dual.bound(*part) for part in parts])
        errors = torch.stack([self.dual.std_error(*part) for part in parts])
        std_error = errors.square().sum().sqrt() / len(parts)
        khat = max(float(pareto_khat(at_q)) for _, at_q in parts)
        heavy = khat > khat_limit(num // 4) and isinstance(self.dual, DonskerVaradhan)
        status = Status.INFINITE_VARIANCE if heavy else Status.OK
        return Estimate(
            values.mean(),
            half_width(std_error, num / 2 - 1, confidence),
            std_error,
            float(num / 2 - 1),
            confidence,
            int(status),
            num,
            self._method,
            {"bound": "lower", "khat": khat, "halves": values.tolist()},
        )

    def _trained(
        self, samples: tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]], stream: torch.Generator
    ) -> nn.Module:
        """A critic, and the scale of what it sees, from one half."""
        x, y = (t.float() for t in samples)
        (kept_x, held_x), (kept_y, held_y) = _apart(x), _apart(y)
        critic = self._critic(torch.cat([x, y]), stream)

        def loss(module: nn.Module, batch: Any, generator: torch.Generator) -> Tensor:
            if isinstance(batch, tuple):  # rows held back, of both
                return -self.dual.bound(*(module(t)[:, 0] for t in batch))
            rows = torch.randint(len(kept_y), (len(batch),), generator=generator)
            return -self.dual.bound(module(batch)[:, 0], module(kept_y[rows])[:, 0])

        n = min(len(held_x), len(held_y))
        self._run(loss, critic, kept_x, (held_x[:n], held_y[:n]), stream)
        return critic

    def _trained_on_pairs(self, x: Tensor, y: Tensor, stream: torch.Generator) -> nn.Module:
        x, y = x.float(), y.float()
        (kept_x, held_x), (kept_y, held_y) = _apart(x), _apart(y)
        critic = self._critic(torch.cat([x, y], dim=1), stream)
        loss = lambda module, batch, _: -info_nce(_all_pairs(module, *batch)).mean()  # noqa: E731
        self._run(loss, critic, (kept_x, kept_y), (held_x, held_y), stream)
        return critic

    def _run(
        self, loss: Any, critic: nn.Module, data: Any, held: Any, stream: torch.Generator
    ) -> None:
        train(
            loss,
            critic,
            data,
            optimizer=Adam(self.rate),
            batch_size=self.batch_size,
            max_epochs=self.max_epochs,
            validation=held,
            early_stopping=EarlyStopping(self.patience),
            progress=False,
            generator=stream,
        )
        critic.eval()

    def _critic(self, rows: Float[Tensor, "n d"], stream: torch.Generator) -> nn.Module:
        widths = (rows.shape[1], *self.hidden)

        def layers() -> list[nn.Module]:
            made: list[nn.Module] = [_Scaled(rows.mean(dim=0), rows.std(dim=0))]
            for fan_in, fan_out in zip(widths, widths[1:], strict=False):
                made += [nn.Linear(fan_in, fan_out), nn.SiLU()]
            return [*made, nn.Linear(widths[-1], 1)]

        with forked(draw_seed(stream)):
            return nn.Sequential(*layers())


class _Scaled(nn.Module):
    """Columns of mean 0 and variance 1."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("loc", loc)
        self.register_buffer("scale", torch.where(scale > 0, scale, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.loc) / self.scale


def _apart(x: Tensor) -> tuple[Tensor, Tensor]:
    held = torch.arange(len(x)) % _HELD == 0
    return x[~held], x[held]


def _all_pairs(critic: nn.Module, x: Float[Tensor, "n d"], y: Float[Tensor, "m e"]) -> Tensor:
    n, m = len(x), len(y)
    left, right = x[:, None].expand(n, m, -1), y[None].expand(n, m, -1)
    return critic(torch.cat([left, right], dim=-1).flatten(0, 1)).reshape(n, m)


def _check_enough(x: Tensor, y: Tensor) -> None:
    if min(len(x), len(y)) < _LEAST:
        raise ValueError(
            f"a critic needs at least {_LEAST} draws of each sample, got {len(x)} and {len(y)}; "
            "few draws have nearest neighbours: leave `method` out."
        )
