"""Floating point operations of a network, counted by torch on the meta device, without computing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from curvact.activations.base import ScaledActivation
from curvact.analysis.products import differentiate
from curvact.attacks import ThreatModel
from curvact.models.modes import frozen, mode
from curvact.training import InnerAttack, Recipe, objective
from curvact.training.inner_attack import Fixed, TrainingAttack

IMAGES = 2
"""Images in a counted batch. Batch norm in train mode refuses one."""


@dataclass(frozen=True)
class Flops:
    """Operations for one image; a multiplication and an addition are two.

    forward: one pass in eval mode. gradient: one pass forward, and one back to the image.
    training: the training loss and its gradient in the weights, once. attack: the attack before it.
    second_order: the loss with the graph of its gradient. product: one product with the Hessian.
    """

    forward: float
    gradient: float
    training: float
    attack: float
    second_order: float = 0.0
    product: float = 0.0


def count_flops(
    model: nn.Module,
    shape: tuple[int, ...],
    recipe: Recipe,
    threat_model: ThreatModel,
    *,
    hessian: bool = False,
    exclude: Collection[str] = (),
) -> Flops:
    """Count convolutions, products of matrices and attention, by torch's `FlopCounterMode`.

    Activations, normalizations and optimizers count as 0: their time is that of the memory.
    model: any network; it may lie on the meta device, and is left as it is. A network that needs
        values is counted while it computes two images on the CPU. A helper counts as a forward pass of
        the model itself.
    shape: of an image, C×H×W. exclude: parameters that the Hessian leaves out.
    hessian: whether `second_order` and `product` are counted too.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Softplus(), nn.Linear(5, 3))
    >>> count = count_flops(model, (1, 2, 3), Recipe(attack="pgd-4"), ThreatModel("linf", 0.1))
    >>> int(count.forward)  # 2·(6·5 + 5·3)
    90
    """
    try:
        return _count(model, shape, "meta", recipe, threat_model, hessian, exclude)
    except Exception:  # the network of a user may look at values, which meta tensors do not have
        if any(p.is_meta for p in (*model.parameters(), *model.buffers())):
            raise
        return _count(model, shape, "cpu", recipe, threat_model, hessian, exclude)


def _count(
    model: nn.Module,
    shape: tuple[int, ...],
    device: str,
    recipe: Recipe,
    threat_model: ThreatModel,
    hessian: bool,
    exclude: Collection[str],
) -> Flops:
    model = _with_quick_activations(copy.deepcopy(model)).to(device)
    x = torch.full((IMAGES, *shape), 0.5, device=device)
    y = torch.zeros(IMAGES, dtype=torch.int64, device=device)
    loss = objective(recipe.objective, recipe.label_smoothing)
    if loss.entry.needs_helper:
        loss = loss.asking(copy.deepcopy(model))

    def forward() -> None:
        with torch.no_grad():
            model(x)

    def gradient() -> None:
        leaf = x.clone().requires_grad_()
        with frozen(model):
            torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)

    def trained(attack: TrainingAttack) -> float:
        return _counted(lambda: torch.autograd.backward(loss(model, x, y, attack).value))

    def attacked(steps: int) -> float:
        return trained(InnerAttack(threat_model, replace(recipe.attack, steps=steps), check=False))

    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        with mode(model, training=False):
            each = [_counted(forward), _counted(gradient)]
        with mode(model, training=True):
            training, steps = trained(Fixed(x)), recipe.attack.steps
            first = attacked(min(steps, 1))
            more = (attacked(2) - first) * (steps - 1) if steps > 1 else 0.0  # each step costs the same
            each += [training, first + more - training]
        if hessian:
            with mode(model, training=False):
                each += _second_order(model, x, y, exclude)
    return Flops(*each)


def _with_quick_activations(model: nn.Module) -> nn.Module:
    """The model with SiLU for our formulas, which are some ten times as slow on the meta device. They
    count as 0, as SiLU does.
    """
    for parent in model.modules():
        for name, child in list(parent._modules.items()):
            if isinstance(child, ScaledActivation):
                setattr(parent, name, nn.SiLU())
    return model


def _second_order(model: nn.Module, x: Tensor, y: Tensor, exclude: Collection[str]) -> list[float]:
    params = []
    for name, p in model.named_parameters():
        if p.is_floating_point():
            p.requires_grad_(name not in exclude)
            params += [p] if p.requires_grad else []
    graphs: list[Any] = []
    first = _counted(
        lambda: graphs.append(differentiate(lambda: F.cross_entropy(model(x), y), params)),
    )
    vector = torch.zeros(sum(p.numel() for p in params), device=x.device)
    return [first, _counted(lambda: graphs[0].product(vector))]


def _counted(call: Callable[[], object]) -> float:
    """Operations of the call for each image."""
    with flop_counter() as counter:
        call()
    return float(counter.get_total_flops()) / IMAGES


def flop_counter() -> FlopCounterMode:
    """torch's counter, of the whole alone. Its counts by module need hooks that
    `torch.autograd.grad` refuses.

    >>> with flop_counter() as counter:
    ...     _ = torch.rand(2, 3) @ torch.rand(3, 5)
    >>> counter.get_total_flops()
    60
    """
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    return counter


class _NoModules:
    parents = ("Global",)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass
