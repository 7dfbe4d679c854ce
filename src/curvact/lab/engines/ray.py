"""The ray engine: runs as tasks of a Ray cluster, on this machine or on many. docs/clusters.md."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import socket
import subprocess
import sys
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from curvact._version import __version__
from curvact.errors import CurvactError, first_line, for_want_of_memory, short
from curvact.lab.engines.job import Job, run_job
from curvact.lab.settings import Strict
from curvact.lab.spec import RunSpec
from curvact.workers import ATTEMPTS, Event, in_words, start_calls, start_worker

CONNECT_SECONDS = 5
"""A machine that takes no connection for so long has no cluster."""

ANSWER_SECONDS = 20
"""A cluster that does not answer for so long is none."""

OBJECT_STORE = 100 * 2**20
"""Bytes of shared memory of a cluster that is started for a sweep: specs and records are small."""


def _checked_address(text: str) -> str:
    host, colon, port = text.removeprefix("ray://").rpartition(":")
    if text not in ("auto", "local") and not (colon and host and port.isdigit() and 0 < int(port) < 2**16):
        raise ValueError("must be auto, local, HOST:PORT or ray://HOST:PORT")
    return text


class RaySettings(Strict):
    """Settings of the ray engine.

    address: of a running cluster: HOST:PORT, ray://HOST:PORT, or auto for the one that runs on this
    machine. "local": a cluster on this machine, which is started for the runs and shut down after
    them. None: that of the environment variable RAY_ADDRESS, else local.
    cpus: those that one run takes. None: hardware.threads of its spec, else 1.
    memory_gb: memory that one run takes, in 10^9 bytes. Ray places by it, and does not enforce it.
    resources: of your own that one run takes, such as {big_disk: 1}. Nodes are started with them.
    attempts: a run whose worker or node died so often is given up.
    patience: seconds that a run waits for a folder that a process of an earlier attempt still holds.
    autoscaling: the cluster may grow, so runs wait for nodes that it does not have yet.
    runtime_env: Ray's own, such as {env_vars: {NAME: text}} or {pip: [curvact]}.
    """

    address: Annotated[str, AfterValidator(_checked_address)] | None = None
    cpus: float | None = Field(None, gt=0)
    memory_gb: float | None = Field(None, gt=0)
    resources: dict[str, float] = Field(default_factory=dict)
    attempts: int = Field(ATTEMPTS, ge=1)
    patience: float = Field(120, ge=0)
    autoscaling: bool = False
    runtime_env: dict[str, Any] = Field(default_factory=dict)

    @property
    def place(self) -> str:
        """Where the cluster is: the address, or "local". CurvactError for a RAY_ADDRESS that is none."""
        given = os.environ.get("RAY_ADDRESS")
        if self.address or not given:
            return self.address or "local"
        try:
            return _checked_address(given)
        except ValueError as error:
            raise CurvactError(f"RAY_ADDRESS={short(repr(given))}: {error}") from None

    def wants(self, spec: RunSpec) -> dict[str, float]:
        """What one run takes, by Ray's names of resources."""
        gpus = spec.hardware.share
        if gpus > 1 and gpus != int(gpus):
            raise CurvactError(
                f"hardware.gpus={gpus}: Ray gives whole GPUs, or a part of one; allowed are 0 to 1, 2, 3, …"
            )
        if gpus == 0 and spec.hardware.accelerator.startswith("cuda"):
            raise CurvactError("hardware.gpus=0 with the accelerator cuda: Ray gives such a run no GPU")
        wanted = {"CPU": self.cpus or float(spec.hardware.threads or 1), "GPU": gpus}
        return {**wanted, "memory": 1e9 * (self.memory_gb or 0), **self.resources}


def run_ray(
    jobs: Sequence[Job],
    workers: int,
    on_event: Callable[[Event], None],
    *,
    settings: RaySettings | None = None,
) -> list[int]:
    """Execute every job as a task of a Ray cluster, `workers` at a time at most.

    A run whose worker or node is lost goes on elsewhere from its state. It has a store, or its folder is
    on a file system that all nodes share. An event's `device` is the node, with "cuda" where the run has a GPU.
    Raises CurvactError for a missing Ray, an address where no cluster answers, and bad input.
    """
    settings = settings or RaySettings()
    with _connected(settings, workers, [job.spec for job in jobs]) as ray:
        driver = _Driver(ray, jobs, workers, on_event, settings)
        try:
            return driver.run()
        except ray.exceptions.RayError as error:
            raise CurvactError(f"the Ray cluster failed ({in_words(error)}); --resume goes on") from None
        finally:
            driver.stop()


