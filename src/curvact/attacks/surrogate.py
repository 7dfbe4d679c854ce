"""Attacks through surrogate activations: where the slope of an activation misleads, another one leads.

A copy of the network keeps every value of its activations and has another slope backward (BPDA,
arXiv 1802.00420), or has the surrogate's values too, and what fools it is tried on the network.
The surrogate is given by name, or is the activation itself, averaged over an interval: [ours]

    σ_w(x) = mean of σ over [x − w, x + w],    σ_w'(x) = (σ(x + w) − σ(x − w))/(2w)

This suits any elementwise activation, stairs without slope as well. For ReLU σ_w has κ = 1/(2w). The
width w falls during an attack, so that κ rises.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from curvact.activations import Activation, Elementwise, activation, swap_activations
from curvact.activations.functional_calls import ROOT
from curvact.activations.inplace import InPlace
from curvact.activations.selection import Selector, matcher
from curvact.attacks.batch import connected
from curvact.attacks.pgd import Model, OnStep, pgd
from curvact.attacks.threat import ThreatModel
from curvact.errors import CurvactError, short
from curvact.names import shortened

Surrogate = float | str | nn.Module
WIDEST, NARROWEST = 1.0, 0.1
"""The width w when an attack begins and when it ends, in standard deviations of the inputs of an
activation. With a κ the widths are 10 and 1 times 1/(2κ). [ours]
"""
POINTS = 5
"""Points of the mean of σ over an interval."""
_KNOWN = ("torch.", "curvact.")
"""Packages whose modules are known: `matcher` says which of them are activations."""
_CALL = "the call of "
"""How `swap_activations` begins the name of a functional call."""


class Way(NamedTuple):
    """One attack through a surrogate. loss: by name. both: values of the surrogate, too."""

    name: str
    loss: str
    both: bool


WAYS = (
    Way("bpda-ce", "ce", False),
    Way("bpda-margin", "margin", False),
    Way("surrogate-margin", "margin", True),
)


def check_surrogate(surrogate: object, where: str) -> None:
    """CurvactError unless it is None, a κ > 0, a name or a module."""
    number = isinstance(surrogate, (int, float)) and not isinstance(surrogate, bool)
    if number and not 0 < surrogate < float("inf"):  # type: ignore[operator]
        raise CurvactError(f"surrogate={surrogate!r} of {where}: as a number it is a κ > 0")
    if not (surrogate is None or number or isinstance(surrogate, (str, nn.Module))):
        raise CurvactError(
            f"surrogate={shortened(surrogate)} of {where}: a κ > 0, the name of an activation, or None"
        )
    if isinstance(surrogate, str):
        activation(surrogate)


class _Bent(torch.autograd.Function):
    """One function forward, the slope of another backward. Only the input is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, value: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope
        return value(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            return grad * ctx.slope(x), None, None


class Site(nn.Module):
    """Stands for an activation. `real` is that activation, of the network itself.

    given: the surrogate; None for the mean of `real` over an interval of width 2w.
    width: w in units of the spread, which is the standard deviation of the inputs, or 1.
    spreads: of each call of a forward pass, because one module may serve at several places.
    """

    def __init__(self, given: Activation | None) -> None:
        super().__init__()
        self.given = given
        self.real: Callable[[Tensor], Tensor] = torch.relu
        self.both = self.measuring = False
        self.width = WIDEST
        self.spreads: list[Tensor] = []
        self.calls = 0

    def forward(self, *given: Tensor, **named: Tensor) -> Tensor:
        (x,) = (*given, *named.values())
        if self.measuring:
            self.spreads.append(x.detach().std(correction=0).clamp_min(1e-12))
        w = self.width * self.spreads[min(self.calls, len(self.spreads) - 1)] if self.spreads else self.width
        self.calls += 1
        value = partial(self._soft, w=w) if self.both else self._exact
        bent: Tensor = _Bent.apply(x, value, partial(self._slope, w=w))  # type: ignore[no-untyped-call]
        return bent

    def _exact(self, x: Tensor) -> Tensor:
        return self.real(x.clone())  # some activations write into their input

    def _soft(self, x: Tensor, *, w: Tensor | float) -> Tensor:
        if self.given is not None:
            out: Tensor = self.given(x)
            return out
        offsets = [2 * (k + 0.5) / POINTS - 1 for k in range(POINTS)]
        return torch.stack([self.real(x + w * t) for t in offsets]).mean(0)

    def _slope(self, x: Tensor, *, w: Tensor | float) -> Tensor:
        if self.given is not None:
            return self.given.slope(x)
        return (self.real(x + w) - self.real(x - w)) / (2 * w)


class SurrogateNetwork:
    """A copy of a network in which a `Site` stands for every activation that was found.

    model: an nn.Module, in eval mode. example: a few images, which find the elementwise modules.
    surrogate: None for the mean over an interval as wide as the inputs of the activation are spread;
        a κ > 0 for the interval in which ReLU has this κ; or an activation.
    activations: which modules are activations, as `from_` of `swap_activations`. None: those of
        torch.nn, those with a slope, and elementwise modules of your own: each output depends on the
        input at its own place only.
    notes: activations that no surrogate stands for, and why, a line each.
    Raises CurvactError where none is found, or the network cannot be copied.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> x, y, threat = torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), ThreatModel("linf", 0.1)
    >>> SurrogateNetwork(model, x).attack(WAYS[0], x, y, threat, steps=3).shape
    torch.Size([2, 1, 2, 2])
    """

    def __init__(
        self,
        model: Model,
        example: Tensor,
        surrogate: Surrogate | None = None,
        activations: Selector | None = None,
    ) -> None:
        model = getattr(model, "_orig_mod", model)
        if isinstance(model, nn.DataParallel):
            model = model.module  # its replicas would share the widths
        if not isinstance(model, nn.Module):
            raise CurvactError("the model is a function, in which no activation can be found")
        self.kappa = float(surrogate) if isinstance(surrogate, (int, float)) else None
        self.given = _as_activation(surrogate) if isinstance(surrogate, (str, nn.Module)) else None
        match = matcher(activations, model)
        own = _elementwise(model, match, example) if activations is None else []
        self.model, self.sites, self.notes = _copied(model, self.given, match, own)
        self.model.register_forward_pre_hook(lambda *_: self._begin())

    def attack(
        self,
        way: Way,
        x: Tensor,
        y: Tensor,
        threat_model: ThreatModel,
        *,
        steps: int,
        restarts: int = 1,
        generator: torch.Generator | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """PGD on the copy, in steps of 2.5ε/steps, at most ε, while κ rises. The values of x and y
        are not looked at, and nothing waits for the device in the steps.
        """
        self._measure(x)
        for site in self.sites:
            site.both = way.both

        def begin(step: int) -> None:
            share = min(step / max(steps - 1, 1), 1.0)
            width = WIDEST * (NARROWEST / WIDEST) ** share
            for site in self.sites:
                site.width = width if self.kappa is None else width / NARROWEST / (2 * self.kappa)

        def follow(step: int, point: Tensor, losses: Tensor) -> None:
            begin(step + 1 if step + 1 < steps else 0)
            if on_step is not None:
                on_step(step, point, losses)

        begin(0)
        return pgd(
            connected(self.model),  # something else may cut the graph
            x,
            y,
            threat_model,
            steps=steps,
            step=min(1.0, 2.5 / steps),
            restarts=restarts,
            loss=way.loss,
            keep_best=not way.both,
            generator=generator,
            on_step=follow,
            check=False,
        )

    def _measure(self, x: Tensor) -> None:
        """The spread of the inputs of every activation, on the device; one forward pass."""
        if self.kappa is not None or self.given is not None:
            return
        for site in self.sites:
            site.spreads, site.measuring, site.both = [], True, False
        with torch.no_grad():
            self.model(x)
        for site in self.sites:
            site.measuring = False

    def _begin(self) -> None:
        """Called before each forward pass of the copy."""
        for site in self.sites:
            site.calls = 0


def _as_activation(surrogate: str | nn.Module) -> Activation:
    made = activation(surrogate)
    return made if isinstance(made, Activation) else Elementwise(made)


def _copied(
    model: nn.Module, given: Activation | None, match: Callable[[nn.Module], bool], own: list[nn.Module]
) -> tuple[nn.Module, list[Site], list[str]]:
    """A copy with sites; the sites, each with its real activation; and a line on calls without one.

    own: modules that are activations too.
    """
    # Found before torch.fx traces the model: under it no module can be tried.
    mine = {id(m) for m in own}
    wanted = [match(m) or id(m) in mine for m in model.modules()]
    reason = "no activation was found in it"
    for functional in ("rewrite", "warn"):
        try:
            twin = copy.deepcopy(model)
            chosen = {id(m) for m, found in zip(twin.modules(), wanted, strict=True) if found}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                report = swap_activations(
                    twin,
                    lambda m, chosen=chosen: (
                        (id(m) in chosen or match(m)) and not getattr(m, "maps_only", False)
                    ),
                    lambda: Site(copy.deepcopy(given)),
                    functional=functional,
                )
            sites: dict[int, Site] = {}
            for place in report.replaced:
                # What torch.fx made holds a shared module at one of its paths only.
                call = place.old.startswith(_CALL)
                site = _at(report.model if call or place.path == ROOT else twin, place.path)
                site = site.act if isinstance(site, InPlace) else site
                assert isinstance(site, Site)
                real: Callable[[Tensor], Tensor] | None = place.function if call else _at(model, place.path)
                if real is None:
                    raise CurvactError(f"{place.old} at {place.path} has arguments that are computed")
                site.__dict__["real"] = real
                sites[id(site)] = site
        except Exception as error:  # of torch.fx, or of a model that cannot be copied
            reason = short(str(error).strip().partition("\n")[0] or type(error).__name__, 120)
            continue
        if sites:
            calls = ", ".join(report.functional)
            notes = [f"no surrogate for the functional calls {calls}: {reason}"] if calls else []
            return report.model.requires_grad_(False), list(sites.values()), notes
    raise CurvactError(f"no surrogate network of the {type(model).__name__}: {reason}")


def _at(model: nn.Module, path: str) -> Any:
    """What lies at a path of `swap_activations`; the model itself if it is an activation."""
    found: Any = model
    for name in [] if path == ROOT else path.split("."):
        found = getattr(found, name)
    return found


def _elementwise(model: nn.Module, match: Callable[[nn.Module], bool], example: Tensor) -> list[nn.Module]:
    """Modules of somebody's own, without modules inside, whose outputs depend on the input at their own place
    only. Found on the inputs that they get in one forward pass, one tensor at each call.
    """
    inputs: dict[nn.Module, Tensor] = {}
    others: set[nn.Module] = set()

    def keep(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        values = (*given, *named.values())
        if len(values) == 1 and isinstance(values[0], Tensor):
            inputs.setdefault(module, values[0].detach().clone())
        else:
            others.add(module)

    hooks = [
        module.register_forward_pre_hook(keep, with_kwargs=True)
        for module in model.modules()
        if not (type(module).__module__.startswith(_KNOWN) or match(module) or any(module.children()))
    ]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return [m for m, x in inputs.items() if m not in others and _keeps_places(m, x)]


def _keeps_places(module: nn.Module, x: Tensor) -> bool:
    """Whether an output stays where the inputs of other places, about a half of all, change."""
    if not x.is_floating_point() or x.numel() < 2:
        return False
    random = torch.Generator().manual_seed(0)
    scale = float(x.std(correction=0)) or 1.0
    change = torch.randn(x.shape, generator=random).to(x) * scale
    kept = (torch.rand(x.shape, generator=random) < 0.5).to(x.device)
    try:
        with torch.no_grad():
            one, other = module(x.clone()), module(torch.where(kept, x, x + change))
        return bool(one.shape == x.shape and torch.equal(one[kept], other[kept]))
    except Exception:  # it gives something else
        return False
