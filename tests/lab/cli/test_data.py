"""`curvact data`: what is printed and written; bad input is one line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curvact.data import DATASETS

Run = Callable[..., Any]


@pytest.fixture
def run(curvact: Run) -> Callable[..., str]:
    """What a command prints that must not fail."""

    def done(*arguments: str) -> str:
        ended = curvact("data", *arguments)
        assert ended.code == 0, ended.err
        return str(ended.out)

    return done


def test_list(run: Run, fake_data_root: Path, tmp_path: Path) -> None:
    text = run("list", "--root", str(tmp_path))
    for name, entry in DATASETS.items():
        (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
        assert "×".join(map(str, entry.shape)) in line
        assert f"{entry.train:,}" in line
        assert ("built in" if name == "digits" else " no ") in line
    assert str(tmp_path) in text
    text = run("list", "--root", str(fake_data_root), "--verify")
    assert re.search(r"digits .* built in, verified", text)
    assert re.search(r"mnist .* yes, not the usual files", text)
    assert re.search(r"svhn .* yes, no checksum known", text)


def test_list_says_what_is_unreadable(curvact: Run, tmp_path: Path) -> None:
    (tmp_path / "svhn").mkdir()
    (tmp_path / "svhn" / "train_32x32.mat").write_text("")
    done = curvact("data", "list", "--root", str(tmp_path), "--verify")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "svhn" in done.err
    assert re.search(r"svhn .* yes, unreadable", done.out)


def test_the_environment_names_the_root(
    run: Run, fake_data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CURVACT_DATA", str(fake_data_root))
    assert re.search(r"cifar10 .* yes ", run("list"))


@pytest.mark.parametrize("name", ["digits", "cifar100", "imagenette"])
def test_show(
    run: Run, name: str, fake_data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = run(
        "show", name, "--root", str(fake_data_root), "--split", "test", "--size", "16", "--columns", "2"
    )
    assert f"wrote {name}.png" in text
    assert f"{len(DATASETS[name].classes)} classes; mean" in text
    assert re.search(r"test +(359|15) ", text)
    assert (f"{name}: verified" if name == "digits" else f"{name}: no checksum known") in text
    assert os.listdir(tmp_path) == [f"{name}.png"]


def test_show_a_path(run: Run, fake_data_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "[x].png"
    folder = fake_data_root / "imagenette" / "imagenette2-160"
    assert f"wrote {out}" in run("show", str(folder), "--size", "8", "--out", str(out))
    assert out.read_bytes().startswith(b"\x89PNG")


def test_fetch_of_what_needs_no_fetching(run: Run, tmp_path: Path) -> None:
    assert "nothing to fetch" in run("fetch", "digits", "--root", str(tmp_path))
    (tmp_path / "svhn").mkdir()
    (tmp_path / "svhn" / ".complete").touch()
    assert run("fetch", "svhn", "--root", str(tmp_path)) == f"svhn: {tmp_path / 'svhn'}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "mnits"), "unknown data set 'mnits'; did you mean 'mnist'?"),
        (("fetch", "mnits"), "unknown data set 'mnits'; did you mean 'mnist'?"),
        (
            ("show", "digits", "--split", "val"),
            "--split val; allowed are train, validation, test",
        ),
        (("show", "digits", "--out", "x.gif"), "x.gif: the name must end in"),
        (("show", "digits", "--columns", "0"), "columns=0"),
        (("show", "digits", "--size", "0"), "size=0"),
        (("show", "./nowhere"), "nowhere"),
        (("show", "svhn"), "curvact data fetch svhn"),
    ],
)
def test_bad_input_is_one_line(
    curvact: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CURVACT_DATA", raising=False)
    done = curvact("data", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert os.listdir(tmp_path) == []
