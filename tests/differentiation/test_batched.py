from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from probcalc.differentiation.batched import TraceError, agrees, compiled, trace, untraced

D = 6
MATRIX = torch.eye(D).double() + 0.1 * torch.cos(torch.arange(36.0).double()).reshape(D, D)
MATRIX = MATRIX @ MATRIX.mT
LINE = torch.arange(float(D), dtype=torch.float64)
INDEX = torch.tensor([0, 2, 2, 5, 1])
GROUPS = torch.tensor([0, 1, 1, 3, 2, 0])
MASK = torch.tensor([True, False, True, True, False, False])
EXAMPLE = torch.tensor([0.3, -0.2, 0.5, 0.1, -0.4, 0.25], dtype=torch.float64)


def positive(z: Tensor) -> Tensor:
    """A positive definite matrix that depends on z."""
    return MATRIX + z.exp().diag()


def in_place(z: Tensor) -> Tensor:
    y = z.clone()
    y.mul_(2).add_(z)
    y[MASK] = 1.5
    return y.square().sum()


def put(z: Tensor) -> Tensor:
    y = torch.zeros(D, dtype=z.dtype)
    y.index_put_((INDEX,), z[:5].exp(), accumulate=True)
    return y.square().sum()


def normal(loc: Tensor, scale: Tensor) -> torch.distributions.Normal:
    # validation reads values, which a trace cannot
    return torch.distributions.Normal(loc, scale, validate_args=False)


def loop(z: Tensor) -> Tensor:
    total = z.new_zeros(())
    for i in range(D):
        total = total + (z[i] * z[i - 1]).sin()
    return total


