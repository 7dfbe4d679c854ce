"""Settings from files of strangers: one short line for each, in no time."""

from __future__ import annotations

import contextlib
import os
import random
import time
from pathlib import Path

import pytest

from curvact.errors import CurvactError
from curvact.lab.settings import MOST_BYTES, MOST_VALUES, check_settings, plain_of, read_plain
from curvact.lab.spec import read_spec
from curvact.lab.sweep import SweepSpec

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
HOSTILE = {
    "name: 2001-99-99": "'2001-99-99' is no timestamp",
    "seed: !!int x": "line 1: 'x' is no int",
    "seed: !!int ''": "'' is no int",
    "seed: !!bool x": "'x' is no bool",
    "name: !!timestamp x": "'x' is no timestamp",
    "seed: " + "9" * 5000: "is no int",
    'about: "\\ud800"': "'about' has half a surrogate pair",
    "a: " + "[" * 5000: "nested more than 50 levels deep",
    "{" * 3000: "nested more than 50 levels deep",
    "model: {1: 2}": "the key 1 in 'model' is no text: write it in quotes",
    "~: 1": "the key None is no text",
    "model: {no: 2}": "the key False in 'model' is no text",
    LAUGHS: f"more than {MOST_VALUES:,} values, aliases written out",
    "a: &a [*a]": "an alias stands inside what it means",
    "a: !!python/object:os.system x": "is not valid YAML",
    "about: " + "x" * MOST_BYTES: "is larger than the 200,000 bytes",
    "\n".join(f"k{i}: {i}" for i in range(11_000)): "more than 10,000 values",
    "name: " + "x" * 100_000: "name='xxx",
    "training: {objective: " + "x" * 50_000 + "}": "objective='xxx",
    "seed: 0x" + "f" * 4000: "'seed' has a number of 16,000 bits",
    "a: \0": "is not valid YAML",
    "- 1": "holds no settings",
    "": "holds no settings",
}


@pytest.mark.parametrize("number", range(len(HOSTILE)), ids=[text[:20] for text in HOSTILE])
def test_hostile_yaml(tmp_path: Path, number: int) -> None:
    text, problem = list(HOSTILE.items())[number]
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    began = time.process_time()
    with pytest.raises(CurvactError) as caught:
        read_spec(file)
    assert time.process_time() - began < 3
    message = str(caught.value)
    assert problem in message
    assert "\n" not in message
    assert len(message) < 1300


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ({f"key.k{i}": list(range(3)) for i in range(3000)}, "axes: at most 50"),
        (
            {f"training.k{i}": list(range(100)) for i in range(40)},
            "more than a trillion runs: at most 10,000",
        ),
        (
            {"training.epochs": list(range(1, 3001)), "training.batch_size": list(range(2, 3002))},
            "27,000,000 runs: at most 10,000",
        ),
    ],
)
def test_large_grids(text: dict[str, list[int]], problem: str) -> None:
    began = time.process_time()
    with pytest.raises(CurvactError, match=problem):
        check_settings(SweepSpec, {"name": "a", "grid": text}, "here")
    assert time.process_time() - began < 3


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/full"), Path("/dev/zero"), tmp_path):
        with pytest.raises(CurvactError, match="is no file of settings"):
            read_plain(path)
    for path in (tmp_path / "none", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(CurvactError, match="cannot read"):
            read_plain(path)


def test_random_changes_of_a_spec_are_read_or_refused(tmp_path: Path) -> None:
    """No text makes anything but a CurvactError."""
    text = (Path(__file__).parents[2] / "src/curvact/lab/sweeps/digits.yaml").read_text()
    draw = random.Random(0)
    marks = [
        "[",
        "]",
        "{",
        "}",
        ":",
        "-",
        "&a ",
        "*a",
        "!!int ",
        "\t",
        '"',
        "\\",
        "~",
        "1e999",
        "?",
        "|",
        "\x00",
        "é",
    ]
    for _ in range(60):
        changed = list(text)
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(changed))
            if draw.random() < 0.3:
                del changed[place : place + draw.randint(1, 30)]
            else:
                changed.insert(place, draw.choice(marks))
        with contextlib.suppress(CurvactError):
            plain_of("".join(changed), "spec")
