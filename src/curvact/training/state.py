"""The whole state of a run as one file without pickles: plain values and tensors in safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from curvact.errors import CurvactError
from curvact.files import atomic_write


def save_state(path: Path, tree: object) -> None:
    """Write a tree of dicts, lists, tuples, tensors and plain values, whole or not at all.

    Keys: text or whole numbers. Plain values: those of JSON, and infinities.

    >>> import tempfile, torch
    >>> file = Path(tempfile.mkdtemp()) / "state.safetensors"
    >>> save_state(file, {"weights": [torch.ones(2)], 3: {"rate": 0.1}, "none": None})
    >>> load_state(file)
    {'weights': [tensor([1., 1.])], 3: {'rate': 0.1}, 'none': None}
    """
    tensors: dict[str, Tensor] = {}
    plain = _flatten(tree, tensors)
    atomic_write(path, save(tensors, metadata={"tree": json.dumps(plain)}))


def load_state(path: Path, device: str = "cpu") -> Any:
    """The tree of a file; CurvactError if it is missing, truncated or no such file."""
    if not path.is_file():
        raise CurvactError(f"no state file {path}")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            tree = json.loads((file.metadata() or {})["tree"])
            return _restore(tree, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CurvactError(
            f"the state file {path} is truncated or damaged ({path.stat().st_size} bytes; "
            f"{' '.join(str(error).split())})"
        ) from None


def _flatten(tree: object, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        name = str(len(tensors))
        tensors[name] = tree.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(tree, dict):
        for key in tree:
            if isinstance(key, bool) or not isinstance(key, (str, int)):
                raise CurvactError(f"a state holds the key {key!r}: text or whole numbers only")
        return {"dict": [[key, _flatten(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [_flatten(value, tensors) for value in tree]}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise CurvactError(
        f"a state holds a {type(tree).__name__}: only dicts, lists, tensors and plain values can be kept"
    )


def _restore(plain: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _restore(value, tensors) for key, value in content}
    values = [_restore(value, tensors) for value in content]
    return tuple(values) if kind == "tuple" else values


def difference(theirs: object, ours: object) -> str:
    """Both values in brackets, if they are short."""
    short = not isinstance(ours, list) or len(ours) < 4
    return f" ({theirs!r} there, {ours!r} here)" if short else ""
