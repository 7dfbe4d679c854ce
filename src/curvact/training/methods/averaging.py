"""Averages of the weights along training: exponential (EMA) or equal (SWA)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from curvact.errors import CurvactError, nearest
from curvact.training.parsing import is_number

KINDS = ("ema", "swa")


class Average:
    """An average of a model's parameters, kept beside the model in float32 or wider.

    kind: "ema", `a ← d·a + (1 − d)·w` with `d = min(decay, (1 + t)/(10 + t))` at update t = 1, 2,
    …, so that the first weights fade soon; or "swa", the mean of all weights (Izmailov et al. 2018,
    arXiv 1803.05407). Update 0 of either takes the weights as they are, as torch's AveragedModel
    does. decay: EMA's, per update, in [0, 1).

    Call `update()` after each optimizer step (EMA) or each epoch (SWA). Buffers are not averaged:
    batch norm gets new statistics by `curvact.training.methods.batch_norm.recalibrate`.

    Raises CurvactError for another kind or decay.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> average = Average(model, kind="swa")
    >>> for value in (1.0, 2.0, 6.0):
    ...     _ = nn.init.constant_(model.weight, value)
    ...     average.update()
    >>> with average.weights():
    ...     print(model.weight.item())
    3.0
    >>> model.weight.item()
    6.0
    """

    def __init__(self, model: nn.Module, kind: str = "ema", decay: float = 0.995) -> None:
        if kind not in KINDS:
            raise CurvactError(
                f"averaging {kind!r}{nearest(str(kind), KINDS)}: allowed are {', '.join(KINDS)}"
            )
        if not is_number(decay) or not 0 <= decay < 1:
            raise CurvactError(f"decay={decay!r} of an average: a number in [0, 1)")
        self.kind = kind
        self.decay = float(decay)
        self.updates = 0
        self._parameters = dict(model.named_parameters())
        self._averages: list[Tensor] = []

    @torch.no_grad()
    def update(self) -> None:
        """Take the current parameters into the average."""
        now = [p.detach().to(_wide(p)) for p in self._parameters.values()]
        if self.updates == 0:
            self._averages = self._current()
        elif now:
            if self.kind == "swa":
                share = 1 / (self.updates + 1)
            else:
                share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(self._averages, now, share)
        self.updates += 1

    def _current(self) -> list[Tensor]:
        """Copies of the parameters, as wide as averages are."""
        return [p.detach().to(_wide(p), copy=True) for p in self._parameters.values()]

    @contextmanager
    def weights(self) -> Iterator[None]:
        """Inside, the model holds the averaged parameters; after, bit for bit, its own.

        Before the first update it holds its own inside too.
        """
        if self.updates == 0:
            yield
            return
        parameters = list(self._parameters.values())
        own = [p.detach().clone() for p in parameters]
        _copy(parameters, self._averages)
        try:
            yield
        finally:
            _copy(parameters, own)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers."""
        averages = dict(zip(self._parameters, self._averages, strict=True)) if self._averages else {}
        return {"kind": self.kind, "decay": self.decay, "updates": self.updates, "averages": averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises CurvactError, with nothing changed, for another kind or other parameters.
        """
        try:
            kind, decay, updates, averages = (state[k] for k in ("kind", "decay", "updates", "averages"))
            theirs = {name: tuple(tensor.shape) for name, tensor in averages.items()}
        except (KeyError, AttributeError):
            raise CurvactError(
                "the state of an average needs its 'kind', 'decay', 'updates' and 'averages'"
            ) from None
        if kind != self.kind:
            raise CurvactError(f"the state is of averaging {kind!r}, and this is {self.kind!r}")
        own = {name: tuple(p.shape) for name, p in self._parameters.items()} if updates or averages else {}
        if theirs != own:
            odd = sorted(n for n in theirs.keys() | own.keys() if theirs.get(n) != own.get(n))
            raise CurvactError(f"the averaged parameters do not fit this model: {', '.join(odd[:3])} differ")
        self.decay, self.updates = float(decay), int(updates)
        self._averages = [
            averages[name].to(device=p.device, dtype=_wide(p), copy=True)
            for name, p in self._parameters.items()
            if averages
        ]


@torch.no_grad()
def _copy(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _wide(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)
