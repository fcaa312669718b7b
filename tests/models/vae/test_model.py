"""Laws of the autoencoder, on small data."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import assert_within
from torch import Tensor, nn

import probcalc as pc
from probcalc.models.vae.chain import Chain, ChainGuide, TopDown
from probcalc.models.vae.discretized import DiscretizedLogistic
from probcalc.models.vae.likelihoods import Bernoulli, Categorical, Gaussian
from probcalc.models.vae.model import VAE
from probcalc.models.vae.networks import Convolutional, Perceptron
from probcalc.models.vae.priors import FlowPrior, LearnedNormal, VampPrior
from probcalc.training.checkpoint import CheckpointError

F64 = {"dtype": torch.float64}
QUICK = {"max_steps": 40, "batch_size": 32}


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def stripes(n: int = 200, side: int = 6) -> Tensor:
    """Binary pictures with one bright column, and some noise."""
    generator = seed(5)
    x = (torch.rand(n, side, side, generator=generator) < 0.05).float()
    x[torch.arange(n), :, torch.randint(side, (n,), generator=generator)] = 1.0
    return x


STRIPES = stripes()
MODELS: dict[str, VAE] = {
    "one level": VAE(3),
    "ladder": VAE((4, 2)),
    "top-down": VAE((4, 3, 2), merge=TopDown()),
    "learned prior": VAE(3, prior=LearnedNormal()),
    "VampPrior": VAE(3, prior=VampPrior(10)),
    "flow prior": VAE(3, prior=FlowPrior(2, (8,))),
    "flow prior, one latent": VAE(1, prior=FlowPrior(2, (8,))),
    "ladder under VampPrior": VAE((3, 2), prior=VampPrior(7)),
    "convolutions": VAE(3, encoder=Convolutional((4, 8), 16), decoder=Convolutional((4, 8), 16)),
    "linear": VAE(2, Gaussian(), encoder=Perceptron(()), decoder=Perceptron(())),
    "categorical": VAE(2, Categorical(2)),
    "mixture of logistics": VAE(2, DiscretizedLogistic(2, num_components=2)),
    "importance weighted": VAE(3, objective=pc.ImportanceWeighted(4)),
    "importance weighted ladder": VAE((3, 2), objective=pc.ImportanceWeighted(4)),
    "sticking the landing": VAE(3, objective=pc.ELBO(pc.StickTheLanding())),
    "Rényi": VAE(3, objective=pc.Renyi(0.5, 4)),
    "warm-up": VAE(3, beta=lambda step: min(1.0, step / 20)),
    "free nats": VAE(3, free_nats=0.5),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_and_answers(name: str):
    model = MODELS[name]
    before = model.fit(STRIPES, max_steps=1, batch_size=64, generator=seed())
    fit = model.fit(STRIPES, max_steps=150, batch_size=64, generator=seed())
    assert fit.ok
    gain = fit.elbo(STRIPES, generator=seed()).value - before.elbo(STRIPES, generator=seed()).value
    assert float(gain) > 0.0
    q = fit.encode(STRIPES)
    assert q.mean.shape == q.stddev.shape == (200, sum(model.dims))
    assert fit.reconstruct(STRIPES).shape == STRIPES.shape
    draws = fit.sample(7, generator=seed(1))
    assert draws.shape == (7, 6, 6)
    assert torch.equal(draws, fit.sample(7, generator=seed(1)))
    model.likelihood.check(draws.flatten(1))
    assert fit.sample(7, mean=True, generator=seed(1)).shape == (7, 6, 6)


@pytest.mark.parametrize("name", ["one level", "top-down", "VampPrior", "flow prior", "ladder"])
def test_importance_weights_find_the_evidence_above_the_bound(name: str):
    """Bounds rise with the number of draws; one draw is the ELBO."""
    fit = MODELS[name].fit(STRIPES, max_steps=60, batch_size=64, generator=seed())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pc.EstimateWarning)  # half trained: heavy tails are fine
        found = fit.log_likelihood(STRIPES, num_importance=1_000, generator=seed())
    curve = list(found.diagnostics["curve"].values())
    assert curve == sorted(curve)  # of the same draws, in groups
    elbo = fit.elbo(STRIPES, num_draws=200, generator=seed())
    assert float(elbo.value) < float(found.value) + float(found.error) + float(elbo.error)
    assert found.diagnostics["each"].shape == found.diagnostics["ess"].shape == (200,)
    slack = 4 * float(found.diagnostics["data_std_error"])
    assert math.isclose(curve[0], float(elbo.value), abs_tol=slack)


def exact_linear(chain: Chain, x: Tensor) -> tuple[Tensor, Tensor]:
    """ln p(x) of rows, and KL(q(z|x) ‖ p(z|x)), where the decoder is linear."""
    W, b = chain.decoder[0].weight, chain.decoder[0].bias
    variance = (2 * chain.extra["log_scale"]).exp()
    eye = torch.eye(len(b), **F64)
    marginal = torch.distributions.MultivariateNormal(b, W @ W.T + variance * eye)
    precision = W.T @ W / variance + torch.eye(W.shape[1], **F64)
    loc = torch.linalg.solve(precision, W.T @ (x - b).T / variance).T
    exact = torch.distributions.MultivariateNormal(loc, precision_matrix=precision)
    q = chain.evidence(x, (x.shape[1],), None)["level0"].chunk(2, dim=1)
    guide = torch.distributions.MultivariateNormal(q[0], torch.diag_embed((2 * q[1]).exp()))
    return marginal.log_prob(x), torch.distributions.kl_divergence(guide, exact)


def test_linear_model_bound_is_evidence_minus_divergence():
    """Exact with draws whose first two moments are those of the normal: all is quadratic."""
    x = torch.randn(50, 5, generator=seed(), **F64) @ torch.randn(5, 5, generator=seed(1), **F64)
    settings = {"max_steps": 600, "batch_size": None, "optimizer": pc.Adam(2e-2)}
    fit = MODELS["linear"].fit(x, **settings, generator=seed())
    chain, d = fit.chain, 2
    eps = math.sqrt(d) * torch.cat([torch.eye(d, **F64), -torch.eye(d, **F64)]).expand(50, -1, -1)
    bound = chain.bound(x, chain.evidence(x, (5,), None), eps, None).elbo.mean(dim=1)
    log_p, divergence = exact_linear(chain, x)
    torch.testing.assert_close(bound, log_p - divergence, rtol=0, atol=1e-6)
    assert float(divergence.min()) > 0
    found = fit.log_likelihood(x, num_importance=4_000, confidence=1 - 5e-7, generator=seed())
    assert_within(found, log_p.mean())


def test_free_bound_and_guide_agree_on_densities():
    """ln w of draws from the guide is the bound's integrand: means agree draw by draw."""
    fit = MODELS["top-down"].fit(STRIPES, **QUICK, generator=seed())
    chain, x = fit.chain, STRIPES.flatten(1)
    evidence = chain.evidence(x, (6, 6), None)
    eps = torch.randn(200, 3, 9, generator=seed())
    guide = ChainGuide(chain)
    z, log_q = guide.transform(evidence, eps)
    torch.testing.assert_close(guide.log_prob(evidence, z), log_q, rtol=1e-4, atol=1e-4)


