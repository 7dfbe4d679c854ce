"""The `curvact` command, and `python -m curvact`: Ctrl-C and SIGTERM end them in one line, whenever they come."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from types import FrameType

from curvact.lab.cli import STOPPED

_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""Exit codes by signal, as a shell has them."""

_came: list[int] = []
"""The signals that came, in their order."""


def main() -> None:
    """Run the command line."""
    atexit.register(_deafen)  # the first that is registered is the last that runs
    for number in _CODES:
        # A process of torchrun that waits for the others has to end at once.
        if number == signal.SIGINT or os.environ.get("WORLD_SIZE", "1") == "1":
            signal.signal(number, _interrupt)
    from curvact.lab.cli.main import main as command

    try:
        command()
    except SystemExit as end:
        if _came and end.code == 130:
            sys.exit(_code())
        raise


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The first signal stops the command. More of them do not disturb it while it ends, but a third.

    An import that is interrupted half-way leaves modules that later fail in other ways. While one is
    running nothing has begun that would have to end in order.
    """
    _came.append(number)
    if len(_came) > 1:
        if len(_came) > 2:
            _leave()
        return
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _leave()
        frame = frame.f_back
    raise KeyboardInterrupt


def _deafen() -> None:
    """After a signal, ignore more of them: Python's last steps restore the defaults, which kill."""
    if _came:
        for number in _CODES:
            signal.signal(number, signal.SIG_IGN)


def _code() -> int:
    """The exit code for the first signal."""
    return _CODES[signal.Signals(_came[0])]


def _leave() -> None:
    os.write(2, f"curvact: {STOPPED}\n".encode())
    os._exit(_code())


if __name__ == "__main__":
    main()
