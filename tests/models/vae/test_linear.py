"""The linear autoencoder against probabilistic principal components, which it cannot beat."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.distributions import MultivariateNormal

import probcalc as pc
from probcalc.models.vae import VAE, Gaussian, Perceptron

BEST, HELD = 14.396965, 13.527041  # nats a row of digits/16, eight components
STEPS = 16_000


@pytest.mark.slow
def test_linear_model_reaches_principal_components():
    """Tipping & Bishop (1999), Probabilistic principal component analysis, section 3."""
    digits = load_digits()
    kept, held = train_test_split(
        range(len(digits.data)), test_size=0.3, random_state=0, stratify=digits.target
    )
    x, other = (torch.tensor(digits.data[rows] / 16).float() for rows in (kept, held))
    fit = VAE(8, Gaussian(), Perceptron(()), Perceptron(())).fit(
        x,
        batch_size=None,
        max_steps=STEPS,
        optimizer=pc.Adam(0.06),
        schedule=pc.CosineSchedule(STEPS),
        generator=torch.Generator().manual_seed(0),
    )
    W, b = fit.chain.decoder[0].weight.double(), fit.chain.decoder[0].bias.double()
    variance = (2 * fit.chain.extra["log_scale"].double()).exp()
    marginal = MultivariateNormal(b, W @ W.T + variance * torch.eye(64, dtype=torch.float64))
    found = float(marginal.log_prob(x.double()).mean())
    assert BEST - 1e-3 < found < BEST + 1e-5
    assert float(marginal.log_prob(other.double()).mean()) == pytest.approx(HELD, abs=0.02)
    # the posterior is the exact one but for the slowest turn of its axes
    elbo = fit.elbo(x, generator=torch.Generator().manual_seed(1))
    assert found - 0.02 - float(elbo.error) < float(elbo.value) < found + float(elbo.error)
