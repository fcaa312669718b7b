from __future__ import annotations

from io import BytesIO

import pytest
import torch
from matplotlib.figure import Figure

from probcalc.reporting.generative_plots import (
    plot_codes,
    plot_images,
    plot_loss_by_time,
    plot_points,
    plot_reconstructions,
    plot_training,
    plot_traversal,
)

IMAGES = torch.arange(7 * 4 * 5).reshape(7, 4, 5).float() / 140
T = torch.linspace(0, 1, 5).double()
FIGURES = {
    "images": lambda: plot_images(IMAGES, columns=3, title="seven"),
    "reconstructions": lambda: plot_reconstructions(IMAGES, IMAGES.flip(1)),
    "traversal": lambda: plot_traversal(
        IMAGES[:6].reshape(2, 3, 4, 5), [-1.0, 0.0, 1.0], ["a", "b"]
    ),
    "codes": lambda: plot_codes(torch.randn(30, 2), torch.arange(30) % 3, ("z[0]", "z[1]")),
    "points": lambda: plot_points(torch.randn(40, 2), torch.randn(50, 2)),
    "training": lambda: plot_training(
        [{"step": k, "loss": 9.0 / k, "rate": k / 9} for k in range(1, 9)] + [{"step": 8}],
        {"loss": "−bound", "rate": "rate", "distortion": "not there"},
    ),
    "loss by time": lambda: plot_loss_by_time(T, T + 1, 0.1 * T),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn(name: str):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    figure.savefig(stream := BytesIO(), format="png")
    assert len(stream.getvalue()) > 2_000


def test_a_sheet_holds_every_pixel_at_its_place():
    ax = plot_images(IMAGES, columns=3).axes[0]
    sheet = ax.images[0].get_array()
    assert sheet.shape == (3 * 5, 3 * 6)
    assert torch.equal(torch.tensor(sheet[5:9, 6:11]).float(), IMAGES[4])


def test_training_shows_what_there_is():
    words = [t.get_text().strip() for t in FIGURES["training"]().axes[0].texts]
    assert words == ["−bound 1.12", "rate 0.89"]
