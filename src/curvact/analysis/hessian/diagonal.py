"""The diagonal of the loss Hessian, exactly or from random probes with error bars.

Let v_k be a vector of independent random signs. Then D_k = v_k ⊙ H v_k has the mean diag H
[derived] (Hutchinson's idea, in the form of Bekas, Kokiopoulou and Saad 2007). The squared norm of
the mean of the D_k is too large on average, because it holds the noise of the D_k. Products of
*different* probes do not hold it [derived]:

    U = (‖ΣD_k‖² − Σ‖D_k‖²) / (K(K−1)),                                 E U = ‖diag H‖²
    V = U² − ((ΣA)² − 4Σr_k² + 2ΣA²) / (K(K−1)(K−2)(K−3)),              E V = Var U

A is the Gram matrix of the D_k with a zero diagonal, r its row sums. The noise of D_k comes from
the elements of H off the diagonal. A few large eigenvalues dominate it. Two methods take them out:

- deflation: Q spans a sketch HΩ, where Ω holds m other random signs. Its part of the diagonal is
  computed exactly (as in Hutch++, Meyer et al. 2021, and Diag++, Baston and Nakatsukasa 2022):

      D_k = diag(PH + HP − PHP) + v_k ⊙ (I−P)H(I−P)v_k,    P = QQᵀ

- ggn: the large eigenvalues belong to the generalized Gauss-Newton matrix G. Its diagonal has an
  exact formula (see `ggn`). H − G is the Hessian of ⟨outputs, ∂L/∂outputs held fixed⟩, so that its
  products cost what products with H cost [derived]:

      D_k = diag G + v_k ⊙ (H−G)v_k

Given Q or G, these D_k are again independent with mean diag H. So U and V hold without change
[derived]. For the scale-invariant norm the probes act on H̃ = ΘHΘ, Θ = diag θ. Its diagonal is
θ²⊙diag H, and its part off the diagonal is smaller [ours].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from curvact.analysis.hessian.ggn import NotByExample, ggn_diagonal
from curvact.analysis.hessian.probes import (
    NormEstimate,
    check_deflation,
    check_probes,
    check_stopping,
    deflate,
    gram,
    grouped_samples,
    norm_estimate,
    samples,
    sketch,
)
from curvact.analysis.loss import Loss
from curvact.attacks.arguments import door
from curvact.errors import CurvactError

Method = Literal["deflation", "ggn"]


@dataclass(frozen=True)
class LayerNorms:
    """The three norms of `DiagonalNorms` in one parameter tensor, with its own number of parameters
    and its own gradient.
    """

    rms: NormEstimate
    gradient_relative: NormEstimate
    scale_invariant: NormEstimate
    gradient_norm: float
    parameters: int


@dataclass(frozen=True)
class DiagonalNorms:
    """The size of diag H under three normalizations.

    rms: (a) ‖diag H‖₂/√P.
    gradient_relative: (b) ‖diag H‖₂/‖∇L‖₂; infinite where the gradient is exactly 0.
    scale_invariant: (c) ‖θ²⊙diag H‖₂. It does not change when a scale moves from one layer to
    another.
    gradient_norm: ‖∇L‖₂, exact.
    parameters: P, the number of measured parameters.
    probes: K, or 0 where the diagonal is exact. With a stopping rule, (c) has its own number,
    `scaled_probes`.
    loss: L, the mean over the data.
    layers: the same by parameter tensor. The squares of the tensors' ‖diag H‖₂ add up to that of
    the whole.
    """

    rms: NormEstimate
    gradient_relative: NormEstimate
    scale_invariant: NormEstimate
    gradient_norm: float
    parameters: int
    probes: int
    loss: float
    scaled_probes: int = 0
    layers: Mapping[str, LayerNorms] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, eq=False)
class DiagonalEstimate:
    """The mean of the probes' diagonals and its standard error for each element, both of shape
    (P,).
    """

    mean: Tensor
    standard_error: Tensor


@door
def exact_diagonal(loss: Loss) -> Tensor:
    """diag H, of shape (P,), in float64, by P backward passes: for small models, or one layer of a
    large model.

    Each pass goes through the part of the graph between a parameter tensor and itself. For one
    layer, exclude the other parameters from the loss.
    Raises CurvactError for what is not finite; the message names the parameter.

    >>> from torch import nn
    >>> x, y = torch.tensor([[1.0, 2.0], [1.0, 0.0]]), torch.zeros(2, 1)
    >>> loss = Loss(nn.Linear(2, 1, bias=False), x, y, loss=nn.functional.mse_loss)
    >>> exact_diagonal(loss)  # 2·mean of x²
    tensor([2., 4.], dtype=torch.float64)
    """
    with loss.running("exact_diagonal"):
        total = torch.zeros(loss.size, dtype=torch.float64, device=loss.params[0].device)
        for weight, graph in loss.graphs():
            total += graph.diagonal() * weight
        loss.check_finite(total, "Hessian")
        return total


@door
def hutchinson_diagonal(
    loss: Loss, *, probes: int = 32, generator: torch.Generator, deflation: int = 0
) -> DiagonalEstimate:
    """diag H as the mean of `probes` ≥ 2 random probes, with a standard error for each element.

    Unbiased. Without deflation, element i has the variance Σ_{j≠i} H_ij² / probes: it is exact for
    a diagonal H.
    deflation: m, the number of directions that are taken out of H first. `probes` + 2·m products
    with H are made. Raises CurvactError for arguments out of range and for what is not finite.

    >>> from torch import nn
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> loss = Loss(nn.Linear(2, 1, bias=False), x, y, loss=nn.functional.mse_loss)
    >>> hutchinson_diagonal(loss, probes=4, generator=torch.Generator().manual_seed(0)).mean
    tensor([1., 4.])
    """
    check_probes(probes, 2, "hutchinson_diagonal")
    check_deflation(deflation, "hutchinson_diagonal")
    with loss.running("hutchinson_diagonal"):
        _, gradient = loss.gradient()
        top = deflate(loss.hessian, sketch(loss.hessian, deflation, gradient, generator))
        drawn = samples(loss.hessian, top, probes, generator)
        return DiagonalEstimate(drawn.mean(0), drawn.std(0) / math.sqrt(probes))


@door
def diagonal_norms(
    loss: Loss,
    *,
    probes: int = 16,
    generator: torch.Generator | None = None,
    deflation: int = 8,
    exact: bool = False,
    relative_error: float | None = None,
    max_probes: int = 1024,
    method: Method | None = None,
    scaled: bool = True,
) -> DiagonalNorms:
    """The three norms of diag H.

    For the adversarial loss give adversarial inputs to the `Loss`. The perturbation is held fixed:
    H is the Hessian of L(θ, x + δ*) at fixed δ*, not of max_δ L. The formulas are [derived]. Which
    normalization the paper (arXiv 2603.23860) means is not known, so these three are [ours].

    probes: K ≥ 4 for each of ‖diag H‖ and ‖θ²⊙diag H‖. Below 16 the error bar itself is uncertain.
    generator: of the probes, on any device; needed unless `exact`. The same seed gives the same
        probes.
    deflation: m, the number of directions that are taken out of H first; 0 for plain Hutchinson. 2K
        + 3m products with H are made, each of about 2.5 gradients of time. Up to 3K + 2m vectors of
        P numbers are held.
    exact: P backward passes and no probes, with standard errors of 0: for small models.
    relative_error: instead of a fixed number, draw probes until the standard errors of (a) and of
        (c) are at most this part of their values, or until `max_probes` are used. Then at most 36 +
        2m vectors of P numbers are held.
    method: what is computed exactly and taken out of the probes. "ggn" needs a model and a loss
        that treat examples one by one, and first costs about 5 gradients for each output. None:
        with `relative_error` "ggn" where that is possible, else "deflation".
    scaled: False leaves (c) out (it is NaN), for half of the time.
    Raises CurvactError for arguments out of range and for what is not finite; the message names the
    parameter.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 3))
    >>> loss = Loss(model, torch.tensor([[0.0, 1.0], [1.0, 0.5]]), torch.tensor([0, 2]))
    >>> norms = diagonal_norms(loss, probes=16, generator=torch.Generator().manual_seed(0))
    >>> truth = diagonal_norms(loss, exact=True)
    >>> norms.parameters, norms.probes, truth.rms.standard_error
    (51, 16, 0.0)
    >>> abs(norms.rms.value - truth.rms.value) < 5 * norms.rms.standard_error
    True
    """
    where = "diagonal_norms"
    if not exact and relative_error is None:
        check_probes(probes, 4, where)
    check_stopping(relative_error, max_probes, where)
    check_deflation(deflation, where)
    if method is not None and method not in get_args(Method):
        raise CurvactError(
            f"method={method!r} in {where}: allowed are {', '.join(get_args(Method))} and None"
        )
    if generator is None and not exact:
        raise CurvactError(f"generator=None in {where}: the probes need a torch.Generator, unless exact=True")

    with loss.running(where):
        theta = loss.theta()
        mean, gradient = loss.gradient()
        if exact or generator is None:
            diagonal = exact_diagonal(loss)
            counts = 0, 0
            plain = _norms(diagonal[None], loss)
            weighted = _norms((diagonal * theta.double() ** 2)[None], loss)
        else:
            offset = _ggn_if_wanted(loss, method, relative_error)
            rows = theta.new_zeros(0, loss.size)
            if offset is None:
                rows = sketch(loss.hessian, deflation, gradient, generator)
            rule = _Rule(generator, probes, relative_error, max_probes)
            drawn, images = _draw(loss, torch.ones_like(theta), offset, rows, rule)
            plain, first = _norms(drawn.samples, loss), drawn.probes
            del drawn
            weighted, second = _no_norms(loss), 0
            if scaled:
                drawn, _ = _draw(loss, theta, offset, images * theta, rule)
                weighted, second = _norms(drawn.samples, loss), drawn.probes
            counts = first, second

    gradient_norm = gradient.double().norm().item()
    return DiagonalNorms(
        rms=plain.total.times(1 / math.sqrt(loss.size)),
        gradient_relative=_relative(plain.total, gradient_norm),
        scale_invariant=weighted.total,
        gradient_norm=gradient_norm,
        parameters=loss.size,
        probes=counts[0],
        loss=mean,
        scaled_probes=counts[1],
        layers=_layers(loss, plain, weighted, gradient),
    )


# ---- how the samples are drawn ----


@dataclass(frozen=True)
class _Rule:
    """How many probes, and from where."""

    generator: torch.Generator
    probes: int
    relative_error: float | None
    max_probes: int


@dataclass(frozen=True, eq=False)
class _Drawn:
    samples: Tensor
    """Independent samples of the diagonal with one distribution, (K, P)."""
    probes: int
    """The probes behind them: K or more."""


def _draw(
    loss: Loss, scale: Tensor, offset: Tensor | None, rows: Tensor, rule: _Rule
) -> tuple[_Drawn, Tensor]:
    """Samples of scale²⊙diag H for a vector `scale`, and the images of the deflated basis before
    scaling.

    offset: diag GGN, where that is taken out. rows: a sketch (m, P) of ΘHΘ; its span is taken out
    where offset is None.
    """
    residual = offset is not None

    def operator(vectors: Tensor) -> Tensor:
        return loss.hessian(vectors * scale, residual=residual) * scale

    top = deflate(operator, rows)
    base = top.diagonal if offset is None else offset * scale**2
    if rule.relative_error is None:
        drawn = samples(operator, top, rule.probes, rule.generator)
        return _Drawn(drawn if offset is None else drawn.add_(base), rule.probes), top.images

    def add_round(signs: Tensor, sums: Tensor) -> None:
        for weight, graph in loss.graphs(residual=residual):
            for sign, total in zip(signs, sums, strict=True):
                vector = sign.to(scale.dtype)
                product = graph.product(top.remove(vector[None])[0] * scale) * scale
                total.add_(top.remove(product[None])[0].mul_(vector), alpha=weight)
        loss.check_finite(sums, "Hessian")

    means, count = grouped_samples(
        add_round,
        base,
        relative_error=rule.relative_error,
        max_probes=rule.max_probes,
        generator=rule.generator,
    )
    return _Drawn(means, count), top.images


def _ggn_if_wanted(loss: Loss, method: Method | None, relative_error: float | None) -> Tensor | None:
    if method == "deflation" or (method is None and relative_error is None):
        return None
    try:
        diagonal = ggn_diagonal(loss)
    except NotByExample:
        if method == "ggn":
            raise
        return None
    loss.forget()
    return diagonal


# ---- from samples to norms ----


@dataclass(frozen=True)
class _Norms:
    """A norm of the whole, and of each parameter tensor."""

    total: NormEstimate
    layers: list[NormEstimate]


def _norms(drawn: Tensor, loss: Loss) -> _Norms:
    parts = torch.split(drawn, loss.sizes, dim=1)
    if len(drawn) == 1:
        return _Norms(
            NormEstimate(drawn[0].norm().item(), 0.0), [NormEstimate(d.norm().item(), 0.0) for d in parts]
        )
    return _Norms(norm_estimate(gram(drawn)), [norm_estimate(gram(part)) for part in parts])


def _no_norms(loss: Loss) -> _Norms:
    nothing = NormEstimate(math.nan, math.nan)
    return _Norms(nothing, [nothing] * len(loss.params))


def _relative(norm: NormEstimate, size: float) -> NormEstimate:
    return norm.times(1 / size) if size > 0 else NormEstimate(math.inf, math.inf)


def _layers(loss: Loss, plain: _Norms, scaled: _Norms, gradient: Tensor) -> dict[str, LayerNorms]:
    out = {}
    parts = loss.by_parameter(gradient)
    for (name, part), d, s in zip(parts.items(), plain.layers, scaled.layers, strict=True):
        size = part.double().norm().item()
        out[name] = LayerNorms(
            rms=d.times(1 / math.sqrt(max(part.numel(), 1))),
            gradient_relative=_relative(d, size),
            scale_invariant=s,
            gradient_norm=size,
            parameters=part.numel(),
        )
    return out
