"""Long streams of numbers, in few passes over each block and no memory but for their tails.

As `running`, for one real number a draw: sums about a shift near the mean, extremes row by row,
and of the terms beyond the largest ones so far only the rows that hold any. The mean deviation
is that of the stream's beginning.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.integration.running import Running

LONG = 2**19  # draws of a block, which fit into a processor's cache
_LONGEST = 2**24  # elsewhere, where a block costs as much to start as a million draws
_ROW = 2**8


class _Tail:
    """The largest of a stream's numbers times a sign; most rows are rejected by their extremes."""

    def __init__(self, kept: Float[Tensor, " k"], sign: float) -> None:
        self._kept, self._sign = kept, sign
        self._fresh: list[Tensor] = []
        self._count = 0
        self._least = float(kept[-1])

    def add(self, rows: Float[Tensor, "r w"], extremes: Float[Tensor, " r"]) -> None:
        """Keep what is beyond the least that is kept."""
        hit = (self._sign * extremes > self._least).nonzero()[:, 0]
        if not len(hit):
            return
        some = self._sign * rows[hit].flatten().double()
        some = some[some > self._least]
        self._fresh.append(some)
        self._count += len(some)
        if self._count > len(self._kept):
            self.largest()

    def largest(self) -> Float[Tensor, " k"]:
        """What is kept, descending."""
        if self._fresh:
            every = torch.cat([self._kept, *self._fresh])
            self._kept = every.topk(len(self._kept)).values
            self._least, self._fresh, self._count = float(self._kept[-1]), [], 0
        return self._kept


class Stream:
    """A stream that began with some terms of one real number each.

    Args:
        begun: What is known of its beginning; with as many of the largest as are to be kept.
    """

    def __init__(self, begun: Running) -> None:
        self._begun, self._shift = begun, float(begun.mean)
        self._above = _Tail(begun.above.flatten(), 1.0)
        self._below = _Tail(begun.below.flatten(), -1.0)
        self._num = begun.num
        self._sum = 0.0
        self._squares = float(begun.squares)
        self._size = float(begun.size)
        self._low, self._high = float(begun.low), float(begun.high)

    @property
    def block(self) -> int:
        """How many terms to add at once."""
        return LONG if self._begun.mean.device.type == "cpu" else _LONGEST

    def add(self, terms: Float[Tensor, " n"]) -> None:
        """A block of terms, in any precision."""
        rows = terms.reshape(-1, _ROW if len(terms) % _ROW == 0 else 1)
        highest, lowest = rows.amax(dim=1), rows.amin(dim=1)
        apart = terms - self._shift
        figures = apart.sum(), torch.dot(apart, apart), highest.max(), lowest.min()
        total, squares, high, low = torch.stack(figures).tolist()
        if not math.isfinite(squares):  # perhaps too large for single precision only
            apart = terms.double() - self._shift
            total, squares = float(apart.sum()), float(torch.dot(apart, apart))
        if low >= 0 or high <= 0:
            self._size += abs(total + len(terms) * self._shift)
        else:
            self._size += float(torch.linalg.vector_norm(terms, 1))
        self._num += len(terms)
        self._sum += total
        self._squares += squares
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._above.add(rows, highest)
        self._below.add(rows, lowest)

    def running(self) -> Running:
        """What is known by now."""
        begun, n = self._begun, self._num
        mean = self._shift + self._sum / n
        raw = self._squares + self._sum * 2 * self._shift + n * self._shift**2
        like = begun.mean
        number = lambda x: torch.full_like(like, x)  # noqa: E731
        shape = (-1, *like.shape)
        above, below = self._above.largest(), self._below.largest()
        top = torch.cat([above, below]).topk(len(begun.top)).values
        finite = all(map(math.isfinite, (self._low, self._high, self._squares)))
        return Running(
            n,
            number(mean),
            number(max(self._squares - self._sum**2 / n, 0.0)),
            number(self._size),
            number(max(raw, 0.0)),
            number(self._low),
            number(self._high),
            top.reshape(shape),
            begun.finite & finite,
            begun.scatter * (n / begun.num),
            above.reshape(shape),
            below.reshape(shape),
        )
