"""Perturbations of the weights, at which training takes a second gradient: AWP and SAM."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from curvact.errors import CurvactError
from curvact.training.parsing import is_number

Pairs = Sequence[tuple[Parameter, Tensor]]
"""Parameters, each with its perturbation ν of the same shape."""

_CARRIED = "_curvact_perturbation"


@torch.no_grad()
def awp(
    named_parameters: Iterable[tuple[str, Parameter]], gamma: float = 0.01
) -> list[tuple[Parameter, Tensor]]:
    """The adversarial weight perturbation `ν = γ‖w‖·g/‖g‖` of every weight tensor. [paper]

    g is the gradient in `.grad`.

    Only tensors with "weight" in their name and more than one dimension get one (Wu, Xia, Wang
    2020, arXiv 2004.05884). Order of a step: attack; gradient at w on the adversarial batch; `add`;
    gradient on the same batch; optimizer step at w + ν; `add(…, -1)`.

    The scale of the gradient does not matter. ν = 0 for a tensor whose gradient is zero or not
    finite. No values are read back from the device.
    Raises CurvactError unless gamma is a number >= 0.

    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> layer.weight.data, layer.weight.grad = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    >>> awp(layer.named_parameters(), gamma=0.1)[0][1]
    tensor([[0.0000, 0.5000]])
    """
    _check("gamma of awp", gamma)
    pairs = []
    for name, parameter in named_parameters:
        gradient = parameter.grad
        if gradient is None or "weight" not in name or parameter.dim() <= 1:
            continue
        largest = _largest(gradient)
        scaled = _scaled(gradient, largest)
        length = gamma * _norm(parameter.detach())
        pairs.append((parameter, _along(scaled, length / _norm(scaled), largest, parameter.dtype)))
    return pairs


@torch.no_grad()
def sam(parameters: Iterable[Parameter], rho: float = 0.05) -> list[tuple[Parameter, Tensor]]:
    """The perturbation of sharpness-aware minimization, `ν = ρ·g/‖g‖`. [paper]

    The norm is that of all gradients together (Foret et al. 2021, arXiv 2010.01412). Order of a
    step: attack; gradient at w on the adversarial batch; `add`; gradient on the same batch;
    `restore`; optimizer step at w.

    The scale of the gradient does not matter. Every ν is 0 if the gradient is zero or not finite
    anywhere. No values are read back from the device.
    Raises CurvactError unless rho is a number >= 0.

    >>> w = Parameter(torch.zeros(2))
    >>> w.grad = torch.tensor([30.0, 40.0])
    >>> sam([w], rho=0.1)[0][1]
    tensor([0.0600, 0.0800])
    """
    _check("rho of sam", rho)
    found = [(p, p.grad) for p in parameters if p.grad is not None]
    if not found:
        return []
    home = found[0][1].device
    largest = torch.stack([_largest(g).to(home) for _, g in found]).amax()
    scaled = [_scaled(g, largest.to(g.device)) for _, g in found]
    norm = _norm(torch.stack([_norm(s).to(home) for s in scaled]))
    return [
        (p, _along(s, (rho / norm).to(s.device), largest.to(s.device), p.dtype))
        for (p, _), s in zip(found, scaled, strict=True)
    ]


@torch.no_grad()
def add(pairs: Pairs, sign: int = 1) -> None:
    """Add ν to the parameters in place (`sign=1`), or subtract it again (`sign=-1`).

    An optimizer step may lie between. Until the subtraction `carried` returns the ν of each
    parameter, and `restore` can put the weights back. A parameter carries one perturbation at a
    time. Raises CurvactError for another sign.

    >>> w = Parameter(torch.ones(2))
    >>> pairs = [(w, torch.tensor([0.5, 0.0]))]
    >>> add(pairs)
    >>> w.data, carried(w) is pairs[0][1]
    (tensor([1.5000, 1.0000]), True)
    >>> add(pairs, -1)
    >>> w.data, carried(w)
    (tensor([1., 1.]), None)
    """
    if sign not in (1, -1):
        raise CurvactError(f"sign={sign!r} of a perturbation: 1 or -1")
    for parameter, nu in pairs:
        if sign == 1:
            setattr(parameter, _CARRIED, (nu, parameter.detach().clone()))
        else:
            _forget(parameter)
        parameter.add_(nu, alpha=sign)


@torch.no_grad()
def restore(pairs: Pairs) -> None:
    """Put back, bit for bit, the weights from before `add`.

    Raises CurvactError, with nothing changed, if a parameter carries no perturbation.

    >>> w = Parameter(torch.tensor([1e-8]))
    >>> pairs = [(w, torch.tensor([1.0]))]
    >>> add(pairs)
    >>> restore(pairs)
    >>> w.item() == torch.tensor(1e-8).item()
    True
    """
    carried_before = [getattr(parameter, _CARRIED, None) for parameter, _ in pairs]
    if any(found is None for found in carried_before):
        raise CurvactError("restore: a parameter carries no perturbation; add it first")
    for (parameter, _), (_, before) in zip(pairs, carried_before, strict=True):  # type: ignore[misc]
        parameter.copy_(before)
        _forget(parameter)


def carried(parameter: Tensor) -> Tensor | None:
    """The ν that a parameter carries, between `add` and its subtraction; None for none."""
    found = getattr(parameter, _CARRIED, None)
    return None if found is None else found[0]


def _forget(parameter: Tensor) -> None:
    if hasattr(parameter, _CARRIED):
        delattr(parameter, _CARRIED)


def _largest(gradient: Tensor) -> Tensor:
    largest: Tensor = torch.linalg.vector_norm(gradient, ord=torch.inf, dtype=_wide(gradient))
    return largest


def _scaled(gradient: Tensor, largest: Tensor) -> Tensor:
    """g over its largest entry, so that its norm neither overflows nor underflows."""
    return gradient.to(_wide(gradient)) / largest


def _norm(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=_wide(tensor))
    return norm


def _along(direction: Tensor, factor: Tensor, largest: Tensor, dtype: torch.dtype) -> Tensor:
    usable = largest.isfinite() & (largest > 0)
    return torch.where(usable, direction * factor, torch.zeros_like(direction)).to(dtype)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _check(name: str, value: float) -> None:
    if not is_number(value) or value < 0:
        raise CurvactError(f"{name} is {value!r}: a number >= 0")
