"""Where the Hessian diagonal comes from: diag GGN plus the σ″ part of every call of an activation, by layer.

For elementwise activations σ with pre-activations a_u (over examples, positions, call sites m) and δ_u = ∂L/∂σ(a_u) [derived]:

    H = Jᵀ H_L J + Σ_m S_m + B,    S_m = Σ_{u in m} δ_u σ″(a_u) ∇a_u ∇a_uᵀ

B comes from everything else in the model that is not linear. Where the model is affine in every single parameter tensor once its
activations are straight lines (convolution, batch norm in eval mode, sums, pooling at a fixed choice of the maxima), B is zero
within every tensor, and

    diag H = diag GGN + Σ_m diag S_m    exactly.

Straightening is: σ(a) → σ(a₀) + σ′(a₀)(a − a₀) with a₀ held fixed; its Hessian H₀ has H − H₀ = Σ_m S_m, always. Where B is not
zero (train-mode batch norm, layer norm, attention, gates, weights tied across layers) diag H₀ is not diag GGN: the result says
so, and `base` is diag H₀. What holds is computed, not guessed from the kinds of layers.

The σ″ part is cheap: ȧ = J_a v by forward differentiation, then one backward pass with δσ″ȧ gives Σ_m S_m v.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from curvact.activations.selection import FUNCTION_NAMES, Selector, functional_names, matcher
from curvact.analysis.accumulate import (
    Batches,
    Exclude,
    Loss,
    Problem,
    check_finite,
    excluder,
    layer_of,
    problem,
)
from curvact.analysis.effective_curvature import call_sites, curvature_at
from curvact.analysis.ggn import NotByExample, ggn_diagonal
from curvact.analysis.probes import (
    GROUPS,
    NormEstimate,
    cautious_norm_estimate,
    check_stopping,
    gram,
    norm_estimate,
    small_signs,
    within,
)
from curvact.analysis.products import differentiate, flatten
from curvact.errors import CurvactError

By = Literal["layer", "parameter"]
_WHERE = "diagonal_split"


@dataclass(frozen=True)
class Share:
    """A share ρ = ⟨part, d⟩/⟨d, d⟩ of d = diag H, with its sign, and the standard error that the probes leave on it."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class SiteShare:
    """What one call site's σ″ does to a layer. norm: ‖c_m‖."""

    share: Share
    norm: NormEstimate


@dataclass(frozen=True)
class LayerSplit:
    """d = g + Σ_m c_m within one layer: g = diag GGN (diag H₀ where the split does not hold), c_m = diag S_m, c = Σ_m c_m.

    diagonal, base, curvature: ‖d‖, ‖g‖ and ‖c‖. base_share, curvature_share: of g and of c; they sum to 1. cosine: cos(g, c); NaN
    where one of them is 0. sites: by call site; their shares sum to curvature_share. Sites that no parameter of the layer reaches
    are left out: their part is exactly 0.
    """

    parameters: int
    diagonal: NormEstimate
    base: NormEstimate
    curvature: NormEstimate
    base_share: Share
    curvature_share: Share
    cosine: Share
    sites: Mapping[str, SiteShare] = field(default_factory=dict)


@dataclass(frozen=True)
class DiagonalSplit:
    """The split of diag H for one model and one set of data.

    holds: whether `base` is diag GGN. why: if not, what is in the way, one line each.
    total: over all parameters. layers: by layer, in the order of the model. sites: the call sites in the order of the forward
    pass. probes: K, or 0 where all was computed exactly. loss: L, the mean over the data.
    residual: largest |d − g − Σc_m| relative to the largest |d|, where d and g were computed by themselves (exact=True), or None.
    """

    holds: bool
    why: tuple[str, ...]
    total: LayerSplit
    layers: Mapping[str, LayerSplit]
    sites: tuple[str, ...]
    probes: int
    loss: float
    residual: float | None = None


