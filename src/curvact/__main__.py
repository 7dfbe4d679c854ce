"""The `curvact` command, and `python -m curvact`: Ctrl-C ends them in one line, whenever it comes."""

from __future__ import annotations

import os
import signal
from types import FrameType

from curvact.lab.cli import STOPPED


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGINT, _interrupt)
    from curvact.lab.cli.main import main as command

    command()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The first Ctrl-C stops the command. More of them do not disturb it while it ends, but a third.

    An import that is interrupted half-way leaves modules that later fail in other ways. While one is
    running nothing has begun that would have to end in order.
    """
    again = iter((False, True))
    signal.signal(number, lambda *_: _leave() if next(again, True) else None)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _leave()
        frame = frame.f_back
    raise KeyboardInterrupt


def _leave() -> None:
    os.write(2, f"curvact: {STOPPED}\n".encode())
    os._exit(130)


if __name__ == "__main__":
    main()
