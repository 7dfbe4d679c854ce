"""Analysis room: effective curvature, κ times the spread of the pre-activations, and the share of units that bend, by call site.

At each call of an activation σ on pre-activations a (values of C channels over inputs and positions)

    effective curvature = κ·s,    s = √((1/C) Σ_c Var a_c),    κ = sup|σ″|.

It does not change where a scale is moved between σ_α(x) = σ₁(αx)/α and the layers around it, as κ does. [derived]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from curvact.activations import max_curvature, name_of
from curvact.activations.selection import FUNCTION_NAMES, Match, Selector, functional_names, matcher
from curvact.attacks.pgd import mode
from curvact.errors import CurvactError

Batches = Tensor | Iterable[Tensor | Sequence[Tensor]]
OnProgress = Callable[[int, int | None], None]
"""Called as (done, total); total is None where it is not known."""

HALF, TENTH = 0.5, 0.1
"""Where a unit counts as curved: |σ″(a)| at least this part of κ. [ours]"""


@dataclass(frozen=True)
class CallSite:
    """One call of an activation within the forward pass.

    name: the path of the module, with `#2` for its second call and so on where the calls are more than its paths; for a
    functional call the module whose forward makes it and the function, as in `layer1.0:relu`.
    function: the activation itself: elementwise, of one tensor.
    """

    name: str
    function: Callable[[Tensor], Tensor]

    @property
    def activation(self) -> str:
        """The activation as text."""
        return " ".join(name_of(self.function).split())


@dataclass(frozen=True)
class SiteCurvature:
    """What one call site does on data.

    max_curvature: κ; infinite for a kink, NaN where it cannot be measured (channels with slopes of their own).
    spread: s. effective: κ·s. mean: of the pre-activations. channels, values: how many there were.
    curved_half, curved_tenth: the share of units (of one input, at one position) with |σ″(a)| ≥ κ/2 and ≥ κ/10; None where κ is
    0, infinite or not known.
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
    """Every call site of a model, in the order of the forward pass. inputs: how many were seen.

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
        """For JSON: what is infinite or not known is None; `kinks` counts the sites with infinite κ."""
        return {
            "inputs": self.inputs,
            "batch_statistics": self.batch_statistics,
            "mean": self.mean,
            "kinks": sum(math.isinf(site.max_curvature) for site in self.sites),
            "sites": [
                {key: finite(value) for key, value in asdict(site).items()}
                | {"kink": math.isinf(site.max_curvature)}
                for site in self.sites
            ],
        }


@dataclass(frozen=True)
class EffectiveCurvatureChange:
    """The same call sites before and after training."""

    before: EffectiveCurvature
    after: EffectiveCurvature

    def as_dict(self) -> dict[str, Any]:
        """For JSON: `before`, `after`, and `ratio`, after over before by call site (None where it is not finite)."""
        ratios = {
            old.site: finite(new.effective / old.effective if old.effective else math.nan)
            for old, new in zip(self.before.sites, self.after.sites, strict=True)
        }
        return {"before": self.before.as_dict(), "after": self.after.as_dict(), "ratio": ratios}


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
    """Effective curvature and the share of curved units at every call site of a model, in eval mode. [derived; the shares: ours]

    An activation module that many layers share has a call site for each of its calls. Found: the activations that
    `swap_activations` replaces by default, and functional calls of them (`F.relu(x)`, `x.relu()`).
    The variance is merged over batches in float64 (Chan et al. 1979) and divided by the number of values. The model is left as
    it was.

    x: inputs (N, …), taken `batch_size` at a time, or an iterable of batches (tensors, or sequences that start with one).
    match: other modules to look at, as `from_` of `swap_activations`: a class, a name, a predicate on modules.
    channel: the dimension of the channels in pre-activations. None: 1, but the last one for tokens (N, T, C).
    batch_statistics: batch norm uses each batch's own statistics; right for a model before training, whose running statistics
        are not those of any data. The running statistics stay.
    Raises CurvactError where there is nothing to look at, where calls differ between batches, for values that are not finite, and
    with batch_statistics for a batch that has only one value a channel somewhere.

    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.SiLU())
    >>> _ = nn.init.constant_(model[0].weight, 3.0)
    >>> result = effective_curvature(model, torch.tensor([[-1.0], [1.0]]))
    >>> result.sites[0].spread, round(result.sites[0].effective, 9), result.sites[0].curved_half
    (3.0, 1.5, 0.0)
    """
    if batch_size < 1:
        raise CurvactError(f"batch_size={batch_size} in effective_curvature: it must be at least 1")
    total: int | None = None
    source: Iterator[Tensor | Sequence[Tensor]]
    if isinstance(x, Tensor):
        total = -(-len(x) // batch_size)
        source = iter(torch.tensor_split(x, total) if total else ())
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

            def see(_frame: str, _name: str, function: Callable[[Tensor], Tensor], a: Tensor) -> None:
                nonlocal place
                if place >= len(tallies) or not tallies[place].is_of(function):
                    raise CurvactError(
                        f"activation {place + 1} of the forward pass is not the same in every batch: "
                        "effective_curvature needs a forward pass that makes the same calls for all inputs"
                    )
                tallies[place].add(a)
                place += 1

            with _watching(model, matcher(match), see), _enough_for(batch_statistics, len(images)):
                model(images)
            if place != len(tallies):
                raise CurvactError(
                    f"{place} activations were called instead of {len(tallies)}: effective_curvature needs a forward pass "
                    "that makes the same calls for all inputs"
                )
            if on_progress is not None:
                on_progress(done, total)
    return EffectiveCurvature(tuple(tally.result() for tally in tallies), inputs, batch_statistics)


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

    Batch norm uses the statistics of each batch by default, for both: before training the running ones are of no data.
    Raises CurvactError if the two do not have the same call sites.

    >>> old, new = nn.Sequential(nn.Linear(2, 2), nn.SiLU()), nn.Sequential(nn.Linear(2, 2), nn.SiLU())
    >>> list(effective_curvature_change(old, new, torch.rand(8, 2)).as_dict()["ratio"])
    ['1']
    """
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


