"""The outputs of a model that a data set has classes for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from curvact.errors import CurvactError
from curvact.names import shortened


class SelectedOutputs(nn.Module):
    """A model with a part of its outputs, made by `select_outputs`.

    model: the whole model. outputs: int64, the outputs that are kept, in the order of the classes.
    It is a buffer, so that the hash of the model's weights depends on it.
    """

    outputs: Tensor

    def __init__(self, model: nn.Module, outputs: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.last = max(outputs)
        self.register_buffer("outputs", torch.tensor(outputs, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        if logits.dim() != 2 or logits.shape[1] <= self.last:
            raise CurvactError(
                f"the model gives outputs of shape {tuple(logits.shape)}: it has no output {self.last}, "
                "which was selected"
            )
        return logits.index_select(1, self.outputs)

    def extra_repr(self) -> str:
        return f"{len(self.outputs)} outputs, up to {self.last}"


def select_outputs(model: nn.Module, outputs: Sequence[int] | Tensor) -> SelectedOutputs:
    """The model with these of its outputs alone, one for each class of a data set.

    A model of 1,000 classes can so be attacked and evaluated on data with ten of them. Attack,
    loss and accuracy know the selected outputs only: the question is which of the ten classes an
    image has.
    model: from N×C×H×W in [0, 1] to N×M logits. It is not copied, and keeps its mode.
    outputs: the output of class 0, of class 1, …, each once. `curvact.data.class_map` finds them by
        name, and `curvact.data.IMAGENETTE_OUTPUTS` are those of ImageNette in ImageNet.
    Raises CurvactError for fewer than two outputs, for one that is no whole number >= 0 or comes
    twice, and, at the first call, for one that the model does not have.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1000))
    >>> chosen = select_outputs(model, [0, 217, 482])
    >>> x = torch.rand(2, 1, 2, 2)
    >>> torch.equal(chosen(x), model(x)[:, [0, 217, 482]])
    True
    """
    given: Any = outputs
    if not isinstance(model, nn.Module) or not isinstance(given, Iterable) or isinstance(given, str):
        raise CurvactError(
            f"select_outputs got {shortened(model)}, {shortened(given)}: it takes an nn.Module and numbers of outputs"
        )
    numbers = given.tolist() if isinstance(given, Tensor) else list(given)
    chosen = [-1 if isinstance(o, bool) or not hasattr(o, "__index__") else int(o) for o in numbers]
    if len(chosen) < 2 or min(chosen) < 0 or len(set(chosen)) < len(chosen):
        shown = ", ".join(map(repr, numbers[:8])) + (", …" if len(numbers) > 8 else "")
        raise CurvactError(
            f"select_outputs got outputs [{shown}]: at least two whole numbers >= 0, each once"
        )
    selected = SelectedOutputs(model, chosen)
    selected.training = model.training
    weight = next(model.parameters(), None)
    return selected if weight is None else selected.to(weight.device)
