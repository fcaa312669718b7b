"""What may go wrong with any generative model: its run, its files, its disk and its data."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import generative_models
import pytest
import torch
from generative_models import SUBJECTS, Subject, bits, seed
from torch import Tensor

from probcalc.models.diffusion import Diffusion, Levels, Real
from probcalc.models.gan import GAN
from probcalc.models.vae import (
    VAE,
    Bernoulli,
    Binomial,
    Categorical,
    DiscretizedLogistic,
    Gaussian,
)
from probcalc.status import Status
from probcalc.training.checkpoint import CheckpointError, load_checkpoint

KILLS = 30
every_model = pytest.mark.parametrize("name", SUBJECTS)


def same(a: Any, b: Any) -> None:
    """Every value of two fits, and every number of how they went but the seconds."""
    for key, value in a.network.state_dict().items():
        assert torch.equal(value, b.network.state_dict()[key]), key
    one, other = ([{**r, "seconds": 0} for r in f.training.history] for f in (a, b))
    assert one == other


@every_model
@pytest.mark.parametrize("first", [8, 14])
def test_two_halves_are_the_whole(name: str, first: int, tmp_path: Path):
    """Of 60 rows in batches of 16 an epoch has four steps: the second stop is in the midst."""
    subject = SUBJECTS[name]
    whole = subject.fit(30, log_every=7, ema=0.9)
    subject.fit(first, log_every=7, ema=0.9, folder=tmp_path)
    same(whole, subject.fit(30, log_every=7, ema=0.9, folder=tmp_path, resume=True))


@pytest.mark.slow
@every_model
def test_kills_leave_a_state_that_goes_on(name: str, tmp_path: Path):
    """Thirty times kill −9 at random, a checkpoint being written at every step."""
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", generative_models.__file__]
        + [name, str(folder), str(KILLS), str(int.from_bytes(os.urandom(4)))],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    step = int(done.stdout)
    assert step > 0
    end = 2 * (step // 2) + 10
    again = SUBJECTS[name].fit(end, folder=folder, save_every=1, resume=True)
    same(SUBJECTS[name].fit(end), again)
    assert len(list(folder.glob("checkpoint-*.json"))) == 2
    assert not list(folder.glob("*.unfinished"))


@every_model
def test_a_loss_that_is_none_is_named_and_undone(name: str, tmp_path: Path):
    """The seventh step fails: what is left is the state of the sixth."""
    subject = SUBJECTS[name].broken_at(7)
    fit = subject.fit(12, folder=tmp_path)
    assert not fit.ok
    assert fit.training.status == Status.NON_FINITE
    assert "step 7" in fit.training.reason
    assert '"step": 7' in (tmp_path / "nan_report.json").read_text()
    assert fit.training.num_steps == 6
    sound = SUBJECTS[name].broken_at(10**6).fit(6)
    for key, value in sound.network.state_dict().items():
        if not key.endswith(("turn", "beta")):  # what a schedule sets before a step
            assert torch.equal(value, fit.network.state_dict()[key]), key
    assert not list(tmp_path.glob("checkpoint-*"))


@every_model
def test_a_full_disk_leaves_what_was_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    subject, folder = SUBJECTS[name], tmp_path / "run"
    fit = subject.fit(6, folder=folder, save_every=2)
    files = {file: file.read_bytes() for file in sorted(folder.glob("checkpoint-*"))}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left.*resume=True"):
            subject.fit(12, folder=folder, save_every=2, resume=True)
        with pytest.raises(OSError, match="No space left"):
            fit.save(tmp_path / "model")
    assert {file: file.read_bytes() for file in sorted(folder.glob("checkpoint-*"))} == files
    same(subject.fit(12), subject.fit(12, folder=folder, resume=True))


@every_model
def test_files_of_other_models_are_refused(name: str, tmp_path: Path):
    other = SUBJECTS[list(SUBJECTS)[list(SUBJECTS).index(name) - 1]]
    other.fit(4, folder=tmp_path / "run")
    with pytest.raises(ValueError, match="another model"):
        SUBJECTS[name].fit(8, folder=tmp_path / "run", resume=True)
    other.fit(2).save(tmp_path / "model")
    for folder in ("model", "run"):
        with pytest.raises(ValueError, match="another model"):
            SUBJECTS[name].model.load(tmp_path / folder)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("exploded",))


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda content: content[:-9], "cut short|no checkpoint"),
    "empty": (lambda content: b"", "cut short|no checkpoint"),
    "a flipped byte": (flipped, "altered|no checkpoint"),
    "a pickle": (lambda content: pickle.dumps(Bomb()), "looks like a pickle"),
}


@every_model
@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_files_are_refused(
    name: str,
    suffix: str,
    damage: Callable[[bytes], bytes],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """A model's file is not read; a run goes on from the checkpoint before."""
    monkeypatch.chdir(tmp_path)
    subject = SUBJECTS[name]
    subject.fit(6, folder=tmp_path / "run", save_every=2).save(tmp_path / "model")
    for folder in ("run", "model"):
        newest = sorted((tmp_path / folder).glob(f"checkpoint-*.{suffix}"))[-1]
        newest.write_bytes(damage(newest.read_bytes()))
    with pytest.raises(CheckpointError, match=words):
        subject.model.load(tmp_path / "model")
    with pytest.warns(UserWarning, match=rf"({words}).*0004.json is used"):
        again = subject.fit(8, folder=tmp_path / "run", resume=True)
    same(subject.fit(8), again)
    assert not (tmp_path / "exploded").exists()


