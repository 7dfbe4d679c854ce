"""The loop: resumed exactly with every method, parts and processes equal to the whole, divergence with its cause."""

from __future__ import annotations

import itertools
import math
import os
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.attacks import PGD, ThreatModel, pgd
from curvact.data import Dataset, Splits, load
from curvact.errors import CurvactError
from curvact.models import build
from curvact.random import generator
from curvact.training import OBJECTIVES, Compute, Diverged, Epoch, Recipe, Step, Watch, fit
from curvact.training import loop as loop_module
from curvact.training import step as step_module
from curvact.training.methods.batch_norm import recalibrate

THREAT = ThreatModel("linf", 0.2)
ONE = PGD(1, step=0.4)
SHORT = Recipe(epochs=3, batch_size=16, attack=ONE, objective="pgd-at(batch_norm=eval)")


def _small(count: int = 80) -> Splits:
    full = load("digits")

    def cut(d: Dataset) -> Dataset:
        return Dataset(d.name, d.images[:count], d.labels[:count], d.classes, d.mean, d.std, d.sha256)

    return Splits(cut(full.train), cut(full.validation), cut(full.test))


def _model(activation: str = "silu", **more: Any) -> nn.Module:
    random = generator(0, "initialization")
    return build("mini_resnet", activation=activation, channels=1, width=2, generator=random, **more)


class Killed(Exception):
    pass


