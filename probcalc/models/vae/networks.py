"""Networks between data and latents; any module of the user's own can stand in their place.

An encoder's body turns rows ``(n, *event)`` into features ``(n, f)``, a decoder's turns latents
``(n, d)`` into the likelihood's numbers ``(n, k, *event)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

Activation = Callable[[], nn.Module]


@dataclass(frozen=True)
class Perceptron:
    """Fully connected layers.

    Args:
        hidden: Widths; none for a linear map.
        activation: Class of the modules between them.
    """

    hidden: tuple[int, ...] = (64,)
    activation: Activation = nn.Tanh

    def encoder(self, event: tuple[int, ...], condition: int) -> tuple[nn.Module, int]:
        """A body for rows of this shape, and the number of its features."""
        widths = (math.prod(event) + condition, *self.hidden)
        return nn.Sequential(nn.Flatten(), *self._layers(widths)), widths[-1]

    def decoder(self, dim: int, event: tuple[int, ...], start: Float[Tensor, "k p"]) -> nn.Module:
        """From latents and conditions to the k numbers of every pixel, at first near `start`."""
        widths = (dim, *self.hidden)
        last = nn.Linear(widths[-1], start.numel())
        last.bias.data.copy_(start.flatten())
        shaped = nn.Unflatten(1, (len(start), *event))
        return nn.Sequential(*self._layers(widths), last, shaped)

    def features(self, dim: int) -> tuple[nn.Module, int]:
        """Between two levels of latents."""
        widths = (dim, *self.hidden)
        return nn.Sequential(*self._layers(widths)), widths[-1]

    def _layers(self, widths: tuple[int, ...]) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(fan_in, fan_out), self.activation()]
        return layers


@dataclass(frozen=True)
class Convolutional:
    """Convolutions of stride 2, mirrored by transposed ones in the decoder.

    Rows are images ``(h, w)`` or ``(c, h, w)``.

    Args:
        channels: Of every layer; each halves height and width.
        hidden: Width of the fully connected layer next to the latents.
        activation: Class of the modules between them.
    """

    channels: tuple[int, ...] = (32, 64)
    hidden: int = 128
    activation: Activation = nn.SiLU

    def encoder(self, event: tuple[int, ...], condition: int) -> tuple[nn.Module, int]:
        """A body for images of this shape, and the number of its features.

        Raises:
            ValueError: If rows are no images, or too small for so many layers.
        """
        c, _, _ = _image(event)
        layers: list[nn.Module] = [_AsImage(event)]
        for fan_in, fan_out in zip((c, *self.channels), self.channels, strict=False):
            layers += [nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1), self.activation()]
        h, w = self._sizes(event)[-1]
        flat = self.channels[-1] * h * w
        body = nn.Sequential(*layers, nn.Flatten())
        return _Conditioned(body, flat, condition, self.hidden, self.activation()), self.hidden

    def decoder(self, dim: int, event: tuple[int, ...], start: Float[Tensor, "k p"]) -> nn.Module:
        """From latents and conditions to the k numbers of every pixel, at first near `start`.

        Raises:
            ValueError: If rows are no images, or too small for so many layers.
        """
        c, _, _ = _image(event)
        sizes = self._sizes(event)
        h, w = sizes[-1]
        first = self.channels[-1]
        layers: list[nn.Module] = [
            nn.Linear(dim, self.hidden),
            self.activation(),
            nn.Linear(self.hidden, first * h * w),
            self.activation(),
            nn.Unflatten(1, (first, h, w)),
        ]
        outs = (*reversed(self.channels[:-1]), c * len(start))
        fan_in = first
        for fan_out, small, large in zip(outs, sizes[::-1], sizes[-2::-1], strict=False):
            # an odd size needs no padding to be met, an even one a row and a column
            extra = tuple(b - (2 * a - 1) for a, b in zip(small, large, strict=True))
            layers.append(
                nn.ConvTranspose2d(fan_in, fan_out, 3, stride=2, padding=1, output_padding=extra)
            )
            layers.append(self.activation())
            fan_in = fan_out
        return nn.Sequential(*layers[:-1], _AsOutputs(event, start))

    def features(self, dim: int) -> tuple[nn.Module, int]:
        """Between two levels of latents."""
        return Perceptron((self.hidden,), self.activation).features(dim)

    def _sizes(self, event: tuple[int, ...]) -> list[tuple[int, int]]:
        """Heights and widths, from the image to the last layer."""
        _, h, w = _image(event)
        sizes = [(h, w)]
        for _ in self.channels:
            h, w = (h + 1) // 2, (w + 1) // 2
            sizes.append((h, w))
        if min(sizes[-2]) < 2:
            raise ValueError(
                f"{len(self.channels)} halvings are too many for images of {event}: use fewer "
                "`channels`."
            )
        return sizes


class _AsImage(nn.Module):
    def __init__(self, event: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = _image(event)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self.shape)


class _AsOutputs(nn.Module):
    """Channels to numbers by channel, ``(n, k c, h, w)`` to ``(n, k, *event)``; their start."""

    def __init__(self, event: tuple[int, ...], start: Float[Tensor, "k p"]) -> None:
        super().__init__()
        self.start = nn.Parameter(start.reshape(-1, *event).clone())

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.start.shape) + self.start


class _Conditioned(nn.Module):
    """Features of an image and, joined to them, a condition."""

    def __init__(
        self, body: nn.Module, flat: int, condition: int, hidden: int, activation: nn.Module
    ) -> None:
        super().__init__()
        self.body, self.condition = body, condition
        self.last = nn.Sequential(nn.Linear(flat + condition, hidden), activation)

    def forward(self, x: Tensor) -> Tensor:
        if not self.condition:
            return self.last(self.body(x))
        image, condition = x.split([x.shape[1] - self.condition, self.condition], dim=1)
        return self.last(torch.cat([self.body(image), condition], dim=1))


def with_condition(
    x: Float[Tensor, " n *event"], condition: Tensor | None
) -> Float[Tensor, " n *shape"]:
    """Rows, flat and with a condition behind them where there is one."""
    return x if condition is None else torch.cat([x.flatten(1), condition], dim=1)


def _image(event: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width.

    Raises:
        ValueError: If a row has another number of axes.
    """
    if len(event) == 2:
        return 1, *event
    if len(event) == 3:
        return event
    raise ValueError(
        f"`Convolutional` takes images (h, w) or (c, h, w), got rows of shape {event}: reshape "
        "the data, or use `Perceptron`."
    )