@dataclass(frozen=True, eq=False)
class SplitVectors:
    """The exact split, as vectors of shape (P,) in the order of `names`: diagonal = ggn + Σ_m sites[m] + mixed.

    mixed: diag B, 0 up to rounding where the split holds; computed as what is left over. names: of the parameters, with their
    numbers of elements. reached: the parameters that each call site depends on. holds, why: as in `DiagonalSplit`.
    """

    diagonal: Tensor
    ggn: Tensor
    sites: Mapping[str, Tensor]
    mixed: Tensor
    names: Mapping[str, int]
    reached: Mapping[str, frozenset[str]]
    holds: bool
    why: tuple[str, ...]
    loss: float


def split_vectors(
    model: nn.Module,
    x: Tensor | None = None,
    y: Tensor | None = None,
    *,
    loss: Loss = F.cross_entropy,
    match: Selector | None = None,
    exclude: Exclude = (),
    batches: Batches | None = None,
    batch_size: int | None = None,
    training: bool = False,
) -> SplitVectors:
    """diag H, diag GGN and diag S_m of every call site, exactly, for small models. [derived]

    P double backward passes for diag H, and P forward differentiations, each of which gives an element of all other parts.
    Arguments and errors as for `diagonal_split`.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    >>> x, y = torch.rand(4, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    >>> parts = split_vectors(model, x, y)
    >>> list(parts.sites), parts.mixed.abs().max().item() < 1e-12
    (['1'], True)
    """
    with _problem(model, x, y, loss, match, exclude, batches, batch_size, training) as view:
        p = view.problem
        mean, gradient = p.gradient()
        why = _obstacles(view)
        diagonal, ggn = torch.zeros_like(gradient), torch.zeros_like(gradient)
        sites = [torch.zeros_like(gradient) for _ in view.sites]
        for weight, graph in p.graphs():
            diagonal.add_(graph.diagonal(), alpha=weight)
        p.kept.clear()
        for weight, inputs, targets in p.batches():
            linear = _Linear(view, inputs, targets)
            place = 0
            for name, param in p.free.items():
                for i in range(param.numel()):
                    unit = torch.zeros_like(param).reshape(-1)
                    unit[i] = 1
                    tangents, out = linear.push({name: unit.view(param.shape)})
                    ggn[place] += weight * (out * linear.output_product(out)).sum()
                    for site, bend, tangent in zip(sites, linear.bends, tangents, strict=True):
                        if tangent is not None:
                            site[place] += weight * (bend * tangent.square()).sum()
                    place += 1
        for vector in (diagonal, ggn, *sites):
            check_finite(vector[None], p.free, "Hessian", _WHERE)
        return SplitVectors(
            diagonal=diagonal,
            ggn=ggn,
            sites=dict(zip(view.sites, sites, strict=True)),
            mixed=diagonal - ggn - sum(sites, torch.zeros_like(ggn)),
            names={name: param.numel() for name, param in p.free.items()},
            reached=_reached(view),
            holds=not why,
            why=why,
            loss=mean,
        )


