"""One training step against re-derivations without the loop: SGD, AWP, SAM, parts of a batch, the
folded twin, float16.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.attacks import PGD, ThreatModel, pgd
from curvact.data import Splits, load
from curvact.random import generator
from curvact.training import Compute, Recipe, fit
from curvact.training import step as step_module

THREAT = ThreatModel("linf", 0.2)
Digits = Callable[[int], Splits]
Model = Callable[..., nn.Module]


def _recipe(**settings: Any) -> Recipe:
    plain = {"objective": "pgd-at(batch_norm=eval)", "epochs": 1, "batch_size": 16, "validation": "pgd-0"}
    return Recipe(**{**plain, **settings})


def test_standard_training_is_nesterov_sgd_by_hand(digits: Digits, small_model: Model) -> None:
    """One epoch against a re-derivation of SGD, schedule and order that uses neither the loop nor
    torch.optim.
    """
    data = digits(96)
    trained = small_model()
    fit(
        trained,
        data,
        _recipe(objective="standard", batch_size=32, learning_rate=0.1, warmup=0.5),
        THREAT,
        seed=3,
    )

    model = small_model().train()
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


@pytest.mark.parametrize("name", ["awp(gamma=0.02)", "sam(rho=0.1)"])
def test_awp_and_sam_by_hand(name: str, digits: Digits, small_model: Model) -> None:
    """One step on the same adversarial images, against a re-derivation without loop, torch.optim,
    `perturbation`.
    """
    data, sam = digits(32), name.startswith("sam")
    recipe = _recipe(
        batch_size=32,
        learning_rate=0.1,
        warmup=0.0,
        momentum=0.0,
        weight_decay=0.01,
        attack=PGD(2, step=0.4),
        perturbation=name,
    )
    trained = small_model()
    fit(trained, data, recipe, THREAT, seed=3)

    model = small_model()
    order = torch.randperm(32, generator=generator(3, "shuffle", 1))
    x, y = data.train.images[order].float() / 255, data.train.labels[order]
    model.eval()
    x_adv = pgd(model, x, y, THREAT, steps=2, step=0.4, generator=generator(3, "attack", 1))
    model.train()
    named = dict(model.named_parameters())

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(F.cross_entropy(model(x_adv), y), list(named.values())))

    first = gradients()
    if sam:
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
            # Weight decay acts on the weights that the step starts from: w for SAM, w + ν for AWP.
            start = w if sam else w + nu
            end = start - 0.1 * (g + 0.01 * start)
            p.copy_(end if sam else end - nu)
    for a, b in zip(trained.parameters(), model.parameters(), strict=True):
        # float32 through two passes of a small network.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw(beta2=0.95)"])
@pytest.mark.parametrize("perturbation", ["none", "awp(gamma=0.02)"])
def test_decay_groups_and_adamw_by_hand(
    optimizer: str, perturbation: str, digits: Digits, small_model: Model
) -> None:
    """Two steps of one batch. Decay acts on convolutions and the linear layer only, AdamW's apart
    from the gradient, and under AWP at w + ν.
    """
    data, rate, decay = digits(32), 0.01, 0.3
    recipe = _recipe(
        objective="standard",
        epochs=2,
        batch_size=32,
        learning_rate=rate,
        warmup=0.0,
        schedule="constant",
        weight_decay=decay,
        weight_decay_on="weights",
        optimizer=optimizer,
        perturbation=perturbation,
    )
    trained = small_model("prelu")
    fit(trained, data, recipe, THREAT, seed=3)

    model = small_model("prelu").train()
    named = dict(model.named_parameters())
    decayed = {
        f"{place}.weight" for place, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))
    }
    assert 0 < len(decayed) < len(named) - 3
    first, second = ({key: torch.zeros_like(p) for key, p in named.items()} for _ in range(2))
    for step in (1, 2):
        order = torch.randperm(32, generator=generator(3, "shuffle", step))
        x, y = data.train.images[order].float() / 255, data.train.labels[order]

        def gradients(x: Tensor = x, y: Tensor = y) -> dict[str, Tensor]:
            found = torch.autograd.grad(F.cross_entropy(model(x), y), list(named.values()))
            return dict(zip(named, found, strict=True))

        g, nu = gradients(), {key: torch.zeros_like(p) for key, p in named.items()}
        if perturbation != "none":
            for key, p in named.items():
                if p.dim() > 1 and "weight" in key:
                    nu[key] = 0.02 * p.detach().norm() * g[key] / g[key].norm()
            with torch.no_grad():
                for key, p in named.items():
                    p.add_(nu[key])
            g = gradients()
        with torch.no_grad():
            for key, p in named.items():
                part = decay if key in decayed else 0.0
                if optimizer == "sgd":
                    first[key] = 0.9 * first[key] + (total := g[key] + part * p)
                    p.sub_(rate * (total + 0.9 * first[key]))
                else:
                    first[key] = 0.9 * first[key] + 0.1 * g[key]
                    second[key] = 0.95 * second[key] + 0.05 * g[key] ** 2
                    p.mul_(1 - rate * part)
                    mean, square = first[key] / (1 - 0.9**step), second[key] / (1 - 0.95**step)
                    p.sub_(rate * mean / (square.sqrt() + 1e-8))
                p.sub_(nu[key])
    for (key, a), b in zip(trained.named_parameters(), model.parameters(), strict=True):
        # AdamW divides by small gradients: a sign of rounding noise moves a weight by the rate.
        far = ((a - b).abs() > 1e-5 + 1e-3 * b.abs()).double().mean()
        assert far < 0.02, key


def test_norms_of_any_shape_are_no_weights() -> None:
    model = nn.Sequential(nn.LayerNorm((3, 4)), nn.Linear(4, 2), nn.PReLU(3))
    recipe = _recipe(weight_decay_on="weights", weight_decay=0.1)
    groups = step_module.make_optimizer(model, recipe, torch.Generator()).param_groups
    assert [[tuple(p.shape) for p in group["params"]] for group in groups] == [
        [(2, 4)],
        [(3, 4), (3, 4), (2,), (3,)],
    ]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


class Widened(nn.Module):
    """A network without batch norm, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(64, 16), nn.SiLU(), nn.Linear(16, 10)]
        self.inside = nn.Sequential(*layers).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x.double())