def test_gradients_of_the_bounds_agree_in_the_mean():
    """Doubly reparametrised and total gradients, of encoder and decoder alike."""
    x = STRIPES.double()[:5]
    chain = VAE(2, encoder=Perceptron((4,)), decoder=Perceptron((4,)))._built(x, 0, seed=0)
    chain = chain.double()
    flat, n = x.flatten(1), 40_000
    eps = torch.randn(5, n, 2, generator=seed(), **F64)
    means, errors = [], []
    for doubly in (True, False):
        objective = pc.ImportanceWeighted(4, doubly_reparametrised=doubly)
        blocks = []
        for part in eps.chunk(20, dim=1):
            evidence = chain.evidence(flat, (6, 6), None)
            joint = lambda z: chain.log_prior(z) + chain.reconstruction(z, flat, None)  # noqa: E731
            value = objective.terms(joint, ChainGuide(chain), evidence, part).mean()
            wanted = [chain.heads[0].weight, chain.decoder[0].weight]
            blocks.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, wanted)]))
        blocks = torch.stack(blocks)
        means.append(blocks.mean(dim=0))
        errors.append(blocks.std(dim=0) / math.sqrt(20))
    z = (means[0] - means[1]) / torch.hypot(*errors)
    assert float(z[: 4 * 4].square().mean().sqrt()) < 2.0  # of the encoder: other noise
    torch.testing.assert_close(means[0][16:], means[1][16:])  # of the decoder: the same


def test_runs_that_are_stopped_go_on_bit_for_bit(tmp_path: Path):
    settings = {"batch_size": 32, "folder": tmp_path, "save_every": 10}
    model = MODELS["warm-up"]
    whole = model.fit(STRIPES, max_steps=40, batch_size=32, generator=seed())
    model.fit(STRIPES, max_steps=17, generator=seed(), optimizer=pc.Adam(2e-3), **settings)
    again = {"optimizer": pc.Adam(2e-3), "resume": True, **settings}
    part = model.fit(STRIPES, max_steps=40, generator=seed(), **again)
    straight = model.fit(
        STRIPES, max_steps=40, batch_size=32, optimizer=pc.Adam(2e-3), generator=seed()
    )
    for name, value in straight.chain.state_dict().items():
        assert torch.equal(value, part.chain.state_dict()[name]), name
    assert whole.training.num_steps == part.training.num_steps == 40


@pytest.mark.parametrize("name", ["top-down", "VampPrior", "flow prior", "convolutions", "linear"])
def test_saved_models_are_the_same(name: str, tmp_path: Path):
    fit = MODELS[name].fit(STRIPES, **QUICK, generator=seed())
    fit.save(tmp_path)
    back = MODELS[name].load(tmp_path)
    assert torch.equal(back.encode(STRIPES).mean, fit.encode(STRIPES).mean)
    assert torch.equal(back.sample(5, generator=seed()), fit.sample(5, generator=seed()))
    with pytest.raises(ValueError, match="another model"):
        VAE(7).load(tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CheckpointError):
        MODELS[name].load(tmp_path)