METHODS = {
    "sgd": {},
    "awp": {"perturbation": "awp(gamma=0.01, start=0.3)"},
    "sam": {"perturbation": "sam"},
    "ema": {"averaging": "ema(decay=0.9)"},
    "swa": {"averaging": "swa(start=0.3)"},
    "entropy": {"optimizer": "entropy-sgd(inner_steps=4, variant=authors)", "learning_rate": 1.0},
    "all": {
        "optimizer": "entropy-sgd(inner_steps=4, variant=authors)",
        "learning_rate": 1.0,
        "perturbation": "awp",
        "averaging": "ema(decay=0.9)",
        "clip_norm": 1.0,
    },
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("killed_at", [2, 9])
def test_killed_and_resumed_ends_bit_identical(
    method: str, killed_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks, and saves, after every step; dies after one in the first or in the second epoch."""
    monkeypatch.setattr(loop_module, "CHECK_EVERY", 1)
    monkeypatch.setattr(loop_module, "SAVE_EVERY", 0.0)
    recipe = replace(SHORT, **METHODS[method])
    straight = _model()
    history = fit(straight, _small(), recipe, THREAT, seed=1)

    def die(step: Step) -> None:
        if step.step == killed_at + 1:
            raise Killed

    state = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        fit(_model(), _small(), recipe, THREAT, seed=1, state=state, watch=Watch(on_step=die))
    torch.manual_seed(99)
    resumed = _model()
    with torch.no_grad():
        for p in resumed.parameters():
            p.zero_()
    steps: list[int] = []
    again = fit(
        resumed,
        _small(),
        recipe,
        THREAT,
        seed=1,
        state=state,
        watch=Watch(on_step=lambda s: steps.append(s.step)),
    )
    assert steps[0] == killed_at + 1  # it went on from the step before the one that killed it
    assert again == history
    for a, b in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_dropout_and_guard_resume_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "CHECK_EVERY", 1)
    monkeypatch.setattr(loop_module, "SAVE_EVERY", 0.0)
    recipe = replace(SHORT, epochs=2, objective="fgsm-rs")

    def model() -> nn.Module:
        random = generator(0, "initialization")
        return build(
            "wide_resnet",
            depth=10,
            widen_factor=1,
            dropout=0.3,
            channels=1,
            size=8,
            activation="silu",
            generator=random,
        )

    data = _small(48)
    straight = model()
    fit(straight, data, recipe, THREAT, seed=1)

    def die(step: Step) -> None:
        if step.step == 5:
            raise Killed

    state = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        fit(model(), data, recipe, THREAT, seed=1, state=state, watch=Watch(on_step=die))
    resumed = model()
    fit(resumed, data, recipe, THREAT, seed=1, state=state)
    for a, b in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    fit(_model(), _small(), replace(SHORT, epochs=1), THREAT, seed=1, state=state)
    with pytest.raises(
        CurvactError, match=r"cannot go on with these settings: step 0 of a cosine schedule with warmup=0.3"
    ):
        fit(_model(), _small(), replace(SHORT, epochs=2), THREAT, seed=1, state=state)
    with pytest.raises(CurvactError, match=r"another seed \(1 there, 2 here\); use another folder"):
        fit(_model(), _small(), replace(SHORT, epochs=1), THREAT, seed=2, state=state)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CurvactError, match="truncated or damaged"):
        fit(_model(), _small(), replace(SHORT, epochs=1), THREAT, seed=1, state=state)


def test_parts_add_up_to_the_batch() -> None:
    """Without batch norm's coupling (a network without it) three unequal parts give the whole batch's step."""
    data = _small(80)
    recipe = replace(SHORT, epochs=1, batch_size=40, objective="standard")

    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.SiLU(), nn.Linear(16, 10)).double()

    class Widened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = model()

        def forward(self, x: Tensor) -> Tensor:
            return self.inside(x.double())

    whole, parts = Widened(), Widened()
    one = fit(whole, data, recipe, THREAT, seed=0)
    three = fit(parts, data, recipe, THREAT, seed=0, compute=Compute(accumulate=3))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        # float64, sums in another order.
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert one[0].loss == pytest.approx(three[0].loss, rel=1e-6)
    assert one[0].gradient_evaluations == three[0].gradient_evaluations


def test_awp_and_sam_by_hand() -> None:
    """One step of each, on the same adversarial images, against a re-derivation without loop, torch.optim, `perturbation`."""
    data = _small(32)
    for name, restore_first in (("awp(gamma=0.02)", False), ("sam(rho=0.1)", True)):
        recipe = Recipe(
            objective="pgd-at(batch_norm=eval)",
            epochs=1,
            batch_size=32,
            learning_rate=0.1,
            warmup=0.0,
            momentum=0.0,
            weight_decay=0.01,
            attack=PGD(2, step=0.4),
            perturbation=name,
        )
        trained = _model()
        fit(trained, data, recipe, THREAT, seed=3)

        model = _model()
        order = torch.randperm(32, generator=generator(3, "shuffle", 1))
        x, y = data.train.images[order].float() / 255, data.train.labels[order]
        random = generator(3, "attack", 1)
        model.eval()
        x_adv = pgd(model, x, y, THREAT, steps=2, step=0.4, generator=random)
        model.train()
        named = dict(model.named_parameters())

        def gradients(
            model: nn.Module = model, named: Any = named, x: Any = x_adv, y: Any = y
        ) -> list[Tensor]:
            return list(torch.autograd.grad(F.cross_entropy(model(x), y), list(named.values())))

        first = gradients()
        if restore_first:
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in first))
            nus = [0.1 * g / norm for g in first]
        else:
            nus = [
                0.02 * p.detach().norm() * g / g.norm()
                if p.dim() > 1 and "weight" in key
                else torch.zeros_like(p)
                for (key, p), g in zip(named.items(), first, strict=True)
            ]
        with torch.no_grad():
            before = [p.clone() for p in named.values()]
            for p, nu in zip(named.values(), nus, strict=True):
                p.add_(nu)
        second = gradients()
        with torch.no_grad():
            for p, w, g, nu in zip(named.values(), before, second, nus, strict=True):
                # Weight decay acts on the weights the step starts from: w for SAM, w + ν for AWP.
                start = w if restore_first else w + nu
                end = start - 0.1 * (g + 0.01 * start)
                p.copy_(end if restore_first else end - nu)
        for a, b in zip(trained.parameters(), model.parameters(), strict=True):
            # float32 through two passes of a small network.
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)


def test_cost_is_counted_in_gradients() -> None:
    """Five batches an epoch, two attack steps."""
    base = replace(SHORT, epochs=1, attack=PGD(2, step=0.4))
    wanted = {"sgd": 5 * 3, "awp": None, "sam": 5 * 4, "swa": 5 * 3 + 5 * 3}  # swa: one recalibration
    for method, count in wanted.items():
        if count is None:
            continue
        recipe = replace(base, **METHODS[method])
        assert fit(_model(), _small(), recipe, THREAT, seed=0)[-1].gradient_evaluations == count, method
    awp = replace(base, perturbation="awp")
    assert fit(_model(), _small(), awp, THREAT, seed=0)[-1].gradient_evaluations == 5 * 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_any_objective_meets_any_method(name: str, method: str) -> None:
    """Four batches of each, one outer step of Entropy-SGD: weights move, stay finite, and cost what the objective says."""
    recipe = replace(SHORT, objective=name, epochs=1, attack=PGD(2, step=0.4), **METHODS[method])
    model, start = _model(), _model()
    history = fit(model, _small(64), recipe, THREAT, seed=0)
    weights = list(model.parameters())
    assert all(bool(p.isfinite().all()) for p in weights)
    assert any(not torch.equal(p, q) for p, q in zip(weights, start.parameters(), strict=True))
    entry = OBJECTIVES[name]
    once = entry.cost(2)
    again = entry.passes if method in ("sam", "all") else 0
    recalibrated = 4 * once if method in ("ema", "swa", "entropy", "all") else 0
    if method != "awp":  # which starts after the first of these batches
        assert history[-1].gradient_evaluations == 4 * (once + again) + recalibrated


def test_a_budget_ends_training() -> None:
    """At most so many gradient evaluations, the last epoch cut short, the schedule at its end."""
    recipe = replace(SHORT, attack=PGD(2, step=0.4), budget=40, epochs=99)
    history = fit(_model(), _small(), recipe, THREAT, seed=0)
    assert history[-1].gradient_evaluations == 39  # 13 steps of 3
    assert len(history) == 3
    assert history[-1].learning_rate < 0.1 * recipe.learning_rate
    dear = fit(_model(), _small(), replace(recipe, perturbation="sam"), THREAT, seed=0)
    assert dear[-1].gradient_evaluations == 40


@pytest.mark.parametrize("kind", ["ema(decay=0.9)", "swa(start=0.0)"])
def test_the_average_is_what_is_evaluated_and_kept(kind: str) -> None:
    seen: list[tuple[bool, dict[str, Tensor]]] = []
    model = _model()
    history = fit(
        model,
        _small(),
        replace(SHORT, averaging=kind),
        THREAT,
        seed=0,
        watch=Watch(
            on_evaluated=lambda m, e, best: seen.append(
                (best, {k: v.clone() for k, v in m.state_dict().items()})
            )
        ),
    )
    plain = _model()
    weights: list[list[Tensor]] = []
    fit(
        plain,
        _small(),
        SHORT,
        THREAT,
        seed=0,
        watch=Watch(
            on_evaluated=lambda m, e, best: weights.append([p.detach().clone() for p in m.parameters()])
        ),
    )
    assert len(seen) == 3
    assert seen[0][0]
    best = max(e.validation_robust_accuracy for e in history)
    assert sum(b for b, _ in seen) >= 1
    assert history[[b for b, _ in seen].index(True)].validation_robust_accuracy <= best
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, seen[-1][1][key])
    if kind.startswith("swa"):
        mean = [torch.stack(w).mean(0) for w in zip(*weights, strict=True)]
        for (name, _), m in zip(model.named_parameters(), mean, strict=True):
            # The same training, so the mean of its epochs' ends; float32.
            torch.testing.assert_close(seen[-1][1][name], m, rtol=1e-5, atol=1e-6)
    statistics = {k: v for k, v in plain.state_dict().items() if k.endswith("running_mean")}
    assert any(not torch.allclose(v, model.state_dict()[k], rtol=1e-3) for k, v in statistics.items())


def test_entropy_sgd_is_evaluated_at_its_outer_weights_with_their_statistics() -> None:
    """The defect of the public code: batch norm statistics of the inner weights."""
    recipe = replace(SHORT, epochs=1, objective="standard", **METHODS["entropy"])
    kept: dict[str, Tensor] = {}
    fit(
        model := _model(),
        _small(),
        recipe,
        THREAT,
        seed=0,
        watch=Watch(
            on_evaluated=lambda m, e, best: kept.update({k: v.clone() for k, v in m.state_dict().items()})
        ),
    )
    fresh = _model()
    fresh.load_state_dict(kept)
    order = torch.randperm(80, generator=generator(0, "shuffle", 1))
    images = _small().train.inputs()[order]
    recalibrate(fresh, images.split(16))
    for key, value in fresh.state_dict().items():
        torch.testing.assert_close(value, kept[key], rtol=1e-4, atol=1e-5)
        if not key.endswith("tracked"):
            torch.testing.assert_close(model.state_dict()[key], kept[key])


def test_divergence_names_the_batch_and_its_images() -> None:
    data = _small()
    broken = data.train.images.clone()
    order = torch.randperm(80, generator=generator(0, "shuffle", 2))
    poisoned = int(order[40])  # in batch 2 of epoch 2

    class Poisoned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.calls = _model(), 0

        def forward(self, x: Tensor) -> Tensor:
            logits = self.inside(x)
            mine = (x * 255 - broken[poisoned].float()).abs().amax((1, 2, 3)) < 0.5
            self.calls += int(self.training)
            return torch.where(mine[:, None] & (self.calls > 5), torch.nan, logits)

    with pytest.raises(
        Diverged,
        match=r"became nan at step 7 of 15 \(epoch 2, learning rate 0\.0\d+, batch 2 of the epoch, training images \d+",
    ) as caught:
        fit(Poisoned(), data, replace(SHORT, objective="standard"), THREAT, seed=0)
    assert str(int(order[32])) in str(caught.value)


def test_a_loss_that_explodes_but_stays_finite_diverges_too() -> None:
    class Loud(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = _model()

        def forward(self, x: Tensor) -> Tensor:
            return self.inside(x) * 1e6

    with pytest.raises(Diverged, match=r"the loss became \d"):
        fit(Loud(), _small(), replace(SHORT, objective="standard"), THREAT, seed=0)


def test_attack_in_half_precision_finds_what_float32_finds() -> None:
    """fp16 would lose gradients below 6e-8 without the scale of the loss: a network with small logit slopes shows it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 10))
    with torch.no_grad():
        model[1].weight.mul_(1e-3)
        model[3].weight.mul_(1e-3)
    x, y = load("digits").train.inputs(slice(0, 32)), load("digits").train.labels[:32]

    def ascent(scale: float, dtype: torch.dtype | None) -> Tensor:
        def loss(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
            return scale * F.cross_entropy(logits.float(), labels, reduction="none")

        with torch.autocast("cpu", dtype or torch.float16, enabled=dtype is not None):
            x_adv = pgd(model, x, y, THREAT, steps=1, step=1.0, start="none", loss=loss)
        return (x_adv - x).sign()

    truth = ascent(1.0, None)
    scaled = (ascent(step_module.FP16_SCALE, torch.float16) == truth).float().mean()
    unscaled = (ascent(1.0, torch.float16) == truth).float().mean()
    assert scaled > 0.99
    assert unscaled < 0.9


@pytest.mark.slow
def test_compiled_training_agrees() -> None:
    """The same numbers up to rounding: one epoch, three batches."""
    recipe = replace(SHORT, epochs=1, learning_rate=0.01)
    eager, compiled = _model(), _model()
    fit(eager, _small(48), recipe, THREAT, seed=0)
    fit(compiled, _small(48), recipe, THREAT, seed=0, compute=Compute(compiled=True))
    for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)


