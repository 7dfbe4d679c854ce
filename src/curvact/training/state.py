"""The whole state of a run as one file without pickles: plain values and tensors in safetensors."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from curvact.errors import CurvactError
from curvact.files import atomic_write
from curvact.models.hashing import from_safetensors, to_safetensors


class DamagedStateWarning(UserWarning):
    """The state of a run is damaged, so that it goes on from an earlier one, or starts anew."""


def save_state(path: Path, tree: object) -> None:
    """Write a tree of dicts, lists, tuples, tensors and plain values, whole or not at all.

    Keys: text or whole numbers. Plain values: those of JSON, and infinities. The file has a checksum in
    its header.

    >>> import tempfile, torch
    >>> file = Path(tempfile.mkdtemp()) / "state.safetensors"
    >>> save_state(file, {"weights": [torch.ones(2)], 3: {"rate": 0.1}, "none": None})
    >>> load_state(file)
    {'weights': [tensor([1., 1.])], 3: {'rate': 0.1}, 'none': None}
    """
    tensors: dict[str, Tensor] = {}
    plain = _flatten(tree, tensors)
    atomic_write(path, to_safetensors(tensors, tree=json.dumps(plain)))


def replace_state(path: Path, tree: object) -> None:
    """Write a state as `save_state` does, and keep the one before it, for `latest_state`.

    A file system without hard links keeps none.
    """
    if path.exists():
        before = _before(path)
        with contextlib.suppress(OSError):
            before.unlink(missing_ok=True)
            os.link(path, before)
    save_state(path, tree)


def latest_state(path: Path) -> Any:
    """The tree of a run's state; where it is damaged, that of the state before it, with a warning.

    None where there is no state, and, with a warning, where none can be read.
    """
    problem = ""
    for file in (path, _before(path)) if path.exists() else ():
        try:
            tree = load_state(file)
        except CurvactError as error:
            problem = problem or str(error)
            continue
        if problem:
            warnings.warn(f"{problem}: going on from {file}", DamagedStateWarning, stacklevel=2)
        return tree
    if problem:
        warnings.warn(f"{problem}: the run starts anew", DamagedStateWarning, stacklevel=2)
    return None


def remove_state(path: Path) -> None:
    """Remove a state, and the one before it."""
    for file in (_before(path), path):
        file.unlink(missing_ok=True)


def _before(path: Path) -> Path:
    """The file of the state before that in `path`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def load_state(path: Path) -> Any:
    """The tree of a file; CurvactError if it is missing, truncated, damaged or no such file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CurvactError(f"no state file {path}") from None
    except OSError as error:
        raise CurvactError(f"cannot read {path}: {error.strerror}") from None
    try:
        tensors, about = from_safetensors(content)
        return _restore(json.loads(about["tree"]), tensors)
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise CurvactError(
            f"the state file {path} is truncated or damaged ({len(content)} bytes; "
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