# name -> density of one vector of length 6
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quadratic form": lambda z: -0.5 * z @ MATRIX @ z,
    "einsum": lambda z: torch.einsum("i,ij,j->", z, MATRIX, z),
    "reshaped product": lambda z: (z.reshape(2, 3) @ z.reshape(3, 2)).square().sum(),
    "cholesky": lambda z: torch.linalg.cholesky(positive(z)).diagonal().log().sum(),
    "solve": lambda z: torch.linalg.solve(positive(z), z) @ z,
    "triangular solve": lambda z: (
        torch.linalg.solve_triangular(positive(z).tril(), z[:, None], upper=False).square().sum()
    ),
    "log determinant": lambda z: torch.logdet(positive(z)),
    "eigenvalues": lambda z: torch.linalg.eigvalsh(MATRIX + z.diag()).exp().sum(),
    "lgamma": lambda z: torch.lgamma(z.exp()).sum(),
    "digamma": lambda z: torch.digamma(z.exp()).sum(),
    "polygamma": lambda z: torch.polygamma(3, z.exp()).sum(),
    "erf": lambda z: torch.erf(z).sum(),
    "log_ndtr": lambda z: torch.special.log_ndtr(4 * z).sum(),
    "xlogy": lambda z: torch.xlogy(z.exp(), z.exp()).sum(),
    "cumsum": lambda z: z.cumsum(0).square().sum(),
    "cumprod": lambda z: torch.cumprod(1 + z.sigmoid(), 0).log().sum(),
    "product": lambda z: z.prod(),
    "indexing": lambda z: (z[INDEX] ** 3).sum(),
    "gather": lambda z: z.gather(0, INDEX).pow(3).sum(),
    "mask": lambda z: z[MASK].square().sum(),
    "scatter": lambda z: z.new_zeros(4).scatter_add(0, GROUPS, z).square().sum(),
    "index_add": lambda z: z.new_zeros(4).index_add(0, GROUPS, z).pow(3).sum(),
    "slices": lambda z: (z[::2] * z[1::2].flip(0)).sum().sin(),
    "where": lambda z: torch.where(z > 0, z**2, -z).sum(),
    "clamp": lambda z: z.clamp(-0.3, 0.3).square().sum(),
    "max": lambda z: z.max() + z.min() * z.median(),
    "sort": lambda z: (z.sort().values * LINE).sum(),
    "softmax": lambda z: (z.softmax(0) * LINE).sum(),
    "logsumexp": lambda z: torch.logsumexp(z, 0),
    "distances": lambda z: torch.cdist(z.reshape(3, 2), LINE.reshape(3, 2)).neg().exp().sum(),
    "outer": lambda z: torch.tril(torch.outer(z, z)).sin().sum(),
    "convolution": lambda z: torch.conv1d(z[None, None], LINE[None, None, :3]).square().sum(),
    "moments": lambda z: z.mean() * z.var() * z.std(),
    "norm": lambda z: z.norm(),
    "stack": lambda z: torch.stack([z, z**2, z.sin()]).prod(0).sum(),
    "padded": lambda z: torch.nn.functional.pad(z, (2, 3)).cumsum(0).square().sum(),
    "logits": lambda z: torch.nn.functional.binary_cross_entropy_with_logits(
        40 * z, LINE / 5, reduction="sum"
    ),
    "normal": lambda z: normal(z, z.exp()).log_prob(LINE).sum(),
    "multivariate": lambda z: torch.distributions.MultivariateNormal(
        z, positive(z), validate_args=False
    ).log_prob(LINE),
    "dirichlet": lambda z: torch.distributions.Dirichlet(z.exp(), validate_args=False).log_prob(
        torch.full((D,), 1 / D, dtype=torch.float64)
    ),
    "loop": loop,
    "in place": in_place,
    "put in place": put,
    "constant weight": lambda z: z.sum() * 0 + 3.0,
    "number from NumPy": lambda z: z.sum() * float(np.sin(2.0)),
    "power": lambda z: (z**3).sum() + z.pow(2.5 * 2).sum(),
    "integer powers": lambda z: (z ** torch.arange(D)).sum(),
    # sizes and numbers that the batch axis could be mistaken for
    "number 11": lambda z: (z * 11).sin().sum() + 13,
    "power 12": lambda z: (z**12).sum() + (z**14).sum(),
    "axis 11": lambda z: (z.expand(11, D) * torch.arange(11.0)[:, None]).tanh().sum(),
    "axes 11, 13": lambda z: (z[0] * torch.ones(11, 13) + torch.arange(13.0)).sin().sum(),
    "axis 22": lambda z: torch.outer(torch.linspace(0, 1, 22).double(), z).sin().sum(0) @ z,
    "roll by 11": lambda z: (z.repeat(4).roll(11) * torch.arange(24.0)).sin().sum(),
    "slice at 11": lambda z: (z.repeat(4)[11:22] * torch.arange(11.0)).sin().sum(),
    "data of 11 rows": lambda z: (torch.arange(66.0).reshape(11, 6).double() @ z).cos().sum(),
    "data of 1001 rows": lambda z: (
        (torch.arange(6006.0).reshape(1001, 6).double() @ z).cos().sum()
    ),
}
# what vmap can only unroll over the rows of the trace, or a number that only a derivative has
DELICATE = {
    "windows": lambda z: z.unfold(0, 3, 1).prod(-1).sum(),
    "histogram": lambda z: z.sum() * torch.histc(z.detach(), 3)[0],
    "slice assignment": lambda z: filled(z.clone()).square().sum(),
    "entry by entry": lambda z: written(z).square().sum(),
    "zeroed slice": lambda z: z.clone().index_fill_(0, INDEX, 0.0).square().sum(),
    "polygamma 10": lambda z: torch.polygamma(10, 2 + z.exp()).sum() * 1e-6,
    "polygamma 12": lambda z: torch.polygamma(12, 2 + z.exp()).sum() * 1e-8,
}


def written(z: Tensor) -> Tensor:
    y = torch.zeros_like(z)
    for i in range(D):
        y[i] = z[i] * z[i - 1] + z[0]
    return y


def filled(y: Tensor) -> Tensor:
    y[1:3] = 0.5
    y[3:4].zero_()
    return y


