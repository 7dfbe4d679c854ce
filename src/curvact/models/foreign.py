"""Classifiers that others built, as modules from images in [0, 1] to one tensor of logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.errors import CurvactError
from curvact.models.layers import Normalize
from curvact.names import shortened


class Foreign(nn.Module):
    """A wrapped classifier, made by `logits_of`.

    model: the classifier. normalize: the layer before it. size: height and width to which images
    are resized, or None.
    """

    def __init__(self, model: nn.Module, normalize: nn.Module, size: tuple[int, int] | None) -> None:
        super().__init__()
        self.normalize = normalize
        self.model = model
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if self.size is not None and x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=True)
        x = self.normalize(x)
        weight = next((p for p in self.model.parameters() if p.is_floating_point()), x)
        logits = _logits(self.model(x.to(weight.dtype)), type(self.model).__name__)
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

    def extra_repr(self) -> str:
        return "" if self.size is None else f"size={self.size[0]}×{self.size[1]}"


def logits_of(
    model: nn.Module,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | tuple[int, int] | None = None,
) -> Foreign:
    """Any image classifier as a module from N×C×H×W in [0, 1] to N×classes logits, in eval mode.

    model: returns the logits, a tuple that begins with them, or an object or dict with `logits`
        (Hugging Face). It is not copied: it goes into eval mode and becomes `model` of the result.
        It gets images in its own dtype. Logits in half precision are returned as float32.
    mean, std: the normalization of its training images, one number for each channel. It becomes
        part of the model, so that ε is in units of [0, 1]. None: the constants that the model
        carries (`pretrained_cfg` of timm), else no normalization. Hugging Face keeps them in the
        image processor (`image_mean`, `image_std`). With three constants, grey images get three
        channels.
    size: height and width that the model needs (one number for both). Other images are resized
        inside the model, bilinear with antialiasing, so that ε is in the pixels of the data set.
    Raises CurvactError for a mean without a std, constants that do not fit, a size < 1, and, at the
    first call, for outputs without logits.

    >>> from types import SimpleNamespace
    >>> class Theirs(torch.nn.Linear):
    ...     def forward(self, x):
    ...         return SimpleNamespace(logits=super().forward(x.flatten(1)), loss=None)
    >>> model = logits_of(Theirs(3 * 8 * 8, 10), mean=[0.5] * 3, std=[0.25] * 3, size=8)
    >>> model(torch.rand(2, 3, 32, 32)).shape, model.training
    (torch.Size([2, 10]), False)
    """
    if not isinstance(model, nn.Module):
        raise CurvactError(f"logits_of got {type(model).__name__}: it takes a torch.nn.Module")
    if (mean is None) != (std is None):
        raise CurvactError(
            f"logits_of got mean={shortened(mean)}, std={shortened(std)}: give both or neither"
        )
    if mean is None or std is None:
        mean, std = carried_constants(model)
    if size is not None and not isinstance(size, (int, tuple, list)):
        raise CurvactError(
            f"logits_of got size={shortened(size)}: give a whole number >= 1, or (height, width)"
        )
    shape = None if size is None else (size, size) if isinstance(size, int) else tuple(size)
    if shape is not None and (len(shape) != 2 or not all(isinstance(s, int) and s >= 1 for s in shape)):
        raise CurvactError(
            f"logits_of got size={shortened(size)}: give a whole number >= 1, or (height, width)"
        )
    normalize = nn.Identity() if mean is None or std is None else Normalize(mean, std, grey=True)
    weight = next(model.parameters(), None)
    if weight is not None:
        normalize.to(weight.device)
    return Foreign(model, normalize, shape).eval()


def carried_constants(model: nn.Module) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """Mean and std in the configuration that timm's models carry."""
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, Mapping):
        return None, None
    return config.get("mean"), config.get("std")


def _logits(outputs: Any, name: str) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        found = outputs.get("logits")
        holds = "keys " + ", ".join(map(str, outputs))
    elif hasattr(outputs, "logits"):
        found, holds = outputs.logits, "logits that are no tensor"
    else:
        found = outputs[0] if isinstance(outputs, (tuple, list)) and outputs else None
        holds = "no logits"
    if not isinstance(found, Tensor):
        raise CurvactError(
            f"{name} returns {type(outputs).__name__} with {holds}: logits_of takes a tensor, a tuple that "
            "begins with one, or an object or dict with `logits`"
        )
    return found
