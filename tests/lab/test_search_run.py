"""Running a search: the same trials however it is run, and test images that are met once."""

from __future__ import annotations

import csv
import math
import shutil
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import curvact.lab.run
import curvact.lab.search_result
import curvact.lab.search_run
from curvact.data import Splits, load
from curvact.errors import CurvactError
from curvact.lab.engines import ENGINES, Job, register_engine, run_job
from curvact.lab.engines.inline import run_inline
from curvact.lab.placement import Placement
from curvact.lab.run import execute
from curvact.lab.search import SearchSpec, on_test_images
from curvact.lab.search_result import conclude
from curvact.lab.search_run import (
    PRUNE_AFTER,
    STORAGE,
    Trial,
    cost_of,
    open_study,
    run_search,
    spent,
    trials_of,
)
from curvact.lab.settings import check_settings
from curvact.lab.spec import DataSpec, read_spec
from curvact.lab.store import read_history, read_record

QUIET = Console(quiet=True)
CONTENT: dict[str, Any] = {
    "name": "kappa",
    "base": {
        "data": {"name": "digits", "train": 60, "validation": 60, "test": 40},
        "model": {"name": "mlp", "width": 16},
        "activation": "rctaf(beta=0)",
        "training": {"epochs": 4, "batch_size": 20, "attack": "pgd(steps=1, step=0.6)"},
        "evaluation": {"attack": "pgd-2", "train_images": 20, "weights": "last"},
    },
    "space": {"curvature": {"low": 0.3, "high": 60, "log": True}},
    "budget": 200,  # 24 a trial
}


def _spec(**changes: Any) -> SearchSpec:
    return check_settings(SearchSpec, {**CONTENT, **changes}, "search")


def _trials(spec: SearchSpec, folder: Path) -> list[Trial]:
    return trials_of(spec, open_study(spec, folder))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchSpec, Path]:
    pytest.importorskip("optuna")
    spec, folder = _spec(), tmp_path_factory.mktemp("search")
    assert run_search(spec, folder, Placement("inline", workers=1), console=QUIET) == []
    return spec, folder


def test_a_search_stays_within_its_budget(searched: tuple[SearchSpec, Path]) -> None:
    spec, folder = searched
    trials = _trials(spec, folder)
    assert {t.state for t in trials} == {"completed", "pruned"}
    by_hand = 0
    for trial in trials:
        run = spec.trial(trial.settings)
        history = read_history(folder / "runs" / run.id)
        by_hand += history[-1]["gradient_evaluations"]
        assert trial.run == run.id
        assert trial.curve == {line["epoch"]: line["validation_robust_accuracy"] for line in history}
        assert (folder / "runs" / run.id / "record.json").exists() == (trial.state == "completed")
        if trial.state == "completed":
            record = read_record(folder / "runs" / run.id)
            assert record.metrics["validation_robust_accuracy"] == trial.accuracy
            assert record.gradient_evaluations == cost_of(run) == 24
    assert spent(trials) == by_hand <= spec.budget
    assert by_hand + 24 > spec.budget
    assert {p.name for p in (folder / "runs").iterdir()} == {t.run for t in trials} | {spec.baseline_run.id}


def test_pruning_is_that_of_optuna(searched: tuple[SearchSpec, Path]) -> None:
    """Its MedianPruner, asked after each epoch, decides as we did."""
    import optuna

    spec, folder = searched
    pruner = optuna.pruners.MedianPruner(n_startup_trials=PRUNE_AFTER, n_warmup_steps=math.ceil(4 / 3) + 1)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    for ours in _trials(spec, folder):
        theirs = study.ask()
        decisions = []
        for epoch, value in ours.curve.items():
            theirs.report(value, epoch)
            decisions.append(epoch < 4 and theirs.should_prune())
        assert decisions == [False] * (len(ours.curve) - 1) + [ours.state == "pruned"]
        pruned = ours.state == "pruned"
        study.tell(
            theirs, None if pruned else ours.accuracy, optuna.trial.TrialState.PRUNED if pruned else None
        )


