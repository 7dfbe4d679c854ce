"""The parts of the Hessian diagonal: diag GGN, and the σ″ part of every call of an activation.

For elementwise activations σ with pre-activations a_u (over examples, positions, call sites m) and
δ_u = ∂L/∂σ(a_u) [derived]:

    H = Jᵀ H_L J + Σ_m S_m + B,    S_m = Σ_{u in m} δ_u σ″(a_u) ∇a_u ∇a_uᵀ

B comes from everything else in the model that is not linear. Replace each activation by a straight
line. If the model is then affine in every single parameter tensor, B is zero within every tensor,
and

    diag H = diag GGN + Σ_m diag S_m    exactly.

This is the case for convolution, batch norm in eval mode, sums, and pooling at a fixed choice of
the maxima.

Straightening means σ(a) → σ(a₀) + σ′(a₀)(a − a₀) with a₀ held fixed. Its Hessian H₀ has H − H₀ =
Σ_m S_m, always. Where B is not zero (train-mode batch norm, layer norm, attention, gates, weights
tied across layers), diag H₀ is not diag GGN. The result then says that the split does not hold, and
`base` is diag H₀. Whether it holds is computed, not guessed from the kinds of layers.

The σ″ part is cheap: forward differentiation gives ȧ = J_a v, then one backward pass with δσ″ȧ
gives Σ_m S_m v.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from curvact.activations.selection import Selector
from curvact.analysis.hessian.ggn import NotByExample, ggn_diagonal
from curvact.analysis.hessian.probes import (
    GROUPS,
    NormEstimate,
    cautious_norm_estimate,
    check_stopping,
    gram,
    norm_estimate,
    small_signs,
    within,
)
from curvact.analysis.hessian.straight import Linear, View, obstacles, reached, view_of, without_activations
from curvact.analysis.loss import Loss, layer_of
from curvact.analysis.products import flatten
from curvact.attacks.arguments import door
from curvact.errors import CurvactError

By = Literal["layer", "parameter"]
_WHERE = "diagonal_split"


@dataclass(frozen=True)
class Share:
    """A share ρ = ⟨part, d⟩/⟨d, d⟩ of d = diag H, with its sign, and its standard error over the
    probes.
    """

    value: float
    standard_error: float


@dataclass(frozen=True)
class SiteShare:
    """The σ″ part of one call site within a layer. norm: ‖c_m‖."""

    share: Share
    norm: NormEstimate


@dataclass(frozen=True)
class LayerSplit:
    """d = g + Σ_m c_m within one layer: g = diag GGN (diag H₀ where the split does not hold), c_m =
    diag S_m, c = Σ_m c_m.

    diagonal, base, curvature: ‖d‖, ‖g‖ and ‖c‖. base_share, curvature_share: of g and of c; they
    sum to 1. cosine: cos(g, c); NaN where one of them is 0. sites: by call site; their shares sum
    to curvature_share. A site that no parameter of the layer reaches has an exact part of 0 and is
    left out.
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
    """The split of diag H.

    holds: whether `base` is diag GGN. why: the reasons where it is not, one line each.
    total: over all parameters. layers: by layer, in the order of the model. sites: the call sites
    in the order of the forward pass. probes: K, or 0 where all is exact. loss: L, the mean over the
    data.
    residual: largest |d − g − Σc_m| relative to the largest |d|, for exact=True, where d and g are
    computed independently.
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
    """The exact split, as vectors of shape (P,) in the order of `names`: diagonal = ggn + Σ_m
    sites[m] + mixed.

    mixed: diag B, the difference; 0 up to rounding where the split holds. names: of the parameters,
    with their numbers of elements. reached: the parameters that each call site depends on. holds,
    why: as in `DiagonalSplit`.
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


