"""Adaptive integrals in one dimension: right, or flagged; batched; differentiable."""

from __future__ import annotations

import itertools
import math
import re
import warnings
from collections.abc import Callable

import pytest
import torch
from laws import assert_within
from problems.integrals import GOOD, HARD, INF, Integral
from torch import Tensor

from probcalc import EstimateWarning, Status, integrate
from probcalc.result import Estimate


def number(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def solve(case: Integral, **kwargs: object) -> Estimate:
    return integrate(case.fn, case.lower, case.upper, breaks=case.breaks, **kwargs)


@pytest.mark.parametrize("case", GOOD.values(), ids=GOOD.keys())
def test_right_and_with_a_bar_that_says_so(case: Integral):
    result = solve(case)
    error = abs(float(result.value) - case.exact)
    assert result.ok
    assert error <= max(float(result.error), 1e-8 * abs(case.exact))
    assert float(result.error) <= 1e-7 * max(abs(case.exact), 1e-6)  # ten times the tolerance


@pytest.mark.parametrize("case", HARD.values(), ids=HARD.keys())
@pytest.mark.filterwarnings("ignore::probcalc.EstimateWarning")
def test_flagged_or_covered(case: Integral):
    result = solve(case)
    assert not result.ok or abs(float(result.value) - case.exact) <= float(result.error)


@pytest.mark.parametrize("name", [name for name in HARD if math.isinf(HARD[name].exact)])
def test_infinite_integrals_are_suspected(name: str):
    with pytest.warns(EstimateWarning, match="looks infinite"):
        result = solve(HARD[name])
    assert result.flags == Status.DIVERGENT
    assert result.error == INF


def normal(x: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    return (-0.5 * ((x - mean) / sd) ** 2).exp() / (sd * math.sqrt(2 * math.pi))


def test_needles_anywhere_are_found(generator: torch.Generator):
    """500 of them at once, down to a ten-thousandth of the interval."""
    b = 500
    sd = 10 ** (torch.rand(b, generator=generator, dtype=torch.float64) * 3 - 4)
    mean = torch.rand(b, generator=generator, dtype=torch.float64)
    result = integrate(normal, torch.zeros(b), torch.ones(b), args=(mean, sd), dtype=torch.float64)
    root = sd * math.sqrt(2)
    exact = 0.5 * (torch.erf((1 - mean) / root) + torch.erf(mean / root))
    assert result.ok
    assert ((result.value - exact).abs() <= result.error.clamp(min=1e-8)).all()


@pytest.mark.parametrize("scale", [1e-3, 3e-4])
def test_needles_on_a_floor_are_seen(scale: float, generator: torch.Generator):
    for place in torch.rand(20, generator=generator, dtype=torch.float64):
        mean, sd = 0.05 + 0.9 * place, torch.tensor(scale, dtype=torch.float64)
        result = integrate(lambda x, m=mean, s=sd: 1 + 0.1 * normal(x, m, s), 0, 1)
        assert abs(float(result.value) - 1.1) <= max(float(result.error), 1e-8)


# name -> (fn of x and two parameters, lower, upper)
FAMILIES = {
    "smooth": (lambda x, a, b: (a * x).sin() + b, 0.0, 2.0),
    "infinite": (lambda x, a, b: (-a * x * x).exp() * b, -INF, INF),
    "half infinite": (lambda x, a, b: (-a * x).exp() * x**b, 0.0, INF),
    "singular": (lambda x, a, b: x ** (-a / 4) * (-b * x).exp(), 0.0, 1.0),
    "vector": (lambda x, a, b: torch.stack([(a * x).exp(), x**b], dim=-1), 0.0, 1.0),
    "complex": (lambda x, a, b: (1j * a * x).exp() * b, 0.0, 1.0),
}


def limits(shape: tuple[int, ...], lower: float, upper: float) -> tuple[Tensor, Tensor]:
    return tuple(torch.full(shape, x, dtype=torch.float64) for x in (lower, upper))


@pytest.mark.parametrize(("fn", "lower", "upper"), FAMILIES.values(), ids=FAMILIES.keys())
def test_a_batch_equals_its_elements(fn, lower, upper, generator: torch.Generator):
    """Whichever way the parameters come."""
    a, b = (0.5 + torch.rand(2, 3, generator=generator, dtype=torch.float64) for _ in range(2))

    both = limits((2, 3), lower, upper)
    gathered = integrate(fn, *both, args=(a, b))
    closed = integrate(lambda x: fn(x, a, b), *both)
    for i in range(2):
        for j in range(3):
            one = integrate(fn, lower, upper, args=(a[i, j], b[i, j]))
            for batch in (gathered, closed):
                error = (batch.value[i, j] - one.value).abs()
                assert (error <= one.error + batch.error[i, j] + 1e-12).all()
    assert gathered.status.shape == gathered.num_evals.shape == (2, 3)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "complex"])
