"""`curvact train`: a run's folder, killed and gone on with, and every kind of bad input in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning_fabric import Fabric

from curvact.errors import CurvactError
from curvact.lab.train_config import TrainConfig, read_config, recipes
from curvact.lab.train_run import config_id, launched, run_training
from curvact.models.checkpoint import load_checkpoint
from curvact.training.state import load_state, save_state

CLI = [sys.executable, "-m", "curvact", "train"]
SMALL = [
    "data={name: digits, train: 200, validation: 50, test: 50}",
    "model={name: mini_resnet, width: 2, blocks: 1}",
    "training.batch_size=20",
    "training.attack=pgd-1",
    "training.epochs=3",
    "test.steps=2",
]


def _cli(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*CLI, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=environment, timeout=300
    )


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_a_config_that_round_trips(name: str) -> None:
    config = read_config(name)
    assert config.name == name
    assert config.about
    assert TrainConfig.model_validate(yaml.safe_load(config.to_yaml())) == config


def test_published_recipes_say_what_the_papers_say() -> None:
    """[paper] values of shared/brief/systems.md sections 2 and 3."""
    paf = read_config("paf").training
    assert (paf.beta_penalty, paf.beta_clip, paf.final_rate, paf.epochs) == (10.0, 0.01, 0.001, 200)
    assert (paf.attack.steps, paf.batch_size) == (10, 256)
    assert paf.attack.length * 0.031 == pytest.approx(0.0078, rel=1e-12)
    assert (paf.weight_decay, paf.learning_rate, paf.nesterov, paf.warmup) == (5e-4, 0.1, True, 0.0)
    assert read_config("paf").threat_model.epsilon == 0.031
    assert read_config("awp").training.perturbation == "awp(gamma=0.01)"


def test_killed_and_gone_on_with(tmp_path: Path) -> None:
    """kill -9 after the first epoch; the folder alone goes on, to the same weights and records as an unbroken run."""
    assert _cli("digits", *SMALL, "--out", "whole", cwd=tmp_path).returncode == 0
    command = [*CLI, "digits", *SMALL, "--out", "broken"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    metrics = tmp_path / "broken" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert metrics.exists()
    again = _cli("digits", *SMALL, "--out", "broken", cwd=tmp_path)
    if not (tmp_path / "broken" / "record.json").exists():
        assert again.returncode == 2
        assert "--resume goes on with it" in again.stderr
    done = _cli("broken", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole, broken = (json.loads((tmp_path / f / "record.json").read_text()) for f in ("whole", "broken"))
    for key in ("metrics", "gradient_evaluations", "run", "config", "data_sha256"):
        assert whole[key] == broken[key]
    for name in ("best", "last"):
        a, b = (
            load_checkpoint(tmp_path / f / f"{name}.safetensors").state_dict() for f in ("whole", "broken")
        )
        assert all(torch.equal(a[k], b[k]) for k in a)
    lines = [
        [json.loads(line) for line in (tmp_path / f / "metrics.jsonl").read_text().splitlines()]
        for f in ("whole", "broken")
    ]
    for first, second in zip(*lines, strict=True):
        assert {**first, "seconds": 0} == {**second, "seconds": 0}
    names = {p.name for p in (tmp_path / "broken").iterdir()}
    assert names >= {
        "best.json",
        "best.safetensors",
        "config.yaml",
        "curves.png",
        "environment.json",
        "last.json",
    }
    assert "state.safetensors" not in names
    assert "has run to its end" in _cli("broken", cwd=tmp_path).stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dgits"], "did you mean 'digits'?"),
        (["none.yaml"], "cannot read none.yaml"),
        (["digits", "training.epoch=3"], "unknown key 'training.epoch'; did you mean 'epochs'"),
        (["digits", "training.epochs=0"], "epochs=0 of a recipe: a whole number >= 1"),
        (["digits", "training.objective=trade"], "unknown objective 'trade'; did you mean 'trades'"),
        (["digits", "activation=rlu"], "unknown activation 'rlu'; did you mean 'relu'"),
        (["digits", "hardware.precision=16-mixed"], "needs a GPU"),
        (["digits", "hardware.accelerator=cuda"], "no CUDA device"),
        (["digits", "seed"], "write it as key.key=value"),
        (["digits", "training.crop=9"], "training.crop=9 is larger than the images, 8 pixels"),
        (["digits", "logging.wandb=project"], "pip install wandb"),
        ([], "give a YAML file"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments: list[str], says: str, tmp_path: Path) -> None:
    if torch.cuda.is_available() and "cuda" in says.lower() + " ".join(arguments):
        pytest.skip("there is a GPU here")
    done = _cli(*arguments, "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "record.json").exists()
    if "wandb" not in says:
        assert list(tmp_path.iterdir()) == []


def test_folders_of_something_else_are_left_alone(tmp_path: Path) -> None:
    config = read_config("digits", SMALL)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(CurvactError, match="holds something else than a training run"):
        run_training(config, tmp_path / "other")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(config.to_yaml())
    with pytest.raises(CurvactError, match="holds a run of another config"):
        run_training(read_config("digits", [*SMALL, "seed=7"]), tmp_path / "run")


def test_a_run_that_diverges_leaves_its_cause(tmp_path: Path) -> None:
    done = _cli(
        "digits", *SMALL, "training.learning_rate=1e30", "training.warmup=0", "--out", "run", cwd=tmp_path
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["status"] == "failed"
    assert "learning rate 9.97e+29" in record["cause"]
    assert "batch" in record["cause"]


def test_tensorboard_has_every_epoch(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_training(
        read_config("digits", [*SMALL, "logging.tensorboard=true", "hardware.threads=null"]), tmp_path / "run"
    )
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("validation_robust_accuracy")] == [1, 2, 3]


def test_learned_activations_are_logged(tmp_path: Path) -> None:
    overrides = [
        *SMALL,
        "activation=pssilu(learnable=True)",
        "training.beta_penalty=10",
        "training.beta_clip=0.01",
    ]
    run_training(read_config("digits", [*overrides, "model.scope=network"]), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    keys = lines[-1]["parameters"]
    assert any(key.endswith("alpha") for key in keys)
    assert any(key.endswith("beta") for key in keys)
    assert any(key.endswith("curvature") for key in keys)
    assert lines[0]["parameters"] != lines[-1]["parameters"]


def test_the_id_names_what_determines_the_numbers() -> None:
    config = read_config("digits")
    assert config_id(config) == config_id(config.model_copy(update={"name": "other", "about": ""}))
    assert config_id(config) != config_id(config.model_copy(update={"seed": 1}))


def test_fabric_is_one_process_without_torchrun() -> None:
    with launched(read_config("digits").hardware) as fabric:
        assert isinstance(fabric, Fabric)
        assert fabric.world_size == 1


TWO = """
    import sys
    from pathlib import Path
    from torch import distributed
    from curvact.lab.train_config import read_config
    from curvact.lab.train_run import run_training
    record = run_training(read_config("digits", sys.argv[2:]), Path(sys.argv[1]))
    print("group" if distributed.is_initialized() else "no group", record.get("status", "none"))
"""


def test_processes_leave_no_group_behind(tmp_path: Path) -> None:
    """Under torchrun both processes end with 0, their group taken down: gloo's threads may abort a process that exits with it."""
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(TWO))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path / "run"), *SMALL, "training.epochs=1"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.strip().splitlines()) == ["no group done", "no group none"]
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert set(record["metrics"]) == {"best", "last"}


def test_states_are_whole_trees(tmp_path: Path) -> None:
    tree = {"a": [torch.arange(3), (1, None)], 4: {"b": float("inf"), "c": torch.zeros(0)}, "d": True}
    save_state(tmp_path / "s", tree)
    again = load_state(tmp_path / "s")
    assert torch.equal(again["a"][0], torch.arange(3))
    assert again["a"][1] == (1, None)
    assert again[4]["b"] == float("inf")
    assert again[4]["c"].shape == (0,)
    with pytest.raises(CurvactError, match="a state holds a set"):
        save_state(tmp_path / "t", {"x": {1}})
    assert not (tmp_path / "t").exists()
    for count in (0, 7, 40):
        (tmp_path / "u").write_bytes((tmp_path / "s").read_bytes()[:count])
        with pytest.raises(CurvactError, match="truncated or damaged"):
            load_state(tmp_path / "u")
