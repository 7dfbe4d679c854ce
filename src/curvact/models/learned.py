"""Taking a learned activation out of a trained network, as a small file, and putting it, frozen or not, into another network."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import torch
import torch.nn.functional as F
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from curvact._version import __version__
from curvact.activations import Activation, as_factory, known_curvature, takes_channels
from curvact.activations.registry import parse_name
from curvact.activations.selection import TORCH_ACTIVATIONS
from curvact.errors import CurvactError
from curvact.files import atomic_write
from curvact.models.checkpoint import load_checkpoint
from curvact.models.layers import Normalize, Scope
from curvact.models.weights import TOLD, read_sidecar, read_tensors, state_of

KIND = "learned activation"
KEPT = "activation.safetensors"
"""A run that began with a learned activation keeps a copy of it under this name."""


@dataclass(frozen=True, eq=False)
class Group:
    """What one activation module learned. places: where the source network had it, in the order of its forward pass.

    widths: channels at these places. channels: the width that its parameters belong to, None for parameters of any width.
    maps: whether its inputs were N×C×H×W. tensors: its parameters and, for batch norm inside, buffers.
    """

    places: tuple[str, ...]
    widths: tuple[int, ...]
    channels: int | None
    maps: bool
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class LearnedActivation:
    """A learned activation, apart from any network. Made by `extract_activation` and `read_learned`.

    name: as `curvact.activation` parses it, at its learned values where they are the same everywhere. scope: how the source
    network shared it. groups: one for each distinct module. provenance: where it comes from: checkpoint and its hash,
    architecture, data, accuracies if known. Two are the same if their `sha256` are.
    """

    name: str
    scope: Scope
    groups: tuple[Group, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Of name, scope, groups and all values; not of the provenance."""
        digest = hashlib.sha256(json.dumps(_plain(self), sort_keys=True).encode())
        for group in self.groups:
            for _, tensor in sorted(group.tensors.items()):
                digest.update(_bytes(tensor))
        return digest.hexdigest()

    @property
    def parameters(self) -> int:
        """How many parameters it adds to the network it came from."""
        return sum(p.numel() for module in self.modules() for p in module.parameters())

    def modules(self) -> list[Activation]:
        """A new module for each group, with the learned values."""
        return [_module(self.name, self.scope, group) for group in self.groups]


# ---- taking out ----


def extract_activation(source: nn.Module | str | Path, *, inputs: Tensor | None = None) -> LearnedActivation:
    """The learned activation of a model, of a checkpoint file, or of a run's folder (its best weights).

    The network runs once, on a copy in eval mode, to see the widths at every place; inputs: images for that, N×C×H×W, where
    curvact cannot tell their size from the network.
    Raises CurvactError, naming the layer, where nothing is learned or the network has several kinds of activations.

    >>> from curvact.models import MiniResNet
    >>> learned = extract_activation(MiniResNet("psilu(alpha=3)", scope="network"))
    >>> learned.name, learned.scope, learned.parameters, learned.provenance["curvature"]
    ('psilu(alpha=3.0)', 'network', 1, [1.5])
    """
    if isinstance(source, nn.Module):
        return _extract(source, None, {"architecture": {"name": type(source).__name__}}, inputs)
    path = Path(source)
    if path.is_dir():
        path = path / "best.safetensors"
    model = load_checkpoint(path)
    sidecar = read_sidecar(path)
    architecture = sidecar["architecture"]
    provenance: dict[str, Any] = {
        "checkpoint": path.name,
        "checkpoint_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "architecture": architecture,
        **{key: sidecar[key] for key in TOLD if key in sidecar},
        **_measured(path, sidecar),
    }
    if inputs is None:
        size = int(architecture.get("size", 32))
        inputs = _grey(int(architecture.get("channels", 3)), size, size)
    try:
        return _extract(model, architecture.get("scope"), provenance, inputs)
    except CurvactError as error:
        raise CurvactError(f"{path}: {error}") from None


