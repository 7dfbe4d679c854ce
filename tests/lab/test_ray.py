"""The ray engine: its settings, and what happens when nodes, drivers and addresses fail."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from curvact._version import __version__
from curvact.errors import CurvactError
from curvact.lab.engines import Job, engine_from, room_of, runs_elsewhere
from curvact.lab.engines import ray as engine_ray
from curvact.lab.engines.ray import RaySettings, run_ray
from curvact.lab.run import execute
from curvact.lab.store import Record, finished, locked
from curvact.workers import Event, start_calls

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.mark.parametrize(
    ("hardware", "settings", "wanted"),
    [
        ({}, {}, {"CPU": 1, "GPU": 0}),
        ({"threads": 4}, {}, {"CPU": 4, "GPU": 0}),
        ({"threads": 4}, {"cpus": 2}, {"CPU": 2, "GPU": 0}),
        ({"accelerator": "cuda"}, {}, {"CPU": 1, "GPU": 1}),
        ({"accelerator": "cuda:1", "gpus": 0.25}, {}, {"CPU": 1, "GPU": 0.25}),
        ({"gpus": 2}, {"memory_gb": 8}, {"CPU": 1, "GPU": 2, "memory": 8e9}),
        ({"accelerator": "cpu", "gpus": 1}, {"resources": {"disk": 1}}, {"CPU": 1, "GPU": 0, "disk": 1}),
    ],
)
def test_what_a_run_takes(run_spec: Any, hardware: Any, settings: Any, wanted: Any) -> None:
    took = RaySettings(**settings).wants(run_spec(hardware=hardware))
    assert {"memory": 0, **wanted} == took


@pytest.mark.parametrize("hardware", [{"gpus": 1.5}, {"accelerator": "cuda", "gpus": 0}])
def test_a_part_that_ray_does_not_give(run_spec: Any, hardware: Any) -> None:
    with pytest.raises(CurvactError, match=r"hardware\.gpus="):
        RaySettings().wants(run_spec(hardware=hardware))


@pytest.mark.parametrize(
    ("engine", "address", "why"),
    [
        ("ray", "here", "address.*HOST:PORT"),
        ("ray", "head:port", "address.*HOST:PORT"),
        ("ray", "head:65536", "address.*HOST:PORT"),
        ("local", "head:6379", "the engine local has no settings, and was given address"),
    ],
)
def test_an_address_that_is_none(engine: str, address: str, why: str) -> None:
    with pytest.raises(CurvactError, match=why) as caught:
        engine_from(engine, address=address)
    assert "\n" not in str(caught.value)


def test_a_variable_that_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "foo")
    with pytest.raises(CurvactError, match=r"^RAY_ADDRESS='foo': must be auto, local, HOST:PORT"):
        _ = RaySettings().place
    assert RaySettings(address="local").place == "local"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert RaySettings().place == "head:6379"


def test_ray_is_missing(monkeypatch: pytest.MonkeyPatch, run_spec: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    engine = engine_from("ray")
    assert runs_elsewhere(engine)
    with pytest.raises(CurvactError, match=r"^the engine ray needs Ray: pip install 'curvact\[ray\]'$"):
        room_of(engine, [run_spec()])


@needs_ray
def test_a_closed_port(run_spec: Any, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(CurvactError, match=f"no Ray cluster at {place}") as caught:
        room_of(engine_from("ray", address=place), [run_spec()])
    assert "\n" not in str(caught.value)


def test_room_is_counted_by_node(monkeypatch: pytest.MonkeyPatch, run_spec: Any) -> None:
    """Two nodes of three CPUs hold two runs of two CPUs, not three."""
    nodes = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 3.0}]
    monkeypatch.setattr(engine_ray, "_nodes", lambda settings: nodes)
    engine = engine_from("ray")
    assert room_of(engine, [run_spec(hardware={"threads": 2})]) == 2
    assert room_of(engine, [run_spec(hardware={"gpus": 0.5})]) == 2
    assert room_of(engine, [run_spec(hardware={"gpus": 0.1})]) == 3
    assert room_of(engine, []) == 1
    with pytest.raises(CurvactError, match="no node of the Ray cluster has 4 CPU"):
        room_of(engine, [run_spec(hardware={"threads": 4})])


def test_reports_are_heard_of_the_last_attempt_alone() -> None:
    events = engine_ray._events_class()()

    async def talk() -> list[Any]:
        await events.expect(0, 1)
        first = await events.put(0, 1, "epoch", b"1")
        await events.expect(0, 2)
        late = await events.put(0, 1, "epoch", b"2")
        second = await events.put(0, 2, "epoch", b"3")
        return [first, late, second, await events.take()]

    said = asyncio.run(talk())
    assert said == [True, False, True, [(0, 1, "epoch", b"1"), (0, 2, "epoch", b"3")]]


def test_an_attempt_that_is_not_listened_to_ends(
    monkeypatch: pytest.MonkeyPatch, run_spec: Any, tmp_path: Path
) -> None:
    """As on a node that was thought to be lost. A later attempt goes on from its state."""
    fake = types.SimpleNamespace(
        get=lambda answer: answer, exceptions=types.SimpleNamespace(RayError=ConnectionError)
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    token = tmp_path / ".ray-1.tmp"
    token.touch()
    job = Job(run_spec(training={"epochs": 3}), tmp_path / "run")
    site = engine_ray._Site(0, 1, token, tmp_path, "", 0, __version__)

    def execute_until(epoch: int, site: engine_ray._Site = site) -> list[tuple[str, Any]]:
        heard = []

        def put(index: int, attempt: int, kind: str, content: bytes) -> bool:
            heard.append((kind, pickle.loads(content)))
            return kind != "epoch" or heard[-1][1]["epoch"] < epoch

        events = types.SimpleNamespace(put=types.SimpleNamespace(remote=put))
        engine_ray._execute(pickle.dumps(job), start_calls(), site, events)
        return heard

    assert [kind for kind, _ in execute_until(2)] == ["start", "epoch", "epoch"]
    assert finished(job.folder, job.spec.id) is None
    heard = execute_until(9)
    assert [(kind, content["epoch"]) for kind, content in heard[1:-1]] == [("epoch", 3)]
    assert _same(heard[-1][1], execute(job.spec, tmp_path / "alone"))
    for other, why in (
        (replace(site, token=tmp_path / "gone"), "does not see the files of"),
        (replace(site, version="0.0"), f"has curvact {__version__}, and the driver 0.0"),
    ):
        ((kind, (message, _)),) = execute_until(9, other)
        assert kind == "error"
        assert why in message
        assert "\n" not in message


def test_a_run_waits_for_its_folder(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(CurvactError, match="another process is writing"), locked(tmp_path, patience=0.1):
            pass
        left = threading.Event()

        def wait() -> None:
            with locked(tmp_path, patience=60):
                left.set()

        thread = threading.Thread(target=wait)
        thread.start()
        assert not left.wait(0.3)
    thread.join(60)
    assert left.is_set()


# ---- real clusters ----


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without CPUs, and two nodes of one CPU: real processes of Ray on this machine."""
    from ray.cluster_utils import Cluster

    engine_ray._ray()
    built = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield built
    finally:
        built.shutdown()


