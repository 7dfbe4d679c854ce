"""Convolutions of 3×3 and stride 1 by Winograd's minimal filtering (arXiv 1509.09308) on a CPU: a
quarter of the multiplications.

It computes in fp32 and rounds about ten times as coarsely as the direct sum (1e-5 of the largest
output). Only the search of AutoAttack's fast mode uses it: 26 % of its CPU time on a ResNet-18 of
width 16. The kernel is C (`curvact.native_code`); without a compiler the convolutions stay as they
are.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact import native_code

_SOURCE = Path(__file__).with_name("_winograd.c")
CHANNELS = 16
MOST = 256
"""Channels come in multiples of the one, and up to the other: beyond, the filters leave the cache.
"""

FILTER = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
"""G of F(4×4, 3×3)."""


class WinogradConv2d(nn.Conv2d):
    """A convolution with its weights fixed and transformed, for the outputs and for the gradient
    with respect to the input.

    relu: whether a ReLU follows. With fewer than 16 input channels (images) only the gradient is by
    Winograd, padded to 16 channels.
    """

    filters: Tensor
    turned: Tensor

    def __init__(self, conv: nn.Conv2d, *, relu: bool = False) -> None:
        super().__init__(
            conv.in_channels, conv.out_channels, 3, padding=int(conv.padding[0]), bias=conv.bias is not None
        )
        self.weight, self.relu = conv.weight, relu
        if conv.bias is not None:
            self.bias = nn.Parameter(conv.bias.detach().clone())
        weight = conv.weight.detach()
        self.direct = conv.in_channels < CHANNELS
        turned = F.pad(weight, [0, 0, 0, 0, 0, -conv.in_channels % CHANNELS]).flip(2, 3).transpose(0, 1)
        self.register_buffer("filters", transformed(weight[:0] if self.direct else weight), persistent=False)
        self.register_buffer("turned", transformed(turned), persistent=False)

    def forward(self, input: Tensor, added: Tensor | None = None) -> Tensor:
        """added: as the output; added to it, before the ReLU."""
        return self.padded(input, int(self.padding[0]), added)

    def padded(self, x: Tensor, padding: int, added: Tensor | None = None) -> Tensor:
        """As `forward`, with another padding: 0, 1 or 2."""
        if torch.is_grad_enabled() and (x.requires_grad or (added is not None and added.requires_grad)):
            out: Tensor = _Winograd.apply(x, added, self, padding)  # type: ignore[no-untyped-call]
            return out
        return self.without_gradient(x, padding, added)

    def without_gradient(self, x: Tensor, padding: int, added: Tensor | None) -> Tensor:
        if not self.direct:
            return _convolved(x, None, self.filters, self.bias, padding, added, self.relu)
        out = F.conv2d(x, self.weight, self.bias, padding=padding)
        if added is not None:
            out += added
        return out.relu_() if self.relu else out


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, added: Tensor | None, conv: WinogradConv2d, padding: int) -> Tensor:
        out = conv.without_gradient(x, padding, added)
        ctx.save_for_backward(*([out] if conv.relu else []))
        ctx.conv, ctx.padding, ctx.sum = conv, padding, added is not None
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gate: Tensor | None = None
        if ctx.conv.relu:
            (gate,) = ctx.saved_tensors
        if ctx.sum and gate is not None:  # the other summand needs the gated gradient too
            gradient, gate = torch.ops.aten.threshold_backward(gradient, gate, 0), None
        inner = None
        if ctx.needs_input_grad[0]:
            inner = _convolved(gradient, gate, ctx.conv.turned, None, 2 - ctx.padding)
            inner = inner[:, : ctx.conv.in_channels]
        return inner, gradient if ctx.sum else None, None, None


def fits(module: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether the kernel computes this layer, and is likely to be faster."""
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (3, 3)
        and module.stride == (1, 1)
        and module.dilation == (1, 1)
        and module.groups == 1
        and module.padding in ((0, 0), (1, 1), (2, 2))
        and module.padding_mode == "zeros"
        and (module.in_channels < CHANNELS or module.in_channels % CHANNELS == 0)
        and module.out_channels % CHANNELS == 0
        and max(module.in_channels, module.out_channels) <= MOST
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
    )


def transformed(weight: Tensor) -> Tensor:
    """G g Gᵀ of every filter, out×in×3×3 → 36×in×out, computed in float64."""
    g = torch.tensor(FILTER, dtype=torch.float64, device=weight.device)
    outs, ins = weight.shape[:2]
    spots = torch.einsum("ai,okij,bj->abko", g, weight.double(), g)
    return spots.reshape(36, ins, outs).float().contiguous()


def _convolved(
    x: Tensor,
    gate: Tensor | None,
    filters: Tensor,
    bias: Tensor | None,
    padding: int,
    added: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """x, gate: n×in×H×W; x counts as 0 where gate ≤ 0. Returns, and added is, n×out×(H + 2·padding
    − 2)×(W + 2·padding − 2).
    """
    library = kernel()
    assert library is not None
    count, ins, height, width = x.shape
    outs = filters.shape[2]
    size = (count, outs, height + 2 * padding - 2, width + 2 * padding - 2)
    for what, tensor, shape in (
        ("x", x, (count, filters.shape[1], height, width)),
        ("gate", gate, x.shape),
        ("added", added, size),
    ):
        if tensor is not None and (
            tensor.shape != shape or tensor.dtype != torch.float32 or tensor.device.type != "cpu"
        ):
            raise ValueError(
                f"{what}: {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}, not {tuple(shape)}"
            )
    inputs = [
        None if t is None else t.contiguous(memory_format=torch.channels_last) for t in (x, gate, added)
    ]
    out = torch.empty(size, memory_format=torch.channels_last)
    if out.numel():
        threads = torch.get_num_threads() if library.parallel else 1
        scratch = torch.empty(threads * library.scratch(ins, outs))
        library.run(
            *(
                None if t is None else t.data_ptr()
                for t in (*inputs[:2], filters, bias, inputs[2], out, scratch)
            ),
            count,
            height,
            width,
            ins,
            outs,
            padding,
            relu,
            threads,
            library.parallel,
        )
    return out


class _Kernel:
    def __init__(self, loaded: ctypes.CDLL) -> None:
        self.run = loaded.curvact_winograd
        self.run.restype = None
        self.run.argtypes = (
            [ctypes.c_void_p] * 7 + [ctypes.c_int64] * 6 + [ctypes.c_int] * 2 + [ctypes.c_void_p]
        )
        self.scratch = loaded.curvact_winograd_scratch
        self.scratch.argtypes, self.scratch.restype = [ctypes.c_int64] * 2, ctypes.c_int64
        self.parallel = native_code.parallel()


@cache
def kernel() -> _Kernel | None:
    """The kernel, built on first use; None without a compiler, or without AVX2 and AVX-512."""
    try:
        return _Kernel(ctypes.CDLL(str(native_code.compiled(_SOURCE))))
    except (native_code.Unavailable, OSError, AttributeError):
        return None
