"""A small vision transformer whose attention can be differentiated twice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.activations import ActivationLike
from curvact.errors import CurvactError
from curvact.models.layers import (
    ActivationSource,
    Scope,
    activation_source,
    initialize,
    normalization,
    require_sizes,
    require_square,
)

POSITIONS = 0.5
"""Standard deviation of the initial positions: with the usual 0.02 small models hardly tell places apart for many epochs."""


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(qkᵀ/√d)v for q, k, v of shape …×tokens×d, in plain tensor code: fused kernels have no second derivative.

    >>> attention(torch.zeros(2, 3), torch.rand(2, 3), torch.tensor([[1.0], [3.0]]))
    tensor([[2.],
            [2.]])
    """
    weights = torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1), -1)
    return weights @ v


class Attention(nn.Module):
    """Self-attention with several heads. N×tokens×width in and out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(x).view(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attention(q, k, v).transpose(1, 2).reshape(n, tokens, width))  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Pre-norm: x + attn(norm(x)), then x + fc2(act(fc1(norm(x)))). N×tokens×width in and out."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, source: ActivationSource, stage: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, mlp_ratio * width)
        self.act = source(stage, mlp_ratio * width, "tokens")
        self.fc2 = nn.Linear(mlp_ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]


class ViT(nn.Module):
    """Vision transformer (arXiv 2010.11929): patches, learned positions, pre-norm blocks, norm, mean of the tokens, linear head.

    There is no class token. The activation is in the MLPs; attention has a softmax as always. Weights start LeCun-normal and
    positions with deviation 0.5, not at the usual 0.02: small models then train in a fraction of the epochs, by SGD too [ours].

    activation: a name, a factory or a module. scope: "network", "stage" or "layer" (both are a block here) or
    "channel": what has one of its own; None: see `activation_source`.
    channels, classes: of the data. size: side of the images in pixels, which must then be so large.
    patch: side of a patch; None: 16 from size 96, else about an eighth of the size and at least 2 (4 at 28 and 32). The image
    is padded with zeros after the normalization, as equally on all sides as can be, to a multiple of it.
    depth: number of blocks. width: of a token, a multiple of `heads`. mlp_ratio: hidden width of the MLPs in widths.
    mean, std: the data's normalization, which is the first layer. generator: of the initial weights.
    Maps N×channels×size×size in [0, 1] to N×classes logits. Raises CurvactError for a bad argument and other sizes of images.

    >>> model = ViT("rctaf(curvature=6)", depth=2, width=24)
    >>> model(torch.rand(2, 3, 32, 32)).shape, model.pos_embed.shape
    (torch.Size([2, 10]), torch.Size([1, 64, 24]))
    """

    def __init__(
        self,
        activation: ActivationLike = "relu",
        *,
        channels: int = 3,
        classes: int = 10,
        size: int = 32,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
        mlp_ratio: int = 4,
        patch: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scope: Scope | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require_sizes(
            "vit",
            channels=channels,
            classes=classes,
            size=size,
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
        )
        if patch is None:
            patch = 16 if size >= 96 else min(size, max(2, round(size / 8)))
        require_sizes("vit", patch=patch)
        if patch > size:
            raise CurvactError(f"vit got patch={patch} for size={size}: the smallest size for it is {patch}")
        if width % heads:
            raise CurvactError(f"vit got width={width}, heads={heads}: the width must be a multiple of heads")
        self.size = size
        missing = -size % patch
        self.padding = (missing // 2, missing - missing // 2) * 2
        source = activation_source(activation, scope)
        if source.scope == "network":
            self.activation = source(0, mlp_ratio * width, "tokens")
        self.normalize = normalization(channels, mean, std)
        self.patch_embed = nn.Conv2d(channels, width, patch, patch)
        self.pos_embed = nn.Parameter(torch.empty(1, ((size + missing) // patch) ** 2, width))
        self.blocks = nn.Sequential(
            *(TransformerBlock(width, heads, mlp_ratio, source, number + 1) for number in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        initialize(self, generator, activations=source.made, lecun=True)
        nn.init.normal_(self.pos_embed, std=POSITIONS, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        require_square("vit", x, self.size)
        x = self.normalize(x)
        if any(self.padding):
            x = F.pad(x, self.padding)
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(tokens + self.pos_embed)).mean(1))  # type: ignore[no-any-return]
