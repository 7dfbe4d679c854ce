"""Analysis room: the diagonal of the loss Hessian in the parameters, exactly and by Rademacher probes with error bars.

With `v_k` a vector of independent random signs, `D_k = v_k ⊙ H v_k` has mean diag H [derived] (Hutchinson's idea, in the form
of Bekas, Kokiopoulou and Saad 2007). The squared norm of an average of D_k is biased upward by its own noise; products of
*different* probes are not [derived]:

    U = (‖ΣD_k‖² − Σ‖D_k‖²) / (K(K−1)),                                 E U = ‖diag H‖²
    V = U² − ((ΣA)² − 4Σr_k² + 2ΣA²) / (K(K−1)(K−2)(K−3)),              E V = Var U

A is the Gram matrix of the D_k with a zero diagonal, r its row sums. The noise of D_k comes from the elements of H off the
diagonal, which a few large eigenvalues dominate. Two ways to take them out:

- deflation: the span Q of a sketch H Ω, with Ω of m other random signs, is taken out and its part of the diagonal computed
  exactly (as in Hutch++, Meyer et al. 2021, and Diag++, Baston and Nakatsukasa 2022):

      D_k = diag(PH + HP − PHP) + v_k ⊙ (I−P)H(I−P)v_k,    P = QQᵀ

- ggn: the large eigenvalues belong to the generalized Gauss-Newton matrix G, whose diagonal can be had exactly (see `ggn`), and
  H − G is the Hessian of ⟨outputs, ∂L/∂outputs held fixed⟩, so that its products cost what those of H cost [derived]:

      D_k = diag G + v_k ⊙ (H−G)v_k

Given Q or G these are again independent with mean diag H, so U and V hold as they stand [derived]. For the scale-invariant norm
the probes act on H̃ = ΘHΘ, Θ = diag θ, whose diagonal is θ²⊙diag H and whose off-diagonal part is smaller [ours]. Works on any
`nn.Module` whose forward pass can be differentiated twice, and knows nothing of the activations in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.analysis.accumulate import Batches, Exclude, Loss, Problem, check_finite, problem
from curvact.analysis.ggn import NotByExample, ggn_diagonal
from curvact.analysis.probes import (
    NormEstimate,
    SquaredNorm,
    check_deflation,
    check_probes,
    check_stopping,
    deflate,
    gram,
    grouped_samples,
    jackknife_variance,
    norm_estimate,
    samples,
    sketch,
    unbiased_squared_norm,
)
from curvact.analysis.products import differentiate, hvp
from curvact.errors import CurvactError, nearest

__all__ = [
    "DiagonalEstimate",
    "DiagonalNorms",
    "LayerNorms",
    "NormEstimate",
    "SquaredNorm",
    "diagonal_norms",
    "exact_diagonal",
    "exact_diagonals",
    "hutchinson_diagonal",
    "hvp",
    "jackknife_variance",
    "norm_estimate",
    "unbiased_squared_norm",
]

Method = Literal["deflation", "ggn"]


@dataclass(frozen=True)
class LayerNorms:
    """The three norms of `DiagonalNorms` within one parameter tensor, with its own number of parameters and gradient."""

    rms: NormEstimate
    gradient_relative: NormEstimate
    scale_invariant: NormEstimate
    gradient_norm: float
    parameters: int


@dataclass(frozen=True)
class DiagonalNorms:
    """The size of diag H under three normalizations, for one model and one set of data.

    rms: (a) ‖diag H‖₂/√P.
    gradient_relative: (b) ‖diag H‖₂/‖∇L‖₂; infinite where the gradient is exactly 0.
    scale_invariant: (c) ‖θ²⊙diag H‖₂, unchanged when a scale is moved from one layer to another.
    gradient_norm: ‖∇L‖₂, exact.
    parameters: P, the number of parameters that were measured.
    probes: K, or 0 where the diagonal was computed exactly; of (c), with a stopping rule, `scaled_probes`.
    loss: L, the mean over the data.
    layers: the same by parameter tensor; the squares of the tensors' ‖diag H‖₂ sum to the whole (estimates: up to noise below 0).
    """

    rms: NormEstimate
    gradient_relative: NormEstimate
    scale_invariant: NormEstimate
    gradient_norm: float
    parameters: int
    probes: int
    loss: float
    scaled_probes: int = 0
    layers: Mapping[str, LayerNorms] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DiagonalEstimate:
    """The mean of the probes' diagonals and its elementwise standard error, both of shape (P,)."""

    mean: Tensor
    standard_error: Tensor


