"""The loop: resumed and extended exactly with every method, costs counted, the right weights
evaluated, divergence explained.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from curvact.attacks import PGD, ThreatModel
from curvact.data import Splits, load
from curvact.errors import CurvactError
from curvact.models import build
from curvact.random import generator
from curvact.training import OBJECTIVES, Compute, Diverged, Epoch, Recipe, Step, Watch, fit, most_evaluations
from curvact.training import loop as loop_module
from curvact.training.methods.batch_norm import recalibrate
from curvact.training.state import DamagedStateWarning, load_state

THREAT = ThreatModel("linf", 0.2)
SHORT = Recipe(epochs=2, batch_size=16, attack=PGD(1, step=0.4), objective="pgd-at(batch_norm=eval)")
Digits = Callable[[int], Splits]
Model = Callable[..., nn.Module]

METHODS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw", "weight_decay_on": "weights", "learning_rate": 1e-3},
    "sgd": {},
    "awp": {"perturbation": "awp(gamma=0.01, start=0.3)"},
    "sam": {"perturbation": "sam"},
    "ema": {"averaging": "ema(decay=0.9)"},
    "swa": {"averaging": "swa(start=0.3)"},
    "me-a": {"averaging": "me-a(rho=0.5, start=0.2)"},
    "me-a, ema": {"averaging": "me-a(rho=0.5, outer=ema, start=0.2)", "perturbation": "awp"},
    "entropy": {"optimizer": "entropy-sgd(inner_steps=3, variant=authors)", "learning_rate": 1.0},
    "algorithm": {
        "optimizer": "entropy-sgd(inner_steps=3)",
        "learning_rate": 30.0,
        "perturbation": "sam",
        "averaging": "swa(start=0)",
    },
    "all": {
        "optimizer": "entropy-sgd(inner_steps=3, variant=authors)",
        "learning_rate": 1.0,
        "perturbation": "awp",
        "averaging": "ema(decay=0.9)",
        "clip_norm": 1.0,
    },
}


class Killed(Exception):
    pass


def _same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(v, w) for v, w in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def _kill_at(step: int) -> Watch:
    def look(place: Step) -> None:
        if place.step == step:
            raise Killed

    return Watch(on_step=look)


@pytest.fixture
def saves_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "CHECK_EVERY", 1)
    monkeypatch.setattr(loop_module, "SAVE_EVERY", 0.0)


@pytest.mark.usefixtures("saves_each_step")
@pytest.mark.parametrize("method", [*METHODS, "dropout and guard"])
def test_killed_and_resumed_ends_bit_identical(
    method: str, tmp_path: Path, digits: Digits, small_model: Model
) -> None:
    """Four batches an epoch. Killed after the third step of each epoch; the resumed run begins with
    other weights.
    """
    data, recipe, model = digits(64), replace(SHORT, **METHODS.get(method, {})), small_model
    if method not in METHODS:
        data, recipe = digits(48), replace(SHORT, objective="fgsm-rs", batch_size=12)
        arguments = {"depth": 10, "widen_factor": 1, "dropout": 0.3, "channels": 1, "size": 8}

        def model() -> nn.Module:
            return build(
                "wide_resnet", **arguments, activation="silu", generator=generator(0, "initialization")
            )

    straight = model()
    history = fit(straight, data, recipe, THREAT, seed=1)
    for killed_at in (3, 7):
        state = tmp_path / f"{killed_at}.safetensors"
        with pytest.raises(Killed):
            fit(model(), data, recipe, THREAT, seed=1, state=state, watch=_kill_at(killed_at))
        torch.manual_seed(99)
        resumed = model()
        with torch.no_grad():
            for p in resumed.parameters():
                p.zero_()
        steps: list[int] = []
        watch = Watch(on_step=lambda s, steps=steps: steps.append(s.step))
        assert fit(resumed, data, recipe, THREAT, seed=1, state=state, watch=watch) == history
        assert steps[0] == killed_at  # it goes on from the step before, whose state was saved
        assert _same(straight, resumed)


@pytest.mark.parametrize("method", ["sgd", "ema", "all"])
def test_an_extended_run_is_the_longer_run_bit_for_bit(
    method: str, tmp_path: Path, digits: Digits, small_model: Model
) -> None:
    """2 epochs at a constant rate, extended to 4; with momentum, EMA, Entropy-SGD."""
    data = digits(64)
    long = replace(SHORT, epochs=4, schedule="constant", warmup=0.0, **METHODS[method])
    straight = small_model()
    history = fit(straight, data, long, THREAT, seed=1)
    state = tmp_path / "state.safetensors"
    finished = small_model()
    assert fit(finished, data, replace(long, epochs=2), THREAT, seed=1, state=state) == history[:2]
    with pytest.raises(CurvactError, match="epochs=1 is less than the 8 steps of 4 an epoch that are done"):
        fit(small_model(), data, replace(long, epochs=1), THREAT, seed=1, state=state)
    again = small_model()
    assert fit(again, data, replace(long, epochs=2), THREAT, seed=1, state=state) == history[:2]
    assert _same(finished, again)  # a finished state trains no more, and gives its evaluated weights
    extended = small_model()
    assert fit(extended, data, long, THREAT, seed=1, state=state) == history
    assert _same(straight, extended)


def test_the_state_of_another_run_is_refused(tmp_path: Path, digits: Digits, small_model: Model) -> None:
    state, data, once = tmp_path / "state.safetensors", digits(32), replace(SHORT, epochs=1)
    fit(small_model(), data, once, THREAT, seed=1, state=state)

    def refused(message: str, recipe: Recipe = once, seed: int = 1) -> None:
        with pytest.raises(CurvactError, match=message) as caught:
            fit(small_model(), data, recipe, THREAT, seed=seed, state=state)
        assert "\n" not in str(caught.value)

    refused("cannot go on with these settings: step 0 of a cosine schedule with warmup=0.3 had", SHORT)
    refused("objective was .* and is trades: only epochs can change", replace(once, objective="trades"))
    refused(r"another seed \(1 there, 2 here\); use another folder", seed=2)


@pytest.mark.usefixtures("saves_each_step")
def test_a_damaged_state_gives_way_to_the_one_before_it(
    tmp_path: Path, digits: Digits, small_model: Model
) -> None:
    """One flipped bit in a weight; then in both states. The end is the same to the bit."""
    state, data = tmp_path / "state.safetensors", digits(64)
    straight = small_model()
    history = fit(straight, data, SHORT, THREAT, seed=1)
    with pytest.raises(Killed):
        fit(small_model(), data, SHORT, THREAT, seed=1, state=state, watch=_kill_at(6))
    before = tmp_path / "state.previous.safetensors"
    kept = {file: file.read_bytes() for file in (state, before)}
    for damaged, first, words in (
        ([state], 5, f"going on from {before}"),
        ([state, before], 1, "starts anew"),
    ):
        for file, content in kept.items():
            middle = len(content) * 3 // 4  # in the tensors
            flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            file.unlink()  # the two may be the same file
            file.write_bytes(flipped if file in damaged else content)
        steps: list[int] = []
        watch = Watch(on_step=lambda s, steps=steps: steps.append(s.step))
        resumed = small_model()
        with pytest.warns(DamagedStateWarning, match=words) as caught:
            assert fit(resumed, data, SHORT, THREAT, seed=1, state=state, watch=watch) == history
        (ours,) = (warning for warning in caught if warning.category is DamagedStateWarning)
        assert "\n" not in str(ours.message)
        assert steps[0] == first
        assert _same(straight, resumed)


def test_a_state_without_a_checksum_is_read(tmp_path: Path) -> None:
    """As earlier versions wrote it."""
    tree = {"weights": torch.ones(2), "place": [1, 2]}
    plain = {"dict": [["weights", {"tensor": "0"}], ["place", {"list": [1, 2]}]]}
    content = safetensors.torch.save({"0": torch.ones(2)}, metadata={"tree": json.dumps(plain)})
    (tmp_path / "state.safetensors").write_bytes(content)
    found = load_state(tmp_path / "state.safetensors")
    assert found["place"] == tree["place"]
    assert torch.equal(found["weights"], torch.ones(2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_any_objective_meets_any_method(name: str, method: str, digits: Digits, small_model: Model) -> None:
    """Three batches of each, one outer step of Entropy-SGD: weights move, stay finite, and cost
    what the objective says.
    """
    recipe = replace(SHORT, objective=name, epochs=1, attack="pgd-2", validation="pgd-0", **METHODS[method])
    activation = "relu" if method in ("sgd", "swa", "entropy") else "rctaf(curvature=4)"
    model, start = small_model(activation), small_model(activation)
    helper = small_model("relu") if OBJECTIVES[name].needs_helper else None
    history = fit(model, digits(48), recipe, THREAT, helper=helper)
    weights = list(model.parameters())
    assert all(bool(p.isfinite().all()) for p in weights)
    assert any(not torch.equal(p, q) for p, q in zip(weights, start.parameters(), strict=True))
    entry = OBJECTIVES[name]
    once = entry.cost(2)
    perturbed = {"sam": 3, "algorithm": 3, "all": 3, "me-a, ema": 3, "awp": 2}.get(
        method, 0
    )  # AWP alone starts after the first batch
    recalibrated = 0 if method in ("sgd", "adamw", "awp", "sam") else 3 * once
    assert history[-1].gradient_evaluations == 3 * once + perturbed * entry.passes + recalibrated


def test_a_budget_ends_training(digits: Digits, small_model: Model) -> None:
    """At most so many gradient evaluations, the last epoch cut short, the schedule at its end."""
    recipe = replace(SHORT, attack=PGD(2), budget=40, epochs=99)
    history = fit(small_model(), digits(80), recipe, THREAT)
    assert history[-1].gradient_evaluations == 39  # 13 steps of 3
    assert len(history) == 3
    assert history[-1].learning_rate < 0.1 * recipe.learning_rate
    dear = fit(small_model(), digits(80), replace(recipe, perturbation="sam"), THREAT)
    assert dear[-1].gradient_evaluations == 40


def test_training_lowers_the_adversarial_loss_and_repeats_exactly(digits: Digits, small_model: Model) -> None:
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        model = small_model("rctaf(curvature=4)")
        history = fit(model, digits(96), replace(SHORT, epochs=4, attack=PGD(2)), THREAT)
        results.append((model, history))
    assert results[0][1][-1].loss < results[0][1][0].loss - 0.2
    assert results[0][1] == results[1][1]
    assert _same(results[0][0], results[1][0])
    assert results[0][1][-1].gradient_evaluations == 4 * 6 * 3


def test_validation_has_its_own_attack(digits: Digits, small_model: Model) -> None:
    """None is the training attack, pgd-0 none at all; neither changes the training."""
    validated = {}
    for validation in (None, "pgd-0", "pgd(steps=8, step=0.5)"):
        recipe = replace(SHORT, validation=validation, objective="standard", learning_rate=0.2)
        (*_, validated[validation]) = fit(small_model(), digits(96), recipe, THREAT)
    clean, once, often = validated["pgd-0"], validated[None], validated["pgd(steps=8, step=0.5)"]
    assert clean.loss == once.loss == often.loss
    assert (
        clean.validation_robust_accuracy > once.validation_robust_accuracy > often.validation_robust_accuracy
    )
    assert clean.validation_accuracy >= clean.validation_robust_accuracy


@pytest.mark.parametrize("kind", ["ema(decay=0.9)", "swa(start=0.0)"])
def test_the_average_is_what_is_evaluated_and_kept(kind: str, digits: Digits, small_model: Model) -> None:
    recipe = replace(SHORT, epochs=3)
    seen: list[tuple[bool, dict[str, Tensor]]] = []

    def keep(m: nn.Module, epoch: Epoch, best: bool) -> None:
        seen.append((best, {k: v.clone() for k, v in m.state_dict().items()}))

    model, plain = small_model(), small_model()
    history = fit(model, digits(80), replace(recipe, averaging=kind), THREAT, watch=Watch(on_evaluated=keep))
    weights: list[list[Tensor]] = []

    def note(m: nn.Module, epoch: Epoch, best: bool) -> None:
        weights.append([p.detach().clone() for p in m.parameters()])

    fit(plain, digits(80), recipe, THREAT, watch=Watch(on_evaluated=note))
    best_so_far, expected = -1.0, []
    for epoch in history:
        expected.append(epoch.validation_robust_accuracy > best_so_far)
        best_so_far = max(best_so_far, epoch.validation_robust_accuracy)
    assert [best for best, _ in seen] == expected
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


def test_entropy_sgd_is_evaluated_at_its_outer_weights_with_their_statistics(
    digits: Digits, small_model: Model
) -> None:
    """The defect of the public code: batch norm statistics of the inner weights."""
    optimizer = "entropy-sgd(inner_steps=4, variant=authors)"
    recipe = replace(SHORT, epochs=1, objective="standard", optimizer=optimizer, learning_rate=1.0)
    kept: dict[str, Tensor] = {}

    def keep(m: nn.Module, epoch: Epoch, best: bool) -> None:
        kept.update({k: v.clone() for k, v in m.state_dict().items()})

    model, fresh, data = small_model(), small_model(), digits(80)
    fit(model, data, recipe, THREAT, watch=Watch(on_evaluated=keep))
    fresh.load_state_dict(kept)
    order = torch.randperm(80, generator=generator(0, "shuffle", 1))
    recalibrate(fresh, data.train.inputs()[order].split(16))
    for key, value in fresh.state_dict().items():
        torch.testing.assert_close(value, kept[key], rtol=1e-4, atol=1e-5)
        if not key.endswith("tracked"):
            torch.testing.assert_close(model.state_dict()[key], kept[key])


COLLAPSE = (0.6, 0.7, 0.1)
"""PGD accuracies on training images after the epochs of a training that collapses in the third."""


def _collapse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "stronger_accuracy", lambda *args: COLLAPSE[args[-1] - 1])


@pytest.mark.parametrize("method", ["sgd", "ema", "swa", "me-a", "entropy"])
def test_after_a_collapse_the_weights_of_the_epoch_before_are_kept(
    method: str, tmp_path: Path, digits: Digits, small_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    _collapse(monkeypatch)
    recipe = replace(SHORT, epochs=5, objective="fgsm-rs", **METHODS[method])
    seen: dict[int, dict[str, Tensor]] = {}

    def keep(m: nn.Module, epoch: Epoch, best: bool) -> None:
        seen[epoch.epoch] = {k: v.clone() for k, v in m.state_dict().items()}

    model, again, state = small_model(), small_model(), tmp_path / "state.safetensors"
    history = fit(model, digits(48), recipe, THREAT, state=state, watch=Watch(on_evaluated=keep))
    assert [bool(epoch.note) for epoch in history] == [False, False, True]
    assert list(seen) == [1, 2]
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, seen[2][key], rtol=0, atol=0)
    fit(again, digits(48), recipe, THREAT, state=state)  # from the state of a training that has ended
    assert _same(model, again)


class Faulty(nn.Module):
    """A network whose logits become others in training mode, from its call `after` on."""

    def __init__(self, inside: nn.Module, change: Callable[[Tensor, Tensor], Tensor], after: int = 0) -> None:
        super().__init__()
        self.inside, self.change, self.after, self.calls = inside, change, after, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += int(self.training)
        logits = self.inside(x)
        return self.change(x, logits) if self.calls > self.after else logits


def test_divergence_names_the_batch_and_its_images(digits: Digits, small_model: Model) -> None:
    data = digits(80)
    order = torch.randperm(80, generator=generator(0, "shuffle", 2))
    poisoned = data.train.images[int(order[40])].float()  # in batch 2 of epoch 2

    def poison(x: Tensor, logits: Tensor) -> Tensor:
        mine = (x * 255 - poisoned).abs().amax((1, 2, 3)) < 0.5
        return torch.where(mine[:, None], torch.nan, logits)

    recipe = replace(SHORT, epochs=3, objective="standard")
    with pytest.raises(
        Diverged,
        match=r"became nan at step 7 of 15 \(epoch 2, learning rate 0\.0\d+, batch 2 of the epoch, training images \d+",
    ) as caught:
        fit(Faulty(small_model(), poison, after=5), data, recipe, THREAT)
    assert str(int(order[32])) in str(caught.value)


def test_a_loss_that_explodes_diverges_too(digits: Digits, small_model: Model) -> None:
    """Finite but a thousand times that of guessing, or by a rate of 1e30."""
    loud = Faulty(small_model(), lambda x, logits: logits * 1e6)
    with pytest.raises(Diverged, match=r"the loss became \d"):
        fit(loud, digits(80), replace(SHORT, objective="standard"), THREAT)
    wild = replace(SHORT, learning_rate=1e30, momentum=0.0, warmup=0.0)
    with pytest.raises(Diverged, match=r"became (nan|inf) at step \d+ of \d+ \(epoch \d, learning rate"):
        fit(small_model(), digits(80), wild, THREAT)


def test_training_never_looks_at_the_test_split(digits: Digits, small_model: Model) -> None:
    data = digits(64)
    other = replace(data.test, images=255 - data.test.images, labels=(data.test.labels + 1) % 10)
    results = []
    for test in (data.test, other, None):
        model = small_model()
        history = fit(model, Splits(data.train, data.validation, test), replace(SHORT, epochs=1), THREAT)  # type: ignore[arg-type]
        results.append((history, model))
    for history, model in results[1:]:
        assert history == results[0][0]
        assert _same(model, results[0][1])


def test_a_last_batch_of_one_image_is_left_out(digits: Digits) -> None:
    """A ResNet-18 of 8×8 images ends in 1×1 maps, where batch norm refuses one image."""
    model = build("resnet18", channels=1, width=2, size=8, generator=generator(0, "initialization"))
    (epoch,) = fit(model, digits(33), replace(SHORT, objective="standard", epochs=1), THREAT)
    assert epoch.gradient_evaluations == 2


def test_history_is_plain_data_and_parts_are_counted() -> None:
    epoch = Epoch(1, 2.0, 0.3, 0.4, 0.2, 0.1, 12, {"alpha": 1.0})
    assert Epoch(**epoch.as_dict()) == epoch
    for wrong in (0, 1.5, True):
        with pytest.raises(CurvactError, match=r"accumulate=.* of Compute: a whole number of parts >= 1"):
            Compute(accumulate=wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_compiled_training_agrees(digits: Digits, small_model: Model) -> None:
    """The same numbers up to rounding: one epoch, three batches."""
    recipe = replace(SHORT, epochs=1, learning_rate=0.01)
    eager, compiled = small_model(), small_model()
    fit(eager, digits(48), recipe, THREAT)
    fit(compiled, digits(48), recipe, THREAT, compute=Compute(compiled=True))
    for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)


def test_bf16_trains(digits: Digits, small_model: Model) -> None:
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    model = small_model()
    history = fit(model, digits(80), replace(SHORT, epochs=4), THREAT, compute=Compute(fabric))
    assert history[-1].loss < history[0].loss
    assert all(p.dtype == torch.float32 for p in model.parameters())


SHARED = """
    import torch
    from curvact.attacks import ThreatModel
    from curvact.data import load
    from curvact.models import build
    from curvact.random import generator
    from curvact.training import Recipe
    THREAT = ThreatModel("linf", 0.2)
    # Plain SGD, so that weights after a few steps are gradients; a start without noise, as ranks
    # draw their own.
    RECIPE = Recipe(objective="pgd-at(batch_norm=eval)", epochs=1, batch_size=20, attack="pgd(steps=2, step=0.4, start=none)",
                    learning_rate=0.05, schedule="constant", warmup=0.0, momentum=0.0, validation="pgd-0")
    def data():
        return load("digits", train=70, validation=70, test=10)
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

