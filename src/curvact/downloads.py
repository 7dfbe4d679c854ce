"""One file from a server, with its checksum."""

from __future__ import annotations

import re
from pathlib import Path

from curvact.errors import CurvactError
from curvact.progress import Progress

TIMEOUT = 10
"""Seconds without an answer after which a host counts as out of reach."""


def check_address(what: str, base: str) -> str:
    """The address of a server, without a slash at its end. CurvactError for one of another kind.

    >>> check_address("mirror", "http://127.0.0.1:8000/")
    'http://127.0.0.1:8000'
    """
    if not base.startswith(("http://", "https://")):
        raise CurvactError(
            f"{what} '{without_password(base)}': an address that begins with http:// or https://"
        )
    return base.rstrip("/")


def without_password(url: str) -> str:
    """The address as messages may show it: without user, password and query.

    >>> without_password("https://me:secret@host/zoo?token=1"), without_password("ftp://host/zoo")
    ('https://host/zoo', 'ftp://host/zoo')
    """
    return re.sub(r"(?<=//)[^/@]*@", "", url.partition("?")[0])


def download(url: str, checksum: str, file: Path) -> str | None:
    """Put the content of `url` into `file`, whole or not at all. Return the problem if there is one.

    checksum: such as "sha256:0123…". A file that has it already stays, and no server is asked.
    Shows progress on standard error, where that is a terminal.
    """
    import pooch
    from requests import RequestException

    pooch.get_logger().setLevel("ERROR")
    bar, shown = Progress(file.name), without_password(url)
    downloader = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**18, timeout=TIMEOUT)
    try:
        pooch.retrieve(url, checksum, fname=file.name, path=file.parent, downloader=downloader)
    except RequestException as error:
        if error.response is not None:
            return f"{shown} answers {error.response.status_code} {error.response.reason}"
        return f"{shown} cannot be reached ({type(error).__name__})"
    except ValueError as error:
        if "hash of downloaded file" not in str(error):  # of an address or an answer that is no such thing
            return f"{shown} cannot be reached ({type(error).__name__})"
        return f"{shown} has another checksum than {checksum[:20]}…: it is truncated or changed"
    finally:
        bar.close()
    return None
