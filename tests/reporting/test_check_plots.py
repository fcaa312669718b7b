"""Figures of checks show the numbers of the checks."""

from __future__ import annotations

import io

import pytest
import torch
from matplotlib.colors import to_hex

from probcalc.inference.information import PredictiveScore
from probcalc.inference.predictive import Prediction
from probcalc.inference.uniformity import judged
from probcalc.reporting.check_plots import plot_calibration, plot_checks, plot_khat
from probcalc.reporting.style import BAD, GOOD, REFERENCE
from probcalc.result import Estimate
from probcalc.status import Status


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def prediction(shift: float = 0.0, counts: bool = False) -> Prediction:
    y_rep = torch.randn(1600, 10, generator=seeded()).double()
    y = shift + torch.linspace(-1.5, 1.5, 10).double()
    if counts:
        y_rep, y = y_rep.abs().mul(3).round(), y.abs().mul(3).round()
    return Prediction({"y": y_rep}, {}, {"y": y}, 16, 0.99, Status.OK, (), "posterior")


@pytest.mark.parametrize("counts", [False, True])
def test_each_statistic_has_its_panel_with_the_datas_value(counts: bool):
    found = prediction(counts=counts)
    figure = plot_checks(found)
    for ax, check in zip(figure.axes, found.checks(), strict=True):
        assert ax.get_title(loc="left") == f"y {check.name}"
        assert ax.lines[0].get_xdata()[0] == pytest.approx(check.observed)
        heights = sum(bar.get_height() for bar in ax.patches)
        assert heights >= 0.99 * found.num_draws
    assert b"nan" not in _written(figure)


def test_an_extreme_value_is_red():
    colours = {
        shift: to_hex(plot_checks(prediction(shift)).axes[0].lines[0].get_color())
        for shift in (0.0, 5.0)
    }
    assert colours == {0.0: REFERENCE, 5.0: BAD}


def test_constant_statistics_are_said():
    found = Prediction(
        {"y": torch.ones(32, 3).double()},
        {},
        {"y": torch.ones(3).double()},
        16,
        0.99,
        Status.OK,
        (),
        "posterior",
    )
    assert "no statistic differs" in plot_checks(found).axes[0].texts[0].get_text()


def test_ranks_are_counted_and_coloured_by_their_verdict():
    pit = torch.rand(400, 2, generator=seeded()).double()
    pit[:, 1] = pit[:, 1].pow(3)
    calibration = judged(("a", "b"), pit, 1e-4, 0, "by hand")
    figure = plot_calibration(calibration)
    for ax, colour in zip(figure.axes, (GOOD, BAD), strict=True):
        bars = [p for p in ax.patches if to_hex(p.get_facecolor()) == colour]
        assert sum(bar.get_height() for bar in bars) == 400
    assert b"nan" not in _written(figure)


def test_rows_are_coloured_by_their_khat():
    khat = torch.tensor([0.2, 0.6, 0.9, -torch.inf, torch.inf]).double()
    elpd = Estimate(torch.tensor(0.0), torch.tensor(0.0), num_evals=4096)
    score = PredictiveScore(elpd, khat, 1.0, 1.0, khat, Status.OK, (), "PSIS-LOO")
    ax = plot_khat(score).axes[0]
    assert [len(line.get_xdata()) for line in ax.lines] == [2, 1, 2]
    assert {t.get_text() for t in ax.texts} == {"2", "4"}
    waic = PredictiveScore(elpd, khat, 1.0, 1.0, None, Status.OK, (), "WAIC")
    with pytest.raises(ValueError, match="WAIC has no k-hat by row"):
        plot_khat(waic)


def _written(figure: object) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return file.getvalue()
