"""Moves a learned activation from one network to another: extract, write, read, insert."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from curvact._version import __version__
from curvact.activations import Activation, as_factory, known_curvature, takes_channels
from curvact.activations.arguments import module as check_module
from curvact.activations.registry import parse_name
from curvact.activations.selection import TORCH_ACTIVATIONS
from curvact.errors import CurvactError
from curvact.files import as_path, atomic_write
from curvact.models.checkpoint import (
    SIDECAR_KEYS,
    find_weights,
    load_checkpoint,
    read_run_record,
    read_sidecar,
    read_tensors,
    state_of,
)
from curvact.models.hashing import tensor_bytes
from curvact.models.layers import Normalize, Scope, check_scope
from curvact.names import shortened

KIND = "learned activation"


@dataclass(frozen=True, eq=False)
class Group:
    """The learned values of one activation module.

    places: the module's paths in the source network, in the order of its forward pass.
    widths: the numbers of channels at these places. channels: the width that the parameters belong
    to, None for parameters of any width. maps: the inputs were N×C×H×W.
    tensors: parameters, and buffers of batch norm inside, by name.
    """

    places: tuple[str, ...]
    widths: tuple[int, ...]
    channels: int | None
    maps: bool
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class LearnedActivation:
    """A learned activation without its network, from `extract_activation` or `read_learned`.

    name: as `curvact.activation` parses it. scope: how the source network shared it. groups: one
    for each distinct module. provenance: checkpoint and its hash, architecture, data, accuracies if
    known. Two learned activations are equal if their `sha256` are.
    """

    name: str
    scope: Scope
    groups: tuple[Group, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Hash of name, scope, groups and all values, without the provenance."""
        digest = hashlib.sha256(json.dumps(self.description(), sort_keys=True).encode())
        for group in self.groups:
            for _, tensor in sorted(group.tensors.items()):
                digest.update(tensor_bytes(tensor))
        return digest.hexdigest()

    @property
    def parameters(self) -> int:
        """The number of parameters that it adds to its source network."""
        return sum(p.numel() for module in self.modules() for p in module.parameters())

    def modules(self) -> list[Activation]:
        """A new module for each group, with the learned values."""
        return [_module(self.name, self.scope, group) for group in self.groups]

    def description(self) -> dict[str, Any]:
        """Name, scope and groups as JSON, with types and shapes in place of the tensors."""
        groups = [
            {
                "places": list(group.places),
                "widths": list(group.widths),
                "channels": group.channels,
                "maps": group.maps,
                "tensors": {k: [str(t.dtype), *t.shape] for k, t in sorted(group.tensors.items())},
            }
            for group in self.groups
        ]
        return {"activation": self.name, "scope": self.scope, "groups": groups}


def _module(name: str, scope: str, group: Group) -> Activation:
    factory = as_factory(name)
    module = factory(channels=group.channels) if takes_channels(factory) else factory()
    if not isinstance(module, Activation):
        raise CurvactError(f"{name} is not an activation of curvact")
    if scope == "channel":
        module.per_channel_(group.channels or 0, maps=group.maps)
    try:
        module.load_state_dict(dict(group.tensors))
    except RuntimeError as error:
        raise CurvactError(
            f"the parameters of {group.places[0]} are not those of {name}: {' '.join(str(error).split())}"
        ) from None
    return module


# ---- extract ----


def extract_activation(source: nn.Module | str | Path, *, inputs: Tensor | None = None) -> LearnedActivation:
    """The learned activation of a model, a checkpoint file, or a run folder (its best weights).

    A copy of the network runs once in eval mode, which shows the width at every place.
    inputs: images for that run, N×C×H×W. Needed if curvact cannot find their size in the network.
    Raises CurvactError, with the layer, if nothing is learned or the activations differ in kind.

    >>> from curvact.models import MiniResNet
    >>> learned = extract_activation(MiniResNet("psilu(alpha=3)", scope="network"))
    >>> learned.name, learned.scope, learned.parameters, learned.provenance["curvature"]
    ('psilu(alpha=3.0)', 'network', 1, [1.5])
    """
    if isinstance(source, nn.Module):
        return _extract(source, None, {"architecture": {"name": type(source).__name__}}, inputs)
    path = find_weights(source)
    sidecar = read_sidecar(path)
    architecture = sidecar["architecture"]
    record = read_run_record(path)
    accuracies = {}
    if record is not None:
        accuracies = {
            "clean_accuracy": record.clean,
            "robust_accuracy": record.robust,
            "attack": record.attack,
        }
    provenance = {
        "checkpoint": path.name,
        "checkpoint_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "architecture": architecture,
        **{key: sidecar[key] for key in SIDECAR_KEYS if key in sidecar},
        **accuracies,
    }
    model = load_checkpoint(path)
    if inputs is None:
        inputs = _grey(int(architecture.get("channels", 3)), *[int(architecture.get("size", 32))] * 2)
    try:
        return _extract(model, architecture.get("scope"), provenance, inputs)
    except CurvactError as error:
        raise CurvactError(f"{path}: {error}") from None