def test_test_images_are_met_once(searched: tuple[SearchSpec, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    spec, folder = searched
    attacked = []
    real = curvact.lab.search_result.evaluate
    monkeypatch.setattr(
        curvact.lab.search_result, "evaluate", lambda *a, **k: attacked.append(k["name"]) or real(*a, **k)
    )
    result, files = conclude(folder)
    again, _ = conclude(folder)
    assert attacked == [f"{result.best.run}-last", f"{spec.baseline_run.id}-last"]
    assert again.sentences == result.sentences
    assert result.looks == 2
    best = max(t.accuracy for t in result.trials if t.state == "completed")
    assert result.best.accuracy == best
    winner = read_spec(files["winner.yaml"])
    assert winner == on_test_images(spec.trial(result.best.settings))
    lines = list(csv.DictReader(files["trials.csv"].read_text().splitlines()))
    assert [float(line["curvature"]) for line in lines] == [t.settings["curvature"] for t in result.trials]
    assert [line["state"] for line in lines] == [t.state for t in result.trials]
    page = files["report.html"].read_text()
    assert '"file":"trials.csv"' in page
    assert f"curvact train {folder}/runs/\\u0000/spec.yaml" in page


def test_the_winner_by_itself_has_the_same_weights_and_test_accuracy(
    searched: tuple[SearchSpec, Path], tmp_path: Path
) -> None:
    spec, folder = searched
    result, _ = conclude(folder)
    record = execute(on_test_images(spec.trial(result.best.settings)), tmp_path)
    assert record.files["last.safetensors"] == result.winner.record.files["last.safetensors"]
    assert record.metrics["clean_accuracy"] == result.winner.test.clean_accuracy


def test_a_trial_needs_no_test_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Untouchable:
        sha256 = "none"

        def __getattr__(self, name: str) -> None:
            raise AssertionError(f"test.{name}")

    def without_test(wanted: DataSpec) -> Splits:
        found = load(wanted.name, train=wanted.train, validation=wanted.validation)
        return Splits(train=found.train, validation=found.validation, test=Untouchable())

    monkeypatch.setattr(DataSpec, "load", without_test)
    record = execute(_spec().trial({"curvature": 4.0}), tmp_path)
    assert record.test_images == 0
    assert {"validation_robust_accuracy", "validation_clean_accuracy"} <= set(record.metrics)
    assert not {"robust_accuracy", "clean_accuracy"} & set(record.metrics)


@pytest.fixture
def breaking() -> Iterator[str]:
    """An engine that is interrupted in the middle of the third job."""

    def engine(jobs: Sequence[Job], workers: int, on_event: Any) -> list[int]:
        def tell(event: Any) -> None:
            if event.job == 2 and event.kind == "epoch" and event.content["epoch"] == 2:
                raise KeyboardInterrupt
            on_event(event)

        return run_inline(jobs, workers, tell)

    register_engine("breaking", engine)
    yield "breaking"
    del ENGINES["breaking"]


def test_a_killed_search_goes_on_as_if_it_had_not_been(
    searched: tuple[SearchSpec, Path], breaking: str, tmp_path: Path
) -> None:
    spec, whole = searched
    folder = tmp_path / "s"
    with pytest.raises(KeyboardInterrupt):
        run_search(spec, folder, Placement(breaking, workers=1), console=QUIET)
    done = {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/record.json")}
    assert len(done) == 2
    assert [t.state for t in _trials(spec, folder)] == ["completed", "running"]
    with pytest.raises(CurvactError, match="holds a search already: --resume goes on"):
        run_search(spec, folder, console=QUIET)
    for _ in range(2):  # the second time there is nothing left
        assert run_search(spec, folder, Placement("inline", workers=1), resume=True, console=QUIET) == []
        assert _trials(spec, folder) == _trials(spec, whole)
    assert {p: p.stat().st_mtime_ns for p in done} == done


def test_without_its_storage_no_run_is_repeated(searched: tuple[SearchSpec, Path], tmp_path: Path) -> None:
    spec, whole = searched
    folder = tmp_path / "s"
    shutil.copytree(whole, folder)
    whole_journal = (folder / STORAGE).read_bytes()
    for damage in (b"no journal\n" * 100, whole_journal.replace(b"{", b"[", 5), b'{"op_code":99}\n'):
        (folder / STORAGE).write_bytes(damage)
        with pytest.raises(
            CurvactError, match=r"optuna.journal is damaged: delete it and go on with --resume"
        ):
            run_search(spec, folder, Placement("inline", workers=1), resume=True, console=QUIET)
    for torn in (
        whole_journal + b'{"op_code":4,"wor',
        whole_journal,
    ):  # a driver that was killed while writing
        (folder / STORAGE).write_bytes(torn)
        (folder / f"{STORAGE}.lock").symlink_to("gone")
        assert _trials(spec, folder) == _trials(spec, whole)
    (folder / STORAGE).unlink()
    before = {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/*.safetensors")}
    run_search(spec, folder, Placement("inline", workers=1), resume=True, console=QUIET)
    assert _trials(spec, folder) == _trials(spec, whole)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_larger_budget_goes_on_and_another_search_is_refused(
    searched: tuple[SearchSpec, Path], tmp_path: Path
) -> None:
    spec, whole = searched
    folder = tmp_path / "s"
    shutil.copytree(whole, folder)
    with pytest.raises(CurvactError, match=r"holds another search \(seed is 0 there and 1 here\)"):
        run_search(_spec(seed=1), folder, resume=True, console=QUIET)
    run_search(_spec(budget=230), folder, Placement("inline", workers=1), resume=True, console=QUIET)
    before, after = _trials(spec, whole), _trials(spec, folder)
    assert after[: len(before)] == before
    assert len(after) > len(before)
    assert spent(after) <= 230


def test_bad_input_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    folder = tmp_path / "s"
    with pytest.raises(CurvactError, match="budget=23: one trial takes 24 gradient evaluations"):
        run_search(_spec(budget=23), folder, console=QUIET)
    with pytest.raises(CurvactError, match="--workers 0"):
        run_search(_spec(), folder, Placement(workers=0), console=QUIET)
    with pytest.raises(CurvactError, match=r"crop 9: training.crop=9 is larger"):
        run_search(_spec(space={"training.crop": [9]}, base={**CONTENT["base"], "curvature": 1}), folder)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(CurvactError, match=r"pip install 'curvact\[search\]'"):
        run_search(_spec(), folder, console=QUIET)
    assert not folder.exists()
    (tmp_path / "letter.txt").write_text("dear")
    monkeypatch.undo()
    with pytest.raises(CurvactError, match="not empty and holds no search"):
        run_search(_spec(), tmp_path, console=QUIET)


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Job]]:
    """An engine whose runs cost 24 and have the accuracy 1/(1 + |κ - 4|), to see the driver alone."""
    started: list[Job] = []
    records: dict[str, Any] = {}
    monkeypatch.setattr(curvact.lab.search_run, "finished", lambda folder, run: records.get(run))

    def record_of(job: Job) -> Any:
        from curvact.activations import activation, known_curvature

        kappa = known_curvature(activation(job.spec.activation)) or 0.0
        return types.SimpleNamespace(
            status="done", spec=job.spec, gradient_evaluations=24, is_final=True,
            metrics={"validation_robust_accuracy": 1 / (1 + abs(kappa - 4)), "validation_clean_accuracy": 1.0},
            seconds=0.1,
        )  # fmt: skip

    def engine(jobs: Sequence[Job], workers: int, on_event: Any) -> list[int]:
        """Several at a time, the last one done first; jobs that are appended are left to the next call."""
        from curvact.workers import Event

        batch = list(jobs)
        started.extend(batch)
        for index in reversed(range(len(batch))):
            on_event(Event("start", index, 0))
            records[batch[index].spec.id] = record = record_of(batch[index])
            on_event(Event("done", index, record))
        return []

    register_engine("instant", engine)
    yield started
    del ENGINES["instant"]


def test_a_grid_runs_every_combination_once(instant: list[Job], tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    space = {"curvature": {"low": 1, "high": 16, "log": True, "points": 3}, "centered": [False, True]}
    spec = _spec(space=space, sampler="grid", budget=10**6, baseline={})
    run_search(spec, tmp_path, Placement("instant", workers=2), console=QUIET)
    trials = _trials(spec, tmp_path)
    key = [(t.settings["curvature"], t.settings["centered"]) for t in trials]
    assert sorted(key) == sorted((c["curvature"], c["centered"]) for c in spec.combinations())
    assert key != [(c["curvature"], c["centered"]) for c in spec.combinations()]  # an order of the seed
    assert len(instant) == len({job.spec.id for job in instant}) == 6


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_small_space_ends(sampler: str, instant: list[Job], tmp_path: Path) -> None:
    """Repetitions are not run again, and the search ends when the space is exhausted."""
    pytest.importorskip("optuna")
    spec = _spec(space={"curvature": [1, 4, 9]}, sampler=sampler, budget=10**6)
    run_search(spec, tmp_path, Placement("instant", workers=3), console=QUIET)
    trials = _trials(spec, tmp_path)
    assert {t.settings["curvature"] for t in trials} == {1, 4, 9}
    assert len(instant) == 4  # the baseline too
    assert spent(trials) == 72


def test_several_workers_stay_within_the_budget(instant: list[Job], tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    spec = _spec(budget=24 * 20 + 23)
    run_search(spec, tmp_path, Placement("instant", workers=3), console=QUIET)
    trials = _trials(spec, tmp_path)
    assert [t.state for t in trials] == ["completed"] * 20
    best = max(trials, key=lambda t: t.accuracy)
    assert best.settings["curvature"] == pytest.approx(4, rel=0.5)  # TPE goes where it is best
    assert len({t.settings["curvature"] for t in trials}) == 20


def test_impossible_trials_are_named_and_cost_nothing(instant: list[Job], tmp_path: Path) -> None:
    """Between the corners of a space settings may still be impossible together."""
    pytest.importorskip("optuna")
    spec = _spec(budget=24 * 6)
    real = spec.trial

    def trial(settings: Any) -> Any:
        if 1 < settings["curvature"] < 10:
            raise CurvactError("no such κ")
        return real(settings)

    object.__setattr__(spec, "trial", trial)
    run_search(spec, tmp_path, Placement("instant", workers=1), console=QUIET)
    trials = _trials(spec, tmp_path)
    assert [t.state for t in trials].count("completed") == 6
    failed = [t for t in trials if t.state == "failed"]
    assert failed
    assert all(t.cause == "no such κ" and 1 < t.settings["curvature"] < 10 for t in failed)


def test_a_search_whose_runs_all_fail_at_once_ends(
    instant: list[Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Such runs cost nothing, so the budget would never be spent."""
    pytest.importorskip("optuna")
    from curvact.workers import Event

    monkeypatch.setattr(curvact.lab.search_run, "MOST_IN_VAIN", 3)
    failed = types.SimpleNamespace(
        status="failed", cause="out of memory: x", gradient_evaluations=0, is_final=False
    )
    runs: list[str] = []

    def engine(jobs: Sequence[Job], workers: int, on_event: Any) -> list[int]:
        for index, job in enumerate(list(jobs)):
            runs.append(job.spec.id)
            assert len(runs) < 20
            on_event(Event("done", index, failed))
        return []

    monkeypatch.setitem(ENGINES, "failing", None)
    register_engine("failing", engine)
    run_search(_spec(budget=10**6), tmp_path, Placement("failing", workers=1), console=QUIET)
    assert len(runs) == 3


def test_a_baseline_without_memory_is_tried_again(
    instant: list[Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    spec = _spec(budget=24 * 2)
    run_search(spec, tmp_path, Placement("instant", workers=1), console=QUIET)
    before = len(instant)
    assert spec.baseline_run is not None
    known = curvact.lab.search_run.finished(tmp_path, spec.baseline_run.id)
    assert known is not None
    run_search(spec, tmp_path, Placement("instant", workers=1), resume=True, console=QUIET)
    assert len(instant) == before
    known.is_final = False  # type: ignore[misc]
    run_search(spec, tmp_path, Placement("instant", workers=1), resume=True, console=QUIET)
    assert [job.spec.id for job in instant[before:]] == [spec.baseline_run.id]


def test_a_trial_without_memory_has_no_accuracy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another machine may have the memory: the search does not learn that such settings are bad."""
    pytest.importorskip("optuna")
    whole = curvact.lab.run.fit

    def fit(model: Any, *arguments: Any, **options: Any) -> Any:
        found = whole(model, *arguments, **options)
        if "alpha=24" in repr(model):  # κ = 6
            raise MemoryError
        return found

    monkeypatch.setattr(curvact.lab.run, "fit", fit)
    spec = _spec(space={"curvature": [1, 6]}, baseline={}, budget=10**4)
    run_search(spec, tmp_path, Placement("inline", workers=1), console=QUIET)
    by_curvature = {trial.settings["curvature"]: trial for trial in _trials(spec, tmp_path)}
    assert by_curvature[1].state == "completed"
    assert (by_curvature[6].state, by_curvature[6].accuracy) == ("failed", None)
    assert by_curvature[6].cause.startswith("out of memory")
    assert by_curvature[6].evaluations > 0
    assert conclude(tmp_path)[0].best.settings == {"curvature": 1}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")}
    run_search(spec, tmp_path, Placement("inline", workers=1), resume=True, console=QUIET)
    assert [trial.state for trial in _trials(spec, tmp_path)] == [t.state for t in by_curvature.values()]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_diverged_run_is_a_trial_of_accuracy_0(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    base = {**CONTENT["base"], "training": {**CONTENT["base"]["training"], "warmup": 0.0}}
    spec = _spec(base=base, space={"training.learning_rate": [0.05, 1e30]}, baseline={}, budget=10**4)
    run_search(spec, tmp_path, Placement("inline", workers=1), console=QUIET)
    by_rate = {t.settings["training.learning_rate"]: t for t in _trials(spec, tmp_path)}
    assert by_rate[0.05].state == "completed"
    assert (by_rate[1e30].state, by_rate[1e30].accuracy) == ("failed", 0.0)
    assert "the loss became" in by_rate[1e30].cause


def test_a_stopped_run_keeps_its_state_and_can_go_on(tmp_path: Path) -> None:
    run = _spec().trial({"curvature": 4.0})
    whole = execute(run, tmp_path / "whole")
    seen = []
    assert run_job(Job(run, tmp_path / "s", (-1.0, 2.0)), seen.append) is None
    assert len(seen) == len(read_history(tmp_path / "s")) == 2
    assert not (tmp_path / "s" / "record.json").exists()
    assert run_job(Job(run, tmp_path / "s", (-1.0, 2.0)), seen.append) is None  # it is known by now
    assert len(seen) == 2
    assert execute(run, tmp_path / "s").files == whole.files


@pytest.mark.slow
def test_worker_processes(searched: tuple[SearchSpec, Path], tmp_path: Path) -> None:
    """One local worker gives the trials of the inline engine; two stay within the budget."""
    spec, whole = searched
    run_search(spec, tmp_path / "one", Placement(workers=1), console=QUIET)
    assert _trials(spec, tmp_path / "one") == _trials(spec, whole)
    run_search(spec, tmp_path / "two", Placement(workers=2), console=QUIET)
    assert spent(_trials(spec, tmp_path / "two")) <= spec.budget


def test_the_command(
    searched: tuple[SearchSpec, Path], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    from curvact.lab.cli.main import main

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["curvact", "search", *map(str, arguments)])
        with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    _, whole = searched
    folder = tmp_path / "s"
    shutil.copytree(whole, folder)
    code, out, err = call(folder, "--engine", "inline", "--workers", "1")
    assert (code, err) == (0, "")
    assert "The winner has" in out
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setitem(ENGINES, "afar", None)
    register_engine("afar", lambda jobs, workers, on_event: [], room=lambda specs: 1)
    code, out, err = call(folder, "--engine", "afar", "--device", "cuda")  # which the cluster has
    assert (code, err) == (0, "")
    assert "The winner has" in out
    path = tmp_path / "kappa.yaml"
    path.write_text(yaml.safe_dump(CONTENT))
    code, out, err = call(path, "--out", folder)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "--resume goes on" in err
    code, out, err = call(path, "--out", tmp_path / "t", "--set", "space.curvature={low: 3, high: 1}")
    assert code == 2
    assert "low must be lower than high" in err
    assert not (tmp_path / "t").exists()
