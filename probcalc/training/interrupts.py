"""Ends from outside: a time limit, Ctrl-C, and the signal by which a cluster stops a job.

A signal is noted and acted on after the step that it fell into, so that what is saved is whole. A
second one acts at once.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from probcalc.training.parallel import largest

EXIT_TERMINATED = 143  # 128 + SIGTERM, as shells report it
_CAUGHT = (signal.SIGINT, signal.SIGTERM)  # 2 and 15; 1 stands for the end of the time


class Interrupts:
    """What has come from outside.

    Args:
        max_seconds: Time that the run may take; None for no limit.
    """

    def __init__(self, max_seconds: float | None) -> None:
        if max_seconds is not None and not max_seconds > 0:
            raise ValueError(f"`max_seconds` must be positive, got {max_seconds}.")
        self.deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self.limit, self.caught = max_seconds, 0

    @property
    def reason(self) -> str:
        """Why to end after this step; empty to go on."""
        if self.caught:
            return f"stopped by {signal.Signals(self.caught).name}"
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return f"stopped at the time limit of {self.limit:g} s"
        return ""

    def agreed(self, device: torch.device) -> str:
        """The same of all processes: a signal to one, or the end of its time, is one to all."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        code = largest(self.caught or int(late), device)
        self.caught = code if code in _CAUGHT else 0
        return self.reason or ("stopped at the time limit of another process" if code else "")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note signals meanwhile; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _CAUGHT}

        def note(number: int, frame: FrameType | None) -> Any:
            if self.caught:
                signal.signal(number, before[number])
                signal.raise_signal(number)
            self.caught = number

        for number in _CAUGHT:
            if before[number] is not None:
                signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)

    def raise_again(self) -> None:
        """Pass on what was noted.

        Raises:
            KeyboardInterrupt: After Ctrl-C.
            SystemExit: With code 143 after SIGTERM.
        """
        if self.caught == signal.SIGINT:
            raise KeyboardInterrupt
        if self.caught == signal.SIGTERM:
            raise SystemExit(EXIT_TERMINATED)
