"""The zoo: small networks that are trained already, each with the record of its training and attacks.

A network is two files, NAME.safetensors and NAME.json, as any checkpoint is. A small one comes with
curvact, in pretrained/NAME/. Others are assets, which a server has.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from curvact.devices import device_named
from curvact.downloads import check_address, download
from curvact.errors import CurvactError, nearest
from curvact.files import hash_of_file, user_cache
from curvact.models.checkpoint import load_checkpoint
from curvact.names import shortened

FOLDER = Path(__file__).with_name("pretrained")


@dataclass(frozen=True)
class ZooEntry:
    """One network of the zoo.

    name: of `from_zoo`. data: the data set of its training and of its test. network, activation: as
        `curvact.models.build` takes them. curvature: κ of the activation.
    norm, epsilon: of the training and of the attacks.
    images: the first so many test images were attacked. clean, pgd, robust: accuracies on them:
        without attack, under the PGD of the run, and under `attack`.
    recipe: the objective and the epochs. The spec is zoo/DATA.yaml of the repository.
    packaged: whether the files come with curvact. size: of both in bytes. sha256: by file name.
    """

    name: str
    data: str
    network: str
    activation: str
    curvature: float
    norm: str
    epsilon: float
    images: int
    clean: float
    pgd: float
    robust: float
    attack: str
    recipe: str
    packaged: bool
    size: int
    sha256: Mapping[str, str]


def read_zoo(text: str) -> dict[str, ZooEntry]:
    """The entries of a zoo.json, by name."""
    entries: list[dict[str, Any]] = json.loads(text)
    return {e["name"]: ZooEntry(**{**e, "curvature": float(e["curvature"])}) for e in entries}


ZOO = read_zoo((FOLDER / "zoo.json").read_text(encoding="utf-8"))
"""The networks of the zoo, by name."""


def from_zoo(name: str, *, device: str | torch.device = "cpu") -> nn.Module:
    """A trained network of the zoo, in eval mode: from images in [0, 1] to logits.

    name: one of `ZOO`. device: such as "cuda"; "auto" is the first GPU, or the CPU without one.
    The files of a network that comes with curvact need no download. Those of others come from the
    server that the environment's CURVACT_ZOO names, once, into the user's cache; no server is
    published yet.
    Raises CurvactError for an unknown name, a damaged file, and a failed download.

    >>> from curvact.data import load
    >>> test = load("digits").test
    >>> model = from_zoo("digits-resnet-rctaf6")
    >>> found = (model(test.inputs()).argmax(1) == test.labels).double().mean().item()
    >>> found == ZOO["digits-resnet-rctaf6"].clean
    True
    """
    text = str(device) if isinstance(device, (str, torch.device)) else shortened(device)
    where = device_named(text, "device of from_zoo")
    return load_checkpoint(zoo_weights(name)).to(where)


def zoo_weights(name: str) -> Path:
    """The file of weights of a network of the zoo, whose JSON lies beside it. Both have their sha256.

    Raises CurvactError as `from_zoo` does.

    >>> zoo_weights("digits-resnet-relu").name
    'digits-resnet-relu.safetensors'
    """
    if not isinstance(name, str) or name not in ZOO:
        near = nearest(name, ZOO) if isinstance(name, str) else ""
        raise CurvactError(f"the zoo has no network {shortened(name)}{near}; it has {', '.join(ZOO)}")
    entry = ZOO[name]
    get = _packaged if entry.packaged else _asset
    paths = {file: get(name, file, digest) for file, digest in entry.sha256.items()}
    return paths[f"{name}.safetensors"]


def _packaged(name: str, file: str, digest: str) -> Path:
    path = FOLDER / name / file
    if not path.is_file() or hash_of_file(path) != digest:
        state = "damaged: it has another sha256 than the zoo's table" if path.is_file() else "missing"
        raise CurvactError(f"{path} is {state}; install curvact again")
    return path


def _asset(name: str, file: str, digest: str) -> Path:
    path, base = user_cache() / "zoo" / name / file, os.environ.get("CURVACT_ZOO")
    if path.is_file() and hash_of_file(path) == digest:
        return path
    if not base:
        raise CurvactError(
            f"{file} of the zoo does not come with curvact: set CURVACT_ZOO to the address of a server that has it"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        problem = download(f"{check_address('CURVACT_ZOO', base)}/{file}", f"sha256:{digest}", path)
    except OSError as error:
        raise CurvactError(f"cannot write {path}: {error.strerror or error}") from None
    if problem:
        raise CurvactError(f"cannot download {file} of the zoo: {problem}")
    return path
