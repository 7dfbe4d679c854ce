"""Exchanges weights with RobustBench's ResNet, PreActResNet, WideResNet and PAF_WideResNet.

Attribute names are the same in both libraries. These differences are mapped and checked:

- *Normalization.* Ours is the layer `normalize`. Most of RobustBench's classes take images in
  [0, 1] as they are; others hold buffers `mu` and `sigma`, or have an `ImageNormalizer` in front
  (`normalize_model`). **A file without such constants means mean 0, std 1.** Some entries keep the
  constants in their class and not in the file: give `mean` and `std` for them
  (docs/interchange.md).
- *Activation.* PAF networks share one PSSiLU. Their files repeat it in every block
  (`activation.alpha`, `block1.layer.0.activation.alpha`, …); ours hold it once.
- *Wrapping*: `{"state_dict": …}` and the like, `module.` of DataParallel, `model.` or `1.` of a
  normalizing wrapper.
- `num_batches_tracked`, absent from old files, counts as 0. `sub_block1` of TRADES-type files and
  `model_preact_hl1` of Andriushchenko2020Understanding are left out: no forward pass uses them.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from curvact.activations import Activation, ActivationLike, PSSiLU, ReLU, name_of
from curvact.activations.arguments import module as check_module
from curvact.errors import CurvactError
from curvact.files import as_path, atomic_write
from curvact.models.checkpoint import copy_of, misfits, read_tensors, refuse_page, some
from curvact.models.layers import Dropout, Normalize
from curvact.models.registry import build

StateDict = dict[str, Tensor]
PathLike = str | os.PathLike[str]

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "last")
"""Keys under which training scripts store the weights, in the order of the search."""

_SUFFIXES = (".pt", ".pth", ".safetensors")
_SHARED = re.compile(r"(?:.+\.)?act(?:ivation|\d+)\.(\w+)")
_UNUSED = ("sub_block1.", "model_preact_hl1.")
_MEAN, _STD = ("mu", "mean"), ("sigma", "std")


# ---- files ----


def read_state_dict(path: PathLike) -> StateDict:
    """The weights in a file of torch.save or (by its suffix) safetensors, on the CPU, unwrapped.

    Only tensors and plain containers are read. No code of the file runs.
    Raises CurvactError for a file that is missing, damaged, holds no weights, or cannot be read
    without running code.

    >>> import tempfile
    >>> from pathlib import Path
    >>> file = Path(tempfile.mkdtemp()) / "model.pt"
    >>> torch.save({"epoch": 3, "state_dict": {"module.fc.bias": torch.ones(2)}}, file)
    >>> read_state_dict(file)
    {'module.fc.bias': tensor([1., 1.])}
    """
    path = as_path(path, "read_state_dict")
    if not path.is_file():
        raise CurvactError(f"no file of weights {path}")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        with path.open("rb") as stream:
            refuse_page(path, stream.read(200))
    except OSError as error:
        raise CurvactError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CurvactError:
        raise
    except Exception as error:
        wanted = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
        if isinstance(error, UnpicklingError) and wanted:
            raise CurvactError(
                f"{path} holds more than tensors ({wanted[1]}): reading it could run any code, so it is "
                "refused; save its weights as plain tensors"
            ) from None
        raise CurvactError(
            f"{path} is truncated or no file of torch.save ({path.stat().st_size} bytes)"
        ) from None
    return unwrap(content, str(path))


def write_state_dict(path: PathLike, state_dict: Mapping[str, Tensor]) -> None:
    """Write plain tensors, whole or not at all: as torch.save for .pt and .pth, or as .safetensors.

    Raises CurvactError for another suffix, and if the file cannot be written.

    >>> import tempfile
    >>> from pathlib import Path
    >>> file = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> write_state_dict(file, {"fc.bias": torch.ones(2)})
    >>> read_state_dict(file)
    {'fc.bias': tensor([1., 1.])}
    """
    path = as_path(path, "write_state_dict")
    if path.suffix not in _SUFFIXES:
        raise CurvactError(f"cannot tell the format of {path}: the name has to end in {', '.join(_SUFFIXES)}")
    tensors = {name: copy_of(tensor) for name, tensor in state_dict.items()}
    if path.suffix == ".safetensors":
        atomic_write(path, save_safetensors(tensors))
        return
    stream = io.BytesIO()
    torch.save(tensors, stream)
    atomic_write(path, stream.getvalue())


def unwrap(content: Any, where: str = "the state dict") -> StateDict:
    """The weights in the content of a training script's file, such as `{"epoch": 3, "net": {…}}`.

    The first key of `WRAPPERS` that exists counts, also inside another one.
    Raises CurvactError if there are no weights, or if one of them is no tensor.

    >>> unwrap({"epoch": 3, "net": {"fc.bias": torch.ones(2)}})
    {'fc.bias': tensor([1., 1.])}
    """
    while isinstance(content, Mapping):
        inner = next((content[w] for w in WRAPPERS if isinstance(content.get(w), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        raise CurvactError(f"{where} holds a {type(content).__name__}, not the weights of a network")
    odd = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if odd or not content:
        raise CurvactError(
            f"{where} holds no state dict: {some(odd) + ' no tensor' if odd else 'it is empty'}; "
            f"looked for tensors, also under {', '.join(WRAPPERS)}"
        )
    return {str(key): value for key, value in content.items()}


# ---- the architecture of a state dict ----


def architecture_of(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `curvact.models.build` for the network of these weights.

    Names and shapes do not show the activation, nor where a PreActResNet takes its shortcuts from.
    With a batch norm before the classifier, the shortcuts start at the activated input, as in all
    such entries of RobustBench.
    Raises CurvactError for other networks than ResNet-18 and -34, PreActResNet-18 and WideResNet.

    >>> from curvact.models import build
    >>> architecture_of(build("wide_resnet", depth=10, widen_factor=1, classes=7).state_dict())
    {'name': 'wide_resnet', 'depth': 10, 'widen_factor': 1, 'channels': 3, 'classes': 7}
    """
    state = _tidy(unwrap(state_dict))
    stem = state.get("conv1.weight")
    blocks = [_count(state, rf"block{k}\.layer\.(\d+)\.conv1\.weight") for k in (1, 2, 3)]
    layers = [_count(state, rf"layer{k}\.(\d+)\.conv1\.weight") for k in (1, 2, 3, 4)]
    if stem is not None and stem.shape[2:] == (3, 3) and blocks[0]:
        width = len(state["block1.layer.0.conv1.weight"])
        if len(set(blocks)) > 1 or width % 16:
            raise CurvactError(
                f"no WideResNet has {blocks} blocks in its stages and {width} channels in the first: it "
                "has equal numbers of blocks and a multiple of 16 channels"
            )
        size = {"depth": 6 * blocks[0] + 4, "widen_factor": width // 16}
        return {"name": "wide_resnet", **size, "channels": stem.shape[1], "classes": _classes(state, "fc")}
    if stem is not None and stem.shape[2:] == (3, 3) and "layer1.0.conv3.weight" not in state:
        known: dict[tuple[int, ...], str] = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34"}
        if "bn1.weight" not in state:
            known = {(2, 2, 2, 2): "preact_resnet18"}
        if tuple(layers) in known:
            form = {"bn_before_fc": True, "out_shortcut": True} if "bn.weight" in state else {}
            return {
                "name": known[tuple(layers)],
                "width": len(stem),
                **form,
                "channels": stem.shape[1],
                "classes": _classes(state, "linear"),
            }
    raise CurvactError(
        f"weights of an unknown network ({some(list(state))}): known are RobustBench's ResNet-18 and -34, "
        "PreActResNet-18, WideResNet and PAF_WideResNet; --model FILE.py:NAME names a network of yours"
    )


def _count(state: StateDict, pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in state)


def _classes(state: StateDict, layer: str) -> int:
    if f"{layer}.weight" not in state:
        raise CurvactError(f"the weights lack {layer}.weight, which shows the number of classes")
    return len(state[f"{layer}.weight"])


def _tidy(state: StateDict) -> StateDict:
    """The weights by our names: no prefixes, no unused weights, a shared activation once."""
    stems = [name.removesuffix("conv1.weight") for name in state if name.endswith("conv1.weight")]
    roots = [stem for stem in stems if not re.search(r"(?:block|layer)\d", stem)]
    if len(roots) > 1:
        roots = [root for root in roots if f"{root}fc.weight" in state or f"{root}linear.weight" in state]
    if len(roots) > 1:
        raise CurvactError(
            f"the weights of {len(roots)} networks in one state dict, under {some(map(repr, roots))}: give "
            "those of one"
        )
    root = roots[0] if roots else ""
    out: StateDict = {}
    for full, tensor in state.items():
        name = full.removeprefix(root)
        last = name.rpartition(".")[2]
        shared = _SHARED.fullmatch(name)
        if name.startswith(_UNUSED):
            continue
        if last in _MEAN + _STD:
            name = "normalize.mean" if last in _MEAN else "normalize.std"
            tensor = tensor.reshape(-1, 1, 1)
        elif shared:
            name = f"activation.{shared[1]}"
        if name in out and not torch.equal(out[name], tensor):
            raise CurvactError(
                f"{full} differs from another {name} in the weights: "
                + ("one activation must be shared by the whole network" if shared else "only one is allowed")
            )
        out[name] = tensor
    return out


# ---- to and from a network ----


def from_robustbench(
    state_dict: Mapping[str, Any],
    model: nn.Module,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> None:
    """Copy weights of RobustBench (or ours) into `model`: all of them or, on an error, none.

    state_dict: as saved, wrapped or not. model: our network of the same architecture. A learnable
    PSSiLU must be shared by the whole network (scope="network").
    mean, std: normalization to set, one number for each channel. Default: that of the state dict,
    else 0 and 1.
    Raises CurvactError with the names of weights that are missing, unexpected, or of another shape.

    >>> from curvact.models import build
    >>> model = build("wide_resnet", depth=10, widen_factor=1, classes=10)
    >>> weights = to_robustbench(model)
    >>> del weights["fc.bias"]
    >>> from_robustbench(weights, model)
    Traceback (most recent call last):
    ...
    curvact.errors.CurvactError: weights do not fit this WideResNet: missing fc.bias
    """
    given = _tidy(unwrap(state_dict))
    own = _targets(model)
    for name, number, constants in (("normalize.mean", 0.0, mean), ("normalize.std", 1.0, std)):
        if constants is not None:
            given[name] = torch.tensor(list(constants), dtype=torch.float32).view(-1, 1, 1)
        elif name in own and name not in given:
            given[name] = torch.full_like(own[name], number)
    for name, tensor in own.items():
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, torch.zeros_like(tensor))
    problems = misfits(given, own)
    if problems:
        raise CurvactError(f"weights do not fit this {type(model).__name__}: {'; '.join(problems)}")
    if not bool((given["normalize.std"] > 0).all()):
        raise CurvactError(
            f"normalization by std {given['normalize.std'].flatten().tolist()}: each must be > 0"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name])


