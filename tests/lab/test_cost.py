"""The counted cost of a run against counts by hand, and against torch's counter around the real thing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from curvact.analysis import Loss
from curvact.attacks import PGD, ThreatModel, accuracy, ensemble
from curvact.attacks.autoattack.ensemble import chosen_steps
from curvact.errors import CurvactError
from curvact.lab.cost import AssumedAccuracy, Cost, _withstood, costs_of, measured_rate, parse_rate
from curvact.lab.flops import Flops, count_flops, flop_counter
from curvact.lab.report.sweep.cost import cost_tables
from curvact.lab.run import execute
from curvact.models import MLP, MiniResNet, build
from curvact.models.checkpoint import save_checkpoint
from curvact.training import Recipe
from curvact.training.processes import Compute
from curvact.training.step import Trainer

THREAT = ThreatModel("linf", 0.1)
Run = Callable[..., Any]


class _Dense(nn.Sequential):
    """6 → 5 → 4 → 3."""

    def __init__(self) -> None:
        layers = nn.Linear(6, 5), nn.Softplus(), nn.Linear(5, 4), nn.Softplus(), nn.Linear(4, 3)
        super().__init__(nn.Flatten(), *layers)


FORWARD = 2 * (6 * 5 + 5 * 4 + 4 * 3)
TO_IMAGE = FORWARD
TO_WEIGHTS = FORWARD + 2 * (5 * 4 + 4 * 3)  # a product for each weight, and one to each hidden layer


@pytest.mark.parametrize(
    ("objective", "training", "attack"),
    [
        ("standard", FORWARD + TO_WEIGHTS, 0),
        ("pgd-at", FORWARD + TO_WEIGHTS, 7 * (FORWARD + TO_IMAGE)),
        ("fgsm-rs", FORWARD + TO_WEIGHTS, FORWARD + TO_IMAGE),
        ("trades(beta=6)", 2 * (FORWARD + TO_WEIGHTS), 7 * (FORWARD + TO_IMAGE) + FORWARD),
    ],
)
def test_a_network_counted_by_hand(objective: str, training: int, attack: int) -> None:
    found = count_flops(_Dense(), (1, 2, 3), Recipe(objective=objective, attack="pgd-7"), THREAT)
    assert found == Flops(FORWARD, FORWARD + TO_IMAGE, training, attack)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_few_attack_steps(steps: int) -> None:
    found = count_flops(_Dense(), (1, 2, 3), Recipe(attack=f"pgd-{steps}"), THREAT)
    assert found.attack == steps * (FORWARD + TO_IMAGE)


@pytest.mark.parametrize(
    ("objective", "perturbation"),
    [("pgd-at", "awp"), ("trades", "none"), ("mart", "sam"), ("grad-align", "none")],
)
def test_a_real_step_of_training(objective: str, perturbation: str) -> None:
    """Six real images through a whole step, with its attack and its second gradient."""
    recipe = Recipe(objective=objective, attack="pgd-4", perturbation=perturbation)
    model = MiniResNet("silu", channels=1, width=2, blocks=1)
    found = count_flops(model, (1, 8, 8), recipe, THREAT)
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    random = torch.Generator().manual_seed(0)
    trainer = Trainer(
        model, recipe, THREAT, Compute(), Fabric(accelerator="cpu"), random=random, example=x[:2]
    )
    with flop_counter() as counter:
        trainer.step(x, y, whole=6, rate=0.1, perturbed=perturbation != "none", random=random)
    again = 1 if perturbation == "none" else 2
    assert counter.get_total_flops() / 6 == again * found.training + found.attack


def test_a_network_that_looks_at_values() -> None:
    class Looks(_Dense):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float(x.mean() >= 0)

    recipe = Recipe(attack="pgd-3")
    assert count_flops(Looks(), (1, 2, 3), recipe, THREAT) == count_flops(_Dense(), (1, 2, 3), recipe, THREAT)


def test_products_with_the_hessian() -> None:
    model = MLP("silu", channels=1, size=8, width=5)
    found = count_flops(model, (1, 8, 8), Recipe(), THREAT, hessian=True)
    loss = Loss(model, torch.rand(6, 1, 8, 8), torch.arange(6))
    with flop_counter() as counter:
        loss.hessian(torch.rand(3, loss.size))
    assert counter.get_total_flops() / 6 == found.second_order + 3 * found.product


@pytest.mark.parametrize(
    ("mode", "attack"),
    [("fast", "apgd-ce"), ("fast", "square"), ("plain", "apgd-t"), ("plain", "fab-t"), ("plain", "square")],
)
def test_attacks_that_are_withstood(mode: Any, attack: str) -> None:
    """The passes of AutoAttack at points far from any boundary."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(75, 4)).eval()
    x = torch.rand(8, 3, 5, 5)
    y = model(x).argmax(1)
    threat = ThreatModel("linf", 1e-4)
    found = count_flops(model, (3, 5, 5), Recipe(), threat)
    with flop_counter() as counter:
        result = ensemble(model, x, y, threat, attacks=[attack], mode=mode, steps=20, queries=100)
    assert result.robust_accuracy == 1
    (step,) = chosen_steps([attack], "linf", 4, steps=20, queries=100)
    # fast: square leaves out queries that change nothing
    least = 0.5 if (mode, attack) == ("fast", "square") else 0.85
    assert least < _withstood(step, found, 4) / (counter.get_total_flops() / 8) < 1.2


