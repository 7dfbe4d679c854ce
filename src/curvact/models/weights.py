"""A network's weights as safetensors, and the network again from them: what checkpoints and published folders share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from curvact.errors import CurvactError
from curvact.models import build

TOLD = ("run", "trial", "epoch", "data", "threat_model", "activation_from")
"""What a checkpoint's JSON may say of its weights besides `architecture`."""

_LONGEST = 300


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's tensors on the CPU, as safetensors takes them.

    >>> sorted(state_of(nn.Linear(2, 2)))
    ['bias', 'weight']
    """
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; CurvactError if it is truncated or no such file."""
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise CurvactError(f"cannot read {path}: {error.strerror}") from None
    except SafetensorError as error:
        raise CurvactError(
            f"the weights {path} are truncated or damaged ({path.stat().st_size} bytes; {error}): write them again"
        ) from None


def read_sidecar(path: str | Path) -> dict[str, Any]:
    """What the JSON beside a checkpoint says: `architecture`, and whatever was written with it."""
    sidecar = Path(path).with_suffix(".json")
    if not sidecar.is_file():
        raise CurvactError(f"no checkpoint file {sidecar}")
    try:
        content = json.loads(sidecar.read_text())
        if not isinstance(content["architecture"], dict):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise CurvactError(
            f"the checkpoint's description {sidecar} is not readable JSON with an 'architecture'"
        ) from None
    return dict(content)


def rebuild(
    architecture: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str, *, keep_types: bool = False
) -> nn.Module:
    """The model of these arguments of `curvact.models.build` with these weights, in eval mode.

    keep_types: in the floating-point types of the weights; without it in float32, as the images of the data sets are.
    The arguments may come from anyone: whatever is wrong with them is a CurvactError in one line, which begins with `where`.

    >>> arguments = {"name": "mini_resnet", "width": 2}
    >>> rebuild(arguments, state_of(build(**arguments)), "here").training
    False
    >>> rebuild({"width": 2}, {}, "here")
    Traceback (most recent call last):
        ...
    curvact.errors.CurvactError: here: the architecture lacks its name
    """
    arguments = dict(architecture)
    if not isinstance(arguments.get("name"), str):
        raise CurvactError(f"{where}: the architecture lacks its name")
    try:
        model = build(**arguments)
        for name, place in model.state_dict(keep_vars=True).items() if keep_types else ():
            if name in tensors and place.is_floating_point() and tensors[name].is_floating_point():
                place.data = place.data.to(tensors[name].dtype)
        model.load_state_dict(dict(tensors))
    except CurvactError as error:
        raise CurvactError(f"{where}: {error}") from None
    except (RuntimeError, TypeError, ValueError, AttributeError, ArithmeticError, MemoryError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        short = why if len(why) <= _LONGEST else f"{why[:_LONGEST]}…"
        raise CurvactError(f"{where} does not fit its architecture: {short}") from None
    return model.eval()
