"""A small vision transformer whose attention can be differentiated twice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from curvact.activations import ActivationLike
from curvact.errors import CurvactError
from curvact.models.layers import ActivationSource, Common, prepare, require_sizes, require_square

POSITIONS = 0.5
"""Standard deviation of the initial positions. At the usual 0.02, small models need many epochs
before they tell places apart."""


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(qkᵀ/√d)v for q, k, v of shape …×tokens×d.

    Written in plain tensor operations, because fused kernels have no second derivative.

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
    """Vision transformer (arXiv 2010.11929): patches, pre-norm blocks, mean of the tokens.

    It has no class token. The activation is in the MLPs; attention keeps its softmax. Weights start
    LeCun-normal and positions with deviation 0.5 instead of 0.02: small models then train in a
    fraction of the epochs, also by SGD [ours].

    activation: a name, a factory or a module. patch: side of a patch in pixels; None: 16 from size
    96, else about an eighth of the size and at least 2 (4 at 28 and 32). After the normalization
    the image is padded with zeros on all sides to a multiple of the patch.
    depth: number of blocks. width: of a token, a multiple of `heads`. mlp_ratio: hidden width of
    the MLPs divided by `width`. Other arguments: `Common`; each block is a stage.
    Maps N×channels×size×size in [0, 1] to N×classes logits. Raises CurvactError for a bad argument
    and for images of another size.

    >>> model = ViT("rctaf(curvature=6)", depth=2, width=24)
    >>> model(torch.rand(2, 3, 32, 32)).shape, model.pos_embed.shape
    (torch.Size([2, 10]), torch.Size([1, 64, 24]))
    """

    def __init__(
        self,
        activation: ActivationLike = "relu",
        *,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
        mlp_ratio: int = 4,
        patch: int | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__()
        sizes = {"width": width, "depth": depth, "heads": heads, "mlp_ratio": mlp_ratio}
        frame = prepare("vit", activation, common, **sizes)
        act, size = frame.activations, frame.size
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
        if act.scope == "network":
            self.activation = act(0, mlp_ratio * width, "tokens")
        self.normalize = frame.normalize
        self.patch_embed = nn.Conv2d(frame.channels, width, patch, patch)
        self.pos_embed = nn.Parameter(torch.empty(1, ((size + missing) // patch) ** 2, width))
        self.blocks = nn.Sequential(
            *(TransformerBlock(width, heads, mlp_ratio, act, number) for number in range(1, depth + 1))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, frame.classes)
        frame.initialize(self, lecun=True)
        if not self.pos_embed.is_meta:
            nn.init.normal_(self.pos_embed, std=POSITIONS, generator=frame.generator)

    def forward(self, x: Tensor) -> Tensor:
        require_square("vit", x, self.size)
        x = self.normalize(x)
        if any(self.padding):
            x = F.pad(x, self.padding)
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(tokens + self.pos_embed)).mean(1))  # type: ignore[no-any-return]
