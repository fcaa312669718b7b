"""Arrays in idx files, the format of MNIST: a magic number, sizes, numbers, high bytes first.

    0 0 kind axes | size … | number …

Plain or packed by gzip, which is seen by the file's first bytes. A file is read as a whole or
refused. LeCun, Bottou, Bengio & Haffner (1998), Gradient-based learning applied to document
recognition, whose data came in it.
"""

from __future__ import annotations

import gzip
import math
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_KINDS = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP = b"\x1f\x8b"
_SIZE = 4  # bytes of a size
_PIXEL = 255  # the brightest


def read_idx(path: Path | str) -> Tensor:
    """The array of a file, in its own type of numbers.

    Args:
        path: With or without gzip's packing.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no idx file, or damaged: cut short, or longer than its sizes say.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    with path.open("rb") as file:
        packed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        if not packed:
            return _array(file, path)
        with gzip.open(file) as unpacked:
            try:
                return _array(unpacked, path)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise ValueError(f"{path} is damaged: {error}; fetch it again.") from error


def labelled_images(folder: Path | str, name: str) -> tuple[Tensor, Tensor]:
    """Images from 0 to 1, ``(n, h, w)``, and their classes ``(n,)``.

    Args:
        folder: Of ``NAME-images-idx3-ubyte`` and ``NAME-labels-idx1-ubyte``, packed or not.
        name: Such as ``t10k`` or ``train``.

    Raises:
        FileNotFoundError: If one of the files is missing.
        ValueError: If one is damaged, or they are not of as many images.
    """
    images = _found(Path(folder), f"{name}-images-idx3-ubyte")
    labels = _found(Path(folder), f"{name}-labels-idx1-ubyte")
    x, y = read_idx(images), read_idx(labels)
    wanted = x.ndim == 3 and y.ndim == 1 and x.dtype == y.dtype == torch.uint8
    if not wanted or len(x) != len(y) or not len(x):
        raise ValueError(
            f"{images} and {labels} must be bytes (n, h, w) and (n,), got {_words(x)} and "
            f"{_words(y)}."
        )
    return x.float() / _PIXEL, y.long()


def _array(file: BufferedIOBase, path: Path) -> Tensor:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _KINDS or not magic[3]:
        raise ValueError(
            f"{path} is no idx file: it must begin with 0 0, a kind of number from 8 to 14 and "
            f"the number of axes, but begins with {' '.join(map(str, magic)) or 'nothing'}."
        )
    header = file.read(_SIZE * magic[3])
    if len(header) < _SIZE * magic[3]:
        raise ValueError(f"{path} is cut short: it ends within its sizes; fetch it again.")
    shape = tuple(np.frombuffer(header, ">u4").tolist())
    kind = np.dtype(_KINDS[magic[2]])
    size = math.prod(shape) * kind.itemsize
    body = file.read()  # not as many bytes as a damaged header may ask for
    if len(body) < size:
        raise ValueError(
            f"{path} is cut short: the sizes {shape} need {size:,} bytes, it has {len(body):,}; "
            "fetch it again."
        )
    if len(body) > size:
        raise ValueError(f"{path} is damaged: it goes on after the {size:,} bytes of {shape}.")
    numbers = np.frombuffer(body, kind).astype(kind.newbyteorder("="))  # a copy, to be written to
    return torch.from_numpy(numbers).reshape(shape)


def _found(folder: Path, stem: str) -> Path:
    for path in (folder / stem, folder / f"{stem}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"the folder {folder} must hold {stem} or {stem}.gz.")


def _words(t: Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}"
