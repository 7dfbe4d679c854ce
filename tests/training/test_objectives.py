"""Every objective against float64 numpy: values, gradients, attacks; costs counted; names; extremes
of range and precision.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvact.attacks import PGD, ThreatModel, distance
from curvact.data import load
from curvact.errors import CurvactError
from curvact.models import MiniResNet
from curvact.random import generator
from curvact.training import Recipe, fit
from curvact.training.inner_attack import Fixed, InnerAttack, Maximization
from curvact.training.objectives import (
    OBJECTIVES,
    ObjectiveValue,
    objective,
    register_objective,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "reference"))
import objectives as reference
from small_network import INPUTS, NAMES, small_network, weights_of

LINF = ThreatModel("linf", 0.1)
ALL = ("standard", "pgd-at", "trades", "mart", "fgsm-rs", "n-fgsm", "grad-align")
ATTACKING = ALL[1:]
IMAGES = 6


def _batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, labels, attacked images, and other points."""
    random = generator(1, "test-batch")
    x, x_adv, point = torch.rand(3, IMAGES, INPUTS, generator=random, dtype=torch.float64)
    return x, torch.tensor([0, 1, 2, 0, 1, 2]), x_adv, point


def _expected(text: str, w, x, y, x_adv, point, at_x, smoothing):  # type: ignore[no-untyped-def]
    """The re-derived training loss at given attacked images; batch norm takes batch statistics,
    each batch its own.
    """
    clean, attacked = (reference.forward(w, images, True)[0] for images in (x, x_adv))
    if text == "standard":
        return reference.cross_entropy(clean, y, smoothing)
    if text.startswith("trades"):
        return reference.trades(clean, attacked, y, 2.5 if "2.5" in text else 6.0, smoothing)
    if text.startswith("mart"):
        return reference.mart(clean, attacked, y, 2.5 if "2.5" in text else 6.0, smoothing)
    value = reference.cross_entropy(attacked, y, smoothing)
    if text.startswith("grad-align"):
        at_point = reference.input_gradient(w, point, reference.ce_slope(y), True)
        value += (0.7 if "0.7" in text else 0.2) * reference.misalignment(at_x, at_point)
    return value


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("text", [*ALL, "trades(beta=2.5)", "mart(beta=2.5)", "grad-align(weight=0.7)"])
def test_value_and_every_weight_gradient(text: str, smoothing: float) -> None:
    net, (x, y, x_adv, point) = small_network(), _batch()
    w = weights_of(net)
    loss = objective(text, smoothing)(net, x, y, Fixed(x_adv, point))
    loss.value.backward()

    at_x = reference.input_gradient(w, x.numpy(), reference.ce_slope(y.numpy()), True)
    arrays = [t.numpy() for t in (x, y, x_adv, point)]

    def value(weights):  # type: ignore[no-untyped-def]
        return _expected(text, weights, *arrays, at_x, smoothing)

    # float64 on both sides; only the order of sums differs
    assert loss.value.item() == pytest.approx(value(w), rel=1e-12)
    expected = reference.differences(value, w, NAMES)
    for short, long in NAMES.items():
        got = net.get_parameter(long).grad.numpy()
        # central differences with h = 1e-6 are good to h² + 1e-16/h = 1e-10, times the loss's third
        # derivatives
        np.testing.assert_allclose(
            got.T if short in "AB" else got, expected[short], rtol=1e-6, atol=1e-8, err_msg=short
        )
    images = x if text == "standard" else x_adv
    assert torch.equal(loss.x_adv, images)
    # the classifier's outputs at the images trained on, in training mode
    np.testing.assert_allclose(
        loss.logits.numpy(), reference.forward(w, images.numpy(), True)[0], rtol=1e-12, atol=1e-12
    )
    assert not loss.logits.requires_grad
    assert net.training


def test_mart_is_the_published_code_up_to_its_small_constants() -> None:
    net, (x, y, x_adv, _) = small_network(), _batch()
    w = weights_of(net)
    value = objective("mart(beta=5)")(net, x, y, Fixed(x_adv)).value.item()
    clean, attacked = (reference.forward(w, images.numpy(), True)[0] for images in (x, x_adv))
    # its constants are 1e-7 and 1e-12
    assert value == pytest.approx(
        reference.mart_as_published(clean, attacked, y.numpy(), 5.0), rel=1e-6, abs=1e-6
    )


