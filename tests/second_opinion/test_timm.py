"""curvact's activations as the `act_layer` of a real timm. Skipped if timm cannot be imported.

timm needs torchvision, whose wheel breaks a CPU build of torch, so it runs in an environment of its
own:

    python -m venv V
    V/bin/pip install torch==2.14.1 torchvision==0.29.1 timm lazy_loader pooch scipy pillow pytest
    hypothesis PYTHONPATH=src V/bin/python -m pytest tests/second_opinion/test_timm.py
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import curvact as cv
from curvact.activations import RCTAF, Activation, PSSiLU

timm = pytest.importorskip("timm", exc_type=ImportError)


@pytest.mark.parametrize(
    "model", ["resnet10t", "efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224"]
)
@pytest.mark.parametrize("name", ["rctaf(curvature=6)", "pssilu(learnable=True)"])
def test_forward_and_backward(model: str, name: str) -> None:
    net = timm.create_model(model, num_classes=10, act_layer=cv.act_layer(name))
    kind = type(cv.activation(name))
    ours = [m for m in net.modules() if isinstance(m, kind)]
    assert len(ours) >= 3
    assert len({id(m) for m in ours}) == len(ours)
    left = [type(m).__name__ for m in net.modules() if isinstance(m, (nn.ReLU, nn.ReLU6, nn.GELU))]
    assert left == []
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    out = net(x)
    assert out.shape == (2, 10)
    nn.functional.cross_entropy(out, torch.tensor([1, 2])).backward()
    learned = [p for m in ours for p in m.parameters()]
    assert len(learned) == (2 * len(ours) if kind is PSSiLU else 0)
    assert all(
        p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters() if p.requires_grad
    )


def test_a_class_is_an_act_layer_too() -> None:
    net = timm.create_model("resnet10t", num_classes=10, act_layer=RCTAF)
    assert all(isinstance(m, Activation) for n, m in net.named_modules() if n.endswith(("act1", "act2")))
