"""Square (arXiv 1912.00049), l∞ and l2: random search by squares, from the margin of the logits
alone.

As in the reference all points share each query's place and signs. Here these come from the seed and
the query's number, and the start from the point's own index, so that a point's path does not depend
on its batch. Queries that leave an image unchanged are skipped (l∞: one in 2^channels squares).
Where the network allows it, only the outputs that a square reaches are computed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from curvact.attacks.autoattack.apgd import GPU_STRIDE, Confirm
from curvact.attacks.autoattack.windows import Box, Windowed
from curvact.attacks.losses import margin
from curvact.attacks.pgd import Model
from curvact.attacks.threat import ThreatModel
from curvact.random import generator

FIRST_FRACTION = 0.8
SMALL = 1 / 3
"""Squares up to this part of the image's side are computed by windows."""
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square(
    model: Model,
    confirm: Confirm,
    x: Tensor,
    y: Tensor,
    index: Tensor,
    threat_model: ThreatModel,
    *,
    queries: int,
    seed: int,
    batch_size: int,
    windows: Windowed | None = None,
) -> int:
    """Attack x, `batch_size` points at a time; `confirm` keeps the successes. Arguments as `apgd`.
    l∞ or l2.

    windows: the same model for small changes, used in l∞. Returns the number of images that it
        computed.
    """
    asked = 0
    for part in torch.split(torch.arange(len(x)), batch_size):
        asked += _search(model, confirm, x, y, index, part, threat_model, queries, seed, windows)
    return asked


@torch.no_grad()
def _search(
    model: Model,
    confirm: Confirm,
    x: Tensor,
    y: Tensor,
    index: Tensor,
    part: Tensor,
    threat_model: ThreatModel,
    queries: int,
    seed: int,
    windows: Windowed | None,
) -> int:
    point = part.to(x.device)
    clean, labels = x[point], y[point]
    best = _start(clean, index[part], threat_model, seed)
    lead = -margin(model(best), labels)
    hit, x_hit = lead <= 0, best
    random = generator(seed, "autoattack square queries")
    propose = _propose_linf if threat_model.norm == "linf" else _propose_l2
    stride = 1 if x.device.type == "cpu" else GPU_STRIDE
    small = SMALL * min(x.shape[2:]) if windows is not None and threat_model.norm == "linf" else 0
    asked, begun = 0, False
    for query in range(queries + 1):
        if query % stride == 0 or query == queries:
            rows = hit.nonzero().squeeze(1)
            if len(rows):
                keep = torch.ones_like(hit)
                keep[rows] = ~confirm(point[rows], x_hit[rows])
                hit = torch.zeros_like(hit)
                point, clean, labels, best, lead, hit, x_hit = (
                    value[keep] for value in (point, clean, labels, best, lead, hit, x_hit)
                )
                if windows is not None and begun:
                    windows.keep(keep)
        if query == queries or not len(point):
            break
        rows, box, patch = propose(best, clean, threat_model.epsilon, query, random)
        if not len(rows):
            continue
        top, bottom, left, right = box
        local = windows if windows is not None and bottom - top <= small else None
        if local is None:
            new = best[rows]
            new[:, :, top:bottom, left:right] = patch
            logits = model(new)
        else:
            if not begun:
                local.begin(best.contiguous(memory_format=torch.channels_last))
                begun = True
            logits = local.logits(rows, box, patch)
            asked += len(rows)
        there = -margin(logits, labels[rows])
        won = (there < lead[rows]) | (there <= 0)
        best[rows[won], :, top:bottom, left:right] = patch[won]
        lead[rows] = torch.where(won, there, lead[rows])
        if local is not None:
            local.accept(won)
        fresh = (there <= 0) & ~hit[rows]
        before = hit.clone()
        hit[rows] |= fresh
        x_hit = best if stride == 1 else torch.where((hit & ~before).view(-1, 1, 1, 1), best, x_hit)
    return asked


def fraction(query: int) -> float:
    """The part of the pixels that a query's square covers: 0.8, halved after fixed numbers of
    queries.
    """
    return math.ldexp(FIRST_FRACTION, -sum(query > limit for limit in HALVINGS))


