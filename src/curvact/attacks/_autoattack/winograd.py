"""Convolutions of 3×3 and stride 1 by Winograd's minimal filtering (arXiv 1509.09308) on a CPU: a quarter of the multiplications.

In fp32; it rounds about ten times as coarsely as the direct sum (1e-5 of the largest output). The search uses it, never the
check. A native kernel does it (`curvact.native_code`); where there is none, the convolutions stay as they are.
"""

from __future__ import annotations

import copy
import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curvact import native_code

_SOURCE = Path(__file__).with_name("_winograd.c")
CHANNELS = 16
MOST = 256
"""Channels come in multiples of the one, and up to the other: beyond, the filters leave the cache."""

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
    """A convolution with its weights fixed and transformed, for the outputs and for the gradient with respect to the input."""

    filters: Tensor
    turned: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels, conv.out_channels, 3, padding=conv.padding, bias=conv.bias is not None
        )
        self.weight, self.bias = conv.weight, conv.bias
        weight = conv.weight.detach()
        self.register_buffer("filters", transformed(weight), persistent=False)
        self.register_buffer("turned", transformed(weight.flip(2, 3).transpose(0, 1)), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return self.padded(input, int(self.padding[0]))

    def padded(self, x: Tensor, padding: int) -> Tensor:
        """As `forward`, with another padding: 0, 1 or 2."""
        out: Tensor = _Winograd.apply(x, self.filters, self.turned, self.bias, padding)  # type: ignore[no-untyped-call]
        return out


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, filters: Tensor, turned: Tensor, bias: Tensor | None, padding: int
    ) -> Tensor:
        ctx.save_for_backward(turned)
        ctx.padding = padding
        return _convolved(x, filters, bias, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (turned,) = ctx.saved_tensors
        return _convolved(gradient, turned, None, 2 - ctx.padding), None, None, None, None


def with_winograd(model: nn.Module) -> tuple[nn.Module, int]:
    """A copy in which every convolution that fits is one by Winograd, and their number; 0 on a GPU or without the kernel."""
    model = copy.deepcopy(model)
    count = 0
    if kernel() is None:
        return model, count
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if fits(child):
                assert isinstance(child, nn.Conv2d)
                if child not in made:
                    made[child] = WinogradConv2d(child).train(child.training).requires_grad_(False)
                    count += 1
                parent._modules[name] = made[child]
    return model, count


def fits(module: nn.Module | None) -> bool:
    """Whether the kernel can do this layer, and is likely to do it faster."""
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (3, 3)
        and module.stride == (1, 1)
        and module.dilation == (1, 1)
        and module.groups == 1
        and module.padding in ((0, 0), (1, 1), (2, 2))
        and module.padding_mode == "zeros"
        and all(c % CHANNELS == 0 and c <= MOST for c in (module.in_channels, module.out_channels))
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
    )


def transformed(weight: Tensor) -> Tensor:
    """G g Gᵀ of every filter, out×in×3×3 → 36×in×out, computed in float64."""
    g = torch.tensor(FILTER, dtype=torch.float64, device=weight.device)
    outs, ins = weight.shape[:2]
    spots = torch.einsum("ai,okij,bj->abko", g, weight.double(), g)
    return spots.reshape(36, ins, outs).float().contiguous()


def _convolved(x: Tensor, filters: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """x: n×in×H×W → n×out×(H + 2·padding − 2)×(W + 2·padding − 2), channels last."""
    library = kernel()
    assert library is not None
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.shape[1] != filters.shape[1]:
        raise ValueError(f"{x.dtype} of shape {tuple(x.shape)} on {x.device} for {filters.shape[1]} channels")
    x = x.contiguous(memory_format=torch.channels_last)
    count, ins, height, width = x.shape
    outs = filters.shape[2]
    size = (count, outs, height + 2 * padding - 2, width + 2 * padding - 2)
    out = torch.empty(size, memory_format=torch.channels_last)
    if out.numel():
        threads = torch.get_num_threads() if library.parallel else 1
        scratch = torch.empty(threads * library.scratch(ins, outs))
        library.run(
            x.data_ptr(),
            filters.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            scratch.data_ptr(),
            count,
            height,
            width,
            ins,
            outs,
            padding,
            threads,
            library.parallel,
        )
    return out


class _Kernel:
    def __init__(self, loaded: ctypes.CDLL) -> None:
        self.run = loaded.curvact_winograd
        self.run.restype = None
        self.run.argtypes = (
            [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 6 + [ctypes.c_int, ctypes.c_void_p]
        )
        self.scratch = loaded.curvact_winograd_scratch
        self.scratch.argtypes, self.scratch.restype = [ctypes.c_int64] * 2, ctypes.c_int64
        self.parallel = native_code.parallel()


@cache
def kernel() -> _Kernel | None:
    """Built on first use; None where it cannot be (no compiler, or neither AVX2 nor AVX-512)."""
    try:
        return _Kernel(ctypes.CDLL(str(native_code.compiled(_SOURCE))))
    except (native_code.Unavailable, OSError, AttributeError):
        return None