def test_gradients_in_parameters(name: str):
    """First and second order, on a mesh that is held still."""
    fn, lower, upper = FAMILIES[name]
    both = limits((2,), lower, upper)
    a, b = number(0.7, 1.1).requires_grad_(), number(0.6, 1.3).requires_grad_()

    def value(a: Tensor, b: Tensor) -> Tensor:
        return integrate(fn, *both, args=(a, b), rtol=1e-11).value

    assert torch.autograd.gradcheck(value, (a, b))
    assert torch.autograd.gradgradcheck(value, (a, b))


def test_gradients_in_limits():
    """Leibniz's rule, with parameters and limits mixed in the second order."""
    lower, upper = number(0.1, -0.4).requires_grad_(), number(2.0, -1.0).requires_grad_()
    a = number(0.7, 1.1).requires_grad_()

    def value(lower: Tensor, upper: Tensor, a: Tensor) -> Tensor:
        return integrate(lambda x, a: (a * x * x).sin(), lower, upper, args=(a,)).value

    assert torch.autograd.gradcheck(value, (lower, upper, a))
    assert torch.autograd.gradgradcheck(value, (lower, upper, a))


def test_gradients_in_infinite_limits_vanish():
    lower = number(-INF, -INF).requires_grad_()
    upper = number(0.0, INF).requires_grad_()
    value = integrate(lambda x: (-x * x).exp(), lower, upper).value
    by_lower, by_upper = torch.autograd.grad(value.sum(), (lower, upper))
    assert by_lower.tolist() == [0.0, 0.0]
    torch.testing.assert_close(by_upper, number(1.0, 0.0))


def test_gradients_through_a_closure():
    a = number(0.7, 1.1, 2.0).requires_grad_()
    both = limits((3,), 0.0, INF)
    value = integrate(lambda x: (-a * x).exp(), *both).value
    (first,) = torch.autograd.grad(value.sum(), a, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), a)
    torch.testing.assert_close(first, -(a**-2))
    torch.testing.assert_close(second, 2 * a**-3)


def test_torch_func_differentiates_arguments():
    a = number(0.7, 1.1)
    both = limits((2,), 0.0, INF)

    def value(a: Tensor) -> Tensor:
        return integrate(lambda x, a: (-a * x).exp(), *both, args=(a,)).value

    torch.testing.assert_close(torch.func.grad(lambda a: value(a).sum())(a), -(a**-2))
    torch.testing.assert_close(torch.func.jacrev(value)(a), torch.diag(-(a**-2)))
    with pytest.raises(TypeError, match="pass it in `args`"):
        torch.func.grad(lambda a: integrate(lambda x: x * a, 0, 1).value)(a[0])


def test_memory_does_not_grow_with_the_mesh():
    """Neither forwards nor backwards does one call of the integrand see more than a chunk."""
    calls: list[int] = []

    def fn(x: Tensor, a: Tensor) -> Tensor:
        calls.append(x.numel())
        return (a * x).sin() ** 2

    a = number(3000.0).requires_grad_()
    value = integrate(fn, *limits((1,), 0.0, 60.0), args=(a,), max_evals=2**22).value
    forwards = len(calls)
    value.sum().backward()
    assert sum(calls[:forwards]) > 4 * 2**16
    assert len(calls) > forwards
    assert max(calls) <= 2**16
    exact = 30 - (6000 * 60 * torch.ones(())).double().sin() / (4 * 3000)
    assert abs(float(value.detach()) - float(exact)) < 1e-5