def _start(clean: Tensor, index: Tensor, threat_model: ThreatModel, seed: int) -> Tensor:
    """l∞: vertical stripes of ±ε. l2: ε shared out over a tiling of bumps."""
    channels, height, width = clean.shape[1:]
    randoms = [generator(seed, "autoattack square start", int(i)) for i in index]
    if threat_model.norm == "linf":
        stripes = torch.stack([_signs(channels, 1, width, random=random) for random in randoms]).to(clean)
        return (clean + threat_model.epsilon * stripes).clamp_(0, 1)
    side = max(min(height, width) // 5, 1)
    delta = torch.zeros(clean.shape)
    for row in range(height % side // 2, height - side + 1, side):
        for column in range(width % side // 2, width - side + 1, side):
            window = (slice(None), slice(row, row + side), slice(column, column + side))
            for one, random in zip(delta, randoms, strict=True):
                one[window] = bumps(side, random) * _signs(channels, 1, 1, random=random)
    delta = delta.to(clean)
    return (clean + threat_model.epsilon * delta / _length(delta)).clamp_(0, 1)


def _propose_linf(
    best: Tensor, clean: Tensor, epsilon: float, query: int, random: torch.Generator
) -> tuple[Tensor, Box, Tensor]:
    """One square set to x ± ε, one sign a channel. Returns the rows that change, the square, and
    its new values there.
    """
    channels, height, width = best.shape[1:]
    side = min(max(round(math.sqrt(fraction(query) * height * width)), 1), height, width)
    box = _window(side, height, width, random)
    window = _within(box)
    sign = _signs(channels, 1, 1, random=random).to(best)
    base, old = clean[window], best[window]
    new = torch.minimum(torch.maximum(old + 2 * epsilon * sign, base - epsilon), base + epsilon).clamp_(0, 1)
    rows = (new != old).flatten(1).any(1).nonzero().squeeze(1)
    return rows, box, new[rows]


def _propose_l2(
    best: Tensor, clean: Tensor, epsilon: float, query: int, random: torch.Generator
) -> tuple[Tensor, Box, Tensor]:
    """Bumps in one window get the norm of two windows and the unused part of ε. Every image changes
    as a whole.
    """
    channels, height, width = best.shape[1:]
    side = max(round(math.sqrt(fraction(query) * height * width)), 3)
    side = min(side + 1 - side % 2, height, width)
    window = _within(_window(side, height, width, random))
    other = _within(_window(side, height, width, random))
    shape = bumps(side, random).to(best) * _signs(channels, 1, 1, random=random).to(best)
    delta = best - clean
    unused = (epsilon**2 - _length(delta) ** 2).clamp_min(0)
    both = torch.zeros_like(delta)
    both[window], both[other] = delta[window], delta[other]
    held = both.square().sum((2, 3), keepdim=True)
    old = delta[window]
    new = shape + old / _side_length(old)
    new = new / _side_length(new) * (held + unused / channels).sqrt()
    delta[other] = 0
    delta[window] = new
    moved = (clean + epsilon * delta / _length(delta)).clamp_(0, 1)
    return torch.arange(len(best), device=best.device), (0, height, 0, width), moved


def bumps(side: int, random: torch.Generator) -> Tensor:
    """Two bumps of opposite sign, one above the other or side by side, of norm 1: side×side."""
    upper = side // 2
    shape: Tensor = torch.cat([_bump(upper, side), -_bump(side - upper, side)])
    shape = shape / torch.linalg.vector_norm(shape).clamp_min(1e-12)
    if float(torch.rand((), generator=random)) > 0.5:
        shape = shape.T
    return shape


def _bump(height: int, width: int) -> Tensor:
    """Rings around the middle: at Chebyshev distance d the sum of 1/(k + 1)² over k = d … n; norm
    1.
    """
    if height == 0:
        return torch.zeros(0, width)
    most = max(height // 2, width // 2)
    values = (1.0 / torch.arange(1, most + 2) ** 2).flip(0).cumsum(0).flip(0)
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    bump = values[torch.maximum(rows[:, None], columns[None, :])]
    normed: Tensor = bump / torch.linalg.vector_norm(bump)
    return normed


def _window(side: int, height: int, width: int, random: torch.Generator) -> Box:
    row = int(torch.randint(height - side + 1, (), generator=random))
    column = int(torch.randint(width - side + 1, (), generator=random))
    return row, row + side, column, column + side


def _within(box: Box) -> tuple[slice, ...]:
    return slice(None), slice(None), slice(box[0], box[1]), slice(box[2], box[3])


def _signs(*shape: int, random: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=random).float() * 2 - 1


def _length(delta: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return norm.clamp_min(1e-12).view(-1, 1, 1, 1)


def _side_length(delta: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(delta, dim=(2, 3), keepdim=True)
    return norm.clamp_min(1e-12)