def ray_room(specs: Sequence[RunSpec], *, settings: RaySettings | None = None) -> int:
    """How many of the runs the cluster has room for at a time, idle or not.

    Raises CurvactError as `run_ray` does, and for a run that no node has room for.
    """
    settings = settings or RaySettings()
    if not specs:
        return 1
    wanted = {tuple(settings.wants(spec).items()) for spec in specs}
    nodes = _nodes(settings)
    if settings.autoscaling:
        return max(1, len(specs))
    most = [_room(dict(one), nodes) for one in wanted]
    for one, room in zip(wanted, most, strict=True):
        if room == 0:
            words = ", ".join(f"{amount:g} {name}" for name, amount in one if amount)
            raise CurvactError(
                f"no node of the Ray cluster has {words}, which one run takes: see hardware.threads, "
                "hardware.gpus and the settings of the engine; autoscaling: true waits for such a node"
            )
    return max(most, default=1)


def _nodes(settings: RaySettings) -> list[dict[str, float]]:
    """The resources of each node. A cluster on this machine is not started to be asked."""
    ray = _ray()
    if settings.place == "local" and not ray.is_initialized():
        import torch

        own = dict.fromkeys(("memory", *settings.resources), math.inf)
        return [{"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count(), **own}]
    with _connected(settings) as ray:
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _room(wanted: dict[str, float], nodes: Sequence[dict[str, float]]) -> int:
    """How many times the nodes hold what is wanted.

    >>> _room({"CPU": 2, "GPU": 0.25}, [{"CPU": 16, "GPU": 1}, {"CPU": 64}])
    4
    """
    return sum(
        int(min(node.get(name, 0) / amount + 1e-9 for name, amount in wanted.items() if amount))
        for node in nodes
    )


# ---- the connection ----


def _ray() -> Any:
    """The package. It is told first that it may not report its use."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # and it does not warn of a change
    try:
        import ray
    except ImportError:
        raise CurvactError("the engine ray needs Ray: pip install 'curvact[ray]'") from None
    return ray


@contextmanager
def _connected(settings: RaySettings, workers: int = 1, specs: Sequence[RunSpec] = ()) -> Iterator[Any]:
    """Ray, connected. A connection that this process has is used, and stays.

    workers, specs: a cluster that is started here has room for so many of them.
    """
    ray = _ray()
    if ray.is_initialized():
        yield ray
        return
    place = settings.place
    more: dict[str, Any] = {}
    if place == "local":
        cpus = max((settings.wants(spec)["CPU"] for spec in specs), default=1)
        more = {
            "include_dashboard": False,
            "num_cpus": max(os.cpu_count() or 1, int(workers * cpus + 0.999)),
            "object_store_memory": OBJECT_STORE,
            "resources": {name: workers * amount for name, amount in settings.resources.items()} or None,
        }
    else:
        _check_answers(place)
    with _silent():
        try:
            ray.init(
                address=place,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env=settings.runtime_env or None,
                **more,
            )
        except (ConnectionError, RuntimeError, ValueError, ImportError, ray.exceptions.RayError) as error:
            raise CurvactError(f"Ray at {place}: {in_words(error)}") from None
        try:
            yield ray
        finally:
            ray.shutdown()


def _check_answers(place: str) -> None:
    """CurvactError where no cluster answers. Ray itself would try for minutes."""
    if place == "auto":
        return
    host, _, port = place.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error) or "no answer"
        raise CurvactError(
            f"no Ray cluster at {place} ({why}): `ray start --head --port=6379` starts one"
        ) from None
    if place.startswith("ray://"):
        return
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", place]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise CurvactError(f"no Ray cluster at {place}: something else has that port") from None
    if "AuthenticationError" in answer.stderr + answer.stdout:
        raise CurvactError(
            f"the Ray cluster at {place} asks for a token: set RAY_AUTH_MODE=token, and give this machine the "
            "cluster's token as Ray's pages on token authentication say"
        )
    if answer.returncode:
        lines = (answer.stderr + answer.stdout).strip().splitlines() or ["it is not healthy"]
        raise CurvactError(f"no Ray cluster at {place}: {lines[-1]}")


@contextmanager
def _silent() -> Iterator[None]:
    """Ray prints nothing of its nodes on this terminal: `on_event` tells what matters."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, AttributeError):
            from ray._private import worker

            before = worker.print_to_stdstream
            worker.print_to_stdstream = lambda *_, **__: None
            stack.callback(setattr, worker, "print_to_stdstream", before)
        yield


# ---- the driver ----


def _events_class() -> type:
    """An actor without curvact, so that its process is light. Ray sends a local class by its code."""

    class Events:
        """Reports of the workers, in the order in which they came."""

        def __init__(self) -> None:
            import asyncio

            self.kept: list[tuple[int, int, str, bytes]] = []
            self.attempts: dict[int, int] = {}
            self.come = asyncio.Event()

        async def expect(self, job: int, attempt: int) -> None:
            """Only that attempt of the job is listened to from now on."""
            self.attempts[job] = attempt

        async def put(self, job: int, attempt: int, kind: str, content: bytes) -> bool:
            """Keep a report. False: another attempt of the job has begun, so this one has to end."""
            if self.attempts.get(job) != attempt:
                return False
            self.kept.append((job, attempt, kind, content))
            self.come.set()
            return True

        async def flush(self) -> None:
            """Let `take` return at once."""
            self.come.set()

        async def take(self) -> list[tuple[int, int, str, bytes]]:
            """Wait for reports, and take them."""
            await self.come.wait()
            self.come.clear()
            taken, self.kept = self.kept, []
            return taken

    return Events


class _Driver:
    """One call of the engine.

    started: how often each job was given to the cluster. running: jobs that have neither ended nor
    died. tasks: the job of each task that has not ended. nodes: the `device` of each job's worker.
    short: jobs whose worker ends for want of memory. tokens: a file beside the runs of each folder,
    which every node has to see.
    """

    def __init__(
        self,
        ray: Any,
        jobs: Sequence[Job],
        workers: int,
        on_event: Callable[[Event], None],
        settings: RaySettings,
    ) -> None:
        self.ray, self.jobs, self.workers = ray, jobs, workers
        self.on_event, self.settings = on_event, settings
        self.waiting: deque[int] = deque()
        self.started: list[int] = []
        self.running: set[int] = set()
        self.tasks: dict[Any, int] = {}
        self.nodes: dict[int, str] = {}
        self.short: dict[int, str] = {}
        self.tokens: dict[Path, Path] = {}
        self.starts = start_calls()
        self.task = ray.remote(_execute)
        self.events = ray.remote(_events_class()).options(**_here(ray)).remote()
        self.news = self.events.take.remote()

    def run(self) -> list[int]:
        """Execute the jobs. Returns those that were given up."""
        given_up: list[int] = []
        self._take_up_new()
        while self.waiting or self.running:
            while self.waiting and len(self.running) < self.workers:
                self._begin(self.waiting.popleft())
            ready, _ = self.ray.wait([self.news, *self.tasks], num_returns=1)
            if self.news in ready:
                self._hear()
                continue
            for task in ready:
                index = self.tasks.pop(task)
                cause = self._cause(task)
                if not cause:
                    continue  # what it reported last says how it ended
                self.ray.get(self.events.flush.remote())
                self._hear()
                if index in self.running:
                    self.running.remove(index)
                    cause = self.short.pop(index, cause)
                    self._tell("died", index, self.started[index], cause)
                    again = self.started[index] < self.settings.attempts
                    (self.waiting.appendleft if again else given_up.append)(index)
        return given_up

    def stop(self) -> None:
        """End the tasks that still run, and wait for it."""
        with contextlib.suppress(Exception):  # of a cluster that is gone
            for task in self.tasks:
                self.ray.cancel(task, force=True)
            if self.tasks:
                self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=ANSWER_SECONDS)
            self.ray.kill(self.events)
        for token in self.tokens.values():
            token.unlink(missing_ok=True)

    def _take_up_new(self) -> None:
        for index in range(len(self.started), len(self.jobs)):
            self.started.append(0)
            self.waiting.append(index)

    def _begin(self, index: int) -> None:
        self.started[index] += 1
        self.running.add(index)
        job = self.jobs[index]
        job = replace(job, folder=job.folder.absolute())
        wanted = self.settings.wants(job.spec)
        if wanted["GPU"]:
            job = replace(job, spec=job.spec.on("cuda"))  # Ray lets the worker see its own GPUs alone
        elif not job.spec.hardware.accelerator.startswith("cpu"):
            job = replace(job, spec=job.spec.on("cpu"))
        site = _Site(
            index,
            self.started[index],
            self._token(job.folder.parent) if job.store is None else None,
            Path.cwd(),
            "cuda" if wanted["GPU"] else "",
            self.settings.patience,
            __version__,
        )
        self.ray.get(self.events.expect.remote(index, self.started[index]))
        own = {name: amount for name, amount in self.settings.resources.items() if amount}
        task = self.task.options(
            num_cpus=wanted["CPU"],
            num_gpus=wanted["GPU"],
            memory=wanted["memory"] or None,
            resources=own or None,
            max_retries=0,
            name=f"curvact run {job.spec.id}",
        ).remote(pickle.dumps(job), self.starts, site, self.events)
        self.tasks[task] = index

    def _token(self, folder: Path) -> Path:
        """A new file in the folder: a node that does not see it has another folder of that name."""
        if folder not in self.tokens:
            folder.mkdir(parents=True, exist_ok=True)
            for stale in folder.glob(".ray-*.tmp"):  # of a driver that was killed
                stale.unlink(missing_ok=True)
            self.tokens[folder] = folder / f".ray-{uuid.uuid4().hex}.tmp"
            self.tokens[folder].touch()
        return self.tokens[folder]

    def _hear(self) -> None:
        """Pass on what the workers reported."""
        reports = self.ray.get(self.news)
        self.news = self.events.take.remote()
        for index, attempt, kind, content in reports:
            if index in self.running and attempt == self.started[index]:
                self._pass_on(index, kind, pickle.loads(content))

    def _pass_on(self, index: int, kind: str, content: Any) -> None:
        if kind == "error":
            message, trace = content
            sys.stderr.write(trace)
            raise CurvactError(message)
        if kind == "memory":
            self.short[index] = f"out of memory: {content}"
            return
        if kind == "start":
            content, self.nodes[index] = content
        if kind == "done":
            self.running.remove(index)
        self._tell(kind, index, content)
        if kind == "done":
            self._take_up_new()

    def _tell(self, kind: str, index: int, content: Any, cause: str = "") -> None:
        self.on_event(Event(kind, index, content, cause, self.nodes.get(index, "")))

    def _cause(self, task: Any) -> str:
        """How the task's worker died; "" where it did not. CurvactError where the task cannot run."""
        errors = self.ray.exceptions
        try:
            self.ray.get(task)
        except errors.OutOfMemoryError:
            return "ended by Ray for want of memory"
        except (errors.NodeDiedError, errors.LocalRayletDiedError):
            return "its node was lost"
        except errors.WorkerCrashedError:
            return "its process was killed, or its node was lost"
        except (errors.RayTaskError, errors.RuntimeEnvSetupError, errors.TaskUnschedulableError) as error:
            line = str(error).strip().splitlines()[-1]
            raise CurvactError(f"a node of the Ray cluster cannot execute runs: {line}") from None
        except errors.RayError as error:
            return in_words(error)
        return ""


def _here(ray: Any) -> dict[str, Any]:
    """Options of an actor that lives as long as the driver: on its node, if the driver is on one."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if ray.util.client.ray.is_connected():
        return {"num_cpus": 0}
    node = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


# ---- the worker ----


@dataclass(frozen=True)
class _Site:
    """Where and how a worker executes a run. token: a file that it has to see; None where the run has a
    store. version: of curvact.
    """

    job: int
    attempt: int
    token: Path | None
    working_directory: Path
    device: str
    patience: float
    version: str


class _Superseded(Exception):
    """Another attempt of the run has begun: this node was thought to be lost."""


def _execute(packed: bytes, starts: bytes, site: _Site, events: Any) -> None:
    """One run, inside a worker. Its reports are answered, so that it never runs on alone."""
    import ray

    def send(kind: str, content: object) -> None:
        if not ray.get(events.put.remote(site.job, site.attempt, kind, pickle.dumps(content))):
            raise _Superseded

    with contextlib.suppress(_Superseded):
        where, run = os.uname().nodename, "a run"
        try:
            _check_site(site, where)
            _start_once(starts)
            job: Job = pickle.loads(packed)
            run = f"run {job.spec.id}"
            import torch

            torch.set_num_threads(1)
            send("start", (os.getpid(), f"{where} {site.device}".rstrip()))
            send("done", run_job(job, lambda epoch: send("epoch", epoch), patience=site.patience))
        except (CurvactError, OSError) as error:
            send("error", (str(error), ""))
        except (_Superseded, ray.exceptions.RayError):
            raise
        except Exception as error:
            if for_want_of_memory(error):
                send("memory", first_line(error))
                os._exit(1)
            send("error", (f"{run}: {in_words(error)}", traceback.format_exc()))


def _check_site(site: _Site, where: str) -> None:
    """CurvactError where the node does not share the driver's files, or has another curvact."""
    if __version__ != site.version:
        raise CurvactError(f"the node {where} has curvact {__version__}, and the driver {site.version}")
    if site.token is not None and not site.token.exists():
        raise CurvactError(
            f"the node {where} does not see the files of {site.token.parent}: the folder of --out has to be on a "
            "file system that all nodes share"
        )
    with contextlib.suppress(OSError):  # relative paths of a spec begin there
        os.chdir(site.working_directory)


_STARTED: set[bytes] = set()


def _start_once(starts: bytes) -> None:
    """Run the code of users, once in each process: Ray gives one process many runs."""
    if starts not in _STARTED:
        start_worker(starts)
        _STARTED.add(starts)
