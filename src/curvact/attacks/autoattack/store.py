"""The folder of a run: its config, and one file for each shard and attack, written as a whole. No
pickles.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from curvact.attacks.autoattack.shard import CLEAN, Job, Unit, allowed, model_device, standing_points
from curvact.attacks.pgd import Model
from curvact.errors import CurvactError
from curvact.files import atomic_write

SCHEMA = 1
HEAD = "autoattack.json"
COUNTS = ("standing", "forward", "gradient", "outside", "zero_gradients")


def hash_network(model: nn.Module) -> str:
    """Hash of the network's class and printed form, which a hash of the weights does not cover."""
    printed = re.sub(r" at 0x[0-9a-f]+", "", str(model))  # of a function: another in every process
    return hashlib.sha256(
        f"{type(model).__module__}.{type(model).__qualname__}\n{printed}".encode()
    ).hexdigest()


def hash_data(x: Tensor, y: Tensor) -> str:
    digest = hashlib.sha256(str(tuple(x.shape)).encode())
    digest.update(_bytes(x))
    digest.update(_bytes(y))
    return digest.hexdigest()


def config_hash(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def open_folder(folder: Path, config: Mapping[str, Any], probe: Tensor) -> None:
    """Create the folder, or check that it holds this run.

    probe: logits of the first points. They are compared to 1e-3 of their largest, to notice changed
        code under the same weights.
    Raises CurvactError that names the difference to another run.
    """
    head = folder / HEAD
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not head.exists():
            if any(not file.name.endswith(".tmp") for file in folder.iterdir()):
                raise CurvactError(
                    f"folder={folder} is not empty and holds no run of autoattack: choose another"
                )
            content = {"schema": SCHEMA, "config": dict(config), "probe": probe.double().tolist()}
            atomic_write(head, json.dumps(content, indent=1, sort_keys=True) + "\n")
            return
        there = json.loads(head.read_text(encoding="utf-8"))
        before, logits = dict(there["config"]), torch.tensor(there["probe"], dtype=torch.float64)
    except OSError as error:
        raise CurvactError(f"cannot use folder={folder}: {error.strerror or error}") from None
    except CurvactError:
        raise
    except (ValueError, KeyError, TypeError):
        raise CurvactError(f"{head} is damaged: delete {folder} or choose another folder") from None
    now = json.loads(json.dumps(config))
    different = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if different:
        what = "; ".join(
            f"{key} is {_short(before.get(key))} there and {_short(now.get(key))} here" for key in different
        )
        raise CurvactError(f"{folder} holds another run: {what}. Choose another folder, or delete it")
    if logits.shape != probe.shape or not torch.allclose(
        logits, probe.double(), rtol=0, atol=1e-3 * max(float(logits.abs().max()), 1e-6)
    ):
        raise CurvactError(
            f"{folder} holds a run of another model: same weights, but other logits on the first points. Choose another folder"
        )


def unit_path(folder: Path, shard: int, key: str) -> Path:
    return folder / f"shard-{shard:05d}.{key.replace(' (', '-').rstrip(')')}.safetensors"


def write_unit(unit: Unit, run: str) -> bytes:
    """The unit as safetensors, with its numbers, its run and a checksum in the header."""
    tensors = {"index": unit.index, "x_adv": unit.x_adv, "y_adv": unit.y_adv}
    about = {
        "run": run,
        "shard": unit.shard,
        "key": unit.key,
        "seconds": unit.seconds,
        "notes": list(unit.notes),
        **{name: getattr(unit, name) for name in COUNTS},
    }
    text = json.dumps(about, sort_keys=True)
    return save(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        metadata={"about": text, "sha256": _checksum(tensors, text)},
    )


def read_unit(data: bytes, run: str, shard: int, key: str) -> Unit | None:
    """The unit, or None if the bytes are damaged or belong to another run, shard or attack."""
    try:
        tensors = load(data)
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])["__metadata__"]
        about = json.loads(header["about"])
        if header["sha256"] != _checksum(tensors, header["about"]):
            return None
        if (about["run"], about["shard"], about["key"]) != (run, shard, key):
            return None
        return Unit(
            shard,
            key,
            tensors["index"],
            tensors["x_adv"],
            tensors["y_adv"],
            seconds=about["seconds"],
            notes=tuple(about["notes"]),
            **{name: about[name] for name in COUNTS},
        )
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None


def stored_units(folder: Path, job: Job, run: str, shard: int, model: Model) -> tuple[list[Unit], list[str]]:
    """The shard's finished units up to the first missing one, and a line for a damaged file, which
    is run again.

    A stored success that the plain model does not confirm counts as damage.
    """
    part = job.slice(shard)
    x, y = job.x[part], job.y[part]
    units: list[Unit] = []
    for key in job.keys:
        path = unit_path(folder, shard, key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            break
        except OSError as error:
            raise CurvactError(f"cannot read {path}: {error.strerror or error}") from None
        unit = read_unit(data, run, shard, key)
        if unit is None or not _holds(unit, x, y, units, job, model):
            return units, [f"{path.name} was damaged and is run again"]
        units.append(unit)
    return units, []


def _holds(unit: Unit, x: Tensor, y: Tensor, before: list[Unit], job: Job, model: Model) -> bool:
    standing = standing_points(len(x), before)
    index = unit.index
    if unit.key == CLEAN:
        return len(unit.y_adv) == len(y) and torch.equal((unit.y_adv != y.cpu()).nonzero().squeeze(1), index)
    if not (len(index) == len(unit.x_adv) == len(unit.y_adv) and bool(torch.isin(index, standing).all())):
        return False
    if len(index) == 0:
        return True
    if unit.x_adv.shape[1:] != x.shape[1:] or unit.x_adv.dtype != x.dtype:
        return False
    place = index.to(x.device)
    if not bool(allowed(unit.x_adv.to(x.device), x[place], job.threat_model).all()):
        return False
    return job.randomized or misclassified(model, unit.x_adv, y[place])


def misclassified(model: Model, x_adv: Tensor, y: Tensor) -> bool:
    """Whether the model misclassifies every x_adv, with room for rounding in another batch."""
    device = model_device(model)
    with torch.no_grad():
        for images, labels in zip(torch.split(x_adv, 256), torch.split(y, 256), strict=True):
            logits = model(images.to(device))
            right = logits.gather(1, labels.to(device)[:, None])
            others = logits.scatter(1, labels.to(device)[:, None], -torch.inf).amax(1, keepdim=True)
            if bool((right - others > 1e-4 * logits.abs().amax(1, keepdim=True)).any()):
                return False
    return True


def _checksum(tensors: Mapping[str, Tensor], about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return (
        tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        if tensor.numel()
        else b""
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}…" if len(text) > 80 or len(text) == 64 else text
