"""A run's folder: what it holds, killed and gone on with, extended, and left alone where it is
another's.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from curvact.data import load
from curvact.errors import CurvactError
from curvact.files import with_checksum
from curvact.lab import run as run_module
from curvact.lab.measure import accuracies
from curvact.lab.run import execute, launched, prepare
from curvact.lab.spec import RunSpec, read_spec
from curvact.lab.store import (
    NoLockWarning,
    Record,
    finished,
    locked,
    read_environment,
    read_history,
    read_record,
)
from curvact.models.checkpoint import load_checkpoint
from curvact.models.hashing import model_hash
from curvact.models.registry import MODELS
from curvact.training import loop as loop_module

CLI = [sys.executable, "-m", "curvact", "train"]
SMALL = [
    "data={name: digits, train: 200, validation: 50, test: 50}",
    "model={name: mini_resnet, width: 2, blocks: 1}",
    "training.batch_size=20",
    "training.attack=pgd-1",
    "training.epochs=3",
    "evaluation.attack=pgd-2",
    "evaluation.train_images=20",
]


def _same_weights(a: Path, b: Path) -> bool:
    first, second = (load_checkpoint(path).state_dict() for path in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def _without_times(record: Record) -> dict[str, Any]:
    metrics = {k: v for k, v in record.metrics.items() if "seconds" not in k}
    return record.model_dump() | {"seconds": 0, "metrics": metrics}


def test_what_a_run_leaves(run_spec: Any, tmp_path: Path) -> None:
    spec = run_spec(evaluation={"attack": "pgd-2", "train_images": 20, "activations": True}, hessian={})
    record = execute(spec, tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").iterdir()} - {".lock"} == {
        "spec.yaml",
        "environment.json",
        "metrics.jsonl",
        "best.json",
        "best.safetensors",
        "last.json",
        "last.safetensors",
        "record.json",
    }
    assert read_spec(tmp_path / "run") == spec
    assert read_record(tmp_path / "run") == record == finished(tmp_path / "run", spec.id)
    assert record.status == "done"
    assert record.run == spec.id
    assert record.epochs == 1
    assert record.gradient_evaluations == 5 * 2
    assert record.max_curvature == pytest.approx(0.5)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    model = load_checkpoint(tmp_path / "run" / "last.safetensors")
    test = load("digits", train=100, validation=40, test=40).test
    accuracy = float((model(test.inputs()).argmax(1) == test.labels).double().mean())
    assert record.metrics["clean_accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert record.metrics["best_epoch"] == 1
    assert record.metrics["best_robust_accuracy"] == record.metrics["robust_accuracy"]
    assert record.metrics["clean_hessian_rms"] > 0
    assert record.metrics["curvature_end"] == pytest.approx(0.5)


def test_a_finished_run_is_not_repeated(run_spec: Any, tmp_path: Path) -> None:
    spec = run_spec()
    first = execute(spec, tmp_path)
    assert execute(spec.model_copy(update={"name": "other"}), tmp_path) == first


def test_the_best_weights_are_measured_from_their_file(run_spec: Any, tmp_path: Path) -> None:
    """Where the best validation epoch is not the last, its checkpoint gives the numbers."""
    spec = run_spec(training={"epochs": 4, "learning_rate": 0.3, "schedule": "constant", "warmup": 0})
    record = execute(spec, tmp_path)
    history = read_history(tmp_path)
    best = max(history, key=lambda line: line["validation_robust_accuracy"])["epoch"]
    assert record.metrics["best_epoch"] == best
    model = load_checkpoint(tmp_path / "best.safetensors")
    test = load("digits", train=100, validation=40, test=40).test
    accuracy = float((model(test.inputs()).argmax(1) == test.labels).double().mean())
    assert record.metrics["best_clean_accuracy"] == pytest.approx(accuracy, abs=1e-12)


def test_after_a_collapse_the_files_hold_what_was_measured(
    run_spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single-step training that collapses in its third epoch, whose own attack is passed best."""
    monkeypatch.setattr(loop_module, "stronger_accuracy", lambda *args: (0.6, 0.7, 0.1)[args[-1] - 1])
    spec = run_spec(
        training={"objective": "fgsm-rs", "epochs": 5, "attack": "pgd-1", "validation": "pgd-0"},
        evaluation={"weights": "both"},
    )
    record = execute(spec, tmp_path)
    assert "catastrophic overfitting" in record.note
    assert (record.epochs, record.last_epoch) == (3, 2)
    assert record.metrics["best_epoch"] <= 2
    for name, prefix in (("last", ""), ("best", "best_")):
        about = json.loads((tmp_path / f"{name}.json").read_text())
        assert about["epoch"] == {"last": 2, "best": record.metrics["best_epoch"]}[name]
        found = accuracies(
            load_checkpoint(tmp_path / f"{name}.safetensors"),
            load("digits", train=100, validation=40, test=40),
            spec,
        )
        for key, value in found.items():
            assert record.metrics[prefix + key] == value


