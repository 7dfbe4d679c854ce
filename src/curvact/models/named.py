"""Networks of others by name: `my.py:Net` of a file that was run, `timm:NAME` and `hf:NAME`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeGuard

import torch
from torch import nn

from curvact.activations import ActivationLike, act_layer, default_scope, swap_activations
from curvact.activations.selection import TORCH_ACTIVATIONS, is_activation
from curvact.activations.swap import Sharing
from curvact.errors import CurvactError, nearest
from curvact.models.foreign import Foreign, carried_constants
from curvact.models.layers import Common, Normalize

FILES: dict[str, ModuleType] = {}
"""Files of Python that were run, by their name, such as "my.py"."""

ALIASES = {
    "num_classes": "classes",
    "n_classes": "classes",
    "in_channels": "channels",
    "in_chans": "channels",
}
"""Arguments of others' networks that mean one of ours."""

COMMON = ("activation", *Common.__annotations__)


def named_network(name: str) -> Callable[..., nn.Module] | None:
    """The builder of `FILE.py:NAME`, `timm:NAME` or `hf:NAME`; None for a name of another form.

    It takes the arguments that every architecture takes, and the network's own. [ours] The network
    gets the common ones that it has (`num_classes` and `in_channels` too). It gets `activation`, or
    `act_layer` as a factory, if its constructor has it; else its activations are swapped. Without
    `mean` and `std` of its own it gets a layer that normalizes before it.
    Raises CurvactError in one line where there is no such network, or its library is missing.
    """
    place, colon, rest = name.partition(":")
    if not colon:
        return None
    if place in _LIBRARIES:
        return builder_of(name, _LIBRARIES[place](rest), any_arguments=True)
    if not place.endswith(".py"):
        return None
    if place not in FILES:
        raise CurvactError(f"{name}: the file {place} was not imported: curvact.lab.import_code does")
    module = FILES[place]
    found = vars(module).get(rest)
    if not _makes_networks(found, module):
        able = [key for key, value in vars(module).items() if _makes_networks(value, module)]
        raise CurvactError(
            f"{place} has no network '{rest}'{nearest(rest, able)}; it has {', '.join(able) or 'none'}"
        )
    return builder_of(name, found)


def _makes_networks(found: object, module: ModuleType) -> TypeGuard[Callable[..., nn.Module]]:
    """Whether it is a class of networks, or a function of this file.

    A description of weights names it, and may be a stranger's: what else the file imports, such as
    functions of the system, is not called.
    """
    if isinstance(found, type):
        return issubclass(found, nn.Module)
    return inspect.isfunction(found) and found.__module__ == module.__name__


