"""Effective curvature, κ times the spread of the pre-activations, and the share of curved units, by
call site.

At each call of an activation σ on pre-activations a (values of C channels over inputs and
positions)

    effective curvature = κ·s,    s = √((1/C) Σ_c Var a_c),    κ = sup|σ″|.

A scale may move between σ_α(x) = σ₁(αx)/α and the layers around it. κ then changes, κ·s does not.
[derived]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from curvact.activations import max_curvature
from curvact.activations.selection import Selector, matcher
from curvact.analysis.calls import CallSite, Function, call_sites, curvature_at, identity_of, watched
from curvact.analysis.loss import check_dense
from curvact.analysis.records import OnProgress, finite, plain
from curvact.attacks.arguments import door
from curvact.attacks.batch import check_number, checked_module, normal
from curvact.errors import CurvactError
from curvact.models.modes import mode

Batches = Tensor | Iterable[Tensor | Sequence[Tensor]]

HALF, TENTH = 0.5, 0.1
"""A unit counts as curved where |σ″(a)| is at least this part of κ. [ours]"""


@dataclass(frozen=True)
class SiteCurvature:
    """One call site on data.

    max_curvature: κ; infinite for a kink, NaN where it cannot be measured (channels with slopes of
    their own).
    spread: s. effective: κ·s. mean: of the pre-activations. channels, values: their numbers.
    curved_half, curved_tenth: the share of units (of one input, at one position) with |σ″(a)| ≥ κ/2
    and ≥ κ/10; None where κ is 0, infinite or not known.
    """

    site: str
    activation: str
    max_curvature: float
    spread: float
    effective: float
    mean: float
    curved_half: float | None
    curved_tenth: float | None
    channels: int
    values: int


@dataclass(frozen=True)
class EffectiveCurvature:
    """Every call site of a model, in the order of the forward pass. inputs: the number of examples.

    batch_statistics: whether batch norm used the statistics of each batch.
    """

    sites: tuple[SiteCurvature, ...]
    inputs: int
    batch_statistics: bool = False

    @property
    def mean(self) -> float | None:
        """The mean over the call sites; None if any is infinite or not known."""
        values = [site.effective for site in self.sites]
        return sum(values) / len(values) if all(map(math.isfinite, values)) else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: None for infinite or unknown numbers; `kinks` counts the sites with infinite
        κ.
        """
        return {
            "inputs": self.inputs,
            "batch_statistics": self.batch_statistics,
            "mean": self.mean,
            "kinks": sum(math.isinf(site.max_curvature) for site in self.sites),
            "sites": [{**plain(site), "kink": math.isinf(site.max_curvature)} for site in self.sites],
        }


@dataclass(frozen=True)
class EffectiveCurvatureChange:
    """The same call sites before and after training."""

    before: EffectiveCurvature
    after: EffectiveCurvature

    def as_dict(self) -> dict[str, Any]:
        """For JSON: `before`, `after`, and `ratio`: after over before by call site, None where it
        is not finite.
        """
        ratios = {
            old.site: finite(new.effective / old.effective if old.effective else math.nan)
            for old, new in zip(self.before.sites, self.after.sites, strict=True)
        }
        return {"before": self.before.as_dict(), "after": self.after.as_dict(), "ratio": ratios}


