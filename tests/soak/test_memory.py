"""A sweep in which one run is too large for the memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import harness
import pytest
from harness import Command, csv_without_times, note, write_spec

pytestmark = [pytest.mark.slow, pytest.mark.soak]

LIMITED = """
import resource, sys
from curvact.__main__ import main
if __name__ == "__main__":  # its workers have the limit from it
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
    sys.argv = ["curvact", *sys.argv[2:]]
    main()
"""

SIZE = """
import torch, curvact.lab.sweep_run, curvact.lab.run
torch.nn.functional.linear(torch.zeros(99, 99), torch.zeros(99, 99))
pages = int(open("/proc/self/statm").read().split()[0])
print(pages * 4096)
"""


def test_one_run_fails_and_the_rest_goes_on(tmp_path: Path) -> None:
    """The address space has room for the small network only; later, without a limit, for both.

    8000 squared weights are 256 MB, three times as much with their gradients and their momentum.
    """
    small = {**harness.BASE, "training": {**harness.BASE["training"], "epochs": 1}}
    content = {
        "name": "memory",
        "base": small,
        "grid": {"seed": [0]},
        "cells": {"size": {"small": {}, "large": {"model.width": 8000}}},
    }
    spec, out = write_spec(tmp_path / "memory.yaml", content), tmp_path / "out"
    script = tmp_path / "limited.py"
    script.write_text(LIMITED)
    measured = subprocess.run([sys.executable, "-c", SIZE], capture_output=True, text=True, check=True)
    arguments = [
        str(int(measured.stdout) + (650 << 20)),
        "sweep",
        "run",
        str(spec),
        "--out",
        str(out),
        "--workers",
        "1",
    ]
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "1 of 2 runs failed" in done.stderr
    assert "Traceback" not in done.stderr
    rows = {row["size"]: row for row in csv_without_times(out / "results.csv")}
    assert rows["small"]["status"] == "done"
    assert rows["large"]["status"] == "failed"
    assert rows["large"]["cause"].startswith("out of memory")
    note("a run out of memory, the rest done")
    code, _, errors = Command.start("sweep", "run", spec, "--out", out, "--resume").end()
    assert code == 0, errors
    rows = {row["size"]: row for row in csv_without_times(out / "results.csv")}
    assert rows["large"]["status"] == "done"
