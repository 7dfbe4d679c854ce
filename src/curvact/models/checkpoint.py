"""Checkpoints: weights as safetensors, and a JSON file that says how to rebuild the model.

A checkpoint never holds a pickle. The JSON file is called the sidecar.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from torch import Tensor, nn
from torch.fx import GraphModule

from curvact.activations import Activation
from curvact.activations.arguments import module as check_module
from curvact.errors import CurvactError, short
from curvact.files import CHECKSUM, as_path, atomic_write, has_other_checksum, hash_of_file, with_checksum
from curvact.models.hashing import from_safetensors, to_safetensors
from curvact.models.registry import build, is_known, skeleton
from curvact.names import shortened

SIDECAR_KEYS = ("run", "epoch", "data", "threat_model", "activation_from", "imports")
"""Keys of a sidecar, beside `schema` and `architecture`, that published models keep."""

_LONGEST = 300


def save_checkpoint(
    path: str | Path, model: nn.Module, architecture: Mapping[str, Any], about: Mapping[str, Any]
) -> None:
    """Write the weights to `path` (safetensors) and the sidecar, each whole or not at all.

    architecture: `name` and the arguments of `curvact.models.build`. about: further entries of the
    sidecar, such as those in `SIDECAR_KEYS`.
    Raises CurvactError if `load_checkpoint` could not build this model again from the architecture:
    for a network that has no name (`register_model` gives one), for weights of other shapes, and
    for activations other than those that the architecture names.
    """
    path = as_path(path, "save_checkpoint")
    check_module(model, "save_checkpoint")
    for name, given in (("architecture", architecture), ("about", about)):
        if not isinstance(given, Mapping):
            raise CurvactError(f"{name}={shortened(given)} in save_checkpoint: it must be a dict")
    check_rebuilds(model, architecture)
    sidecar = {"schema": 1, "architecture": dict(architecture), **about}
    try:
        text = json.dumps(with_checksum(sidecar), indent=2, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise CurvactError(f"{path.with_suffix('.json')} cannot be written as JSON: {error}") from None
    atomic_write(path.with_suffix(".json"), text + "\n")
    atomic_write(path, to_safetensors(state_of(model)))


def check_rebuilds(model: nn.Module, architecture: Mapping[str, Any]) -> None:
    """CurvactError unless the architecture gives this model, up to its learned values."""
    where = f"cannot save this {type(model).__name__}"
    name, activation = architecture.get("name"), architecture.get("activation", "relu")
    if not is_known(name):
        raise CurvactError(
            f"{where}: no architecture is named {shortened(name)}; give its class a name by register_model, or keep "
            "its weights by torch.save(model.state_dict(), ...) and load them by load_checkpoint(path, model=...)"
        )
    if not isinstance(activation, str):
        raise CurvactError(
            f"{where}: activation={shortened(activation)} is no text; write its name, str(...)"
        )
    plan = skeleton(architecture)
    if plan is None:
        return
    wrong = misfits(dict(model.state_dict()), plan.state_dict())
    if wrong:
        raise CurvactError(f"{where}: its weights are not those of its architecture: {'; '.join(wrong)}")
    planned, inside = dict(plan.named_modules()), " "
    for place, module in model.named_modules():
        if place.startswith(inside):  # of an activation, whose parts may be frozen
            continue
        like = planned.get(place)
        inside = f"{place}." if isinstance(module, Activation) else inside
        if like is None or not _same_kind(like, module):
            article = "another" if type(like).__name__ == type(module).__name__ else "a"
            raise CurvactError(
                f"{where}: {place or 'it'} is a {type(module).__name__} and its architecture gives "
                f"{f'{article} {type(like).__name__}' if like is not None else 'none'} there"
            )
        if isinstance(module, Activation) and not module.state_dict() and repr(module) != repr(like):
            raise CurvactError(f"{where}: {place} is {module!r} and its architecture gives {like!r} there")


def _same_kind(one: nn.Module, other: nn.Module) -> bool:
    """Whether the classes are one; each GraphModule has a class of its own, so its code is compared."""
    if isinstance(one, GraphModule) and isinstance(other, GraphModule):
        return one.code == other.code
    return type(one) is type(other)


def misfits(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with weights, for a message: missing, unexpected, and of another shape."""
    shapes = [
        f"{name} {tuple(given[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    found = (
        ("missing", [name for name in wanted if name not in given]),
        ("unexpected", [name for name in given if name not in wanted]),
        ("wrong shape of", shapes),
    )
    return [f"{what} {some(names)}" for what, names in found if names]


