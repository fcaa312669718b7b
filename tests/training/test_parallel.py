"""Two processes with a share of every batch each, against one with all of it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from probcalc.training.parallel import ALONE, Share, rows_rand, rows_randn, sharing

PROGRAM = textwrap.dedent(
    """
    import sys
    import torch
    import probcalc as pc
    from probcalc.models.vae import VAE, Bernoulli

    x = (torch.rand(61, 9, generator=torch.Generator().manual_seed(1)) < 0.4).double() * 0.9
    fit = VAE(2, Bernoulli(dynamic=True)).fit(
        x,
        max_steps=25,
        batch_size=20,
        accumulate=int(sys.argv[2]),
        clip_norm=1.0,
        ema=0.9,
        folder=sys.argv[1],
        progress=False,
        generator=torch.Generator().manual_seed(0),
    )
    import torch.distributed as dist
    if not dist.is_initialized() or dist.get_rank() == 0:
        fit.save(sys.argv[1] + "/model")
        print(fit.training.history[-1]["loss"].hex())
    if dist.is_initialized():
        dist.destroy_process_group()
    """
)


def trained(folder: Path, processes: int, accumulate: int) -> dict[str, torch.Tensor]:
    folder.mkdir()
    program = folder / "program.py"
    program.write_text(PROGRAM)
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*launch, str(program), str(folder), str(accumulate)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    from safetensors.torch import load_file

    return load_file(next((folder / "model").glob("*.safetensors")))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_take_the_steps_of_one(accumulate: int, tmp_path: Path):
    """Noise, pixels drawn anew, clipping and averages included.

    Of 61 rows the last batch has one, which only one process sees."""
    one, two = (trained(tmp_path / str(n), n, accumulate) for n in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-9, atol=1e-9)


def test_shares_fill_the_batch():
    for n in (2, 7, 64):
        for world in (1, 2, 3):
            if n >= world:
                rows = [i for r in range(world) for i in range(n)[Share(r, world).rows(n)]]
                assert rows == list(range(n))


def test_random_numbers_of_rows_are_those_of_the_whole():
    like = torch.zeros(1)
    for draw in (rows_randn, rows_rand):
        whole = draw(7, 3, generator=torch.Generator().manual_seed(0), like=like)
        parts = []
        for rank in range(2):
            share = Share(rank, 2)
            with sharing(share, 7):
                n = len(range(7)[share.rows(7)])
                parts.append(draw(n, 3, generator=torch.Generator().manual_seed(0), like=like))
        assert torch.equal(torch.cat(parts), whole)
    with sharing(ALONE, 7):
        assert rows_rand(5, generator=None, like=like).shape == (5,)