@door
def split_vectors(loss: Loss, *, match: Selector | None = None) -> SplitVectors:
    """diag H, diag GGN and diag S_m of every call site, exactly, for small models. [derived]

    P double backward passes give diag H. P forward differentiations give the elements of all other
    parts. Arguments and errors as `diagonal_split`.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    >>> parts = split_vectors(Loss(model, torch.rand(4, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0])))
    >>> list(parts.sites), parts.mixed.abs().max().item() < 1e-12
    (['1'], True)
    """
    loss, found = without_activations(loss, match)
    with loss.running(_WHERE):
        view = view_of(loss, found)
        mean, gradient = loss.gradient()
        why = obstacles(view)
        diagonal, ggn = torch.zeros_like(gradient), torch.zeros_like(gradient)
        sites = [torch.zeros_like(gradient) for _ in view.sites]
        for weight, graph in loss.graphs():
            diagonal.add_(graph.diagonal(), alpha=weight)
        loss.forget()
        for weight, inputs, targets in loss.batches():
            linear = Linear(view, inputs, targets)
            place = 0
            for name, param in loss.parameters.items():
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
            loss.check_finite(vector, "Hessian")
        return SplitVectors(
            diagonal=diagonal,
            ggn=ggn,
            sites=dict(zip(view.sites, sites, strict=True)),
            mixed=diagonal - ggn - sum(sites, torch.zeros_like(ggn)),
            names=dict(zip(loss.parameters, loss.sizes, strict=True)),
            reached=reached(view),
            holds=not why,
            why=why,
            loss=mean,
        )


@door
def diagonal_split(
    loss: Loss,
    *,
    match: Selector | None = None,
    exact: bool = False,
    by: By = "layer",
    by_site: bool = True,
    probes: int = 2 * GROUPS,
    relative_error: float | None = None,
    max_probes: int = 1024,
    generator: torch.Generator | None = None,
) -> DiagonalSplit:
    """The parts of diag H, by layer and by call site, with their signs. [derived]

    Activations are found as by `effective_curvature`: the modules that `swap_activations` replaces
    by default, and functional calls of them. A shared module has a call site for each of its calls.
    Parameters of activations are held fixed and do not count. ReLU has σ″ = 0 (its kinks have no
    second derivative), so all of diag H is GGN. Sparta is not elementwise and is no call site. For
    the adversarial loss give adversarial inputs to the `Loss`; the perturbation is held fixed.

    match: other modules that count as activations: a class, a name, a predicate on modules. They
        must be elementwise.
    exact: by `split_vectors`, for small models; else by random signs, with standard errors.
    by: "layer" joins the parameters of one module, "parameter" keeps them apart.
    by_site: False for the sum of the call sites only, which is several times as fast.
    probes: rounded up to a multiple of 16. relative_error, max_probes: instead, until the standard
        error of ‖diag H‖ is at most this part of it, or until `max_probes` are used. generator: of
    the probes; needed unless exact. diag GGN is exact where model and loss treat examples one by
    one and there are at most 128 outputs; elsewhere it is estimated. In train mode batch norm mixes
    the examples, and the split does not hold. Raises CurvactError for bad arguments, for a model
    without activations or with one that is not elementwise, and for what is not finite.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 3))
    >>> loss = Loss(model, torch.tensor([[0.0, 1.0], [1.0, 0.5]]), torch.tensor([0, 2]))
    >>> split = diagonal_split(loss, exact=True)
    >>> split.holds, split.sites, list(split.layers["2"].sites)  # no activation after the last layer
    (True, ('1',), [])
    >>> bool(abs(split.total.base_share.value + split.total.curvature_share.value - 1) < 1e-5)
    True
    """
    if by not in get_args(By):
        raise CurvactError(f"by={by!r} in {_WHERE}: allowed are {', '.join(get_args(By))}")
    if exact:
        return _exact_result(split_vectors(loss, match=match), by, by_site)
    if generator is None:
        raise CurvactError(
            f"generator=None in {_WHERE}: the probes need a torch.Generator, unless exact=True"
        )
    if relative_error is None and probes < 1:
        raise CurvactError(f"probes={probes} in {_WHERE}: it must be at least 1")
    check_stopping(relative_error, max_probes, _WHERE)
    loss, found = without_activations(loss, match)
    with loss.running(_WHERE):
        view = view_of(loss, found)
        sums = _Sums(view, by_site)
        while True:
            sums.add_round(small_signs(GROUPS, flatten(loss.params), generator))
            if relative_error is None:
                if sums.probes >= probes:
                    break
            elif within(sums.estimate(), relative_error) or sums.probes + GROUPS > max_probes:
                break
        return _result(view.sites, sums.tables(by), sums.why, sums.probes, sums.loss)


# ---- the estimate ----

_ALL = -1
"""The part of all call sites together. A number ≥ 0 is the part of that call site."""
_BASE = -2
"""diag GGN by probes."""
_WHOLE = -3
"""diag H by probes."""


