from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import probcalc as pc
from probcalc.inference import ladder


def chain(x: Tensor) -> Tensor:
    """A Gaussian random walk seen at every step: a tridiagonal precision."""
    return -0.5 * (x - 1).square().sum() - 0.5 * (x[1:] - x[:-1]).square().sum()


def test_thousands_of_dimensions_need_no_square_matrix():
    """The means are right; sds that a mean-field guide cannot have are flagged, not returned."""
    d = 6_000
    target = pc.Target.from_log_density(chain, d)
    largest = _Largest()
    with largest, warnings.catch_warnings():
        warnings.simplefilter("ignore", pc.EstimateWarning)
        p = pc.fit(target, max_evals=2_048, generator=torch.Generator().manual_seed(0))
    assert not p.ok
    assert "mean-field SAA" in p.method
    torch.testing.assert_close(p.params["loc"], torch.ones(d).double(), rtol=0, atol=1e-3)
    assert largest.size < d * d


def test_independent_coordinates_are_fitted_and_weighed(monkeypatch):
    monkeypatch.setattr(ladder, "_MAX_DENSE", 1)
    scales = torch.tensor([1e-3, 1.0, 1e3]).double()
    target = pc.Target.from_log_density(lambda x: -0.5 * ((x - 2) / scales).square().sum(), 3)
    p = pc.fit(target, generator=torch.Generator().manual_seed(0))
    assert p.ok
    torch.testing.assert_close(p.std["x"].value, scales, rtol=1e-2, atol=0)


class _Largest(TorchDispatchMode):
    """Notes the largest result of any operation."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if torch.is_tensor(t):
                self.size = max(self.size, t.untyped_storage().size() // t.element_size())
        return out
