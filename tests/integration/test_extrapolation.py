"""Series that converge slowly are summed, with an error that covers the truth."""

from __future__ import annotations

import mpmath as mp
import pytest
import torch

from probcalc.integration.extrapolation import levin_limit

EPS = 2.3e-16
# antiderivatives F with F(0) = 0: shells are F(4^-k) - F(4^-(k+1))
CASES = {
    "t^-0.5 e^-t": lambda t: mp.gammainc(0.5, 0, t),
    "t^-0.9": lambda t: 10 * t**0.1,
    "t^-0.99": lambda t: 100 * t**0.01,
    "t^-0.9 e^-t": lambda t: mp.gammainc(0.1, 0, t),
    "t^-0.99 e^-t": lambda t: mp.gammainc(0.01, 0, t),
    "t^-0.75 e^-5t": lambda t: mp.gammainc(0.25, 0, 5 * t),
    "1/(t log^2 t)": lambda t: -1 / mp.log(t / 2.5),
    "log t": lambda t: t * mp.log(t) - t,
    "sqrt t": lambda t: t**1.5,
    "sin 1/t": lambda t: t * mp.sin(1 / t) - mp.ci(1 / t),
}


def shells(F, n: int) -> torch.Tensor:
    edges = [F(mp.mpf(4) ** -k) for k in range(n + 1)]
    terms = [float(a - b) for a, b in zip(edges, edges[1:], strict=False)]
    return torch.tensor(terms, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("F", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("n", [8, 12, 16, 24, 40])
def test_the_error_covers_the_truth(F, n: int):
    terms = shells(F, n)
    limit, error = levin_limit(terms, 4 * EPS * terms.abs())
    assert abs(float(limit[0]) - float(F(mp.mpf(1)))) <= float(error[0])


@pytest.mark.parametrize("F", CASES.values(), ids=CASES.keys())
def test_two_dozen_terms_are_enough(F):
    terms = shells(F, 24)
    limit, error = levin_limit(terms, 4 * EPS * terms.abs())
    assert float(error[0]) < 1e-5 * abs(float(limit[0]))


def test_series_side_by_side_and_complex():
    parts = torch.cat([shells(F, 20) for F in CASES.values()], dim=1)
    limit, error = levin_limit(parts, EPS * parts.abs())
    for i in range(parts.shape[1]):
        one, one_error = levin_limit(parts[:, i : i + 1], EPS * parts[:, i : i + 1].abs())
        torch.testing.assert_close(limit[i], one[0])
    turned, _ = levin_limit(parts * 1j, EPS * parts.abs())
    torch.testing.assert_close(turned, limit * 1j)


@pytest.mark.parametrize("n", [1, 5, 7])
def test_few_terms_prove_nothing(n: int):
    terms = 0.5 ** torch.arange(n, dtype=torch.float64)[:, None]
    assert levin_limit(terms, EPS * terms)[1].isinf().all()


def test_a_series_that_does_not_converge_has_no_small_error():
    ones = torch.ones(20, 1, dtype=torch.float64)
    harmonic = 1 / torch.arange(1, 41, dtype=torch.float64)[:, None]
    for terms in (ones, harmonic):
        limit, error = levin_limit(terms, EPS * terms)
        assert float(error[0]) > 0.1 * abs(float(limit[0]))