def _extract(
    model: nn.Module, scope: str | None, provenance: dict[str, Any], inputs: Tensor | None
) -> LearnedActivation:
    places = [p for p in _places(model, inputs) if p.called]
    if not places:
        raise CurvactError(f"{type(model).__name__} has no activation modules, so none that was learned")
    by_module: dict[int, list[_Place]] = {}
    for place in places:
        by_module.setdefault(id(place.module), []).append(place)
    for place in places:
        _require_learned(place)
    name = _name(places[0])
    scope = _scope(_shared_as(by_module, places, name) if scope is None else scope, "the source")
    sized = takes_channels(as_factory(name)) or scope == "channel"
    groups = tuple(_group(own, sized) for own in by_module.values())
    for own, group in zip(by_module.values(), groups, strict=True):
        place = own[0]
        again = _module(name, scope, group) if type(place.module) is _class(name) else None
        if again is None or str(again) != str(place.module):
            raise CurvactError(
                f"{place.path} is {place.module} and {places[0].path} is {places[0].module}: only a network with one kind of "
                "activation, built by name, has one to take out"
            )
    about = {
        **provenance,
        "curvature": [_kappa(own[0].module) for own in by_module.values()],
        "curvact": __version__,
    }
    return LearnedActivation(name, scope, groups, about)


def _require_learned(place: _Place) -> None:
    state = place.module.state_dict()
    if not isinstance(place.module, Activation) or not state:
        raise CurvactError(
            f"{place.path} is {place.module}, which has learned nothing: there is no learned activation to take out"
        )
    for key, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CurvactError(
                f"{place.path}.{key} is not finite: an activation that diverged cannot be moved"
            )


def _group(places: list[_Place], sized: bool) -> Group:
    widths = tuple(dict.fromkeys(w for place in places for w in place.widths))
    if sized and len(widths) > 1:
        raise CurvactError(
            f"{places[0].path} is used at {len(widths)} widths ({', '.join(map(str, widths))}) and has parameters for one"
        )
    paths = tuple(place.path for place in places)
    return Group(paths, widths, widths[0] if sized else None, places[0].maps, state_of(places[0].module))


def _name(place: _Place) -> str:
    """The name that an architecture builds such activations from."""
    family, given = parse_name(cast(Activation, place.module).name)
    given.pop("channels", None)
    return f"{family}({', '.join(f'{k}={v}' for k, v in given.items())})".removesuffix("()")


def _class(name: str) -> type:
    factory = as_factory(name)
    return type(factory(channels=1) if takes_channels(factory) else factory())


def _shared_as(by_module: Mapping[int, list[_Place]], places: Sequence[_Place], name: str) -> str:
    """How a network shares its activations, from what is shared."""
    if any(getattr(place.module, "_channels", None) for place in places):
        return "channel"
    widths = [own[0].widths for own in by_module.values()]
    if len(by_module) == 1 or (takes_channels(as_factory(name)) and len(set(widths)) == len(widths)):
        return "network"
    return "layer" if len(by_module) == len(places) else "stage"


def _kappa(module: nn.Module) -> float | None:
    try:
        kappa = known_curvature(module)
    except CurvactError:
        return None
    return kappa if kappa is not None and abs(kappa) != float("inf") else None


def _measured(path: Path, sidecar: Mapping[str, Any]) -> dict[str, Any]:
    """What the run's record says of these weights, if it is there."""
    metrics = sidecar.get("metrics")
    attack: dict[str, Any] = {}
    try:
        record = json.loads((path.parent / "record.json").read_text())
        if metrics is None and record["run"] == sidecar.get("run"):
            metrics = record["metrics"][path.stem]
            attack = {"attack": f"pgd-{record['config']['test']['steps']}"}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if not isinstance(metrics, dict):
        return {}
    numbers = {k: v for k, v in metrics.items() if isinstance(v, float) and k.endswith("accuracy")}
    return {**numbers, **attack} if numbers else {}


# ---- putting in ----


