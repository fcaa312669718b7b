"""Figures of a posterior show its numbers, whatever they are."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from problems.by_hand import made, noise

from probcalc.inference.posterior import Posterior
from probcalc.reporting.posterior_plots import (
    plot_marginals,
    plot_pairs,
    plot_trace,
    plot_weights,
)

PLOTS = [plot_marginals, plot_pairs, plot_trace, plot_weights]


def written(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return file.getvalue()


@pytest.mark.parametrize("plot", PLOTS)
def test_every_figure_is_drawn_of_every_posterior(plot: object, posterior: Posterior):
    assert b"nan" not in written(plot(posterior))


def test_marginals_peak_where_the_mass_is():
    posterior = made(noise(0.1), 0.1)
    prior = {"a": 5.0 + torch.randn(4000, generator=torch.Generator().manual_seed(2)).double()}
    figure = plot_marginals(posterior, "a", prior=prior)
    (ax,) = figure.axes
    prior_curve, _, curve = ax.lines
    assert abs(_peak(curve)) < 0.5
    assert _peak(prior_curve) == pytest.approx(ax.get_xlim()[1], abs=1.0)  # beyond the axis
    assert ax.get_title(loc="left") == "a"


def _peak(line: object) -> float:
    x, y = line.get_data()
    return float(x[np.argmax(y)])


def test_entries_and_sites_are_chosen_by_name():
    posterior = made(noise(0.1), 0.1)
    assert len(plot_pairs(posterior, "a", "b").axes) == 4
    with pytest.raises(ValueError, match="unknown site or entry 'c'"):
        plot_marginals(posterior, "c")


def test_a_trace_is_drawn_as_it_is_and_a_far_elbo_left_out():
    from dataclasses import replace

    trace = torch.tensor([-40.0, -31.0, -30.2, -30.1, -30.0]).double()
    near = replace(made(noise(0.1) - 30.0, 0.1), trace=trace)
    far = replace(made(noise(0.1) - 1e9, 0.1), trace=trace)
    for posterior, lines in ((near, 2), (far, 1)):
        (ax,) = plot_trace(posterior).axes
        assert len(ax.lines) == lines
        assert ax.lines[0].get_ydata().tolist() == trace.tolist()
        low, high = ax.get_ylim()
        assert -60 < low < -30 < high < -20


def test_no_trace_is_said():
    (ax,) = plot_trace(made(noise(0.1), 0.1)).axes
    assert "kept no trace" in ax.texts[0].get_text()


def test_weights_point_at_the_khat():
    texts = [t.get_text() for ax in plot_weights(made(noise(1.0), 0.62)).axes for t in ax.texts]
    assert any("0.62" in text for text in texts)
    exact = plot_weights(made(torch.zeros(8, 64).double(), -math.inf))
    assert any("exact" in t.get_text() for ax in exact.axes for t in ax.texts)
