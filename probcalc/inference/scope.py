"""The settings under which model code runs, restored afterwards.

Python numbers in a model are to count as float64 (`torch.distributions` turns them into tensors
of the default dtype), and argument validation reads values on the host, which a trace cannot.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch


@contextmanager
def model_scope(dtype: torch.dtype, *, validate: bool = False) -> Iterator[None]:
    """Default dtype and validation inside the block; also usable as a decorator."""
    before = torch.get_default_dtype()
    with pyro.validation_enabled(validate):
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
