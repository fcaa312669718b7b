from __future__ import annotations

import math

import pytest
import torch

from probcalc.linalg import cholesky_or_none, symmetric, whitened

SIZES = [(1, 1), (2, 1), (4, 4), (7, 3), (64, 5)]
WIDE = [(1, 3), (2, 3), (4, 8), (5, 12)]


def mean_square(points: torch.Tensor) -> torch.Tensor:
    return points.mT @ points / points.shape[-2]


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize(("n", "d"), SIZES)
def test_whitened_points_have_mean_square_one(
    n: int, d: int, batch: tuple[int, ...], generator: torch.Generator
):
    points = torch.randn(*batch, n, d, generator=generator, dtype=torch.float64)
    w = whitened(points)
    assert w.shape == points.shape
    eye = torch.eye(d, dtype=torch.float64).expand(*batch, d, d)
    torch.testing.assert_close(mean_square(w), eye, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n", "d"), SIZES)
def test_whitening_is_a_linear_map_that_keeps_orientation(
    n: int, d: int, generator: torch.Generator
):
    """w = points R⁻¹ √n with R upper triangular, its diagonal positive: no coordinate flips."""
    points = torch.randn(n, d, generator=generator, dtype=torch.float64)
    w = whitened(points)
    R = w.mT @ points / n
    torch.testing.assert_close(w @ R, points, rtol=1e-9, atol=1e-9)
    assert (R.diagonal() > 0).all()
    torch.testing.assert_close(R.tril(-1), torch.zeros_like(R), rtol=0, atol=1e-12)
    torch.testing.assert_close(whitened(w), w, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("n", "d"), WIDE)
def test_fewer_points_than_dimensions_are_orthogonal_in_groups(
    n: int, d: int, generator: torch.Generator
):
    points = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    w = whitened(points)
    assert w.shape == points.shape
    for start in range(0, d, n):
        group = w[..., start : start + n]
        eye = torch.eye(group.shape[-1], dtype=torch.float64).expand(2, -1, -1)
        torch.testing.assert_close(mean_square(group), eye, rtol=0, atol=1e-12)
        torch.testing.assert_close(group, whitened(points[..., start : start + n]))


def spread(condition: float, generator: torch.Generator) -> torch.Tensor:
    """Positive definite with this condition number."""
    q = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    return q @ torch.logspace(0, math.log10(condition), 6, dtype=torch.float64).diag() @ q.mT


@pytest.mark.parametrize("condition", [1.0, 1e6, 1e12])
def test_cholesky_factor_gives_the_matrix_back(condition: float, generator: torch.Generator):
    matrix = symmetric(spread(condition, generator))
    factor = cholesky_or_none(matrix)
    torch.testing.assert_close(factor @ factor.mT, matrix, rtol=1e-12, atol=1e-14 * condition)
    assert torch.equal(factor, factor.tril())
    assert (factor.diagonal() > 0).all()


NOT_POSITIVE = {
    "negative": -torch.eye(3).double(),
    "indefinite": torch.tensor([[1.0, 2.0], [2.0, 1.0]]).double(),
    "zero": torch.zeros(2, 2).double(),
    "nan": torch.full((2, 2), math.nan).double(),
    "inf": torch.tensor([[math.inf, 0.0], [0.0, 1.0]]).double(),
}


@pytest.mark.parametrize("matrix", NOT_POSITIVE.values(), ids=NOT_POSITIVE.keys())
def test_no_factor_where_the_matrix_is_not_positive_definite(matrix: torch.Tensor):
    assert cholesky_or_none(matrix) is None


def test_symmetric_part(generator: torch.Generator):
    matrix = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    s = symmetric(matrix)
    assert torch.equal(s, s.mT)
    assert torch.equal(symmetric(s), s)
    x = torch.randn(3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(x @ s @ x, x @ matrix @ x)
