"""Seeds, guards and switches of the whole suite.

pytest                     one fixed seed: the same numbers at every run
pytest --vary-seed         a fresh seed, printed; every test must hold for any seed
pytest --base-seed N       that seed again
PROBCALC_REQUIRE_GPU=1     a `gpu` test without a CUDA device fails instead of being skipped
"""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path

import laws
import leaks
import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
FIXED_SEED = 17

settings.register_profile("ci", derandomize=True, deadline=None, database=None)
settings.register_profile("vary", deadline=None, database=None, print_blob=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("probcalc")
    group.addoption("--vary-seed", action="store_true", help="draw a fresh base seed, print it")
    group.addoption("--base-seed", type=int, help=f"base seed of the run ({FIXED_SEED})")


def pytest_configure(config: pytest.Config) -> None:
    vary = config.option.vary_seed
    if config.option.base_seed is None:  # workers of pytest-xdist inherit the drawn one
        config.option.base_seed = secrets.randbelow(2**31) if vary else FIXED_SEED
    settings.load_profile("vary" if vary else "ci")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if config.option.vary_seed:
        terminalreporter.write_line(f"--base-seed {config.option.base_seed}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None or torch.cuda.is_available():
        return
    if os.environ.get("PROBCALC_REQUIRE_GPU") == "1":
        pytest.fail("PROBCALC_REQUIRE_GPU=1, but torch sees no CUDA device", pytrace=False)
    pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    """Fail a test that leaves global state changed."""
    before = leaks.snapshot()
    yield
    left = leaks.changed(before, leaks.snapshot())
    assert not left, f"global state left changed (before, after): {left}"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The test's own seed, from the base seed and its name: tests do not share draws."""
    name = request.node.nodeid.rpartition("/")[2]
    return zlib.crc32(f"{request.config.option.base_seed}:{name}".encode())


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    """A generator with the test's own seed."""
    return laws.generator(seed)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data beside the repository; tests that read it are skipped without it."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder.name} beside the repository")
    return folder
