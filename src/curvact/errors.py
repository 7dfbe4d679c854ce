"""Bad input, said in one clear line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CurvactError(ValueError):
    """Bad input: the message is one line that names the value, the place and what is allowed.

    The command line prints it as it is and exits with code 2.
    """


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`'; did you mean 'x'?'` for the nearest allowed name, or an empty string.

    >>> nearest("rtcaf", ["rctaf", "swish"])
    "; did you mean 'rctaf'?"
    >>> nearest("zzz", ["rctaf", "swish"])
    ''
    """
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