def rows(change: Callable[[Tensor], Tensor]) -> Tensor:
    return change(bits())


def holed(x: Tensor) -> Tensor:
    x[3, 1, 2] = torch.nan
    return x


def endless(x: Tensor) -> Tensor:
    x[3, 1, 2] = torch.inf
    return x


MODELS = {"VAE": VAE(2), "Diffusion": Diffusion(Levels(2)), "GAN": GAN(2, (8,))}
OF_ALL: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "no rows": (lambda x: x[:0], "at least 1"),
    "a single axis": (lambda x: x[:, 0, 0], "rows"),
    "NaN pixels": (holed, "must be finite"),
    "infinite pixels": (endless, "must be finite"),
}
OF_KINDS: dict[str, tuple[Any, Callable[[Tensor], Tensor], str]] = {
    "grey Bernoulli": (VAE(2), lambda x: 0.5 * x, "grey"),
    "bytes as Bernoulli": (VAE(2), lambda x: 255 * x, "0 to 255"),
    "negative probabilities": (VAE(2, Bernoulli(dynamic=True)), lambda x: x - 0.5, "-0.5"),
    "grey categories": (VAE(2, Categorical(2)), lambda x: 0.5 * x, "whole numbers"),
    "a level too many": (VAE(2, Categorical(2)), lambda x: 2 * x, "from 0 to 1, got 0 to 2"),
    "a trial too many": (VAE(2, Binomial(2)), lambda x: 2 * x, "from 0 to 1, got 0 to 2"),
    "half trials": (VAE(2, Binomial(3)), lambda x: x + 0.5, "whole numbers"),
    "levels beyond": (VAE(2, DiscretizedLogistic(2)), lambda x: -x, "from 0 to 1, got -1"),
    "diffusing grey": (Diffusion(Levels(2)), lambda x: 0.5 * x, "whole numbers"),
    "diffusing beyond": (Diffusion(Levels(2)), lambda x: 2 * x, "from 0 to 1, got 0 to 2"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("change", "words"), OF_ALL.values(), ids=OF_ALL)
def test_rows_that_no_model_takes(name: str, change: Callable[[Tensor], Tensor], words: str):
    with pytest.raises(ValueError, match=words):
        MODELS[name].fit(rows(change), generator=seed())


@pytest.mark.parametrize(("model", "change", "words"), OF_KINDS.values(), ids=OF_KINDS)
def test_rows_of_another_kind(model: Any, change: Callable[[Tensor], Tensor], words: str):
    """As training and as validation data."""
    with pytest.raises(ValueError, match=words):
        model.fit(rows(change), generator=seed())
    sound = bits()
    with pytest.raises(ValueError, match=words):
        model.fit(sound, validation=rows(change), max_steps=2, generator=seed())


ANSWERS: dict[str, Callable[[Any, Tensor], Any]] = {
    "VAE": lambda fit, x: fit.log_likelihood(x, num_importance=2),
    "Diffusion": lambda fit, x: fit.elbo(x, num_draws=2),
    "GAN": lambda fit, x: fit.divergence(x),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("change", "words"),
    [*OF_ALL.values(), (lambda x: x.mT, r"\(2, 3\)"), (lambda x: x[:, :1], r"\(2, 3\)")],
    ids=[*OF_ALL, "pictures on their side", "half of the pictures"],
)
def test_fits_refuse_the_same_rows(name: str, change: Callable[[Tensor], Tensor], words: str):
    fit = SUBJECTS[name].fit(2)
    with pytest.raises(ValueError, match=rf"{words}|\(2, 3\)"):
        ANSWERS[name](fit, rows(change))


@every_model
def test_batches_larger_than_the_data_are_the_data(name: str):
    """One step is an epoch."""
    subject = SUBJECTS[name]
    fit = subject.fit(4, batch_size=10_000, log_every=1)
    assert fit.training.num_steps == 4
    assert [r["epoch"] for r in fit.training.history if "epoch" in r] == [1.0, 2.0, 3.0, 4.0]
    same(fit, subject.fit(4, batch_size=60, log_every=1))


@pytest.mark.parametrize(
    "model", [VAE(2, Gaussian()), Diffusion(Real())], ids=["VAE", "Diffusion"]
)
def test_conditions_of_other_lengths_are_refused(model: Any):
    with pytest.raises(ValueError, match="condition"):
        model.fit(bits(), condition=torch.zeros(3, 2), max_steps=2)


def test_subjects_cover_the_models():
    assert {type(s.model) for s in SUBJECTS.values()} == {type(m) for m in MODELS.values()}
    assert all(isinstance(s, Subject) for s in SUBJECTS.values())
    with pytest.raises(FileNotFoundError):
        load_checkpoint(Path(__file__).parent)