def diagonal_split(
    model: nn.Module,
    x: Tensor | None = None,
    y: Tensor | None = None,
    *,
    loss: Loss = F.cross_entropy,
    match: Selector | None = None,
    exclude: Exclude = (),
    exact: bool = False,
    by: By = "layer",
    by_site: bool = True,
    probes: int = 2 * GROUPS,
    relative_error: float | None = None,
    max_probes: int = 1024,
    generator: torch.Generator | None = None,
    batches: Batches | None = None,
    batch_size: int | None = None,
    training: bool = False,
) -> DiagonalSplit:
    """How much of diag H the curvature of the activations makes, by layer and by call site, with its sign. [derived]

    Activations are found as by `effective_curvature`: the modules that `swap_activations` replaces by default and functional
    calls of them; a shared module has a call site for each of its calls. Their own parameters are held fixed and not counted.
    ReLU has σ″ = 0 (its kinks have no second derivative), so all of diag H is GGN. Sparta, which is not elementwise, is no call
    site. For the adversarial loss give adversarial x; the perturbation is held fixed.

    model, x, y, loss, batches, batch_size, exclude: as for `diagonal_norms`.
    match: other modules that count as activations: a class, a name, a predicate on modules. They must be elementwise.
    exact: by `split_vectors`, for small models; else by random signs, with standard errors.
    by: "layer" joins the parameters of one module, "parameter" keeps them apart.
    by_site: False for the sum of the call sites only, several times as fast.
    probes: rounded up to a multiple of 16. relative_error, max_probes: instead, until the standard error of ‖diag H‖ is at most
        this part of it, or `max_probes` are used. generator: of the probes; needed unless exact.
    training: train mode, in which batch norm mixes the examples, and the split does not hold.
    diag GGN is exact where model and loss treat examples one by one and there are at most 128 outputs; estimated elsewhere.
    Raises CurvactError for bad arguments, for a model without activations or with one that is not elementwise, and for
    what is not finite.

    >>> model = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 3))
    >>> x, y = torch.tensor([[0.0, 1.0], [1.0, 0.5]]), torch.tensor([0, 2])
    >>> split = diagonal_split(model, x, y, exact=True)
    >>> split.holds, split.sites, list(split.layers["2"].sites)  # no activation after the last layer
    (True, ('1',), [])
    >>> bool(abs(split.total.base_share.value + split.total.curvature_share.value - 1) < 1e-5)
    True
    """
    if by not in get_args(By):
        raise CurvactError(f"by={by!r} in {_WHERE}: allowed are {', '.join(get_args(By))}")
    if exact:
        vectors = split_vectors(
            model,
            x,
            y,
            loss=loss,
            match=match,
            exclude=exclude,
            batches=batches,
            batch_size=batch_size,
            training=training,
        )
        return _exact_result(vectors, by, by_site)
    if generator is None:
        raise CurvactError(
            f"generator=None in {_WHERE}: the probes need a torch.Generator, unless exact=True"
        )
    if relative_error is None and probes < 1:
        raise CurvactError(f"probes={probes} in {_WHERE}: it must be at least 1")
    check_stopping(relative_error, max_probes, _WHERE)
    with _problem(model, x, y, loss, match, exclude, batches, batch_size, training) as view:
        return _estimate(view, by, by_site, probes, relative_error, max_probes, generator)


# ---- the forward pass, with every activation in our hands ----

Function = Callable[[Tensor], Tensor]
Visit = Callable[[int, Function, Tensor], Tensor]
"""(number of the call, σ, pre-activations) to what the call returns."""


@dataclass(frozen=True, eq=False)
class _View:
    """A problem, the names of its call sites in order, and its forward pass with a `Visit` in the place of every activation."""

    problem: Problem
    sites: list[str]
    activations: list[nn.Module]
    wanted: set[str]

    def forward(self, x: Tensor, visit: Visit, free: Mapping[str, Tensor] | None = None) -> Tensor:
        with _replaced(self.activations, self.wanted, visit) as calls:
            out = self.problem.forward(x, free)
        if len(calls) != len(self.sites):
            raise CurvactError(
                f"{len(calls)} activations were called in {_WHERE} instead of {len(self.sites)}: it needs a forward pass that "
                "makes the same calls for all inputs"
            )
        return out