class _Sums:
    """Sums over probes, by group, of v ⊙ (part of H)v, by part and parameter tensor. Nothing is
    held where a part is 0.
    """

    def __init__(self, view: View, by_site: bool) -> None:
        p = view.loss
        self.view, self.by_site = view, by_site
        self.loss, _ = p.gradient()
        p.forget()
        self.why = obstacles(view)
        self.exact_base: list[Tensor] | None = None
        if not self.why:
            with suppress(NotByExample):
                self.exact_base = list(torch.split(ggn_diagonal(p), p.sizes))
        self.rows: dict[int, dict[int, Tensor]] = {}
        self.rounds = 0

    @property
    def probes(self) -> int:
        return self.rounds * GROUPS

    def add_round(self, signs: Tensor) -> None:
        """One more probe for every group, signs (GROUPS, P), over all batches."""
        p = self.view.loss
        estimate_base = self.exact_base is None and not self.why
        for weight, x, y in p.batches():
            linear = Linear(self.view, x, y)
            for group, row in enumerate(signs):
                if not any(linear.bent) and not estimate_base:
                    continue
                v = self._cut(row)
                direction = {
                    name: part.view(q.shape) for (name, q), part in zip(p.parameters.items(), v, strict=True)
                }
                tangents, out = linear.push(direction)
                cotangents = {
                    i: linear.bends[i] * t for i, t in enumerate(tangents) if t is not None and linear.bent[i]
                }
                if self.by_site:
                    for i, w in cotangents.items():
                        self._add(i, group, weight, v, linear.pull({i: w}))
                elif cotangents:
                    self._add(_ALL, group, weight, v, linear.pull(cotangents))
                if estimate_base:
                    pulled = linear.pull({len(self.view.sites): linear.output_product(out)})
                    self._add(_BASE, group, weight, v, pulled)
            del linear
        if self.why:
            for weight, graph in p.graphs():
                for group, row in enumerate(signs):
                    v = self._cut(row)
                    product = torch.split(graph.product(torch.cat(v)), p.sizes)
                    self._add(_WHOLE, group, weight, v, product)
            p.forget()
        self.rounds += 1

    def _cut(self, row: Tensor) -> list[Tensor]:
        p = self.view.loss
        return [part.to(q.dtype) for part, q in zip(torch.split(row, p.sizes), p.params, strict=True)]

    def _add(
        self, part: int, group: int, weight: float, signs: Sequence[Tensor], rows: Sequence[Tensor | None]
    ) -> None:
        held = self.rows.setdefault(part, {})
        for index, (sign, row) in enumerate(zip(signs, rows, strict=True)):
            if row is not None:
                if index not in held:
                    held[index] = self._zeros(index)
                held[index][group].add_(row.detach().reshape(-1) * sign, alpha=weight)

    def _zeros(self, index: int) -> Tensor:
        p = self.view.loss
        return p.params[0].detach().new_zeros(GROUPS, p.sizes[index])

    def _mean(self, part: int, index: int) -> Tensor:
        rows = self.rows.get(part, {}).get(index)
        return (self._zeros(index) if rows is None else rows) / self.rounds

    def diagonals(self, index: int) -> tuple[Tensor, Tensor]:
        """Means by group of the base and of the σ″ part in one parameter tensor."""
        c = self._zeros(index)
        for part in range(len(self.view.sites)) if self.by_site else [_ALL]:
            rows = self.rows.get(part, {}).get(index)
            if rows is not None:
                c += rows
        c = c / self.rounds
        if self.exact_base is not None:
            return self.exact_base[index].expand(GROUPS, -1), c
        if self.why:
            return self._mean(_WHOLE, index) - c, c
        return self._mean(_BASE, index), c

    def estimate(self) -> NormEstimate:
        """‖diag H‖, for the stopping rule."""
        total = torch.zeros(GROUPS, GROUPS, dtype=torch.float64, device=self.view.loss.params[0].device)
        for index in range(len(self.view.loss.params)):
            base, c = self.diagonals(index)
            total += gram(base + c)
        return cautious_norm_estimate(total)

    def tables(self, by: By) -> dict[str, _Table]:
        p, reach = self.view.loss, reached(self.view)
        tables: dict[str, _Table] = {}
        for index, name in enumerate(p.parameters):
            base, c = self.diagonals(index)
            if not (base + c).isfinite().all():
                raise CurvactError(f"the Hessian of parameter {name!r} is not finite in {_WHERE}")
            sites = {
                site: self._mean(number, index)
                for number, site in enumerate(self.view.sites)
                if self.by_site and name in reach[site]
            }
            _gather(tables, name, by, _Table.of(base, c, sites, self.exact_base is not None))
        return tables


