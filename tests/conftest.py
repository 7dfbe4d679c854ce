"""Fake data sets for every test that asks for them, and where the real ones lie."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from curvact.data import DATASETS, OtherDataWarning

ROOT = Path(__file__).parents[1]


def _fake_data() -> ModuleType:
    """tests/fake_data.py as the module `fake_data`: with --import-mode=importlib its folder is not
    on the path.
    """
    if "fake_data" not in sys.modules:
        spec = importlib.util.spec_from_file_location("fake_data", Path(__file__).with_name("fake_data.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules["fake_data"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["fake_data"])
    return sys.modules["fake_data"]


_fake_data()


@pytest.fixture(scope="session")
def _fake_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fake-data")
    for name in DATASETS:
        _fake_data().write_fake(name, root)
    return root


@pytest.fixture
def fake_data_root(_fake_files: Path) -> Iterator[Path]:
    """A folder with 30 training and 15 test images of every named data set. That they are not the
    real ones is no error here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OtherDataWarning)
        yield _fake_files


@pytest.fixture(scope="session")
def real_data_root() -> Path:
    """Where the real data sets lie, if they do; tests of one that does not are skipped."""
    return Path(os.environ.get("CURVACT_DATA") or ROOT / "data")


class Server:
    """A server of files. files: by path. asked: requested paths. cut: paths that end after half."""

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
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on this machine, which no proxy hides."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    yield server
    server.close()