def test_conditions_steer_the_pictures(tmp_path: Path):
    """Told the column, the model draws it."""
    column = torch.arange(200) % 6
    x = torch.zeros(200, 6, 6)
    x[torch.arange(200), :, column] = 1.0
    told = nn.functional.one_hot(column, 6).float()
    fit = VAE(1).fit(x, condition=told, max_steps=300, batch_size=64, generator=seed())
    fit.save(tmp_path)
    fit = VAE(1).load(tmp_path)
    drawn = fit.sample(6, condition=torch.eye(6), mean=True, generator=seed())
    assert drawn.mean(dim=1).argmax(dim=1).tolist() == list(range(6))
    assert bool(fit.log_likelihood(x, condition=told, num_importance=1_000, generator=seed()).ok)


def test_own_modules_are_copied_and_trained():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(36, 6))
    decoder = nn.Sequential(nn.Linear(3, 36), nn.Unflatten(1, (6, 6)))
    before = encoder[1].weight.clone()
    fit = VAE(3, encoder=encoder, decoder=decoder).fit(STRIPES, **QUICK, generator=seed())
    assert torch.equal(encoder[1].weight, before)
    assert not torch.equal(fit.chain.bodies[0][1].weight, before)
    assert [name for name, _ in fit.chain.decoder.named_parameters()] == ["0.weight", "0.bias"]
    wide = nn.Sequential(nn.Flatten(), nn.Linear(36, 10))
    assert VAE(3, encoder=wide).fit(STRIPES, **QUICK, generator=seed()).ok


def test_collapse_is_named():
    """A penalty of a hundred times the rate switches every latent off."""
    fit = VAE(3, beta=100.0).fit(STRIPES, max_steps=200, batch_size=64, generator=seed())
    found = fit.diagnose(STRIPES, generator=seed())
    assert found.is_collapsed
    assert found.active_units == 0
    assert "Collapsed" in str(found)
    alive = MODELS["one level"].fit(STRIPES, max_steps=600, batch_size=64, generator=seed())
    found = alive.diagnose(STRIPES, generator=seed())
    assert not found.is_collapsed
    assert found.active_units >= 1
    assert 0.5 < found.information <= math.log(200)
    assert found.elbo == pytest.approx(-float(found.rate.sum()) - found.distortion)
    # the information is part of the rate
    assert found.information < float(found.rate.sum()) + 0.3


def bad(**changes: Any) -> dict[str, Any]:
    return {"x": STRIPES, "model": VAE(2), **changes}


GREY, HOLE = STRIPES * 0.5, STRIPES.clone()
HOLE[3, 1, 2] = torch.nan
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "grey pixels": (bad(x=GREY), "grey"),
    "NaN": (bad(x=HOLE), "3, 1, 2|NaN|nan"),
    "no rows": (bad(x=STRIPES[:0]), "at least 1"),
    "a single axis": (bad(x=STRIPES[0, 0]), "rows"),
    "wrong decoder": (bad(model=VAE(2, decoder=nn.Linear(2, 35))), "35"),
    "wrong encoder": (bad(model=VAE(2, encoder=nn.Linear(6, 4))), "features"),
    "no images": (bad(x=STRIPES.flatten(1), model=VAE(2, encoder=Convolutional())), "images"),
    "too many layers": (bad(model=VAE(2, decoder=Convolutional((4,) * 5))), "halvings"),
    "condition of another length": (bad(condition=torch.zeros(3, 2)), "condition"),
}


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_mistakes_are_named(changes: dict[str, Any], words: str):
    arguments = dict(changes)
    model = arguments.pop("model")
    with pytest.raises(ValueError, match=words):
        model.fit(**arguments, **QUICK, generator=seed())


SETTINGS: dict[str, dict[str, Any]] = {
    "no latents": {"latent_dim": 0},
    "negative floor": {"free_nats": -1.0},
    "two weights of the KL": {"objective": pc.ImportanceWeighted(3), "beta": 2.0},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_settings_are_checked(settings: dict[str, Any]):
    with pytest.raises(ValueError, match="VAE|beta"):
        VAE(**settings)


def test_rows_of_another_shape_are_refused_afterwards():
    fit = VAE(2).fit(STRIPES, **QUICK, generator=seed())
    with pytest.raises(ValueError, match=r"\(6, 6\)"):
        fit.encode(STRIPES[:, :5])
    with pytest.raises(ValueError, match="grey"):
        fit.log_likelihood(GREY)
    with pytest.raises(ValueError, match="at least 2"):
        fit.log_likelihood(STRIPES, num_importance=1)


def test_batches_larger_than_the_data_are_the_data():
    fit = VAE(2).fit(STRIPES, max_steps=3, batch_size=10_000, generator=seed())
    assert fit.training.num_steps == 3


def test_dynamic_pixels_are_drawn_in_training_and_evaluation():
    model = VAE(2, Bernoulli(dynamic=True))
    fit = model.fit(GREY, **QUICK, generator=seed())
    a, b = (float(fit.elbo(GREY, generator=seed(i)).value) for i in (0, 1))
    assert a != b