def test_killed_and_gone_on_with(tmp_path: Path) -> None:
    """kill -9 after the first epoch. The folder alone goes on, to the weights and numbers of an
    unbroken run.
    """
    whole = execute(read_spec("digits", SMALL), tmp_path / "whole")
    command = [*CLI, "digits", *SMALL, "--out", "broken"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    metrics = tmp_path / "broken" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert metrics.exists()
    # Killed between its state and its metrics, a run has lost a line: the state still holds it.
    metrics.write_text("")
    broken = execute(read_spec(tmp_path / "broken"), tmp_path / "broken")
    assert _without_times(whole) == _without_times(broken)
    for name in ("best", "last"):
        assert _same_weights(
            tmp_path / "whole" / f"{name}.safetensors", tmp_path / "broken" / f"{name}.safetensors"
        )
    first, second = (
        [{**line, "seconds": 0} for line in read_history(tmp_path / folder)] for folder in ("whole", "broken")
    )
    assert first == second
    assert not (tmp_path / "broken" / "state.safetensors").exists()


def test_a_finished_run_is_extended(run_spec: Any, tmp_path: Path) -> None:
    """At a constant rate, 1 epoch and 2 more are the same run as 3 epochs: weights, history and
    record.
    """
    constant = {"schedule": "constant", "warmup": 0.0}
    execute(run_spec(training={**constant, "epochs": 1}), tmp_path / "extended")
    assert (tmp_path / "extended" / "state.safetensors").exists()
    longer = run_spec(training={**constant, "epochs": 3})
    extended = execute(longer, tmp_path / "extended")
    whole = execute(longer, tmp_path / "whole")
    assert _without_times(extended) == _without_times(whole)
    assert _same_weights(tmp_path / "extended" / "last.safetensors", tmp_path / "whole" / "last.safetensors")
    assert len(read_history(tmp_path / "extended")) == 3
    assert read_spec(tmp_path / "extended") == longer


def test_an_extension_that_its_schedule_forbids_is_refused(run_spec: Any, tmp_path: Path) -> None:
    execute(run_spec(), tmp_path)
    assert not (tmp_path / "state.safetensors").exists()
    before = (tmp_path / "record.json").read_bytes()
    with pytest.raises(CurvactError, match=r"1 epochs that cannot go on to 3: .*schedule") as caught:
        execute(run_spec(training={"epochs": 3}), tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "record.json").read_bytes() == before
    with pytest.raises(CurvactError, match=r"another spec \(training.momentum is 0.9 there and 0.5 here\)"):
        execute(run_spec(training={"momentum": 0.5}), tmp_path)


def test_folders_of_something_else_are_left_alone(run_spec: Any, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(CurvactError, match="not empty and holds no run"):
        execute(run_spec(), tmp_path / "other")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "spec.yaml").write_text(run_spec().to_yaml())
    with pytest.raises(CurvactError, match=r"another spec \(seed is 0 there and 7 here\)"):
        execute(run_spec(seed=7), tmp_path / "run")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CurvactError, match="is a file: --out takes a folder"):
        execute(run_spec(), tmp_path / "file")


