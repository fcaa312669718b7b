from __future__ import annotations

import torch
from torch import Tensor

from probcalc.inference.modes import starts_of
from probcalc.inference.pathfinder import pathfinder

F64 = torch.float64
SCALES = torch.tensor([1e3, 1.0, 1e-3], dtype=F64)  # sds of a Gaussian in awkward units


def gaussian(x: Tensor) -> tuple[Tensor, Tensor]:
    u = (x - 5 * SCALES) / SCALES
    return -0.5 * u.square().sum(dim=-1), -u / SCALES


def two_modes(x: Tensor) -> tuple[Tensor, Tensor]:
    left, right = -0.5 * (x + 8).square(), -0.5 * (x - 8).square()
    share = torch.sigmoid(right - left)
    value = torch.logaddexp(left, right).sum(dim=-1)
    return value, -(x + 8) * (1 - share) - (x - 8) * share


def value(density):
    return lambda x: density(x)[0]


def starts(generator: torch.Generator, r: int, d: int) -> Tensor:
    return 4 * torch.rand(r, d, generator=generator, dtype=F64) - 2


def test_a_gaussian_in_awkward_units_is_found(generator: torch.Generator):
    found = pathfinder(gaussian, value(gaussian), starts(generator, 4, 3), generator=generator)
    best = found.elbo.argmax()
    torch.testing.assert_close(found.mode, (5 * SCALES).expand(4, 3), rtol=1e-3, atol=1e-3)
    L = found.scale_tril[best]
    sd = (L @ L.mT).diagonal().sqrt()
    assert ((sd / SCALES).log().abs() < 0.7).all()  # BFGS learns what it needs, no more
    entropy = SCALES.log().sum() + 1.5 * torch.log(torch.tensor(2 * torch.pi, dtype=F64))
    assert found.elbo[best] <= entropy + 1.0


def test_one_failed_path_leaves_the_others(generator: torch.Generator):
    def walled(x: Tensor) -> tuple[Tensor, Tensor]:
        v, g = gaussian(x * SCALES)
        bad = x[..., :1] > 100
        return torch.where(bad[..., 0], torch.nan, v), torch.where(bad, torch.nan, g * SCALES)

    begin = starts(generator, 3, 3)
    begin[1, 0] = 1e4
    found = pathfinder(walled, value(walled), begin, generator=generator)
    assert found.elbo[[0, 2]].isfinite().all()
    assert found.elbo[1] == -torch.inf


def test_every_mode_that_was_reached_is_a_start(generator: torch.Generator):
    begin = torch.tensor([[-3.0], [-1.0], [2.0], [4.0]], dtype=F64)
    found = pathfinder(two_modes, value(two_modes), begin, generator=generator)
    kept = starts_of(found)
    assert sorted(found.mode[kept].sign().flatten().tolist()) == [-1.0, 1.0]


def test_paths_do_not_know_each_other(generator: torch.Generator):
    begin = starts(generator, 3, 3)
    together = pathfinder(gaussian, value(gaussian), begin, generator=generator)
    for i in range(3):
        alone = pathfinder(gaussian, value(gaussian), begin[i : i + 1], generator=generator)
        torch.testing.assert_close(alone.mode[0], together.mode[i])
