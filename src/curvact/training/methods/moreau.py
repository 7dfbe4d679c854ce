"""ME-A: training that is pulled towards its own slow average, the Moreau envelope of the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from curvact.errors import CurvactError
from curvact.training.methods.averaging import KINDS, Average
from curvact.training.parsing import is_number


class MoreauEnvelope(Average):
    """The slow copy u of ME-A (Xiao, Zhang, Luo, Ozdaglar 2024, arXiv 2405.01817), and its pull. [paper]

    Training minimizes `L(w) + ρ/2·‖w − u‖²`, all of it by the optimizer, and u follows w:

        u ← u + τ(w − u)

    With w at the minimum, u − w is 1/ρ times the gradient of the Moreau envelope
    `M(u) = min_w L(w) + ρ/2·‖w − u‖²`. So the step of u is one of gradient descent on M, with rate
    τ/ρ. [derived] u is evaluated and kept.

    outer: "swa", τ = 1/(n + 1) at the n-th epoch's end, from 0; or "ema", after every step
        1 − min(decay, (1 + n)/(10 + n)), but 1 at the first. Both are those of `Average`, so that ρ = 0
        is SWA, or EMA, bit for bit. The authors' code (JiancongXiao/Moreau-Envelope-SGD) has the one on
        CIFAR and SVHN, with ρ = 5e-4 from half of training on, and the other beside synthetic images.
    rho: ρ, of all parameters, like weight decay of all. decay: of "ema".

    `begin()` makes u the current weights; before it there is no pull. [ours] The authors' other
    program computes Σ(u − w)(u + w) in the place of ‖u − w‖², which is no distance, and leaves the pull
    out with TRADES; neither is repeated here.

    Raises CurvactError for a setting that is not allowed.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 1.0)
    >>> envelope = MoreauEnvelope(model, rho=0.5)
    >>> envelope.begin()
    >>> _ = nn.init.constant_(model.weight, 3.0)
    >>> envelope.penalty().item()
    1.0
    """

    def __init__(self, model: nn.Module, rho: float = 5e-4, outer: str = "swa", decay: float = 0.995) -> None:
        check_settings(rho=rho, outer=outer, decay=decay)
        super().__init__(model, outer, decay)
        self.rho = float(rho)

    @property
    def begun(self) -> bool:
        """Whether there is a slow copy, and so a pull."""
        return bool(self._averages)

    def begin(self) -> None:
        """Make u the current weights, at the first call; nothing at another."""
        if not self.begun:
            self._averages = self._current()

    def penalty(self) -> Tensor:
        """ρ/2·‖w − u‖², a scalar on the device of w, with its gradient in w."""
        parts = [
            (w - u.to(w.dtype)).square().sum()
            for w, u in zip(self._parameters.values(), self._averages, strict=True)
        ]
        return self.rho / 2 * torch.stack(parts).sum()


def check_settings(*, rho: Any, outer: Any, decay: Any, start: Any = 0.0) -> None:
    """CurvactError unless these are settings of ME-A; `start` is the part of training at which it
    begins.
    """
    if not is_number(rho) or rho < 0:
        raise CurvactError(f"rho={rho!r} of me-a: a number >= 0")
    if outer not in KINDS:
        raise CurvactError(f"outer={outer!r} of me-a: allowed are {', '.join(KINDS)}")
    for name, value in (("decay", decay), ("start", start)):
        if not is_number(value) or not 0 <= value < 1:
            raise CurvactError(f"{name}={value!r} of me-a: a number in [0, 1)")
