from __future__ import annotations

import torch
from torch import Tensor

import probcalc as pc
from probcalc.optimization.dowg import DistanceOverWeightedGradients, DoWG

F64 = torch.float64
CURVES = torch.tensor([1.0, 10.0, 0.1], dtype=F64)


def gradient(x: Tensor) -> Tensor:
    return CURVES * x


def textbook(x: Tensor, steps: int) -> Tensor:
    start, far, total = x.clone(), 1e-6 * (1 + x.norm()), 0.0
    for _ in range(steps):
        g = gradient(x)
        far = torch.maximum(far, (x - start).norm())
        total = total + far**2 * g.square().sum()
        x = x - far**2 / total**0.5 * g
    return x


def test_steps_are_the_textbooks():
    start = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    x = start.clone().requires_grad_()
    optimizer = DoWG().optimizer([x])
    for _ in range(60):
        x.grad = gradient(x.detach())
        optimizer.step()
    torch.testing.assert_close(x.detach(), textbook(start, 60))


def test_tensors_of_a_group_share_their_distance():
    """Split in two, a vector takes the same steps."""
    start = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    parts = [start[:1].clone().requires_grad_(), start[1:].clone().requires_grad_()]
    optimizer = DistanceOverWeightedGradients(parts)
    for _ in range(60):
        g = gradient(torch.cat([p.detach() for p in parts]))
        parts[0].grad, parts[1].grad = g[:1], g[1:]
        optimizer.step()
    torch.testing.assert_close(torch.cat([p.detach() for p in parts]), textbook(start, 60))


def test_rows_are_problems_of_their_own():
    starts = torch.tensor([[1.0, -2.0, 0.5], [30.0, 0.0, 1.0]], dtype=F64)
    x = starts.clone().requires_grad_()
    optimizer = DoWG(by_row=True).optimizer([x])
    for _ in range(60):
        x.grad = gradient(x.detach())
        optimizer.step()
    torch.testing.assert_close(x.detach(), torch.stack([textbook(s, 60) for s in starts]))


def test_no_step_size_is_needed_whatever_the_scale():
    """Minima a millionth and a million away, of curvature 1e-4 and 1e4."""
    for away in (1e-6, 1e6):
        for curve in (1e-4, 1e4):
            fn = lambda x, c=curve, a=away: c * (x - a).square().sum()
            found = pc.minimize(
                fn,
                torch.zeros(2, dtype=F64),
                method=DoWG(gtol=1e-3 * curve * away),
                max_evals=3_000,
            )
            assert found.ok
            assert float((found.x - away).abs().max()) < 2e-3 * away
