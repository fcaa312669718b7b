"""Divergences from Kumaraswamy's distribution, where series that are cut off miss nats."""

from __future__ import annotations

import mpmath as mp
import pytest
import torch
from problems.expectations import number
from torch import Tensor
from torch import distributions as td

from probcalc import GaussKronrod, expect, kl
from probcalc.divergence.kumaraswamy import mean_log_rest


def by_mpmath(r: float, b: float) -> mp.mpf:
    """E ln(1 − Y^r) of a beta variable with parameters 1 and b, over ln(−ln(1 − Y))."""
    with mp.workdps(40):
        r, b = mp.mpf(r), mp.mpf(b)

        def integrand(v: mp.mpf) -> mp.mpf:
            log_y = mp.log1p(-mp.exp(-mp.exp(v) / b))
            return mp.exp(v - mp.exp(v)) * mp.log(-mp.expm1(r * log_y))

        return mp.quad(integrand, list(range(-100, 6, 2)))


@pytest.mark.parametrize("b", [1e-3, 0.1, 0.5, 3.0, 1e4])
@pytest.mark.parametrize("r", [1e-6, 0.3, 1.0, 2.0, 7.0, 100.0, 1e4])
def test_mean_of_the_logarithm_as_mpmath_gives(r: float, b: float):
    found, true = float(mean_log_rest(number(r), number(b))), float(by_mpmath(r, b))
    assert found == pytest.approx(true, rel=1e-13, abs=1e-16)


def test_whole_powers_have_digammas():
    """Y² = 1 − (1 − Y)(1 + Y), and ln(1 − Y) has the mean −1/b."""
    b = number(0.05, 0.7, 2.0, 30.0)
    torch.testing.assert_close(mean_log_rest(number(1.0), b), -1 / b, rtol=1e-14, atol=0)


@pytest.mark.parametrize("a", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("b", [0.1, 0.5, 4.0])
def test_of_beta_laws_what_beta_laws_have(a: float, b: float):
    """Kumaraswamy's law with one parameter 1 is a beta law."""
    q = td.Beta(number(0.3), number(10.0))
    for p, same in (
        (td.Kumaraswamy(number(1.0), number(b)), td.Beta(number(1.0), number(b))),
        (td.Kumaraswamy(number(a), number(1.0)), td.Beta(number(a), number(1.0))),
    ):
        found = kl(p, q)
        assert found.method == "closed form"
        assert float(found.value) == pytest.approx(float(kl(same, q).value), rel=1e-13)


PAIRS = {
    "to itself": (td.Kumaraswamy, (2.0, 3.0, 1.2, 4.0)),
    "to beta": (td.Beta, (2.0, 3.0, 2.0, 3.0)),
    "far in one": (td.Kumaraswamy, (20.0, 1.5, 0.3, 0.8)),
    "far in the other": (td.Beta, (0.3, 1.5, 9.0, 2.0)),
}


@pytest.mark.parametrize(("family", "given"), PAIRS.values(), ids=PAIRS.keys())
def test_as_integrals_give(family, given: tuple[float, ...]):
    def value(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return kl(td.Kumaraswamy(a, b), family(c, d)).value

    args = [number(t) for t in given]
    taken = kl(td.Kumaraswamy(*args[:2]), family(*args[2:]), method=GaussKronrod())
    assert abs(float(value(*args)) - float(taken.value)) <= float(taken.error) + 1e-13
    torch.autograd.gradcheck(value, [t.requires_grad_() for t in args])


def test_batches_are_what_their_elements_are():
    a, b = number(0.5, 1.0, 3.0)[:, None], number(0.2, 2.0)
    q = td.Kumaraswamy(number(1.0), number(2.0))
    found = kl(td.Kumaraswamy(a, b), q)
    for i in range(3):
        for j in range(2):
            alone = kl(td.Kumaraswamy(a[i, 0], b[j]), q)
            assert float(found.value[i, j]) == pytest.approx(float(alone.value), rel=1e-12)
    same = kl(td.Kumaraswamy(number(1.0, 3.0), number(2.0)), q)
    assert same.value[0] == 0


@pytest.mark.filterwarnings("ignore::probcalc.EstimateWarning")
@pytest.mark.parametrize("b", [0.5, 0.2, 0.1, 0.05])
def test_mass_nearer_to_one_than_any_number_is_in_the_bar(b: float):
    """What float64 does not tell from 1 holds hundredths of the mass."""
    found = expect(lambda x: -torch.log1p(-x), td.Kumaraswamy(number(0.1), number(b)))
    assert abs(float(found) + float(by_mpmath(10.0, b))) <= float(found.error)