def _extract(
    model: nn.Module, scope: str | None, provenance: dict[str, Any], inputs: Tensor | None
) -> LearnedActivation:
    places = [place for place in _places(model, inputs) if place.widths]
    if not places:
        raise CurvactError(f"{type(model).__name__} has no activation modules, so none that was learned")
    by_module: dict[int, list[_Place]] = {}
    for place in places:
        by_module.setdefault(id(place.module), []).append(place)
        _require_learned(place)
    family, given = parse_name(cast(Activation, places[0].module).name)
    given.pop("channels", None)
    name = f"{family}({', '.join(f'{k}={v}' for k, v in given.items())})".removesuffix("()")
    factory = as_factory(name)
    sized = takes_channels(factory)
    kind = type(factory(channels=1) if sized else factory())
    scope = check_scope(_scope_of(by_module, places, sized) if scope is None else scope)
    groups = tuple(_group(own, sized or scope == "channel") for own in by_module.values())
    for own, group in zip(by_module.values(), groups, strict=True):
        module = own[0].module
        if type(module) is not kind or str(_module(name, scope, group)) != str(module):
            raise CurvactError(
                f"{own[0].path} is {module} and {places[0].path} is {places[0].module}: only a network "
                "with one kind of activation, built by name, has one to extract"
            )
    curvature = [_finite_curvature(own[0].module) for own in by_module.values()]
    return LearnedActivation(
        name, scope, groups, {**provenance, "curvature": curvature, "curvact": __version__}
    )


def _require_learned(place: _Place) -> None:
    state = place.module.state_dict()
    if not isinstance(place.module, Activation) or not state:
        raise CurvactError(
            f"{place.path} is {place.module}, which has learned nothing: there is no activation to extract"
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
            f"{places[0].path} is used at {len(widths)} widths ({', '.join(map(str, widths))}) and has "
            "parameters for one"
        )
    paths = tuple(place.path for place in places)
    return Group(paths, widths, widths[0] if sized else None, places[0].maps, state_of(places[0].module))


def _scope_of(by_module: Mapping[int, list[_Place]], places: Sequence[_Place], sized: bool) -> str:
    """The scope of a network's activations. sized: their parameters belong to a width."""
    if any(getattr(place.module, "_channels", None) for place in places):
        return "channel"
    widths = [own[0].widths for own in by_module.values()]
    if len(by_module) == 1 or (sized and len(set(widths)) == len(widths)):
        return "network"
    return "layer" if len(by_module) == len(places) else "stage"


def _finite_curvature(module: nn.Module) -> float | None:
    try:
        kappa = known_curvature(module)
    except CurvactError:
        return None
    return kappa if kappa is not None and abs(kappa) != float("inf") else None


# ---- insert ----


def insert_activation(
    model: nn.Module, learned: LearnedActivation, *, freeze: bool = True, inputs: Tensor | None = None
) -> nn.Module:
    """Replace every activation of the model by the learned one, in place, and return the model.

    freeze: the parameters get requires_grad False, and batch norm inside keeps its statistics.
        Otherwise training goes on from the learned values.
    inputs: as in `extract_activation`.

    Scope "network": one module everywhere. If its parameters belong to a width (Sparta), each place
    gets the module of its width. "stage": the model needs as many groups of places that share a
    module (build it with scope="stage"). They are matched in the order of the forward pass. "layer"
    and "channel": the model must have the same places, by name.
    Raises CurvactError, with the layer and both widths, before anything is changed.

    >>> from curvact.models import build
    >>> learned = extract_activation(build("resnet18", activation="psilu(alpha=3)", width=2))
    >>> model = insert_activation(build("resnet34", width=4), learned)
    >>> model.layer4[2].act2, model.layer4[2].act2.alpha.requires_grad
    (psilu(alpha=3.0), False)
    """
    check_module(model, "insert_activation")
    if not isinstance(learned, LearnedActivation):
        raise CurvactError(f"insert_activation got {shortened(learned)}: it takes a LearnedActivation")
    places = _places(model, inputs)
    if not any(place.widths for place in places):
        raise CurvactError(
            f"{type(model).__name__} has no activation modules to replace: for functional calls see "
            "curvact.swap_activations"
        )
    chosen = _match(places, learned)
    modules = learned.modules()
    anchor = next(model.parameters(), torch.zeros(()))
    for module in modules:
        module.to(device=anchor.device, dtype=anchor.dtype if anchor.is_floating_point() else None)
        module.train(model.training)
        module.requires_grad_(not freeze)
        for path, norm in list(module.named_modules()) if freeze else ():
            if isinstance(norm, _BatchNorm):
                _set_module(module, path, _FixedNorm(norm))
    for path, index in chosen.items():
        _set_module(model, path, modules[index])
    return model