def test_a_network_that_cannot_be_kept_is_refused_before_anything_is_written(
    run_spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that builds another network each time: the first checkpoint would be refused."""
    widths = itertools.count(2)

    def fickle(**arguments: Any) -> torch.nn.Module:
        return MODELS["mini_resnet"](**{**arguments, "width": next(widths)})

    monkeypatch.setitem(MODELS, "fickle", fickle)
    with pytest.raises(
        CurvactError, match=r"^cannot save this \w+: its weights are not those of its architec"
    ):
        execute(run_spec(model={"name": "fickle"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_processes_do_not_share_a_folder(run_spec: Any, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(CurvactError, match="another process is writing"):
        execute(run_spec(), tmp_path)
    assert execute(run_spec(), tmp_path).status == "done"


def test_a_file_system_without_locks_is_said(
    run_spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some of a network are. What is there of a lock of another machine is no obstacle."""

    def flock(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / ".lock").write_text("another-machine 1\n")
    with pytest.warns(NoLockWarning, match=r"has no locks \(No locks available\): make sure") as caught:
        assert execute(run_spec(), tmp_path).status == "done"
    (ours,) = (warning for warning in caught if warning.category is NoLockWarning)
    assert "\n" not in str(ours.message)


def test_a_changed_spec_of_an_unfinished_run_is_found(run_spec: Any, tmp_path: Path) -> None:
    spec = run_spec()
    execute(spec, tmp_path)
    (tmp_path / "record.json").unlink()
    (tmp_path / "spec.yaml").write_text(run_spec(seed=1).to_yaml())
    with pytest.raises(
        CurvactError, match=rf"spec.yaml is damaged or changed: .* the run {spec.id} was begun"
    ):
        execute(read_spec(tmp_path), tmp_path)


@pytest.mark.parametrize("file", ["last.safetensors", "best.safetensors"])
def test_one_flipped_bit_is_found(run_spec: Any, tmp_path: Path, file: str) -> None:
    spec = run_spec()
    execute(spec, tmp_path)
    content = bytearray((tmp_path / file).read_bytes())
    content[-5] ^= 1
    (tmp_path / file).write_bytes(content)
    with pytest.raises(CurvactError, match=f"{file} is damaged") as caught:
        finished(tmp_path, spec.id)
    assert "\n" not in str(caught.value)
    (tmp_path / file).unlink()
    with pytest.raises(CurvactError, match=f"{file} is missing"):
        finished(tmp_path, spec.id)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"schema_version": 3}'])