METHODS = {  # start, loss, batch norm in train mode, steps, step, noise, projected; None: the attack's own
    "pgd-at": ("uniform", "ce", True, None, None, 1.0, True),
    "pgd-at(batch_norm=eval)": ("uniform", "ce", False, None, None, 1.0, True),
    "trades": ("gaussian", "kl", False, None, None, 1.0, True),
    "trades(batch_norm=train)": ("gaussian", "kl", True, None, None, 1.0, True),
    "mart": ("gaussian", "ce", False, None, None, 1.0, True),
    "fgsm-rs": ("uniform", "ce", True, 1, 1.25, 1.0, True),
    "fgsm-rs(step=0.5, batch_norm=eval)": ("uniform", "ce", False, 1, 0.5, 1.0, True),
    "n-fgsm": ("uniform", "ce", True, 1, 1.0, 2.0, False),
    "n-fgsm(noise=1, step=0.75)": ("uniform", "ce", True, 1, 0.75, 1.0, False),
    "grad-align": ("none", "ce", True, 1, 1.0, 1.0, True),
}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("text", METHODS)
def test_the_attack_of_each_method_step_by_step(text: str, norm: str) -> None:
    start, kind, training, steps, step, noise, project = METHODS[text]
    net, (x, y, _, _) = small_network(), _batch()
    w, epsilon = weights_of(net), 0.1
    attack = InnerAttack(ThreatModel(norm, epsilon), PGD(3, step=0.4), generator(5, "attack"))
    loss = objective(text)(net, x, y, attack)

    random = generator(5, "attack")
    if start == "gaussian":
        begin = (x + 0.001 * torch.empty_like(x).normal_(generator=random)).clamp(0, 1)
    elif start == "uniform":
        begin = ThreatModel(norm, noise * epsilon).random_start(x, random)
    else:
        begin = x
    slope = (
        reference.ce_slope(y.numpy())
        if kind == "ce"
        else reference.kl_slope(reference.forward(w, x.numpy(), training)[0])
    )
    expected = reference.ascend(
        w,
        x.numpy(),
        begin.numpy(),
        slope,
        steps=steps or 3,
        step=0.04 if step is None else step * epsilon,
        epsilon=epsilon,
        norm=norm,
        training=training,
        project=project,
    )
    # float64; the gradient of the KL near its minimum (gaussian start) is a difference of almost
    # equal numbers
    np.testing.assert_allclose(loss.x_adv.numpy(), expected, rtol=0, atol=1e-9)
    assert loss.gradient_evaluations == OBJECTIVES[objective(text).name].cost(3)
    if text == "n-fgsm":
        assert distance(loss.x_adv, x, norm).max() > 1.2 * epsilon


def test_the_starts_have_their_distribution() -> None:
    x, y = torch.full((400, 50), 0.5), torch.zeros(400, dtype=torch.int64)
    model = lambda x: torch.stack([x.sum(1), -x.sum(1)], 1)  # noqa: E731
    attack = InnerAttack(LINF, PGD(0), generator(0, "starts"))
    drawn = {
        start: attack(model, x, y, Maximization(start=start, noise=noise)) - x
        for start, noise in (("uniform", 1.0), ("gaussian", 1.0), ("none", 1.0))
    }
    assert drawn["none"].abs().max() == 0
    # 20,000 draws: standard deviations are good to 0.5 %, so 2 % is four of them
    assert drawn["uniform"].std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)
    assert drawn["uniform"].abs().max() <= 0.1 + 1e-6
    assert drawn["gaussian"].std().item() == pytest.approx(0.001, rel=0.02)
    wide = attack(model, x, y, Maximization(noise=2.0, project=False)) - x
    assert wide.std().item() == pytest.approx(0.2 / math.sqrt(3), rel=0.02)
    assert not torch.equal(drawn["uniform"], attack(model, x, y, Maximization()) - x)  # the generator goes on
    tight = InnerAttack(ThreatModel("linf", 0.0005), PGD(0), generator(0, "starts"))
    assert (tight(model, x, y, Maximization(start="gaussian")) - x).abs().max() <= 0.0005 + 1e-7


