from __future__ import annotations

import json
import random

import laws
import numpy as np
import pytest
import torch

from probcalc._random import child, draw_seed, forked, global_states, restore_global_states

SEEDS = [0, 1, 17, 2**31, 2**62 - 1]


def test_one_seed_is_one_draw_whatever_follows():
    """The caller's generator advances by one draw; the seed is that draw."""
    g, h = laws.generator(3), laws.generator(3)
    seed = draw_seed(g)
    assert seed == int(torch.randint(2**62, (), generator=h))
    assert torch.equal(g.get_state(), h.get_state())
    assert draw_seed(g) != seed


def test_no_generator_means_torch_s_default_one():
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(5)
        first = draw_seed(None)
        torch.random.manual_seed(5)
        assert draw_seed(None) == first
        assert draw_seed(torch.default_generator) != first


def test_seeds_fill_their_range(generator: torch.Generator):
    """Uniform on [0, 2⁶²)."""
    u = torch.tensor([draw_seed(generator) / 2**62 for _ in range(3000)], dtype=torch.float64)
    assert ((u >= 0) & (u < 1)).all()
    laws.assert_distributed(u, u, distance=0.1)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_child_is_a_function_of_seed_and_stream(seed: int):
    draws = torch.rand(5, generator=child(seed, 2))
    assert torch.equal(draws, torch.rand(5, generator=child(seed, 2)))
    assert not torch.equal(draws, torch.rand(5, generator=child(seed, 3)))
    assert not torch.equal(draws, torch.rand(5, generator=child(seed + 1, 2)))


def test_streams_and_seeds_do_not_meet():
    """All 4,000 streams near each other are different."""
    seeds = {child(seed, stream).initial_seed() for seed in range(40) for stream in range(100)}
    assert len(seeds) == 4000


def test_first_draws_of_neighbouring_streams_are_independent(seed: int):
    """Uniform each, uncorrelated with the next stream's and the next seed's."""
    n = laws.draws_to_see(0.1)
    u, next_stream, next_seed = (
        torch.stack([torch.rand((), generator=child(s, k)) for s, k in pairs]).double()
        for pairs in (
            [(seed, k) for k in range(n)],
            [(seed, k + 1) for k in range(n)],
            [(seed + 1, k) for k in range(n)],
        )
    )
    laws.assert_distributed(u, u, distance=0.1)
    laws.assert_mean_is(12 * (u - 0.5) * (next_stream - 0.5), 0.0, bias=0.1)
    laws.assert_mean_is(12 * (u - 0.5) * (next_seed - 0.5), 0.0, bias=0.1)


@pytest.mark.parametrize("seed", [*SEEDS, 2**63, 2**64 + 1])
def test_forked_repeats_and_leaves_the_default_generator_alone(seed: int):
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with forked(seed):
            draws.append(torch.randn(4))
    assert torch.equal(*draws)
    assert torch.equal(torch.get_rng_state(), before)


def test_forked_restores_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="shape"), forked(1):
        torch.randn(4).reshape(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_forked_differs_between_seeds():
    with forked(1):
        one = torch.randn(4)
    with forked(2):
        assert not torch.equal(one, torch.randn(4))


@pytest.mark.gpu
def test_children_live_on_their_device():
    assert child(1, 0, "cuda").device.type == "cuda"
    before = torch.cuda.get_rng_state()
    with forked(1, "cuda"):
        torch.randn(3, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_everybodys_generators_come_back():
    def draw() -> tuple:
        return float(torch.rand(())), float(np.random.standard_normal()), random.gauss(0, 1)

    draw()  # NumPy and Python keep a second normal number back
    tensors, record = global_states()
    record = json.loads(json.dumps(record))
    first, second = draw(), draw()
    assert first != second
    restore_global_states(tensors, record)
    assert (draw(), draw()) == (first, second)