def call_sites(model: nn.Module, x: Tensor, *, match: Selector | None = None) -> tuple[CallSite, ...]:
    """The calls of activations in a forward pass over x, in order, in eval mode. Arguments and errors as `effective_curvature`.

    >>> act = nn.ReLU()
    >>> [site.name for site in call_sites(nn.Sequential(act, nn.Linear(2, 2), act), torch.zeros(1, 2))]
    ['0', '2']
    """
    calls: list[tuple[str, str, Callable[[Tensor], Tensor]]] = []
    with torch.no_grad(), mode(model, training=False):
        found = matcher(match)
        with _watching(model, found, lambda frame, name, function, _: calls.append((frame, name, function))):
            model(x)
    if not calls:
        kinds = ", ".join(sorted({type(module).__name__ for module in model.modules()}))
        raise CurvactError(f"no activation was called in the forward pass; modules seen: {kinds}")
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    names = [_named(calls, index, paths) for index in range(len(calls))]
    counts: dict[str, int] = {}
    sites = []
    for name, (_, _, function) in zip(names, calls, strict=True):
        counts[name] = counts.get(name, 0) + 1
        sites.append(CallSite(name if counts[name] == 1 else f"{name}#{counts[name]}", function))
    return tuple(sites)


def curvature_at(function: Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
    """σ″(a), elementwise: the activation's own `curvature` where it has one, else by autograd. Detached.

    >>> curvature_at(torch.nn.functional.silu, torch.zeros(1))
    tensor([0.5000])
    """
    own = getattr(function, "curvature", None)
    if callable(own):
        with torch.no_grad():
            bent: Tensor = own(a.detach())
            return bent
    with torch.enable_grad():
        a = a.detach().clone().requires_grad_()
        # An inplace activation must not write to a leaf.
        out = function(a * 1)
        (slope,) = torch.autograd.grad(out.sum(), a, create_graph=True)
        if not slope.requires_grad:
            return torch.zeros_like(a)
        (second,) = torch.autograd.grad(slope.sum(), a, allow_unused=True, materialize_grads=True)
    return second.detach()


def finite(value: Any) -> Any:
    """None for a float that is not finite, which JSON does not have; any other value as it is.

    >>> finite(float("inf")), finite(2), finite("a")
    (None, 2, 'a')
    """
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _inputs(batch: Tensor | Sequence[Tensor]) -> Tensor:
    images = batch if isinstance(batch, Tensor) else batch[0]
    if len(images) == 0:
        raise CurvactError("an empty batch in effective_curvature: every batch needs at least one input")
    return images


def _named(
    calls: Sequence[tuple[str, str, Callable[[Tensor], Tensor]]], index: int, paths: dict[int, list[str]]
) -> str:
    """The path of the module called. One that its parent holds under several names, calling each once, goes by these in turn."""
    frame, call, function = calls[index]
    if call:
        return f"{frame}:{call}" if frame else call
    here = [i for i, (where, _, other) in enumerate(calls) if where == frame and other is function]
    prefix = f"{frame}." if frame else ""
    own = [p for p in paths[id(function)] if p.startswith(prefix) and "." not in p[len(prefix) :]]
    if len(own) == len(here):
        return own[here.index(index)] or "(the model itself)"
    return (own or paths[id(function)])[0] or "(the model itself)"


class _Call:
    """A function of torch with its arguments but for the first."""

    def __init__(self, name: str, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.__name__ = name
        self.function = function
        self.args = tuple(args)
        self.kwargs = kwargs

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self.function(x, *self.args, **self.kwargs)
        return out


class _Functional(TorchFunctionMode):
    """Sees functional calls of activations."""

    def __init__(
        self, wanted: set[str], see: Callable[[str, Callable[[Tensor], Tensor], Tensor], None]
    ) -> None:
        super().__init__()
        self.wanted = wanted
        self.see = see

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = FUNCTION_NAMES.get(func)
        if name in self.wanted:
            rest = {key: value for key, value in kwargs.items() if key not in ("input", "inplace")}
            self.see(name, _Call(name, func, args[1:], rest), args[0] if args else kwargs["input"])
        return func(*args, **kwargs)


@contextmanager
def _watching(
    model: nn.Module,
    match: Match,
    see: Callable[[str, str, Callable[[Tensor], Tensor], Tensor], None],
) -> Iterator[None]:
    """Calls `see(path of the calling module, function's name or "", function, pre-activation)` before each activation.

    What an activation calls within itself is not seen.
    """
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    activations = {id(module) for module in model.modules() if match(module)}
    frames: list[str] = []
    inside: list[nn.Module] = []
    looking = False

    def note(name: str, function: Callable[[Tensor], Tensor], a: Tensor) -> None:
        nonlocal looking
        if inside or looking:
            return
        looking = True
        try:
            see(frames[-1] if frames else "", name, function, a)
        finally:
            looking = False

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if looking:
            return
        if id(module) in activations:
            try:
                note("", module, args[0] if args else next(iter(kwargs.values())))
            finally:
                inside.append(module)
        else:
            prefix = f"{frames[-1]}." if frames and frames[-1] else ""
            mine = paths[id(module)]
            frames.append(next((path for path in mine if path.startswith(prefix)), mine[0]))

    def leave(module: nn.Module, _args: Any, _out: Any) -> None:
        if looking:
            return
        if id(module) in activations:
            inside.pop()
        else:
            frames.pop()

    handles = []
    try:
        # Hooks also switch off the fused path of transformer layers, which calls no activation.
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, always_call=True))
        with _Functional(functional_names(match), note):
            yield
    finally:
        for handle in handles:
            handle.remove()


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
    """Torch's refusal to take the variance of a single value, in our words."""
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

    def is_of(self, function: Callable[[Tensor], Tensor]) -> bool:
        """Whether this is the same activation; for functional calls, one with the same arguments."""
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


def identity_of(function: Callable[[Tensor], Tensor]) -> object:
    """What is the same for activations with the same κ, as far as can be told at no cost."""
    if isinstance(function, _Call):
        return function.__name__, repr(function.args), repr(function.kwargs)
    return id(function)


def _kappa(function: Callable[[Tensor], Tensor]) -> float:
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
