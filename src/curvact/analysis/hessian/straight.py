"""A loss whose activations can be visited: its derivatives through each call site, and whether the
split of diag H holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from curvact.activations.selection import Match, Selector, matcher
from curvact.analysis.calls import Function, call_sites, curvature_at, replaced
from curvact.analysis.loss import Loss, names_of
from curvact.analysis.products import differentiate
from curvact.errors import CurvactError

Visit = Callable[[int, Function, Tensor], Tensor]
"""(number of the call, σ, pre-activations) to what the call returns."""
SAMPLE = 4
"""Examples in the check whether the split holds."""


@dataclass(frozen=True, eq=False)
class View:
    """A loss without the activations' own parameters, the names of its call sites in order, and its
    forward pass.

    Made by `view_of`, inside `loss.running`.
    """

    loss: Loss
    match: Match
    sites: list[str]

    def forward(self, x: Tensor, visit: Visit, free: Mapping[str, Tensor] | None = None) -> Tensor:
        """The outputs, with `visit` in the place of every activation."""
        count = 0

        def numbered(_: Function, compute: Function, a: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return visit(count - 1, compute, a)

        with replaced(self.loss.model, self.match, numbered):
            out = self.loss.forward(x, free)
        if count != len(self.sites):
            raise CurvactError(
                f"{count} activations were called in {self.loss.where} instead of {len(self.sites)}: "
                "the forward pass must make the same calls for all inputs"
            )
        return out

    def sample(self) -> Tensor:
        """The first few inputs."""
        _, x, _ = next(iter(self.loss.batches()))
        return x[:SAMPLE]


def without_activations(loss: Loss, match: Selector | None) -> tuple[Loss, Match]:
    """The loss without the parameters of activations, and a test of the modules that are call
    sites.
    """
    chosen = matcher(match)
    own = {id(p) for module in loss.model.modules() if chosen(module) for p in module.parameters()}
    named = loss.model.named_parameters(remove_duplicate=False)
    return loss.excluding([n for n, p in named if id(p) in own]), lambda m: chosen(m) and not _is_gate(m)


def view_of(loss: Loss, match: Match) -> View:
    """loss, match: of `without_activations`; the loss is running."""
    _, first, _ = next(iter(loss.batches()))
    buffers = [(buffer, buffer.clone()) for buffer in loss.model.buffers()]
    try:
        sites = [site.name for site in call_sites(loss.model, first[:2], match=match)]
    except CurvactError:
        if not any(map(_is_gate, loss.model.modules())):
            raise
        sites = []
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
    return View(loss, match, sites)


def _is_gate(module: nn.Module) -> bool:
    """An activation of ours that is not elementwise (Sparta). It stays as it is. Its parameters do
    not count either.
    """
    return bool(getattr(module, "maps_only", False))


# ---- first derivatives through the call sites ----


class Linear:
    """One batch: pre-activations, δσ″ and outputs of the model, and first derivatives forward and
    backward.
    """

    def __init__(self, view: View, x: Tensor, y: Tensor) -> None:
        self.view = view
        self.x = x
        functions: list[Function] = []
        points: list[Tensor] = []
        values: list[Tensor] = []

        def record(_: int, function: Function, a: Tensor) -> Tensor:
            out = function(a)
            functions.append(function)
            points.append(a)
            values.append(out)
            return out.clone()

        with torch.enable_grad():
            self.out = view.forward(x, record)
            loss = view.loss.value(self.out, y)
            # A value that no parameter reaches needs no δ: its S is 0.
            moved = [i for i, value in enumerate(values) if value.requires_grad]
            rows: Sequence[Tensor] = ()
            if moved:
                ends = [values[i] for i in moved]
                rows = torch.autograd.grad(
                    loss, ends, retain_graph=True, allow_unused=True, materialize_grads=True
                )
            deltas = dict(zip(moved, rows, strict=True))
            self.fixed = self.out.detach().requires_grad_()
            (self.slope,) = torch.autograd.grad(view.loss.value(self.fixed, y), self.fixed, create_graph=True)
        self.points = points
        self.bends = [
            deltas[i] * curvature_at(f, a.detach()) if i in deltas else torch.zeros_like(a)
            for i, (f, a) in enumerate(zip(functions, points, strict=True))
        ]
        """δσ″ of each call site."""
        bent = [(bend != 0).any() for bend in self.bends]
        self.bent: list[bool] = torch.stack(bent).tolist() if bent else []
        """Whether σ″ ≠ 0 anywhere, for each call site."""
        self._forward_mode = True
        self._checked = False
        self._backward: tuple[list[Tensor], list[Tensor], list[str]] | None = None

    def output_product(self, tangent: Tensor) -> Tensor:
        """H_L times a direction of the outputs."""
        if not self.slope.requires_grad:
            return torch.zeros_like(tangent)
        (row,) = torch.autograd.grad(self.slope, self.fixed, tangent, retain_graph=True)
        return row

    def push(self, direction: Mapping[str, Tensor]) -> tuple[list[Tensor | None], Tensor]:
        """Derivatives along a direction of the parameters: of each site's pre-activations (None:
        0), and of the outputs.
        """
        if self._forward_mode:
            try:
                return self._push_forward(direction)
            except (RuntimeError, NotImplementedError):
                self._forward_mode = False  # an operation without forward differentiation
        return self._push_twice_backward(direction)

    def _push_forward(self, direction: Mapping[str, Tensor]) -> tuple[list[Tensor | None], Tensor]:
        tangents: list[Tensor | None] = []

        def record(_: int, function: Function, a: Tensor) -> Tensor:
            tangents.append(forward_ad.unpack_dual(a).tangent)  # type: ignore[no-untyped-call]
            return function(a)

        free: dict[str, Tensor] = {}
        with forward_ad.dual_level(), torch.no_grad():
            for name, param in self.view.loss.parameters.items():
                free[name] = param.detach()
                if name in direction:
                    along = direction[name].to(param.dtype)
                    free[name] = forward_ad.make_dual(free[name], along)  # type: ignore[no-untyped-call]
            out = self.view.forward(self.x, record, free)
            primal, tangent = forward_ad.unpack_dual(out)  # type: ignore[no-untyped-call]
        if not self._checked:
            self._check_repeats(primal)
        return tangents, torch.zeros_like(primal) if tangent is None else tangent

    def _check_repeats(self, out: Tensor) -> None:
        self._checked = True
        tolerance = 1e4 * torch.finfo(out.dtype).eps
        if ((out - self.out.detach()).abs().amax() > tolerance * out.abs().amax()).item():
            raise CurvactError(
                f"two forward passes over the same inputs differ in {self.view.loss.where}: "
                "switch off what is random in the model"
            )

    def _push_twice_backward(self, direction: Mapping[str, Tensor]) -> tuple[list[Tensor | None], Tensor]:
        """A backward pass is linear in its cotangents; a backward pass through it is its
        transpose.
        """
        loss = self.view.loss
        if self._backward is None:
            ends = [*self.points, self.out]
            cotangents = [torch.zeros_like(end, requires_grad=True) for end in ends]
            with torch.enable_grad():
                rows = torch.autograd.grad(
                    ends, loss.params, cotangents, create_graph=True, retain_graph=True, allow_unused=True
                )
            pairs = zip(rows, loss.parameters, strict=True)
            used = [(r, n) for r, n in pairs if r is not None and r.requires_grad]
            self._backward = [r for r, _ in used], cotangents, [n for _, n in used]
        rows_, cotangents, names = self._backward
        along = [
            direction[n].to(r.dtype) if n in direction else torch.zeros_like(r)
            for r, n in zip(rows_, names, strict=True)
        ]
        *tangents, out = torch.autograd.grad(
            rows_, cotangents, along, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return list(tangents), out

    def pull(self, cotangents: Mapping[int, Tensor]) -> list[Tensor | None]:
        """Σ J_aᵀ w over some sites, by parameter tensor; number len(sites) is the outputs."""
        ends = [*self.points, self.out]
        chosen = [(ends[i], w) for i, w in cotangents.items() if ends[i].requires_grad]
        params = self.view.loss.params
        if not chosen:
            return [None] * len(params)
        rows: Sequence[Tensor | None] = torch.autograd.grad(
            [end for end, _ in chosen], params, [w for _, w in chosen], retain_graph=True, allow_unused=True
        )
        return list(rows)


# ---- does the split hold? ----


def reached(view: View) -> dict[str, frozenset[str]]:
    """The parameters that the pre-activations of each call site depend on."""
    params = view.loss.params
    points: list[Tensor] = []

    def record(_: int, function: Function, a: Tensor) -> Tensor:
        points.append(a)
        return function(a)

    with torch.enable_grad():
        view.forward(view.sample(), record)
    found = {}
    for site, a in zip(view.sites, points, strict=True):
        rows: Sequence[Tensor | None] = [None] * len(params)
        if a.requires_grad:
            rows = torch.autograd.grad(a, params, torch.zeros_like(a), retain_graph=True, allow_unused=True)
        pairs = zip(view.loss.parameters, rows, strict=True)
        found[site] = frozenset(name for name, row in pairs if row is not None)
    return found


def obstacles(view: View) -> tuple[str, ...]:
    """Why diag H₀ is not diag GGN, one line for each reason; empty where it is.

    The check: take ⟨outputs of the straightened model, random numbers⟩ on a few examples. Its
    second derivative along a random direction of each parameter tensor must be 0.
    """
    loss, x = view.loss, view.sample()
    random = torch.Generator(device=x.device).manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=random, device=x.device).to(like.dtype)

    def straight(number: int, function: Function, a: Tensor) -> Tensor:
        site = f"'{view.sites[number]}' in {loss.where}"
        at = a.detach().clone().requires_grad_()
        value = function(at)
        if value.shape != a.shape:
            raise CurvactError(
                f"{site} maps shape {tuple(a.shape)} to {tuple(value.shape)}: an activation must be elementwise"
            )
        if not value.requires_grad:
            return value
        weights = noise(value)
        (slope,) = torch.autograd.grad(value.sum(), at, retain_graph=True, materialize_grads=True)
        (mixed,) = torch.autograd.grad((value * weights).sum(), at, materialize_grads=True)
        if (mixed - weights * slope).abs().amax() > 1e-3 * slope.abs().amax():
            raise CurvactError(
                f"{site} is not elementwise: an entry of its output depends on several of its input"
            )
        return value.detach() + slope * (a - at.detach())

    def projection() -> Tensor:
        out = view.forward(x, straight)
        return (out * noise(out)).sum()

    graph = differentiate(projection, loss.params)
    bends = []
    for index, param in enumerate(loss.params):
        size = param.detach().square().mean().sqrt()
        bend = graph.block(index, noise(param) * torch.where(size > 0, size, torch.ones_like(size)))
        bends.append(bend.norm())
    sizes = [part.norm() for part in torch.split(graph.gradient, loss.sizes)]
    tolerance = 1e4 * torch.finfo(graph.gradient.dtype).eps
    flags = torch.stack(bends) > tolerance * torch.stack(sizes)
    bad = [name for name, flag in zip(loss.parameters, flags.tolist(), strict=True) if flag]
    if not bad:
        return ()
    some = ", ".join(bad[:3]) + (", …" if len(bad) > 3 else "")
    count = f"{len(bad)} of {len(loss.params)} parameter tensors"
    lines = [f"with straight activations the outputs are still not linear in {count}: {some}"]
    kinds = _suspects(loss.model)
    if kinds:
        lines.append("modules that can be the cause: " + ", ".join(kinds))
    tied = _tied(loss.model, bad)
    if tied:
        lines.append("used at several places: " + ", ".join(tied))
    return tuple(lines)


def _suspects(model: nn.Module) -> list[str]:
    """Types of the modules in a model that are known to multiply or normalize."""
    own = nn.modules.batchnorm._NormBase
    known = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.MultiheadAttention, nn.RNNBase)
    gates = (nn.Sigmoid, nn.Softmax, nn.LogSoftmax, nn.LogSigmoid, nn.Hardsigmoid, nn.GLU, nn.Bilinear)
    found: dict[str, None] = {}
    for module in model.modules():
        batch = isinstance(module, own) and (module.training or module.running_mean is None)
        if isinstance(module, (*known, *gates)) or batch or _is_gate(module):
            found[type(module).__name__ + (" with statistics of the batch" if batch else "")] = None
    return list(found)


def _tied(model: nn.Module, names: Sequence[str]) -> list[str]:
    groups = names_of(model).values()
    return [" = ".join(same) for same in groups if len(same) > 1 and set(same) & set(names)]