def peak(run: Callable[[], object]) -> int:
    """Bytes of tensors that are alive at once on the way, above those before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    live = list(itertools.accumulate(change for _, change in changes))
    return max(live, default=0)


def wave(x: Tensor, a: Tensor) -> Tensor:
    """As many panels as there are oscillations."""
    return (a * x).sin().exp()


def ridges(x: Tensor, a: Tensor) -> Tensor:
    """Kinks across a box."""
    return (x.sum(-1) * a).sin().abs()


@pytest.mark.parametrize(
    ("fn", "dim", "upper", "a", "budgets"),
    [(wave, 0, 300.0, 2e4, (2**21, 2**23)), (ridges, 2, 1.0, 40.0, (2**20, 2**22))],
    ids=["intervals", "boxes"],
)
def test_the_backward_pass_needs_no_more_memory_for_a_finer_mesh(
    fn, dim: int, upper: float, a: float, budgets: tuple[int, int]
):
    peaks, spent = [], []
    for budget in budgets:
        parameter = number(a).requires_grad_()
        shape = (1, dim) if dim else (1,)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EstimateWarning)
            result = integrate(
                fn,
                *limits(shape, 0.0, upper),
                args=(parameter,),
                event_dim=min(dim, 1),
                max_evals=budget,
                rtol=1e-13,
            )
        spent.append(int(result.num_evals))
        peaks.append(peak(result.value.sum().backward))
    assert spent[1] > 3 * spent[0]
    assert peaks[1] < 1.2 * peaks[0]


def test_breaks_belong_to_elements():
    place = number(0.3, 0.6)
    both = limits((2,), 0.0, 1.0)

    def value(**kwargs: object) -> Estimate:
        return integrate(lambda x, p: (x - p).abs() ** -0.5, *both, args=(place,), **kwargs)

    named = value(breaks=place[:, None])
    exact = 2 * (place.sqrt() + (1 - place).sqrt())
    assert_within(named, exact)
    assert (named.num_evals < value().num_evals).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_precision_is_that_of_the_tensors(dtype: torch.dtype):
    seen: set[torch.dtype] = set()

    def fn(x: Tensor) -> Tensor:
        seen.add(x.dtype)
        return x.exp()

    result = integrate(fn, torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype))
    assert result.value.dtype == result.error.dtype == dtype
    assert seen == {dtype}
    assert_within(result, (math.e - 1))
    assert float(result.error) < 20 * torch.finfo(dtype).eps


def test_integers_are_numbers():
    assert float(integrate(lambda x: x, torch.tensor(0), torch.tensor(2)).value) == 2.0


def test_the_flag_of_a_tolerance_is_for_those_who_asked():
    case = HARD["sin(1/t)"]
    assert solve(case).ok
    with pytest.warns(EstimateWarning, match="tolerance asked for was not reached"):
        assert solve(case, rtol=1e-10).flags == Status.TOLERANCE_NOT_REACHED
    loose = integrate(torch.exp, 0, 1, atol=1e-3)
    assert loose.ok
    assert float(loose.error) <= 1e-3


def test_the_budget_holds():
    with pytest.warns(EstimateWarning):
        result = solve(GOOD["97 teeth"], rtol=1e-12, max_evals=20_000)
    assert int(result.num_evals) <= 20_000
    assert_within(result, 48 / 97)


BAD = {
    "NaN limit": (lambda: integrate(torch.exp, 0, math.nan), ValueError, "must not be NaN"),
    "a number": (lambda: integrate(lambda x: 1.0, 0, 1), ValueError, "got float"),
    "shape": (
        lambda: integrate(lambda x: x.sum(), 0, 1),
        ValueError,
        r"must return shape \(n, \*batch, \*out\).*got \(\)",
    ),
    "arguments": (
        lambda: integrate(lambda x, a: x, *limits((2,), 0, 1), args=(torch.ones(3),)),
        ValueError,
        r"`args\[0\]` must start with the batch shape \(2,\).*got shape \(3,\)",
    ),
    "negative tolerance": (lambda: integrate(torch.exp, 0, 1, rtol=-1.0), ValueError, "`rtol`"),
    "no budget": (lambda: integrate(torch.exp, 0, 1, max_evals=0), ValueError, "`max_evals`"),
    "breaks": (
        lambda: integrate(torch.exp, *limits((2,), 0, 1), breaks=torch.ones(3, 1)),
        ValueError,
        r"`breaks` must have shape \(s\) or \(\*batch, s\)",
    ),
    "boxes": (lambda: integrate(torch.exp, 0, 1, event_dim=2), ValueError, "`event_dim`"),
    "devices": (
        lambda: integrate(torch.exp, torch.zeros(2), torch.ones(2, device="meta")),
        ValueError,
        "must be on one device",
    ),
}


@pytest.mark.parametrize(("call", "error", "text"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused(call, error: type, text: str):
    with pytest.raises(error, match=text):
        call()


# mistakes of type, which a checker of annotations meets first, in words of its own
MISTAKES = {
    "no function": (lambda: integrate(3.0, 0, 1), "must be a function, got float"),
    "complex limit": (lambda: integrate(torch.exp, 0, 1j), "`upper` must be real"),
    "arguments, no tuple": (lambda: integrate(lambda x, a: x, 0, 1, args=[1.0]), "a tuple"),
}


@pytest.mark.parametrize(("call", "text"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_of_type_are_refused(call, text: str):
    with pytest.raises(TypeError) as raised:
        call()
    assert re.search(text, str(raised.value)) or "Type-check error" in str(raised.value)
