r"""Multilayer perceptrons, with backpropagation written out beside autograd.

    a⁰ = x,   zˡ = aˡ⁻¹ Wˡᵀ + bˡ,   aˡ = φ(zˡ),   the last layer without φ
    δᴸ = ∂loss/∂zᴸ,   δˡ = (δˡ⁺¹ Wˡ⁺¹) ⊙ φ′(zˡ),   ∂loss/∂Wˡ = δˡᵀ aˡ⁻¹,   ∂loss/∂bˡ = Σ δˡ

Rumelhart, Hinton & Williams (1986), Nature 323. Weights start at variance 2/(in + out) (Glorot &
Bengio 2010, equation 16) or 2/in for rectifiers (He et al. 2015, equation 10).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from probcalc._random import child, draw_seed
from probcalc.differentiation.activations import Activation, ReLU, Tanh
from probcalc.models.design import checked_rows
from probcalc.optimization.first_order import Adam
from probcalc.training.loop import TrainResult, train

Params = dict[str, Tensor]


@dataclass(frozen=True)
class MLP:
    """The network.

    Args:
        widths: Inputs, hidden layers, outputs.
        activation: φ of hidden layers.
        he: Whether weights start as for rectifiers; default where φ is `ReLU`.

    >>> net = MLP((1, 16, 1))
    >>> params = net.init(torch.Generator().manual_seed(0))
    >>> net(params, torch.zeros(5, 1)).shape
    torch.Size([5, 1])
    """

    widths: tuple[int, ...]
    activation: Activation = Tanh()  # noqa: RUF009
    he: bool | None = None

    def __post_init__(self) -> None:
        """Check the widths.

        Raises:
            ValueError: If there are fewer than two, or one is not positive.
        """
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ValueError(
                f"`widths` must be inputs, hidden layers and outputs, got {self.widths}."
            )

    @property
    def num_layers(self) -> int:
        """Layers with weights."""
        return len(self.widths) - 1

    def init(
        self, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
    ) -> Params:
        """Random weights and biases of zero."""
        stream = child(draw_seed(generator), 0)
        he = isinstance(self.activation, ReLU) if self.he is None else self.he
        params: Params = {}
        for layer in range(self.num_layers):
            fan_in, fan_out = self.widths[layer], self.widths[layer + 1]
            variance = 2 / fan_in if he else 2 / (fan_in + fan_out)
            draw = torch.randn(fan_out, fan_in, generator=stream, dtype=torch.float64)
            params[f"weight{layer}"] = (math.sqrt(variance) * draw).to(dtype)
            params[f"bias{layer}"] = torch.zeros(fan_out, dtype=dtype)
        return params

    def __call__(self, params: Params, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        """Outputs of rows."""
        for layer in range(self.num_layers):
            x = torch.nn.functional.linear(x, params[f"weight{layer}"], params[f"bias{layer}"])
            if layer < self.num_layers - 1:
                x = self.activation(x)
        return x

    def backpropagate(
        self, params: Params, x: Float[Tensor, "n i"], delta_of: Callable[[Tensor], Tensor]
    ) -> Params:
        """Slopes of a loss by the recursion written out, without autograd.

        Args:
            params: Weights and biases.
            x: Rows.
            delta_of: From outputs to the slope of the loss in them, same shape.
        """
        with torch.no_grad():
            inputs, sums = [x], []
            for layer in range(self.num_layers):
                z = inputs[-1] @ params[f"weight{layer}"].T + params[f"bias{layer}"]
                sums.append(z)
                inputs.append(self.activation(z) if layer < self.num_layers - 1 else z)
            delta = delta_of(inputs[-1])
            slopes: Params = {}
            for layer in reversed(range(self.num_layers)):
                slopes[f"weight{layer}"] = delta.T @ inputs[layer]
                slopes[f"bias{layer}"] = delta.sum(dim=0)
                if layer:
                    slope = self.activation.derivative(sums[layer - 1])
                    delta = (delta @ params[f"weight{layer}"]) * slope
        return {name: slopes[name] for name in params}

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        penalty: float = 0.0,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> MLPFit:
        """Train on rows: labels by cross-entropy, numbers by squared error.

        Columns are standardised first, and numbers to be predicted too.

        Args:
            x: Shape ``(n, i)``.
            y: Labels, integers ``(n)`` below the number of outputs, or numbers ``(n, o)``.
            penalty: Of ½ times the squares of the weights, for the mean loss.
            generator: Source of the start and of the order of rows.
            **settings: Of `train`; by default Adam at 1e-2, batches of 64, 200 epochs.

        Raises:
            ValueError: If shapes do not match the widths, or a label is out of range.
        """
        x = checked_rows(x)
        labels = not y.is_floating_point()
        _check_targets(y, labels, x, self.widths)
        shift, scale = x.mean(dim=0), _spread(x)
        low, wide = (x.new_zeros(()), x.new_ones(())) if labels else (y.mean(0), _spread(y))
        inputs = ((x - shift) / scale).float()
        targets = y.long() if labels else ((y - low) / wide).float()
        stream = child(draw_seed(generator), 0)

        def objective(params: Params, batch: Any, _: torch.Generator) -> Tensor:
            out = self(params, batch[0])
            loss = cross_entropy(out, batch[1]) if labels else (out - batch[1]).square().mean()
            if penalty:
                squares = [p.square().sum() for k, p in params.items() if k.startswith("w")]
                loss = loss + 0.5 * penalty * sum(squares)
            return loss

        chosen = {"optimizer": Adam(1e-2), "batch_size": 64, **settings}
        if not chosen.keys() & {"max_epochs", "max_steps"}:
            chosen["max_epochs"] = 200
        result = train(objective, self.init(stream), (inputs, targets), generator=stream, **chosen)
        params = result.averaged or result.params
        return MLPFit(self, params, (shift, scale), (low, wide), labels, result)


def _check_targets(y: Tensor, labels: bool, x: Tensor, widths: tuple[int, ...]) -> None:
    if x.shape[1] != widths[0]:
        raise ValueError(f"the network has {widths[0]} inputs, and `x` {x.shape[1]} columns.")
    want = (len(x),) if labels else (len(x), widths[-1])
    if tuple(y.shape) != want:
        raise ValueError(f"`y` must have shape {want}, got {tuple(y.shape)}.")
    if labels and (int(y.min()) < 0 or int(y.max()) >= widths[-1]):
        bad = y[(y < 0) | (y >= widths[-1])][0]
        raise ValueError(f"labels must be 0 to {widths[-1] - 1}, got {int(bad)}.")


def _spread(t: Tensor) -> Tensor:
    """Standard deviations; one where a column is constant."""
    sd = t.std(dim=0, unbiased=False)
    return torch.where(sd > 0, sd, 1.0)


@dataclass(frozen=True, eq=False)
class MLPFit:
    """A network that is trained.

    Args:
        network: Its shape.
        params: Weights and biases, moving averages where they were asked for.
        inputs: Mean and standard deviation of the columns.
        outputs: Of the numbers to be predicted.
        labels: Whether it tells classes apart.
        training: How it went.
    """

    network: MLP
    params: Params
    inputs: tuple[Tensor, Tensor]
    outputs: tuple[Tensor, Tensor]
    labels: bool
    training: TrainResult

    @property
    def ok(self) -> bool:
        """Whether training met nothing that is not finite."""
        return self.training.ok

    def _outputs(self, x: Tensor) -> Tensor:
        shift, scale = self.inputs
        return self.network(self.params, ((x.double() - shift) / scale).float()).double()

    def predict_proba(self, x: Float[Tensor, "m i"]) -> Float[Tensor, "m o"]:
        """Probabilities of the classes.

        Raises:
            ValueError: If the network predicts numbers.
        """
        if not self.labels:
            raise ValueError("this network predicts numbers, not classes.")
        return self._outputs(x).softmax(dim=1)

    def predict(self, x: Float[Tensor, "m i"]) -> Float[Tensor, "m o"] | Int[Tensor, " m"]:
        """The likeliest class, or the numbers."""
        out = self._outputs(x)
        return out.argmax(dim=1) if self.labels else out * self.outputs[1] + self.outputs[0]

    def score(self, x: Float[Tensor, "m i"], y: Tensor) -> float:
        """Share of rows whose class is predicted, or R² of the numbers."""
        found = self.predict(x)
        if self.labels:
            return float((found == y).double().mean())
        rest = (found - y).square().sum()
        return float(1 - rest / (y - y.mean(dim=0)).square().sum())
