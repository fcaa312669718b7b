"""One palette and one set of axes for every figure; nothing global is touched."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea

INK = "#1d2b36"
MUTED = "#6f7d89"
RULE = "#dde3e8"
PAPER = "#ffffff"
POSTERIOR = "#20638f"  # what the library claims
REFERENCE = "#d97a1f"  # what is known to be right
GUIDE = "#8a97a3"  # the approximation before its correction
GOOD, FAIR, BAD = "#3f8f6b", "#d9a21f", "#b8433a"
DENSITY = LinearSegmentedColormap.from_list(
    "density", ["#eef5f9", "#a9cbe0", "#4f8fb8", "#174c70"]
)

BODY, SMALL, TITLE = 9.0, 8.0, 10.5  # points


def dress(ax: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Give axes the house's look: a light frame on two sides, quiet ticks, a title at the left."""
    ax.set_facecolor(PAPER)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(RULE)
    ax.tick_params(axis="both", which="both", colors=MUTED, labelsize=SMALL, length=3, width=0.8)
    ax.tick_params(axis="both", which="minor", length=0)
    headline(ax, title)
    ax.set_xlabel(x, color=MUTED, fontsize=BODY)
    ax.set_ylabel(y, color=MUTED, fontsize=BODY)


def headline(ax: Axes, title: str) -> None:
    """Title at the left, with room for a line of `key` below it."""
    ax.set_title(title, loc="left", color=INK, fontsize=TITLE, fontweight="bold", pad=20)


def key(ax: Axes, **words: str) -> None:
    """A legend without boxes: each colour's meaning in that colour, in one line above the axes.

    Args:
        ax: Axes to label.
        **words: Name of a colour of this module, in lower case, and what it stands for.
    """
    parts = [
        TextArea(word, textprops={"color": globals()[name.upper()], "fontsize": SMALL})
        for name, word in words.items()
    ]
    box = AnchoredOffsetbox(
        "lower left",
        child=HPacker(children=parts, pad=0, sep=9),
        frameon=False,
        pad=0,
        borderpad=0.4,
        bbox_to_anchor=(-0.005, 1.0),
        bbox_transform=ax.transAxes,
    )
    box.set_in_layout(False)  # words may reach beyond their axes without moving them
    ax.add_artist(box)


def say(ax: Axes, words: str) -> None:
    """Words in place of a drawing."""
    bare(ax)
    ax.text(0.5, 0.5, words, ha="center", va="center", color=MUTED, transform=ax.transAxes)


def bare(ax: Axes) -> None:
    """Remove everything but the drawing."""
    ax.set_axis_off()
    ax.set_facecolor(PAPER)
