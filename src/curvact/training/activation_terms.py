"""What training does for learnable activations: PSSiLU's β penalty and gradient clip, and their parameters by epoch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from curvact.activations import Activation, PSSiLU


def activation_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Every learnable parameter of an activation, once."""
    found = [p for m in model.modules() if isinstance(m, Activation) for p in m.parameters()]
    return list(dict.fromkeys(found))


def penalty(model: nn.Module) -> Tensor:
    """Σ|β| over the model's PSSiLUs, each counted once; arXiv 2110.05626 adds 10 times it to the loss. [paper]"""
    betas = _betas(model)
    return torch.stack([beta.abs().sum() for beta in betas]).sum() if betas else torch.zeros(())


@torch.no_grad()
def clip_beta_gradient(model: nn.Module, norm: float) -> None:
    """Scale the gradient of each β down to that norm; before weight decay and momentum. [paper]"""
    for beta in _betas(model):
        if beta.grad is not None:
            beta.grad.mul_((norm / beta.grad.norm().clamp_min(1e-30)).clamp_max(1.0))


def current_parameters(model: nn.Module) -> dict[str, float]:
    """Learnable activation parameters by name (the mean, where one has several values)."""
    own = {id(p) for p in activation_parameters(model)}
    return {name: float(p.detach().mean()) for name, p in model.named_parameters() if id(p) in own}


def _betas(model: nn.Module) -> list[nn.Parameter]:
    found = [m.beta for m in model.modules() if isinstance(m, PSSiLU)]
    return [b for b in dict.fromkeys(found) if isinstance(b, nn.Parameter)]