def insert_activation(
    model: nn.Module, learned: LearnedActivation, *, freeze: bool = True, inputs: Tensor | None = None
) -> nn.Module:
    """Put the learned activation at every place of the model that has an activation, in place, and return the model.

    freeze: its parameters have requires_grad False, so that no optimizer moves them, and batch norm inside it keeps its
        statistics; otherwise they start at the learned values and are trained on.
    inputs: as in `extract_activation`.

    Scope "network": one module everywhere; where its parameters belong to a width (Sparta), the one of the same width.
    "stage": the model must share its activations among as many groups (build it with scope="stage"), which are matched in the
    order of the forward pass and must have the same widths where parameters belong to one.
    "layer" and "channel": the model must have the same places, by name.
    Raises CurvactError, naming the layer and both widths, before anything is changed.

    >>> from curvact.models import build
    >>> learned = extract_activation(build("resnet18", activation="psilu(alpha=3)", width=2))
    >>> model = insert_activation(build("resnet34", width=4), learned)
    >>> model.layer4[2].act2, model.layer4[2].act2.alpha.requires_grad
    (psilu(alpha=3.0), False)
    """
    places = _places(model, inputs)
    if not any(place.called for place in places):
        raise CurvactError(
            f"{type(model).__name__} has no activation modules to replace: for functional calls see curvact.swap_activations"
        )
    chosen = _match(places, learned)
    modules = learned.modules()
    anchor = next(model.parameters(), torch.zeros(()))
    for module in modules:
        module.to(device=anchor.device, dtype=anchor.dtype if anchor.is_floating_point() else None)
        module.train(model.training)
        module.requires_grad_(not freeze)
        if freeze:
            _fix_norms(module)
    for path, index in chosen.items():
        parent, _, own = path.rpartition(".")
        setattr(model.get_submodule(parent), own, modules[index])
    return model


def _match(places: Sequence[_Place], learned: LearnedActivation) -> dict[str, int]:
    """From path to the number of the group that belongs there."""
    called = [place for place in places if place.called]
    rule = {"network": _by_width, "stage": _by_order, "layer": _by_path, "channel": _by_path}[learned.scope]
    chosen = rule(called, learned)
    for place in called:
        width = learned.groups[chosen[place.path]].channels
        if width is not None and place.widths != (width,):
            raise CurvactError(
                f"{place.path} has {' and '.join(map(str, place.widths))} channels, and {learned.name} was learned there for "
                f"{width}: {_ADVICE}"
            )
    # Second names of a module that is used under another one follow it.
    by_module = {id(place.module): chosen[place.path] for place in called}
    others = {p.path: by_module[id(p.module)] for p in places if not p.called and id(p.module) in by_module}
    return {**chosen, **others}


_ADVICE = "use a network of the same widths, or learn sparta(variant=agnostic), which fits any"


def _by_width(places: Sequence[_Place], learned: LearnedActivation) -> dict[str, int]:
    widths = {group.channels: index for index, group in enumerate(learned.groups)}
    if None in widths:
        return {place.path: 0 for place in places}
    chosen = {}
    for place in places:
        if len(place.widths) != 1 or place.widths[0] not in widths:
            raise CurvactError(
                f"{place.path} has {' and '.join(map(str, place.widths))} channels, and {learned.name} was learned for "
                f"{', '.join(map(str, widths))}: {_ADVICE}"
            )
        chosen[place.path] = widths[place.widths[0]]
    return chosen


def _by_order(places: Sequence[_Place], learned: LearnedActivation) -> dict[str, int]:
    order: dict[int, int] = {}
    for place in places:
        order.setdefault(id(place.module), len(order))
    there = len(learned.groups)
    if len(order) != there:
        odd = next((p for p in places if order[id(p.module)] == there), places[-1])
        raise CurvactError(
            f"the activation was learned with scope='stage' in {there} groups, and this network has {len(order)} ({odd.path} "
            f"is in group {order[id(odd.module)] + 1}): build it with scope='stage' and as many stages, or "
            "learn with scope='network'"
        )
    return {place.path: order[id(place.module)] for place in places}


def _by_path(places: Sequence[_Place], learned: LearnedActivation) -> dict[str, int]:
    known = {path: index for index, group in enumerate(learned.groups) for path in group.places}
    here = {place.path for place in places}
    odd = next((p.path for p in places if p.path not in known), None)
    lack = next((path for path in known if path not in here), None)
    if odd or lack:
        where = f"{odd} has none there" if odd else f"{lack} is not in this network"
        raise CurvactError(
            f"the activation was learned with scope='{learned.scope}', one for each of {len(known)} places, and {where}: only "
            "the same architecture can take it; learn with scope='network' to move it to others"
        )
    return {place.path: known[place.path] for place in places}


