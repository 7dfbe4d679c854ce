"""Entropy-SGD: gradient descent on a loss smoothed by Langevin dynamics around the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from curvact.errors import CurvactError, nearest
from curvact.random import generator as make_generator
from curvact.training.methods.perturbation import carried
from curvact.training.parsing import is_number

VARIANTS = ("algorithm", "authors")


class EntropySGD(Optimizer):
    """Entropy-SGD (Chaudhari et al. 2017, arXiv 1611.01838) as a `torch.optim.Optimizer`.

    One `step()` is one inner step on the gradients g that the parameters x' hold, each from a fresh
    batch (in adversarial training, from a fresh attack at x'). L = `inner_steps` of them make an
    outer step, at whose start x = μ = x':

        x' ← x' − η'(g − γ(x − x')) + noise,   μ ← (1 − a)μ + a·x'     every step
        x ← x − ηc(x − μ),   μ and x' ← x,   γ ← scoping·γ              after every L-th

    variant "algorithm" [paper]: Algorithm 1 as printed: c = γ, a = `averaging`, noise
        √η'·ε·N(0, I).
    variant "authors" [paper]: the authors' Lua code: c = 1, a = 1 − `averaging`, noise
        √(2η')·ε·N(0, I). (Their Python code adds Nesterov momentum and weight decay to the outer
        step.) The published outer rates (η = 1, then 0.2, 0.04) belong to this form; for steps of
        the same length the printed one needs η/γ.

    With L = 1 and no noise, x − x' is 0 and each step is a step of SGD with rate ηcaη' (times 1 +
    `momentum`, because each Nesterov buffer starts at 0). So γ never acts in "authors", nor in
    "algorithm" with `lr = η/γ`. [derived]

    params: parameters or groups; each group may have its own settings.
    lr: outer rate η, the one that schedulers change. inner_lr: η'. gamma: γ, current in
    `param_groups`; inner steps are unstable where η'γ > 2. scoping: factor of γ after each outer
    step. noise: ε. momentum: of Nesterov, in the inner steps, on g alone (neither γ's term nor the
    noise enters the buffer), zeroed at each outer step. weight_decay: times x', added to g before
    the momentum.
    generator: gives the seed of the noise (one number is drawn at once), or the seed itself; 0 if
    None. The noise of a step is a function of seed, group and step, drawn on the parameters'
    device, and so equal on all processes.

    During `step()` parameters may carry a perturbation ν of
    `curvact.training.methods.perturbation.add`: g and the weight decay are then those at x' + ν,
    while x', μ and x are without ν. [ours] Gradients are read only.

    The optimizer does not touch batch norm: inner forward passes move its statistics unless they
    run under `batch_norm.statistics_frozen`. Those statistics belong to x', not to x: call
    `batch_norm.recalibrate` inside `outer_weights()`.

    `state_dict()` holds everything, with x', which `load_state_dict` writes into the parameters: a
    run saved after any step goes on bit for bit.

    Raises CurvactError for a setting that is not allowed.

    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> settings = {"inner_steps": 2, "inner_lr": 0.1, "noise": 0.0, "momentum": 0.0}
    >>> optimizer = EntropySGD([w], lr=1.0, **settings, variant="authors")
    >>> for _ in range(2):
    ...     w.grad = w.detach().clone()
    ...     optimizer.step()
    ...     with optimizer.outer_weights():
    ...         print(round(w.item(), 4), end=" ")
    1.0 0.9338
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]],
        lr: float,
        *,
        inner_steps: int = 20,
        inner_lr: float = 0.1,
        gamma: float = 0.03,
        scoping: float = 1.001,
        averaging: float = 0.75,
        noise: float = 1e-4,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        variant: str = "algorithm",
        generator: torch.Generator | int | None = None,
    ) -> None:
        if isinstance(generator, torch.Generator):
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        else:
            seed = 0 if generator is None else generator
            if isinstance(seed, bool) or not isinstance(seed, int):
                raise CurvactError(
                    f"generator={generator!r} of EntropySGD: a torch.Generator, a whole number or None"
                )
        settings = (inner_steps, inner_lr, gamma, scoping, averaging, noise, momentum, weight_decay, variant)
        defaults = dict(zip(("lr", *_SETTINGS), (lr, *settings), strict=True))
        self._inner: dict[Tensor, Tensor] = {}
        super().__init__(params, {**defaults, "seed": seed, "steps": 0, "position": 0})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_inner", {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, at the start of its own outer step."""
        _require_settings({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @property
    def outer_step_ended(self) -> bool:
        """Whether the parameters are at the outer weights: at the start and after every L-th step."""
        return all(group["position"] == 0 for group in self.param_groups)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One inner step, and the outer one after the L-th.

        A closure is evaluated once, before, and its value returned.
        """
        if self._inner:
            raise CurvactError(
                "no step inside outer_weights(): the gradients must be those at the inner weights"
            )
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for index, group in enumerate(self.param_groups):
            self._inner_step(group, index)
            if group["position"] >= group["inner_steps"]:
                self._outer_step(group)
        return value

    def _inner_step(self, group: dict[str, Any], index: int) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if parameters:
            for p in parameters:
                if not self.state[p]:
                    start = _clean(p).clone()
                    self.state[p] = {"outer": start, "average": start.clone(), "buffer": torch.zeros_like(p)}
            outer, averages, buffers = (
                [self.state[p][key] for p in parameters] for key in ("outer", "average", "buffer")
            )
            gradients = [p.grad for p in parameters]
            if group["weight_decay"]:
                gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
            if group["momentum"]:
                torch._foreach_mul_(buffers, group["momentum"])
                torch._foreach_add_(buffers, gradients)
                gradients = list(torch._foreach_add(gradients, buffers, alpha=group["momentum"]))
            direction = torch._foreach_sub([_clean(p) for p in parameters], outer)
            torch._foreach_mul_(direction, group["gamma"])
            torch._foreach_add_(direction, gradients)
            torch._foreach_add_(parameters, direction, alpha=-group["inner_lr"])
            if group["noise"]:
                double = 2 if group["variant"] == "authors" else 1
                scale = math.sqrt(double * group["inner_lr"]) * group["noise"]
                torch._foreach_add_(parameters, _normal(parameters, group, index), alpha=scale)
            share = 1 - group["averaging"] if group["variant"] == "authors" else group["averaging"]
            torch._foreach_lerp_(averages, [_clean(p) for p in parameters], share)
        group["steps"] += 1
        group["position"] += 1

    def _outer_step(self, group: dict[str, Any]) -> None:
        rate = group["lr"] * (group["gamma"] if group["variant"] == "algorithm" else 1)
        for p in group["params"]:
            if state := self.state.get(p):
                state["outer"].lerp_(state["average"], rate)
                p.copy_(state["outer"])
                nu = carried(p)
                if nu is not None:
                    p.add_(nu)
                    state["outer"].copy_(
                        _clean(p)
                    )  # the value that the subtraction of ν leaves, to the last bit
                state["average"].copy_(state["outer"])
                state["buffer"].zero_()
        group["gamma"] *= group["scoping"]
        group["position"] = 0

    @torch.no_grad()
    def follow(self, parameters: Iterable[Tensor]) -> None:
        """Make the values of these parameters their outer weights, after something has constrained them.
        CurvactError within an outer step of theirs. Parameters of no group are left alone.
        """
        within = {p for group in self.param_groups if group["position"] for p in group["params"]}
        for p in parameters:
            if p in within or self._inner:
                raise CurvactError("follow(): only at the end of an outer step, outside of outer_weights()")
            if state := self.state.get(p):
                state["outer"].copy_(p)
                state["average"].copy_(p)

    @contextmanager
    def outer_weights(self) -> Iterator[None]:
        """Inside, the parameters hold the outer weights x, to evaluate and save them.

        After, bit for bit, they hold x' again.
        """
        if self._inner:
            yield
            return
        inner = {
            p: p.detach().clone() for group in self.param_groups for p in group["params"] if self.state.get(p)
        }
        self._inner.update(inner)
        try:
            with torch.no_grad():
                for p in inner:
                    p.copy_(self.state[p]["outer"])
            yield
        finally:
            with torch.no_grad():
                for p, value in inner.items():
                    p.copy_(value)
            self._inner.clear()

    def state_dict(self) -> dict[str, Any]:
        """Settings, counters, γ and seed in `param_groups`; x, μ, x' and the buffers in `state`."""
        result = super().state_dict()
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, state in result["state"].items():
            p = parameters[index]
            result["state"][index] = {**state, "inner": self._inner.get(p, p.detach())}
        return result

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, whose tensors are copied; x' goes into the parameters."""
        if self._inner:
            raise CurvactError("outer_weights() would undo the load: load the state outside of it")
        for group in state_dict["param_groups"]:
            if not group.keys() >= self.defaults.keys():
                missing = sorted(self.defaults.keys() - group.keys())
                raise CurvactError(f"no state of EntropySGD: {', '.join(missing)} missing")
        super().load_state_dict(copy.deepcopy(state_dict))
        for p, state in self.state.items():
            p.copy_(state.pop("inner"))


def _clean(parameter: Tensor) -> Tensor:
    nu = carried(parameter)
    return parameter.detach() if nu is None else parameter.detach() - nu


def _normal(parameters: list[Tensor], group: dict[str, Any], index: int) -> list[Tensor]:
    devices = list(dict.fromkeys(p.device for p in parameters))
    generators = {
        device: make_generator(group["seed"], "entropy-sgd", index, group["steps"], place, device=device)
        for place, device in enumerate(devices)
    }
    return [
        torch.randn(p.shape, generator=generators[p.device], device=p.device, dtype=p.dtype)
        for p in parameters
    ]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


_Check = tuple[Callable[[Any], bool], str]
_NOT_NEGATIVE: _Check = (lambda v: is_number(v) and v >= 0, "a number >= 0")
_POSITIVE: _Check = (lambda v: is_number(v) and v > 0, "a number > 0")
_SETTINGS: dict[str, _Check] = {
    "inner_steps": (_whole, "a whole number >= 1"),
    "inner_lr": _POSITIVE,
    "gamma": _NOT_NEGATIVE,
    "scoping": _POSITIVE,
    "averaging": (lambda v: is_number(v) and 0 <= v <= 1, "a number in [0, 1]"),
    "noise": _NOT_NEGATIVE,
    "momentum": (lambda v: is_number(v) and 0 <= v < 1, "a number in [0, 1)"),
    "weight_decay": _NOT_NEGATIVE,
    "variant": (lambda v: v in VARIANTS, f"allowed are {', '.join(VARIANTS)}"),
}


def _require_settings(settings: dict[str, Any]) -> None:
    for name, (holds, allowed) in {"lr": _NOT_NEGATIVE, **_SETTINGS}.items():
        value = settings[name]
        if not holds(value):
            meant = nearest(value, VARIANTS) if name == "variant" and isinstance(value, str) else ""
            raise CurvactError(f"{name}={value!r} of EntropySGD{meant}: {allowed}")