def test_bf16_trains() -> None:
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    model = _model()
    history = fit(model, _small(), replace(SHORT, epochs=4), THREAT, seed=0, compute=Compute(fabric))
    assert history[-1].loss < history[0].loss
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_the_twin_changes_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 16 px on the attack runs without batch norm; forced here on a small network, where it would not."""
    recipe = replace(SHORT, epochs=1, attack=PGD(3, step=0.4), learning_rate=0.01)
    plain, folded = _model(), _model()
    fit(plain, _small(), recipe, THREAT, seed=0)
    monkeypatch.setattr(step_module, "FOLD_FROM", 1)
    uses: list[int] = []
    refresh = step_module.FollowingTwin.refresh
    seen: set[int] = set()

    def counted(twin: step_module.FollowingTwin) -> step_module.FollowingTwin:
        if id(twin) in seen:
            uses.append(1)
        seen.add(id(twin))
        return refresh(twin)

    monkeypatch.setattr(step_module.FollowingTwin, "refresh", counted)
    fit(folded, _small(), recipe, THREAT, seed=0)
    assert len(uses) == 5  # one refresh a batch, beside that of its making
    for a, b in zip(plain.parameters(), folded.parameters(), strict=True):
        # Signs of gradients near zero differ: a few pixels of some images.
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-3)


TWO = """
    import sys, torch
    from torch import nn
    from lightning_fabric import Fabric
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from test_loop_shared import data, network, RECIPE, THREAT
    from curvact.training import Compute, fit
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    model = network()
    state = Path({state!r})
    history = fit(model, data(), RECIPE, THREAT, seed=0, compute=Compute(fabric), state=state)
    if fabric.is_global_zero:
        torch.save([p.detach() for p in model.parameters()], {out!r})
        print(history[-1].loss, history[-1].validation_accuracy, history[-1].gradient_evaluations)
    torch.distributed.destroy_process_group()  # left to the exit, gloo's threads aborted one process in 25