def test_damaged_records_are_one_line(run_spec: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(CurvactError, match=r"record\.json is damaged") as caught:
        finished(tmp_path, run_spec().id)
    assert "\n" not in str(caught.value)
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(CurvactError, match=r"metrics\.jsonl is damaged"):
        read_history(tmp_path)


def test_a_run_that_diverges_leaves_its_cause(run_spec: Any, tmp_path: Path) -> None:
    spec = run_spec(training={"learning_rate": 1e30, "warmup": 0.0})
    record = execute(spec, tmp_path)
    assert record.status == "failed"
    assert re.match(r"the loss became (nan|inf) at step \d+", record.cause)
    assert record.metrics == {}
    assert finished(tmp_path, spec.id) == record


def test_a_network_that_is_not_finite_fails_its_run_only(
    run_spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training ends with finite losses, but a weight is NaN when the network is evaluated."""
    real = run_module.fit

    def poisoned(model: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        history = real(model, *arguments, **options)
        with torch.no_grad():
            next(model.parameters())[0] = float("nan")
        return history

    monkeypatch.setattr(run_module, "fit", poisoned)
    record = execute(run_spec(), tmp_path)
    assert record.status == "failed"
    assert "NaN" in record.cause
    assert record.metrics == {}


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    run_spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, record: Record) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_record", full)
        with pytest.raises(OSError, match="No space left"):
            execute(run_spec(), tmp_path / "run")
    again = execute(run_spec(), tmp_path / "run")
    assert _without_times(again) == _without_times(execute(run_spec(), tmp_path / "whole"))


def test_learned_activations_are_logged(run_spec: Any, tmp_path: Path) -> None:
    learned = {
        "activation": "pssilu(learnable=True)",
        "training": {"epochs": 2, "beta_penalty": 10, "beta_clip": 0.01},
    }
    execute(run_spec(**learned, model={"width": 2, "blocks": 1, "scope": "network"}), tmp_path)
    lines = read_history(tmp_path)
    for ending in ("alpha", "beta", "curvature"):
        assert any(key.endswith(ending) for key in lines[-1]["parameters"])
    assert lines[0]["parameters"] != lines[-1]["parameters"]


def test_parts_of_autoattack_and_pgd_see_the_same_images(run_spec: Any, tmp_path: Path) -> None:
    """PGD on the whole test split again, cut to the first images; and pyautoattack itself on those
    images.
    """
    from pyautoattack import AutoAttack

    from curvact.attacks import ThreatModel, pgd
    from curvact.random import generator

    evaluation = {"attack": "pgd(steps=2, step=0.4)", "train_images": 40}
    part = {"autoattack_images": 15, "autoattack_parts": ["apgd-ce"]}
    spec = run_spec(
        seed=3,
        training={"epochs": 6},
        evaluation={**evaluation, **part},
        threat_model={"norm": "linf", "epsilon": 0.1},
    )
    metrics = execute(spec, tmp_path).metrics
    model = load_checkpoint(tmp_path / "last.safetensors")
    test = load("digits", train=100, validation=40, test=40).test
    x, y = test.inputs(), test.labels
    random = generator(3, "evaluation/test")
    attacked = pgd(model, x, y, ThreatModel("linf", 0.1), steps=2, step=0.4, generator=random)
    with torch.no_grad():
        stands = (model(x).argmax(1) == y) & (model(attacked).argmax(1) == y)
    assert metrics["robust_accuracy"] == stands.double().mean()
    assert metrics["subset_pgd_accuracy"] == stands[:15].double().mean()
    reference = AutoAttack(model, norm="Linf", eps=0.1, seed=3, version="custom", attacks=["apgd-ce"])
    x_adv, _ = reference.run_standard_evaluation(x[:15], y[:15])
    with torch.no_grad():
        strong = (model(x_adv).argmax(1) == y[:15]).double().mean()
    # APGD-CE draws its starts in another order in fast mode: an image on the edge may fall in one
    # only.
    assert metrics["subset_robust_accuracy"] == pytest.approx(float(strong), abs=1.01 / 15)


def test_analyses_are_steps_of_a_run(run_spec: Any, tmp_path: Path) -> None:
    kinds = ["smoothness", "flatness", "curvature", "hessian"]
    few = {"images": 8, "attack": "pgd-1", "probes": 4, "directions": 1, "draws": 2}
    smooth = execute(run_spec(analyses={"kinds": kinds, **few}), tmp_path / "smooth").metrics
    relu = execute(
        run_spec(activation="relu", analyses={"kinds": ["hessian"], **few}), tmp_path / "relu"
    ).metrics
    share = "hessian_adversarial_curvature_share"
    assert relu[share] == 0 != smooth[share]
    assert smooth["smoothness_linf_ratio"] > 0
    assert smooth["flatness_worst"] > 0
    assert "curvature_effective_mean" in smooth


def test_fabric_is_one_process_without_torchrun(run_spec: Any) -> None:
    with launched(run_spec().hardware) as fabric:
        assert isinstance(fabric, Fabric)
        assert fabric.world_size == 1


def test_a_slurm_job_is_one_process(run_spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM's variables alone start no processes: a job of several tasks would wait for the others."""
    for name, value in {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "job"}.items():
        monkeypatch.setenv(name, value)
    with launched(run_spec().hardware) as fabric:
        assert fabric.world_size == 1


TWO = """
    import sys
    from pathlib import Path
    from torch import distributed
    from curvact.lab.run import execute
    from curvact.lab.spec import read_spec
    record = execute(read_spec("digits", sys.argv[2:]), Path(sys.argv[1]))
    print("group" if distributed.is_initialized() else "no group", len(record.metrics) > 0)
"""


def test_processes_leave_no_group_behind(tmp_path: Path) -> None:
    """Under torchrun both processes end with 0 and take their group down before: gloo may abort at
    exit.
    """
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(TWO))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [
            *command,
            str(script),
            str(tmp_path / "run"),
            *SMALL,
            "training.epochs=1",
            "evaluation.activations=true",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.strip().splitlines()) == ["no group False", "no group True"]
    assert "best_robust_accuracy" in read_record(tmp_path / "run").metrics


def test_specs_are_values(run_spec: Any) -> None:
    spec: RunSpec = run_spec()
    with pytest.raises(ValueError, match="frozen"):
        spec.seed = 3
    assert spec.model_copy(update={"training": replace(spec.training, epochs=2)}).id != spec.id


def test_start_weights(run_spec: Any, tmp_path: Path) -> None:
    """They decide the numbers, their sha256 is part of the id, and a head may be left out."""
    first = run_spec(evaluation={"attack": "pgd-1", "train_images": 20, "weights": "last"})
    execute(first, tmp_path / "first")
    start = {"init_from": str(tmp_path / "first")}
    tuned = run_spec(**start, training={"learning_rate": 1e-12, "warmup": 0})
    moved = tmp_path / "moved.safetensors"
    shutil.copy(tmp_path / "first" / "best.safetensors", moved)
    assert (
        run_spec(**{"init_from": str(moved)}, training={"learning_rate": 1e-12, "warmup": 0}).id == tuned.id
    )
    assert run_spec(training={"learning_rate": 1e-12, "warmup": 0}).id != tuned.id
    model = prepare(tuned).model
    trained = load_checkpoint(tmp_path / "first")
    for name, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    narrow = {"name": "mini_resnet", "width": 3, "blocks": 1}
    with pytest.raises(CurvactError, match=r"do not fit: wrong shape of .*leave_out leaves names out"):
        prepare(run_spec(**start, model=narrow))
    head = run_spec(init_from={"path": str(moved), "leave_out": ["linear"]})
    assert head.id != tuned.id
    untrained = prepare(run_spec()).model.state_dict()
    for name, value in prepare(head).model.state_dict().items():
        source = untrained if name.startswith("linear") else trained.state_dict()
        assert torch.equal(value, source[name]), name
    with pytest.raises(CurvactError, match="no weight begins with 'head'"):
        prepare(run_spec(init_from={"path": str(moved), "leave_out": ["head"]}))
    shutil.copy(tmp_path / "first" / "spec.yaml", moved)
    with pytest.raises(CurvactError, match="has changed: its sha256 is"):
        prepare(head)
    with pytest.raises(CurvactError, match="no checkpoint file"):
        run_spec(init_from=str(tmp_path / "none.pt"))


def test_a_run_asks_its_helper(run_spec: Any, tmp_path: Path) -> None:
    """Its sha256 is part of the id, its place is not; a file that has changed is refused."""
    standard = run_spec(training={"objective": "standard"}, evaluation={"weights": "last", "attack": "pgd-1"})
    execute(standard, tmp_path / "standard")
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "standard", moved)
    hat = {"training": {"objective": "hat"}, "evaluation": {"weights": "last", "attack": "pgd-1"}}
    spec = run_spec(helper=str(tmp_path / "standard" / "last.safetensors"), **hat)
    assert spec.id == run_spec(helper=str(moved / "last.safetensors"), **hat).id
    record = execute(spec, tmp_path / "hat")
    assert record.status == "done"
    assert read_spec(tmp_path / "hat") == spec
    assert not (tmp_path / "hat" / "state.safetensors").exists()
    plain = run_spec(**(hat | {"training": {"objective": "trades(beta=2.5)"}}))
    execute(plain, tmp_path / "trades")
    weights = [load_checkpoint(tmp_path / name / "last.safetensors") for name in ("hat", "trades")]
    assert model_hash(weights[0]) != model_hash(weights[1])
    with pytest.raises(CurvactError, match=r"training\.objective='hat' needs a helper"):
        run_spec(**hat)
    with pytest.raises(CurvactError, match=r"training\.objective='pgd-at.*' asks no second network"):
        run_spec(helper=str(moved))
    with pytest.raises(CurvactError, match=r"helper.*must be a path"):
        run_spec(helper=3, **hat)
    later = run_spec(helper=str(moved / "last.safetensors"), **hat)
    # The same weights in another network are another helper.
    sidecar = json.loads((moved / "last.json").read_text())
    sidecar["architecture"]["activation"] = "silu"
    (moved / "last.json").write_text(json.dumps(with_checksum(sidecar)))
    assert run_spec(helper=str(moved / "last.safetensors"), **hat).id != spec.id
    with pytest.raises(CurvactError, match=r"helper: .*last\.safetensors has changed: its sha256 is"):
        prepare(later)
    shutil.copytree(tmp_path / "standard", moved, dirs_exist_ok=True)
    # A longer run may have the helper at another place.
    longer = run_spec(
        helper=str(moved / "last.safetensors"), **(hat | {"training": hat["training"] | {"epochs": 2}})
    )
    with pytest.raises(CurvactError, match=r"learning rate|schedule"):
        execute(longer, tmp_path / "hat")
    shutil.copy(tmp_path / "hat" / "last.safetensors", moved / "last.safetensors")
    with pytest.raises(CurvactError, match=r"helper: .*last\.safetensors has changed: its sha256 is"):
        prepare(later)