class _FixedNorm(nn.Module):
    """Batch norm by its running statistics, in train mode too; its state has the names of `nn.BatchNorm2d`."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        for name, parameter in norm.named_parameters():
            self.register_parameter(name, parameter)
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)
        weight, bias = cast(Tensor, self.weight), cast(Tensor, self.bias)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, self.eps)


def _fix_norms(module: nn.Module) -> None:
    for path, norm in list(module.named_modules()):
        if isinstance(norm, _BatchNorm):
            parent, _, own = path.rpartition(".")
            setattr(module.get_submodule(parent), own, _FixedNorm(norm))


# ---- places ----


@dataclass(frozen=True)
class _Place:
    """Where a network has an activation. widths: channels of what it gets, none if no forward pass goes through it."""

    path: str
    module: nn.Module
    widths: tuple[int, ...]
    maps: bool

    @property
    def called(self) -> bool:
        return bool(self.widths)


class _Probe(nn.Module):
    """An activation that notes the shapes of its inputs under its path."""

    def __init__(self, path: str, inner: nn.Module, seen: dict[str, list[torch.Size]]) -> None:
        super().__init__()
        self.path, self.inner, self.seen = path, inner, seen

    def forward(self, x: Tensor) -> Tensor:
        self.seen.setdefault(self.path, []).append(x.shape)
        return self.inner(x)  # type: ignore[no-any-return]


def _places(model: nn.Module, inputs: Tensor | None) -> list[_Place]:
    """Every place by path, those that the forward pass goes through first and in its order. The model is left as it is."""
    found: dict[str, nn.Module] = {}
    kinds: tuple[type[nn.Module], ...] = (Activation, *TORCH_ACTIVATIONS)
    for path, module in model.named_modules(remove_duplicate=False):
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if path and not inside and isinstance(module, kinds):
            found[path] = module
    if not found:
        return []
    seen: dict[str, list[torch.Size]] = {}
    twin = copy.deepcopy(model).eval()
    for path in found:
        parent, _, own = path.rpartition(".")
        home = twin.get_submodule(parent)
        inner = home.get_submodule(own)
        if not isinstance(inner, _Probe):
            setattr(home, own, _Probe(path, inner, seen))
    anchor = next(model.parameters(), torch.zeros(()))
    images = _images(model) if inputs is None else inputs
    try:
        with torch.no_grad():
            twin(images.to(device=anchor.device, dtype=anchor.dtype))
    except Exception as error:
        why = " ".join(str(error).split())
        raise CurvactError(
            f"{type(model).__name__} does not run on images of shape {tuple(images.shape)} ({why}): give it a batch as inputs="
        ) from None
    order = [*seen, *(path for path in found if path not in seen)]
    return [_Place(path, found[path], *_widths(seen.get(path, []))) for path in order]


def _widths(shapes: Sequence[torch.Size]) -> tuple[tuple[int, ...], bool]:
    widths = tuple(dict.fromkeys(s[-1] if len(s) == 3 else s[1] for s in shapes))
    return widths, all(len(s) == 4 for s in shapes)


def _images(model: nn.Module) -> Tensor:
    """Images that one of curvact's networks takes."""
    normalize = getattr(model, "normalize", None)
    channels = normalize.mean.numel() if isinstance(normalize, Normalize) else 3
    size = getattr(model, "size", 32)
    return _grey(channels, *([size] * 2 if isinstance(size, int) else size))


def _grey(channels: int, *size: int) -> Tensor:
    """One image, which takes no memory however large its file says it is."""
    return torch.full((1, channels, 1, 1), 0.5).expand(1, channels, *size)


# ---- files ----