"""

SHARED = """
    from dataclasses import replace
    import torch
    from curvact.attacks import ThreatModel
    from curvact.data import Dataset, Splits, load
    from curvact.models import build
    from curvact.random import generator
    from curvact.training import Recipe
    THREAT = ThreatModel("linf", 0.2)
    # Plain SGD, so that weights after a few steps are gradients; a start without noise, as ranks draw their own.
    RECIPE = Recipe(objective="pgd-at(batch_norm=eval)", epochs=1, batch_size=20, attack="pgd(steps=2, step=0.4, start=none)",
                    learning_rate=0.05, schedule="constant", warmup=0.0, momentum=0.0, validation="pgd-0")
    def data():
        full = load("digits")
        cut = lambda d: Dataset(d.name, d.images[:70], d.labels[:70], d.classes, d.mean, d.std, d.sha256)
        return Splits(cut(full.train), cut(full.validation), cut(full.test))
    class EvalNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = build("mini_resnet", activation="silu", channels=1, width=2, generator=generator(0, "i")).double()
        def forward(self, x):
            self.inside.eval()  # batch norm in eval mode: otherwise each rank normalizes by its own half
            return self.inside(x.double())
    def network():
        return EvalNorm()
"""


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Two processes by gloo with half the batch each: the weights of one process with the whole batch, to 1e-5."""
    (tmp_path / "test_loop_shared.py").write_text(textwrap.dedent(SHARED))
    sys.path.insert(0, str(tmp_path))
    try:
        import test_loop_shared as shared

        one = shared.network()
        history = fit(one, shared.data(), shared.RECIPE, shared.THREAT, seed=0)
    finally:
        sys.path.remove(str(tmp_path))
    out, state = tmp_path / "two.pt", tmp_path / "state.safetensors"
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(TWO.format(tests=str(tmp_path), out=str(out), state=str(state))))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, f"--master-port={port}", str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    loss, accuracy, gradients = map(float, done.stdout.split()[-3:])
    assert loss == pytest.approx(history[-1].loss, rel=1e-5)
    assert accuracy == history[-1].validation_accuracy
    assert gradients == history[-1].gradient_evaluations
    assert state.is_file()
    for a, b in zip(one.parameters(), torch.load(out, weights_only=True), strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=1e-5, atol=1e-7)


def test_attacks_leave_no_weight_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the training pass reaches the weights: as many accumulations as steps, not attack steps more."""
    model = _model()
    counts = itertools.count()
    weight = next(p for p in model.parameters() if p.dim() > 1)

    def count(gradient: Tensor) -> None:
        next(counts)

    weight.register_hook(count)
    fit(model, _small(), replace(SHORT, epochs=1, attack=PGD(3, step=0.4)), THREAT, seed=0)
    assert next(counts) == 5


def test_history_is_plain_data() -> None:
    epoch = Epoch(1, 2.0, 0.3, 0.4, 0.2, 0.1, 12, {"alpha": 1.0})
    assert Epoch(**epoch.as_dict()) == epoch
