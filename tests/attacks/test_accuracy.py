"""Clean and robust accuracy, counted by hand, and what is no image or no answer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from curvact.attacks import (
    Model,
    SuspectModelWarning,
    accuracy,
)
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


@pytest.mark.parametrize("bad", [math.nan, -0.01, 1.01])
def test_what_is_no_image_is_no_success(bad: float) -> None:
    x, y = torch.full((2, 1, 1, 2), 0.5), torch.tensor([0, 0])
    attacked = x.clone()
    attacked[1, 0, 0, 1] = bad

    def model(x: Tensor) -> Tensor:
        wrong = ~((x >= 0) & (x <= 1)).all(-1).flatten()
        return torch.stack([5 - 10 * wrong.float(), torch.zeros(len(x))], 1)

    with pytest.warns(SuspectModelWarning, match=r"1 of 2 images left \[0, 1\] or became NaN"):
        result = accuracy(model, x, y, lambda m, a, b: attacked)
    assert result.robust == 1


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
        ({"x": torch.zeros(2, 6, dtype=torch.uint8)}, "images are torch.uint8"),
        ({"x": torch.rand(2, 6) + 1}, "images lie in"),
        ({"x": torch.rand(0, 6), "y": torch.zeros(0, dtype=torch.int64)}, "0 images"),
        ({"y": torch.tensor([0, 1], dtype=torch.int32)}, "labels are torch.int32: int64"),
        ({"y": torch.tensor([0])}, r"y has shape \(1,\)"),
        ({"y": torch.tensor([0, 9])}, "labels lie in 0 … 9, the model has 3 classes"),
        ({"y": torch.tensor([0, -1])}, "labels lie in -1"),
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