def some(names: Iterable[str]) -> str:
    """The first three and how many more.

    >>> some("abcde")
    'a, b, c and 2 more'
    """
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def load_checkpoint(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The model of a checkpoint file, or of a run folder (its best weights), in eval mode.

    model: a network of yours, which gets the weights of the file, all or none; the file is then any
        file of `read_state_dict`, also of torch.save or Lightning. Its names may begin with
        "module.", "model." or the like. It is returned.
    Raises CurvactError for a file that is missing, truncated, or does not fit its architecture.

    >>> import tempfile
    >>> arguments = {"name": "mini_resnet", "activation": "silu", "width": 2, "channels": 1}
    >>> file = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> save_checkpoint(file, build(**arguments), arguments, {})
    >>> load_checkpoint(file).act
    swish(beta=1.0)
    >>> load_checkpoint(file, model=build(**arguments)).training
    False
    """
    path = find_weights(path)
    if model is not None:
        return _filled(model, path)
    architecture = read_sidecar(path)["architecture"]
    return rebuild(architecture, read_tensors(path), f"the checkpoint {path}")


def _filled(model: nn.Module, path: Path) -> nn.Module:
    from curvact.models.interchange import read_state_dict  # it imports this module

    if not isinstance(model, nn.Module):
        raise CurvactError(f"model={shortened(model)} of load_checkpoint: give an nn.Module")
    given, own = read_state_dict(path), model.state_dict()
    if own:
        first = next(iter(own))
        roots = {name.removesuffix(first) for name in given if name.endswith(first)}
        fits = [root for root in sorted(roots, key=len) if all(root + name in given for name in own)]
        if "" not in fits and len(fits) == 1:
            given = {name: given[fits[0] + name] for name in own}
    wrong = misfits(given, own)
    if wrong:
        raise CurvactError(f"the weights {path} do not fit this {type(model).__name__}: {'; '.join(wrong)}")
    model.load_state_dict(given)
    return model.eval()


def find_weights(path: str | Path) -> Path:
    """The file of weights: `path`, or best.safetensors (else model.safetensors) in that folder.

    Raises CurvactError if it does not exist.
    """
    path = folder = as_path(path, "a checkpoint")
    if path.name in ("best.safetensors", "last.safetensors"):
        folder = path.parent
    if path.is_dir():
        best, model = path / "best.safetensors", path / "model.safetensors"
        path = model if model.is_file() and not best.is_file() else best
    if not path.is_file():
        of_a_sweep = ("*/best.safetensors", "*/*/best.safetensors")
        below = sorted(file for pattern in of_a_sweep for file in folder.glob(pattern))
        hint = f"; there are {len(below)} below, such as {below[0].parent}" if below else ""
        raise CurvactError(f"no checkpoint file {path}{hint}")
    return path


def read_sidecar(path: str | Path) -> dict[str, Any]:
    """The content of the JSON file beside a checkpoint. `architecture` is always among its keys."""
    sidecar = Path(path).with_suffix(".json")
    if not sidecar.is_file():
        raise CurvactError(f"no checkpoint file {sidecar}")
    try:
        content = json.loads(sidecar.read_text())
        if not isinstance(content["architecture"], dict):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CurvactError(
            f"the checkpoint's description {sidecar} is not readable JSON with an 'architecture'"
        ) from None
    if has_other_checksum(content):
        raise CurvactError(
            f"the checkpoint's description {sidecar} is damaged: its checksum is not that of its content; write it "
            "again, or take the checksum out if you have changed it yourself"
        )
    return {key: value for key, value in content.items() if key != CHECKSUM}


class RunRecord(NamedTuple):
    """What a run measured on its weights. spec, environment: of the run, as in its JSON files.

    clean, robust: test accuracies of just these weights. attack, images: of that test.
    data_sha256: of each split.
    """

    spec: dict[str, Any]
    environment: dict[str, Any]
    clean: float
    robust: float
    attack: str
    images: int
    data_sha256: dict[str, str]


def read_run_record(weights: Path) -> RunRecord | None:
    """The record of the run that wrote this checkpoint, from the JSON files in the same folder.

    None if there is no record, or if it is damaged, or of other weights.
    """
    folder = weights.parent
    try:
        content = json.loads((folder / "record.json").read_text())
        metrics, files, spec = content["metrics"], content["files"], dict(content["spec"])
        if has_other_checksum(content) or files[weights.name] != hash_of_file(weights):
            return None
        last = files[weights.name] == files["last.safetensors"]
        prefix = "" if last else {"best": "best_"}[weights.stem]
        clean, robust = float(metrics[f"{prefix}clean_accuracy"]), float(metrics[f"{prefix}robust_accuracy"])
        environment = dict(json.loads((folder / "environment.json").read_text()))
        attack, images = str(spec["evaluation"]["attack"]), int(content["test_images"])
        return RunRecord(spec, environment, clean, robust, attack, images, dict(content["data_sha256"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. CurvactError if it cannot be read or is damaged."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CurvactError(f"cannot read {path}: {error.strerror}") from None
    refuse_page(path, content)
    try:
        return from_safetensors(content)[0]
    except SafetensorError as error:
        raise CurvactError(
            f"the weights {path} are truncated or damaged ({path.stat().st_size} bytes; {error}): "
            "write them again"
        ) from None


def refuse_page(path: Path, content: bytes) -> None:
    """Raise CurvactError for what a failed download leaves in place of weights."""
    start = content[:200].lstrip().lower()
    for beginning, kind in (
        (b"<!doctype", "a web page"),
        (b"<html", "a web page"),
        (b"<?xml", "a web page"),
        (b"version https://git-lfs", "a pointer of Git LFS"),
    ):
        if start.startswith(beginning):
            raise CurvactError(f"{path} is {kind}, not a file of weights: download the file itself")


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's tensors on the CPU, contiguous, by name.

    >>> sorted(state_of(nn.Linear(2, 2)))
    ['bias', 'weight']
    """
    return {name: copy_of(tensor) for name, tensor in model.state_dict().items()}


def copy_of(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU, without gradient."""
    return tensor.detach().cpu().contiguous().clone()


def rebuild(
    architecture: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str, *, keep_types: bool = False
) -> nn.Module:
    """The model of an architecture (arguments of `build`) with these weights, in eval mode.

    keep_types: the model has the floating-point types of the weights. Otherwise it is in float32.
    The description may come from a stranger: any fault in it is a CurvactError that begins with
    `where`.

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
    for key in ("depth", "blocks"):
        if isinstance(arguments.get(key), int) and arguments[key] > max(len(tensors), 1):
            raise CurvactError(
                f"{where}: {key}={shortened(arguments[key])} for {len(tensors)} tensors of weights"
            )
    try:
        plan = skeleton(arguments)
        wrong = [] if plan is None else misfits(tensors, plan.state_dict())
    except CurvactError as error:
        raise CurvactError(f"{where}: {error}") from None
    except _FAULTS as error:
        raise _misfit(where, error) from None
    if wrong:
        raise CurvactError(f"{where} does not fit its architecture: {'; '.join(wrong)}")
    try:
        model = build(**arguments)
        for name, place in model.state_dict(keep_vars=True).items() if keep_types else ():
            if name in tensors and place.is_floating_point() and tensors[name].is_floating_point():
                place.data = place.data.to(tensors[name].dtype)
        model.load_state_dict(dict(tensors))
    except CurvactError as error:
        raise CurvactError(f"{where}: {error}") from None
    except _FAULTS as error:
        raise _misfit(where, error) from None
    return model.eval()


_FAULTS = (RuntimeError, TypeError, ValueError, AttributeError, ArithmeticError, MemoryError)


def _misfit(where: str, error: Exception) -> CurvactError:
    why = " ".join(str(error).split()) or type(error).__name__
    return CurvactError(f"{where} does not fit its architecture: {short(why, _LONGEST)}")
