"""What ArviZ gets is the posterior, its log densities and its verdict, in both generations."""

from __future__ import annotations

import builtins
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from problems import linear_model

import probcalc as pc
from probcalc.inference.inference_data import to_inference_data
from probcalc.inference.information import loo
from probcalc.inference.predictive import predict

X, Y = linear_model.data()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def posterior() -> pc.Posterior:
    target = pc.Target.from_pyro(linear_model.model, X, Y)
    return pc.fit(target, generator=seeded())


def test_the_tree_has_every_group(posterior: pc.Posterior):
    pytest.importorskip("arviz_base")
    after = predict(posterior.target, posterior, num_draws=64, generator=seeded(1))
    before = predict(posterior.target, num_draws=64, generator=seeded(1))
    tree = to_inference_data(posterior, prediction=after, prior=before, generator=seeded(2))
    assert set(tree.children) == {
        "posterior",
        "sample_stats",
        "log_likelihood",
        "observed_data",
        "posterior_predictive",
        "prior_predictive",
        "prior",
    }
    assert dict(tree["posterior"].sizes)["chain"] == posterior.z.shape[0]
    assert tree["posterior"]["b"].shape == (16, 256, 2)
    assert tree["posterior"]["mu"].shape == (16, 256, 20)
    assert tree["posterior_predictive"]["y"].shape == (16, 4, 20)
    assert (tree["observed_data"]["y"].values == Y.numpy()).all()
    assert tree.attrs["verdict"] == posterior.verdict
    assert tree.attrs["method"] == posterior.method
    assert tree.attrs["draws"] == "resampled by their weights"


def test_rows_belong_to_their_draws(posterior: pc.Posterior):
    pytest.importorskip("arviz_base")
    tree = to_inference_data(posterior, generator=seeded(2))
    b = torch.tensor(tree["posterior"]["b"].values)
    rows = torch.tensor(tree["log_likelihood"]["y"].values)
    exact = torch.distributions.Normal(b @ X.mT, 1.0).log_prob(Y)
    torch.testing.assert_close(rows, exact)
    log_p = torch.tensor(tree["sample_stats"]["log_p"].values)
    prior = torch.distributions.Normal(0.0, linear_model.PRIOR_SD).log_prob(b).sum(dim=-1)
    torch.testing.assert_close(log_p, exact.sum(dim=-1) + prior)


def test_draws_are_resampled_unless_raw(posterior: pc.Posterior):
    """With all the weight on one side, raw draws do not know of it."""
    from dataclasses import replace

    pytest.importorskip("arviz_base")
    middle = float(posterior.mean["b"].value[0])
    weights = torch.where(posterior.x[..., 0] > middle, 0.0, -torch.inf).double()
    tilted = replace(posterior, log_weights=weights)
    resampled = to_inference_data(tilted, generator=seeded(2))
    raw = to_inference_data(tilted, raw=True, generator=seeded(2))
    assert (resampled["posterior"]["b"].values[..., 0] > middle).all()
    assert 0.3 < (raw["posterior"]["b"].values[..., 0] > middle).mean() < 0.7
    assert raw.attrs["draws"] == "of the guide, unweighted"


def test_arviz_leaves_rows_out_with_the_same_result(posterior: pc.Posterior):
    pytest.importorskip("arviz_base")
    pytest.importorskip("xarray_einstats")
    stats = pytest.importorskip("arviz_stats")
    tree = to_inference_data(posterior, raw=True, num_draws=posterior.log_ratios.numel())
    found = stats.loo_approximate_posterior(
        tree,
        log_p=tree["sample_stats"]["log_p"].values,
        log_q=tree["sample_stats"]["log_q"].values,
    )
    score = loo(posterior.target, posterior)
    assert found.elpd == pytest.approx(float(score.elpd.value), abs=0.05)


def test_the_older_generation_gets_groups_as_arguments(
    posterior: pc.Posterior, monkeypatch: pytest.MonkeyPatch
):
    old = ModuleType("arviz")
    old.__version__ = "0.22.0"
    old.from_dict = lambda **groups: SimpleNamespace(**groups)
    monkeypatch.setitem(sys.modules, "arviz", old)
    data = to_inference_data(posterior, num_draws=64, generator=seeded(2))
    assert data.posterior["b"].shape == (16, 4, 2)
    assert data.sample_stats["log_q"].shape == (16, 4)
    assert data.log_likelihood["y"].shape == (16, 4, 20)
    assert data.attrs["inference_library"] == "probcalc"


def test_a_missing_extra_is_named(posterior: pc.Posterior, monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("arviz"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install probcalc\[arviz\]"):
        to_inference_data(posterior)


def test_too_few_draws_are_refused(posterior: pc.Posterior):
    with pytest.raises(ValueError, match="`num_draws` must be at least 32"):
        to_inference_data(posterior, num_draws=10)