def with_by_product(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return lambda z: (fn(z), torch.cat([z.square(), z[:1].exp()]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_traced_equals_plain_torch(name: str, generator: torch.Generator):
    """Value, gradient and by-product of every row, at batch sizes that the trace has not seen."""
    fn = with_by_product(FUNCTIONS[name])
    density = trace(fn, EXAMPLE)
    points = 0.4 * torch.randn(13, D, generator=generator, dtype=torch.float64)
    plain = untraced(fn)
    value, gradient = plain.value_and_grad(points)
    by_product = plain.by_product(points)
    for n in (1, 2, 11, 13):
        got, slope = density.value_and_grad(points[:n])
        close = {"rtol": 1e-10, "atol": 1e-11 * max(1.0, float(gradient.abs().max()))}
        torch.testing.assert_close(got, value[:n], **close)
        torch.testing.assert_close(slope, gradient[:n], **close)
        torch.testing.assert_close(density.value(points[:n]), value[:n], **close)
        torch.testing.assert_close(density.by_product(points[:n]), by_product[:n])
    # a thousand rows are the same rows
    many = density.value_and_grad(points.repeat(77, 1))[1]
    torch.testing.assert_close(many, gradient.repeat(77, 1), **close)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", DELICATE)
def test_a_graph_that_is_wrong_at_other_sizes_never_goes_through(name: str):
    """Refused, or seen by `agrees`, or right: `agrees` itself must not fail on it."""
    fn = with_by_product(DELICATE[name])
    points = EXAMPLE * torch.linspace(0.5, 1.5, 13, dtype=torch.float64)[:, None]
    try:
        density = trace(fn, EXAMPLE)
    except TraceError:
        return
    for n in (1, 3, 13):
        if agrees(density, fn, points[:n]):
            value, gradient = density.value_and_grad(points)
            plain = untraced(fn).value_and_grad(points)
            torch.testing.assert_close(value, plain[0])
            torch.testing.assert_close(gradient, plain[1])


@pytest.mark.parametrize("name", ["quadratic form", "cholesky", "in place", "normal", "padded"])
def test_float32_stays_float32(name: str):
    fn = with_by_product(lambda z: FUNCTIONS[name](z.double()).float())
    density = trace(fn, EXAMPLE.float())
    points = EXAMPLE.float() * torch.linspace(0.5, 1.5, 7)[:, None]
    assert agrees(density, fn, points)
    value, gradient = density.value_and_grad(points)
    assert value.dtype == gradient.dtype == torch.float32


def test_float32_constants_are_promoted():
    """Float32 data in a float64 model cost no precision but their own."""
    weights = torch.full((D,), 0.1)
    fn = with_by_product(lambda z: (z.float() * weights).sum().exp())
    density = trace(fn, EXAMPLE)
    value, gradient = density.value_and_grad(EXAMPLE[None])
    exact = (EXAMPLE * weights.double()).sum().exp()
    assert value.dtype == torch.float64
    torch.testing.assert_close(value[0], exact, rtol=1e-14, atol=0.0)
    torch.testing.assert_close(gradient[0], exact * weights.double(), rtol=1e-14, atol=0.0)
    assert density.is_promoted
    assert agrees(density, fn, EXAMPLE[None])
    assert not trace(with_by_product(FUNCTIONS["norm"]), EXAMPLE).is_promoted


def test_a_trace_keeps_its_own_data():
    """Data changed in place afterwards do not change the graph: `agrees` says so."""
    data = LINE.clone()
    fn = with_by_product(lambda z: (z * data).sum().sin())
    density = trace(fn, EXAMPLE)
    before = density.value(EXAMPLE[None])
    data.mul_(2)
    assert torch.equal(density.value(EXAMPLE[None]), before)
    assert not agrees(density, fn, EXAMPLE[None])


# name -> (function, what the message says)
REFUSED = {
    "branch": (lambda z: z.sum() if z[0] > 0 else -z.sum(), "data-dependent control flow"),
    "item": (lambda z: z.sum() * z[0].item(), "data-dependent control flow"),
    "float": (lambda z: z.sum() * float(z[0]), "data-dependent control flow"),
    "mask of values": (lambda z: z[z > 0].sum(), "dynamic shape"),
    "normal draws": (lambda z: (z * torch.randn(D)).sum(), "draws random numbers"),
    "uniform draws": (lambda z: (z * torch.rand_like(z)).sum(), "draws random numbers"),
    "dropout": (lambda z: torch.dropout(z, 0.5, True).sum(), "draws random numbers"),
    "no scalar": (lambda z: z, "to return a scalar"),
    "own error": (lambda z: z @ torch.ones(3, dtype=z.dtype), "RuntimeError: .*size"),
    "every prime": (
        lambda z: torch.stack([(z[0] * torch.ones(p)).sum() for p in range(98)]).sum(),
        "no batch size that differs from every size",
    ),
}


@pytest.mark.parametrize(("fn", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_traced_says_why(fn: Callable, text: str):
    with pytest.raises(TraceError, match=text) as error:
        trace(lambda z: (fn(z), z), EXAMPLE)
    assert "\n" not in str(error.value)


def broken(z: Tensor) -> Tensor:
    raise ValueError("first line\nsecond line")


def test_an_error_of_the_function_is_quoted():
    with pytest.raises(TraceError, match=r"^ValueError: first line$") as error:
        trace(lambda z: (broken(z), z), EXAMPLE)
    assert isinstance(error.value.__cause__, ValueError)


def through_numpy(z: Tensor) -> Tensor:
    return (z * torch.from_numpy(np.sin(z.detach().numpy()))).sum()


DETOURS = {
    "NumPy": through_numpy,
    "list": lambda z: z.sum() * sum(z.detach().tolist()),
    "shape of the first call": None,
}


def counting() -> Callable[[Tensor], Tensor]:
    calls = []

    def fn(z: Tensor) -> Tensor:
        calls.append(None)
        return z.sum() * len(calls)

    return fn


@pytest.mark.parametrize("name", DETOURS)
def test_detours_that_a_trace_freezes_are_caught(name: str):
    fn = with_by_product(DETOURS[name] or counting())
    density = trace(fn, EXAMPLE)
    assert not agrees(density, fn, torch.stack([EXAMPLE + 0.1, 2 * EXAMPLE]))


def test_agrees_sees_each_of_its_three_parts():
    """A density that differs in value, gradient or by-product only, or in shape."""
    points = torch.stack([EXAMPLE, 2 * EXAMPLE])
    base = lambda z: (z.square().sum(), z)  # noqa: E731
    density = trace(base, EXAMPLE)
    assert agrees(density, base, points)
    assert not agrees(density, lambda z: (z.square().sum() + 1e-9, z), points)
    shifted_slope = lambda z: (z.square().sum() + 1e-9 * (z - z.detach()).sum(), z)  # noqa: E731
    assert not agrees(density, shifted_slope, points)
    assert not agrees(density, lambda z: (z.square().sum(), z + 1e-9), points)
    assert not agrees(density, lambda z: (z.square().sum(), z[:3]), points)


def test_not_a_number_agrees_with_itself_only():
    """NaN where the function is NaN, infinity where it is infinite."""
    fn = lambda z: (z.log().sum(), z)  # noqa: E731
    density = trace(fn, EXAMPLE.abs())
    points = torch.stack([EXAMPLE.abs(), EXAMPLE, torch.zeros(D, dtype=torch.float64)])
    assert agrees(density, fn, points)
    assert not agrees(density, lambda z: (z.abs().log().sum(), z), points)


def test_the_function_is_not_called_again():
    calls = []

    def fn(z: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(None)
        return z.square().sum(), z

    density = trace(fn, EXAMPLE)
    after = len(calls)
    density.value_and_grad(EXAMPLE.expand(5, -1))
    assert len(calls) == after <= 2


def test_second_derivatives_go_through_the_graph():
    density = trace(with_by_product(FUNCTIONS["cholesky"]), EXAMPLE)
    hessian = torch.autograd.functional.hessian(lambda z: density.value(z[None])[0], EXAMPLE)
    exact = torch.func.hessian(FUNCTIONS["cholesky"])(EXAMPLE)
    torch.testing.assert_close(hessian, exact)


def test_memory_of_a_row_grows_with_the_widest_value():
    wide = trace(with_by_product(FUNCTIONS["data of 1001 rows"]), EXAMPLE)
    narrow = trace(with_by_product(FUNCTIONS["norm"]), EXAMPLE)
    assert wide.row_bytes >= 8 * 1001
    assert narrow.row_bytes < 8 * 100


def test_every_route_says_its_name():
    density = trace(with_by_product(FUNCTIONS["norm"]), EXAMPLE)
    assert density.how == "traced graph"
    assert untraced(with_by_product(FUNCTIONS["norm"])).how == "untraced calls"


@pytest.mark.slow
def test_compiled_equals_traced(generator: torch.Generator):
    fn = with_by_product(FUNCTIONS["normal"])
    density = trace(fn, EXAMPLE)
    fast = compiled(density)
    assert fast.how == "compiled graph"
    for n in (1, 2, 50):
        points = torch.randn(n, D, generator=generator, dtype=torch.float64)
        assert agrees(fast, fn, points)
    assert math.isfinite(fast.row_bytes)
