"""Stores of fsspec: equal to the local folder after every push, whole after every failure."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from rich.console import Console

from curvact.errors import CurvactError
from curvact.lab import remote, urls
from curvact.lab.checkpoints import open_checkpoint
from curvact.lab.claim import STALE_AFTER, StoreWarning, Taken, check_claim, claimed
from curvact.lab.cli.main import main
from curvact.lab.engines import Job, register_engine
from curvact.lab.engines.engine import ENGINES
from curvact.lab.engines.inline import run_inline
from curvact.lab.frames import load_runs
from curvact.lab.layout import STATE_FILE
from curvact.lab.placement import Placement
from curvact.lab.remote import Store, local_runs, working
from curvact.lab.run import execute
from curvact.lab.search import SearchSpec
from curvact.lab.search_result import conclude
from curvact.lab.search_run import run_search
from curvact.lab.settings import check_settings
from curvact.lab.store import finished, locked, read_history
from curvact.lab.stored import stored_runs
from curvact.lab.sweep_run import report, run_sweep
from curvact.lab.urls import create, is_url, read_all
from curvact.training import Epoch
from curvact.training.state import replace_state
from curvact.workers import Event

QUIET = Console(quiet=True)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`machine("b")`: from now on this process has the cache of machine b, empty at first."""

    def be(name: str) -> None:
        monkeypatch.setenv("CURVACT_CACHE", str(tmp_path / f"machine-{name}"))

    be("a")
    return be


@pytest.fixture
def memory() -> Iterator[Any]:
    """The file system of memory://, empty before and after."""
    found = fsspec.filesystem("memory")
    for clear in (found.store.clear, found.pseudo_dirs.clear):
        clear()
    yield found
    found.store.clear()
    found.pseudo_dirs.clear()


def _content(found: Any, url: str) -> dict[str, bytes]:
    """Every file of a store in memory, read without our code."""
    top = "/" + url.removeprefix("memory://") + "/"
    return {p.removeprefix(top): found.cat_file(p) for p in found.find(top) if p.startswith(top)}


