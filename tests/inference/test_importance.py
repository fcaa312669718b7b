from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from probcalc import FullRank, GaussianMixture, StudentT
from probcalc.inference import importance
from probcalc.inference.importance import WeightedDraws, recentred, refitted, weighted_draws

F64 = torch.float64


@dataclass(frozen=True)
class Plain:
    """A density whose constrained values are its vectors."""

    log_density: Callable[[Tensor], Tensor]
    dim: int

    def constrained_vector(self, z: Tensor) -> Tensor:
        return z


def normal(loc: list[float], sd: float = 1.0):
    d = len(loc)
    exact = MultivariateNormal(torch.tensor(loc, dtype=F64), sd**2 * torch.eye(d, dtype=F64))
    return exact.log_prob


def proposal(d: int, sd: float = 1.0) -> dict[str, Tensor]:
    return {"loc": torch.zeros(d, dtype=F64), "scale_tril": sd * torch.eye(d, dtype=F64)}


def draw(log_density, guide, params, generator, n=512, r=8):
    return weighted_draws(
        Plain(log_density, params["loc"].shape[-1]),
        guide,
        params,
        num_replicates=r,
        num_draws=n,
        generator=generator,
    )


def test_the_right_proposal_has_equal_weights(generator: torch.Generator):
    draws = draw(lambda z: normal([0.0, 0.0])(z) + 3.0, FullRank(), proposal(2), generator)
    assert draws.khat == -math.inf
    torch.testing.assert_close(draws.log_ratios, torch.full_like(draws.log_ratios, 3.0))
    assert draws.effective_size == pytest.approx(draws.num_evals)
    assert draws.is_trusted


@pytest.mark.parametrize("guide", [FullRank(), StudentT(4)], ids=["normal", "t"])
def test_weights_move_the_mean(guide, generator: torch.Generator):
    draws = draw(normal([0.5, -0.2]), guide, proposal(2, 1.2), generator, n=4096)
    mean = torch.einsum("rn,rnd->d", draws.weights, draws.z)
    torch.testing.assert_close(mean, torch.tensor([0.5, -0.2], dtype=F64), rtol=0, atol=0.02)


def test_draws_do_not_depend_on_the_blocks_they_are_weighed_in(monkeypatch):
    def drawn() -> WeightedDraws:
        return draw(normal([0.3, 0.1]), FullRank(), proposal(2), torch.Generator().manual_seed(3))

    whole = drawn()
    monkeypatch.setattr(importance, "_BLOCK", 1)  # one replicate at a time
    parts = drawn()
    for name in ("z", "log_ratios", "log_weights", "x"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


def test_nan_densities_have_no_weight(generator: torch.Generator):
    draws = draw(lambda z: z[..., 0].log(), FullRank(), proposal(1), generator)
    assert bool((draws.weights[draws.z[..., 0] < 0] == 0).all())
    assert float(draws.weights.sum()) == pytest.approx(1.0)


def test_a_narrow_proposal_is_not_trusted(generator: torch.Generator):
    """Variance of the ratios infinite: k = 1 − s² = 0.84 for a proposal of sd s = 0.4."""
    draws = draw(normal([0.0] * 5), FullRank(), proposal(5, 0.4), generator, n=4096)
    assert not draws.is_trusted
    assert "k-hat" in draws.fault


def test_refitted_and_recentred_come_nearer(generator: torch.Generator):
    truth = normal([0.7, 0.0, -0.4], 0.8)
    first = draw(truth, FullRank(), proposal(3), generator)
    for improve in (refitted, recentred):
        second = draw(truth, FullRank(), improve(first), generator)
        assert second.effective_size > 1.2 * first.effective_size


def test_refitting_a_mixture_moves_each_component(generator: torch.Generator):
    truth = lambda z: torch.logaddexp(normal([3.2])(z), normal([-2.9])(z))
    params = {
        "loc": torch.tensor([[3.0], [-3.0]], dtype=F64),
        "scale_tril": torch.full((2, 1, 1), 1.2, dtype=F64),
    }
    draws = draw(truth, GaussianMixture(2), params, generator, n=2048)
    loc = refitted(draws)["loc"].flatten()
    torch.testing.assert_close(loc, torch.tensor([3.2, -2.9], dtype=F64), rtol=0, atol=0.05)


def test_too_few_effective_draws_give_no_new_proposal(generator: torch.Generator):
    far = draw(normal([30.0, 0.0]), FullRank(), proposal(2), generator)
    assert refitted(far) is None
    assert recentred(far) is None
