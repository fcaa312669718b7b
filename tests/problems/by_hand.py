"""Posteriors made by hand, for what only reads them."""

from __future__ import annotations

import torch

from probcalc._tree import Layout
from probcalc.inference.guides import FullRank
from probcalc.inference.posterior import Posterior
from probcalc.status import Status


def made(log_ratios: torch.Tensor, khat: float, *flags: Status) -> Posterior:
    """Two entries, `a` normal and `b` log-normal, with the given log ratios."""
    r, n = log_ratios.shape
    z = torch.randn(r, n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    status = flags[0] if flags else Status.OK
    return Posterior(
        layout=Layout({"a": (), "b": ()}),
        guide=FullRank(),
        params={"loc": torch.zeros(2).double(), "scale_tril": torch.eye(2).double()},
        z=z,
        x=torch.stack([z[..., 0], z[..., 1].exp()], dim=-1),
        log_ratios=log_ratios,
        log_weights=log_ratios.clone(),
        khat=khat,
        status=status,
        reasons=("because <of> this",) if flags else (),
        num_evals=1_234,
        method="by hand",
        seed=3,
    )


def noise(scale: float) -> torch.Tensor:
    """Log ratios that scatter."""
    stream = torch.Generator().manual_seed(1)
    return scale * torch.randn(8, 64, generator=stream, dtype=torch.float64)
