"""A module's training mode and gradient flags, changed for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from curvact.errors import CurvactError


@contextmanager
def mode(model: Callable[[Tensor], Tensor], training: bool) -> Iterator[None]:
    """The model in training or evaluation mode inside; every submodule's own mode is restored
    after.

    A callable that is no `nn.Module` has no mode and is left alone.

    >>> model = nn.Dropout()
    >>> with mode(model, training=False):
    ...     model.training
    False
    >>> model.training
    True
    """
    before = {module: module.training for module in model.modules()} if isinstance(model, nn.Module) else {}
    if isinstance(model, nn.Module):
        model.train(training)
    try:
        yield
    finally:
        for module, was in before.items():
            module.training = was


@contextmanager
def frozen(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """No parameter of the model requires a gradient inside; the flags are restored after.

    CurvactError for a model that was made in torch's inference mode: autograd takes none of its
    tensors.
    """
    trained = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    if any(p.is_inference() for p in trained):
        raise CurvactError("the parameters of the model were made in inference mode: make the model outside")
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
