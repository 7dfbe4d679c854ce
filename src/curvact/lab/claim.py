"""The claim of a store: one process at a time drives the runs of a store, and says that it lives."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from curvact.errors import CurvactError, short
from curvact.lab.urls import create, in_one_line, path_in, read_all, remove, write

CLAIM_FILE = ".claim.json"
"""Who writes a store now: machine, process and the time of the last sign of life."""

SIGN_EVERY = 60.0
"""Seconds between two signs of life of the process that holds a store. [ours]"""

STALE_AFTER = 600.0
"""A store whose holder gave no sign for so many seconds is taken over. Clocks may differ by less. [ours]"""

READ_AGAIN = 1.0
"""Seconds until a claim is read again that is not whole, or was just written. [ours]"""

_HELD: dict[str, str] = {}
"""The token of each URL that this process holds."""


class StoreWarning(UserWarning):
    """A store could not be written for now, or was taken over from a process that is gone."""


class Taken(CurvactError):
    """Another process writes the same store."""


@contextmanager
def claimed(url: str) -> Iterator[None]:
    """Hold the store: a second process that wants it is refused in one line.

    A process that is killed leaves its claim. It is taken over at once on the same machine, and
    after STALE_AFTER seconds without a sign of life on another one, with a warning.
    """
    token = secrets.token_hex(8)
    _claim(url, token)
    _HELD[url] = token
    ended = threading.Event()
    thread = threading.Thread(target=_give_signs, args=(url, token, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(20 * READ_AGAIN)
        del _HELD[url]
        with suppress(CurvactError, OSError):
            if (_holder(url) or {}).get("token") == token:
                with in_one_line(url, writing=True):
                    remove(url, path_in(url, CLAIM_FILE))


def check_claim(url: str) -> None:
    """Taken where another process holds the store by now."""
    holder = _holder(url)
    if holder is not None and holder.get("token") != _HELD.get(url):
        raise Taken(f"{_who(holder)} has taken {url} over: this process stops")


def _claim(url: str, token: str) -> None:
    path = path_in(url, CLAIM_FILE)
    with in_one_line(url, writing=True):
        try:
            create(url, path, _sign(token))
        except FileExistsError:
            holder = _holder(url)
            if holder == {}:  # its process may have created it and not written it yet
                time.sleep(READ_AGAIN)
                holder = _holder(url)
            if holder is not None and not _is_gone(holder):
                raise CurvactError(
                    f"{_who(holder)} is writing {url} (last sign {_age(holder):.0f} s ago): wait for it, "
                    "or give another --out"
                ) from None
            write(url, path, _sign(token))
            time.sleep(READ_AGAIN)  # two processes may take it over at once: the later one has it
            if holder is not None:
                warnings.warn(
                    f"{url} was held by {_who(holder)}, without a sign of life for "
                    f"{_age(holder):.0f} s: this process takes it over",
                    StoreWarning,
                    stacklevel=5,
                )
    holder = _holder(url)
    if holder is None or holder.get("token") != token:
        raise CurvactError(f"another process is writing {url}: wait for it, or give another --out")


def _give_signs(url: str, token: str, ended: threading.Event) -> None:
    while not ended.wait(SIGN_EVERY):
        with suppress(CurvactError, OSError):
            if (_holder(url) or {}).get("token") != token:
                return  # taken over: `check_claim` says so
            with in_one_line(url, writing=True):
                write(url, path_in(url, CLAIM_FILE), _sign(token))


def _holder(url: str) -> dict[str, Any] | None:
    """What the claim says; None where there is none. A damaged claim is nobody's."""
    content = read_all(url, [path_in(url, CLAIM_FILE)])[0]
    if content is None:
        return None
    with suppress(ValueError, RecursionError):
        found = json.loads(content)
        if isinstance(found, dict):
            return found
    return {}


# ---- signs of life ----


def _sign(token: str) -> bytes:
    known = {
        "token": token,
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "time": time.time(),
    }
    return json.dumps(known).encode()


def _machine() -> str:
    """What this machine, since its last start, has in common with no other: process numbers mean the
    same where it is equal. "" where it is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _age(holder: Mapping[str, Any]) -> float:
    """Seconds since the holder's last sign; infinite where it says no time."""
    when = holder.get("time")
    return max(0.0, time.time() - when) if isinstance(when, (int, float)) else float("inf")


def _who(holder: Mapping[str, Any]) -> str:
    return f"process {holder.get('pid', 'unknown')} on {short(str(holder.get('host', 'an unknown machine')), 60)}"


def _is_gone(holder: Mapping[str, Any]) -> bool:
    """Whether the process that holds a store has ended, as far as one can tell."""
    pid = holder.get("pid")
    if _machine() and holder.get("machine") == _machine() and isinstance(pid, int) and pid > 0:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            pass
    return _age(holder) > STALE_AFTER
