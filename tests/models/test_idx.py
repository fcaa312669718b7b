"""Idx files: what was written comes back, and every fault is named."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from probcalc.models.idx import labelled_images, read_idx

# kind -> format of struct, dtype of torch
KINDS = {
    0x08: ("B", torch.uint8),
    0x09: ("b", torch.int8),
    0x0B: ("h", torch.int16),
    0x0C: ("i", torch.int32),
    0x0D: ("f", torch.float32),
    0x0E: ("d", torch.float64),
}
SHAPES = [(6,), (2, 3), (3, 2, 4), (0, 5)]


def idx_bytes(kind: int, shape: tuple[int, ...], numbers: list) -> bytes:
    """As the format says, number by number."""
    head = bytes([0, 0, kind, len(shape)]) + b"".join(struct.pack(">I", s) for s in shape)
    return head + b"".join(struct.pack(f">{KINDS[kind][0]}", v) for v in numbers)


def images(n: int) -> bytes:
    return idx_bytes(0x08, (n, 2, 2), [(37 * i) % 256 for i in range(4 * n)])


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_comes_back(kind: int, shape: tuple[int, ...], packed: bool, tmp_path):
    count = int(np.prod(shape))
    signed = -1 if kind != 0x08 else 1
    numbers = [signed * i * 3 for i in range(count)]
    raw = idx_bytes(kind, shape, numbers)
    path = tmp_path / "some"  # the ending says nothing
    path.write_bytes(gzip.compress(raw) if packed else raw)
    found = read_idx(path)
    assert found.dtype == KINDS[kind][1]
    assert tuple(found.shape) == shape
    assert found.flatten().tolist() == numbers
    found.zero_()  # the caller's own memory


GOOD = images(3)
# what is in the file -> words of the refusal
FAULTS = {
    "empty": (b"", "no idx file"),
    "text": (b"<html>", "no idx file.*60 104 116 109"),
    "magic": (b"\1" + GOOD[1:], "no idx file"),
    "kind": (GOOD[:2] + b"\x0a" + GOOD[3:], "no idx file"),
    "no axes": (GOOD[:3] + b"\0" + GOOD[4:], "no idx file"),
    "cut in the sizes": (GOOD[:9], "ends within its sizes"),
    "cut in the numbers": (GOOD[:-1], "need 12 bytes, it has 11"),
    "only sizes": (GOOD[:16], "it has 0"),
    "sizes out of all proportion": (
        GOOD[:4] + b"\xff" * 8 + GOOD[12:],
        "cut short",
    ),
    "longer": (GOOD + b"\0", "goes on after the 12 bytes"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(("raw", "words"), FAULTS.values(), ids=FAULTS)
def test_faults_are_named(raw: bytes, words: str, packed: bool, tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(raw) if packed else raw)
    with pytest.raises(ValueError, match=words) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("end", [3, 15, -9, -1])
def test_a_packed_file_that_was_cut_is_damaged(end: int, tmp_path: Path):
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(GOOD)[:end])
    with pytest.raises(ValueError, match="damaged|cut short|no idx file"):
        read_idx(path)


def test_a_flipped_byte_of_a_packed_file_is_seen(tmp_path: Path):
    raw = bytearray(gzip.compress(GOOD))
    for place in range(10, len(raw)):  # behind gzip's own header
        broken = raw.copy()
        broken[place] ^= 0x55
        path = tmp_path / f"{place}.gz"
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="damaged|cut short|no idx file|goes on"):
            read_idx(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_idx(tmp_path / "nowhere")


def pair(folder: Path, x: bytes, y: bytes, ending: str = "") -> None:
    pack = gzip.compress if ending else bytes
    (folder / f"t10k-images-idx3-ubyte{ending}").write_bytes(pack(x))
    (folder / f"t10k-labels-idx1-ubyte{ending}").write_bytes(pack(y))


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_images_are_from_zero_to_one(ending: str, tmp_path: Path):
    pair(tmp_path, idx_bytes(8, (2, 1, 2), [0, 255, 51, 102]), idx_bytes(8, (2,), [7, 3]), ending)
    x, y = labelled_images(tmp_path, "t10k")
    assert torch.equal(x, torch.tensor([[[0.0, 1.0]], [[0.2, 0.4]]]))
    assert y.tolist() == [7, 3]


# images, labels -> refused
PAIRS = {
    "fewer labels": (images(3), idx_bytes(8, (2,), [1, 2])),
    "labels in the place of images": (idx_bytes(8, (2,), [1, 2]), idx_bytes(8, (2,), [1, 2])),
    "none": (images(0), idx_bytes(8, (0,), [])),
    "real numbers": (idx_bytes(13, (1, 1, 1), [0.5]), idx_bytes(8, (1,), [1])),
}


@pytest.mark.parametrize(("x", "y"), PAIRS.values(), ids=PAIRS)
def test_pairs_must_fit(x: bytes, y: bytes, tmp_path: Path):
    pair(tmp_path, x, y)
    with pytest.raises(ValueError, match="must be bytes"):
        labelled_images(tmp_path, "t10k")


def test_a_missing_half_is_named(tmp_path: Path):
    pair(tmp_path, images(1), idx_bytes(8, (1,), [1]))
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte or"):
        labelled_images(tmp_path, "t10k")
