"""Code of users: by name everywhere, part of the id, copied into folders, and never run unasked."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from curvact.data import load
from curvact.errors import CurvactError
from curvact.lab import imports
from curvact.lab.checkpoints import open_checkpoint
from curvact.lab.imports import CodeWarning, given_code, import_code, load_plugins, trust_code
from curvact.lab.placement import Placement
from curvact.lab.run import execute
from curvact.lab.settings import check_settings
from curvact.lab.spec import RunSpec, canonical_activation, read_spec
from curvact.lab.store import read_record
from curvact.lab.sweep import read_sweep
from curvact.lab.sweep_run import report, run_sweep
from curvact.workers import Event, Send, run_jobs

QUIET = Console(quiet=True)

MINE = """
import torch, torch.nn.functional as F
import curvact as cv
from curvact.training import Maximization, ObjectiveValue, register_objective

cv.activations.register("mine", lambda a=1.0: cv.activations.Elementwise(lambda x: torch.tanh(a * x)))

def plain(model, x, y, attack, *, label_smoothing=0.0):
    logits = model(x)
    return ObjectiveValue(F.cross_entropy(logits, y), logits.detach(), x, 1)

register_objective("plain", plain, attack="none")
"""
QUESTION = """
from curvact.lab.engines import register_engine
from curvact.lab.run import execute
from curvact.lab.statistics import Answer, Question, register_question
from curvact.workers import Event

class Count(Question):
    def suits(self, table):
        return True
    def answer(self, table):
        return Answer("Count", (f"{len(table.rows)} runs",), ())

def here(jobs, workers, on_event):
    for number, job in enumerate(jobs):
        on_event(Event("done", number, execute(job.spec, job.folder)))
    return []