def builder_of(
    name: str, factory: Callable[..., nn.Module], *, any_arguments: bool = False
) -> Callable[..., nn.Module]:
    """The builder of a network that others wrote, as `named_network` describes it.

    any_arguments: the factory takes more arguments than its signature names.

    >>> class Net(nn.Sequential):
    ...     def __init__(self, num_classes=10, width=8):
    ...         layers = nn.Flatten(), nn.LazyLinear(width), nn.ReLU(), nn.LazyLinear(num_classes)
    ...         super().__init__(*layers)
    >>> model = builder_of("Net", Net)("rctaf(curvature=6)", classes=3, channels=1, size=8)
    >>> model(torch.zeros(2, 1, 8, 8)).shape, model.model[2]
    (torch.Size([2, 3]), rctaf(alpha=24.0, beta=0))
    """
    theirs = inspect.signature(factory).parameters
    own = {
        key: _plain(parameter.default)
        for key, parameter in theirs.items()
        if key not in COMMON
        and key not in ALIASES
        and key != "act_layer"
        and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }

    def build(activation: ActivationLike | None = "relu", **given: Any) -> nn.Module:
        arguments = {k: v for k, v in given.items() if k not in COMMON and not (v is None and k in own)}
        for key in own:
            if theirs[key].default is inspect.Parameter.empty and key not in arguments:
                raise CurvactError(
                    f"{name} needs its argument '{key}': give model: {{name: {name}, {key}: …}}"
                )
        common = {key: value for key, value in given.items() if key in COMMON and value is not None}
        arguments |= _common_arguments(theirs, common)
        takes = activation is not None and bool({"activation", "act_layer"} & set(theirs))
        if takes:
            arguments |= _activation_argument(theirs, activation)
        model = _made(name, factory, arguments, common.get("generator"))
        if activation is not None and not takes:
            model = _swapped(name, model, activation, common.get("scope"))
        elif common.get("scope") is not None and "scope" not in theirs:
            raise CurvactError(f"{name} decides itself where activations are shared: leave out scope")
        if not {"mean", "std"} <= set(theirs):
            mean, std = common.get("mean"), common.get("std")
            if mean is None or std is None:
                mean, std = carried_constants(model)
            before = nn.Identity() if mean is None or std is None else Normalize(mean, std, grey=True)
            model = Foreign(model, before, None)
        _check_outputs(name, model, common)
        return model

    parameters = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default)
        for key, default in own.items()
    ]
    if any_arguments:
        parameters.append(inspect.Parameter("more", inspect.Parameter.VAR_KEYWORD))
    build.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return build


def takes_any(builder: Callable[..., nn.Module]) -> bool:
    """Whether the builder takes arguments that its signature does not name: that of a library."""
    found = getattr(builder, "__signature__", None)
    return found is not None and "more" in found.parameters


def _plain(default: Any) -> Any:
    """A default value that a spec can hold; None for others, which are left to the constructor."""
    if isinstance(default, (tuple, list)):
        return list(default) if all(isinstance(v, (bool, int, float, str)) for v in default) else None
    return default if isinstance(default, (bool, int, float, str)) else None


def _common_arguments(theirs: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: common[key] for key in theirs if key in common and key != "activation"}
    return found | {key: common[ours] for key, ours in ALIASES.items() if key in theirs and ours in common}


def _activation_argument(theirs: Mapping[str, Any], activation: Any) -> dict[str, Any]:
    """`act_layer` takes a factory; `activation` what its default value is: a module, a factory or a
    name.
    """
    if "act_layer" in theirs:
        return {"act_layer": act_layer(activation)}
    default = theirs["activation"].default
    if isinstance(default, nn.Module):
        return {"activation": act_layer(activation)()}
    by_name = default is inspect.Parameter.empty or default is None or isinstance(default, str)
    return {"activation": activation if by_name else act_layer(activation)}


def _made(
    name: str, factory: Callable[..., nn.Module], arguments: dict[str, Any], generator: torch.Generator | None
) -> nn.Module:
    """The network, its weights drawn from a seed of the generator. The global one stays as it is."""
    try:
        if generator is None:
            model: object = factory(**arguments)
        else:
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = factory(**arguments)
    except CurvactError:
        raise
    except Exception as error:
        raise CurvactError(f"{name} cannot be built: {_line(error)}") from None
    if not isinstance(model, nn.Module):
        raise CurvactError(f"{name} made a {type(model).__name__}: it must make an nn.Module")
    return model


def _swapped(name: str, model: nn.Module, activation: Any, scope: str | None) -> nn.Module:
    scope = default_scope(activation) if scope is None else scope
    if scope not in ("network", "layer"):
        raise CurvactError(
            f"{name} takes no activation: scope={scope!r} is not for it; allowed are network, layer"
        )
    shared: Sharing = "one" if scope == "network" else "separate"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        places = swap_activations(model, to=activation, inplace=False).functional
        known = dict(model.named_modules())
        found = {place: known.get(place.rpartition(": ")[0]) for place in places}
        kinds = {type(m) for m in found.values() if m is not None and _is_an_activation(m)}
        left = [place for place, module in found.items() if type(module) not in kinds]
        report = swap_activations(
            model,
            lambda m: isinstance(m, (*TORCH_ACTIVATIONS, *kinds)) or is_activation(m),
            activation,
            shared=shared,
        )
    if left:
        raise CurvactError(
            f"{name} takes no activation, and calls {left[0]} in forward, which cannot be swapped: "
            "let its constructor take `activation` or `act_layer`, or name a function (activation) that swaps with "
            "functional='rewrite'"
        )
    if not len(report):
        raise CurvactError(
            f"{name} takes no activation and has none to swap: let its constructor take `activation`"
        )
    return report.model


