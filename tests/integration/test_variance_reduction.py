"""Antithetic and stratified draws, control variates, importance sampling, ratios and VEGAS."""

from __future__ import annotations

import math
import re

import laws
import pytest
import torch
from problems.expectations import number
from torch import Tensor
from torch import distributions as td

from probcalc import (
    ControlVariates,
    EstimateWarning,
    ImportanceSampling,
    MonteCarlo,
    QuasiMonteCarlo,
    ScoreControl,
    Status,
    Stratified,
    Vegas,
    expect,
    integrate,
    ratio,
)

NORMAL = td.Normal(number(0.0), number(1.0))
EXACT = math.exp(0.125)


def rises(x: Tensor) -> Tensor:
    return (0.5 * x).exp()


METHODS = {
    "plain": MonteCarlo(2_000),
    "antithetic": MonteCarlo(2_000, antithetic=True),
    "score": MonteCarlo(2_000, control=ScoreControl()),
    "control": MonteCarlo(
        2_000, control=ControlVariates(lambda x: x[..., None] ** 2, number(1.0)[None])
    ),
    "importance": ImportanceSampling(td.Normal(number(0.5), number(1.2)), num_draws=2_000),
    "self-normalised": ImportanceSampling(
        td.Normal(number(0.5), number(1.2)), self_normalised=True, num_draws=2_000
    ),
    "defensive": ImportanceSampling(
        td.Normal(number(1.0), number(0.7)), defensive=0.3, num_draws=2_000
    ),
    "stratified": Stratified(num_points=128),
    "VEGAS": Vegas(rounds=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
@pytest.mark.filterwarnings("ignore::probcalc.EstimateWarning")
def test_intervals_cover(method):
    """Those that are not refused: from few terms a tail may look heavy that is not."""
    hits = []
    for seed in range(1_000):
        result = expect(
            rises,
            NORMAL,
            method=method,
            max_evals=4_000,
            confidence=0.95,
            generator=laws.generator(seed),
        )
        if result.ok:
            hits.append(abs(float(result.value) - EXACT) <= float(result.error))
    assert len(hits) >= 700
    laws.assert_covers(torch.tensor(hits), 0.95, caught=0.865)


LIGHTER = {
    "antithetic": (MonteCarlo(20_000, antithetic=True), 1.5),
    "score": (MonteCarlo(20_000, control=ScoreControl()), 2.0),
    "score of degree 2": (MonteCarlo(20_000, control=ScoreControl(2)), 6.0),
    "importance": (
        ImportanceSampling(td.Normal(number(0.5), number(1.0)), num_draws=20_000),
        10.0,
    ),
    "stratified": (Stratified(num_points=1024), 2.5),
    "VEGAS": (Vegas(), 2.5),
}


@pytest.mark.parametrize(("method", "gain"), LIGHTER.values(), ids=LIGHTER.keys())
def test_bars_shrink(method, gain: float, generator: torch.Generator):
    plain = expect(rises, NORMAL, method=MonteCarlo(20_000), generator=generator)
    result = expect(rises, NORMAL, method=method, max_evals=20_000, generator=generator)
    assert float(result.error) * gain <= float(plain.error) * 1.2
    laws.assert_within(result, EXACT, atol=1e-12)


def test_quadratics_of_normals_have_no_variance_left(generator: torch.Generator):
    """The score's products span every quadratic: zero-variance estimates."""
    covariance = torch.eye(3, dtype=torch.float64) + 0.5
    dist = td.MultivariateNormal(number(1.0, 2.0, 3.0), covariance)
    result = expect(
        lambda x: torch.stack([x.sum(-1) ** 2, x[..., 0]], dim=-1),
        dist,
        method=MonteCarlo(1_000, control=ScoreControl(2)),
        generator=generator,
    )
    torch.testing.assert_close(result.value, number(43.5, 1.0), rtol=1e-12, atol=1e-12)
    assert (result.error < 1e-11).all()


def test_pairs_cancel_what_is_odd(generator: torch.Generator):
    dist = td.Normal(torch.zeros(2, dtype=torch.float64), 1.0)
    result = expect(
        lambda x: torch.where(torch.tensor([True, False]), x**3, x**2),
        dist,
        method=MonteCarlo(antithetic=True),
        generator=generator,
    )
    assert result.ok
    assert abs(float(result.value[0])) <= float(result.error[0]) < 1e-12
    laws.assert_within(result, torch.tensor([0.0, 1.0]).double())


# name -> (function, p, q, value or None where it must be flagged)
WEIGHTED = {
    "E20": (lambda x: x**2, NORMAL, td.Normal(number(0.0), number(1.5)), 1.0),
    "rare": (
        lambda x: (x > 6).double(),
        NORMAL,
        td.Normal(number(6.0), number(1.0)),
        9.86587645e-10,
    ),
    "E17": (torch.ones_like, NORMAL, td.Normal(number(0.0), number(0.5)), None),
    "E23": (
        torch.ones_like,
        td.MixtureSameFamily(
            td.Categorical(number(0.5, 0.5)), td.Normal(number(-10.0, 10.0), number(1.0, 1.0))
        ),
        td.Normal(number(10.0), number(1.0)),
        None,
    ),
    "E26": (
        lambda x: torch.ones_like(x[..., 0]),
        td.Independent(td.Normal(torch.zeros(100).double(), 1.0), 1),
        td.Independent(td.Normal(torch.zeros(100).double(), 1.1), 1),
        1.0,
    ),
}


@pytest.mark.parametrize(("fn", "p", "q", "exact"), WEIGHTED.values(), ids=WEIGHTED.keys())
@pytest.mark.filterwarnings("ignore::probcalc.EstimateWarning")
def test_weights_are_right_or_flagged(fn, p, q, exact: float | None, generator: torch.Generator):
    result = expect(fn, p, method=ImportanceSampling(q), generator=generator)
    if exact is None:
        assert not result.ok
        assert float(result.error) == math.inf
    else:
        assert result.ok
        laws.assert_within(result, exact)
        assert float(result.error) <= 0.1 * exact


def test_missing_support_is_refused_unless_defended(generator: torch.Generator):
    p, q = td.Uniform(number(0.0), number(2.0)), td.Uniform(number(0.0), number(1.0))
    with pytest.raises(ValueError, match="has no mass where Uniform has some"):
        expect(lambda x: x, p, method=ImportanceSampling(q))
    result = expect(
        lambda x: x, p, method=ImportanceSampling(q, defensive=0.5), generator=generator
    )
    assert result.ok
    laws.assert_within(result, 1)


def test_gradients_through_weights(generator: torch.Generator):
    mean = number(0.3).requires_grad_()
    q = td.Normal(number(0.0), number(1.5))
    for normalised in (False, True):
        method = ImportanceSampling(q, self_normalised=normalised)
        value = expect(
            lambda x: x**2, td.Normal(mean, 1.0), method=method, generator=generator
        ).value
        (slope,) = torch.autograd.grad(value, mean)
        assert abs(float(slope) - 0.6) < 0.03


RATIOS = {
    "kurtosis": (lambda x: x**4, lambda x: x**2, 3.0),
    "multiple": (lambda x: 2 * x**2, lambda x: x**2, 2.0),
    "outputs": (lambda x: torch.stack([x**2, x**4], -1), lambda x: x[..., None] ** 2, (1.0, 3.0)),
}


@pytest.mark.parametrize(("a", "b", "exact"), RATIOS.values(), ids=RATIOS.keys())
def test_ratios(a, b, exact, generator: torch.Generator):
    result = ratio(a, b, NORMAL, generator=generator)
    assert result.ok
    gap = (result.value - torch.tensor(exact, dtype=torch.float64)).abs()
    assert (gap <= 2 * result.error).all()
    assert (result.error < 0.1).all()


def test_common_draws_make_ratios_sharp(generator: torch.Generator):
    result = ratio(lambda x: x.exp() * (1 + 0.01 * x), torch.exp, NORMAL, generator=generator)
    laws.assert_within(result, 1.01)
    assert float(result.error) < 3e-4


def test_denominators_near_zero_are_flagged(generator: torch.Generator):
    with pytest.warns(EstimateWarning, match="looks infinite"):
        result = ratio(torch.exp, lambda x: x, NORMAL, generator=generator)
    assert Status.DIVERGENT in result.flags


@pytest.mark.slow
def test_ratios_cover():
    hits = []
    for seed in range(700):
        result = ratio(
            torch.sin,
            lambda x: 2 + x.cos(),
            NORMAL,
            max_evals=2_000,
            confidence=0.95,
            generator=laws.generator(seed),
        )
        hits.append(abs(float(result.value)) <= float(result.error))
    laws.assert_covers(torch.tensor(hits), 0.95, caught=0.865)


def peak(x: Tensor) -> Tensor:
    return 1 / (64.0**-1 + (x - 0.3) ** 2).prod(-1)


@pytest.mark.parametrize("d", [3, 6, 10])
def test_vegas_finds_peaks_along_the_axes(d: int, generator: torch.Generator):
    exact = (8 * (math.atan(5.6) + math.atan(2.4))) ** d
    lower, upper = torch.zeros(d).double(), torch.ones(d).double()
    result = integrate(peak, lower, upper, event_dim=1, method=Vegas(), generator=generator)
    assert result.ok
    laws.assert_within(result, exact)
    assert float(result.error) <= 3e-3 * exact


def test_a_map_that_is_noise_is_not_used(generator: torch.Generator):
    dist = td.Independent(td.Normal(torch.zeros(150).double(), 1.0), 1)
    result = expect(lambda x: x.square().sum(-1), dist, method=Vegas(), generator=generator)
    assert result.ok
    laws.assert_within(result, 150)
    assert float(result.error) < 0.5


@pytest.mark.parametrize("method", [QuasiMonteCarlo(num_points=1024), Stratified(num_points=1024)])
@pytest.mark.parametrize("level", [0.0, 0.3, 0.7123, 1.5])
def test_replicates_that_agree_are_not_taken_at_their_word(method, level: float):
    """A jump inside one cell of a net, on the same side of which all points may lie."""
    exact = 0.5 * math.erfc(level / math.sqrt(2))
    hits = []
    for seed in range(50):
        result = expect(
            lambda x: (x > level).double(), NORMAL, method=method, generator=laws.generator(seed)
        )
        hits.append(abs(float(result.value) - exact) <= float(result.error) < 3e-3)
    assert sum(hits) >= 45


def test_rare_events_by_vegas(generator: torch.Generator):
    exact = 0.5 * math.erfc(3 / math.sqrt(2))
    result = expect(lambda x: (x > 3).double(), NORMAL, method=Vegas(), generator=generator)
    assert result.ok
    laws.assert_within(result, exact)
    assert float(result.error) <= 0.3 * exact


@pytest.mark.slow
def test_looks_share_the_confidence():
    """Plain draws until a tolerance is met: the bar still covers."""
    hits, spent = [], set()
    for seed in range(400):
        result = expect(
            rises,
            NORMAL,
            method=MonteCarlo(),
            rtol=6e-3,
            confidence=0.95,
            generator=laws.generator(seed),
        )
        assert result.ok
        spent.add(int(result.num_evals))
        hits.append(abs(float(result.value) - EXACT) <= float(result.error))
    assert max(spent) < 2**17
    laws.assert_covers(torch.tensor(hits), 0.95, caught=0.83)


BAD = {
    "proposal": (lambda: ImportanceSampling(3.0), TypeError, "must be a torch Distribution"),
    "share": (lambda: ImportanceSampling(NORMAL, defensive=1.0), ValueError, "defensive"),
    "one draw": (lambda: MonteCarlo(1), ValueError, "at least 2"),
    "no mean": (lambda: ControlVariates(torch.sin, None), ValueError, "the known means"),
    "degree": (lambda: ScoreControl(3), ValueError, "1 or 2"),
    "border": (
        lambda: expect(
            lambda x: x,
            td.Gamma(number(2.0), number(1.0)),
            method=MonteCarlo(control=ScoreControl()),
        ),
        ValueError,
        "only if its support is",
    ),
    "shape of a control": (
        lambda: expect(
            rises,
            NORMAL,
            method=MonteCarlo(control=ControlVariates(lambda x: x, number(0.0)[None])),
        ),
        ValueError,
        "control variates must have shape",
    ),
    "shape of a proposal": (
        lambda: expect(rises, NORMAL, method=ImportanceSampling(td.Normal(number(0.0, 1.0), 1.0))),
        ValueError,
        "must have the shapes of the distribution",
    ),
    "rounds": (lambda: Vegas(rounds=0), ValueError, "rounds"),
    "damping": (lambda: Vegas(damping=-1.0), ValueError, "damping"),
    "control of a box": (
        lambda: integrate(torch.exp, 0.0, 1.0, method=MonteCarlo(control=ScoreControl())),
        TypeError,
        "control variates are for `expect`",
    ),
    "a number for a function": (lambda: ratio(1.0, torch.sin, NORMAL), TypeError, "callable"),
}


@pytest.mark.parametrize(("call", "error", "text"), BAD.values(), ids=BAD.keys())
def test_refusals(call, error: type[Exception], text: str):
    """Mistakes of type may meet a checker of annotations first, with words of its own."""
    with pytest.raises((error, TypeError)) as raised:
        call()
    said = str(raised.value)
    assert (isinstance(raised.value, error) and re.search(text, said)) or "Type-check" in said


MONOTONE = {
    "exponential": (lambda x: x.exp(), 0.0, 1.0, math.e - 1),
    "falling": (lambda x: (-x).exp(), 0.0, math.inf, 1.0),
    "logarithm": (lambda x: x.log(), 0.0, 1.0, -1.0),
    "cube": (lambda x: x**3, -1.0, 1.0, 0.0),
}


@pytest.mark.parametrize(("fn", "lower", "upper", "exact"), MONOTONE.values(), ids=MONOTONE.keys())
def test_pairs_of_what_rises_or_falls_need_no_flag(
    fn, lower: float, upper: float, exact: float, generator: torch.Generator
):
    """The mean of a pair is never far out, though both of its values are at the ends."""
    found = integrate(
        fn,
        lower,
        upper,
        method=MonteCarlo(antithetic=True),
        confidence=0.999999,
        generator=generator,
    )
    assert found.ok
    laws.assert_within(found, exact)
