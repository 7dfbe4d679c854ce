"""A faster twin of a model for the search: batch norm folded, channels last, no weight gradients,
compiled on request.

Every success that the twin finds is checked by the model itself.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.attacks.autoattack.ensemble import Precision
from curvact.attacks.autoattack.fusion import fused
from curvact.attacks.pgd import Model
from curvact.errors import CurvactError
from curvact.models.folding import folded


class Counted:
    """A model that counts its images: `gradient` those of passes with a gradient, `forward` the
    others.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.forward = 0
        self.gradient = 0

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            self.gradient += len(x)
        else:
            self.forward += len(x)
        return self.model(x)


def search_twin(
    model: Model, example: Tensor, *, compiled: bool, precision: Precision
) -> tuple[Model, list[str]]:
    """The twin, and a line for each change. example: a few images of the data, on the model's
    device.

    A change that moves the logits by more than 1e-3 of their largest is undone.
    """
    if not isinstance(model, nn.Module):
        return model, ["search with the model itself (it is no nn.Module)"]
    try:
        base = copy.deepcopy(model).requires_grad_(False)
    except Exception as error:
        return model, [f"search with the model itself (it cannot be copied: {type(error).__name__})"]
    notes = []
    truth = _logits(model, example)
    twin: nn.Module = base
    without, count = folded(base, example)
    if count and _agrees(without, example, truth):
        twin = without
        notes.append(f"{count} batch norm{'s' * (count > 1)} folded")
    else:
        notes.append("no batch norm folded")
    last = False
    if any(isinstance(module, nn.Conv2d) for module in twin.modules()):
        laid_out = copy.deepcopy(twin).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if _agrees(Twin(laid_out, channels_last=True), example, truth):
            twin, last = laid_out, True
            notes.append("channels last")
    if last and precision == "fp32" and not compiled:
        rewritten, count = fused(twin, example)
        more = torch.cat([example, example[:1]])  # a trace may fix the number of images
        if count and _agrees(Twin(rewritten, channels_last=True), more, _logits(model, more)):
            twin = rewritten
            notes.append(f"{count} convolution{'s' * (count > 1)} by Winograd")
    if compiled:
        twin = torch.compile(twin)  # type: ignore[assignment]
        notes.append("compiled")
    if precision == "bf16":
        notes.append("bf16")
    return Twin(twin, channels_last=last, padded=compiled, bf16=precision == "bf16"), notes


def adaptive_batch(model: Model, example: Tensor, shard_size: int) -> int:
    """The largest power of two of images whose activations fit: in 2 GB on a CPU (at most 64
    images), in half of the free memory on a GPU (at most 1024).
    """
    most, room = 64, 2e9
    if example.device.type == "cuda":
        most, room = 1024, 0.5 * torch.cuda.mem_get_info(example.device)[0]
    if not isinstance(model, nn.Module):
        return max(1, min(most, shard_size))
    held = [0]

    def weigh(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            held[0] += output.numel() * output.element_size()

    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    handles = [module.register_forward_hook(weigh) for module in leaves]
    try:
        _logits(model, example[:1])
    finally:
        for handle in handles:
            handle.remove()
    fit = int(room / max(2 * held[0], 1))
    return max(1, min(most, shard_size, 1 << max(fit.bit_length() - 1, 0)))


class Twin:
    """A module with its inputs in channels-last layout, padded to a power of two, or cast to bf16;
    its logits are fp32.
    """

    def __init__(
        self, module: nn.Module, *, channels_last: bool = False, padded: bool = False, bf16: bool = False
    ) -> None:
        self.module = module
        self.channels_last = channels_last
        self.padded = padded
        self.bf16 = bf16

    def __call__(self, x: Tensor) -> Tensor:
        count = len(x)
        if self.padded:
            x = F.pad(x, [0, 0] * (x.dim() - 1) + [0, (1 << (count - 1).bit_length()) - count])
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            logits = _quietly(self.module, x) if self.padded else self.module(x)
        fp32: Tensor = logits[:count].float()
        return fp32


def _quietly(module: nn.Module, x: Tensor) -> Tensor:
    """The module without a warning: Dynamo reads the .grad of inputs that are no leaves."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        logits: Tensor = module(x)
    return logits


def _logits(model: Model, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def _agrees(twin: Model, x: Tensor, truth: Tensor) -> bool:
    """Whether the twin has the same logits, and a gradient."""
    try:
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            logits = twin(leaf)
            torch.autograd.grad(logits.sum(), leaf)
        return bool((logits.detach() - truth).abs().max() <= 1e-3 * truth.abs().max().clamp_min(1e-6))
    except CurvactError:
        raise
    except Exception:
        return False
