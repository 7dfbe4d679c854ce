"""The first commands of a user: init, schema, doctor, the examples in the help, completion."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from curvact.errors import CurvactError
from curvact.lab import doctor
from curvact.lab.cli.examples import TASKS, commands_of
from curvact.lab.cli.main import app
from curvact.lab.search import read_search
from curvact.lab.spec import read_spec
from curvact.lab.sweep import read_sweep

EXAMPLES = [line for lines in TASKS.values() for line in lines]


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize("kind", ["run", "sweep", "search"])
@pytest.mark.parametrize("every", [False, True])
def test_a_new_spec_is_read_back(kind: str, every: bool, tmp_path: Path) -> None:
    file = tmp_path / "new.yaml"
    more = ["--all"] if every else []
    assert run("init", kind, "--model", "mlp(width=16)", "--out", str(file), *more).exit_code == 0
    read: Any = {"run": read_spec, "sweep": read_sweep, "search": read_search}[kind]
    spec = read(file)
    first = spec if kind == "run" else spec.planned[0].spec if kind == "sweep" else spec.baseline_run
    assert (first.model.name, first.model.width, first.threat_model.epsilon) == ("mlp", 16, 0.2)


def test_a_new_spec_with_a_network_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("init", "--model", "my.py:Net", "--data", "cifar10").exit_code == 0
    text = (tmp_path / "run.yaml").read_text()
    assert "imports: [my.py]" in text
    assert "epsilon: 8/255" in text


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [("--model", "resnet81", "resnet18"), ("--model", "mlp(width=", "mlp"), ("--data", "cifar99", "cifar10")],
)
def test_no_spec_is_written_of_what_there_is_not(option: str, value: str, hint: str, tmp_path: Path) -> None:
    file = tmp_path / "new.yaml"
    found = run("init", option, value, "--out", str(file))
    assert found.exit_code != 0
    assert isinstance(found.exception, CurvactError)
    assert str(found.exception).startswith(f"{option}: name='{value}': allowed are")
    assert hint in str(found.exception)
    assert not file.exists()


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("kept")
    found = run("init", "--out", str(file))
    assert isinstance(found.exception, CurvactError)
    assert "exists" in str(found.exception)
    assert file.read_text() == "kept"


def test_the_schema_is_printed_as_json() -> None:
    assert json.loads(run("schema", "sweep").stdout)["properties"]["grid"]


def test_doctor_names_what_is_slow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    environment = doctor.environment()
    plain = {**environment, "kernels": "plain (CURVACT_NATIVE=0)", "threads": 1}
    monkeypatch.setattr(doctor, "environment", lambda: plain)
    monkeypatch.setattr(doctor, "_compiler", lambda: "")
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 8)
    health = doctor.examine(tmp_path, seconds=0.01)
    assert "cifar10" in health.facts["data sets"]
    for said in ("kernels are plain", "no C++ compiler", "1 of 8 cores"):
        assert any(said in finding for finding in health.findings), said


def test_doctor_lists_extras() -> None:
    extras = doctor._missing_extras()
    assert extras["search"] == ()  # the tests need it
    assert "test" not in extras


def test_doctor_prints_rates() -> None:
    found = run("doctor")
    assert found.exit_code == 0
    assert "GFLOP/s" in found.stdout
    assert "extras installed" in found.stdout


def _command(words: list[str]) -> tuple[Any, list[str]]:
    """The click command that the words name, and what is left of them."""
    place: Any = typer.main.get_command(app)
    while hasattr(place, "commands") and words and words[0] in place.commands:
        place, words = place.commands[words[0]], words[1:]
    return place, words


@pytest.mark.parametrize("line", EXAMPLES)
def test_every_example_is_a_command_with_options_that_exist(line: str) -> None:
    words = shlex.split(line.partition(" > ")[0])
    assert words[0] == "curvact"
    command, rest = _command(words[1:])
    if rest == ["--install-completion"]:  # parsing it would write into the user's shell
        return
    command.make_context("curvact", list(rest))


def test_every_command_shows_its_example() -> None:
    for path in commands_of(app):
        found = run(*path, "--help")
        assert f"curvact {' '.join(path)}" in found.stdout.partition("Example:")[2], path


def test_the_help_of_curvact_lists_tasks() -> None:
    text = run("--help").stdout
    assert all(f"{task}:\n    {lines[0]}" in text for task, lines in TASKS.items())


def test_the_tab_key_completes_commands() -> None:
    code = "import sys; sys.argv[0] = 'curvact'; from curvact.lab.cli.main import main; main()"
    asked = {"COMP_WORDS": "curvact swe", "COMP_CWORD": "1", "_CURVACT_COMPLETE": "complete_bash"}
    found = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert found.stdout.split() == ["sweep"]