def test_parts_add_up_to_the_batch(digits: Digits) -> None:
    """Without batch norm three unequal parts give the whole batch's step."""
    recipe = _recipe(batch_size=40, objective="standard")
    whole, parts = Widened(), Widened()
    one = fit(whole, digits(80), recipe, THREAT)
    three = fit(parts, digits(80), recipe, THREAT, compute=Compute(accumulate=3))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        # float64, sums in another order.
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert one[0].loss == pytest.approx(three[0].loss, rel=1e-6)
    assert one[0].gradient_evaluations == three[0].gradient_evaluations


def test_attacks_leave_no_weight_gradients(digits: Digits, small_model: Model) -> None:
    """Only the training pass reaches the weights: as many accumulations as steps, not attack steps
    more.
    """
    model = small_model()
    counts = itertools.count()
    weight = next(p for p in model.parameters() if p.dim() > 1)

    def count(gradient: Tensor) -> None:
        next(counts)

    weight.register_hook(count)
    fit(model, digits(80), _recipe(attack="pgd-3"), THREAT)
    assert next(counts) == 5


def test_the_twin_changes_nothing_but_rounding(
    digits: Digits, small_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 16 px on the attack runs without batch norm; forced here on a small network, where it
    would not.
    """
    recipe = _recipe(attack=PGD(3, step=0.4), learning_rate=0.01)
    plain, folded = small_model(), small_model()
    fit(plain, digits(80), recipe, THREAT)
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
    fit(folded, digits(80), recipe, THREAT)
    assert len(uses) == 5  # one refresh a batch, beside that of its making
    for a, b in zip(plain.parameters(), folded.parameters(), strict=True):
        # Signs of gradients near zero differ: a few pixels of some images.
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-3)


def test_attack_in_half_precision_finds_what_float32_finds() -> None:
    """fp16 would lose gradients below 6e-8 without the scale of the loss: a network with small
    logit slopes shows it.
    """
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
