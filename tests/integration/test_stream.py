"""Long streams of draws: the figures of all terms at once, tails and flags kept, little memory."""

from __future__ import annotations

import math

import laws
import pytest
import torch
from torch import Tensor
from torch import distributions as td

from probcalc import EstimateWarning, MonteCarlo, Status, expect
from probcalc.integration.running import Running, tail_length
from probcalc.integration.stream import LONG, Stream


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def heavy(num: int, generator: torch.Generator) -> Tensor:
    return torch.rand(num, generator=generator, dtype=torch.float64) ** -0.4


TERMS = {
    "both signs": lambda n, g: torch.randn(n, generator=g, dtype=torch.float64),
    "far from zero": lambda n, g: 1e3 + torch.randn(n, generator=g, dtype=torch.float64),
    "negative": lambda n, g: -torch.rand(n, generator=g, dtype=torch.float64),
    "heavy": heavy,
    "large for single precision": lambda n, g: 1e25 * torch.randn(n, generator=g),
    "single precision": lambda n, g: torch.randn(n, generator=g).exp(),
    "equal": lambda n, g: torch.full((n,), 0.1, dtype=torch.float64),
}


@pytest.mark.parametrize("name", TERMS)
def test_a_stream_knows_what_all_terms_together_say(name: str):
    """Its beginning, blocks, and a last one of an odd length."""
    generator = laws.generator(3)
    sizes = [2**14, 2**15, 2**15, 1001]
    parts = [TERMS[name](n, generator) for n in sizes]
    top = tail_length(sum(sizes)) + 1
    stream = Stream(Running.of(parts[0].double()[:, None], top))
    for part in parts[1:]:
        stream.add(part)
    found, every = stream.running(), Running.of(torch.cat(parts).double()[:, None], top)
    assert found.num == every.num
    assert found.finite.all()
    single = parts[0].dtype == torch.float32
    rtol = 1e-4 if single else 1e-9
    for figure in ("mean", "squares", "size", "size_squares", "low", "high"):
        size = float(every.size_squares / every.num) ** 0.5
        room = rtol * size * {"squares": size * every.num}.get(figure, 1.0)
        got, expected = getattr(found, figure), getattr(every, figure)
        torch.testing.assert_close(got, expected, rtol=rtol, atol=room)
    for tail in ("top", "above", "below"):
        torch.testing.assert_close(getattr(found, tail), getattr(every, tail))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_term_that_is_not_finite_is_not_lost(value: float):
    terms = torch.randn(2**14, generator=laws.generator(1), dtype=torch.float64)
    stream = Stream(Running.of(terms[:, None], 100))
    spoilt = terms.clone()
    spoilt[777] = value
    stream.add(spoilt)
    assert not stream.running().finite.any()


NUM = 2**20 + 2 * LONG + 12_345  # past the beginning, with a ragged end


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_long_means_are_right_and_their_bars_hold(dtype: torch.dtype):
    dist = td.Normal(torch.tensor(0.5, dtype=dtype), torch.tensor(2.0, dtype=dtype))
    hits = []
    for seed in range(laws.draws_to_see(3.0)):
        result = expect(
            lambda x: x * x,
            dist,
            method=MonteCarlo(NUM),
            confidence=1 - laws.ALPHA,
            generator=laws.generator(seed),
        )
        assert result.ok
        assert result.num_evals >= NUM
        hits.append(abs(float(result.value) - 4.25) <= float(result.error))
        spread = float(result.std_error) * NUM**0.5  # of x²: 2σ⁴ + 4μ²σ²
        assert spread == pytest.approx(6.0, rel=0.02)
    assert all(hits)


def test_a_function_that_carries_a_gradient_keeps_it():
    weight = number(2.0).requires_grad_()
    result = expect(
        lambda x: weight * x * x,
        td.Normal(number(0.0), number(1.0)),
        method=MonteCarlo(NUM),
        generator=laws.generator(0),
    )
    (slope,) = torch.autograd.grad(result.value, weight)
    assert float(slope) == pytest.approx(float(result.value.detach()) / 2, rel=1e-12)


def test_heavy_tails_are_flagged_in_long_streams():
    with pytest.warns(EstimateWarning, match="no finite variance"):
        result = expect(
            lambda x: x,
            td.Pareto(number(1.0), number(1.4)),
            method=MonteCarlo(NUM),
            generator=laws.generator(0),
        )
    assert result.status & Status.INFINITE_VARIANCE
    assert math.isinf(float(result.error))


def test_no_call_sees_more_than_a_block():
    seen: set[int] = set()

    def fn(x: Tensor) -> Tensor:
        seen.add(len(x))
        return x.cos()

    result = expect(fn, td.Normal(number(0.0), number(1.0)), method=MonteCarlo(2**22))
    assert result.ok
    assert max(seen) == LONG
    assert abs(float(result.value) - math.exp(-0.5)) < 10 * float(result.error)
