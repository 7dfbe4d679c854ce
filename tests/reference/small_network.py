"""The network of `objectives`, in torch: float64, with batch norm, weights from a key."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from curvact.random import generator

INPUTS, HIDDEN, CLASSES = 3, 4, 3
NAMES = {"A": "0.weight", "a": "0.bias", "g": "1.weight", "s": "1.bias", "B": "3.weight", "b": "3.bias"}


def small_network(key: str = "test-network") -> nn.Sequential:
    """In training mode; its running statistics are drawn too."""
    random = generator(0, key)
    net = nn.Sequential(
        nn.Linear(INPUTS, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES)
    ).double()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(generator=random)
        net[1].running_mean.normal_(generator=random)
        net[1].running_var.uniform_(0.5, 2, generator=random)
    return net.train()


def weights_of(net: nn.Sequential) -> dict[str, np.ndarray]:
    """Its weights by the names of `objectives`, copied."""
    state = {key: value.numpy().copy() for key, value in net.state_dict().items()}
    arrays = {short: state[long] for short, long in NAMES.items()}
    arrays |= {
        "A": arrays["A"].T,
        "B": arrays["B"].T,
        "mean": state["1.running_mean"],
        "var": state["1.running_var"],
    }
    return arrays