@contextmanager
def _problem(
    model: nn.Module,
    x: Tensor | None,
    y: Tensor | None,
    loss: Loss,
    match: Selector | None,
    exclude: Exclude,
    batches: Batches | None,
    batch_size: int | None,
    training: bool,
) -> Iterator[_View]:
    """The problem without the activations' own parameters, and its call sites."""
    if not isinstance(model, nn.Module):
        raise CurvactError(f"{_WHERE} got a {type(model).__name__} as its model: it takes an nn.Module")
    chosen = matcher(match)
    own = {id(param) for module in model.modules() if chosen(module) for param in module.parameters()}

    def found(module: nn.Module) -> bool:
        return chosen(module) and not _is_gate(module)

    activations = [module for module in model.modules() if found(module)]
    tuned = {n for n, q in model.named_parameters(remove_duplicate=False) if id(q) in own}
    listed = excluder(model, exclude, _WHERE)

    def excluded(name: str) -> bool:
        return name in tuned or bool(listed(name))

    with problem(
        model,
        x,
        y,
        where=_WHERE,
        loss=loss,
        exclude=excluded,
        batches=batches,
        batch_size=batch_size,
        training=training,
    ) as p:
        _, first, _ = next(iter(p.batches()))
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        try:
            sites = [site.name for site in call_sites(model, first[:2], match=found)]
        except CurvactError:
            if not any(map(_is_gate, model.modules())):
                raise
            sites = []
        finally:
            for buffer, value in buffers:
                buffer.copy_(value)
        yield _View(p, sites, activations, functional_names(found))


def _is_gate(module: nn.Module) -> bool:
    """An activation of ours that is not elementwise (Sparta). It stays as it is; its parameters are not counted either."""
    return bool(getattr(module, "maps_only", False))


@contextmanager
def _replaced(activations: Sequence[nn.Module], wanted: set[str], visit: Visit) -> Iterator[list[int]]:
    """Calls of these modules, and functional calls of these names, go to `visit`. Gives the numbers of the calls so far."""
    calls: list[int] = []
    busy = False

    def call(function: Function, a: Tensor, inplace: bool) -> Tensor:
        nonlocal busy
        if busy:
            return function(a)
        busy = True
        try:
            calls.append(len(calls))
            # The model may write to `a` and to what it gets later: a visit keeps copies of its own.
            out = visit(calls[-1], (lambda t: function(t.clone())) if inplace else function, a.clone())
        finally:
            busy = False
        return a.copy_(out) if inplace else out

    class Calls(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            name = FUNCTION_NAMES.get(func)
            if busy or name not in wanted:
                return func(*args, **kwargs)
            inplace = bool(kwargs.get("inplace")) or getattr(func, "__name__", "").endswith("_")
            rest = {key: value for key, value in kwargs.items() if key not in ("input", "inplace")}
            a = args[0] if args else kwargs["input"]
            return call(lambda t: func(t, *args[1:], **rest), a, inplace)

    def forward_of(module: nn.Module, original: Function) -> Function:
        def forward(*args: Tensor, **kwargs: Tensor) -> Tensor:
            a = args[0] if args else next(iter(kwargs.values()))
            return call(original, a, bool(getattr(module, "inplace", False)))

        return forward

    before = [(module, vars(module).get("forward")) for module in activations]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for module in activations:
            module.forward = forward_of(module, module.forward)
        with Calls():
            yield calls
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, forward in before:
            if forward is None:
                vars(module).pop("forward", None)
            else:
                module.forward = forward


class _Linear:
    """One batch: what its call sites depend on, and how to go forward and backward there to first order."""

    def __init__(self, view: _View, x: Tensor, y: Tensor) -> None:
        self.view = view
        self.x = x
        p = view.problem
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
            loss = p.loss(self.out, y)
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
            (self.slope,) = torch.autograd.grad(p.loss(self.fixed, y), self.fixed, create_graph=True)
        self.points = points
        self.bends = [
            deltas[i] * curvature_at(f, a.detach()) if i in deltas else torch.zeros_like(a)
            for i, (f, a) in enumerate(zip(functions, points, strict=True))
        ]
        bent = [(bend != 0).any() for bend in self.bends]
        self.bent: list[bool] = torch.stack(bent).tolist() if bent else []
        """Which sites have σ″ ≠ 0 anywhere."""
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
        """Derivatives along a direction of the parameters: of the pre-activations of every site (None: 0), and of the outputs."""
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
            for name, param in self.view.problem.free.items():
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
                f"two forward passes over the same inputs differ in {_WHERE}: switch off what is random in the model"
            )

    def _push_twice_backward(self, direction: Mapping[str, Tensor]) -> tuple[list[Tensor | None], Tensor]:
        """The transpose of a backward pass, which is linear in its cotangents, by another one."""
        p = self.view.problem
        if self._backward is None:
            ends = [*self.points, self.out]
            cotangents = [torch.zeros_like(end, requires_grad=True) for end in ends]
            with torch.enable_grad():
                rows = torch.autograd.grad(
                    ends, p.params, cotangents, create_graph=True, retain_graph=True, allow_unused=True
                )
            used = [(r, n) for r, n in zip(rows, p.free, strict=True) if r is not None and r.requires_grad]
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
        params = self.view.problem.params
        if not chosen:
            return [None] * len(params)
        rows: Sequence[Tensor | None] = torch.autograd.grad(
            [end for end, _ in chosen], params, [w for _, w in chosen], retain_graph=True, allow_unused=True
        )
        return list(rows)