def exact_diagonal(loss_fn: Callable[[], Tensor], params: Sequence[Tensor]) -> Tensor:
    """diag H of `loss_fn()` in `params`, of shape (P,), by P backward passes: for small models.

    `loss_fn`, `params` and errors as for `hvp`.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> exact_diagonal(lambda: w[0] ** 2 * w[1], [w])
    tensor([4., 0.])
    """
    return differentiate(loss_fn, params).diagonal()


def hutchinson_diagonal(
    loss_fn: Callable[[], Tensor],
    params: Sequence[Tensor],
    *,
    probes: int = 32,
    generator: torch.Generator,
    deflation: int = 0,
) -> DiagonalEstimate:
    """diag H of `loss_fn()` in `params` as the mean of `probes` ≥ 2 Rademacher probes, with its elementwise standard error.

    Unbiased; without deflation element i has the variance Σ_{j≠i} H_ij² / probes, so that it is exact for a diagonal H. Costs one
    gradient and `probes` + 2·`deflation` backward passes through its graph. `loss_fn`, `params` and errors as for `hvp`.

    deflation: m, the number of directions that are taken out of H first.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> estimate = hutchinson_diagonal(lambda: (w**3).sum(), [w], probes=4, generator=torch.Generator().manual_seed(0))
    >>> estimate.mean, estimate.standard_error
    (tensor([ 6., 12.]), tensor([0., 0.]))
    """
    check_probes(probes, 2, "hutchinson_diagonal")
    check_deflation(deflation, "hutchinson_diagonal")
    graph = differentiate(loss_fn, params)

    def hessian(rows: Tensor) -> Tensor:
        return torch.stack([graph.product(row) for row in rows])

    top = deflate(hessian, sketch(hessian, deflation, graph.gradient, generator))
    drawn = samples(hessian, top, probes, generator)
    return DiagonalEstimate(drawn.mean(0), drawn.std(0) / math.sqrt(probes))


def exact_diagonals(
    model: nn.Module,
    x: Tensor | None = None,
    y: Tensor | None = None,
    *,
    loss: Loss = F.cross_entropy,
    only: Callable[[str], bool] | Sequence[str] | None = None,
    exclude: Exclude = (),
    batches: Batches | None = None,
    batch_size: int | None = None,
) -> dict[str, Tensor]:
    """diag H layer by layer, exactly: parameter name to its part of the diagonal, in the parameter's shape.

    One backward pass an element, each only through the part of the graph between a tensor and itself, so that one layer of a
    large model can be had without the others.

    only: names of the parameters wanted, or a test of a name; None for all. All else as for `diagonal_norms`.
    Raises CurvactError for a name that the model does not have or that is excluded, and as `diagonal_norms`.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> x, y = torch.tensor([[1.0, 2.0], [1.0, 0.0]]), torch.zeros(2, 1)
    >>> exact_diagonals(model, x, y, loss=F.mse_loss)  # 2·mean of x²
    {'weight': tensor([[2., 4.]])}
    """
    where = "exact_diagonals"
    with problem(
        model, x, y, where=where, loss=loss, exclude=exclude, batches=batches, batch_size=batch_size
    ) as p:
        names = list(p.free)
        if only is None:
            wanted = names
        elif callable(only):
            wanted = [name for name in names if only(name)]
        else:
            for name in only:
                if name not in names:
                    raise CurvactError(
                        f"only names {name!r} in {where}, which is no measured parameter{nearest(name, names)}"
                    )
            wanted = list(only)
        sums = {name: torch.zeros_like(p.free[name]).reshape(-1).detach() for name in wanted}
        for weight, graph in p.graphs():
            for name in wanted:
                sums[name].add_(graph.block_diagonal(names.index(name)), alpha=weight)
        for name in wanted:
            check_finite(sums[name][None], {name: p.free[name]}, "Hessian", where)
        return {name: sums[name].view(p.free[name].shape) for name in wanted}