register_question("count", Count)
register_engine("here", here)
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The folder of my.py, of run.yaml that imports it, and of question.py."""
    base = {
        "data": {"name": "digits", "train": 60, "validation": 40, "test": 40},
        "model": {"name": "mini_resnet", "width": 2, "blocks": 1},
        "training": {"objective": "plain", "epochs": 1, "batch_size": 20, "validation": "pgd-0"},
        "evaluation": {"attack": "pgd-1", "train_images": 40, "weights": "last"},
    }
    (tmp_path / "my.py").write_text(MINE)
    (tmp_path / "question.py").write_text(QUESTION)
    run = {"imports": ["my.py"], **base, "activation": "mine(a=2)"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    sweep = {
        "name": "mine",
        "imports": ["my.py", "question.py"],
        "base": base,
        "grid": {"activation": ["mine", "relu"], "seed": [0]},
        "questions": {"count": {}},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return tmp_path


def test_a_run_with_code_and_its_folder(mine: Path, fresh: Callable[[], None]) -> None:
    spec = read_spec(mine / "run.yaml")
    assert spec.activation == "mine(a=2)"
    run = mine / "run"
    record = execute(spec, run)
    environment = json.loads((run / "environment.json").read_text())
    assert [code["file"] for code in environment["imports"]] == ["my.py"]
    assert (run / "code" / "my.py").read_text() == MINE

    fresh()
    for read in (read_spec, read_record, open_checkpoint):
        with pytest.raises(CurvactError, match=r"needs the code my\.py: --trust-code") as caught:
            read(run)
        assert "\n" not in str(caught.value)
    with trust_code():
        assert read_spec(run) == spec
        assert read_record(run) == record
    fresh()
    import_code(mine / "my.py")  # the same content is as good as trust
    assert open_checkpoint(run).model(record_input()).shape == (1, 10)

    fresh()
    (mine / "my.py").write_text(MINE + "# another formula\n")
    with (
        given_code([mine / "my.py"]),
        pytest.raises(CurvactError, match=r"my\.py, which was run here, is another version"),
    ):
        read_record(run)
    fresh()
    with pytest.warns(CodeWarning, match=r"my\.py has changed since .*run was made"), trust_code():
        read_record(run)
    fresh()
    changed = read_spec(mine / "run.yaml")
    assert changed.id != spec.id
    with pytest.raises(CurvactError, match=r"holds a run with another version of my\.py"):
        execute(changed, run)
    (run / "code" / "my.py").write_text("raise SystemExit")
    fresh()
    with trust_code(), pytest.raises(CurvactError, match="its sha256 differs"):
        read_record(run)


def record_input() -> Any:
    import torch

    return torch.zeros(1, 1, 8, 8)


def test_a_sweep_with_a_question_and_an_engine(mine: Path, fresh: Callable[[], None]) -> None:
    spec = read_sweep(mine / "sweep.yaml")
    folder = mine / "out"
    assert run_sweep(spec, folder, Placement("here"), console=QUIET) == []
    assert report(folder).sentences == ("2 runs",)
    fresh()
    with pytest.raises(CurvactError, match=r"needs the code my\.py"):
        report(folder)
    # A question is no part of a run: the sweep goes on, and nothing runs again.
    (mine / "question.py").write_text(QUESTION.replace("runs", "finished runs"))
    again = read_sweep(mine / "sweep.yaml")
    assert [run.id for run in again.planned] == [run.id for run in spec.planned]
    assert run_sweep(again, folder, Placement("here"), resume=True, console=QUIET) == []
    assert report(folder).sentences == ("2 finished runs",)


def named(job: str, send: Send) -> str:
    return canonical_activation(job)


def test_workers_know_the_code(mine: Path, fresh: Callable[[], None]) -> None:
    import_code(mine / "my.py")
    found: list[Event] = []
    assert run_jobs(named, ["mine(a=3)"], workers=1, on_event=found.append) == []
    assert found[-1].content == "mine(a=3)"


def test_the_id_depends_on_content_not_on_place(mine: Path, fresh: Callable[[], None]) -> None:
    here = read_spec(mine / "run.yaml")
    other = mine / "elsewhere"
    other.mkdir()
    for name in ("my.py", "run.yaml"):
        (mine / name).rename(other / name)
    assert read_spec(other / "run.yaml").id == here.id
    assert RunSpec.model_validate({"activation": "relu"}).id == RunSpec.model_validate({"imports": []}).id


def test_files_import_those_before_them(mine: Path, fresh: Callable[[], None]) -> None:
    (mine / "helper.py").write_text("FACTOR = 2")
    (mine / "my.py").write_text("import helper\nassert helper.FACTOR == 2\n" + MINE)
    (mine / "run.yaml").write_text((mine / "run.yaml").read_text().replace("- my.py", "- helper.py\n- my.py"))
    assert [item.file for item in read_spec(mine / "run.yaml").imports] == ["helper.py", "my.py"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = 1\ny = z", r"my\.py: NameError: name 'z' is not defined \(line 2\)"),
        ("def (", r"my\.py: SyntaxError: .* \(line 1\)"),
        ("import sys; sys.exit()", "it ends the process"),
        ("import no_such_module", "No module named 'no_such_module'"),
        (MINE.replace('"mine"', '"relu"'), "that name is taken"),
        (None, r"there is no file .*my\.py"),
    ],
)
def test_code_that_cannot_be_run(
    mine: Path, fresh: Callable[[], None], text: str | None, problem: str
) -> None:
    (mine / "my.py").unlink() if text is None else (mine / "my.py").write_text(text)
    with pytest.raises(CurvactError, match=problem) as caught:
        read_spec(mine / "run.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["my.py", [1], [{"file": "my.py"}], {"my.py": 1}])
def test_imports_of_another_form(mine: Path, fresh: Callable[[], None], value: Any) -> None:
    (mine / "run.yaml").write_text(yaml.safe_dump({"imports": value}))
    with pytest.raises(CurvactError, match=r"such as \[my.py\]"):
        read_spec(mine / "run.yaml")


def test_an_installed_plugin(
    tmp_path: Path, fresh: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(imports, "_PLUGINS_RUN", set())
    (tmp_path / "plugged.py").write_text(
        "import curvact as cv\nfrom torch import nn\ndef add(): cv.activations.register('plugged', nn.Tanh)"
    )
    about = tmp_path / "plugged-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text("[curvact.plugins]\nplugged = plugged:add\n")
    assert load_plugins() == {"plugged": "plugged 1.2"}
    assert canonical_activation("plugged") == "plugged"
    assert isinstance(sys.modules.pop("plugged"), types.ModuleType)


NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10, in_channels=3, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(width, num_classes)
    def forward(self, x):
        return self.fc(self.body(x))
"""


