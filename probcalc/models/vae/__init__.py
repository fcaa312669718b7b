"""Variational autoencoders: likelihoods, networks, priors, and the model that joins them."""

from __future__ import annotations

from probcalc.models.vae.chain import Ladder, TopDown
from probcalc.models.vae.discretized import DiscretizedLogistic
from probcalc.models.vae.fitted import VAEFit
from probcalc.models.vae.latents import BernoulliLatents, CategoricalLatents, NormalLatents
from probcalc.models.vae.likelihoods import Bernoulli, Binomial, Categorical, Gaussian
from probcalc.models.vae.model import VAE
from probcalc.models.vae.networks import Convolutional, Perceptron
from probcalc.models.vae.priors import FlowPrior, LearnedNormal, StandardNormal, VampPrior

__all__ = [
    "VAE",
    "Bernoulli",
    "BernoulliLatents",
    "Binomial",
    "Categorical",
    "CategoricalLatents",
    "Convolutional",
    "DiscretizedLogistic",
    "FlowPrior",
    "Gaussian",
    "Ladder",
    "LearnedNormal",
    "NormalLatents",
    "Perceptron",
    "StandardNormal",
    "TopDown",
    "VAEFit",
    "VampPrior",
]
