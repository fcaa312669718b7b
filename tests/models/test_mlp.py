"""Perceptrons: backpropagation written out is autograd, starts keep variances, fits fit."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_digits

import probcalc as pc
from probcalc.differentiation.activations import (
    ACTIVATIONS,
    GELU,
    Identity,
    ReLU,
    Sigmoid,
    Tanh,
)
from probcalc.models.mlp import MLP
from probcalc.models.signal import gradient_flow


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("loss", ["squares", "cross-entropy"])
def test_backpropagation_is_autograd(name: str, loss: str, generator: torch.Generator):
    net = MLP((3, 7, 5, 4), ACTIVATIONS[name]())
    params = net.init(generator, torch.float64)
    params = {k: (v + 0.1).requires_grad_() for k, v in params.items()}
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    hot = torch.nn.functional.one_hot(y, 4).double()
    out = net(params, x)
    if loss == "squares":
        (0.5 * (out - hot).square().sum()).backward()
        found = net.backpropagate(params, x, lambda out: out - hot)
    else:
        torch.nn.functional.cross_entropy(out, y, reduction="sum").backward()
        found = net.backpropagate(params, x, lambda out: out.softmax(dim=-1) - hot)
    for key, p in params.items():
        torch.testing.assert_close(found[key], p.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives_by_formula_are_autograd_s(name: str):
    activation = ACTIVATIONS[name]()
    x = torch.cat([torch.linspace(-40, 40, 401), torch.tensor([1e-8, -1e-8, 0.0])]).double()
    leaf = x.clone().requires_grad_()
    activation(leaf).sum().backward()
    torch.testing.assert_close(activation.derivative(x), leaf.grad, rtol=1e-9, atol=1e-15)
    peer = {
        "Tanh": torch.tanh,
        "Sigmoid": torch.sigmoid,
        "ReLU": torch.relu,
        "LeakyReLU": torch.nn.functional.leaky_relu,
        "ELU": torch.nn.functional.elu,
        "Softplus": torch.nn.functional.softplus,
        "SiLU": torch.nn.functional.silu,
        "GELU": torch.nn.functional.gelu,
        "Identity": lambda t: t,
    }[name]
    torch.testing.assert_close(activation(x), peer(x), rtol=1e-8, atol=1e-8)


def test_starts_keep_variances():
    """Of sums through forty wide layers: He's with rectifiers, Xavier's with no activation."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 400, generator=generator)
    for activation, he in ((ReLU(), True), (Identity(), False)):
        net = MLP((400,) * 41, activation, he)
        out = net(net.init(generator), x)
        # the last sums are of rectified inputs with half their second moment and twice the weight
        assert 0.4 < float(out.var()) < 2.5
    shrunk = MLP((400,) * 41, ReLU(), he=False)
    assert float(shrunk(shrunk.init(generator), x).var()) < 1e-9


FLOWS = {
    "He": (ReLU(), math.sqrt(2), 1.0, "keeps its size"),
    "Xavier's with rectifiers": (ReLU(), 1.0, 0.5, "vanishes"),
    "straight": (Identity(), 1.0, 1.0, "keeps its size"),
    "too large": (Tanh(), 3.0, None, "explodes"),
    "sigmoid": (Sigmoid(), 1.0, None, "vanishes"),
    "GELU": (GELU(), 1.0, None, "vanishes"),
}


@pytest.mark.parametrize(("activation", "gain", "factor", "verdict"), FLOWS.values(), ids=FLOWS)
def test_the_depth_that_gradients_reach(activation, gain: float, factor, verdict: str):
    flow = gradient_flow(activation, weight_gain=gain)
    assert flow.verdict == verdict
    if verdict == "keeps its size":
        assert flow.settled
    if factor is not None:
        assert flow.factor == pytest.approx(factor, abs=1e-9)


def test_a_variance_that_does_not_come_to_rest_says_so():
    """Tanh at a gain of one: q falls like 1/n, for ever, and χ creeps up to one."""
    flow = gradient_flow(Tanh(), weight_gain=1.0)
    assert not flow.settled
    assert 0.99 < flow.factor < 1


