"""`vae_mnist`: images that are found, fetched or refused, and what a short run says of them."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks.vae_by_hand import LATENTS, PIXELS, Network
from benchmarks.vae_mnist import log_evidence
from probcalc.cli import BAD_INPUT, main
from probcalc.experiment import load

NUM, SIDE = 10_000, 4
IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def written(folder: Path, num: int = NUM) -> Path:
    """Small images in idx files, as torchvision unpacks them."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (num, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    labels = torch.arange(num, dtype=torch.uint8) % 10
    folder.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(n.to_bytes(4, "big") for n in (num, SIDE, SIDE))
    head = b"\0\0\x08\3" + sizes
    (folder / IMAGES).write_bytes(head + pixels.numpy().tobytes())
    labelled = b"\0\0\x08\1" + num.to_bytes(4, "big") + labels.numpy().tobytes()
    (folder / LABELS).write_bytes(labelled)
    return folder


@pytest.fixture
def mnist(shared: Path) -> Path:
    found = shared / "data" / "mnist"
    if not found.is_dir():
        pytest.skip("no MNIST in the shared folder")
    return found


def test_the_split_is_of_all_images_and_always_the_same(tmp_path: Path):
    read = load("vae_mnist").module.data
    x, held, labels = read(str(written(tmp_path)))
    assert (len(x), len(held), len(labels)) == (8_000, 2_000, 2_000)
    both = torch.cat([x, held]).flatten(1)
    assert len(both.unique(dim=0)) == NUM
    assert labels.bincount(minlength=10).min() > 100  # of 200 in the mean
    again = read(str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(again, (x, held, labels), strict=True))


def test_a_short_run_finds_numbers_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    written(tmp_path / "data")
    out = tmp_path / "run"
    knobs = ["--epochs", "1", "--draws", "4"]
    main(["run", "vae_mnist", "--data", str(tmp_path / "data"), *knobs, "--out", str(out)])
    assert "nats an image" in capsys.readouterr().out
    pictures = {"samples", "reconstructions", "traversal", "codes", "training"}
    assert {p.stem for p in out.glob("*.png")} == pictures


def broken(raw: bytes) -> bytes:
    return raw[:-1]


def packed_and_broken(raw: bytes) -> bytes:
    return gzip.compress(raw)[:-9]


def other_magic(raw: bytes) -> bytes:
    return b"\x89PNG" + raw[4:]


# fault of the images -> words of the refusal
FAULTS = {
    "cut short": (broken, "cut short"),
    "packed and cut short": (packed_and_broken, "damaged"),
    "no idx file": (other_magic, "no idx file"),
}


@pytest.mark.parametrize(("fault", "words"), FAULTS.values(), ids=FAULTS)
def test_damaged_files_are_named(
    fault: object, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images = written(tmp_path / "data") / IMAGES
    images.write_bytes(fault(images.read_bytes()))
    options = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    assert main(["run", "vae_mnist", *options]) == BAD_INPUT
    said = capsys.readouterr().err
    assert words in said
    assert IMAGES in said


def test_too_few_images_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="must hold 10,000 images, got 9,999"):
        load("vae_mnist").module.data(str(written(tmp_path, NUM - 1)))


def test_a_folder_without_files_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(FileNotFoundError, match="idx files, or install torchvision"):
        load("vae_mnist").module.data(str(tmp_path))


def stand_in(monkeypatch: pytest.MonkeyPatch, fetch: object) -> None:
    for name in ("torchvision", "torchvision.datasets"):
        module = ModuleType(name)
        module.MNIST = fetch
        monkeypatch.setitem(sys.modules, name, module)


def test_torchvision_fetches_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stand-in that writes where torchvision does: `root/MNIST/raw`."""
    calls = []

    def fetch(root: Path, *, train: bool, download: bool) -> None:
        calls.append((train, download))
        written(Path(root) / "MNIST" / "raw")

    stand_in(monkeypatch, fetch)
    read = load("vae_mnist").module.data
    first, second = read(str(tmp_path)), read(str(tmp_path))
    assert calls == [(False, True)]
    assert torch.equal(first[0], second[0])


def test_a_fetch_that_fails_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fetch(*_: object, **__: object) -> None:
        raise RuntimeError("Error downloading t10k-images-idx3-ubyte.gz")

    stand_in(monkeypatch, fetch)
    with pytest.raises(FileNotFoundError, match="Error downloading.*give `--data`"):
        load("vae_mnist").module.data(str(tmp_path))


@pytest.mark.parametrize("knobs", [{"epochs": 0}, {"draws": 0}])
def test_numbers_are_checked(knobs: dict):
    with pytest.raises(ValueError, match="above 0"):
        load("vae_mnist").config_class(**knobs)


def test_the_evidence_by_hand_is_exact_where_the_decoder_ignores_the_latents():
    """Then p(x) is a product of pixels, and q the prior: every weight is p(x)."""
    network = Network()
    for layer in (network.encoder[-1], network.decoder[-1]):
        layer.weight.data.zero_()
    network.encoder[-1].bias.data.zero_()
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(2, (3, PIXELS), generator=generator).float()
    found = log_evidence(network, x, 5, generator)
    pixels = torch.distributions.Bernoulli(logits=network.decoder(torch.zeros(1, LATENTS)))
    torch.testing.assert_close(found, pixels.log_prob(x).sum(dim=1).double(), rtol=1e-5, atol=0)


def test_the_real_images_are_read(mnist: Path):
    """MNIST's test images: as many of each digit as LeCun et al. say, and the mean pixel."""
    x, held, labels = load("vae_mnist").module.data(str(mnist))
    assert x.shape == (8_000, 28, 28)
    assert float(torch.cat([x, held]).mean()) == pytest.approx(0.1325, abs=1e-4)
    assert len(labels.unique()) == 10


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_the_claim_holds(mnist: Path):
    experiment = load("vae_mnist")
    config = experiment.config_class(data=str(mnist))
    study = experiment.run(config, generator=torch.Generator().manual_seed(1))
    assert study.ok, "\n".join(study.lines())