def test_a_network_of_a_file(mine: Path, fresh: Callable[[], None]) -> None:
    (mine / "nets").mkdir()
    (mine / "nets" / "net.py").write_text(NET)
    content = yaml.safe_load((mine / "run.yaml").read_text())
    content |= {"model": {"name": "nets/net.py:Net", "width": 3}, "activation": "silu"}
    (mine / "run.yaml").write_text(yaml.safe_dump(content))
    spec = read_spec(mine / "run.yaml")
    assert spec.model.name == "net.py:Net"
    assert [item.file for item in spec.imports] == ["my.py", "net.py"]
    execute(spec, mine / "run")
    fresh()
    with trust_code():
        checkpoint = open_checkpoint(mine / "run")
    assert checkpoint.model(record_input()).shape == (1, 10)
    assert checkpoint.architecture["width"] == 3
    with pytest.raises(CurvactError, match=r"imports lacks net\.py"):
        check_settings(RunSpec, {"model": "net.py:Net"}, "here")
    fresh()
    sweep = {
        "name": "nets",
        "imports": ["question.py"],
        "base": {"model.width": 2},
        "grid": {"model": ["nets/net.py:Net(width=2)", "mini_resnet"], "seed": [0]},
    }
    (mine / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    runs = read_sweep(mine / "sweep.yaml").planned
    assert [run.spec.model.name for run in runs] == ["net.py:Net", "mini_resnet"]
    (mine / "nets" / "net.py").write_text(NET + "# another\n")
    fresh()
    changed = read_sweep(mine / "sweep.yaml").planned
    assert changed[0].id != runs[0].id


def test_paths_begin_at_the_spec(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data of a spec lie beside it, whatever the working directory, and its run knows where."""
    specs, elsewhere = mine / "specs", mine / "elsewhere"
    specs.mkdir()
    elsewhere.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
    for place, shift in ((specs, 0), (elsewhere, 1)):
        np.savez(place / "mine.npz", images=images, labels=(np.arange(60) + shift) % 2)
    content = {**yaml.safe_load((mine / "run.yaml").read_text()), "data": "./mine.npz", "activation": "relu"}
    del content["imports"], content["training"]["objective"]
    (specs / "run.yaml").write_text(yaml.safe_dump(content))
    grid = {
        "name": "two",
        "base": {**content, "data": "digits"},
        "grid": {"data": ["./mine.npz"], "seed": [0]},
    }
    (specs / "sweep.yaml").write_text(yaml.safe_dump(grid))

    monkeypatch.chdir(specs)
    beside = read_spec("run.yaml")
    assert beside.data.name == "./mine.npz"  # as it is written: ids do not change
    assert read_spec(specs / "run.yaml").id == beside.id
    execute(beside, mine / "run")
    monkeypatch.chdir(elsewhere)  # where another file has the name
    record = read_spec("../specs/run.yaml")
    assert record.data.name == str(specs / "mine.npz")
    assert read_sweep("../specs/sweep.yaml").planned[0].spec.data.name == str(specs / "mine.npz")
    data = open_checkpoint(mine / "run").data
    assert data is not None
    assert data.load().test.sha256 == record.data.load().test.sha256
    assert data.load().test.sha256 != load("./mine.npz").test.sha256
    (specs / "mine.npz").unlink()
    assert read_spec("../specs/run.yaml").data.load().test.sha256 == load("./mine.npz").test.sha256


def test_a_file_beside_that_was_not_imported_is_named(mine: Path) -> None:
    (mine / "beside_it.py").write_text("")
    (mine / "my.py").write_text("import beside_it")
    with pytest.raises(
        CurvactError, match=r"'beside_it'; import beside_it\.py too, and before it \(line 1\)$"
    ):
        import_code(mine / "my.py")
