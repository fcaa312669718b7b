"""Weights of scores: exact gradients, closed forms, and cuts where episodes end."""

from __future__ import annotations

import dataclasses

import laws
import pytest
import torch
from torch import Tensor

from probcalc.integration.gradient_estimators import (
    LeaveOneOut,
    NoBaseline,
    surrogate,
)
from probcalc.policy.rollout import Rollout
from probcalc.policy.weights import (
    GAE,
    RewardToGo,
    TimeMean,
    Values,
    WholeReturn,
    generalized_advantages,
    whitened,
)

DISCOUNT = 0.9


def rollout(n: int = 3, t: int = 7, seed: int = 0, ends: tuple = ()) -> Rollout:
    """Steps of no environment; `ends` are (copy, step, kind)."""
    g = laws.generator(seed)
    terminated, truncated = torch.zeros(2, n, t, dtype=torch.bool)
    final = torch.randn(n, t, 2, generator=g, dtype=torch.float64)
    for i, j, kind in ends:
        (terminated if kind == "terminated" else truncated)[i, j] = True
    return Rollout(
        torch.randn(n, t, 2, generator=g, dtype=torch.float64),
        torch.zeros(n, t, 2, dtype=torch.float64),
        torch.zeros(n, t, dtype=torch.long),
        torch.randn(n, t, generator=g, dtype=torch.float64),
        terminated,
        truncated,
        torch.ones(n, t, dtype=torch.bool),
        torch.randn(n, 2, generator=g, dtype=torch.float64),
        final,
    )


def value(x: Tensor) -> Tensor:
    return (x * torch.tensor([0.7, -0.3], dtype=x.dtype)).sum(dim=-1)


def values(r: Rollout) -> Values:
    """Of a linear critic, from the definition: one step at a time."""
    after = torch.cat([value(r.observations)[:, 1:], value(r.last)[:, None]], dim=1)
    ended = r.terminated | r.truncated
    return Values(value(r.observations), torch.where(ended, value(r.final), after))


def naive(r: Rollout, discount: float, trace: float) -> Tensor:
    """GAE from the table of ends, a step at a time."""
    v, n, t = values(r), *r.rewards.shape
    found = torch.zeros(n, t, dtype=torch.float64)
    for i in range(n):
        ahead = 0.0
        for j in reversed(range(t)):
            going = not r.terminated[i, j]
            delta = r.rewards[i, j] + discount * going * v.after[i, j] - v.here[i, j]
            carry = 0.0 if r.terminated[i, j] or r.truncated[i, j] else ahead
            ahead = delta + discount * trace * carry
            found[i, j] = ahead
    return found


ENDS = {
    "going on": (),
    "terminated": ((0, 3, "terminated"), (1, 6, "terminated")),
    "truncated": ((0, 3, "truncated"), (2, 6, "truncated")),
    "both": ((1, 2, "terminated"), (1, 2, "truncated"), (1, 5, "truncated")),
}


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize("trace", [0.0, 0.6, 1.0])
def test_gae_is_its_definition(ends: tuple, trace: float):
    r = rollout(ends=ends)
    found = GAE(trace, whiten=False).of(r, DISCOUNT, values(r))
    expected = naive(r, DISCOUNT, trace)
    torch.testing.assert_close(found.weights, expected)
    torch.testing.assert_close(found.targets, expected + value(r.observations))


@pytest.mark.parametrize("kind", ["truncated", "terminated"])
def test_weights_of_a_split_trajectory_are_those_of_its_pieces(kind: str):
    """An end inside a batch, and the same steps as two batches."""
    r = rollout(ends=tuple((i, 3, kind) for i in range(3)))
    whole = GAE(0.8, whiten=False).of(r, DISCOUNT, values(r)).weights
    pieces = []
    for cut in (slice(0, 4), slice(4, 7)):
        last = r.final[:, 3] if cut.stop == 4 else r.last
        names = ("observations", "outputs", "actions", "rewards", "terminated", "truncated")
        parts = {name: getattr(r, name)[:, cut] for name in (*names, "valid", "final")}
        if cut.stop == 4 and kind == "truncated":  # there the rollout ends, in place of a clock
            parts["truncated"] = torch.zeros_like(parts["truncated"])
        piece = dataclasses.replace(r, **parts, last=last)
        pieces.append(GAE(0.8, whiten=False).of(piece, DISCOUNT, values(piece)).weights)
    torch.testing.assert_close(whole, torch.cat(pieces, dim=1), rtol=0, atol=0)