def to_robustbench(model: nn.Module) -> StateDict:
    """Copies of the weights as RobustBench's class loads them (strict), on the CPU.

    The normalization becomes `mu` and `sigma`, which the class then needs as buffers; mean 0 and
    std 1 are left out. PSSiLU becomes `activation.alpha` and `.beta`, at the top and in every
    block.
    Raises CurvactError for architectures and activations that RobustBench's classes do not have.
    They compute ReLU, or one PSSiLU for the whole network.

    >>> from curvact.models import build
    >>> act = "pssilu(learnable=True)"
    >>> model = build("wide_resnet", depth=10, widen_factor=1, activation=act, scope="network")
    >>> [name for name in to_robustbench(model) if name.endswith("alpha")][:2]
    ['activation.alpha', 'block1.layer.0.activation.alpha']
    """
    check_module(model, "to_robustbench")
    shared = _shared_pssilu(model)
    state = {name: copy_of(tensor) for name, tensor in _targets(model).items()}
    architecture_of(state)
    mean, std = state.pop("normalize.mean"), state.pop("normalize.std")
    if bool((mean != 0).any()) or bool((std != 1).any()):
        state["mu"], state["sigma"] = mean[None], std[None]
    if shared is None:
        return state
    # A fixed PSSiLU has no parameters, and is written as one that has.
    scales = {p: copy_of(torch.as_tensor(getattr(shared, p))).reshape(1) for p in ("alpha", "beta")}
    blocks = [name.removesuffix("conv1.weight") for name in state if name.endswith(".conv1.weight")]
    for home in ["", *blocks]:
        state |= {f"{home}activation.{p}": tensor.clone() for p, tensor in scales.items()}
    return state