def _is_an_activation(module: nn.Module) -> bool:
    """Whether a module of another class only applies a function of torch to each element."""
    if next(module.children(), None) is not None or next(module.parameters(), None) is not None:
        return False
    x = torch.linspace(-3, 2, 32).reshape(2, 1, 4, 4)
    try:
        with torch.no_grad():
            y = module(x.clone())
            again = module(x.flatten()[:7].clone())
    except Exception:
        return False
    return isinstance(y, torch.Tensor) and y.shape == x.shape and torch.equal(y.flatten()[:7], again)


def _check_outputs(name: str, model: nn.Module, common: Mapping[str, Any]) -> None:
    """CurvactError where the network cannot take the images, or gives other logits."""
    if not {"channels", "classes", "size"} <= set(common):
        return
    shape = (2, common["channels"], common["size"], common["size"])
    images = "×".join(map(str, shape[1:]))
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            outputs = tuple(model(torch.zeros(shape)).shape)
    except CurvactError:
        raise
    except Exception as error:
        raise CurvactError(f"{name} does not take images of {images}: {_line(error)}") from None
    if outputs != (2, common["classes"]):
        raise CurvactError(
            f"{name} gives outputs of shape {outputs} for 2 images of {images}, not (2, {common['classes']})"
        )
    model.train()


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _timm(name: str) -> Callable[..., nn.Module]:
    timm = _library("timm", "timm")
    if not timm.is_model(name):
        raise CurvactError(f"timm has no model '{name}'{nearest(name, timm.list_models())}")

    def create(num_classes: int = 10, in_chans: int = 3, **more: Any) -> nn.Module:
        _refuse_foreign_code(f"timm:{name}", more)
        model: nn.Module = timm.create_model(name, num_classes=num_classes, in_chans=in_chans, **more)
        return model

    return create


def _hugging_face(name: str) -> Callable[..., nn.Module]:
    transformers = _library("transformers", "huggingface")

    def create(num_classes: int = 10, in_channels: int = 3, **more: Any) -> nn.Module:
        _refuse_foreign_code(f"hf:{name}", more)
        try:
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        except Exception as error:
            raise CurvactError(f"hf:{name}: its configuration cannot be read: {_line(error)}") from None
        for key in more:
            if not hasattr(config, key):
                raise CurvactError(f"hf:{name} has no argument '{key}'{nearest(key, vars(config))}")
        config.update({**more, "num_labels": num_classes, "num_channels": in_channels})
        model: nn.Module = transformers.AutoModelForImageClassification.from_config(
            config, trust_remote_code=False
        )
        return model

    return create


def _refuse_foreign_code(name: str, more: Mapping[str, Any]) -> None:
    """CurvactError for arguments that fetch weights, files or code: a stranger may have written them."""
    for key in more:
        if key.startswith("pretrained") or key in ("checkpoint_path", "cache_dir", "auto_map"):
            raise CurvactError(f"{name} does not take '{key}': put weights into a file and give init_from")


def _library(name: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CurvactError(
            f"{name} cannot be imported ({_line(error)}): pip install 'curvact[{extra}]'"
        ) from None


_LIBRARIES: dict[str, Callable[[str], Callable[..., nn.Module]]] = {"timm": _timm, "hf": _hugging_face}
