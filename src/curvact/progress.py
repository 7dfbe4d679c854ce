"""Progress of slow steps, as one line on standard error where that is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class Progress:
    """A line such as `decoding images: 40 %`, at most ten times a second, removed at the end.

    pooch can use it as a progress bar: it sets `total` and calls the three methods.
    """

    def __init__(self, text: str, total: int = 0) -> None:
        self.text, self.total = text, total
        self.done, self.shown = 0, 0.0

    def update(self, count: int) -> None:
        """Count `count` more units as done."""
        self.done += count
        now = time.monotonic()
        if self.total and now - self.shown > 0.1 and sys.stderr.isatty():
            self.shown = now
            percent = min(100, 100 * self.done // self.total)
            print(f"\r{self.text}: {percent} %", end="", file=sys.stderr, flush=True)

    def reset(self) -> None:
        """Start again from 0."""
        self.done = 0

    def close(self) -> None:
        """Remove the line."""
        if self.shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def track(items: Sequence[T], text: str) -> Iterator[T]:
    """The items one by one, with a progress line.

    >>> list(track([1, 2], "counting"))
    [1, 2]
    """
    progress = Progress(text, len(items))
    try:
        for item in items:
            yield item
            progress.update(1)
    finally:
        progress.close()