def test_the_attacks_own_fields_have_the_last_word() -> None:
    net, (x, y, _, _) = small_network(), _batch()
    own = InnerAttack(LINF, PGD(1, step=0.5, start="none"), generator(0, "a"), batch_norm="eval")
    w = weights_of(net)
    for text in ("pgd-at", "mart", "fgsm-rs", "n-fgsm"):
        net = small_network()
        x_adv = objective(text)(net, x, y, own).x_adv
        slope = reference.ce_slope(y.numpy())
        gradient = reference.input_gradient(w, x.numpy(), slope, False)
        step = {"pgd-at": 0.05, "mart": 0.05, "fgsm-rs": 0.1, "n-fgsm": 0.1}[text]
        np.testing.assert_allclose(
            x_adv.numpy(), np.clip(x.numpy() + step * np.sign(gradient), 0, 1), atol=1e-12
        )


class _Meter(torch.autograd.Function):
    """The identity, which counts the backward passes that come through it."""

    @staticmethod
    def forward(ctx, x, counts):  # type: ignore[no-untyped-def]
        ctx.counts = counts
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        ctx.counts["backward"] += 1
        return gradient * 1, None


class _Metered(nn.Module):
    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net, self.counts = net, {"forward": 0, "without gradient": 0, "backward": 0}

    def forward(self, x: Tensor) -> Tensor:
        self.counts["forward"] += 1
        self.counts["without gradient"] += not torch.is_grad_enabled()
        return self.net[1:](_Meter.apply(self.net[0](x), self.counts))


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("text", ALL)
def test_cost_is_the_number_of_backward_passes(text: str, steps: int) -> None:
    x, y, x_adv, point = _batch()
    attack = InnerAttack(ThreatModel("l2", 0.3), PGD(steps, step=1 / 3), generator(0, "attack"))
    for which, expected in (
        (attack, OBJECTIVES[text].cost(steps)),
        (Fixed(x_adv, point), OBJECTIVES[text].passes),
    ):
        net = _Metered(small_network())
        loss = objective(text)(net, x, y, which)
        loss.value.backward()
        assert net.counts["backward"] == loss.gradient_evaluations == expected
        # grad-align differentiates one of its passes twice; only TRADES' attack has a forward pass
        # that is not counted
        again = text == "grad-align"
        alone = int(text == "trades" and which is attack)
        assert net.counts["forward"] == expected - again + alone
        assert net.counts["without gradient"] == alone
    assert attack.cost(Maximization()) == steps
    assert Fixed(x_adv).cost(Maximization()) == 0


@pytest.mark.parametrize("through_view", [False, True])
@pytest.mark.parametrize("text", ATTACKING)
def test_attacks_never_compute_a_weight_gradient(text: str, through_view: bool) -> None:
    x, y, _, _ = _batch()
    net = small_network()
    net[3].bias.requires_grad_(False)  # stays what it was
    touched: list[str] = []
    inside: list[bool] = []
    for name, p in net.named_parameters():
        if p.requires_grad:
            p.register_hook(lambda g, name=name: touched.append(name))
            p.register_post_accumulate_grad_hook(lambda p, name=name: touched.append(name))
    net.register_forward_pre_hook(lambda *_: inside.append(any(p.requires_grad for p in net.parameters())))

    class _Stop(Exception):
        pass

    def stop(*args, **kwargs):  # type: ignore[no-untyped-def]
        attack(*args, **kwargs)
        raise _Stop

    view = (lambda model: lambda x: model(x)) if through_view else (lambda model: model)
    attack = InnerAttack(LINF, PGD(2, step=0.5), generator(0, "attack"), view=view)
    stopping = type("Stopping", (), {"__call__": staticmethod(stop), "cost": lambda s, m: 2})()
    with pytest.raises(_Stop):
        objective(text)(net, x, y, stopping)
    assert inside
    assert not any(inside)
    assert touched == []
    assert all(p.grad is None for p in net.parameters())
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["3.bias"]


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
@pytest.mark.parametrize("before", [True, False])
def test_batch_norm_modes(batch_norm: str, before: bool) -> None:
    net, (x, y, _, _) = small_network().train(before), _batch()
    w = weights_of(net)
    seen: list[Tensor] = []
    points: list[Tensor] = []

    def note(module: nn.Module, arguments: tuple[Tensor], logits: Tensor) -> None:
        points.append(arguments[0].detach())
        seen.append(logits.detach())

    net.register_forward_hook(note)
    attack = InnerAttack(LINF, PGD(2, step=0.5), generator(0, "attack"))
    attack(net, x, y, Maximization(batch_norm=batch_norm))
    assert len(seen) == 2
    np.testing.assert_allclose(
        seen[0].numpy(), reference.forward(w, points[0].numpy(), batch_norm == "train")[0], rtol=1e-10
    )
    left_alone = (
        np.array_equal(net[1].running_mean.numpy(), w["mean"]) and int(net[1].num_batches_tracked) == 0
    )
    assert left_alone == (batch_norm == "eval")
    assert all(module.training == before for module in net.modules())