def diagonal_norms(
    model: nn.Module,
    x: Tensor | None = None,
    y: Tensor | None = None,
    *,
    loss: Loss = F.cross_entropy,
    probes: int = 16,
    generator: torch.Generator | None = None,
    deflation: int = 8,
    exclude: Exclude = (),
    exact: bool | None = None,
    batch_size: int | None = None,
    batches: Batches | None = None,
    relative_error: float | None = None,
    max_probes: int = 1024,
    method: Method | None = None,
    scaled: bool = True,
) -> DiagonalNorms:
    """The three norms of diag H for the mean loss of a model over (x, y), or over batches, in eval mode.

    For the adversarial loss give adversarial x: the perturbation is held fixed, so that H is the Hessian of L(θ, x + δ*) at
    frozen δ*, not of max_δ L. The model is left as it was: modes, gradients, `requires_grad`, buffers. The formulas are
    [derived]; which normalization the paper (arXiv 2603.23860) means is not known, so these three are [ours].

    model: any module that maps x to the first argument of `loss`, and can be differentiated twice (one that `torch.compile` made
    cannot).
    x, y: inputs (N, …) and targets (N, …).
    loss: the mean over examples, as a scalar.
    probes: K ≥ 4 for each of ‖diag H‖ and ‖θ²⊙diag H‖; 16 or more for an error bar to be trusted.
    generator: source of the probes, on any device; needed unless `exact`. The same seed gives the same probes.
    deflation: m, the number of directions that are taken out of H first; 0 for plain Hutchinson. In all 2K + 3m products with H
        are made, of about 2.5 gradients of time each; up to 3K + 2m vectors of P numbers are held.
    exclude: parameters to hold fixed and leave out of P: their names as in `model.named_parameters()`, or a test of a name.
        Frozen parameters (`requires_grad=False`) count unless excluded; tied ones count once.
    exact: P backward passes and no probes, with standard errors of 0: for small models.
    batch_size: go through the data in pieces of this size, with the memory of two; the result is that of all the data at once.
    batches: the data as pairs (x, y), instead of x and y: a list, a DataLoader, or a function that returns an iterator. They are
        gone through many times and must be the same images each time, in any order; losses are averaged by image.
    relative_error: instead of a fixed number, draw probes until the standard errors of (a) and of (c) are at most this part of
        their values, or `max_probes` are used for one of them; `standard_error` tells which it was. At most 36 + 2m vectors of P
        numbers are held, however many probes it takes.
    method: what is computed exactly and taken out of the probes: "deflation", or "ggn", which needs a model and a loss that treat
        examples one by one, and costs about 5 gradients an output first. None: with `relative_error` "ggn" where that is so,
        else "deflation".
    scaled: False leaves (c) out (it is NaN), for half of the time.
    Raises CurvactError for arguments out of range, for a name in `exclude` that the model does not have, and for a result that is
    not finite (it names the parameter).

    >>> model = nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 3))
    >>> x, y = torch.tensor([[0.0, 1.0], [1.0, 0.5]]), torch.tensor([0, 2])
    >>> norms = diagonal_norms(model, x, y, probes=16, generator=torch.Generator().manual_seed(0))
    >>> truth = diagonal_norms(model, x, y, exact=True)
    >>> norms.parameters, norms.probes, truth.rms.standard_error
    (51, 16, 0.0)
    >>> abs(norms.rms.value - truth.rms.value) < 5 * norms.rms.standard_error
    True
    >>> norms = diagonal_norms(model, x, y, relative_error=0.02, generator=torch.Generator().manual_seed(0))
    >>> norms.rms.standard_error <= 0.02 * norms.rms.value
    True
    """
    where = "diagonal_norms"
    if exact:
        probes = 0
    elif relative_error is None:
        check_probes(probes, 4, where)
    check_stopping(relative_error, max_probes, where)
    check_deflation(deflation, where)
    if method is not None and method not in get_args(Method):
        raise CurvactError(
            f"method={method!r} in {where}: allowed are {', '.join(get_args(Method))} and None"
        )
    if not exact and generator is None:
        raise CurvactError(f"generator=None in {where}: the probes need a torch.Generator, unless exact=True")

    with problem(
        model, x, y, where=where, loss=loss, exclude=exclude, batches=batches, batch_size=batch_size
    ) as p:
        theta = p.theta()
        mean_loss, gradient = p.gradient()
        if exact or generator is None:
            diagonal = p.diagonal()
            check_finite(diagonal[None], p.free, "Hessian", where)
            counts = 0, 0
            plain = _norms(diagonal[None], p)
            weighted = _norms((diagonal * theta.double() ** 2)[None], p)
        else:
            offset = _ggn_if_wanted(p, method, relative_error)
            ones = torch.ones_like(theta)
            rows = theta.new_zeros(0, p.size)
            if offset is None:
                rows = sketch(p.hessian, deflation, gradient, generator)
            rule = generator, probes, relative_error, max_probes
            drawn, images = _draw(p, ones, offset, rows, *rule)
            plain, first = _norms(drawn.samples, p), drawn.probes
            del drawn
            weighted, second = _no_norms(p), 0
            if scaled:
                drawn, _ = _draw(p, theta, offset, images * theta, *rule)
                weighted, second = _norms(drawn.samples, p), drawn.probes
            counts = first, second

    gradient_norm = gradient.double().norm().item()
    return DiagonalNorms(
        rms=plain.total.times(1 / math.sqrt(p.size)),
        gradient_relative=_relative(plain.total, gradient_norm),
        scale_invariant=weighted.total,
        gradient_norm=gradient_norm,
        parameters=p.size,
        probes=counts[0],
        loss=mean_loss,
        scaled_probes=counts[1],
        layers=_layers(p, plain, weighted, gradient),
    )


