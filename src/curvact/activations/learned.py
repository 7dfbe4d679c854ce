"""Learned activations in training: parameters, κ, constraints, penalty and clipping of PSSiLU."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from curvact.activations.arguments import finite, positive
from curvact.activations.arguments import module as check_module
from curvact.activations.base import Activation
from curvact.activations.curvature import max_curvature
from curvact.activations.families.pssilu import PSSiLU
from curvact.activations.selection import is_activation
from curvact.errors import CurvactError


def activation_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of all activations in the model, each once: of modules with `slope` and `curvature`,
    and of `nn.PReLU`.

    >>> from curvact.activations import activation
    >>> model = nn.Sequential(nn.Linear(2, 2), activation("pssilu(learnable=True)"))
    >>> [p.shape for p in activation_parameters(model)]
    [torch.Size([1]), torch.Size([1])]
    """
    check_module(model, "activation_parameters")
    found = [m for m in model.modules() if is_activation(m) or isinstance(m, nn.PReLU)]
    return list(dict.fromkeys(p for module in found for p in module.parameters()))


def current_parameters(model: nn.Module) -> dict[str, float]:
    """The learned parameters of every distinct activation, by path, for logs.

    A parameter of several entries gives .min, .mean and .max. An activation in several places is
    under its first path. All values leave the device in one transfer.

    >>> from curvact.activations import activation
    >>> model = nn.Sequential(activation("psilu(alpha=2)"), activation("sparta(variant=agnostic)"))
    >>> current_parameters(model)
    {'0.alpha': 2.0, '1.beta': 1.0, '1.weight.min': 0.0, '1.weight.mean': 0.0, '1.weight.max': 0.0}
    """
    check_module(model, "current_parameters")
    names: list[str] = []
    values: list[Tensor] = []
    for path, module in _learned(model):
        for name, p in module.named_parameters():
            key, flat = f"{path}.{name}".lstrip("."), p.detach().flatten().double()
            if len(flat) == 1:
                names.append(key)
                values.append(flat)
            else:
                names += [f"{key}.min", f"{key}.mean", f"{key}.max"]
                values.append(torch.stack([flat.min(), flat.mean(), flat.max()]))
    return dict(zip(names, torch.cat(values).tolist(), strict=True)) if values else {}


def current_curvature(model: nn.Module) -> dict[str, float]:
    """κ of every distinct learned activation, by path; over channels, the largest.

    Infinite for a kink, NaN if the parameters left their domain. Sparta has no κ: it is left out.

    >>> from curvact.activations import activation
    >>> current_curvature(nn.Sequential(activation("psilu(alpha=3)"), nn.ReLU()))
    {'0': 1.5}
    """
    check_module(model, "current_curvature")
    found: dict[str, float] = {}
    for path, module in _learned(model):
        if not module.maps_only:
            try:
                found[path or "activation"] = module.max_curvature.value
            except CurvactError:
                found[path or "activation"] = math.nan
    return found


def known_curvature(module: nn.Module) -> float | None:
    """κ of an activation, or None for one that is no function of one number (Sparta).

    >>> from curvact.activations import activation
    >>> known_curvature(activation("silu")), known_curvature(activation("sparta"))
    (0.5, None)
    """
    check_module(module, "known_curvature")
    if not isinstance(module, Activation):
        return max_curvature(module).value
    return None if module.maps_only else module.max_curvature.value


def penalty(model: nn.Module, coefficient: float = 10.0) -> Tensor:
    """coefficient·Σ|β| over the learned β of PSSiLU, a term of the loss [paper, arXiv 2110.05626].

    A β of several channels counts with each. A scalar on the model's device; 0 without such a β.

    >>> penalty(nn.Sequential(PSSiLU(beta=0.25, learnable=True), PSSiLU(beta=0.5))).item()
    2.5
    """
    check_module(model, "penalty")
    finite(coefficient, "coefficient", "penalty")
    sizes = [beta.abs().sum() for beta in _betas(model)]
    if not sizes:
        anything = next(model.parameters(), None)
        return torch.zeros((), device=None if anything is None else anything.device)
    return coefficient * torch.stack(sizes).sum()


@torch.no_grad()
def clip_beta_gradient(model: nn.Module, norm: float = 0.01) -> None:
    """Scale the gradient of each learned β of PSSiLU down to this norm, in place [paper].

    arXiv 2110.05626 takes 0.01, and 0.1 with TRADES. Call it after the backward pass, before weight
    decay and momentum. Each β is clipped by itself (the paper has one; a β of several channels is
    one vector). Nothing waits for the device. A gradient that is not finite stays so.
    Raises CurvactError for a norm that is not finite and > 0.
    """
    check_module(model, "clip_beta_gradient")
    positive(norm, "norm", "clip_beta_gradient")
    for beta in _betas(model):
        if beta.grad is not None:
            beta.grad.mul_(norm / beta.grad.norm().clamp(min=norm))


def constrain_(model: nn.Module) -> None:
    """Bring the learned parameters of all activations back to their domains, in place.

    Call it after every optimizer step. Nothing waits for the device.

    >>> act = PSSiLU(beta=0.5, learnable=True)
    >>> _ = act.beta.data.fill_(1.5)
    >>> constrain_(act); act.beta.item()
    0.9990234375
    """
    check_module(model, "constrain_")
    for module in model.modules():
        if isinstance(module, Activation):
            module.constrain_()


def _betas(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, PSSiLU) and isinstance(module.beta, nn.Parameter) and module.beta.requires_grad:
            yield module.beta


def _learned(model: nn.Module) -> Iterator[tuple[str, Activation]]:
    for path, module in model.named_modules():
        if isinstance(module, Activation) and any(True for _ in module.parameters()):
            yield path, module
