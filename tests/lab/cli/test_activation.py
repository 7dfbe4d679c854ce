"""`curvact activation`: the properties that it prints, and its picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def test_properties_of_one_activation(curvact: Run) -> None:
    done = curvact("activation", "rctaf(curvature=6)")
    assert done.code == 0, done.err
    # σ(0) = ln 2/24, by hand.
    for text in ("6 at x = 0", "0.0288811", "0 and 1", "monotone", "yes (up to 0.0288811)"):
        assert text in done.out


def test_properties_of_several(curvact: Run) -> None:
    """SiLU's least slope, −0.0998, and H₂/α = 1.5/2 of the power gate's asymptote."""
    out = curvact("activation", "silu", "relu", "powergate(alpha=2, n=3)").out
    for text in ("∞ at x = 0", "−0.0998", "x − 0.75"):
        assert text in out


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_plot(curvact: Run, tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"curves.{ending}"
    done = curvact("activation", "rctaf(curvature=6)", "rctaf(curvature=6, beta=3)", "relu", "--plot", file)
    assert done.code == 0, done.err
    assert file.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending])
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rtcaf(curvature=6)",), "unknown activation 'rtcaf'; did you mean 'rctaf'?"),
        (("rctaf(curvature=0)",), "curvature=0 in rctaf"),
        (("rctaf(beta=7)",), "beta=7 in rctaf"),
        ((f"swish(beta={10**400})",), "in swish: beta must be"),
        (("relu", "--plot", "curves.gif"), "--plot curves.gif: the name must end in .png, .svg or .pdf"),
        (("relu", "--plot", "/nonexistent/curves.png"), "cannot write /nonexistent/curves.png"),
        (("relu", "--plot", "x.png", "--reach", "-1"), "--reach -1.0"),
    ],
)
def test_bad_input_is_one_line(
    curvact: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = curvact("activation", *arguments)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
