"""AutoAttack in plain mode against the reference, bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import nn

from curvact.attacks import (
    ThreatModel,
    autoattack,
    ensemble,
)
from curvact.attacks.autoattack import shard
from curvact.attacks.autoattack.ensemble import version_steps
from curvact.attacks.autoattack.reference import NORMS, ZeroGradients, reference_attack

ALL = ["apgd-ce", "apgd-t", "fab-t", "square"]
SMALL: dict[str, Any] = {"attacks": ALL, "steps": 8, "queries": 40}
EPSILON = {"linf": 0.1, "l2": 0.5, "l1": 2.0}


def _reference(
    model: nn.Module,
    norm: str,
    seed: int,
    version: str | None = "standard",
    steps: int = 100,
    queries: int = 5000,
) -> AutoAttack:
    """The reference; with version None set as in its standard version but for the budgets."""
    eps = EPSILON[norm]
    if version is not None:
        return AutoAttack(model, norm=NORMS[norm], eps=eps, seed=seed, version=version)
    made = AutoAttack(model, norm=NORMS[norm], eps=eps, seed=seed, version="custom", attacks=ALL)
    made.apgd = APGDAttack(model, n_iter=steps, norm=NORMS[norm], eps=eps, device="cpu", logger=made.logger)
    made.apgd_targeted = APGDAttack_targeted(
        model, n_iter=steps, norm=NORMS[norm], eps=eps, n_target_classes=9, device="cpu", logger=made.logger
    )
    made.fab = FABAttack_PT(model, n_restarts=1, n_iter=steps, eps=eps, norm=NORMS[norm], n_target_classes=9)
    made.square = SquareAttack(model, n_queries=queries, eps=eps, norm=NORMS[norm], resc_schedule=False)
    if norm == "l1":
        made.apgd.n_restarts, made.apgd_targeted.n_target_classes = 5, 5
        made.apgd.use_largereps = made.apgd_targeted.use_largereps = True
    return made


@pytest.mark.filterwarnings("ignore::curvact.attacks.SuspectModelWarning")
@pytest.mark.parametrize(
    ("name", "norm"),
    [*[(name, norm) for name in ("relu", "hard") for norm in EPSILON], ("rctaf(curvature=6)", "linf")],
)
def test_plain_mode_is_the_reference_bit_by_bit(
    net: Any, images: Any, assert_sound: Any, name: str, norm: str
) -> None:
    """Small budgets, several batches of standing points; the full ones below."""
    model, (x, y) = net(name), images()
    reference = _reference(model, norm, 3, None, steps=8, queries=40)
    x_adv, y_adv = reference.run_standard_evaluation(x, y, batch_size=8)
    model.zero_grad()
    before = torch.get_rng_state()
    result = ensemble(model, x, y, ThreatModel(norm, EPSILON[norm]), **SMALL, seed=3, batch_size=8)
    assert torch.equal(result.x_adv, x_adv)
    assert torch.equal(result.y_adv, y_adv)
    assert 0 < result.robust_accuracy < result.clean_accuracy
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert_sound(result, model, x, y)


@pytest.mark.parametrize("norm", list(EPSILON))
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_a_version_sets_its_attacks_as_the_reference_does(net: Any, norm: Any, version: Any) -> None:
    """Every plain setting of every attack object; the budgets are too long to run here."""
    model, threat = net(), ThreatModel(norm, EPSILON[norm])
    reference = AutoAttack(model, norm=NORMS[norm], eps=EPSILON[norm], seed=5, version=version)
    theirs = {
        "apgd-ce": (reference.apgd, {"loss": "ce"}),
        "apgd-dlr": (reference.apgd, {"loss": "dlr"}),
        "apgd-t": (reference.apgd_targeted, {}),
        "fab": (reference.fab, {"targeted": False, "n_target_classes": 0}),
        "fab-t": (reference.fab, {"targeted": True, "n_restarts": 1}),
        "square": (reference.square, {}),
    }
    steps = version_steps(version, norm, 10)
    assert [step.attack for step in steps] == reference.attacks_to_run
    for step in steps:
        made = reference_attack(step, model, threat, 5, torch.device("cpu"), ZeroGradients()).__self__
        other, by_name = theirs[step.attack]
        expected = {**vars(other), **by_name}
        for key, value in vars(made).items():
            if isinstance(value, (int, float, str)) and key not in ("device", "verbose"):
                assert value == expected[key], (step.attack, key)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::curvact.attacks.SuspectModelWarning")
@pytest.mark.parametrize(
    ("name", "norm", "version"),
    [
        *[(name, norm, "standard") for name in ("relu", "hard") for norm in ("linf", "l2")],
        *[("rctaf(curvature=6)", norm, "standard") for norm in ("linf", "l2")],
        ("relu", "l1", "standard"),
        ("relu", "linf", "plus"),
        ("relu", "l1", "plus"),
        ("relu", "l2", "rand"),
    ],
)
def test_a_whole_version_is_the_reference_bit_by_bit(
    net: Any, images: Any, name: str, norm: str, version: Any
) -> None:
    model, (x, y) = net(name), images(8)
    x_adv, y_adv = _reference(model, norm, 5, version).run_standard_evaluation(x, y, batch_size=8)
    result = autoattack(model, x, y, ThreatModel(norm, EPSILON[norm]), version=version, seed=5)
    assert torch.equal(result.x_adv, x_adv)
    assert torch.equal(result.y_adv, y_adv)
    assert result.name.startswith("AutoAttack")


def test_every_shard_is_the_reference_alone_on_it(net: Any, images: Any) -> None:
    model, (x, y) = net(), images()
    result = ensemble(model, x, y, ThreatModel("linf", 0.1), **SMALL, seed=3, shard_size=8)
    for number, part in enumerate([slice(0, 8), slice(8, 16), slice(16, 20)]):
        reference = _reference(model, "linf", shard.shard_seed(3, number), None, steps=8, queries=40)
        x_adv, _ = reference.run_standard_evaluation(x[part], y[part], batch_size=8)
        assert torch.equal(result.x_adv[part], x_adv)
    assert len({shard.shard_seed(3, number) for number in range(50)} | {shard.shard_seed(4, 1)}) == 51