def model_from_robustbench(
    source: PathLike | Mapping[str, Any],
    activation: ActivationLike | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **arguments: Any,
) -> nn.Module:
    """The network of a file (or state dict) of weights, with these weights, in eval mode.

    activation: default PSSiLU if the weights have its parameters, else ReLU, as in RobustBench's
    classes. **Weights do not show any other activation**: give it.
    mean, std: as in `from_robustbench`. arguments: of `curvact.models.build`, in place of those
    that `architecture_of` finds.
    Raises CurvactError as `read_state_dict`, `architecture_of` and `from_robustbench` do.

    >>> act = "pssilu(learnable=True)"
    >>> model = build("wide_resnet", depth=10, widen_factor=1, activation=act, scope="network")
    >>> model_from_robustbench(to_robustbench(model)).activation
    pssilu(alpha=1.0, beta=9.99999993922529e-09, learnable=True)
    """
    state = unwrap(source) if isinstance(source, Mapping) else read_state_dict(source)
    architecture = architecture_of(state)
    if activation is None:
        activation = "pssilu(learnable=True)" if "activation.alpha" in _tidy(state) else "relu"
    model = build(**{"activation": activation, "scope": "network"} | architecture | arguments)
    from_robustbench(state, model, mean=mean, std=std)
    return model.eval()


