"""A module over rows is the guides of the rows side by side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import probcalc as pc
from probcalc.inference.guides import Amortised, FullRank, LowRank, MeanField, StudentT

F64 = torch.float64
ROWS = torch.tensor([[0.5], [-1.0], [2.0]], dtype=F64)
# family -> module outputs for two latents a row
FAMILIES = {"mean-field": (MeanField(), 4), "full-rank": (FullRank(), 6), "low": (LowRank(1), 6)}


def linear(num_outputs: int, generator: torch.Generator) -> nn.Module:
    module = nn.Linear(1, num_outputs).double()
    for p in module.parameters():
        p.data = 0.4 * torch.randn(p.shape, generator=generator, dtype=F64)
    return module


def normal(dim: int) -> pc.Target:
    return pc.Target.from_log_density(lambda x: -0.5 * x.square().sum(), dim)


def row_guide(family: Any, out: Tensor) -> dict[str, Tensor]:
    """The parameters of one row, read from the module's output by hand."""
    if isinstance(family, FullRank):
        L = torch.stack(
            [torch.stack([out[2].exp(), 0 * out[3]]), torch.stack([out[4], out[5].exp()])]
        )
        return {"loc": out[:2], "scale_tril": L}
    low = {"factor": out[4:].reshape(2, 1)} if isinstance(family, LowRank) else {}
    return {"loc": out[:2], "log_scale": out[2:4], **low}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("start", [0, 1])
def test_it_is_the_product_over_rows(name: str, start: int, generator: torch.Generator):
    """Local latents row after row from `start`, one global coordinate before or after them."""
    family, num_outputs = FAMILIES[name]
    module = linear(num_outputs, generator)
    guide = Amortised(module, ROWS, 2, start=start, family=family)
    params = guide.init(normal(7), generator)
    z = torch.randn(5, 7, generator=generator, dtype=F64)
    local, other = z[:, start : start + 6], z[:, 0 if start else 6]
    shared = {"loc": params["global.loc"], "log_scale": params["global.log_scale"]}
    expected = MeanField().log_prob(shared, other[:, None])
    entropy = MeanField().entropy(shared)
    for i, row in enumerate(ROWS):
        own = row_guide(family, module(row).detach())
        expected = expected + family.log_prob(own, local[:, 2 * i : 2 * i + 2])
        entropy = entropy + family.entropy(own)
    torch.testing.assert_close(guide.log_prob(params, z), expected)
    torch.testing.assert_close(guide.entropy(params), entropy)


def test_the_parameters_do_not_grow_with_the_rows(generator: torch.Generator):
    guide = Amortised(linear(2, generator), ROWS, 1)
    params = guide.init(normal(3), generator)
    assert {k: tuple(v.shape) for k, v in params.items()} == {
        "module.weight": (2, 1),
        "module.bias": (2,),
    }
    more = guide.for_rows(torch.linspace(-1, 1, 50, dtype=F64)[:, None])
    z, _ = more.transform(params, torch.zeros(1, 50, dtype=F64))
    weight, bias = params["module.weight"], params["module.bias"]
    torch.testing.assert_close(z[0], more.data[:, 0] * weight[0, 0] + bias[0])


def test_it_finds_the_exact_posterior_of_every_row(generator: torch.Generator):
    """x_i ~ N(z_i, 1), z_i ~ N(0, 1): the posterior N(x_i/2, 1/2) is linear in the row."""
    x = torch.linspace(-2, 2, 12, dtype=F64)[:, None]

    def log_joint(v: dict[str, Tensor]) -> Tensor:
        return -0.5 * v["z"].square().sum() - 0.5 * (x[:, 0] - v["z"]).square().sum()

    target = pc.Target.from_function(log_joint, {"z": (12,)})
    guide = Amortised(linear(2, generator), x, 1)
    posterior = pc.fit(target, guide=guide, generator=generator)
    own = posterior.params
    torch.testing.assert_close(
        own["module.weight"], torch.tensor([[0.5], [0.0]], dtype=F64), rtol=0, atol=1e-3
    )
    half = 0.5 * torch.tensor(0.5, dtype=F64).log()
    bias = torch.stack([torch.zeros_like(half), half])
    torch.testing.assert_close(own["module.bias"], bias, rtol=0, atol=1e-3)


def test_bad_settings_are_refused(generator: torch.Generator):
    with pytest.raises(TypeError, match="must be MeanField, FullRank or LowRank, got StudentT"):
        Amortised(linear(2, generator), ROWS, 1, family=StudentT())
    with pytest.raises(ValueError, match=r"a row to 4 numbers \(loc \(2,\), log_scale \(2,\)\)"):
        Amortised(linear(2, generator), ROWS, 2)
    with pytest.raises(ValueError, match="`local_dim` must be at least 1, got 0"):
        Amortised(linear(2, generator), ROWS, 0)
    with pytest.raises(ValueError, match="need a vector of at least 4, the target has 3"):
        Amortised(linear(2, generator), ROWS, 1, start=1).init(normal(3), generator)