def _write(folder: Path, **files: str) -> None:
    """A run's folder as an epoch leaves it; an empty text removes the file."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, text in files.items():
        name = {"spec": "spec.yaml", "metrics": "metrics.jsonl", "record": "record.json"}.get(
            stem, f"{stem}.safetensors"
        )
        (folder / name).unlink(missing_ok=True)
        if text:
            (folder / name).write_text(text)


def _record(last: str, best: str) -> str:
    files = {"last.safetensors": last, "best.safetensors": best}
    return json.dumps({"files": {n: hashlib.sha256(t.encode()).hexdigest() for n, t in files.items()}})


LIFE: Sequence[dict[str, str]] = (
    {"spec": "epochs: 2", "last": "w1", "best": "w1", "state": "s1", "metrics": "1\n"},
    {"last": "w2", "state": "s2", "metrics": "1\n2\n"},
    {"record": _record("w2", "w1")},
    {"spec": "epochs: 3", "record": "", "last": "w3", "best": "w3", "state": "s3", "metrics": "1\n2\n3\n"},
    {"last": "w4", "metrics": "1\n2\n3\n4\n", "record": _record("w4", "w3"), "state": ""},
)
"""A run of two epochs, finished, then extended to four; the push of the fourth was still to come at its end."""


class _Failing:
    """A file system whose calls that write fail from the k-th on, before or after they took effect."""

    def __init__(self, real: Any, k: int, after: bool, once: bool) -> None:
        self.real, self.left, self.after, self.once = real, k, after, once

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.real, name)
        if name not in ("put_file", "pipe_file", "rm_file", "mv"):
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            fails = self.left == 0 or (self.left < 0 and not self.once)
            if not fails or (self.after and self.left == 0):
                method(*args, **kwargs)
            if fails:
                raise OSError("the network is down")

        return call


@pytest.mark.parametrize(("after", "once"), [(False, True), (True, True), (False, False)])
def test_a_push_cut_off_anywhere_leaves_no_record_without_its_weights(
    machine: Callable[[str], None], memory: Any, monkeypatch: pytest.MonkeyPatch, after: bool, once: bool
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    real = urls.file_system
    for k in range(1, 60):
        memory.store.clear()
        machine(f"{k}-{after}-{once}")
        store = Store("memory://run")
        failing = _Failing(memory, k, after, once)
        monkeypatch.setattr(urls, "file_system", lambda url, f=failing: (f, real(url)[1]))
        for step in LIFE:
            _write(store.folder, **step)
            with suppress(CurvactError):
                store.push(whole=True)
            _check_readable(memory)
        monkeypatch.setattr(urls, "file_system", real)
        here = store.folder
        machine(f"{k}-{after}-{once}-reader")
        store.pull()  # every file has a listed content
        machine(f"{k}-{after}-{once}")
        assert store.folder == here
        begins_anew = k % 2 == 0  # a new process pulls first, the same one pushes again
        if begins_anew:
            store.pull()
        store.push(whole=True)
        wanted = {path.name: path.read_bytes() for path in here.iterdir() if not path.name.startswith(".")}
        found = {n: c for n, c in _content(memory, "memory://run").items() if not n.startswith(".")}
        assert found == wanted
        assert found["last.safetensors"] == b"w4"
        assert begins_anew or "state.safetensors" not in found
        if failing.left > 0:
            break
    else:
        pytest.fail("more calls than expected")
    assert k > 25


def _check_readable(found: Any) -> None:
    """What a reader that knows nothing of lists demands: a record has its weights."""
    content = _content(found, "memory://run")
    if "record.json" in content:
        for name, digest in json.loads(content["record.json"])["files"].items():
            assert hashlib.sha256(content[name]).hexdigest() == digest


def test_another_machine_goes_on_and_the_first_one_stops(machine: Callable[[str], None], memory: Any) -> None:
    store = Store("memory://run")
    _write(store.folder, **LIFE[0])
    store.push(whole=True)
    machine("b")
    store.pull()
    assert (store.folder / "state.safetensors").read_text() == "s1"
    _write(store.folder, **LIFE[1])
    store.push(whole=True)
    machine("a")
    _write(store.folder, last="other", state="other")
    with pytest.raises(Taken, match="another process has written memory://run since"):
        store.push(whole=True)
    store.pull()  # the store is the truth
    assert (store.folder / "state.safetensors").read_text() == "s2"
    machine("b")
    _write(store.folder, metrics="not yet pushed")
    store.pull()  # its own progress stays
    assert (store.folder / "metrics.jsonl").read_text() == "not yet pushed"


def test_what_the_store_lost_goes_here_too(machine: Callable[[str], None], memory: Any) -> None:
    top = Store("memory://sweep")
    run = top.below("runs", "one")
    _write(run.folder, **LIFE[0], record=_record("w1", "w1"))
    run.push(whole=True)
    assert top.pull_runs() == 1
    memory.rm("/sweep/runs/one", recursive=True)
    assert top.pull_runs() == 0
    assert not (run.folder / "record.json").exists()
    _write(run.folder, **LIFE[0])  # never pushed: it stays
    top.pull_runs()
    assert (run.folder / "state.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("last.safetensors", lambda content: b"x" + content[1:], None),
        ("last.safetensors", lambda content: content[:-1], "damaged"),
        ("last.safetensors", None, "missing"),
        ("record.json", lambda content: content.replace(b"files", b"fileS"), "damaged"),
        (".store.json", lambda content: content[:-20], "damaged"),
        (".store.json", lambda content: content.replace(b"spec.yaml", b"../spec.yaml"), "damaged"),
    ],
)
def test_a_damaged_object_is_found(
    machine: Callable[[str], None], memory: Any, name: str, change: Any, message: str | None
) -> None:
    run = Store("memory://sweep").below("runs", "one")
    _write(run.folder, **LIFE[0], record=_record("w1", "w1"))
    run.push(whole=True)
    machine("b")
    path = f"/sweep/runs/one/{name}"
    if change is None:
        memory.rm_file(path)
    else:
        memory.pipe_file(path, change(memory.cat_file(path)))
    top = Store("memory://sweep")
    if message is None:  # of the same size: found where the weights are read
        assert top.pull_runs() == 1
        message = "damaged"
    else:
        with pytest.raises(
            CurvactError, match=rf"memory://sweep/runs/one/{name} is {message}.*delete"
        ) as found:
            top.pull_runs()
        assert "\n" not in str(found.value)
    with pytest.raises(CurvactError, match=f"runs/one/{name} is {message}"):
        run.pull()
    assert not (run.folder / name).exists() or name == ".store.json"
    assert not list(run.folder.glob(".*.tmp"))


def test_a_record_suffices_where_the_weights_are_in_the_store(
    machine: Callable[[str], None], memory: Any, run_spec: Any
) -> None:
    spec = run_spec()
    run = Store("memory://sweep").below("runs", spec.id)
    record = execute(spec, run.folder, store=run)
    machine("b")
    local_runs(Path("memory://sweep"))
    assert not list(run.folder.glob("*.safetensors"))
    assert finished(run.folder, spec.id) == record
    (run.folder / ".store.json").unlink()
    with pytest.raises(CurvactError, match=r"best\.safetensors is missing"):
        finished(run.folder, spec.id)


def test_one_writer(machine: Callable[[str], None], tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/store")
    with claimed(store.url):
        with (
            pytest.raises(
                CurvactError, match=rf"process {os.getpid()} on .* is writing file://.*: wait"
            ) as found,
            claimed(store.url),
        ):
            pass
        assert "\n" not in str(found.value)
        check_claim(store.url)
        claim = tmp_path / "store" / ".claim.json"
        own = json.loads(claim.read_text())
        other = {**own, "host": "elsewhere", "machine": "", "token": "theirs"}
        claim.write_text(json.dumps(other))
        with pytest.raises(Taken, match=r"on elsewhere has taken file://.* over"):
            check_claim(store.url)
    assert json.loads(claim.read_text())["token"] == "theirs"  # not ours to remove
    with pytest.raises(CurvactError, match="on elsewhere is writing"), claimed(store.url):
        pass
    claim.write_text(json.dumps({**other, "time": time.time() - STALE_AFTER - 5}))
    silent = "was held by .* on elsewhere, without a sign of life for 60[5-9] s"
    with pytest.warns(StoreWarning, match=silent), claimed(store.url):
        pass
    assert not claim.exists()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    ours = {"host": socket.gethostname(), "machine": own["machine"], "pid": gone.pid}
    claim.write_text(json.dumps({**other, **ours}))
    with pytest.warns(StoreWarning, match=f"process {gone.pid}"), claimed(store.url):
        pass


def test_a_reader_leaves_a_run_alone_that_is_running_here(
    machine: Callable[[str], None], memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run pushes an epoch after the reader has read its list, which is old by then."""
    run = Store("memory://sweep").below("runs", "one")
    _write(run.folder, **LIFE[0])
    run.push(whole=True)
    real, pushed = remote.read_all, []

    def read(url: str, paths: Sequence[str]) -> list[bytes | None]:
        content = real(url, paths)
        if not pushed and any(path.endswith("one/.store.json") for path in paths):
            pushed.append(True)
            _write(run.folder, **LIFE[1])
            run.push(whole=True)
        return content

    with locked(run.folder):
        monkeypatch.setattr(remote, "read_all", read)
        assert local_runs(Path("memory://sweep")) == Store("memory://sweep").folder
        assert pushed
        assert (run.folder / "last.safetensors").read_text() == "w2"
        _write(run.folder, **LIFE[2])
        run.push(whole=True)
    assert "record.json" in _content(memory, "memory://sweep/runs/one")