class _Table(nn.Module):
    """logits = (x·W) in a dtype, W such that they are what is asked for at x = unit vectors."""

    def __init__(self, logits: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.dtype = nn.Parameter(logits.float()), dtype

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight).to(self.dtype)


EXTREME = torch.tensor(
    [
        [1e4, -1e4, 0.0],
        [-1e4, 1e4, -1e4],
        [1e4, 1e4, 1e4],
        [-1e4, -1e4, 1e4],
        [0.0, 0.0, 0.0],
        [7.0, -3.0, 6.5],
    ]
)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("text", ALL)
def test_extreme_logits_and_half_precision_stay_finite_and_right(text: str, dtype: torch.dtype) -> None:
    net, x, y = _Table(EXTREME, dtype), torch.eye(6), torch.tensor([1, 0, 2, 0, 1, 2])
    x_adv = x[[1, 0, 3, 2, 5, 4]]
    loss = objective(text)(net, x, y, Fixed(x_adv))
    loss.value.backward()
    assert loss.value.dtype == torch.float32
    assert net.weight.grad.isfinite().all()
    clean, attacked = (net(images).detach().double().numpy() for images in (x, x_adv))
    expected = {
        "standard": lambda: reference.cross_entropy(clean, y.numpy()),
        "trades": lambda: reference.trades(clean, attacked, y.numpy(), 6.0),
        "mart": lambda: reference.mart(clean, attacked, y.numpy(), 6.0),
    }.get(text, lambda: reference.cross_entropy(attacked, y.numpy()))()
    if text != "grad-align":
        # the reference takes the same rounded logits; the loss is computed in float32 (1e-7),
        # MART's log(1.0001 − p) at
        # p = 1 amplifies its rounding by 1e4
        assert loss.value.item() == pytest.approx(expected, rel=1e-5 if text != "mart" else 1e-4)
    else:
        assert loss.value.item() >= expected - 1e-2
    attack = InnerAttack(LINF, PGD(2, step=0.5), generator(0, "attack"), gradient_scale=1024.0)
    assert objective(text)(net, x, y, attack).value.isfinite()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("kind", ["ce", "kl", "margin"])
def test_steps_do_not_depend_on_the_gradient_scale(norm: str, kind: str) -> None:
    net, (x, y, _, _) = small_network(), _batch()
    attack = InnerAttack(ThreatModel(norm, 0.2), PGD(3, step=0.4))
    results = [
        replace(attack, gradient_scale=scale, generator=generator(3, "attack"))(
            net, x, y, Maximization(loss=kind, start="gaussian")
        )
        for scale in (1.0, 1024.0, 1e-3)
    ]
    # powers of two change nothing; 1e-3 rounds once (float64)
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=1e-10)


def test_the_gradient_scale_saves_float16_gradients() -> None:
    """Logits 1e-5·x in float16: the gradient, about 5e-6·1e-5, vanishes without a scale."""

    def model(x: Tensor) -> Tensor:
        z = (x.half() * 2**-10) * 2**-16
        return torch.stack([z.sum(1), -z.sum(1)], 1)

    x, y = torch.full((2, 4), 0.5), torch.tensor([0, 1])
    attack, inside = InnerAttack(LINF, PGD(1)), Maximization(start="none")
    assert torch.equal(attack(model, x, y, inside), x)
    moved = replace(attack, gradient_scale=2.0**14)(model, x, y, inside)
    torch.testing.assert_close(moved, torch.tensor([[0.4], [0.6]]).expand(2, 4))


