"""A full disk, and a folder that cannot be written: one line, nothing half-written, and it goes on afterwards."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest
from harness import SWEEP, Command, csv_without_times, note, one_line, write_spec

pytestmark = [pytest.mark.slow, pytest.mark.soak]


def _mount(*arguments: object) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount {' '.join(map(str, arguments))}: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk."""
    place = tmp_path / "disk"
    place.mkdir()
    _mount("-t", "tmpfs", "-o", "size=32m", "tmpfs", place)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that cannot be written, by root neither."""
    place = tmp_path / "place"
    place.mkdir()
    _mount("--bind", place, place)
    _mount("-o", "remount,bind,ro", place)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("kind", ["sweep", "train", "search"])
def test_a_full_disk(kind: str, disk: Path, tmp_path: Path, chance: random.Random) -> None:
    """Space for ever more of the files, until all of them fit."""
    content = {"sweep": SWEEP, "train": harness.BASE, "search": harness.SEARCH}[kind]
    spec = write_spec(tmp_path / "soak.yaml", content)
    whole, out, ballast = tmp_path / "whole", disk / "out", disk / "ballast"
    command = ["sweep", "run"] if kind == "sweep" else [kind]
    extra = [] if kind == "train" else ["--workers", 1]
    code, _, errors = Command.start(*command, spec, "--out", whole, *extra).end()
    assert code == 0, errors
    needed = sum(path.stat().st_blocks * 512 for path in whole.rglob("*"))
    size = 32 << 20
    refused = 0
    for part in (0.0, chance.uniform(0.05, 0.3), chance.uniform(0.3, 0.7), chance.uniform(0.7, 0.95)):
        used = sum(path.stat().st_blocks * 512 for path in out.rglob("*")) if out.exists() else 0
        ballast.write_bytes(bytes(max(0, size - max(int(part * needed), used) - (64 << 10))))
        code, _, errors = Command.start(*command, spec, "--out", out, "--resume", *extra).end()
        harness.nothing_half_written(disk)
        ballast.unlink()
        if code == 0:
            break
        line = one_line(errors)
        assert code == 2, errors
        assert "disk full" in line or "No space left" in line, line
        refused += 1
        note(f"{kind} on a full disk")
    assert refused
    code, _, errors = Command.start(*command, spec, "--out", out, "--resume", *extra).end()
    assert code == 0, errors
    assert harness.weights(out) == harness.weights(whole)
    for name in {"sweep": ["results.csv"], "train": [], "search": ["trials.csv"]}[kind]:
        assert csv_without_times(out / name) == csv_without_times(whole / name)
    note(f"{kind} equal after a full disk")


@pytest.mark.parametrize("kind", ["sweep", "train"])
def test_a_folder_on_a_read_only_disk(kind: str, read_only: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "soak.yaml", SWEEP if kind == "sweep" else harness.BASE)
    command = ["sweep", "run"] if kind == "sweep" else [kind]
    code, _, errors = Command.start(*command, spec, "--out", read_only / "out").end()
    assert code == 2
    assert "Read-only file system" in one_line(errors)
    assert not list(read_only.iterdir())
    note(f"{kind} on a read-only disk")


@pytest.mark.parametrize("kind", ["sweep", "train"])
def test_folders_that_can_no_longer_be_written(kind: str, tmp_path: Path) -> None:
    """While the command runs. Later they can again."""
    spec = write_spec(tmp_path / "soak.yaml", SWEEP if kind == "sweep" else harness.BASE)
    command, out = ["sweep", "run"] if kind == "sweep" else [kind], tmp_path / "out"
    running = Command.start(*command, spec, "--out", out)
    harness.wait_for(lambda: list(out.rglob("spec.yaml")))
    try:
        for folder in [out, *(path for path in out.rglob("*") if path.is_dir())]:
            done = subprocess.run(["chattr", "+i", str(folder)], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"chattr +i: {done.stderr.strip()}")
        code, _, errors = running.end()
    finally:
        subprocess.run(["chattr", "-R", "-i", str(out)], check=False)
    assert code == 2, errors
    assert "Operation not permitted" in one_line(errors)
    harness.nothing_half_written(out)
    code, _, errors = Command.start(*command, spec, "--out", out, "--resume").end()
    assert code == 0, errors
    note(f"{kind} in folders that could not be written for a while")
