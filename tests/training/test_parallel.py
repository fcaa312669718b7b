"""Two processes with a share of every batch each, against one with all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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


def launched(
    code: str, folder: Path, processes: int, *arguments: str
) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    program = folder / "program.py"
    program.write_text(code)
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*launch, str(program), str(folder), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def trained(
    folder: Path, processes: int, accumulate: int, code: str = PROGRAM
) -> dict[str, torch.Tensor]:
    done = launched(code, folder, processes, str(accumulate))
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(next((folder / "model").glob("*.safetensors")))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_take_the_steps_of_one(accumulate: int, tmp_path: Path):
    """Noise, pixels drawn anew, clipping and averages included.

    Of 61 rows the last batch has one, which only one process sees."""
    one, two = (trained(tmp_path / str(n), n, accumulate) for n in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-9, atol=1e-9)


OTHERS = textwrap.dedent(
    """
    import sys
    import torch
    import torch.distributed as dist
    import probcalc as pc
    from probcalc.models.gan import GAN
    from probcalc.models.vae import VAE, BernoulliLatents

    x = (torch.rand(41, 6, generator=torch.Generator().manual_seed(1)) < 0.4).double()
    shared = {
        "batch_size": 20, "progress": False, "optimizer": pc.Adam(1e-3, betas=(0.5, 0.99)),
        "generator": torch.Generator().manual_seed(0),
    }
    if MODEL == "GAN":
        fit = GAN(2, (8,)).fit(x, num_rounds=10, **shared)
    else:
        fit = VAE(10, latents=BernoulliLatents()).fit(x, max_steps=20, **shared)
    if not dist.is_initialized() or dist.get_rank() == 0:
        fit.save(sys.argv[1] + "/model")
    if dist.is_initialized():
        dist.destroy_process_group()
    """
)


@pytest.mark.parametrize("model", ["GAN", "bits"])
def test_players_in_turn_and_bits_are_those_of_one_process(model: str, tmp_path: Path):
    """A player whose turn it is not has no gradient, and its momentum rests, in all of them."""
    code = f"MODEL = {model!r}\n" + OTHERS
    one, two = (trained(tmp_path / str(n), n, 1, code) for n in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-9, atol=1e-9)


BUFFERS = textwrap.dedent(
    """
    import json, os, sys, warnings
    import torch
    from torch import nn
    import probcalc as pc

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
            self.register_buffer("third", torch.tensor(1 / 3))

        def forward(self, x):
            return self.layers(x)[:, 0]

    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1)).double() * 2 + 1
    module = Network()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pc.train(
            lambda m, b, g: (m(b) - 1).square().mean(), module, x, max_steps=30, batch_size=None,
            generator=torch.Generator().manual_seed(0), progress=False,
        )
    rank = os.environ.get("RANK", "0")
    buffers = {k: b.tolist() for k, b in module.named_buffers()}
    said = " ".join(str(w.message) for w in seen if "normalises" in str(w.message))
    with open(sys.argv[1] + "/" + rank + ".json", "w") as file:
        json.dump({"buffers": buffers, "said": said}, file)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    """
)


def test_running_statistics_are_those_of_all_rows(tmp_path: Path):
    """Means exactly, variances but for those between the processes; one warning names the layer.

    What no process changes stays as it was to the bit."""
    done = launched(BUFFERS, tmp_path / "two", 2)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / "two" / f"{r}.json").read_text()) for r in "01")
    assert first["buffers"] == second["buffers"]
    assert "layers.0" in first["said"]
    assert "SyncBatchNorm" in first["said"]
    assert not second["said"]
    done = launched(BUFFERS, tmp_path / "one", 1)
    assert done.returncode == 0, done.stderr[-2000:]
    alone = json.loads((tmp_path / "one" / "0.json").read_text())
    assert not alone["said"]
    for name, value in alone["buffers"].items():
        got = first["buffers"][name]
        if name.endswith("var"):
            assert got == pytest.approx(value, rel=0.15)
        elif name.endswith("mean"):
            assert got == pytest.approx(value, rel=1e-12)
        else:
            assert got == value


ENDS = textwrap.dedent(
    """
    import os, signal, sys, time
    import torch
    import probcalc as pc

    rank = int(os.environ.get("RANK", "0"))

    def loss(params, batch, generator):
        time.sleep(0.005 * (1 + rank))
        return (params["a"] * batch - 1).square().mean()

    steps, limit = [], None
    def attach(engine):
        from ignite.engine import Events

        @engine.on(Events.ITERATION_COMPLETED)
        def watch(engine):
            steps.append(engine.state.iteration)
            if sys.argv[2] == "signal" and rank == 1 and len(steps) == 20:
                os.kill(os.getpid(), signal.SIGTERM)

    if sys.argv[2] == "limit":
        limit = 4.0 + rank
    code = 0
    try:
        result = pc.train(
            loss, {"a": torch.zeros(())}, torch.ones(10), max_steps=100_000, progress=False,
            callbacks=[attach], folder=sys.argv[1] + "/run", max_seconds=limit,
        )
        said = result.reason
    except SystemExit as end:
        code, said = end.code, "exit"
    with open(sys.argv[1] + f"/{rank}.txt", "w") as file:
        file.write(f"{steps[-1]} {code} {said}")
    torch.distributed.destroy_process_group()
    """
)


@pytest.mark.parametrize("end", ["signal", "limit"])
def test_processes_stop_at_the_same_step(end: str, tmp_path: Path):
    """A signal to the second one only; a limit that the first one reaches first."""
    folder = tmp_path / "run"
    done = launched(ENDS, folder, 2, end)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = ((folder / f"{rank}.txt").read_text().split(" ", 2) for rank in "01")
    assert first[0] == second[0]
    assert int(first[0]) > 5
    if end == "signal":
        assert first[1:] == second[1:] == ["143", "exit"]
    else:
        assert first[2] == "stopped at the time limit of 4 s"
        assert second[2] == "stopped at the time limit of another process"
    assert f"checkpoint-{int(first[0]):09d}.json" in os.listdir(folder / "run")


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