@settings(max_examples=25)
@given(
    st.sampled_from(ATTACKING),
    st.sampled_from(["linf", "l2", "l1"]),
    st.floats(0, 1),
    st.integers(0, 3),
    st.integers(0, 10**6),
)
@example("n-fgsm", "l2", 0.0, 2, 0)
@example("fgsm-rs", "linf", 0.0, 2, 0)
@example("trades", "l1", 0.0, 2, 0)
def test_attacked_images_are_in_the_threat_model(
    text: str, norm: str, epsilon: float, steps: int, seed: int
) -> None:
    net, (x, y, _, _) = small_network(), _batch()
    attack = InnerAttack(ThreatModel(norm, epsilon), PGD(steps, step=0.4), generator(seed, "attack"))
    loss = objective(text)(net, x, y, attack)
    reach = 3.0 if text == "n-fgsm" else 1.0  # noise 2 + step 1
    assert loss.x_adv.min() >= 0
    assert loss.x_adv.max() <= 1
    assert (distance(loss.x_adv, x, norm) <= reach * epsilon + 1e-12).all()
    assert loss.value.isfinite()
    assert not loss.x_adv.requires_grad


def test_the_same_generator_gives_the_same_loss() -> None:
    x, y, _, _ = _batch()
    for text in ALL:
        values = []
        for noise in (1, 2):
            torch.manual_seed(noise)
            attack = InnerAttack(LINF, PGD(2, step=0.5), generator(0, "attack"))
            values.append(objective(text)(small_network(), x, y, attack).value)
        assert torch.equal(*values)


def test_fixed_repeats_a_loss_bit_by_bit() -> None:
    """What SAM and AWP rely on; grad-align's other points are repeated too."""
    x, y, _, _ = _batch()
    for text in ALL:
        attack = InnerAttack(LINF, PGD(2, step=0.5), generator(0, "attack"), batch_norm="eval")
        net = small_network()
        first = objective(text)(net, x, y, attack)
        again = objective(text)(net, x, y, Fixed(first.x_adv, first.random_point))
        assert torch.equal(first.value, again.value)
        assert torch.equal(first.x_adv, again.x_adv)
        assert (first.random_point is not None) == (text == "grad-align")
        assert isinstance(objective(text)(net, x, y, Fixed(first.x_adv)), ObjectiveValue)


def test_the_attack_sees_the_view_and_its_loss_float32() -> None:
    x, y = torch.rand(4, 3, generator=generator(0, "x")), torch.tensor([0, 1, 2, 0])
    net = small_network().float()
    calls: list[str] = []

    def half(model):  # type: ignore[no-untyped-def]
        assert not model.training  # a view may look at the mode: it is the attack's

        def viewed(x: Tensor) -> Tensor:
            calls.append("view")
            return model(x).half()

        return viewed

    def loss(logits: Tensor, y: Tensor, targets: Tensor | None) -> Tensor:
        calls.append(str(logits.dtype))
        return logits.logsumexp(1)

    InnerAttack(LINF, PGD(2, step=0.5), generator(0, "a"), view=half)(net, x, y, Maximization(loss=loss))
    assert calls == ["view", "torch.float32"] * 2
    calls.clear()
    InnerAttack(LINF, PGD(2, step=0.5), generator(0, "a"), view=half)(net, x, y, Maximization(loss="kl"))
    assert calls == ["view"] * 3


def test_grad_align_asks_for_weight_gradients_in_two_passes_only() -> None:
    net, (x, y, x_adv, point) = small_network(), _batch()
    asked: list[bool] = []
    net.register_forward_pre_hook(lambda *_: asked.append(any(p.requires_grad for p in net.parameters())))
    objective("grad-align")(net, x, y, Fixed(x_adv, point))
    assert asked == [False, True, True]


def test_zero_input_gradients_are_left_out_of_grad_align() -> None:
    net = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(net.weight)
    x, y = torch.rand(3, 2), torch.tensor([0, 1, 0])
    loss = objective("grad-align")(net, x, y, Fixed(x))
    loss.value.backward()
    assert loss.value.item() == pytest.approx(math.log(2))
    assert net.weight.grad.isfinite().all()


