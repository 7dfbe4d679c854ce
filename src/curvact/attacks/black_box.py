"""Attacks without the model's gradient: random search, and a small network to transfer examples
from.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from curvact.attacks.losses import margin
from curvact.attacks.pgd import Model
from curvact.attacks.threat import ThreatModel


def random_search(
    model: Model, x: Tensor, y: Tensor, threat_model: ThreatModel, queries: int, random: torch.Generator
) -> Tensor:
    """Random search on the margin: change one window at a time, keep the change if the margin
    grows. [ours]

    Windows are squares of images and stretches of other inputs. Their area shrinks from half of the
    image to a hundredth.
    Each channel of a window moves by one sign (2ε a coordinate for linf, else length ε); then the
    image is projected.
    queries: forward passes an image. Returns x_adv of the shape of x.
    """
    epsilon = threat_model.epsilon
    planes = x if x.dim() == 4 else x.reshape(len(x), 1, 1, -1)
    count, channels, height, width = planes.shape

    def signs(*shape: int) -> Tensor:
        return x.new_empty(shape).uniform_(-1, 1, generator=random).sign()

    def inside(size: int, window: int) -> Tensor:
        """0 and 1 along an axis: a window at a random place for each image."""
        place = torch.rand(count, 1, generator=random, device=x.device) * (size - window + 1)
        at = torch.arange(size, device=x.device) - place.floor()
        return ((at >= 0) & (at < window)).to(x.dtype)

    def move(window: Tensor) -> Tensor:
        if threat_model.norm == "linf":
            return 2 * epsilon * window
        order = 2 if threat_model.norm == "l2" else 1
        length: Tensor = torch.linalg.vector_norm(window.flatten(1), ord=order, dim=1)
        return window * (epsilon / length.clamp_min(1e-12)).view(-1, 1, 1, 1)

    with torch.no_grad():
        stripes = move(signs(count, channels, 1, width).expand_as(planes))
        best = threat_model.project(x + stripes.reshape_as(x), x)
        value = margin(model(best), y)
        for query in range(1, queries):
            area = 0.5 * 0.02 ** (query / queries)
            tall = max(1, round(math.sqrt(area) * height)) if height > 1 else 1
            wide = max(1, round((math.sqrt(area) if height > 1 else area) * width))
            window = inside(height, tall).view(count, 1, height, 1) * inside(width, wide).view(
                count, 1, 1, width
            )
            change = move(window * signs(count, channels, 1, 1))
            candidate = threat_model.project(best + change.reshape_as(x), x)
            new = margin(model(candidate), y)
            better = new > value
            best = torch.where(better.view(-1, *[1] * (x.dim() - 1)), candidate, best)
            value = torch.where(better, new, value)
    return best


def small_network(x: Tensor, y: Tensor, random: torch.Generator) -> Model:
    """A small network fitted to the images under noise: two convolutions and a readout, or one
    hidden layer. [ours]
    """
    classes = max(int(y.max()) + 1, 2)

    def weights(*shape: int) -> Tensor:
        fan_in = math.prod(shape[1:])
        return (torch.randn(shape, generator=random, device=x.device) * math.sqrt(2 / fan_in)).to(x.dtype)

    image = x.dim() == 4
    if image:
        stride = max(1, x.shape[-1] // 16)
        parameters = [weights(16, x.shape[1], 3, 3), weights(32, 16, 3, 3), weights(classes, 512)]
    else:
        parameters = [weights(64, x[0].numel()), weights(classes, 64)]

    def network(x: Tensor) -> Tensor:
        x = x - 0.5
        if image:
            x = F.relu(F.conv2d(x, parameters[0], stride=stride, padding=1))
            x = F.relu(F.conv2d(x, parameters[1], stride=2, padding=1))
            return F.linear(F.adaptive_avg_pool2d(x, 4).flatten(1), parameters[2])
        return F.linear(F.relu(F.linear(x.flatten(1), parameters[0])), parameters[1])

    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.Adam(parameters, lr=5e-3)
    for _ in range(60):
        noise = torch.empty_like(x).normal_(0, 0.1, generator=random)
        with torch.enable_grad():
            loss = F.cross_entropy(network((x + noise).clamp(0, 1)), y)
            gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return network
