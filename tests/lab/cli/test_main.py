"""The command line as a user types it: what it prints, and one line with exit code 2 for every kind of bad input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def curvact(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "curvact", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        check=False,
    )


def test_activation_prints_its_properties() -> None:
    done = curvact("activation", "rctaf(curvature=6)")
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "6 at x = 0" in text
    # σ(0) = ln 2/24, by hand.
    assert "0.0288811" in text
    assert "0 and 1" in text
    assert "monotone" in text
    assert "yes (up to 0.0288811)" in text


def test_activation_of_non_monotone_and_kinked() -> None:
    text = curvact("activation", "silu", "relu", "powergate(alpha=2, n=3)").stdout
    assert "∞ at x = 0" in text
    # SiLU's least slope, −0.0998, and H_2/α = 1.5/2 of the power gate's asymptote.
    assert "−0.0998" in text
    assert "x − 0.75" in text


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_plot(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"curves.{ending}"
    done = curvact(
        "activation", "rctaf(curvature=6)", "rctaf(curvature=6, beta=3)", "relu", "--plot", str(file)
    )
    assert done.returncode == 0, done.stderr
    magic = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending]
    assert file.read_bytes().startswith(magic)
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("activation", "rtcaf(curvature=6)"), "unknown activation 'rtcaf'; did you mean 'rctaf'?"),
        (("activation", "rctaf(curvature=0)"), "curvature=0 in rctaf: curvature must be a finite number > 0"),
        (("activation", "rctaf(beta=7)"), "beta=7 in rctaf: beta must be a whole number from 0 to 3"),
        (
            ("activation", "relu", "--plot", "curves.gif"),
            "--plot curves.gif: the name must end in .png, .svg or .pdf",
        ),
        (("activation", "relu", "--plot", "/nonexistent/curves.png"), "cannot write /nonexistent/curves.png"),
        (("activation", "relu", "--plot", "x.png", "--reach", "-1"), "--reach -1.0"),
        (("study", "run", "nowhere.yaml"), "cannot read nowhere.yaml"),
        (("study", "report", "nowhere"), "nowhere holds no study"),
        (("study", "run", "STUDY", "--workers", "0", "--out", "OUT"), "--workers 0: must be >= 1"),
        (("study", "run", "STUDY", "--set", "training.batchsize=3"), "did you mean 'batch_size'"),
        (("study", "run", "STUDY", "--set", "threat_model.epsilon=-1"), "threat_model.epsilon=-1"),
        (
            ("study", "run", "STUDY", "--set", "factors.curvature=[0]"),
            "curvature must be a finite number > 0",
        ),
        (("study", "run", "STUDY", "--out", "/proc/x"), "cannot write the study folder /proc/x"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    study = ROOT / "studies" / "digits.yaml"
    texts = [a.replace("STUDY", str(study)).replace("OUT", str(tmp_path / "out")) for a in arguments]
    done = curvact(*texts, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.png"))
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """A file-size limit of zero bytes stands in for the full disk: the write itself fails."""
    script = (
        "import resource, signal, sys;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0));"
        "sys.dont_write_bytecode = True;"
        "from curvact.lab.cli.main import main;"
        f"sys.argv = ['curvact', 'activation', 'relu', '--plot', {str(tmp_path / 'x.png')!r}];"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "x.png" in done.stderr
    assert list(tmp_path.iterdir()) == []