def _same(record: Record | None, other: Record) -> bool:
    times = {"seconds_per_epoch": 0.0}
    return record is not None and (record.files, {**record.metrics, **times}) == (
        other.files,
        {**other.metrics, **times},
    )


@pytest.mark.slow
@pytest.mark.soak
@needs_ray
def test_a_node_is_lost(cluster: Any, run_spec: Any, tmp_path: Path) -> None:
    """Its run goes on from its state on the other node, to the same bits."""
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    jobs = [Job(run_spec(seed=s, training={"epochs": 6}), tmp_path / str(s)) for s in range(3)]
    seen: list[Event] = []

    def on_event(event: Event) -> None:
        seen.append(event)
        if event.kind == "epoch" and event.content["epoch"] == 2 and nodes:
            pid = next(e.content for e in seen if e.kind == "start" and e.job == event.job)
            lost = next(node for node in nodes if _is_below(pid, _raylet(node)))
            nodes.clear()
            cluster.remove_node(lost, allow_graceful=False)

    settings = RaySettings(address=cluster.address)
    assert run_ray(jobs, 2, on_event, settings=settings) == []
    died = [e for e in seen if e.kind == "died"]
    assert died
    again = [e for e in seen[seen.index(died[0]) :] if e.job == died[0].job and e.kind == "epoch"]
    assert again[0].content["epoch"] > 2
    for job in jobs:
        alone = execute(job.spec, tmp_path / f"alone-{job.spec.seed}")
        assert _same(finished(job.folder, job.spec.id), alone)


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _is_below(pid: int, ancestor: int) -> bool:
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        if pid == ancestor:
            return True
    return False