def _match(places: Sequence[_Place], learned: LearnedActivation) -> dict[str, int]:
    """The number of the group for each path."""
    called = [place for place in places if place.widths]
    rule = {"network": _by_width, "stage": _by_order, "layer": _by_path, "channel": _by_path}[learned.scope]
    chosen = rule(called, learned)
    for place in called:
        width = learned.groups[chosen[place.path]].channels
        if width is not None and place.widths != (width,):
            raise _other_width(place, learned, f"learned there for {width}")
    # A module may have a second path that the forward pass does not use: it gets the same group.
    by_module = {id(place.module): chosen[place.path] for place in called}
    unused = [place for place in places if not place.widths and id(place.module) in by_module]
    return {**chosen, **{place.path: by_module[id(place.module)] for place in unused}}


def _other_width(place: _Place, learned: LearnedActivation, learned_for: str) -> CurvactError:
    return CurvactError(
        f"{place.path} has {' and '.join(map(str, place.widths))} channels, and {learned.name} was "
        f"{learned_for}: use a network of the same widths, or learn sparta(variant=agnostic), "
        "which fits any width"
    )


def _by_width(places: Sequence[_Place], learned: LearnedActivation) -> dict[str, int]:
    groups = {group.channels: index for index, group in enumerate(learned.groups)}
    if None in groups:
        return {place.path: 0 for place in places}
    for place in places:
        if len(place.widths) != 1 or place.widths[0] not in groups:
            raise _other_width(place, learned, f"learned for {', '.join(map(str, groups))}")
    return {place.path: groups[place.widths[0]] for place in places}


def _by_order(places: Sequence[_Place], learned: LearnedActivation) -> dict[str, int]:
    order: dict[int, int] = {}
    for place in places:
        order.setdefault(id(place.module), len(order))
    count = len(learned.groups)
    if len(order) != count:
        odd = next((p for p in places if order[id(p.module)] == count), places[-1])
        raise CurvactError(
            f"the activation was learned with scope='stage' in {count} groups, and this network has "
            f"{len(order)} ({odd.path} is in group {order[id(odd.module)] + 1}): build it with "
            "scope='stage' and as many stages, or learn with scope='network'"
        )
    return {place.path: order[id(place.module)] for place in places}


def _by_path(places: Sequence[_Place], learned: LearnedActivation) -> dict[str, int]:
    known = {path: index for index, group in enumerate(learned.groups) for path in group.places}
    paths = [place.path for place in places]
    extra = next((path for path in paths if path not in known), None)
    missing = next((path for path in known if path not in paths), None)
    if extra or missing:
        where = f"none was learned for {extra}" if extra else f"{missing} is not in this network"
        raise CurvactError(
            f"the activation was learned with scope='{learned.scope}', for {len(known)} places, and {where}: "
            "only the same architecture can take it; learn with scope='network' to move it to others"
        )
    return {path: known[path] for path in paths}


class _FixedNorm(nn.Module):
    """Batch norm by its running statistics, also in train mode. Its state has the same names."""

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


# ---- the places of activations in a network ----


@dataclass(frozen=True)
class _Place:
    """A path to an activation. widths: channels of its inputs, () if it is never called."""

    path: str
    module: nn.Module
    widths: tuple[int, ...]
    maps: bool


class _Probe(nn.Module):
    """Records the shapes of an activation's inputs under its path."""

    def __init__(self, path: str, inner: nn.Module, seen: dict[str, list[torch.Size]]) -> None:
        super().__init__()
        self.path, self.inner, self.seen = path, inner, seen

    def forward(self, x: Tensor) -> Tensor:
        self.seen.setdefault(self.path, []).append(x.shape)
        return self.inner(x)  # type: ignore[no-any-return]


