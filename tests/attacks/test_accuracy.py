"""Clean and robust accuracy, counted by hand, and what is no image or no answer."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from curvact.attacks import PGD, Model, SuspectModelWarning, ThreatModel, accuracy
from curvact.errors import CurvactError


def _linear(classes: int = 3, size: int = 6) -> nn.Module:
    g = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, classes)).double()
    with torch.no_grad():
        model[1].weight.normal_(generator=g)
        model[1].bias.zero_()
    return model


def test_accuracy_counts() -> None:
    model = _linear(3, 6).float()
    model.train()
    x = torch.rand(10, 1, 2, 3)
    y = model(x).argmax(1)
    y[:2] = (y[:2] + 1) % 3
    result = accuracy(model, x, y, lambda m, a, b: 1 - a, batch_size=3)
    assert result.clean == pytest.approx(0.8)
    expected = ((model(1 - x).argmax(1) == y) & (model(x).argmax(1) == y)).float().mean()
    assert result.robust == pytest.approx(float(expected))
    assert torch.equal(result.x_adv, 1 - x)
    assert torch.equal(result.clean_correct, model(x).argmax(1) == y)
    assert torch.equal(result.robust_correct, (model(1 - x).argmax(1) == y) & result.clean_correct)
    assert model.training


def test_not_a_number_counts_as_wrong_and_is_said() -> None:
    """NaN logits in the second batch, and for the attacked image of the third: argmax would name
    class 0.
    """

    def model(x: Tensor) -> Tensor:
        value = x.flatten(1)[:, 0]
        bad = torch.where((value > 0.4) & (value < 0.6), torch.nan, 1.0)
        return torch.stack([bad, -bad], 1)

    x = torch.tensor([0.0, 0.5, 0.9]).view(3, 1, 1, 1)
    with pytest.warns(SuspectModelWarning, match="2 of 3 images have logits with NaN"):
        result = accuracy(
            model, x, torch.zeros(3, dtype=torch.int64), lambda m, a, b: (a - 0.4).clamp_min(0), batch_size=1
        )
    assert result.clean_correct.tolist() == [True, False, True]
    assert result.robust_correct.tolist() == [True, False, False]


def _five(x: Tensor) -> Tensor:
    return 5 * x.flatten(1)


def _attack(change: Callable[[Tensor], object]) -> Callable[..., object]:
    return lambda model, x, y: change(x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.index_fill(0, torch.tensor([1]), math.nan), "at 1 of 2: image 1 is NaN"),
        (lambda x: x - 0.51, r"at 2 of 2: image 0 lies 0\.41 outside of linf ε = 0\.1 in \[0, 1\]"),
        (
            lambda x: x + torch.tensor([0.15, 0.3]).view(2, 1, 1, 1),
            r"at 2 of 2: image 0 lies 0\.05 outside of linf ε = 0\.1",
        ),
        (lambda x: x + 0.102, "image 0 lies 0.002 outside of linf ε = 0.1"),
        (lambda x: x[:1], r"images of shape \(1, 1, 1, 2\) for \(2, 1, 1, 2\)"),
        (lambda x: x.double(), "images of dtype torch.float64 for torch.float32"),
        (lambda x: x.to("meta"), "images of device meta for cpu"),
        (lambda x: x.numpy(), "returned a ndarray"),
        (lambda x: None, "returned a NoneType"),
    ],
)
def test_an_attack_that_leaves_the_allowed_images_is_refused(
    change: Callable[[Tensor], object], message: str
) -> None:
    x, y = torch.full((2, 1, 1, 2), 0.5), torch.tensor([0, 0])
    with pytest.raises(CurvactError, match=message) as caught:
        accuracy(_five, x, y, _attack(change), ThreatModel("linf", 0.1))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_without_a_threat_model_the_box_still_holds() -> None:
    x, y = torch.full((3, 2), 0.5), torch.tensor([0, 0, 0])
    accuracy(_five, x, y, _attack(lambda x: x + 0.5 + 6e-8))  # type: ignore[arg-type]
    with pytest.raises(CurvactError, match=r"lies 0.01 outside of \[0, 1\]"):
        accuracy(_five, x, y, _attack(lambda x: x + 0.51))  # type: ignore[arg-type]


def test_the_attack_cannot_change_images_nor_mode() -> None:
    model, x = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.9)), torch.full((4, 2), 0.5)

    def careless(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        model.train()
        return x.fill_(0.0)

    with pytest.raises(CurvactError, match=r"lies 0\.4 outside"):
        accuracy(model, x, torch.zeros(4).long(), careless, ThreatModel("linf", 0.1))  # type: ignore[arg-type]
    found = accuracy(model, x, model.eval()(x).argmax(1), careless)  # type: ignore[arg-type]
    assert found.clean == 1
    expected = (model.eval()(torch.zeros(4, 2)).argmax(1) == model(x).argmax(1)).float().mean()
    assert found.robust == float(expected)
    assert bool((x == 0.5).all())


def test_attacks_by_name_as_values_and_as_functions() -> None:
    model, x = _linear(3, 6).float(), torch.rand(20, 6, generator=torch.Generator().manual_seed(0))
    y, threat = model(x).argmax(1), ThreatModel("linf", "240/255")
    torch.manual_seed(0)
    by_name = accuracy(model, x, y, "pgd-3", threat)
    torch.manual_seed(0)
    by_value = accuracy(model, x, y, PGD(3), threat)
    torch.manual_seed(0)
    assert torch.equal(accuracy(model, x, y, PGD(3).on(threat)).x_adv, by_value.x_adv)
    assert torch.equal(by_name.x_adv, by_value.x_adv)
    assert by_name.robust < 1
    for attack in ("pgd-3", PGD(3)):
        with pytest.raises(CurvactError, match="pgd-3 of accuracy needs a threat model"):
            accuracy(model, x, y, attack)


def test_progress_after_each_batch() -> None:
    """A model right on all but the fifth image, and an attack that turns the first of each batch."""
    x = torch.zeros(8, 1, 1, 2)
    x[:, 0, 0, 0] = 1
    y = torch.tensor([0, 0, 0, 0, 1, 0, 0, 0])
    told: list[tuple[int, float]] = []

    def turn(model: Model, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x[:1].flip(-1), x[1:]])

    result = accuracy(
        lambda x: 5 * x.flatten(1), x, y, turn, batch_size=3, on_batch=lambda *so_far: told.append(so_far)
    )
    assert told == [(3, 2 / 3), (6, 3 / 6), (8, 4 / 8)]
    assert told[-1][1] == result.robust


def _accuracy_of(**changes: object) -> object:
    settings = {"x": torch.rand(2, 6), "y": torch.tensor([0, 1]), "attack": lambda m, x, y: x, **changes}
    return accuracy(_linear(3, 6).float(), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 6, dtype=torch.uint8)}, "images of accuracy are torch.uint8"),
        ({"x": torch.rand(2, 6) + 1}, "images of accuracy lie in"),
        ({"x": torch.rand(0, 6), "y": torch.zeros(0, dtype=torch.int64)}, "0 images"),
        ({"y": torch.tensor([0.0, 1.0])}, "labels of accuracy are torch.float32"),
        ({"y": torch.tensor([0])}, r"labels of accuracy have shape \(1,\)"),
        ({"y": torch.tensor([0, 9])}, "labels of accuracy go up to 9, the model has 3 classes"),
        ({"y": torch.tensor([0, -1])}, "labels of accuracy lie in -1"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_input_is_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CurvactError, match=message) as caught:
        _accuracy_of(**changes)
    assert "\n" not in str(caught.value)


def test_outputs_that_are_no_logits_are_refused() -> None:
    with pytest.raises(CurvactError, match=r"outputs have shape \(3,\)"):
        accuracy(lambda x: x[:, 0], torch.rand(3, 4), torch.zeros(3).long(), lambda m, x, y: x)


class _Stubborn(nn.Linear):
    def train(self, mode: bool = True) -> nn.Linear:
        return self


def test_suspect_models_are_warned_of() -> None:
    x, y, linear = torch.rand(6, 4), torch.zeros(6, dtype=torch.int64), nn.Linear(4, 3)
    with pytest.warns(SuspectModelWarning, match="probabilities"):
        accuracy(lambda x: linear(x).softmax(1), x, y, lambda m, x, y: x)
    with (
        pytest.warns(SuspectModelWarning, match="hold NaN"),
        pytest.warns(SuspectModelWarning, match="6 of 6 images have logits with NaN"),
    ):
        accuracy(lambda x: linear(x) * math.nan, x, y, lambda m, x, y: x)
    with pytest.warns(SuspectModelWarning, match="training mode"):
        accuracy(_Stubborn(4, 3), x, y, lambda m, x, y: x)
    accuracy(nn.Linear(4, 3).train(), x, y, lambda m, x, y: x)  # no warning: accuracy sets eval mode itself
