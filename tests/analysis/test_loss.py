"""The loss as an object: what it accepts, what it computes, and that the model stays as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.analysis import Loss, diagonal_norms
from curvact.errors import CurvactError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Softplus(), nn.Linear(4, 2)
    ).double()
    x = torch.randn(7, 3, generator=seeded(1), dtype=torch.float64)
    return model, x, torch.arange(7) % 2


def test_value_and_gradient_are_those_of_autograd_in_the_mode_of_the_loss() -> None:
    model, x, y = problem()
    model[2].p = 0.0
    for training in (False, True):
        model.train(training)
        buffers = [b.clone() for b in model.buffers()]
        value = F.cross_entropy(model(x), y)
        rows = torch.autograd.grad(value, list(model.parameters()))
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        model.train(not training)
        mean, gradient = Loss(model, x, y, training=training).gradient()
        assert mean == pytest.approx(value.item(), rel=1e-12)
        torch.testing.assert_close(
            gradient, torch.cat([row.reshape(-1) for row in rows]), rtol=1e-10, atol=1e-14
        )
        assert model.training is not training
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))


def test_a_loss_for_each_example_is_averaged_and_a_scalar_one_is_taken_as_it_is() -> None:
    model, x, y = problem()
    each = Loss(
        model, x, y, loss=lambda out, target: F.cross_entropy(out, target, reduction="none"), batch_size=3
    )
    mean = Loss(model, x, y, batch_size=3)
    assert each.gradient()[0] == pytest.approx(mean.gradient()[0], rel=1e-12)
    torch.testing.assert_close(each.gradient()[1], mean.gradient()[1])
    out = model.eval()(x)
    torch.testing.assert_close(mean.each(out, y), each.each(out, y), rtol=0, atol=0)
    with pytest.raises(CurvactError, match=r"one number for each example, shape \(7,\)"):
        Loss(model, x, y, loss=F.nll_loss).each(out, y)


def test_the_loss_follows_the_model() -> None:
    model, x, y = problem()
    loss = Loss(model, x, y)
    before = loss.gradient()[0]
    with torch.no_grad():
        for tensor in (*model.parameters(), model[1].running_mean):
            tensor += 0.3
    assert loss.gradient()[0] == Loss(model, x, y).gradient()[0] != before


def test_parts_of_a_vector_and_more_excluded_parameters() -> None:
    model, x, y = problem()
    loss = Loss(model, x, y, exclude=["0.bias"])
    assert list(loss.parameters) == ["0.weight", "1.weight", "1.bias", "4.weight", "4.bias"]
    less = loss.excluding(lambda name: name.startswith("1."))
    assert (loss.size, less.size) == (30, 22)
    _, gradient = loss.gradient()
    parts, fewer = loss.by_parameter(gradient), less.by_parameter(less.gradient()[1])
    assert {name: part.shape for name, part in parts.items()} == {
        n: p.shape for n, p in loss.parameters.items()
    }
    assert list(fewer) == ["0.weight", "4.weight", "4.bias"]
    assert all(torch.equal(part, parts[name]) for name, part in fewer.items())


class Shrinking:
    """Batches that are not the same a second time."""

    size = 4

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.size -= 1
        yield torch.ones(self.size, 3), torch.zeros(self.size, dtype=torch.int64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": F.relu}, "must be an nn.Module"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"x": None}, "give x and y, or batches"),
        ({"x": 3.0}, "x in Loss is a float"),
        ({"y": torch.tensor(1)}, "y in Loss is one number"),
        ({"batches": []}, "batches together with x"),
        ({"x": None, "y": None, "batches": []}, "no images"),
        ({"x": None, "y": None, "batches": iter([])}, "can be read once"),
        ({"x": None, "y": None, "batches": [torch.ones(2, 3)]}, "no pair of tensors"),
        ({"x": None, "y": None, "batches": Shrinking()}, "3 images at first and 2 later"),
        ({"exclude": ["weigth"]}, "did you mean 'weight'"),
        ({"exclude": "weight"}, "exclude='weight'"),
        ({"exclude": ["weight", "bias"]}, "no parameters left"),
        ({"loss": lambda out, y: out}, r"loss of shape \(4, 2\)"),
        ({"loss": lambda out, y: out.detach().sum()}, "does not depend"),
        ({"y": torch.zeros(3)}, "4 inputs and 3 targets"),
        ({"x": torch.ones(0, 3), "y": torch.zeros(0)}, "at least 1"),
    ],
)
def test_bad_input_is_named(options: dict[str, object], message: str) -> None:
    given = {
        "model": nn.Linear(3, 2),
        "x": torch.ones(4, 3),
        "y": torch.zeros(4, dtype=torch.int64),
        **options,
    }
    with pytest.raises(CurvactError, match=message) as error:
        diagonal_norms(Loss(**given), generator=seeded())  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_rows_of_another_length_are_refused() -> None:
    model, x, y = problem()
    with pytest.raises(CurvactError, match=r"rows of shape \(3,\) in Loss.hessian: it must be \(K, 34\)"):
        Loss(model, x, y).hessian(torch.ones(3))