@pytest.fixture
def command(tmp_path: Path, tiny_content: dict[str, Any]) -> Callable[..., subprocess.Popen[str]]:
    """Starts `curvact sweep run` with the ray engine on a sweep of two runs."""
    spec = tmp_path / "tiny.yaml"
    base = {**tiny_content["base"], "hessian": None}
    base["training"] = {**base["training"], "epochs": 30}
    spec.write_text(
        yaml.safe_dump({**tiny_content, "base": base, "grid": {"curvature": [1, 6], "seed": [0]}})
    )

    def start(out: str, *more: str) -> subprocess.Popen[str]:
        words = [
            sys.executable,
            "-m",
            "curvact",
            "sweep",
            "run",
            str(spec),
            "--out",
            str(tmp_path / out),
            *more,
        ]
        return subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    return start


def _wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def _workers_of(folder: Path) -> list[int]:
    """Processes that hold the lock of a run below the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*/fd"):
        try:
            links = [os.readlink(fd) for fd in process.iterdir()]
        except OSError:
            continue
        if any(link.startswith(str(folder / "runs")) and link.endswith(".lock") for link in links):
            found.append(int(process.parent.name))
    return found


def _rows(folder: Path) -> list[list[str]]:
    lines = [line.split(",") for line in (folder / "results.csv").read_text().splitlines()]
    kept = [place for place, head in enumerate(lines[0]) if "seconds" not in head]
    return [[line[place] for place in kept] for line in lines]


@pytest.mark.slow
@pytest.mark.soak
@needs_ray
def test_a_driver_is_killed_and_comes_back(cluster: Any, command: Any, tmp_path: Path) -> None:
    """Its runs end with it, though the cluster lives on; --resume gives the table of an unbroken sweep.
    Then a worker is killed, and Ctrl-C ends a third sweep in one line.
    """
    cluster.add_node(num_cpus=2)
    ray = ("--engine", "ray", "--address", cluster.address)
    out = tmp_path / "out"
    process = command("out", *ray)
    _wait_for(lambda: list(out.glob("runs/*/state.safetensors")))
    assert _workers_of(out)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    _wait_for(lambda: not _workers_of(out))
    assert not list(out.glob("runs/*/record.json"))
    process = command("out", "--resume", *ray)
    _wait_for(lambda: _workers_of(out))
    os.kill(_workers_of(out)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "a worker died" in errors
    assert "raylet" not in errors
    process = command("plain", "--engine", "inline")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert _rows(out) == _rows(tmp_path / "plain")
    assert not list(out.rglob("*.tmp"))

    process = command("stopped", *ray)
    _wait_for(lambda: list((tmp_path / "stopped").glob("runs/*/state.safetensors")))
    os.killpg(process.pid, signal.SIGINT)
    text, errors = process.communicate(timeout=180)
    assert process.returncode == 130
    assert "stopped; --resume goes on" in errors
    assert "Traceback" not in text + errors
    assert not _workers_of(tmp_path / "stopped")
    assert not list((tmp_path / "stopped").rglob(".ray-*.tmp"))
