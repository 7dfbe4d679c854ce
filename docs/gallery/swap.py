"""Swap an activation into a network

Every ReLU of a network becomes an activation of a chosen κ, modules and functional calls alike. The
report says what was replaced and where. The weights stay as they are.
"""

import torch
from torch import nn

import curvact as cv


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3), nn.Linear(8, 10)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.first(x)).mean((2, 3))
        return self.last(torch.relu(x))


net, images = Net(), torch.rand(2, 1, 8, 8)
before = net(images)
for kappa in (1, 10, 100, 1000):
    other = Net()
    other.load_state_dict(net.state_dict())
    report = cv.swap_activations(other, "ReLU", f"rctaf(curvature={kappa})", functional="rewrite")
    change = (report.model(images) - before).abs().max().item()
    print(f"κ = {kappa:<5} replaced {len(report.replaced)}, largest change of a logit {change:.4f}")
print(report)
