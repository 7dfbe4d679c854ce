"""Flipped bits and cut files: each is found, or changes no number. Never another number, never a traceback."""

from __future__ import annotations

import errno
import os
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from curvact.attacks import ThreatModel
from curvact.attacks.autoattack.shard import Unit
from curvact.attacks.autoattack.store import read_unit, write_unit
from curvact.data import load
from curvact.errors import CurvactError
from curvact.lab import stored
from curvact.lab.environment import environment
from curvact.lab.placement import Placement
from curvact.lab.record.evaluation import evaluate
from curvact.lab.record.record import read_record as read_evaluation
from curvact.lab.record.record import write_record as write_evaluation
from curvact.lab.run import execute
from curvact.lab.search import SearchSpec
from curvact.lab.search_run import STORAGE, open_study, run_search, trials_of
from curvact.lab.settings import check_settings
from curvact.lab.spec import RunSpec, read_spec
from curvact.lab.store import check_run_folder, finished, read_environment, read_history
from curvact.models import MiniResNet
from curvact.models.checkpoint import load_checkpoint
from curvact.models.learned import extract_activation, read_learned, write_learned
from curvact.training import Epoch
from curvact.training.state import load_state

FLIPS = int(os.environ.get("CURVACT_SOAK_FLIPS", "1500"))
"""Of each file, where the test is a long one."""