# ---- from samples to shares ----


@dataclass(frozen=True, eq=False)
class _Table:
    """Products ⟨part of group k, part of group l⟩ between the parts of the diagonal. They add up
    over parameter tensors.
    """

    parameters: int
    products: Mapping[str, Tensor]
    """By two letters: d the diagonal, b the base, c the σ″ part."""
    sites: Mapping[str, tuple[Tensor, Tensor]]
    """(with itself, with d)"""
    exact_base: bool

    @staticmethod
    def of(base: Tensor, c: Tensor, sites: Mapping[str, Tensor], exact_base: bool) -> _Table:
        d = base + c
        products = {
            "dd": gram(d),
            "bb": gram(base),
            "cc": gram(c),
            "bd": gram(base, d),
            "cd": gram(c, d),
            "bc": gram(base, c),
        }
        crossed = {site: (gram(rows), gram(rows, d)) for site, rows in sites.items()}
        return _Table(d.shape[1], products, crossed, exact_base)

    def plus(self, other: _Table) -> _Table:
        sites = dict(self.sites)
        for site, (own, cross) in other.sites.items():
            sites[site] = (sites[site][0] + own, sites[site][1] + cross) if site in sites else (own, cross)
        products = {key: value + other.products[key] for key, value in self.products.items()}
        return _Table(self.parameters + other.parameters, products, sites, self.exact_base)

    def split(self) -> LayerSplit:
        dd, bb, cc, bd, cd, bc = (self.products[key] for key in ("dd", "bb", "cc", "bd", "cd", "bc"))
        return LayerSplit(
            parameters=self.parameters,
            diagonal=_norm(dd),
            base=NormEstimate(_norm(bb).value, 0.0) if self.exact_base else _norm(bb),
            curvature=_norm(cc),
            base_share=_ratio(bd, dd),
            curvature_share=_ratio(cd, dd),
            cosine=_jackknife(_cosine, bc, bb, cc),
            sites={
                site: SiteShare(_ratio(cross, dd), _norm(own)) for site, (own, cross) in self.sites.items()
            },
        )


def _gather(tables: dict[str, _Table], name: str, by: By, table: _Table) -> None:
    key = name if by == "parameter" else layer_of(name)
    tables[key] = tables[key].plus(table) if key in tables else table


def _norm(products: Tensor) -> NormEstimate:
    if len(products) == 1:
        return NormEstimate(math.sqrt(max(products.item(), 0.0)), 0.0)
    return norm_estimate(products)


def _cosine(bc: Tensor, bb: Tensor, cc: Tensor) -> Tensor:
    return torch.where((bb > 0) & (cc > 0), bc / (bb * cc).abs().sqrt(), math.nan)


def _ratio(cross: Tensor, dd: Tensor) -> Share:
    return _jackknife(lambda a, b: torch.where(b != 0, a / b, math.nan), cross, dd)


def _jackknife(formula: Callable[..., Tensor], *tables: Tensor) -> Share:
    """A formula of the unbiased products ⟨·,·⟩ in tables (K, K), with the jackknife's standard
    error over the K groups.
    """
    k = len(tables[0])
    if k == 1:
        return Share(formula(*(t[0, 0] for t in tables)).item(), 0.0)
    whole, without = [], []
    for table in tables:
        products = table.clone().fill_diagonal_(0.0)
        total, own = products.sum(), products.sum(0) + products.sum(1)
        whole.append(total / (k * (k - 1)))
        without.append((total - own) / ((k - 1) * (k - 2)))
    error = ((k - 1) * formula(*without).var(correction=0)).sqrt()
    return Share(formula(*whole).item(), error.item())


def _result(
    sites: Sequence[str],
    tables: Mapping[str, _Table],
    why: tuple[str, ...],
    probes: int,
    loss: float,
    residual: float | None = None,
) -> DiagonalSplit:
    first, *others = tables.values()
    total = first
    for table in others:
        total = total.plus(table)
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
        _gather(tables, name, by, _Table.of(base[None, part], c, own if by_site else {}, exact_base=True))
    return _result(tuple(vectors.sites), tables, vectors.why, 0, vectors.loss, residual)