TWO = """
    import sys, torch
    from lightning_fabric import Fabric
    from pathlib import Path
    sys.path.insert(0, {folder!r})
    from test_loop_shared import data, network, RECIPE, THREAT
    from curvact.training import Compute, fit
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    model = network()
    history = fit(model, data(), RECIPE, THREAT, compute=Compute(fabric), state=Path({folder!r}) / "state.safetensors")
    if fabric.is_global_zero:
        torch.save([p.detach() for p in model.parameters()], {folder!r} + "/two.pt")
        print(history[-1].loss, history[-1].validation_accuracy, history[-1].gradient_evaluations)
    torch.distributed.destroy_process_group()  # left to the exit, gloo's threads aborted one process in 25
"""


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Two processes by gloo with half the batch each: the weights of one process with the whole
    batch, to 1e-5.
    """
    (tmp_path / "test_loop_shared.py").write_text(textwrap.dedent(SHARED))
    sys.path.insert(0, str(tmp_path))
    try:
        import test_loop_shared as shared

        one = shared.network()
        history = fit(one, shared.data(), shared.RECIPE, shared.THREAT)
    finally:
        sys.path.remove(str(tmp_path))
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(TWO.format(folder=str(tmp_path))))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    done = subprocess.run(
        [*command, f"--master-port={port}", str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    loss, accuracy, gradients = map(float, done.stdout.split()[-3:])
    assert loss == pytest.approx(history[-1].loss, rel=1e-5)
    assert accuracy == history[-1].validation_accuracy
    assert gradients == history[-1].gradient_evaluations
    assert (tmp_path / "state.safetensors").is_file()
    for a, b in zip(one.parameters(), torch.load(tmp_path / "two.pt", weights_only=True), strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": (torch.rand(4, 1, 8, 8), torch.zeros(4))}, r"data=\(tensor.* of fit: Splits, such as load"),
        ({"data": "a Dataset"}, r"data=Dataset.* of fit: Splits"),
        ({"recipe": {"epochs": 1}}, r"recipe=\{'epochs': 1\} of fit: a Recipe, such as Recipe"),
        ({"threat_model": "linf"}, r"threat_model='linf' of fit: a ThreatModel"),
        ({"seed": 0.5}, r"seed=0\.5 of fit: a whole number"),
    ],
)
def test_wrong_arguments_are_one_line(change: dict[str, Any], message: str) -> None:
    data = load("digits")
    given: dict[str, Any] = {
        "data": data,
        "recipe": Recipe(epochs=1),
        "threat_model": ThreatModel("linf", 0.1),
    }
    if change.get("data") == "a Dataset":
        change = {"data": data.test}
    with pytest.raises(CurvactError, match=message) as caught:
        fit(build("mlp", channels=1, size=8, width=4), **{**given, **change})
    assert "\n" not in str(caught.value)


def test_training_inside_no_grad_is_training() -> None:
    data, recipe = (
        load("digits", train=24, validation=8, test=8),
        Recipe(epochs=1, batch_size=12, attack="pgd-1"),
    )
    found = []
    for gradients in (True, False):
        model = build("mlp", channels=1, size=8, width=4, generator=generator(0, "initialization"))
        with torch.set_grad_enabled(gradients):
            fit(model, data, recipe, ThreatModel("linf", 0.1))
        found.append(model)
    assert _same(*found)


@pytest.mark.parametrize(
    ("kind", "texts"),
    [("averaging", ("swa(start=0)", "SWA(start=0)")), ("optimizer", ("entropy-sgd", "Entropy-SGD"))],
)
def test_capitals_in_the_name_of_a_method_change_nothing(kind: str, texts: tuple[str, str]) -> None:
    data, found = load("digits", train=24, validation=8, test=8), []
    for text in texts:
        recipe = Recipe(epochs=2, batch_size=12, attack="pgd-1", **{kind: text})
        model = build("mini_resnet", channels=1, size=8, width=2, generator=generator(0, "initialization"))
        history = fit(model, data, recipe, ThreatModel("linf", 0.1))
        assert history[-1].gradient_evaluations == most_evaluations(recipe, steps_per_epoch=2)
        found.append(model)
    assert _same(*found)