RUN: dict[str, Any] = {
    "data": {"name": "digits", "train": 60, "validation": 40, "test": 40},
    "model": {"name": "mlp", "width": 4, "depth": 1},
    "activation": "rctaf(curvature=6)",
    "training": {"epochs": 2, "batch_size": 20, "attack": "pgd-1", "schedule": "constant", "warmup": 0.0},
    "evaluation": {"attack": "pgd-1", "train_images": 20},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run that keeps its state, with an evaluation, a shard and an activation."""
    folder = tmp_path_factory.mktemp("whole")
    execute(check_settings(RunSpec, RUN, "run"), folder)
    data, threat = load("digits").test.first(20), ThreatModel("linf", 0.1)
    model = MiniResNet("sparta", channels=1, width=2)
    record = evaluate(model, data, threat, attack="pgd-1", masking="none", name="net")
    write_evaluation(record, folder / "one.evaluation.json")
    unit = Unit(
        0,
        "apgd-ce",
        torch.arange(3),
        torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)),
        torch.arange(3),
        standing=9,
        forward=80,
        gradient=70,
        outside=0,
        zero_gradients=0,
        seconds=1.5,
        notes=(),
    )
    (folder / "unit.safetensors").write_bytes(write_unit(unit, "run"))
    write_learned(folder / "learned.safetensors", extract_activation(model))
    return folder


def _of_run(folder: Path) -> object:
    run = (folder / "id").read_text() if (folder / "id").exists() else folder.name
    lines = [{name: line.get(name) for name in Epoch.__dataclass_fields__} for line in read_history(folder)]
    return finished(folder, run), lines


def _of_environment(folder: Path) -> object:
    """What is said of it. A flipped name of the checksum is one entry more."""
    known = read_environment(folder)
    return [known.get(key) for key in (*environment(torch.device("cpu")), "run")]


def _of_network(folder: Path) -> object:
    model = load_checkpoint(folder / "best.safetensors")
    return repr(model), {name: value.tolist() for name, value in model.state_dict().items()}


def _of_spec(folder: Path) -> object:
    spec = read_spec(folder)
    check_run_folder(folder, spec)
    return spec.id


def _of_unfinished(folder: Path) -> object:
    (folder / "record.json").unlink(missing_ok=True)
    return _of_spec(folder)


def _of_list(folder: Path) -> object:
    found = [run for run in stored.stored_runs(folder) if run.status != "unreadable"]
    if not found:
        raise CurvactError("unreadable")
    return found


def _of_unit(folder: Path) -> object:
    unit = read_unit((folder / "unit.safetensors").read_bytes(), "run", 0, "apgd-ce")
    if unit is None:
        raise CurvactError("damaged")
    return _plain(vars(unit))


def _of_activation(folder: Path) -> object:
    learned = read_learned(folder / "learned.safetensors")
    return learned.name, learned.scope, learned.sha256, learned.parameters


def _plain(tree: Any) -> Any:
    """Values that `==` compares, NaN included."""
    if isinstance(tree, torch.Tensor):
        return str(tree.dtype), tree.shape, tree.numpy().tobytes()
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return [_plain(value) for value in tree] if isinstance(tree, (list, tuple)) else repr(tree)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "the record of a run": ("record.json", _of_run),
    "its last weights": ("last.safetensors", _of_run),
    "its epochs": ("metrics.jsonl", _of_run),
    "weights that are loaded": ("best.safetensors", _of_network),
    "their description": ("best.json", _of_network),
    "where it ran": ("environment.json", _of_environment),
    "its spec": ("spec.yaml", _of_spec),
    "the spec of an unfinished run": ("spec.yaml", _of_unfinished),
    "its state": ("state.safetensors", lambda folder: _plain(load_state(folder / "state.safetensors"))),
    "the list of runs": ("record.json", _of_list),
    "an evaluation": ("one.evaluation.json", lambda folder: read_evaluation(folder / "one.evaluation.json")),
    "a shard": ("unit.safetensors", _of_unit),
    "a learned activation": ("learned.safetensors", _of_activation),
    "its description": ("learned.json", _of_activation),
}


def _damaged(content: bytes, chance: random.Random) -> bytes:
    """One bit flipped, as a rule; or cut; or a piece of it overwritten with zeros."""
    kind, place = chance.random(), chance.randrange(len(content))
    if kind < 0.7:
        return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
    if kind < 0.85:
        return content[:place]
    zeros = bytes(min(512, len(content) - place))
    return content[:place] + zeros + content[place + len(zeros) :]


def _found(read: Callable[[Path], object], folder: Path, expected: object) -> bool:
    """Whether a damage is found. Where it is not, nothing else is read than before."""
    try:
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            found = read(folder)
    except CurvactError as error:
        problem = str(error)
    else:
        assert found == expected
        return False
    assert "\n" not in problem
    return True


def _try(what: str, whole: Path, folder: Path, flips: int) -> None:
    name, read = READERS[what]
    shutil.copytree(whole, folder)
    (folder / "id").write_text(read_spec(whole).id)
    kept = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    expected = read(folder)
    chance = random.Random(what)
    outcomes = []
    for _ in range(flips):
        for file, content in kept.items():
            if not (folder / file).exists():
                (folder / file).write_bytes(content)
        (folder / name).write_bytes(_damaged(kept[name], chance))
        outcomes.append(_found(read, folder, expected))
    assert any(outcomes)


@pytest.mark.parametrize("what", READERS)
def test_damage_is_found(what: str, whole: Path, tmp_path: Path) -> None:
    _try(what, whole, tmp_path / "run", 40)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("what", READERS)
def test_damage_is_found_often(what: str, whole: Path, tmp_path: Path) -> None:
    _try(what, whole, tmp_path / "run", FLIPS)


def test_a_full_disk_at_every_write(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first write fails, then the second of the next session, and so on: the end is the same."""
    spec, sync = read_spec(whole), os.fsync
    left = 0

    def full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    for number in range(1, 200):
        left = 2 * number - 1  # each write syncs its file, then its folder
        try:
            record = execute(spec, tmp_path / "run")
        except CurvactError as error:
            problem = str(error)
        else:
            break
        assert problem.startswith("disk full while writing")
        assert "\n" not in problem
        assert not list(tmp_path.rglob(".*.tmp"))
    assert number > 5
    assert record.files == finished(whole, spec.id).files  # type: ignore[union-attr]


def _index(folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(stored, "MANY", 1)
    for number in range(3):
        shutil.copytree(whole, folder / f"run{number}")
    return stored.stored_runs(folder)


@pytest.mark.parametrize("flips", [60, pytest.param(FLIPS, marks=[pytest.mark.slow, pytest.mark.soak])])
def test_a_damaged_index_is_made_again(
    flips: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _index(tmp_path / "all", whole, monkeypatch)
    index = tmp_path / "all" / stored.INDEX_FILE
    content = index.read_bytes()
    chance = random.Random(0)
    for _ in range(flips):
        index.write_bytes(_damaged(content, chance))
        assert not _found(stored.stored_runs, tmp_path / "all", expected)


SEARCH: dict[str, Any] = {
    "name": "kappa",
    "base": {
        **RUN,
        "activation": "rctaf(beta=0)",
        "evaluation": {"attack": "pgd-1", "train_images": 20, "weights": "last"},
    },
    "space": {"curvature": {"low": 0.3, "high": 60, "log": True}},
    "budget": 60,
}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchSpec, Path]:
    pytest.importorskip("optuna")
    folder = tmp_path_factory.mktemp("search")
    spec = check_settings(SearchSpec, yaml.safe_load(yaml.safe_dump(SEARCH)), "search")
    run_search(spec, folder, Placement("inline", workers=1), console=Console(quiet=True))
    return spec, folder


@pytest.mark.parametrize("flips", [60, pytest.param(FLIPS, marks=[pytest.mark.slow, pytest.mark.soak])])
def test_a_damaged_journal_is_found(flips: int, searched: tuple[SearchSpec, Path], tmp_path: Path) -> None:
    """A trial that is not read as it was is an error. One that is lost is asked for again."""
    spec, whole = searched
    folder = tmp_path / "search"
    shutil.copytree(whole, folder)
    content = (folder / STORAGE).read_bytes()
    expected = trials_of(spec, open_study(spec, folder))
    chance = random.Random(1)
    outcomes = []

    def read(folder: Path) -> object:
        """The trials that were read otherwise than before; a lost end is asked for again."""
        trials = trials_of(spec, open_study(spec, folder))
        pairs = zip(trials, expected, strict=False)
        return [trial for trial, before in pairs if trial != before and trial.state != "running"]

    for _ in range(flips):
        (folder / STORAGE).write_bytes(_damaged(content, chance))
        outcomes.append(_found(read, folder, []))
    assert any(outcomes)