def test_a_claim_that_is_not_written_yet_is_waited_for(
    machine: Callable[[str], None], tmp_path: Path
) -> None:
    store = Store(f"file://{tmp_path}/store")
    claim = tmp_path / "store" / ".claim.json"
    with claimed(store.url):
        whole = claim.read_text()
    claim.touch()
    later = threading.Timer(0.3, claim.write_text, [whole])
    later.start()
    with pytest.raises(CurvactError, match=rf"process {os.getpid()} on .* is writing"), claimed(store.url):
        pass
    later.join()
    assert claim.read_text() == whole


def test_another_process_of_the_same_number_and_host_is_another(
    machine: Callable[[str], None], memory: Any
) -> None:
    with claimed("memory://sweep"):
        ours = json.loads(memory.cat_file("/sweep/.claim.json"))
        memory.pipe_file("/sweep/.claim.json", json.dumps({**ours, "token": "theirs"}).encode())
        with pytest.raises(Taken, match="has taken memory://sweep over"):
            check_claim("memory://sweep")


def test_of_two_processes_that_create_a_claim_one_has_it(
    machine: Callable[[str], None], memory: Any, tmp_path: Path
) -> None:
    for url, path in (("memory://x", "/x/claim"), (f"file://{tmp_path}", f"{tmp_path}/claim")):
        create(url, path, b"first")
        with pytest.raises(FileExistsError):
            create(url, path, b"second")
        assert read_all(url, [path]) == [b"first"]


