"""The models of machine learning, on the same derivatives, minima and error bars."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "GAN": "probcalc.models.gan",
    "GaussianMixture": "probcalc.models.mixture",
    "LinearRegression": "probcalc.models.linear",
    "LogisticRegression": "probcalc.models.glm",
    "MLP": "probcalc.models.mlp",
    "gradient_flow": "probcalc.models.signal",
    "SoftmaxRegression": "probcalc.models.softmax",
    "PoissonRegression": "probcalc.models.glm",
    "Diffusion": "probcalc.models.diffusion.model",
    "VAE": "probcalc.models.vae.model",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'probcalc.models' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