def write_learned(path: str | Path, learned: LearnedActivation) -> None:
    """Write `path` (safetensors) and the .json beside it, both whole or none."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CurvactError(f"{path}: the name of a learned activation's file must end in .safetensors")
    tensors = {f"{i}.{k}": t for i, group in enumerate(learned.groups) for k, t in group.tensors.items()}
    content = {
        "schema": 1,
        "kind": KIND,
        **_plain(learned),
        "parameters": learned.parameters,
        "sha256": learned.sha256,
        "provenance": dict(learned.provenance),
    }
    atomic_write(path, save_tensors(tensors))
    try:
        atomic_write(path.with_suffix(".json"), json.dumps(content, indent=2, sort_keys=True) + "\n")
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def read_learned(path: str | Path) -> LearnedActivation:
    """The learned activation of a file.

    Raises CurvactError, in one line, for a file that is missing, damaged, changed since it was written, or something else.

    >>> import tempfile
    >>> from curvact.models import MiniResNet
    >>> file = Path(tempfile.mkdtemp()) / "act.safetensors"
    >>> write_learned(file, extract_activation(MiniResNet("sparta", width=4)))
    >>> learned = read_learned(file)
    >>> learned.name, [group.channels for group in learned.groups], learned.parameters
    ('sparta(variant=depthwise, beta=1.0)', [4, 8], 108)
    """
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        raise CurvactError(
            f"no learned activation {path}: `curvact transfer extract` writes one, a .safetensors file"
        )
    sidecar = path.with_suffix(".json")
    try:
        content = json.loads(sidecar.read_text())
        foreign = content["kind"] != KIND or content["schema"] != 1
    except OSError:
        raise CurvactError(f"no description {sidecar} beside {path}: the two files go together") from None
    except (ValueError, KeyError, TypeError):
        foreign = True
    if foreign:
        raise CurvactError(
            f"{path} is no learned activation, as {sidecar} says: take it out by `curvact transfer extract`"
        )
    tensors = read_tensors(path)
    try:
        groups = []
        for index, plain in enumerate(content["groups"]):
            own = {k.removeprefix(f"{index}."): t for k, t in tensors.items() if k.startswith(f"{index}.")}
            channels = plain["channels"]
            if channels is not None and not any(channels in t.shape for t in own.values()):
                raise ValueError(f"group {index} has no tensor for {channels} channels")
            places, widths = tuple(map(str, plain["places"])), tuple(map(int, plain["widths"]))
            groups.append(Group(places, widths, channels, bool(plain["maps"]), own))
        learned = LearnedActivation(
            str(content["activation"]),
            _scope(content["scope"], str(path)),
            tuple(groups),
            dict(content["provenance"]),
        )
        learned.modules()
        same = learned.sha256 == content["sha256"] and sum(len(g.tensors) for g in groups) == len(tensors)
    except CurvactError as error:
        raise CurvactError(f"the learned activation {path} cannot be used: {error}") from None
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CurvactError(
            f"the learned activation {path} is damaged: {' '.join(str(error).split()) or type(error).__name__}"
        ) from None
    if not same:
        raise CurvactError(
            f"the learned activation {path} does not fit its description {sidecar} (another sha256): take it out again"
        )
    return learned


def _plain(learned: LearnedActivation) -> dict[str, Any]:
    groups = [
        {
            "places": list(group.places),
            "widths": list(group.widths),
            "channels": group.channels,
            "maps": group.maps,
            "tensors": {k: [str(t.dtype), *t.shape] for k, t in sorted(group.tensors.items())},
        }
        for group in learned.groups
    ]
    return {"activation": learned.name, "scope": learned.scope, "groups": groups}


def _module(name: str, scope: str, group: Group) -> Activation:
    factory = as_factory(name)
    module = factory(channels=group.channels) if takes_channels(factory) else factory()
    if not isinstance(module, Activation):
        raise CurvactError(f"{name} is no activation of curvact's")
    if scope == "channel":
        module.per_channel_(group.channels or 0, maps=group.maps)
    try:
        module.load_state_dict(dict(group.tensors))
    except RuntimeError as error:
        raise CurvactError(
            f"the parameters of {group.places[0]} are not those of {name}: {' '.join(str(error).split())}"
        ) from None
    return module


def _scope(scope: str, where: str) -> Scope:
    if scope not in get_args(Scope):
        raise CurvactError(f"{where}: activation scope {scope!r}: allowed are {', '.join(get_args(Scope))}")
    return cast(Scope, scope)


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
