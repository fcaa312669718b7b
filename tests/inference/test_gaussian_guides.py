from __future__ import annotations

import pytest
import torch
from torch.distributions import MultivariateNormal

from probcalc.inference.guides.gaussian import components_log_prob

F64 = torch.float64


@pytest.mark.parametrize("batch", [(), (3,)], ids=["one fit", "three fits"])
@pytest.mark.parametrize("where", [0.0, 1e6], ids=["near zero", "far out"])
def test_components_have_the_density_of_their_normals(
    batch: tuple[int, ...], where: float, generator: torch.Generator
):
    k, d, n = 4, 3, 50
    loc = where + torch.randn(*batch, k, d, generator=generator, dtype=F64)
    L = torch.randn(*batch, k, d, d, generator=generator, dtype=F64).tril()
    L = L + 2 * torch.eye(d, dtype=F64)
    z = where + torch.randn(*batch, n, d, generator=generator, dtype=F64)
    ours = components_log_prob(loc, L, z)
    exact = MultivariateNormal(loc[..., None, :], (L @ L.mT)[..., None, :, :])
    torch.testing.assert_close(ours, exact.log_prob(z[..., None, :, :]), rtol=1e-7, atol=1e-7)
