"""The command itself: what it loads, its version, one line and an exit code for failures."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from curvact._version import __version__
from curvact.lab.cli import main as cli
from curvact.lab.cli.options import Attacked, Subject, with_options

Run = Callable[..., Any]
GROUPS = ("analyze", "data", "sweep", "transfer")


def test_what_needs_no_model_loads_no_torch() -> None:
    """Help of the command and of each group, the version, a mistyped command, a mistyped option."""
    calls = [["--help"], ["--version"], ["analyse"], ["train", "--reusme"], ["analyze", "hesian"]]
    calls += [*([group, "--help"] for group in GROUPS), ["sweep", "run", "--help"]]
    calls += [[command, "--help"] for command in ("train", "evaluate", "leaderboard", "activation")]
    script = f"""
import contextlib, io, sys
from curvact.lab.cli.main import main
codes = []
for call in {calls!r}:
    sys.argv = ["curvact", *call]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            codes.append(end.code or 0)
heavy = ("torch", "numpy", "matplotlib", "yaml", "curvact.activations", "curvact.models", "curvact.lab.run", "ray")
print(codes, [name for name in heavy if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split("\n")[0] == f"{[2 if 2 <= i < 5 else 0 for i in range(len(calls))]} []"


def test_the_version_and_the_module(curvact: Run, curvact_process: Run) -> None:
    assert curvact("--version") == (0, f"curvact {__version__}\n", "")
    assert curvact_process("--version") == (0, f"curvact {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["analyse"], "No such command 'analyse'. Did you mean 'analyze'?; see `curvact --help`"),
        (["sweep", "rum"], "No such command 'rum'. Did you mean 'run'?; see `curvact sweep --help`"),
        (["sweep", "run"], "Missing argument 'spec'; see `curvact sweep run --help`"),
        (["sweep", "run", "demo", "--workers", "two"], "Invalid value for '--workers'"),
        (["train", "demo", "--reusme"], "No such option: --reusme"),
    ],
)
def test_wrong_words_are_one_line(curvact: Run, words: list[str], message: str) -> None:
    code, out, err = curvact(*words)
    err = err.replace("python -m pytest.curvact", "curvact")
    assert (code, out) == (2, "")
    assert err.startswith("curvact: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_wrong_number_of_processes_is_one_line(curvact: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert curvact("train", "digits").err == (
        "curvact: WORLD_SIZE='two' in the environment: a whole number >= 1, as torchrun sets it\n"
    )


def test_every_help_text_is_a_sentence() -> None:
    """Of commands, arguments and options. A command's first sentence fits its group's list."""

    def check(command: Any, path: str) -> None:
        assert command.get_short_help_str(limit=65)[-3:] != "...", path
        for parameter in command.params:
            text = str(getattr(parameter, "help", None) or "")
            if parameter.name != "help":
                assert text[:1].isupper() or text[:1] in "κξ", (path, parameter.name)
                assert text.endswith("."), (path, parameter.name)
        for name, sub in getattr(command, "commands", {}).items():
            assert sub.help, f"{path} {name}"
            check(sub, f"{path} {name}")

    check(typer.main.get_command(cli.app), "curvact")


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.png"), 2, "No space left on device: x.png"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "xx"), 2, "File name too long: xx"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "Permission denied: /x"),
        (KeyboardInterrupt(), 130, "stopped; --resume goes on with"),
    ],
)
def test_failures_are_one_line(
    curvact: Run, monkeypatch: pytest.MonkeyPatch, failure: BaseException, code: int, message: str
) -> None:
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr("curvact.activations.describe.describe", fail)
    done = curvact("activation", "relu")
    assert (done.code, done.out) == (code, "")
    assert done.err.count("\n") == 1
    assert message in done.err


def test_other_errors_of_the_system_are_not_hidden(curvact: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("curvact.activations.describe.describe", fail)
    with pytest.raises(OSError, match="Input/output"):
        curvact("activation", "relu")


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


def test_a_group_of_options_reaches_the_command_as_one_value(
    curvact: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Defaults of the dataclass, defaults of the command, and what is typed."""
    seen: list[tuple[Any, ...]] = []
    app = typer.Typer()

    @app.command("one")
    @with_options(split="train", n=7)
    def one(path: Path, subject: Attacked, probes: int = 3) -> None:
        seen.append((path, subject, probes))

    @app.command("two")
    @with_options()
    def two(subject: Subject) -> None:
        seen.append((subject,))

    monkeypatch.setattr(cli, "app", app)
    curvact("one", "x", "--seed", 5, "--epsilon", "8/255", "--probes", 4)
    curvact("two")
    (path, subject, probes), (plain,) = seen
    assert (path, probes, subject.seed, subject.split, subject.n, subject.batch_size) == (
        Path("x"),
        4,
        5,
        "train",
        7,
        128,
    )
    assert (subject.radius, subject.pgd.steps) == (8 / 255, 20)
    assert plain == Subject()
    assert curvact("two", "--epsilon", "0.1").code == 2


@pytest.mark.parametrize(("after", "number"), [(0.3, signal.SIGINT), (1.2, signal.SIGTERM)])
def test_a_stop_at_any_time_is_one_line(after: float, number: signal.Signals, tmp_path: Path) -> None:
    """In the first second, while modules are imported, too, and twice in a row."""
    command = [sys.executable, "-m", "curvact", "train", "digits", "training.epochs=500", "--out", "run"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    time.sleep(after)
    for _ in range(2):
        process.send_signal(number)
        time.sleep(0.02)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 128 + number, errors
    assert [line for line in errors.splitlines() if not line.startswith("epoch")] == [
        "curvact: stopped; --resume goes on with a training run, a sweep, a search or an evaluation"
    ]


def test_brackets_in_a_path_are_printed(
    tmp_path: Path, curvact: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = [
        "data={name: digits, train: 40, validation: 20, test: 20}",
        "model={name: mini_resnet, width: 2}",
    ]
    short = ["training.epochs=1", "training.attack=pgd-1", "evaluation.attack=pgd-1"]
    done = curvact("train", "digits", *small, *short, "--out", "mk[/b]")
    assert done.code == 0, done.err
    assert "mk[/b]/curves.png" in done.out
    assert (tmp_path / "mk[" / "b]" / "curves.png").is_file()
