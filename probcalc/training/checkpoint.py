"""Files that a run is continued from: all of it or nothing, and never code.

A checkpoint is `checkpoint-<step>.safetensors` and, written last, `checkpoint-<step>.json` with
the numbers that are no tensors and the checksums of both. Each file is written under another name,
flushed to the disk and renamed, so that a process that is killed leaves the checkpoint before.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

_FORMAT = "probcalc training 1"
_KEPT = 2  # checkpoints, the newest ones
_PICKLES = (b"\x80", b"PK\x03\x04")  # how pickles begin, and the archives of torch.save


class CheckpointError(ValueError):
    """A file is not the checkpoint that was saved."""


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], record: dict[str, Any]
) -> Path:
    """Write a checkpoint, and remove all but the newest two.

    Args:
        folder: Where; made if it is not there.
        step: Its number.
        tensors: By name; of any device, written from the CPU.
        record: What JSON can hold.

    Returns:
        The path of the tensors.

    Raises:
        OSError: If the disk is full or not writable; the checkpoints before are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"checkpoint-{step:09d}"
    own = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    content = bytes_of(own)
    body = json.dumps(record, sort_keys=True)
    seal = {
        "format": _FORMAT,
        "tensors": hashlib.sha256(content).hexdigest(),
        "record": hashlib.sha256(body.encode()).hexdigest(),
    }
    _replace(stem.with_suffix(".safetensors"), content)
    _replace(stem.with_suffix(".json"), _sealed(seal, body))
    _tidy(folder)
    return stem.with_suffix(".safetensors")


def load_checkpoint(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and record of a checkpoint, or of the newest whole one in a folder.

    Args:
        path: A folder, or one of the two files of a checkpoint.

    Raises:
        CheckpointError: If it was cut short, altered, or is something else. In a folder, the
            newest one that is whole is taken, with a warning.
        FileNotFoundError: If there is none.
    """
    path = Path(path)
    if not path.is_dir():
        return _opened(path.with_suffix(".json"))
    broken: list[str] = []
    for seal in reversed(sorted(path.glob("checkpoint-*.json"))):
        try:
            found = _opened(seal)
        except CheckpointError as error:
            broken.append(str(error))
            continue
        if broken:
            warnings.warn(f"{' '.join(broken)} {seal.name} is used instead.", stacklevel=2)
        return found
    if broken:
        raise CheckpointError(" ".join(broken))
    raise FileNotFoundError(f"there is no checkpoint in {path}.")


def has_checkpoint(folder: Path) -> bool:
    """Whether anything there calls itself a checkpoint."""
    return any(folder.glob("checkpoint-*.json"))


def _opened(seal: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    data = seal.with_suffix(".safetensors")
    for file in (seal, data):
        if not file.exists():
            raise CheckpointError(f"{file.name} is missing.")
    try:
        whole = json.loads(seal.read_bytes())
        sealed, body = whole["seal"], whole["record"]
        kind = sealed["format"]
        good = hashlib.sha256(body.encode()).hexdigest() == sealed["record"]
        good = good and _sealed(sealed, body) == seal.read_bytes()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{seal.name} is no checkpoint of ours.{_why(seal)}") from error
    if kind != _FORMAT:
        raise CheckpointError(f"{seal.name} is of the format {kind!r}, not {_FORMAT!r}.")
    content = data.read_bytes()
    if not good:
        raise CheckpointError(f"{seal.name} was altered since it was saved.")
    if hashlib.sha256(content).hexdigest() != sealed["tensors"]:
        raise CheckpointError(
            f"{data.name} was cut short or altered since it was saved.{_why(data)}"
        )
    return tensors_of(content), json.loads(body)


def _sealed(seal: dict[str, str], body: str) -> bytes:
    return json.dumps({"seal": seal, "record": body}).encode()


def _why(file: Path) -> str:
    with file.open("rb") as stream:
        start = stream.read(4)
    pickled = any(start.startswith(mark) for mark in _PICKLES)
    return " It looks like a pickle, which may run code and is not opened." if pickled else ""


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with unfinished.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"{path.name} could not be written ({error.strerror}); the checkpoint before it is "
            "whole, and a run with `resume=True` goes on from there",
        ) from error


def _tidy(folder: Path) -> None:
    sealed = {seal.stem for seal in folder.glob("checkpoint-*.json")}
    kept = set(sorted(sealed)[-_KEPT:])
    # first the seals: tensors without one are nothing, a seal without tensors would be a fault
    for suffix in (".json", ".safetensors"):
        for file in folder.glob(f"checkpoint-*{suffix}"):
            if file.stem not in kept:
                file.unlink(missing_ok=True)
    for file in folder.glob("checkpoint-*.unfinished"):  # of a process that was killed
        file.unlink(missing_ok=True)