def test_a_run_goes_on_from_the_store_elsewhere(
    machine: Callable[[str], None], tmp_path: Path, run_spec: Any
) -> None:
    spec = run_spec(training={"epochs": 3})
    whole = execute(spec, tmp_path / "whole")
    store = Store(f"file://{tmp_path}/store/{spec.id}")

    there = tmp_path / "store" / spec.id

    def stop(event: object) -> None:
        if isinstance(event, Epoch) and event.epoch == 2:
            while (
                len(read_history(there)) < 2 or not json.loads((there / ".store.json").read_text())["settled"]
            ):
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(spec, store.folder, store=store, on_event=stop)
    machine("b")
    seen: list[int] = []
    record = execute(
        spec,
        store.folder,
        store=store,
        on_event=lambda e: seen.append(e.epoch) if isinstance(e, Epoch) else None,
    )
    assert seen == [3]
    times = {"seconds_per_epoch"}
    assert {k: v for k, v in record.metrics.items() if k not in times} == {
        k: v for k, v in whole.metrics.items() if k not in times
    }
    assert record.files == whole.files
    assert not (tmp_path / "store" / spec.id / "state.safetensors").exists()
    machine("c")
    assert open_checkpoint(f"file://{tmp_path}/store/{spec.id}").name == f"{spec.id}-best"
    assert (
        open_checkpoint(Path(f"file://{tmp_path}/store/{spec.id}/last.safetensors")).name == f"{spec.id}-last"
    )


