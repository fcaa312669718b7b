"""Pictures of generative models: samples, reconstructions, latents, and how training went.

Every function returns a matplotlib `Figure`; no state of pyplot is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from probcalc.reporting.style import (
    BAD,
    GOOD,
    INK,
    MUTED,
    PAPER,
    POSTERIOR,
    REFERENCE,
    SMALL,
    TITLE,
    dress,
    key,
)

_GAP = 1  # pixels between pictures
_CLASSES = ListedColormap(
    ["#20638f", "#d97a1f", "#3f8f6b", "#b8433a", "#7a5aa6", "#8c6d46", "#c95f9f", "#6f7d89"]
    + ["#b3a429", "#38a3b5"]
)


def plot_images(
    images: Float[Tensor, "n h w"], *, columns: int = 10, title: str = "", greatest: float = 1.0
) -> Figure:
    """Pictures side by side, dark on light.

    Args:
        images: From 0 to `greatest`.
        columns: Pictures a row.
        title: Above them.
        greatest: What is black.
    """
    rows = math.ceil(len(images) / columns)
    figure = _figure(0.62 * columns, 0.62 * rows + 0.45)
    _sheet(figure.add_subplot(), images, columns, greatest, title)
    return figure


def plot_reconstructions(
    x: Float[Tensor, "n h w"], means: Float[Tensor, "n h w"], *, greatest: float = 1.0
) -> Figure:
    """Rows of data above what the model makes of them."""
    figure = _figure(0.62 * len(x), 2.1)
    axes = figure.subplots(2, 1)
    _sheet(axes[0], x, len(x), greatest, "data")
    _sheet(axes[1], means, len(x), greatest, "reconstruction")
    return figure


def plot_traversal(
    images: Float[Tensor, "d s h w"],
    values: Sequence[float],
    names: Sequence[str],
    *,
    greatest: float = 1.0,
) -> Figure:
    """What each latent does: one a row, its values along the columns.

    Args:
        images: Mean pictures, latent by value.
        values: Of the latent.
        names: Of the rows.
        greatest: What is black.
    """
    d, s = images.shape[:2]
    figure = _figure(0.62 * s + 1.2, 0.62 * d + 0.75)
    ax = figure.add_subplot()
    _sheet(ax, images.flatten(0, 1), s, greatest, "one latent moved, the others at their mean")
    h, w = images.shape[2] + _GAP, images.shape[3] + _GAP
    ax.set_axis_on()
    for side in ax.spines.values():
        side.set_visible(False)
    ax.set_yticks([h * (i + 0.5) for i in range(d)], list(names))
    ax.set_xticks([w * (i + 0.5) for i in range(s)], [f"{v:+.1f}" for v in values])
    ax.tick_params(length=0, labelsize=SMALL, colors=MUTED)
    return figure


def plot_codes(codes: Float[Tensor, "n 2"], labels: Tensor, names: tuple[str, str]) -> Figure:
    """Mean codes of rows in two latents, coloured by class."""
    figure = _figure(5.2, 4.6)
    ax = figure.add_subplot()
    dress(ax, "mean codes", *names)
    for k in sorted(set(labels.tolist())):
        rows = (labels == k).numpy()
        x, y = codes[rows].numpy().T
        colour = _CLASSES(int(k) % _CLASSES.N)
        ax.scatter(x, y, s=9, color=colour, alpha=0.55, linewidths=0)
        ax.annotate(
            f"{k}",
            (float(np.median(x)), float(np.median(y))),
            color=INK,
            fontsize=TITLE,
            fontweight="bold",
            ha="center",
            va="center",
            bbox={"boxstyle": "circle,pad=0.15", "fc": PAPER, "ec": colour, "lw": 1.2},
        )
    return figure


def plot_points(data: Float[Tensor, "n 2"], samples: Float[Tensor, "m 2"]) -> Figure:
    """Samples in the plane beside the data, on one scale."""
    figure = _figure(7.2, 3.7)
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    pairs = (("data", data, REFERENCE), ("samples", samples, POSTERIOR))
    for ax, (title, points, colour) in zip(axes, pairs, strict=True):
        dress(ax, title)
        x, y = points.numpy().T
        ax.scatter(x, y, s=4, color=colour, alpha=0.35, linewidths=0)
        ax.set_aspect("equal")
    room = 0.25 * float(data.std())
    (x0, y0), (x1, y1) = data.min(dim=0).values.tolist(), data.max(dim=0).values.tolist()
    axes[0].set_xlim(x0 - room, x1 + room)
    axes[0].set_ylim(y0 - room, y1 + room)
    return figure


def plot_training(history: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> Figure:
    """Records of a run by step.

    Args:
        history: Of a `TrainResult`.
        names: What to show, by the name of the record, and in words.
    """
    figure = _figure(5.6, 3.2)
    ax = figure.add_subplot()
    dress(ax, "training", "step", "nats a row")
    colours = [POSTERIOR, REFERENCE, GOOD, BAD]
    for (name, words), colour in zip(names.items(), colours, strict=False):
        points = [(r["step"], r[name]) for r in history if name in r]
        if not points:
            continue
        x, y = np.array(points).T
        ax.plot(x, y, color=colour, lw=1.2)
        ax.annotate(
            f" {words} {y[-1]:.2f}", (x[-1], y[-1]), color=colour, fontsize=SMALL, va="center"
        )
    ax.margins(x=0.0)
    seen = np.concatenate([[r[n] for r in history if n in r] for n in names])
    low, high = np.quantile(seen, [0.0, 0.97])
    room = (high - low) or 1.0
    ax.set_ylim(low - 0.05 * room, high + 0.1 * room)
    return figure


def plot_loss_by_time(
    times: Float[Tensor, " b"], loss: Float[Tensor, " b"], error: Float[Tensor, " b"]
) -> Figure:
    """Where in time the bound of a diffusion is lost.

    Args:
        times: Middles of bins.
        loss: Mean nats a row, as a density of time.
        error: Standard errors.
    """
    figure = _figure(5.6, 3.2)
    ax = figure.add_subplot()
    dress(ax, "loss by time", "t, from data to noise", "nats a row")
    x, y, e = (t.numpy() for t in (times, loss, error))
    ax.fill_between(x, y - 2 * e, y + 2 * e, color=POSTERIOR, alpha=0.2, linewidth=0)
    ax.plot(x, y, color=POSTERIOR, lw=1.4)
    ax.set_ylim(bottom=0)
    key(ax, posterior="mean, ± 2 standard errors")
    return figure


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), facecolor=PAPER, layout="constrained")


def _sheet(
    ax: Axes, images: Float[Tensor, "n h w"], columns: int, greatest: float, title: str
) -> None:
    n, h, w = images.shape
    rows = math.ceil(n / columns)
    sheet = torch.zeros(rows * (h + _GAP), columns * (w + _GAP)).fill_(torch.nan)
    for i, image in enumerate(images.float().cpu()):
        top, left = (i // columns) * (h + _GAP), (i % columns) * (w + _GAP)
        sheet[top : top + h, left : left + w] = image / greatest
    extent = (0, sheet.shape[1], sheet.shape[0], 0)
    shade = {"cmap": "gray_r", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    ax.imshow(sheet.numpy(), extent=extent, **shade)
    ax.set_axis_off()
    if title:
        ax.set_title(title, loc="left", color=INK, fontsize=TITLE, fontweight="bold")