def test_cross_entropy_with_label_smoothing_only_in_the_training_loss() -> None:
    x, y, _, _ = _batch()
    for text in ATTACKING:
        results = [
            objective(text, smoothing)(
                small_network(), x, y, InnerAttack(LINF, PGD(2, step=0.5), generator(0, "attack"))
            )
            for smoothing in (0.0, 0.3)
        ]
        assert torch.equal(results[0].x_adv, results[1].x_adv)
        assert results[0].value != results[1].value


CANONICAL = {
    "standard": "standard",
    " PGD-AT ": "pgd-at",
    "pgd-at()": "pgd-at",
    "pgd-at(batch_norm=train)": "pgd-at",
    "pgd-at(batch_norm='eval')": "pgd-at(batch_norm=eval)",
    "trades(beta=6)": "trades",
    "trades(beta=6.0, batch_norm=eval)": "trades",
    "trades(beta = 1e0)": "trades(beta=1)",
    "trades(batch_norm=train,beta=.5)": "trades(batch_norm=train, beta=0.5)",
    "trades(beta=-0.0)": "trades(beta=0)",
    "fgsm-rs(step=1.25)": "fgsm-rs",
    "n-fgsm(step=2, noise=1)": "n-fgsm(noise=1, step=2)",
}


@pytest.mark.parametrize("text", CANONICAL)
def test_canonical_texts(text: str) -> None:
    assert str(objective(text)) == CANONICAL[text]
    assert objective(CANONICAL[text]) == objective(text)


@settings(max_examples=25)
@given(
    st.sampled_from(
        [(n, k) for n, e in OBJECTIVES.items() for k, v in e.defaults.items() if isinstance(v, float)]
    ),
    st.floats(1e-300, 1e300),
)
def test_texts_round_trip(which: tuple[str, str], value: float) -> None:
    name, key = which
    value = value if key != "step" else min(value, 2.0)
    once = objective(f"{name}({key}={value!r})")
    assert objective(str(once)) == once
    assert dict(once.parameters)[key] == value
    assert hash(once) == hash(objective(str(once)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pgdat", r"unknown objective 'pgdat'; did you mean 'pgd-at'\?; known are standard, pgd-at"),
        ("trade(beta=6)", r"unknown objective 'trade'; did you mean 'trades'"),
        (
            "trades(bta=6)",
            "trades has no setting 'bta'; did you mean 'beta'.; allowed are beta, batch_norm",
        ),
        ("standard(beta=6)", "standard has no setting 'beta'; allowed are none"),
        ("trades(beta=six)", "beta='six' in objective='trades.beta=six.': a finite number, such as 6.0"),
        ("trades(beta=-1)", "beta=-1 in the objective .*: a number >= 0"),
        ("mart(beta=nan)", "beta='nan' in objective=.*: a finite number"),
        ("mart(beta=1e999)", "beta=inf in objective=.*: a finite number"),
        ("fgsm-rs(step=0)", "step=0 of pgd: a number > 0, in units of ε"),
        ("n-fgsm(step=2.5)", "step=2.5 of pgd: at most 2"),
        ("pgd-at(batch_norm=evil)", "batch_norm='evil' .*: allowed are eval, train; did you mean 'eval'"),
        ("pgd-at(batch_norm=1)", "batch_norm=1 in objective=.*: a word, such as train"),
        ("trades(beta=6, beta=7)", "cannot read objective="),
        ("trades(6)", r"cannot read objective='trades\(6\)': write the objective as name"),
        ("trades(beta=6", "cannot read objective='trades"),
        ("trades(beta=__import__('os'))", "cannot read objective="),
        ("", "unknown objective ''"),
        (None, "cannot read objective=None"),
    ],
)
def test_bad_texts_are_one_line(text: str, message: str) -> None:
    with pytest.raises(CurvactError, match=message) as caught:
        objective(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan, "a", True])
def test_bad_label_smoothing(smoothing: float) -> None:
    with pytest.raises(CurvactError, match=r"label_smoothing=.* a number in \[0, 1\)"):
        objective("trades", smoothing)


