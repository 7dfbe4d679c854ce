"""The loop against a plain re-derivation, checkpoints whole or refused, divergence with its cause."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from curvact.attacks import PGD, ThreatModel
from curvact.data import Dataset, Splits, load
from curvact.errors import CurvactError
from curvact.models import MiniResNet, build
from curvact.models.checkpoint import load_checkpoint, save_checkpoint
from curvact.random import generator
from curvact.training import Diverged, Recipe, fit
from curvact.training.schedule import learning_rate

THREAT = ThreatModel("linf", 0.2)


def _small(count: int = 96) -> Splits:
    full = load("digits")

    def cut(d: Dataset) -> Dataset:
        return Dataset(d.name, d.images[:count], d.labels[:count], d.classes, d.mean, d.std, d.sha256)

    return Splits(cut(full.train), cut(full.validation), cut(full.test))


def _model(seed: int = 0) -> MiniResNet:
    return MiniResNet("rctaf(curvature=4)", channels=1, width=2, generator=generator(seed, "initialization"))


def test_standard_training_is_nesterov_sgd_by_hand() -> None:
    """One epoch against a re-derivation of SGD, schedule and order that uses neither the loop nor torch.optim."""
    data = _small()
    recipe = Recipe(
        objective="standard", epochs=1, batch_size=32, learning_rate=0.1, warmup=0.5, attack=PGD(1)
    )
    trained = _model()
    fit(trained, data, recipe, THREAT, seed=3)

    model = _model().train()
    parameters = list(model.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    order = torch.randperm(96, generator=generator(3, "shuffle", 1))
    rates = [0.1 * 1 / 2, 0.1 * 2 / 2, 0.1 * 0.5 * (1 + math.cos(math.pi * 0.5 / 1.5))]
    for step, rate in enumerate(rates):
        index = order[32 * step : 32 * step + 32]
        logits = model(data.train.images[index].float() / 255)
        gradients = torch.autograd.grad(F.cross_entropy(logits, data.train.labels[index]), parameters)
        with torch.no_grad():
            for p, g, v in zip(parameters, gradients, velocity, strict=True):
                g = g + 5e-4 * p
                v.mul_(0.9).add_(g)
                p.sub_(rate * (g + 0.9 * v))
    for a, b in zip(trained.parameters(), parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_training_lowers_the_adversarial_loss_and_repeats_exactly() -> None:
    recipe = Recipe(epochs=4, batch_size=16, attack=PGD(2, step=0.4))
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        model = _model()
        history = fit(model, _small(), recipe, THREAT, seed=0)
        results.append((model.state_dict(), history))
    assert results[0][1][-1].loss < results[0][1][0].loss - 0.2
    assert results[0][1] == results[1][1]
    assert all(torch.equal(a, b) for a, b in zip(results[0][0].values(), results[1][0].values(), strict=True))
    assert results[0][1][-1].gradient_evaluations == 4 * 6 * 3


def test_schedule_ends() -> None:
    recipe = Recipe(learning_rate=0.2, warmup=0.25)
    rates = [learning_rate(recipe, step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(0.2)
    assert rates[0] == pytest.approx(0.2 / 25)
    assert rates[-1] < 1e-3
    assert rates[:25] == sorted(rates[:25])
    assert rates[25:] == sorted(rates[25:], reverse=True)


def test_divergence_names_step_and_rate() -> None:
    with pytest.raises(
        Diverged, match=r"the loss became (nan|inf) at step \d+ of \d+ \(epoch \d, learning rate"
    ):
        fit(
            _model(), _small(), Recipe(epochs=2, learning_rate=1e30, momentum=0.0, warmup=0.0), THREAT, seed=0
        )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"epochs": 0}, "epochs=0 of a recipe: a whole number >= 1"),
        ({"batch_size": 1}, "batch_size=1 of a recipe: a whole number >= 2"),
        ({"warmup": 1.0}, r"warmup=1.0 of a recipe: a number in \[0, 1\)"),
        ({"learning_rate": float("nan")}, "learning_rate=nan of a recipe: a number > 0"),
        ({"schedule": "cosin"}, "schedule='cosin' of a recipe: allowed are cosine, piecewise"),
        ({"milestones": (0.7, 0.5)}, "milestones=.* rising parts of all steps"),
        ({"perturbation": "awpp"}, "unknown perturbation 'awpp'; did you mean 'awp'"),
        ({"perturbation": "awp(gama=1)"}, "awp has no setting 'gama'; did you mean 'gamma'"),
        ({"averaging": "ema(decay=slow)"}, "decay='slow' in averaging=.*: a finite number, such as 0.995"),
        ({"optimizer": "entropy-sgd(5)"}, "cannot read optimizer"),
        ({"objective": "pgdat"}, "unknown objective"),
    ],
)
def test_impossible_recipes(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(CurvactError, match=says):
        Recipe(**settings)


ARCHITECTURE = {"name": "mini_resnet", "activation": "rctaf(curvature=6, beta=1)", "width": 2, "channels": 1}


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model = build(**ARCHITECTURE)
    file = tmp_path / "model.safetensors"
    save_checkpoint(file, model, ARCHITECTURE, {"note": "x"})
    again = load_checkpoint(file)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(again(x), model.eval()(x))
    assert not again.training
    assert json.loads(file.with_suffix(".json").read_text())["note"] == "x"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_bad_checkpoints_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with pytest.raises(CurvactError, match="no checkpoint file"):
        load_checkpoint(file)
    save_checkpoint(file, build(**ARCHITECTURE), ARCHITECTURE, {})
    whole = file.read_bytes()
    for cut in (0, 5, 100, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(CurvactError, match="truncated or damaged") as caught:
            load_checkpoint(file)
        assert "\n" not in str(caught.value)
    save_checkpoint(file, build(**ARCHITECTURE), {**ARCHITECTURE, "width": 3}, {})
    with pytest.raises(CurvactError, match="does not fit its architecture") as caught:
        load_checkpoint(file)
    assert "\n" not in str(caught.value)
    file.with_suffix(".json").write_text("{")
    with pytest.raises(CurvactError, match="not readable JSON"):
        load_checkpoint(file)


def test_training_never_looks_at_the_test_split() -> None:
    data = _small()
    other = replace(data.test, images=255 - data.test.images, labels=(data.test.labels + 1) % 10)
    recipe = Recipe(epochs=1, attack=PGD(1), batch_size=32)
    results = []
    for splits in (
        data,
        Splits(data.train, data.validation, other),
        Splits(data.train, data.validation, None),
    ):  # type: ignore[arg-type]
        model = _model()
        history = fit(model, splits, recipe, THREAT, seed=0)
        results.append((history, [p.detach().clone() for p in model.parameters()]))
    for history, parameters in results[1:]:
        assert history == results[0][0]
        assert all(torch.equal(a, b) for a, b in zip(parameters, results[0][1], strict=True))


def test_a_last_batch_of_one_image_is_left_out() -> None:
    """A ResNet-18 of 8×8 images ends in 1×1 maps, where batch norm refuses one image."""
    data = _small(33)
    model = build("resnet18", channels=1, width=2, size=8, generator=generator(0, "initialization"))
    (epoch,) = fit(model, data, Recipe(objective="standard", epochs=1, batch_size=16), THREAT, seed=0)
    assert epoch.gradient_evaluations == 2
