"""``python -m benchmarks NAME [--rounds N] [--device cpu|cuda] | all | list``."""

from __future__ import annotations

import os
import sys

from benchmarks.record import PINNED

os.environ.update(PINNED)  # read once, when torch and jax are first imported

from benchmarks.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