def test_bad_settings_of_the_attack() -> None:
    net, (x, y, _, _) = small_network(), _batch()
    attack = InnerAttack(LINF, PGD(1))
    wrong_batch_norm = "batch_norm='evil' of a training attack: allowed are eval, train; did you mean 'eval'"
    for call, message in (
        (lambda: InnerAttack(LINF, PGD(1), gradient_scale=0.0), "gradient_scale=0.0"),
        (lambda: InnerAttack(LINF, PGD(1), batch_norm="evil"), wrong_batch_norm),
        (lambda: Maximization(batch_norm="evil"), wrong_batch_norm),
        (
            lambda: attack(net, x, y, Maximization(loss="kll")),
            "unknown loss 'kll' of a training attack; did you mean 'kl'",
        ),
        (
            lambda: attack(net, x, y, Maximization(start="gausian")),
            "start='gausian' .*did you mean 'gaussian'",
        ),
    ):
        with pytest.raises(CurvactError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert net.training
    assert all(p.requires_grad for p in net.parameters())


def _worst_half(model, x, y, attack, *, share=0.5, label_smoothing=0.0):  # type: ignore[no-untyped-def]
    """An objective from outside the package: cross-entropy on the attacked images with the highest
    loss.
    """
    inside = Maximization(start="none")
    x_adv = attack(model, x, y, inside)
    logits = model(x_adv)
    losses = nn.functional.cross_entropy(logits, y, reduction="none")
    value = losses.topk(max(1, int(share * len(y)))).values.mean()
    return ObjectiveValue(value, logits.detach(), x_adv, attack.cost(inside) + 1)


def test_an_objective_from_outside_the_package_trains() -> None:
    register_objective("worst", _worst_half)
    try:
        for name, message in (
            ("worst", "known already"),
            ("Worst half", "lower-case letters, digits and dashes"),
        ):
            with pytest.raises(CurvactError, match=message):
                register_objective(name, _worst_half)
        recipe = Recipe(objective="worst(share=0.25)", epochs=1, batch_size=16, attack="pgd-2")
        model = MiniResNet("silu", channels=1, width=2, generator=generator(0, "initialization"))
        start = [p.detach().clone() for p in model.parameters()]
        (epoch,) = fit(model, load("digits", train=32, validation=8, test=8), recipe, LINF)
        assert epoch.gradient_evaluations == 2 * 3
        assert any(not torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))
        with pytest.raises(CurvactError, match=r"worst has no setting 'part'.*allowed are share"):
            Recipe(objective="worst(part=1)")
    finally:
        del OBJECTIVES["worst"]


def _doubled(model, x, y, attack, factor=2.0):  # type: ignore[no-untyped-def]
    """A plain function: a loss and logits, and the attack without settings."""
    logits = model(attack(model, x, y))
    return factor * nn.functional.cross_entropy(logits, y), logits