def test_rows_of_a_reset_count_for_nothing_and_leak_nothing():
    """The step of `NEXT_STEP` that only begins anew, against the rollout without it."""
    r = rollout(n=1, t=7, ends=((0, 2, "truncated"),))
    r = dataclasses.replace(r, rewards=r.rewards.index_fill(1, torch.tensor([3]), 0.0))
    valid = torch.ones(1, 7, dtype=torch.bool)
    valid[0, 3] = False
    shown = r.observations.clone()
    shown[0, 3] = r.final[0, 2]  # what is shown in that row is the end of the old episode
    garbage = dataclasses.replace(r, observations=shown, valid=valid, final=None)
    here = value(shown)
    after = torch.cat([here[:, 1:], value(r.last)[:, None]], dim=1)
    found = GAE(0.8, whiten=False).of(garbage, DISCOUNT, Values(here, after)).weights
    kept = [0, 1, 2, 4, 5, 6]
    names = ("observations", "outputs", "actions", "rewards", "terminated", "truncated")
    cut = {name: getattr(r, name)[:, kept] for name in (*names, "valid", "final")}
    clean = dataclasses.replace(r, **cut)
    expected = GAE(0.8, whiten=False).of(clean, DISCOUNT, values(clean)).weights
    torch.testing.assert_close(found[:, kept], expected)
    assert float(found[0, 3]) == 0.0


def test_constant_values_have_the_closed_form():
    """Rewards and values of one: Σ (γλ)ʲ γ over what is left."""
    n, t, discount, trace = 2, 5, 0.9, 0.7
    ones, never = torch.ones(n, t, dtype=torch.float64), torch.zeros(n, t, dtype=torch.bool)
    found = generalized_advantages(ones, ones, ones, never, never, discount, trace)
    left = torch.arange(t, 0, -1, dtype=torch.float64)
    q = discount * trace
    torch.testing.assert_close(found[0], discount * (1 - q**left) / (1 - q))


def test_returns_are_sums_of_what_came_after():
    r = rollout()
    togo = RewardToGo(NoBaseline(), discounts_states=False).of(r, DISCOUNT, None).weights
    t = r.rewards.shape[1]
    for j in range(t):
        powers = DISCOUNT ** torch.arange(t - j, dtype=torch.float64)
        torch.testing.assert_close(togo[:, j], (r.rewards[:, j:] * powers).sum(dim=1))
    with_time = RewardToGo(NoBaseline()).of(r, DISCOUNT, None).weights
    powers = DISCOUNT ** torch.arange(t, dtype=torch.float64)
    torch.testing.assert_close(with_time, togo * powers)
    whole = WholeReturn(NoBaseline()).of(r, DISCOUNT, None).weights
    torch.testing.assert_close(whole, with_time[:, :1].expand_as(whole))
    less = WholeReturn(LeaveOneOut()).of(r, DISCOUNT, None).weights
    others = (whole.sum(dim=0) - whole) / (len(whole) - 1)
    torch.testing.assert_close(less, whole - others)


def test_time_means_are_of_episodes_that_have_come_so_far():
    r = rollout()
    valid = torch.ones(3, 7, dtype=torch.bool)
    valid[0, 2:] = False
    r = dataclasses.replace(r, valid=valid, rewards=r.rewards * valid)
    plain = RewardToGo(NoBaseline(), discounts_states=False).of(r, 1.0, None).weights
    found = RewardToGo(TimeMean(), discounts_states=False).of(r, 1.0, None).weights
    torch.testing.assert_close(found[1, 4], plain[1, 4] - plain[2, 4])
    torch.testing.assert_close(found[1, 1], plain[1, 1] - (plain[0, 1] + plain[2, 1]) / 2)
    assert bool((found[0, 2:] == 0).all())


def test_the_triangle_and_the_mask_of_the_surrogate_agree():
    """Reward-to-go is `surrogate` with the steps downstream of each decision."""
    r = rollout()
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    log_prob = theta * torch.randn(3, 7, generator=laws.generator(5), dtype=torch.float64)
    upper = torch.ones(7, 7, dtype=torch.bool).triu()
    terms = surrogate(log_prob, r.rewards, baseline=NoBaseline(), downstream=upper)
    w = RewardToGo(NoBaseline()).of(r, 1.0, None).weights
    (by_mask,) = torch.autograd.grad(terms.sum(), theta, retain_graph=True)
    (by_weights,) = torch.autograd.grad((w * log_prob).sum(), theta)
    torch.testing.assert_close(by_mask, by_weights)


def test_whitening_is_safe_where_nothing_varies():
    valid = torch.tensor([[True, True, False]])
    for w in (torch.tensor([[2.0, 2.0, 0.0]]), torch.tensor([[3.0, 0.0, 0.0]])):
        found = whitened(w, valid)
        assert bool(found.isfinite().all())
        assert float(found[0, 2]) == 0.0
    torch.testing.assert_close(
        whitened(torch.tensor([[1.0, 3.0, 0.0]]), valid), torch.tensor([[-1.0, 1.0, 0.0]])
    )
    one = torch.ones(1, 1, dtype=torch.bool)
    assert float(whitened(torch.ones(1, 1), one)) == 0.0


def test_traces_are_shares():
    with pytest.raises(ValueError, match=r"lie in \[0, 1\], got 1.5"):
        GAE(1.5)
