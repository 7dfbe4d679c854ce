from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from curvact.errors import CurvactError
from curvact.files import atomic_write, csv_text, has_other_checksum, read_csv, with_checksum


def test_bytes_and_text_arrive_as_they_are(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", b"\x00\xff\r\n")
    atomic_write(str(tmp_path / "b"), "κ\r\n\n")
    assert (tmp_path / "a").read_bytes() == b"\x00\xff\r\n"
    assert (tmp_path / "b").read_bytes() == "κ\r\n\n".encode()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_text_that_utf8_cannot_hold_is_escaped(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", "file \udcff")
    assert (tmp_path / "a").read_text() == "file \\udcff"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "disk full while writing"), (errno.EDQUOT, "disk full"), (errno.EACCES, "cannot write")],
)
def test_a_failure_keeps_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int, message: str
) -> None:
    path = tmp_path / "results.csv"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(CurvactError, match=message) as caught:
        atomic_write(path, "new")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["results.csv"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_is_really_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def on_full_disk(path: object, flags: int, mode: int = 0o777) -> int:
        os.close(real(path, flags, mode))  # type: ignore[arg-type]
        return real("/dev/full", os.O_WRONLY)

    monkeypatch.setattr(os, "open", on_full_disk)
    with pytest.raises(CurvactError, match="disk full while writing"):
        atomic_write(tmp_path / "a", b"x" * 100_000)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def test_an_interrupt_passes_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "a", b"x")
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CurvactError, match=r"cannot write .*nowhere.*No such file"):
        atomic_write(tmp_path / "nowhere" / "a", b"x")


def test_a_checksum_holds_for_what_json_changes() -> None:
    """Numbers as keys come back as text, in whose order 10 is before 2."""
    written = json.dumps(with_checksum({"classes": {2: "cat", 10: "dog"}, "mean": (0.5, 1e-300)}))
    assert not has_other_checksum(json.loads(written))
    assert has_other_checksum(json.loads(written.replace("dog", "dot")))


def test_csv_comes_back_as_text(tmp_path: Path) -> None:
    path, head = tmp_path / "a.csv", ("name", "value")
    assert read_csv(path, head) == []
    lines = [["as it is", "0.1"], ['x, "y"', ""], ["two\nlines", "a\rb"]]
    atomic_write(path, csv_text([head, *lines]))
    assert read_csv(path, head) == lines
    for text in ("", "value,name\n"):
        path.write_text(text)
        with pytest.raises(CurvactError, match=r"a\.csv: expected a CSV file with the columns name, value"):
            read_csv(path, head)