def test_a_plain_function_is_an_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the loss of PGD-AT gives the weights of twice its learning rate, at its cost."""
    for name in ("doubled", "odd"):  # taken away afterwards
        monkeypatch.setitem(OBJECTIVES, name, OBJECTIVES["standard"])
        monkeypatch.delitem(OBJECTIVES, name)
    register_objective("doubled", _doubled)
    found = []
    for name, rate in (("doubled", 0.01), ("pgd-at(batch_norm=eval)", 0.02)):
        recipe = Recipe(
            objective=name,
            epochs=1,
            batch_size=16,
            attack="pgd-2",
            learning_rate=rate,
            weight_decay=0,
            perturbation="awp",
        )
        model = MiniResNet("silu", channels=1, width=2, generator=generator(0, "initialization"))
        (epoch,) = fit(model, load("digits", train=32, validation=8, test=8), recipe, LINF)
        found.append((epoch.gradient_evaluations, epoch.train_accuracy, list(model.parameters())))
    assert found[0][:2] == found[1][:2]
    for a, b in zip(found[0][2], found[1][2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    with pytest.raises(CurvactError, match=r"label_smoothing=0\.1: the objective 'doubled' does not take it"):
        Recipe(objective="doubled", label_smoothing=0.1)
    for wrong in (lambda model, x, y: 0, lambda model, x, y, attack, z: 0, 3):
        with pytest.raises(CurvactError, match="must take model, x, y, attack"):
            register_objective("wrong", wrong)  # type: ignore[arg-type]
    register_objective("odd", lambda model, x, y, attack: model(x).sum())
    with pytest.raises(CurvactError, match="the objective 'odd' returned Tensor"):
        objective("odd")(lambda x: x, torch.ones(1, 2), torch.tensor([0]), Fixed(torch.ones(1, 2)))  # type: ignore[arg-type]


def test_entries_describe_their_objectives() -> None:
    published = {"trades": {"beta": 6.0, "batch_norm": "eval"}, "mart": {"beta": 6.0, "batch_norm": "eval"}}
    published |= {"standard": {}, "pgd-at": {"batch_norm": "train"}}
    published |= {"fgsm-rs": {"step": 1.25, "batch_norm": "train"}}
    published |= {"n-fgsm": {"step": 1.0, "noise": 2.0, "batch_norm": "train"}}
    published |= {"grad-align": {"weight": 0.2, "step": 1.0, "batch_norm": "train"}}
    assert {name: OBJECTIVES[name].defaults for name in ALL} == published
    for name in ALL:
        assert OBJECTIVES[name].single_step == (name in ("fgsm-rs", "n-fgsm", "grad-align"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (2 * x - 1, y), "images of a training attack lie in"),
        (lambda x, y: (x * math.nan, y), "images of a training attack hold NaN"),
        (lambda x, y: (x, y - 100), "labels of a training attack lie in"),
        (lambda x, y: (x, y + 50), "labels of a training attack go up to"),
        (lambda x, y: (x, y[:1]), "labels of a training attack have shape"),
    ],
)
@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_a_training_attack_on_what_is_no_image_is_one_line(
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], message: str, loss: str
) -> None:
    x, y = torch.rand(4, 6), torch.tensor([0, 1, 2, 0])
    model = torch.nn.Linear(6, 3)
    attack = InnerAttack(ThreatModel("linf", "2/255"), PGD(2), generator(0, "attack"))
    with pytest.raises(CurvactError, match=message) as caught:
        attack(model, *change(x, y), Maximization(loss=loss))
    assert "\n" not in str(caught.value)
    unchecked = InnerAttack(attack.threat_model, PGD(2), generator(0, "attack"), check=False)
    again = InnerAttack(attack.threat_model, PGD(2), generator(0, "attack"))
    maximization = Maximization(loss=loss)
    assert torch.equal(unchecked(model, x, y, maximization), again(model, x, y.int(), maximization))


def test_settings_of_an_objective_may_be_true_or_false() -> None:
    seen: list[object] = []

    def flagged(model, x, y, attack, *, flag=True, share=0.5):  # type: ignore[no-untyped-def]
        seen.append(flag)
        logits = model(x)
        return nn.functional.cross_entropy(logits, y), logits

    register_objective("flagged", flagged)
    try:
        chosen = objective("flagged(flag=False)")
        assert str(chosen) == "flagged(flag=False)"
        assert str(objective("flagged(flag=True)")) == "flagged"
        chosen(small_network(), *_batch()[:2], InnerAttack(LINF, PGD(1)))
        assert seen == [False]
        with pytest.raises(
            CurvactError, match=r"flag=0 in objective='flagged.flag=0.': True or False, such as True"
        ):
            objective("flagged(flag=0)")
        with pytest.raises(
            CurvactError, match="the setting rate=None of the objective 'other': its default value"
        ):
            register_objective("other", lambda model, x, y, attack, rate=None: None)  # type: ignore[arg-type]
    finally:
        del OBJECTIVES["flagged"]


@pytest.mark.parametrize("whole", [True, False])
def test_a_loss_without_weights_is_refused(whole: bool) -> None:
    """Torch would say: element 0 of tensors does not require grad."""

    @torch.no_grad()
    def blind(model, x, y, attack):  # type: ignore[no-untyped-def]
        logits = model(x)
        loss = nn.functional.cross_entropy(logits, y)
        return ObjectiveValue(loss, logits, x, 1) if whole else (loss, logits)

    register_objective("blind", blind)
    try:
        with pytest.raises(
            CurvactError, match="the loss of the objective 'blind' depends on no weight"
        ) as caught:
            objective("blind")(small_network(), *_batch()[:2], InnerAttack(LINF, PGD(1)))
        assert "\n" not in str(caught.value)
    finally:
        del OBJECTIVES["blind"]
