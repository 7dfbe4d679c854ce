"""Attacks of other libraries under the names and threat models of this one.

The libraries are optional, and nothing of them is imported before an attack runs. Attacks that look
for the smallest perturbation (C&W, DeepFool, DDN, FMN) are adapted too: a point beyond ε is a failure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from curvact.attacks.autoattack.shard import allowed
from curvact.attacks.batch import alike, checked, differentiable
from curvact.attacks.losses import succeeded
from curvact.attacks.pgd import Model, OnStep
from curvact.attacks.threat import Norm, ThreatModel, ball, distance
from curvact.errors import CurvactError, nearest
from curvact.models.modes import mode

Run = Callable[[nn.Module, Tensor, Tensor, ThreatModel], Tensor]
"""An attack of a library: (model in eval mode, images, labels, threat model) to attacked images."""


@dataclass(frozen=True)
class Adapted:
    """An attack of another library, as a value.

    name: its text, which `named_attack` reads where the library is known.
    run: the attack itself. It may draw from torch's global generator.
    smallest: whether it looks for the smallest perturbation rather than for one within ε. Points
        that are no images within ε then count as failures: the image itself is returned.

    >>> def darker(model, x, y, threat_model):
    ...     return x * 0.5
    >>> attack = Adapted("darker", darker, smallest=True)
    >>> x = torch.tensor([[0.1], [0.9]])
    >>> attack(torch.nn.Identity(), x, torch.tensor([0, 0]), ThreatModel("linf", 0.1))
    tensor([[0.0500],
            [0.9000]])
    """

    name: str
    run: Run = field(compare=False, repr=False)
    smallest: bool = False

    def __str__(self) -> str:
        return self.name

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat_model: ThreatModel,
        *,
        generator: torch.Generator | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Attacked images. With a generator, torch's global one is seeded from it, and put back
        after. on_step is not called.
        """
        x_adv = self._found(model, x, y, threat_model, generator)
        if not self.smallest:
            return x_adv
        near = allowed(x_adv, x, threat_model)
        return torch.where(near.view(-1, *[1] * (x.dim() - 1)), x_adv, x)

    @differentiable()
    def radii(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        norm: Norm = "l2",
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The distance of each point that fools the model, N: 0 for images misclassified already,
        infinity where the attack found none. An upper bound on the true radius.

        CurvactError for an attack within a given ε.
        """
        if not self.smallest:
            raise CurvactError(f"radii of {self}: it attacks within ε (use minimum_radius, or fmn, ddn, …)")
        x, y, _ = checked(x, y, str(self))
        x_adv = self._found(model, x, y, ball(ThreatModel(norm, 0).norm, x[0].numel()), generator)
        flat = x_adv.flatten(1)
        image = ((flat >= 0) & (flat <= 1)).all(1)
        with torch.no_grad(), mode(model, training=False):
            fooled = image & succeeded(model(x_adv), y)
            already = succeeded(model(x), y)
        found = torch.where(fooled, distance(x_adv, x, norm), torch.inf)
        return torch.where(already, 0.0, found)

    def _found(
        self, model: Model, x: Tensor, y: Tensor, threat_model: ThreatModel, random: torch.Generator | None
    ) -> Tensor:
        module = model if isinstance(model, nn.Module) else _Module(model, x)
        cuda = [x.device] if x.is_cuda else []
        with torch.random.fork_rng(devices=cuda, enabled=random is not None), mode(module, training=False):
            if random is not None:
                torch.manual_seed(int(torch.randint(2**62, (), generator=random, device=random.device)))
            try:
                with torch.enable_grad():
                    x_adv = self.run(module, x.clone(), y.clone(), threat_model)
            except (CurvactError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                first = str(error).strip().partition("\n")[0]
                raise CurvactError(f"{self} fails: {type(error).__name__}: {first}") from error
        return alike(x_adv, x, str(self))


class _Module(nn.Module):
    """A function as a module, with a parameter from which libraries read the device."""

    def __init__(self, model: Model, x: Tensor) -> None:
        super().__init__()
        self.model = model
        self.place = nn.Parameter(x.new_zeros(()), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def from_torchattacks(name: str, **settings: Any) -> Adapted:
    """An attack of torchattacks (`pip install --no-deps torchattacks`), by the name of its class.

    settings: of the class. ε and the norm come from the threat model where the class takes them;
        lengths such as `alpha` are its own, in input units. A class without `eps`, such as CW and
        DeepFool, looks for the smallest perturbation.
    Raises CurvactError, when it runs, where the library is missing or has no such class or setting.

    >>> str(from_torchattacks("CW", c=10, steps=100))
    'torchattacks(name=CW, c=10, steps=100)'
    """

    def run(model: nn.Module, x: Tensor, y: Tensor, threat_model: ThreatModel) -> Tensor:
        made = _member("torchattacks", "torchattacks", name, "pip install --no-deps torchattacks requests")
        own = signature(made).parameters
        _check_settings("torchattacks", name, settings, own)
        norms = {"linf": "Linf", "l2": "L2", "l1": "L1"}
        given = {"eps": threat_model.epsilon, "norm": norms[threat_model.norm]}
        passed = {key: value for key, value in given.items() if key in own}
        attack = made(model, **{**passed, **settings})
        attacked: Tensor = attack(x, y)
        return attacked

    return Adapted(_text("torchattacks", name, settings), run, smallest=name in SMALLEST_TORCHATTACKS)


def from_adv_lib(name: str, **settings: Any) -> Adapted:
    """An attack of adv_lib (`pip install adv-lib`), by the name of its function.

    settings: of the function. ε and the norm come from the threat model where the function takes
        them. A function that needs no ε, such as ddn, fmn, df and carlini_wagner_l2, looks for the
        smallest perturbation.
    Raises CurvactError, when it runs, where the library is missing or has no such function or
    setting.

    >>> str(from_adv_lib("fmn", steps=100))
    'adv-lib(name=fmn, steps=100)'
    """

    def run(model: nn.Module, x: Tensor, y: Tensor, threat_model: ThreatModel) -> Tensor:
        function = _member("adv_lib", "adv_lib.attacks", name, "pip install adv-lib")
        own = signature(function).parameters
        _check_settings("adv_lib", name, settings, own)
        order = {"linf": math.inf, "l2": 2, "l1": 1}[threat_model.norm]
        given = {"norm": order, "ε": threat_model.epsilon, "eps": threat_model.epsilon}
        passed = {
            key: value
            for key, value in given.items()
            if key in own and (key == "norm" or own[key].default is Parameter.empty)
        }
        attacked: Tensor = function(model, x, y, **{**passed, **settings})
        return attacked

    return Adapted(_text("adv-lib", name, settings), run, smallest=name not in WITHIN_ADV_LIB)


SMALLEST_TORCHATTACKS = ("CW", "CWBS", "CWL0", "CWLinf", "DeepFool", "EADEN", "EADL1", "JSMA", "OnePixel")
"""Classes of torchattacks that take no ε."""
WITHIN_ADV_LIB = ("apgd", "apgd_targeted", "pgd_linf")
"""Functions of adv_lib that need an ε."""


def _member(library: str, module: str, name: str, install: str) -> Any:
    try:
        place = import_module(module)
    except ImportError as error:
        raise CurvactError(
            f"the attack {name!r} needs {library}, which cannot be imported ({error}): {install}"
        ) from None
    found = getattr(place, name, None) if isinstance(name, str) else None
    if not callable(found):
        known = [key for key in dir(place) if callable(getattr(place, key)) and not key.startswith("_")]
        raise CurvactError(f"{library} has no attack {name!r}{nearest(str(name), known)}")
    return found


def _check_settings(library: str, name: str, settings: dict[str, Any], own: Any) -> None:
    for key in settings:
        if key not in own:
            raise CurvactError(
                f"{name} of {library} has no setting {key!r}{nearest(key, own)}; allowed are {', '.join(own)}"
            )


def _text(library: str, name: str, settings: dict[str, Any]) -> str:
    given = "".join(f", {key}={value}" for key, value in settings.items())
    return f"{library}(name={name}{given})"
