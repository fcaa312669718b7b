from __future__ import annotations

import warnings

import pytest
import torch
from problems.posteriors import PROBLEMS
from torch import Tensor

import probcalc as pc
from probcalc import Status
from probcalc.inference import response

P = torch.tensor([[2.0, 0.9, 0.3], [0.9, 1.0, 0.2], [0.3, 0.2, 0.7]], dtype=torch.float64)
CONTRAST = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)


def correlated(x: Tensor) -> Tensor:
    return -0.5 * (x - 1) @ P @ (x - 1)


def fitted(guide: pc.MeanField | pc.FullRank | pc.LowRank, target: pc.Target) -> pc.Posterior:
    with warnings.catch_warnings():  # weights of a guide that is too narrow are flagged
        warnings.simplefilter("ignore", pc.EstimateWarning)
        return pc.fit(target, guide=guide, generator=torch.Generator().manual_seed(0))


# function of one draw, and its variance under N(1, P⁻¹)
FUNCTIONS = {
    "all entries": (None, P.inverse()),
    "a sum": (lambda v: v["x"].sum(), P.inverse().sum()),
    "a contrast": (lambda v: v["x"][0] - v["x"][2], CONTRAST @ P.inverse() @ CONTRAST),
}
GUIDES = {
    "mean field": pc.MeanField(),
    "full rank": pc.FullRank(),
    "low rank": pc.LowRank(rank=1),
}


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_gaussian_covariance_is_found_by_every_guide(guide: str, name: str):
    """Also by those that do not contain it: the mean responds exactly."""
    fn, exact = FUNCTIONS[name]
    target = pc.Target.from_log_density(correlated, 3)
    found = pc.linear_response(fitted(GUIDES[guide], target), fn)
    torch.testing.assert_close(found.value, exact, rtol=1e-4, atol=1e-6)
    assert found.ok


def test_conjugate_gradients_give_what_the_factor_gives(monkeypatch: pytest.MonkeyPatch):
    p = fitted(pc.MeanField(), PROBLEMS["proportions"]().target())
    seeded = lambda: torch.Generator().manual_seed(3)
    dense = pc.linear_response(p, generator=seeded())
    monkeypatch.setattr(response, "_MAX_DENSE", 0)
    free = pc.linear_response(p, generator=seeded())
    torch.testing.assert_close(free.value, dense.value, rtol=1e-6, atol=1e-9)


def test_a_saddle_is_flagged():
    """Where the ELBO curves upwards there is no optimum to respond."""
    target = pc.Target.from_log_density(lambda x: (x**2 - 0.25 * x**4).sum(), 1)
    p = fitted(pc.MeanField(), target)
    moved = {"loc": torch.zeros(1).double(), "log_scale": torch.full((1,), -2.0).double()}
    found = pc.linear_response(pc.Posterior(**{**vars(p), "params": moved}))
    assert found.status == Status.INDEFINITE
    assert found.error.isinf().all()


def test_a_posterior_without_its_target_is_refused():
    p = fitted(pc.MeanField(), pc.Target.from_log_density(correlated, 3))
    with pytest.raises(ValueError, match="needs the target"):
        pc.linear_response(pc.Posterior(**{**vars(p), "target": None}))