def _places(model: nn.Module, inputs: Tensor | None) -> list[_Place]:
    """Every place, first those of the forward pass in its order. The model does not change."""
    if inputs is not None and not isinstance(inputs, Tensor):
        raise CurvactError(f"inputs={shortened(inputs)}: give a tensor of images, N×C×H×W")
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
        inner = twin.get_submodule(path)
        if not isinstance(inner, _Probe):
            _set_module(twin, path, _Probe(path, inner, seen))
    anchor = next(model.parameters(), torch.zeros(()))
    images = _images(model) if inputs is None else inputs
    try:
        with torch.no_grad():
            twin(images.to(device=anchor.device, dtype=anchor.dtype))
    except Exception as error:
        raise CurvactError(
            f"{type(model).__name__} does not run on images of shape {tuple(images.shape)} "
            f"({' '.join(str(error).split())}): give it a batch as inputs="
        ) from None
    places = []
    for path in dict.fromkeys([*seen, *found]):
        shapes = seen.get(path, [])
        widths = tuple(dict.fromkeys(s[-1] if len(s) == 3 else s[1] for s in shapes))
        places.append(_Place(path, found[path], widths, all(len(s) == 4 for s in shapes)))
    return places


def _set_module(model: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new)


def _images(model: nn.Module) -> Tensor:
    """An image for one of curvact's networks."""
    normalize = getattr(model, "normalize", None)
    channels = normalize.mean.numel() if isinstance(normalize, Normalize) else 3
    size = getattr(model, "size", 32)
    return _grey(channels, *([size] * 2 if isinstance(size, int) else size))


def _grey(channels: int, *size: int) -> Tensor:
    """One grey image. It takes no memory, so a huge size in a stranger's file does no harm."""
    return torch.full((1, channels, 1, 1), 0.5).expand(1, channels, *size)


# ---- files ----


def write_learned(path: str | Path, learned: LearnedActivation) -> None:
    """Write `path` (safetensors) and the JSON file beside it, both or none."""
    path = as_path(path, "write_learned")
    if not isinstance(learned, LearnedActivation):
        raise CurvactError(f"write_learned got {shortened(learned)}: it takes a LearnedActivation")
    if path.suffix != ".safetensors":
        raise CurvactError(f"{path}: the name of a learned activation's file must end in .safetensors")
    tensors = {f"{i}.{k}": t for i, group in enumerate(learned.groups) for k, t in group.tensors.items()}
    content = {
        "schema": 1,
        "kind": KIND,
        **learned.description(),
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

    Raises CurvactError for a file that is missing, damaged, changed since it was written, or of
    another kind.

    >>> import tempfile
    >>> from curvact.models import MiniResNet
    >>> file = Path(tempfile.mkdtemp()) / "act.safetensors"
    >>> write_learned(file, extract_activation(MiniResNet("sparta", width=4)))
    >>> learned = read_learned(file)
    >>> learned.name, [group.channels for group in learned.groups], learned.parameters
    ('sparta(variant=depthwise, beta=1.0)', [4, 8], 108)
    """
    path = as_path(path, "read_learned")
    if path.suffix != ".safetensors" or not path.is_file():
        raise CurvactError(
            f"no learned activation {path}: `curvact transfer extract` writes one, a .safetensors file"
        )
    sidecar = path.with_suffix(".json")
    try:
        content = json.loads(sidecar.read_text())
        known = content["kind"] == KIND and content["schema"] == 1
    except OSError:
        raise CurvactError(f"no description {sidecar} beside {path}: the two files go together") from None
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise CurvactError(
            f"{path} is no learned activation, as {sidecar} says: extract it by `curvact transfer extract`"
        )
    tensors = read_tensors(path)
    try:
        groups = tuple(_read_group(index, plain, tensors) for index, plain in enumerate(content["groups"]))
        scope, provenance = check_scope(content["scope"]), dict(content["provenance"])
        learned = LearnedActivation(str(content["activation"]), scope, groups, provenance)
        learned.modules()
        complete = sum(len(group.tensors) for group in groups) == len(tensors)
        same = complete and learned.sha256 == content["sha256"]
    except CurvactError as error:
        raise CurvactError(f"the learned activation {path} cannot be used: {error}") from None
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CurvactError(
            f"the learned activation {path} is damaged: {' '.join(str(error).split()) or type(error).__name__}"
        ) from None
    if not same:
        raise CurvactError(
            f"the learned activation {path} does not fit its description {sidecar} (another sha256): "
            "extract it again"
        )
    return learned


def _read_group(index: int, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Group:
    own = {k.removeprefix(f"{index}."): t for k, t in tensors.items() if k.startswith(f"{index}.")}
    channels = plain["channels"]
    if channels is not None and not any(channels in t.shape for t in own.values()):
        raise ValueError(f"group {index} has no tensor for {channels} channels")
    places, widths = tuple(map(str, plain["places"])), tuple(map(int, plain["widths"]))
    return Group(places, widths, channels, bool(plain["maps"]), own)