# ---- how the samples are drawn ----


@dataclass(frozen=True, eq=False)
class _Drawn:
    samples: Tensor
    """Independent samples of the diagonal with one distribution, (K, P)."""
    probes: int
    """Behind them: K or more."""


def _draw(
    p: Problem,
    scale: Tensor,
    offset: Tensor | None,
    rows: Tensor,
    generator: torch.Generator,
    probes: int,
    relative_error: float | None,
    max_probes: int,
) -> tuple[_Drawn, Tensor]:
    """Samples of scale²⊙diag H for a vector `scale`, and the images of the deflated basis before scaling.

    offset: diag GGN, if that is taken out. rows: a sketch (m, P) of ΘHΘ, whose span is taken out where offset is None.
    """
    residual = offset is not None

    def operator(vectors: Tensor) -> Tensor:
        return p.hessian(vectors * scale, residual=residual) * scale

    top = deflate(operator, rows)
    base = top.diagonal if offset is None else offset * scale**2
    if relative_error is None:
        drawn = samples(operator, top, probes, generator)
        return _Drawn(drawn if offset is None else drawn.add_(base), probes), top.images

    def add_round(signs: Tensor, sums: Tensor) -> None:
        for weight, graph in p.graphs(residual=residual):
            for sign, total in zip(signs, sums, strict=True):
                vector = sign.to(scale.dtype)
                product = graph.product(top.remove(vector[None])[0] * scale) * scale
                total.add_(top.remove(product[None])[0].mul_(vector), alpha=weight)
        check_finite(sums, p.free, "Hessian", p.where)

    means, count = grouped_samples(
        add_round, base, relative_error=relative_error, max_probes=max_probes, generator=generator
    )
    return _Drawn(means, count), top.images


def _ggn_if_wanted(p: Problem, method: Method | None, relative_error: float | None) -> Tensor | None:
    if method == "deflation" or (method is None and relative_error is None):
        return None
    try:
        diagonal = ggn_diagonal(p)
    except NotByExample:
        if method == "ggn":
            raise
        return None
    p.kept.clear()
    return diagonal


# ---- from samples to norms ----


@dataclass(frozen=True)
class _Norms:
    """A norm as a whole and by parameter tensor."""

    total: NormEstimate
    layers: list[NormEstimate]


def _norms(drawn: Tensor, p: Problem) -> _Norms:
    parts = torch.split(drawn, [param.numel() for param in p.params], dim=1)
    if len(drawn) == 1:
        return _Norms(
            NormEstimate(drawn[0].norm().item(), 0.0), [NormEstimate(d.norm().item(), 0.0) for d in parts]
        )
    return _Norms(norm_estimate(gram(drawn)), [norm_estimate(gram(part)) for part in parts])


def _no_norms(p: Problem) -> _Norms:
    nothing = NormEstimate(math.nan, math.nan)
    return _Norms(nothing, [nothing] * len(p.params))


def _relative(norm: NormEstimate, size: float) -> NormEstimate:
    return norm.times(1 / size) if size > 0 else NormEstimate(math.inf, math.inf)


def _layers(p: Problem, plain: _Norms, scaled: _Norms, gradient: Tensor) -> dict[str, LayerNorms]:
    out = {}
    pieces = torch.split(gradient, [param.numel() for param in p.params])
    for (name, param), d, s, g in zip(p.free.items(), plain.layers, scaled.layers, pieces, strict=True):
        size = g.double().norm().item()
        out[name] = LayerNorms(
            rms=d.times(1 / math.sqrt(max(param.numel(), 1))),
            gradient_relative=_relative(d, size),
            scale_invariant=s,
            gradient_norm=size,
            parameters=param.numel(),
        )
    return out