def test_a_store_that_is_down_for_a_while_does_not_end_a_run(
    machine: Callable[[str], None], memory: Any, run_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, store = run_spec(training={"epochs": 2}), Store("memory://run")
    real = Store.push
    warned: list[str] = []
    monkeypatch.setattr("warnings.warn", lambda text, *_, **__: warned.append(str(text)))

    def push(self: Store, source: Path | None = None, **given: Any) -> None:
        if source is not None:
            raise CurvactError("cannot write memory://run: down")
        real(self, source, **given)

    monkeypatch.setattr(Store, "push", push)
    record = execute(spec, store.folder, store=store)
    assert record.status == "done"
    assert any("down; the run goes on" in text for text in warned)
    assert json.loads(_content(memory, "memory://run")["record.json"])["run"] == spec.id


def test_a_sweep_whose_runs_are_elsewhere(
    machine: Callable[[str], None],
    memory: Any,
    sweep_spec: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    spec = sweep_spec(base={"hessian": None}, grid={"curvature": [1, 6], "seed": [0]})
    run_sweep(spec, tmp_path / "local", Placement("inline"), console=QUIET)
    report(tmp_path / "local")

    def elsewhere(jobs: Sequence[Job], workers: int, on_event: Callable[[Event], None]) -> list[int]:
        machine("worker")
        try:
            return run_inline(jobs, workers, on_event)
        finally:
            machine("a")

    monkeypatch.setitem(ENGINES, "elsewhere", None)
    register_engine("elsewhere", elsewhere)
    with working(Path("memory://bucket/sweep")) as (folder, store):
        assert run_sweep(spec, folder, Placement("elsewhere"), console=QUIET, store=store) == []
        report(folder)
    assert not list(folder.rglob("*.safetensors"))
    content = _content(memory, "memory://bucket/sweep")
    assert _rows(content["results.csv"].decode()) == _rows((tmp_path / "local/results.csv").read_text())
    assert ".claim.json" not in content
    machine("reader")
    assert [run.status for run in stored_runs(Path("memory://bucket"))] == ["done", "done"]
    assert len(load_runs("memory://bucket/sweep")) == 2
    refused = pytest.raises(CurvactError, match="memory://bucket/sweep holds a sweep already")
    with refused, working(Path("memory://bucket/sweep")) as (folder, store):
        run_sweep(spec, folder, Placement("inline"), console=QUIET, store=store)


def _rows(text: str) -> list[dict[str, str]]:
    rows = list(csv.DictReader(text.splitlines()))
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


# ---- the command line, in processes of its own ----


def _curvact(cache: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    known = {**os.environ, "CURVACT_CACHE": str(cache), **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "curvact", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={key: value for key, value in known.items() if value},
    )


def _ends(process: subprocess.Popen[str], code: int) -> tuple[str, str]:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    return out, errors


def _kill_and_resume(tmp_path: Path, url: str, content: dict[str, Any], **environment: str) -> None:
    """Kill a sweep with -9 once the store holds a record and a state; go on with an empty cache."""
    spec = tmp_path / "tiny.yaml"
    spec.write_text(yaml.safe_dump(content))
    whole = _curvact(
        tmp_path / "x", "sweep", "run", str(spec), "--out", str(tmp_path / "whole"), "--workers", "1"
    )
    first = _curvact(
        tmp_path / "one", "sweep", "run", str(spec), "--out", url, "--workers", "1", **environment
    )
    found = fsspec.core.url_to_fs(url, use_listings_cache=False)
    end = time.monotonic() + 240
    try:
        while True:
            names = [path.rpartition("/")[2] for path in found[0].find(found[1])]
            if "record.json" in names and "state.safetensors" in names:
                break
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    before = [path for path in found[0].find(found[1]) if path.endswith("record.json")]
    times = {path: found[0].cat_file(path) for path in before}
    out, errors = _ends(_curvact(tmp_path / "two", "sweep", "run", url, **environment), 0)
    assert "report.html" in out
    assert "takes it over" in errors
    _ends(whole, 0)
    results = found[0].cat_file(f"{found[1]}/results.csv").decode()
    assert _rows(results) == _rows((tmp_path / "whole/results.csv").read_text())
    assert {path: found[0].cat_file(path) for path in before} == times  # nothing was run again
    listed = _ends(_curvact(tmp_path / "three", "runs", "ls", url, **environment), 0)[0]
    assert f"{len(_rows(results))} done" in listed


@pytest.mark.slow
def test_a_killed_sweep_goes_on_from_a_folder_of_files(tmp_path: Path, killed: dict[str, Any]) -> None:
    _kill_and_resume(tmp_path, f"file://{tmp_path}/store/tiny", killed)


@pytest.fixture
def killed(tiny_content: dict[str, Any]) -> dict[str, Any]:
    """A sweep of two runs that last long enough to be killed."""
    base = tiny_content["base"]
    longer = {**base, "hessian": None, "training": {**base["training"], "epochs": 4}}
    return {**tiny_content, "grid": {"curvature": [1, 6], "seed": [0]}, "base": longer}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("runs ls nowhere://x/y", "the protocol nowhere is not known"),
        ("runs ls file:///none/of/it", "holds nothing"),
        ("sweep run digits.yaml --out s3://", "s3: names no folder"),
        ("sweep cost digits.yaml --device cpu", "--device cpu: it is for --rate measure"),
        ("sweep cost memory://none", "memory://none is not there"),
        ("evaluate memory://none --out s3://b/x", "--out s3://b/x: it takes a path of this machine"),
    ],
)
def test_the_command_line_says_what_is_wrong_in_one_line(
    machine: Callable[[str], None],
    memory: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    digits = str(Path(__file__).parents[2] / "src/curvact/lab/sweeps/digits.yaml")
    monkeypatch.setattr("sys.argv", ["curvact", *arguments.replace("digits.yaml", digits).split()])
    with pytest.raises(SystemExit) as ended:
        main()
    errors = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in errors
    assert errors.count("\n") == 1, errors


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(CurvactError, match=r"s3://b/x needs .*: pip install 'curvact\[s3\]'$"):
        local_runs(Path("s3://b/x"))


def test_the_state_before_stays_here(machine: Callable[[str], None], memory: Any) -> None:
    store = Store("memory://run")
    _write(store.folder, **LIFE[0])
    replace_state(store.folder / STATE_FILE, {"epoch": 1})
    replace_state(store.folder / STATE_FILE, {"epoch": 2})
    assert len(list(store.folder.glob("state*"))) == 2
    store.push(whole=True)
    assert [name for name in _content(memory, "memory://run") if name.startswith("state")] == [STATE_FILE]


def test_what_is_a_url() -> None:
    assert is_url("s3://bucket/x")
    assert not any(map(is_url, ("runs/x", "/tmp/s3:/x", "C:/x", "hf:cifar10", "my.py:Net", "hf:", "file")))


# ---- S3, by moto's server ----

needs_s3 = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("s3fs", "moto", "flask")),
    reason="needs s3fs and moto: pip install 'curvact[test-s3]', in an environment of its own",
)


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a server of S3 with an empty bucket, `bucket`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }
    try:
        end = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < end
            time.sleep(0.1)
        with pytest.MonkeyPatch.context() as patch:
            for key, value in environment.items():
                patch.setenv(key, value)
            fsspec.filesystem("s3").mkdir("bucket")
            yield environment
    finally:
        server.terminate()
        server.wait()
        fsspec.filesystem("s3").clear_instance_cache()


