"""A SLURM cluster of one node, this machine, for the tests: its own munge, controller and node daemon
in a folder, on ports of its own. It needs `slurm-wlm` and `munge` of Debian, and root.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "srun")

CONFIG = """
ClusterName=curvact
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SlurmdParameters=config_overrides
MaxArraySize={most}
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
KillWait=3
MinJobAge=300
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=600 State=UP OverSubscribe=NO
"""


def why_not() -> str:
    """Why there can be no cluster here; "" where there can."""
    missing = [name for name in PROGRAMS if _program(name) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "the daemons of SLURM need root"


@contextmanager
def cluster(folder: Path, *, most: int = 1001) -> Iterator[Path]:
    """A running cluster. Its configuration is the yielded file, which SLURM_CONF has to name.

    most: its MaxArraySize. RuntimeError with the end of the log where it does not start.
    """
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=socket.gethostname(), ports=_ports(), folder=folder, most=most))
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    places = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munge.pid"}
    places |= {"log-file": folder / "munge.log", "seed-file": folder / "munge.seed"}
    options = [f"--{name}={place}" for name, place in places.items()]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        daemons.append(_start(folder, "munged", "--foreground", "--force", *options))
        _wait(folder, lambda: places["socket"].exists(), "munge")
        daemons.append(_start(folder, "slurmctld", "-D", "-f", str(config)))
        daemons.append(_start(folder, "slurmd", "-D", "-f", str(config), "-N", socket.gethostname()))
        _wait(folder, lambda: "idle" in _output(config, "sinfo", "-h", "-o", "%t"), "slurmctld")
        yield config
    finally:
        _output(config, "scancel", "--user=root", "--signal=KILL")
        _output(config, "scancel", "--user=root")
        _wait(folder, lambda: not _output(config, "squeue", "-h"), "", seconds=15)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _start(folder: Path, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    program = _program(name)
    assert program is not None
    with (folder / f"{name}.out").open("wb") as log:
        return subprocess.Popen([program, *arguments], stdout=log, stderr=log, start_new_session=True)


def _ports() -> list[int]:
    sockets = [socket.socket() for _ in range(2)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _output(config: Path, *command: str) -> str:
    there = {**os.environ, "SLURM_CONF": str(config)}
    return subprocess.run(command, env=there, capture_output=True, text=True, timeout=30).stdout


def _wait(folder: Path, condition: object, what: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > end:
            if not what:
                return
            log = folder / f"{what}.log"
            tail = log.read_text(errors="replace")[-1500:] if log.exists() else "it wrote no log"
            raise RuntimeError(f"{what} did not start: {tail}")
        time.sleep(0.1)