def _targets(model: nn.Module) -> StateDict:
    """The tensors of our network by the names that `_tidy` gives them."""
    structure = {
        f"{path}." if path else "" for path, module in model.named_modules() if not _is_activation(module)
    }
    shared: dict[str, Tensor] = {}
    out: StateDict = {}
    for full, tensor in model.state_dict(keep_vars=True).items():
        home, _, name = full.rpartition(".")
        if not home or f"{home}." in structure:
            out[full] = tensor
        elif shared.setdefault(name, tensor) is not tensor:
            raise CurvactError(
                f"this {type(model).__name__} has several activations with parameters of their own: "
                'RobustBench\'s networks share one; build it with scope="network"'
            )
    if "normalize.mean" not in out:
        raise CurvactError(
            f"this {type(model).__name__} has no layer 'normalize': it is not a network of curvact"
        )
    return out | {f"activation.{name}": tensor for name, tensor in shared.items()}


def _is_activation(module: nn.Module) -> bool:
    """Whether it is an activation: ours, torch's, or any module that is no layer and has no parts."""
    kind = type(module).__module__
    layer = kind.startswith("torch.nn.modules.") and kind != "torch.nn.modules.activation"
    built = next(module.children(), None) is not None
    return isinstance(module, Activation) or not (layer or built or isinstance(module, (Normalize, Dropout)))


def _shared_pssilu(model: nn.Module) -> PSSiLU | None:
    """The PSSiLU of a network, or None if its activation is ReLU."""
    found = {module for module in model.modules() if _is_activation(module)}
    other = [m for m in found if not isinstance(m, (PSSiLU, ReLU, nn.ReLU))]
    if other:
        raise CurvactError(
            f"no class in RobustBench computes {name_of(other[0])}: only relu and pssilu can be exchanged "
            "(write_state_dict saves the weights of any model)"
        )
    shaped = [m for m in found if isinstance(m, PSSiLU)]
    if len({(str(m), id(m) if m.learnable else 0) for m in shaped}) > 1 or 0 < len(shaped) < len(found):
        raise CurvactError(
            f"this {type(model).__name__} has {len(found)} different activations: RobustBench's networks "
            'share one; build it with scope="network"'
        )
    return shaped[0] if shaped else None