def test_a_whole_run(run_spec: Run, tmp_path: Path) -> None:
    """Training, validation, both evaluations: all operations of the process, and the recorded number."""
    spec = run_spec(training={"epochs": 2, "attack": "pgd-2"}, hessian={"probes": 8, "deflation": 2})
    (found,) = costs_of([spec])
    with flop_counter() as counter:
        record = execute(spec, tmp_path / "run")
    assert found.gradient_evaluations == record.gradient_evaluations == 2 * 5 * 3
    best_is_last = record.metrics["best_epoch"] == 2
    assert 0.9 < found.total / counter.get_total_flops() < (1.2 if best_is_last else 1.02)


def test_costs_add_up(run_spec: Run) -> None:
    """Twice the epochs, AWP from half of the steps on, a budget, images that are not here."""
    one, two, awp, budget = costs_of(
        run_spec(training=training)
        for training in (
            {},
            {"epochs": 2},
            {"epochs": 2, "perturbation": "awp(start=0.5)"},
            {"epochs": 9, "budget": 20},
        )
    )
    assert two.training == 2 * one.training
    assert two.validation == 2 * one.validation
    assert two.evaluation == one.evaluation > 0
    assert awp.training == 1.5 * two.training
    assert awp.attack == two.attack
    assert (one.gradient_evaluations, budget.gradient_evaluations) == (10, 20)
    assert budget.training == two.training
    (elsewhere,) = costs_of([run_spec(data={"name": "cifar10", "train": 300, "test": 40})])
    assert elsewhere.training > 3 * one.training


def test_autoattack_costs_what_withstands_it(run_spec: Run) -> None:
    spec = run_spec(evaluation={"autoattack_images": 10, "autoattack_parts": ["apgd-ce", "square"]})
    none, all_, half = (
        costs_of([spec], AssumedAccuracy(clean, robust))[0].autoattack
        for clean, robust in ((0, 0), (1, 1), (1, 0.5))
    )
    assert 0 < none < half < all_
    assert costs_of([run_spec()])[0].autoattack == 0
    with pytest.raises(CurvactError, match="0 <= robust <= clean <= 1"):
        AssumedAccuracy(0.4, 0.5)


def test_the_rate_of_this_machine(run_spec: Run) -> None:
    threads = torch.get_num_threads()
    assert 1e5 < measured_rate(run_spec()) < 1e15
    assert torch.get_num_threads() == threads


def test_the_rate_with_a_helper(run_spec: Run, tmp_path: Path) -> None:
    architecture = {"name": "mini_resnet", "activation": "relu", "channels": 1, "width": 2}
    save_checkpoint(tmp_path / "helper.safetensors", build(**architecture), architecture, {})
    spec = run_spec(training={"objective": "hat"}, helper=str(tmp_path / "helper.safetensors"))
    assert 1e5 < measured_rate(spec) < 1e15
    more, less = (costs_of([one])[0] for one in (spec, run_spec(training={"objective": "trades"})))
    assert more.training > less.training


@pytest.mark.parametrize("text", ["40", "TFLOPS", "0TFLOPS", "-1 GFLOPS", "40 THINGS", "1e3TFLOPS"])
def test_rates(text: str) -> None:
    with pytest.raises(CurvactError, match="--rate"):
        parse_rate(text)


def test_tables(sweep_spec: Run) -> None:
    runs = sweep_spec().planned
    costs = [Cost(training=3.6e15, gradient_evaluations=5)] * len(runs)
    parts, groups = cost_tables(runs, costs, AssumedAccuracy(), 1e12, "curvature")
    assert parts.lines[-1] == ("all", "1.44e16", "100.0%", "4")
    assert [line[:4] for line in groups.lines] == [("κ=1", "2", "3.60e15", "1"), ("κ=6", "2", "3.60e15", "1")]
    with pytest.raises(CurvactError, match="--by curvatur: no axis of the sweep; did you mean"):
        cost_tables(runs, costs, AssumedAccuracy(), by="curvatur")


def test_pgd_accuracy_is_two_passes_and_the_steps() -> None:
    found = count_flops(_Dense(), (1, 2, 3), Recipe(), THREAT)
    with flop_counter() as counter:
        accuracy(_Dense(), torch.rand(6, 1, 2, 3), torch.zeros(6, dtype=torch.int64), PGD(5), THREAT)
    assert counter.get_total_flops() / 6 == 2 * found.forward + 5 * found.gradient