@door
def effective_curvature(
    model: nn.Module,
    x: Batches,
    *,
    match: Selector | None = None,
    channel: int | None = None,
    batch_statistics: bool = False,
    batch_size: int = 256,
    on_progress: OnProgress | None = None,
) -> EffectiveCurvature:
    """Effective curvature and the share of curved units at every call site of a model, in eval
    mode. [derived; the shares: ours]

    A shared activation module has a call site for each of its calls. Found are the activations that
    `swap_activations` replaces by default, and functional calls of them (`F.relu(x)`, `x.relu()`).
    The variance is merged over batches in float64 (Chan et al. 1979) and divided by the number of
    values. The model is left as it was.

    x: inputs (N, …), taken `batch_size` at a time, or an iterable of batches (tensors, or sequences
        that start with one).
    match: other modules to find, as `from_` of `swap_activations`: a class, a name, a predicate on
        modules.
    channel: the dimension of the channels in pre-activations. None: 1, but the last one for tokens
        (N, T, C).
    batch_statistics: batch norm uses the statistics of each batch. Right for a model before
        training, whose running statistics belong to no data. The running statistics stay.
    Raises CurvactError for no inputs or no activations, for calls that differ between batches, for
    values that are not finite, and with batch_statistics for a batch that has only one value for a
    channel somewhere.

    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.SiLU())
    >>> _ = nn.init.constant_(model[0].weight, 3.0)
    >>> result = effective_curvature(model, torch.tensor([[-1.0], [1.0]]))
    >>> result.sites[0].spread, round(result.sites[0].effective, 9), result.sites[0].curved_half
    (3.0, 1.5, 0.0)
    """
    check_number(batch_size, "batch_size", "effective_curvature")
    model = checked_module(model, "effective_curvature")
    total: int | None = None
    source: Iterator[Tensor | Sequence[Tensor]]
    if isinstance(x, Tensor) and x.dim():
        check_dense(x, "x of effective_curvature")
        total = -(-len(x) // batch_size)
        source = iter(torch.tensor_split(x, total) if total else ())
    elif not isinstance(x, Iterable) or isinstance(x, (str, bytes, Tensor)):
        raise CurvactError(f"x of effective_curvature is a {type(x).__name__}: a tensor, or batches")
    else:
        total = len(x) if isinstance(x, Sequence) else None
        source = iter(x)
    first = next(source, None)
    if first is None:
        raise CurvactError("no inputs in effective_curvature: at least one batch is needed")
    sites = call_sites(model, _inputs(first)[:1], match=match)
    distinct = {identity_of(site.function): site.function for site in sites}
    kappas = {key: _kappa(function) for key, function in distinct.items()}
    tallies = [_Tally(site, channel, kappas[identity_of(site.function)]) for site in sites]
    inputs = 0
    with torch.no_grad(), mode(model, training=False), _own_statistics(model, batch_statistics):
        for done, batch in enumerate(chain([first], source), 1):
            images = _inputs(batch)
            inputs += len(images)
            place = 0

            def see(_frame: str, function: Function, a: Tensor) -> None:
                nonlocal place
                if place >= len(tallies) or not tallies[place].is_of(function):
                    raise CurvactError(
                        f"activation {place + 1} of the forward pass is not the same in every batch: "
                        "effective_curvature needs a forward pass that makes the same calls for all inputs"
                    )
                tallies[place].add(a)
                place += 1

            with watched(model, matcher(match), see), _enough_for(batch_statistics, len(images)):
                model(images)
            if place != len(tallies):
                raise CurvactError(
                    f"{place} activations were called instead of {len(tallies)}: effective_curvature needs a forward pass "
                    "that makes the same calls for all inputs"
                )
            if on_progress is not None:
                on_progress(done, total)
    return EffectiveCurvature(tuple(tally.result() for tally in tallies), inputs, batch_statistics)


@door
def effective_curvature_change(
    before: nn.Module,
    after: nn.Module,
    x: Tensor,
    *,
    match: Selector | None = None,
    channel: int | None = None,
    batch_statistics: bool = True,
    batch_size: int = 256,
    on_progress: OnProgress | None = None,
) -> EffectiveCurvatureChange:
    """`effective_curvature` of one network before and after training, on the same inputs.

    Batch norm uses the statistics of each batch by default, for both: before training the running
    ones belong to no data. Other arguments as `effective_curvature`. Raises CurvactError if the two
    do not have the same call sites.

    >>> old, new = nn.Sequential(nn.Linear(2, 2), nn.SiLU()), nn.Sequential(nn.Linear(2, 2), nn.SiLU())
    >>> list(effective_curvature_change(old, new, torch.rand(8, 2)).as_dict()["ratio"])
    ['1']
    """
    check_number(batch_size, "batch_size", "effective_curvature_change")
    if not isinstance(x, Tensor) or x.dim() == 0:
        raise CurvactError(f"x of effective_curvature_change is a {type(x).__name__}: a tensor (N, …)")
    both = []
    for number, model in enumerate((before, after)):
        offset = number * -(-len(x) // batch_size)

        def progress(done: int, total: int | None, offset: int = offset) -> None:
            if on_progress is not None:
                on_progress(offset + done, None if total is None else 2 * total)

        both.append(
            effective_curvature(
                model,
                x,
                match=match,
                channel=channel,
                batch_statistics=batch_statistics,
                batch_size=batch_size,
                on_progress=progress,
            )
        )
    old, new = ([site.site for site in result.sites] for result in both)
    if old != new:
        odd = next(
            (a or b for a, b in zip(old + [""] * len(new), new + [""] * len(old), strict=True) if a != b)
        )
        raise CurvactError(
            f"the models before and after training have {len(old)} and {len(new)} call sites and differ at '{odd}': "
            "effective_curvature_change takes one network at two times"
        )
    return EffectiveCurvatureChange(*both)


def _inputs(batch: Tensor | Sequence[Tensor]) -> Tensor:
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(images, Tensor) or images.dim() == 0:
        raise CurvactError(
            f"a batch in effective_curvature is a {type(images).__name__}: a tensor of inputs (N, …), or a sequence "
            "that starts with one"
        )
    check_dense(images, "a batch in effective_curvature")
    images = normal(images)
    if len(images) == 0:
        raise CurvactError("an empty batch in effective_curvature: every batch needs at least one input")
    return images


@contextmanager
def _own_statistics(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Batch norm with the statistics of each batch; its running ones are put back after."""
    norms = [m for m in model.modules() if wanted and isinstance(m, _BatchNorm)]
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    for norm in norms:
        norm.training = True
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


@contextmanager
def _enough_for(batch_statistics: bool, images: int) -> Iterator[None]:
    """Torch refuses to take the variance of a single value; the same refusal as a CurvactError."""
    try:
        yield
    except ValueError as error:
        if not batch_statistics or "more than 1 value per channel" not in str(error):
            raise
        raise CurvactError(
            f"a batch of {images} gives some batch norm only one value a channel: the statistics of each batch in "
            "effective_curvature need more inputs at a time, a larger batch_size"
        ) from None


class _Tally:
    """Streaming statistics of one call site, on the device of the data."""

    def __init__(self, site: CallSite, channel: int | None, kappa: float) -> None:
        self.site = site
        self.channel = channel
        self.kappa = kappa
        self.bends = 0 < self.kappa < math.inf
        self.count = 0
        self.values = 0
        self.mean = self.squares = self.curved = torch.zeros(0)

    def is_of(self, function: Function) -> bool:
        """Whether this is the same activation; for functional calls, one with the same
        arguments.
        """
        return identity_of(self.site.function) == identity_of(function)

    def add(self, a: Tensor) -> None:
        rows = _by_channel(a.detach(), self.channel, self.site.name).double()
        count = rows.shape[1]
        mean = rows.mean(1)
        squares = (rows - mean[:, None]).square_().sum(1)
        curved = torch.zeros(2, dtype=torch.float64, device=a.device)
        if self.bends:
            size = curvature_at(self.site.function, a).abs()
            curved = torch.stack([(size >= part * self.kappa).sum() for part in (HALF, TENTH)]).double()
        if self.count == 0:
            self.mean, self.squares, self.curved = mean, squares, curved
        else:
            if mean.shape != self.mean.shape:
                raise CurvactError(
                    f"{len(mean)} channels at '{self.site.name}' after batches with {len(self.mean)}: give channel="
                )
            total = self.count + count
            step = mean - self.mean
            self.mean = self.mean + step * (count / total)
            self.squares = self.squares + squares + step.square() * (self.count * (count / total))
            self.curved = self.curved + curved
        self.count += count
        self.values += a.numel()

    def result(self) -> SiteCurvature:
        variance, mean = (v.item() for v in ((self.squares / self.count).mean(), self.mean.mean()))
        if not math.isfinite(variance):
            raise CurvactError(
                f"the pre-activations at '{self.site.name}' are not finite in effective_curvature"
            )
        spread = math.sqrt(variance)
        half, tenth = (self.curved / self.values).tolist() if self.bends else (None, None)
        return SiteCurvature(
            site=self.site.name,
            activation=self.site.activation,
            max_curvature=self.kappa,
            spread=spread,
            effective=self.kappa if math.isinf(self.kappa) else self.kappa * spread,
            mean=mean,
            curved_half=half,
            curved_tenth=tenth,
            channels=len(self.mean),
            values=self.values,
        )


def _kappa(function: Function) -> float:
    try:
        peak = getattr(function, "max_curvature", None)
        return float(peak.value if peak is not None else max_curvature(function).value)
    except CurvactError:
        return math.nan


def _by_channel(a: Tensor, channel: int | None, site: str) -> Tensor:
    """C×(values of that channel)."""
    if a.dim() < 2:
        return a.reshape(1, -1)
    if channel is None:
        channel = -1 if a.dim() == 3 else 1
    if not -a.dim() <= channel < a.dim():
        raise CurvactError(f"channel={channel} for pre-activations of {a.dim()} dimensions at '{site}'")
    return a.movedim(channel, 0).flatten(1)