def test_other_kernels_do_not_go_on(run_spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was begun with other activation kernels would mix two kinds of numbers."""

    def die(epoch: Any) -> None:
        if getattr(epoch, "validation_accuracy", None) is not None:
            raise KeyboardInterrupt

    spec = run_spec(training={"epochs": 2})
    with pytest.raises(KeyboardInterrupt):
        execute(spec, tmp_path / "run", on_event=die)
    file = tmp_path / "run" / "environment.json"
    begun = json.loads(file.read_text())
    file.write_text(json.dumps(with_checksum({**begun, "kernels": "other (gcc 1)"})))
    with pytest.raises(CurvactError, match=r"was begun with the activation kernels other \(gcc 1\)"):
        execute(spec, tmp_path / "run")
    file.write_text(json.dumps(with_checksum({**begun, "device": "cuda:1"})))
    with pytest.raises(
        CurvactError, match=r"was begun on cuda:1, and here it would run on cpu: .*--device cuda:1"
    ):
        execute(spec, tmp_path / "run")
    file.write_text("{")
    with pytest.raises(CurvactError, match=r"environment\.json is damaged"):
        execute(spec, tmp_path / "run")
    file.write_text(json.dumps(begun))
    # What a process leaves that was killed between its state and its metrics: no line is lost.
    assert [line["epoch"] for line in read_history(tmp_path / "run")] == [1]
    (tmp_path / "run" / "metrics.jsonl").unlink()
    execute(spec, tmp_path / "run")
    assert [line["epoch"] for line in read_history(tmp_path / "run")] == [1, 2]


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00", "[]", '{"epoch": "x"}'])
def test_damaged_files_of_a_run_are_one_line(text: str, tmp_path: Path) -> None:
    for name, read in (
        ("metrics.jsonl", read_history),
        ("environment.json", read_environment),
        ("record.json", read_record),
    ):
        (tmp_path / name).write_text(text)
        if (name == "metrics.jsonl" and not text) or (name == "environment.json" and "epoch" in text):
            continue  # no epoch yet; any mapping
        with pytest.raises(CurvactError, match=rf"{name} is damaged.*run it again") as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600
