"""Downloads from a local server: checked, unpacked, whole or not at all; one line a problem."""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import re
import socket
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from curvact.data import DATASETS, load
from curvact.data.catalog import Download
from curvact.errors import CurvactError
from fake_data import tar_gz, write_fake

fetching = importlib.import_module("curvact.data.fetch")
quiet = pytest.mark.filterwarnings("ignore::curvact.data.OtherDataWarning")


@pytest.fixture
def server(server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CURVACT_MIRROR", server.url)
    return server


@pytest.fixture
def offer(server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """offer(name, files): these files become the whole data set, and the mirror has them."""

    def make(name: str, files: dict[str, bytes], *, unpack: bool = False, kind: str = "sha256") -> None:
        downloads = []
        for file, data in files.items():
            server.files[f"{name}/{file}"] = data
            checksum = f"{kind}:{hashlib.new(kind, data).hexdigest()}"
            downloads.append(Download(f"https://publisher.invalid/{file}", checksum, unpack))
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], downloads=tuple(downloads)))

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@quiet
def test_files_keep_their_names_and_a_second_call_asks_nothing(
    tmp_path: Path, server: Any, offer: Any
) -> None:
    files = contents(write_fake("mnist", tmp_path / "made"))
    offer("mnist", files, kind="md5")
    root = tmp_path / "not" / "there" / "yet"
    folder = fetching.fetch("mnist", root)
    assert folder == root / "mnist"
    assert contents(folder) == {**files, ".complete": b""}
    assert sorted(server.asked) == sorted(f"mnist/{file}" for file in files)
    assert fetching.fetch("mnist", root) == folder
    assert len(server.asked) == 4
    assert [p.name for p in root.iterdir()] == ["mnist"]
    assert len(load("mnist", root=root).test) == 15


@quiet
def test_an_archive_is_unpacked(tmp_path: Path, offer: Any) -> None:
    files = contents(write_fake("cifar10", tmp_path / "made"))
    offer("cifar10", {"x.tgz": tar_gz(files)}, unpack=True)
    assert contents(fetching.fetch("cifar10", tmp_path)) == {**files, ".complete": b""}
    assert len(load("cifar10", root=tmp_path).test) == 15


def test_the_argument_then_the_environment_then_the_publisher(
    tmp_path: Path, server: Any, offer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer("svhn", {"x": b"x"})
    monkeypatch.setenv("CURVACT_MIRROR", "http://127.0.0.1:9")
    assert contents(fetching.fetch("svhn", tmp_path / "a", mirror=f"{server.url}/"))["x"] == b"x"
    with pytest.raises(CurvactError, match=r"http://127\.0\.0\.1:9/svhn/x cannot be reached"):
        fetching.fetch("svhn", tmp_path / "b")
    monkeypatch.delenv("CURVACT_MIRROR")
    server.files["own/x"] = b"x"
    (download,) = DATASETS["svhn"].downloads
    own = replace(download, url=f"{server.url}/own/x")
    monkeypatch.setitem(DATASETS, "svhn", replace(DATASETS["svhn"], downloads=(own,)))
    assert contents(fetching.fetch("svhn", tmp_path / "c"))["x"] == b"x"
    assert server.asked == ["svhn/x", "own/x"]
    with pytest.raises(CurvactError, match="mirror 'ftp://x': an address that begins with http"):
        fetching.fetch("svhn", tmp_path / "d", mirror="ftp://x")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing", "answers 404"),
        ("changed", "another checksum than sha256:"),
        ("cut", ""),
        ("no server", "cannot be reached"),
        ("no archive", "cannot be unpacked"),
    ],
)
def test_a_failed_download_is_one_line_and_leaves_nothing(
    tmp_path: Path, server: Any, offer: Any, fault: str, said: str
) -> None:
    offer("svhn", {"first": tar_gz({"x": b"x"}), "second": b"b" * 100}, unpack=True)
    mirror = server.url
    if fault == "missing":
        del server.files["svhn/second"]
    elif fault == "changed":
        server.files["svhn/second"] = b"c" * 100
    elif fault == "cut":
        server.cut.add("svhn/second")
    elif fault == "no server":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            mirror = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(CurvactError) as caught:
        fetching.fetch("svhn", tmp_path, mirror=mirror)
    message = str(caught.value)
    file = "first" if fault == "no server" else "second"
    for part in (said, f"cannot download {file}: ", f"{mirror}/svhn/{file}", DATASETS["svhn"].files):
        assert part in message
    assert f"into {tmp_path / 'svhn'} by hand" in message
    assert "\n" not in message
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["../evil", "/evil", "link"])
def test_an_archive_cannot_write_or_link_elsewhere(tmp_path: Path, offer: Any, name: str) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    if name == "link":
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc"
            archive.addfile(link)
        packed = buffer.getvalue()
    else:
        target = f"{outside}{name}" if name.startswith("/") else "../../../outside/evil"
        packed = tar_gz({target: b"x"})
    offer("svhn", {"x.tgz": packed}, unpack=True)
    if name == "/evil":  # an absolute name is taken as relative
        fetching.fetch("svhn", root)
    else:
        with pytest.raises(CurvactError, match="cannot be unpacked"):
            fetching.fetch("svhn", root)
        assert os.listdir(root) == []
    assert list(outside.iterdir()) == []


def test_an_interrupted_download_leaves_nothing(
    tmp_path: Path, offer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    offer("svhn", {"x": b"x"})
    monkeypatch.setattr(fetching, "_get", stop)
    with pytest.raises(KeyboardInterrupt):
        fetching.fetch("svhn", tmp_path)
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_left_alone(tmp_path: Path, server: Any, offer: Any) -> None:
    offer("svhn", {"x": b"x"})
    (tmp_path / "svhn").mkdir()
    (tmp_path / "svhn" / "mine").write_text("my own copy")
    with pytest.raises(CurvactError, match="is not from `curvact data fetch`"):
        fetching.fetch("svhn", tmp_path)
    assert contents(tmp_path / "svhn") == {"mine": b"my own copy"}
    assert server.asked == []
    (tmp_path / "svhn" / "mine").unlink()
    assert contents(fetching.fetch("svhn", tmp_path)) == {"x": b"x", ".complete": b""}


def test_two_at_once(tmp_path: Path, offer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process finishes during the download: its data set is used."""

    def other_is_faster(*_: Any) -> None:
        (tmp_path / "svhn").mkdir()
        (tmp_path / "svhn" / ".complete").touch()

    offer("svhn", {"x": b"x"})
    monkeypatch.setattr(fetching, "_get", other_is_faster)
    fetching.fetch("svhn", tmp_path)
    assert contents(tmp_path / "svhn") == {".complete": b""}
    assert os.listdir(tmp_path) == ["svhn"]


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, server: Any, offer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer("svhn", {"x": b"x"})
    (tmp_path / "file").write_text("")
    with pytest.raises(CurvactError, match=r"^cannot write .*file/svhn: [^\n]*$"):
        fetching.fetch("svhn", tmp_path / "file")
    assert server.asked == []

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching, "_get", full)
    with pytest.raises(CurvactError, match=r"cannot write .*No space left"):
        fetching.fetch("svhn", tmp_path)
    assert os.listdir(tmp_path) == ["file"]


def test_names_and_checksums() -> None:
    with pytest.raises(CurvactError, match="did you mean 'cifar10'"):
        fetching.fetch("cifar-10")
    for name, entry in DATASETS.items():
        assert bool(entry.downloads) == (name != "digits")
        for download in entry.downloads:
            assert re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", download.checksum)
            assert re.fullmatch(r"https?://[\w./~-]+/[\w.-]+", download.url)
