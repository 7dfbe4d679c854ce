"""HAT: its loss against float64 numpy, its helper, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curvact.attacks import PGD, ThreatModel
from curvact.data import load
from curvact.errors import CurvactError
from curvact.models import MiniResNet
from curvact.models.hashing import model_hash
from curvact.random import generator
from curvact.training import OBJECTIVES, Recipe, fit, objective, register_objective
from curvact.training.inner_attack import Fixed, InnerAttack

sys.path.insert(0, str(Path(__file__).parents[1] / "reference"))
import objectives as reference
from small_network import NAMES, small_network, weights_of

LINF = ThreatModel("linf", 0.2)


def _helper() -> nn.Sequential:
    """Another one, in training mode, that predicts several classes on the batch."""
    net = small_network("helper").eval()
    with torch.no_grad():
        net[3].bias -= net(_batch()[2]).mean(0)
    return net.train()


def _nan() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.constant_(net[1].bias, torch.nan)
    return net


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    x, x_adv = torch.rand(2, 8, 3, generator=generator(1, "batch"), dtype=torch.float64)
    return x, torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]), x_adv


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("beta", "gamma", "h"), [(2.5, 0.5, 2.0), (1.0, 0.25, 3.5)])
def test_the_loss_and_its_gradients(beta: float, gamma: float, h: float, smoothing: float) -> None:
    net, helper, (x, y, x_adv) = small_network("network"), _helper(), _batch()
    weights = weights_of(net)
    seen = reference.forward(weights_of(helper), x_adv.numpy(), False)[0].argmax(1)
    assert len(set(seen.tolist())) > 1
    assert (seen != y.numpy()).any()

    def value(w: Any) -> float:
        far = x.numpy() + h * (x_adv.numpy() - x.numpy())
        clean, attacked, beyond = (
            reference.forward(w, at, True)[0] for at in (x.numpy(), x_adv.numpy(), far)
        )
        labelled = reference.cross_entropy(beyond, seen, smoothing)
        return float(reference.trades(clean, attacked, y.numpy(), beta, smoothing) + gamma * labelled)

    loss = objective(f"hat(beta={beta}, gamma={gamma}, h={h})", smoothing).asking(helper)
    found = loss(net, x, y, Fixed(x_adv))
    found.value.backward()
    assert found.value.item() == pytest.approx(value(weights), rel=1e-12)  # float64 on both sides
    expected = reference.differences(value, weights, NAMES)
    for short, long in NAMES.items():
        got = net.get_parameter(long).grad.numpy()
        # central differences with h = 1e-6: good to some 1e-10 times the third derivatives
        np.testing.assert_allclose(got.T if short in "AB" else got, expected[short], rtol=1e-6, atol=1e-8)
    assert torch.equal(found.x_adv, x_adv)


def test_without_its_term_it_is_trades_bit_for_bit() -> None:
    grads = []
    for text, helper in (("hat(gamma=0)", _helper()), ("trades(beta=2.5)", None)):
        net, (x, y, _) = small_network("network"), _batch()
        attack = InnerAttack(ThreatModel("linf", 0.1), PGD(3, step=0.4), generator(0, "attack"))
        found = objective(text).asking(helper)(net, x, y, attack)
        found.value.backward()
        grads.append([found.value.detach(), found.x_adv, *(p.grad for p in net.parameters())])
    for ours, theirs in zip(*grads, strict=True):
        assert torch.equal(ours, theirs)


def test_the_helper_is_in_eval_mode_and_does_not_change() -> None:
    net, (x, y, x_adv) = small_network("network"), _batch()
    helper = _helper().train()
    before, modes = model_hash(helper), []
    helper.register_forward_hook(lambda module, args, out: modes.append((module.training, out.requires_grad)))
    objective("hat").asking(helper)(net, x, y, Fixed(x_adv)).value.backward()
    assert modes == [(False, False)]
    assert helper.training
    assert model_hash(helper) == before
    assert all(p.grad is None and p.requires_grad for p in helper.parameters())


def test_a_helper_of_ones_own_objective_does_not_change() -> None:
    """Also where the function forgets eval mode and no_grad, and where the helper works in place."""

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = _helper()

        def forward(self, x: Tensor) -> Tensor:
            return self.inside(x.sub_(0.1))

    net, (x, y, x_adv) = small_network("network"), _batch()
    helper, kept = InPlace().train(), x_adv.clone()
    before = model_hash(helper)
    objective("hat").asking(helper)(net, x, y, Fixed(x_adv)).value.backward()
    assert torch.equal(x_adv, kept)

    def distill(model, x, y, attack, helper):  # type: ignore[no-untyped-def]
        logits = model(attack(model, x, y))
        return nn.functional.mse_loss(logits, helper(x.clone())), logits

    register_objective("distill", distill)
    try:
        objective("distill").asking(helper)(net, x, y, Fixed(x_adv)).value.backward()
    finally:
        del OBJECTIVES["distill"]
    assert model_hash(helper) == before
    assert all(p.grad is None and p.requires_grad for p in helper.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_helper_without_finite_outputs_ends_training(value: float) -> None:
    net, helper, (x, y, x_adv) = small_network("network"), _helper(), _batch()
    with torch.no_grad():
        helper[3].bias[0] = value
    assert objective("hat").asking(helper)(net, x, y, Fixed(x_adv)).value.isnan()


def test_the_cost() -> None:
    assert OBJECTIVES["hat"].cost(10) == 13
    assert OBJECTIVES["hat"].defaults == {"beta": 2.5, "gamma": 0.5, "h": 2.0, "batch_norm": "eval"}
    net, (x, y, x_adv) = small_network("network"), _batch()
    assert objective("hat").asking(_helper())(net, x, y, Fixed(x_adv)).gradient_evaluations == 3


def _fit(recipe: Recipe, helper: Any, **options: Any) -> Any:
    model = MiniResNet("silu", channels=1, width=2, generator=generator(3, "start"))
    data = load("digits").first(train=64, validation=20)
    return fit(model, data, recipe, LINF, helper=helper, **options), model


def test_training_asks_the_helper() -> None:
    """Two helpers give two networks; one helper gives the same network twice."""
    recipe = Recipe(objective="hat", epochs=1, attack="pgd-1", batch_size=32)
    helpers = [MiniResNet("relu", channels=1, width=2, generator=generator(n, "helper")) for n in (0, 1, 0)]
    hashes = [model_hash(_fit(recipe, helper)[1]) for helper in helpers]
    assert hashes[0] == hashes[2] != hashes[1]


def test_with_awp_and_an_average_it_trains() -> None:
    recipe = Recipe(
        *("hat",), epochs=1, attack="pgd-1", batch_size=32, perturbation="awp", averaging="ema(decay=0.9)"
    )
    (epoch,), _ = _fit(recipe, MiniResNet("relu", channels=1, width=2))
    assert np.isfinite(epoch.loss)


@pytest.mark.parametrize(
    ("text", "helper", "message"),
    [
        ("hat", None, r"the objective 'hat' needs a helper, a trained network: fit\(…, helper=network\)"),
        ("trades", nn.Identity(), "helper: the objective 'trades' asks no second network"),
        ("hat", "runs/standard", r"helper='runs/standard': must be an nn\.Module"),
        ("hat", nn.Sequential(nn.Flatten(), nn.Linear(64, 9)), "helper: it has 9 outputs and the model 10"),
        ("hat", nn.Linear(3, 10), "helper: the model of fit fails on images"),
        ("hat", nn.Linear(64, 10, device="meta"), "helper: its weights are on the meta device"),
        ("hat", _nan(), "helper: its outputs at the first training image are not finite"),
    ],
)
def test_wrong_helpers_are_one_line(text: str, helper: Any, message: str) -> None:
    with pytest.raises(CurvactError, match=message) as caught:
        _fit(Recipe(objective=text, epochs=1, attack="pgd-1"), helper)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("activation", "number"), [("relu", 1), ("silu", 0)])
def test_another_helper_does_not_go_on(activation: str, number: int, tmp_path: Path) -> None:
    """Other weights, or the same weights in another network."""
    recipe = Recipe(objective="hat", epochs=1, attack="pgd-1", batch_size=32)
    helpers = [
        MiniResNet(name, channels=1, width=2, generator=generator(n, "helper"))
        for name, n in (("relu", 0), (activation, number))
    ]
    _fit(recipe, helpers[0], state=tmp_path / "state.safetensors")
    _fit(recipe, helpers[0], state=tmp_path / "state.safetensors")
    with pytest.raises(CurvactError, match="another helper"):
        _fit(recipe, helpers[1], state=tmp_path / "state.safetensors")


def test_the_trained_network_is_no_helper() -> None:
    recipe, model = Recipe(objective="hat", epochs=1, attack="pgd-1"), MiniResNet("silu", channels=1, width=2)
    data = load("digits").first(train=64, validation=20)
    for helper in (model, nn.Sequential(model)):
        with pytest.raises(CurvactError, match="helper: it shares weights with the network that is trained"):
            fit(model, data, recipe, LINF, helper=helper)


def test_a_function_of_ones_own_may_ask_a_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curvact.training.objectives.OBJECTIVES", dict(OBJECTIVES))

    def like_the_helper(model, x, y, attack, helper, weight=1.0):  # type: ignore[no-untyped-def]
        logits = model(attack(model, x, y))
        return weight * nn.functional.cross_entropy(logits, helper(x).argmax(1)), logits

    register_objective("like-the-helper", like_the_helper)
    net, helper, (x, y, x_adv) = small_network("network"), _helper().eval(), _batch()
    found = objective("like-the-helper(weight=2)").asking(helper)(net, x, y, Fixed(x_adv))
    expected = 2 * nn.functional.cross_entropy(net(x_adv), helper(x).argmax(1))
    assert torch.equal(found.value, expected)