# ---- does it hold? ----

SAMPLE = 4
"""Examples that the check of a model looks at."""


def _reached(view: _View) -> dict[str, frozenset[str]]:
    """The parameters that the pre-activations of every call site depend on."""
    p = view.problem
    _, x, _ = next(iter(p.batches()))
    points: list[Tensor] = []

    def record(_: int, function: Function, a: Tensor) -> Tensor:
        points.append(a)
        return function(a)

    with torch.enable_grad():
        view.forward(x[:SAMPLE], record)
    reached = {}
    for site, a in zip(view.sites, points, strict=True):
        rows: Sequence[Tensor | None] = [None] * len(p.params)
        if a.requires_grad:
            rows = torch.autograd.grad(a, p.params, torch.zeros_like(a), retain_graph=True, allow_unused=True)
        reached[site] = frozenset(n for n, row in zip(p.free, rows, strict=True) if row is not None)
    return reached


def _obstacles(view: _View) -> tuple[str, ...]:
    """Why diag H₀ is not diag GGN, one line each; empty where it is.

    The second derivative of ⟨outputs of the straightened model, random numbers⟩ along a random direction of each parameter tensor
    must be 0. On a few examples.
    """
    p = view.problem
    _, x, _ = next(iter(p.batches()))
    x = x[:SAMPLE]
    random = torch.Generator(device=x.device).manual_seed(0)

    def straight(number: int, function: Function, a: Tensor) -> Tensor:
        at = a.detach().clone().requires_grad_()
        value = function(at)
        if value.shape != a.shape:
            raise CurvactError(
                f"'{view.sites[number]}' in {_WHERE} maps shape {tuple(a.shape)} to {tuple(value.shape)}: an activation must be "
                "elementwise"
            )
        if not value.requires_grad:
            return value
        weights = torch.randn(value.shape, generator=random, device=x.device).to(value.dtype)
        (slope,) = torch.autograd.grad(value.sum(), at, retain_graph=True, materialize_grads=True)
        (mixed,) = torch.autograd.grad((value * weights).sum(), at, materialize_grads=True)
        if (mixed - weights * slope).abs().amax() > 1e-3 * slope.abs().amax():
            raise CurvactError(
                f"'{view.sites[number]}' in {_WHERE} is not elementwise: an entry of its output depends on several of its input"
            )
        return value.detach() + slope * (a - at.detach())

    def projection() -> Tensor:
        out = view.forward(x, straight)
        return (out * torch.randn(out.shape, generator=random, device=x.device).to(out.dtype)).sum()

    graph = differentiate(projection, p.params)
    bends = []
    for index, param in enumerate(p.params):
        size = param.detach().square().mean().sqrt()
        direction = torch.randn(param.shape, generator=random, device=x.device).to(param.dtype)
        bend = graph.block(index, direction * torch.where(size > 0, size, torch.ones_like(size)))
        bends.append(bend.norm())
    sizes = [part.norm() for part in torch.split(graph.gradient, [q.numel() for q in p.params])]
    tolerance = 1e4 * torch.finfo(graph.gradient.dtype).eps
    flags = torch.stack(bends) > tolerance * torch.stack(sizes)
    bad = [name for name, flag in zip(p.free, flags.tolist(), strict=True) if flag]
    if not bad:
        return ()
    some = ", ".join(bad[:3]) + (", …" if len(bad) > 3 else "")
    lines = [
        f"with straight activations the outputs are still not linear in {len(bad)} of {len(p.params)} parameter tensors: {some}"
    ]
    kinds = _suspects(p.model)
    if kinds:
        lines.append("modules that can be the cause: " + ", ".join(kinds))
    tied = _tied(p.model, bad)
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
    by_id: dict[int, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        by_id.setdefault(id(param), []).append(name)
    return [" = ".join(same) for same in by_id.values() if len(same) > 1 and set(same) & set(names)]


# ---- the estimate ----

_ALL = -1
"""In the place of a call site: all of them."""


class _Parts:
    """Sums over probes, by group, of v ⊙ (part of H)v, by part and parameter tensor; nothing is held where a part is 0."""

    def __init__(self, p: Problem) -> None:
        self.sizes = [param.numel() for param in p.params]
        self.like = p.params[0].detach()
        self.rows: dict[int, dict[int, Tensor]] = {}

    def add(
        self, part: int, group: int, weight: float, signs: Sequence[Tensor], rows: Sequence[Tensor | None]
    ) -> None:
        held = self.rows.setdefault(part, {})
        for index, (sign, row) in enumerate(zip(signs, rows, strict=True)):
            if row is not None:
                if index not in held:
                    held[index] = self.like.new_zeros(GROUPS, self.sizes[index])
                held[index][group].add_(row.detach().reshape(-1) * sign.reshape(-1), alpha=weight)

    def of(self, part: int, index: int) -> Tensor | None:
        return self.rows.get(part, {}).get(index)

    def sum(self, parts: Sequence[int], index: int) -> Tensor:
        total = self.like.new_zeros(GROUPS, self.sizes[index])
        for part in parts:
            rows = self.of(part, index)
            if rows is not None:
                total += rows
        return total


_BASE = -2
"""In the place of a call site: diag GGN by probes."""
_WHOLE = -3
"""In the place of a call site: diag H by probes."""


def _estimate(
    view: _View,
    by: By,
    by_site: bool,
    probes: int,
    relative_error: float | None,
    max_probes: int,
    generator: torch.Generator,
) -> DiagonalSplit:
    p = view.problem
    loss, _ = p.gradient()
    p.kept.clear()
    why = _obstacles(view)
    exact_ggn: Tensor | None = None
    if not why:
        with suppress(NotByExample):
            exact_ggn = ggn_diagonal(p)
    parts = _Parts(p)
    curved = list(range(len(view.sites))) if by_site else [_ALL]
    pieces = list(torch.split(exact_ggn, parts.sizes)) if exact_ggn is not None else None
    rounds = 0

    def diagonals(index: int) -> tuple[Tensor, Tensor]:
        """Means by group of the base and of the σ″ part in one parameter tensor."""
        c = parts.sum(curved, index) / rounds
        if pieces is not None:
            return pieces[index].expand(GROUPS, -1), c
        if why:
            return parts.sum([_WHOLE], index) / rounds - c, c
        return parts.sum([_BASE], index) / rounds, c

    while True:
        signs = small_signs(GROUPS, flatten(p.params), generator)
        _round(view, parts, signs, by_site, base=exact_ggn is None and not why, whole=bool(why))
        rounds += 1
        if relative_error is None:
            if rounds * GROUPS >= probes:
                break
            continue
        total = torch.zeros(GROUPS, GROUPS, dtype=torch.float64, device=signs.device)
        for index in range(len(parts.sizes)):
            base, c = diagonals(index)
            total += gram(base + c)
        if within(cautious_norm_estimate(total), relative_error) or (rounds + 1) * GROUPS > max_probes:
            break

    reached = _reached(view)
    tables: dict[str, _Table] = {}
    for index, (name, param) in enumerate(p.free.items()):
        base, c = diagonals(index)
        check_finite(base + c, {name: param}, "Hessian", _WHERE)
        sites = {}
        for number, site in enumerate(view.sites):
            if by_site and name in reached[site]:
                rows = parts.of(number, index)
                sites[site] = torch.zeros_like(c) if rows is None else rows / rounds
        table = _Table.of(base, c, sites, exact_ggn is not None)
        key = name if by == "parameter" else layer_of(name)
        tables[key] = tables[key].plus(table) if key in tables else table
    return _result(view.sites, tables, why, rounds * GROUPS, loss)


def _round(view: _View, parts: _Parts, signs: Tensor, by_site: bool, *, base: bool, whole: bool) -> None:
    """One more probe for every group, over all batches."""
    p = view.problem
    for weight, x, y in p.batches():
        linear = _Linear(view, x, y)
        for group, row in enumerate(signs):
            v = [
                part.view(q.shape).to(q.dtype)
                for part, q in zip(torch.split(row, parts.sizes), p.params, strict=True)
            ]
            bent = any(linear.bent)
            if not bent and not base:
                continue
            tangents, out = linear.push(dict(zip(p.free, v, strict=True)))
            cotangents = {
                i: linear.bends[i] * t for i, t in enumerate(tangents) if t is not None and linear.bent[i]
            }
            if by_site:
                for i, w in cotangents.items():
                    parts.add(i, group, weight, v, linear.pull({i: w}))
            elif cotangents:
                parts.add(_ALL, group, weight, v, linear.pull(cotangents))
            if base:
                pulled = linear.pull({len(view.sites): linear.output_product(out)})
                parts.add(_BASE, group, weight, v, pulled)
        del linear
    if whole:
        for weight, graph in p.graphs():
            for group, row in enumerate(signs):
                v = [
                    part.to(q.dtype) for part, q in zip(torch.split(row, parts.sizes), p.params, strict=True)
                ]
                product = torch.split(graph.product(torch.cat(v)), parts.sizes)
                parts.add(_WHOLE, group, weight, v, list(product))
        p.kept.clear()


# ---- from samples to shares ----


@dataclass(frozen=True, eq=False)
class _Table:
    """Products ⟨part of group k, part of group l⟩ between the parts of the diagonal; they add up over parameter tensors."""

    parameters: int
    dd: Tensor
    bb: Tensor
    cc: Tensor
    bd: Tensor
    cd: Tensor
    bc: Tensor
    sites: Mapping[str, tuple[Tensor, Tensor]]
    """(with itself, with d)"""
    exact_base: bool

    @staticmethod
    def of(base: Tensor, c: Tensor, sites: Mapping[str, Tensor], exact_base: bool) -> _Table:
        d = base + c
        crossed = {site: (gram(rows), gram(rows, d)) for site, rows in sites.items()}
        return _Table(
            d.shape[1],
            gram(d),
            gram(base),
            gram(c),
            gram(base, d),
            gram(c, d),
            gram(base, c),
            crossed,
            exact_base,
        )

    def plus(self, other: _Table) -> _Table:
        sites = dict(self.sites)
        for site, (own, cross) in other.sites.items():
            sites[site] = (sites[site][0] + own, sites[site][1] + cross) if site in sites else (own, cross)
        return _Table(
            self.parameters + other.parameters,
            self.dd + other.dd,
            self.bb + other.bb,
            self.cc + other.cc,
            self.bd + other.bd,
            self.cd + other.cd,
            self.bc + other.bc,
            sites,
            self.exact_base,
        )

    def split(self) -> LayerSplit:
        return LayerSplit(
            parameters=self.parameters,
            diagonal=_norm(self.dd),
            base=NormEstimate(_norm(self.bb).value, 0.0) if self.exact_base else _norm(self.bb),
            curvature=_norm(self.cc),
            base_share=_ratio(self.bd, self.dd),
            curvature_share=_ratio(self.cd, self.dd),
            cosine=_jackknife(_cosine, self.bc, self.bb, self.cc),
            sites={
                site: SiteShare(_ratio(cross, self.dd), _norm(own))
                for site, (own, cross) in self.sites.items()
            },
        )


def _norm(products: Tensor) -> NormEstimate:
    if len(products) == 1:
        return NormEstimate(math.sqrt(max(products.item(), 0.0)), 0.0)
    return norm_estimate(products)


def _cosine(bc: Tensor, bb: Tensor, cc: Tensor) -> Tensor:
    return torch.where((bb > 0) & (cc > 0), bc / (bb * cc).abs().sqrt(), math.nan)


def _ratio(cross: Tensor, dd: Tensor) -> Share:
    return _jackknife(lambda a, b: torch.where(b != 0, a / b, math.nan), cross, dd)


def _jackknife(formula: Callable[..., Tensor], *tables: Tensor) -> Share:
    """A formula of the unbiased products ⟨·,·⟩ that tables (K, K) give, with the jackknife's standard error over the K groups."""
    k = len(tables[0])
    if k == 1:
        return Share(formula(*(t[0, 0] for t in tables)).item(), 0.0)
    whole, without = [], []
    for table in tables:
        products = table.clone().fill_diagonal_(0.0)
        total, own = products.sum(), products.sum(0) + products.sum(1)
        whole.append(total / (k * (k - 1)))
        without.append((total - own) / ((k - 1) * (k - 2)))
    values = formula(*without)
    error = ((k - 1) * values.var(correction=0)).sqrt()
    return Share(formula(*whole).item(), error.item())


def _result(
    sites: Sequence[str],
    tables: Mapping[str, _Table],
    why: tuple[str, ...],
    probes: int,
    loss: float,
    residual: float | None = None,
) -> DiagonalSplit:
    total: _Table | None = None
    for table in tables.values():
        total = table if total is None else total.plus(table)
    assert total is not None
    # The sites of the whole in the order of the forward pass.
    ordered = {site: total.sites[site] for site in sites if site in total.sites}
    return DiagonalSplit(
        holds=not why,
        why=why,
        total=replace(total, sites=ordered).split(),
        layers={name: table.split() for name, table in tables.items()},
        sites=tuple(sites),
        probes=probes,
        loss=loss,
        residual=residual,
    )


def _exact_result(vectors: SplitVectors, by: By, by_site: bool) -> DiagonalSplit:
    base = vectors.ggn if vectors.holds else vectors.ggn + vectors.mixed
    largest = vectors.diagonal.abs().amax()
    residual = (vectors.mixed.abs().amax() / largest).item() if largest > 0 else 0.0
    tables: dict[str, _Table] = {}
    start = 0
    for name, size in vectors.names.items():
        part = slice(start, start + size)
        start += size
        own = {site: c[None, part] for site, c in vectors.sites.items() if name in vectors.reached[site]}
        c = sum(own.values(), torch.zeros_like(base[None, part]))
        table = _Table.of(base[None, part], c, own if by_site else {}, exact_base=True)
        key = name if by == "parameter" else layer_of(name)
        tables[key] = tables[key].plus(table) if key in tables else table
    return _result(tuple(vectors.sites), tables, vectors.why, 0, vectors.loss, residual)
