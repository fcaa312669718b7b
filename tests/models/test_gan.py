from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from probcalc.models.gan import GAN, Players


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def blob(n: int = 1_000) -> Tensor:
    return torch.tensor([1.0, -2.0]) + torch.tensor([0.5, 0.1]) * torch.randn(
        n, 2, generator=seed()
    )


SMALL = GAN(2, (32,))


def test_generator_learns_mean_and_spread():
    x = blob()
    fit = SMALL.fit(x, num_rounds=1_500, generator=seed())
    draws = fit.sample(4_000, generator=seed(1))
    assert draws.shape == (4_000, 2)
    assert fit.ok
    torch.testing.assert_close(draws.mean(dim=0), x.mean(dim=0), rtol=0, atol=0.15)
    assert bool((draws.std(dim=0) / x.std(dim=0)).log().abs().max() < 0.7)
    found = fit.divergence(blob(2_000), generator=seed())
    assert -0.05 < float(found.value) < 0.3
    assert {"critic", "generator"} <= fit.training.history[-1].keys()


def test_each_turn_moves_one_player():
    x = blob(64)
    model = GAN(2, (8,))
    players = model._built(x, 0, 0)
    for step, own in ((model._critics_step, "critic"), (model._generators_step, "generator")):
        found = step(players, x, seed())
        assert {name.split(".")[0] for name in found.gradients} == {own}


class Point(nn.Module):
    """One number whatever comes in, as in the smallest game there is."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        return self.place.expand(len(z), 1)


class Slope(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.rate * x


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_penalty_turns_circles_into_spirals(penalty: float):
    """Data at 0, generator at a point, linear critic: eigenvalues of the field at the end.

    Without the penalty they are ± i/2, with it their real parts are negative: Mescheder, Geiger &
    Nowozin (2018), lemmas 2.3 and 4.1.
    """
    x = torch.zeros(4, 1)
    model = GAN(1, penalty=penalty, generator=Point(), critic=Slope())

    def field(at: Tensor) -> Tensor:
        players = Players(Point(), Slope(), (1,))
        with torch.no_grad():
            players.generator.place.copy_(at[0])
            players.critic.rate.copy_(at[1])
        found = []
        for step, name in (
            (model._generators_step, "generator.place"),
            (model._critics_step, "critic.rate"),
        ):
            found.append(-step(players, x, seed()).gradients[name])
        return torch.stack(found)

    h = 1e-3
    columns = [(field(h * e) - field(-h * e)) / (2 * h) for e in torch.eye(2)]
    values = torch.linalg.eigvals(torch.stack(columns, dim=1))
    if penalty:
        assert float(values.real.max()) < -0.1
    else:
        assert float(values.real.abs().max()) < 1e-3
        assert float(values.imag.abs().max()) == pytest.approx(0.5, abs=1e-2)


def test_runs_go_on_bit_for_bit_and_models_come_back(tmp_path: Path):
    x = blob(100)
    settings = {"batch_size": 32, "folder": tmp_path / "run", "save_every": 10}
    SMALL.fit(x, num_rounds=12, generator=seed(), **settings)
    part = SMALL.fit(x, num_rounds=30, generator=seed(), resume=True, **settings)
    whole = SMALL.fit(x, num_rounds=30, batch_size=32, generator=seed())
    for name, value in whole.players.state_dict().items():
        assert torch.equal(part.players.state_dict()[name], value), name
    whole.save(tmp_path / "model")
    back = SMALL.load(tmp_path / "model")
    assert torch.equal(back.sample(5, generator=seed()), whole.sample(5, generator=seed()))
    with pytest.raises(ValueError, match="another model"):
        GAN(2, (16,)).load(tmp_path / "model")


def test_own_networks_are_copied():
    maker = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    judge = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    before = [p.clone() for p in (*maker.parameters(), *judge.parameters())]
    fit = GAN(3, generator=maker, critic=judge).fit(blob(), num_rounds=5, generator=seed())
    after = (*maker.parameters(), *judge.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert fit.sample(3, generator=seed()).shape == (3, 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: GAN(0), "latent_dim"),
        (lambda: GAN(penalty=-1.0), "penalty"),
        (lambda: SMALL.fit(blob()[:0]), "at least 1"),
        (lambda: SMALL.fit(blob() * math.nan), "finite|NaN|nan"),
    ],
    ids=["no latents", "negative penalty", "no rows", "NaN"],
)
def test_mistakes_are_named(call, words: str):
    with pytest.raises(ValueError, match=words):
        call()