@needs_s3
@pytest.mark.filterwarnings("default")
def test_a_killed_sweep_goes_on_from_s3(tmp_path: Path, s3: dict[str, str], killed: dict[str, Any]) -> None:
    _kill_and_resume(tmp_path, "s3://bucket/some/tiny", killed, **s3)


@needs_s3
@pytest.mark.filterwarnings("default")
def test_a_claim_on_s3(tmp_path: Path, s3: dict[str, str]) -> None:
    create("s3://bucket/x", "bucket/x/claim", b"first")
    with pytest.raises(FileExistsError):
        create("s3://bucket/x", "bucket/x/claim", b"second")
    store = Store("s3://bucket/sweep")
    with (
        claimed(store.url),
        pytest.raises(CurvactError, match=r"is writing s3://bucket/sweep"),
        claimed(store.url),
    ):
        pass


@needs_s3
@pytest.mark.parametrize(
    ("url", "changes", "message"),
    [
        ("s3://wrong/sweep", {}, "bucket does not exist"),
        ("s3://bucket/sweep", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "credentials"),
        ("s3://bucket/sweep", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "connect"),
        ("s3://bucket/sweep", {"AWS_ENDPOINT_URL": "http://no-such-host.invalid"}, "connect"),
    ],
)
@pytest.mark.filterwarnings("default")
def test_what_is_wrong_with_s3_in_one_line(
    tmp_path: Path, s3: dict[str, str], tiny: Path, url: str, changes: dict[str, str], message: str
) -> None:
    process = _curvact(tmp_path / "c", "sweep", "run", str(tiny), "--out", url, **{**s3, **changes})
    _, errors = _ends(process, 2)
    assert message in errors.lower()
    assert errors.count("\n") == 1, errors


@pytest.mark.slow
def test_a_search_goes_on_from_the_store(
    machine: Callable[[str], None], memory: Any, tiny_content: dict[str, Any]
) -> None:
    pytest.importorskip("optuna")
    content = {
        "name": "tiny",
        "base": {**tiny_content["base"], "hessian": None},
        "space": {"curvature": [1, 6]},
        "budget": 100_000,
        "sampler": "grid",
    }
    spec = check_settings(SearchSpec, content, "search")
    place = Path("memory://bucket/search")

    def dies(jobs: Sequence[Job], workers: int, on_event: Callable[[Event], None]) -> list[int]:
        run_inline(jobs[:1], workers, on_event)
        raise KeyboardInterrupt

    register_engine("dies", dies)
    try:
        with pytest.raises(KeyboardInterrupt), working(place) as (folder, store):
            run_search(spec, folder, Placement("dies"), console=QUIET, store=store)
    finally:
        del ENGINES["dies"]
    done = {n: c for n, c in _content(memory, "memory://bucket/search").items() if n.endswith("record.json")}
    assert len(done) == 1
    machine("b")
    with working(place) as (folder, store):
        assert run_search(spec, folder, Placement("inline"), resume=True, console=QUIET, store=store) == []
        result, _ = conclude(folder, store=store)
    after = _content(memory, "memory://bucket/search")
    assert {name: after[name] for name in done} == done
    assert sorted(trial.state for trial in result.trials) == ["completed", "completed"]
    assert {"report.html", "winner.yaml", "trials.csv", "optuna.journal"} <= set(after)