def test_a_wide_network_has_the_factor_foretold():
    """Squared gradients of thirty sigmoid layers of a thousand, layer by layer."""
    generator = torch.Generator().manual_seed(3)
    flow = gradient_flow(Tanh(), weight_gain=1.5, bias_std=0.3)
    net = MLP((1000,) * 31, Tanh(), he=False)
    params = net.init(generator)
    params = {k: 1.5 * v for k, v in params.items()}
    for key in params:
        if key.startswith("bias"):
            params[key] = 0.3 * torch.randn(1000, generator=generator)
    x = torch.randn(20, 1000, generator=generator)
    slopes = net.backpropagate(params, x, lambda out: torch.randn(out.shape, generator=generator))
    size = [float(slopes[f"bias{k}"].square().sum()) for k in range(30)]
    found = (size[5] / size[25]) ** (1 / 20)
    assert found == pytest.approx(flow.factor, rel=0.03)


def test_digits():
    x, y = load_digits(return_X_y=True)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    fit = MLP((64, 64, 10), ReLU()).fit(
        x[:1400],
        y[:1400],
        penalty=1e-3,
        max_epochs=40,
        ema=0.99,
        optimizer=pc.Adam(3e-3),
        generator=torch.Generator().manual_seed(0),
    )
    assert fit.ok
    assert fit.score(x[1400:], y[1400:]) > 0.96
    assert torch.equal(fit.predict_proba(x[:5]).argmax(dim=1), fit.predict(x[:5]))


def test_a_network_approximates_a_function():
    x = torch.linspace(-3, 3, 300, dtype=torch.float64)[:, None]
    y = (2 * x).sin() + 0.5 * x
    fit = MLP((1, 64, 1)).fit(
        x,
        y,
        batch_size=None,
        max_steps=3000,
        schedule=pc.CosineSchedule(3000),
        generator=torch.Generator().manual_seed(0),
    )
    assert fit.score(x, y) > 0.995
    with pytest.raises(ValueError, match="numbers, not classes"):
        fit.predict_proba(x)


def test_attributions_sum_to_the_change():
    net = MLP((4, 16, 1))
    params = net.init(torch.Generator().manual_seed(1), torch.float64)
    fn = lambda x: net(params, x[None])[0, 0]
    x, baseline = torch.tensor([1.0, -2.0, 0.5, 3.0]).double(), torch.ones(4).double()
    found = pc.integrated_gradients(fn, x, baseline, rtol=1e-9)
    assert found.ok
    assert float(found.values.sum()) == pytest.approx(float(fn(x) - fn(baseline)), rel=1e-8)
    assert float(found.values[0]) == 0  # a feature that does not change has no share
    linear = pc.integrated_gradients(lambda x: (torch.arange(4) * x).sum(), x)
    torch.testing.assert_close(linear.values, torch.arange(4) * x)
    kink = pc.integrated_gradients(
        lambda x: (50 * (x - 0.77)).sigmoid().sum() * 1e3, x, rtol=1e-12
    )
    assert kink.gap < 1e-6


BAD = {
    "columns": (lambda: MLP((3, 1)).fit(torch.ones(5, 2), torch.ones(5, 1)), "3 inputs"),
    "label": (
        lambda: MLP((2, 3)).fit(torch.eye(2), torch.tensor([0, 3])),
        "labels must be 0 to 2, got 3",
    ),
    "targets": (lambda: MLP((2, 3)).fit(torch.eye(2), torch.ones(2, 1)), r"shape \(2, 3\)"),
    "NaN": (lambda: MLP((2, 3)).fit(torch.eye(2) / 0, torch.tensor([0, 1])), "finite"),
    "empty": (lambda: MLP((2, 3)).fit(torch.ones(0, 2), torch.ones(0, 3)), "no rows"),
    "widths": (lambda: MLP((2,)), "`widths`"),
    "gain": (lambda: gradient_flow(Tanh(), weight_gain=-1.0), "positive"),
    "baseline": (
        lambda: pc.integrated_gradients(torch.sum, torch.ones(2), torch.ones(3)),
        "shape",
    ),
}


@pytest.mark.parametrize(("call", "text"), BAD.values(), ids=BAD)
def test_mistakes_are_named(call, text: str):
    with pytest.raises(ValueError, match=text):
        call()
