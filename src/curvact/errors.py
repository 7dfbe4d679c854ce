"""Bad input, said in one clear line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CurvactError(ValueError):
    """Bad input: the message is one line that names the value, the place and what is allowed.

    The command line prints it as it is and exits with code 2.
    """


_LONGEST_NAME = 100


def short(text: str, length: int = 200) -> str:
    """The text, cut where it is longer.

    >>> short("abcdef", 3)
    'abc…'
    """
    return text if len(text) <= length else f"{text[:length]}…"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its type if it has none.

    >>> first_line(RuntimeError("no shape\\nat line 3")), first_line(EOFError())
    ('no shape', 'EOFError')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def for_want_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short: of Python, of NumPy, or of torch on any device.

    >>> for_want_of_memory(MemoryError()), for_want_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in _OF_MEMORY))
    )


_OF_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory")
"""In messages of torch: of its allocator for the CPU, of CUDA and MPS, and of the system."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`'; did you mean 'x'?'` for the nearest allowed name, or an empty string.

    >>> nearest("rtcaf", ["rctaf", "swish"])
    "; did you mean 'rctaf'?"
    >>> nearest("zzz", ["rctaf", "swish"])
    ''
    """
    if not isinstance(name, str) or len(name) > _LONGEST_NAME:
        return ""
    close = difflib.get_close_matches(name, [a for a in allowed if isinstance(a, str)], n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def printable(text: str) -> str:
    r"""A text of somebody else for a terminal: control characters and escape sequences as their
    escapes, so that they do nothing.

    >>> printable("net \x1b[31m\x07 κ")
    'net \\x1b[31m\\x07 κ'
    """
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
