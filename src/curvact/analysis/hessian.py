"""Analysis room: the diagonal of the loss Hessian in the parameters, exactly and by Rademacher probes with error bars.

With `v_k` a vector of independent random signs, `D_k = v_k ⊙ H v_k` has mean diag H [derived] (Hutchinson's idea, in the form
of Bekas, Kokiopoulou and Saad 2007). The squared norm of an average of D_k is biased upward by its own noise; products of
*different* probes are not [derived]:

    U = (‖ΣD_k‖² − Σ‖D_k‖²) / (K(K−1)),                                 E U = ‖diag H‖²
    V = U² − ((ΣA)² − 4Σr_k² + 2ΣA²) / (K(K−1)(K−2)(K−3)),              E V = Var U

A is the Gram matrix of the D_k with a zero diagonal, r its row sums. The noise of D_k comes from the elements of H off the
diagonal, which a few large eigenvalues dominate. So the span Q of a sketch H Ω, with Ω of m other random signs, is taken out
first and its part of the diagonal computed exactly (as in Hutch++, Meyer et al. 2021, and Diag++, Baston and Nakatsukasa 2022):

    D_k = diag(PH + HP − PHP) + v_k ⊙ (I−P)H(I−P)v_k,    P = QQᵀ

Given Q these are again independent with mean diag H, so U and V hold as they stand [derived]. For the scale-invariant norm the
probes act on H̃ = ΘHΘ, Θ = diag θ, whose diagonal is θ²⊙diag H and whose off-diagonal part is smaller [ours]. Works on any
`nn.Module` whose forward pass can be differentiated twice, and knows nothing of the activations in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.errors import CurvactError, nearest

Operator = Callable[[Tensor], Tensor]
"""Rows (K, P) to rows (K, P), each multiplied by the same symmetric matrix."""

_COLUMNS = 1 << 16
"""Parameters whose samples are held in float64 at a time."""


@dataclass(frozen=True)
class NormEstimate:
    """A norm and the standard error that the random probes leave on it; 0 where it was computed exactly.

    The standard error says nothing of the choice of data, seed or training run.
    """

    value: float
    standard_error: float


@dataclass(frozen=True)
class DiagonalNorms:
    """The size of diag H under three normalizations, for one model and one batch.

    rms: (a) ‖diag H‖₂/√P.
    gradient_relative: (b) ‖diag H‖₂/‖∇L‖₂; infinite where the gradient is exactly 0.
    scale_invariant: (c) ‖θ²⊙diag H‖₂, unchanged when a scale is moved from one layer to another.
    gradient_norm: ‖∇L‖₂, exact.
    parameters: P, the number of parameters that were measured.
    probes: K, or 0 where the diagonal was computed exactly.
    loss: L, the mean over the data.
    """

    rms: NormEstimate
    gradient_relative: NormEstimate
    scale_invariant: NormEstimate
    gradient_norm: float
    parameters: int
    probes: int
    loss: float


@dataclass(frozen=True, eq=False)
class DiagonalEstimate:
    """The mean of the probes' diagonals and its elementwise standard error, both of shape (P,)."""

    mean: Tensor
    standard_error: Tensor


@dataclass(frozen=True)
class SquaredNorm:
    """U and an unbiased estimate of its variance. Either may come out negative."""

    value: float
    variance: float


# ---- products with the Hessian ----


def hvp(loss_fn: Callable[[], Tensor], params: Sequence[Tensor], vector: Tensor) -> Tensor:
    """H v, for the Hessian H of `loss_fn()` in `params`, of shape (P,).

    loss_fn: returns a scalar computed from `params`.
    params: tensors that require a gradient; P is their total number of elements. One that the loss does not depend on has a
        zero row.
    vector: v, of shape (P,), in the order of `params`.
    Raises CurvactError when the loss is no scalar, or does not depend on any of the parameters, or v has another length.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> hvp(lambda: w[0] ** 2 * w[1], [w], torch.tensor([1.0, 0.0]))  # the first column of [[2w₁, 2w₀], [2w₀, 0]]
    tensor([4., 2.])
    """
    total = sum(p.numel() for p in params)
    if vector.shape != (total,):
        raise CurvactError(f"vector of shape {tuple(vector.shape)} in hvp: it must be ({total},), flat")
    return _differentiate(loss_fn, params).product(vector)


def exact_diagonal(loss_fn: Callable[[], Tensor], params: Sequence[Tensor]) -> Tensor:
    """diag H of `loss_fn()` in `params`, of shape (P,), by P backward passes: for small models.

    `loss_fn`, `params` and errors as for `hvp`.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> exact_diagonal(lambda: w[0] ** 2 * w[1], [w])
    tensor([4., 0.])
    """
    return _differentiate(loss_fn, params).diagonal()


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
    _check_probes(probes, 2, "hutchinson_diagonal")
    _check_deflation(deflation, "hutchinson_diagonal")
    graph = _differentiate(loss_fn, params)

    def hessian(rows: Tensor) -> Tensor:
        return torch.stack([graph.product(row) for row in rows])

    sketch = _sketch(hessian, deflation, graph.gradient, generator)
    samples = _samples(hessian, _deflate(hessian, sketch), probes, generator)
    return DiagonalEstimate(samples.mean(0), samples.std(0) / math.sqrt(probes))


@dataclass(frozen=True, eq=False)
class _Graph:
    """A loss and its gradient with the graph behind it, so that each product with H is one more backward pass."""

    params: Sequence[Tensor]
    gradients: Sequence[Tensor | None]
    """None where the gradient is constant in every parameter: there H has zero rows."""
    loss: Tensor
    gradient: Tensor
    """∇L, flat and detached."""

    def product(self, vector: Tensor) -> Tensor:
        """H v for v of shape (P,), in any real dtype."""
        outputs, cotangents = [], []
        parts = torch.split(vector, [p.numel() for p in self.params])
        for gradient, part in zip(self.gradients, parts, strict=True):
            if gradient is not None:
                outputs.append(gradient)
                cotangents.append(part.to(gradient.dtype).view(gradient.shape))
        if not outputs:
            return torch.zeros_like(self.gradient)
        rows = torch.autograd.grad(
            outputs, self.params, cotangents, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return _flatten(rows)

    def diagonal(self) -> Tensor:
        """diag H, of shape (P,): one backward pass an element, each within the part of the graph between a tensor and itself."""
        diagonal = torch.zeros_like(self.gradient)
        parts = torch.split(diagonal, [p.numel() for p in self.params])
        for gradient, param, part in zip(self.gradients, self.params, parts, strict=True):
            if gradient is None:
                continue
            for i in range(param.numel()):
                unit = torch.zeros_like(gradient).reshape(-1)
                unit[i] = 1
                (row,) = torch.autograd.grad(
                    gradient,
                    param,
                    unit.view(gradient.shape),
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
                part[i] = row.reshape(-1)[i]
        return diagonal


def _differentiate(loss_fn: Callable[[], Tensor], params: Sequence[Tensor]) -> _Graph:
    if not params:
        raise CurvactError("no parameters to differentiate by: give at least one tensor")
    with torch.enable_grad():
        loss = loss_fn()
        if loss.numel() != 1:
            raise CurvactError(
                f"a loss of shape {tuple(loss.shape)}: it must be one number, the mean over examples"
            )
        if not loss.requires_grad:
            raise CurvactError(
                "the loss does not depend on any of the parameters: is the forward pass under no_grad?"
            )
        gradients = torch.autograd.grad(
            loss, params, create_graph=True, allow_unused=True, materialize_grads=True
        )
    differentiable = [g if g.requires_grad else None for g in gradients]
    return _Graph(params, differentiable, loss.detach().reshape(()), _flatten(gradients))


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


# ---- random probes ----


def _rademacher(rows: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs of shape (rows, P), in the dtype and on the device of `like` (P,)."""
    bits = torch.randint(2, (rows, len(like)), generator=generator, dtype=torch.int8, device=generator.device)
    return bits.to(like.device).to(like.dtype).mul_(2).sub_(1)


def _sketch(operator: Operator, rank: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Random rows (rank, P) in the range of the operator, where its large eigenvalues have most weight."""
    if rank == 0:
        return like.new_zeros(0, len(like))
    return operator(_rademacher(rank, like, generator))


@dataclass(frozen=True, eq=False)
class _Deflation:
    """A subspace that is taken out of a symmetric operator H, with projector P."""

    basis: Tensor
    """Orthonormal rows (m, P)."""
    images: Tensor
    """Their products with H."""
    diagonal: Tensor
    """diag(PH + HP − PHP), of shape (P,)."""

    def remove(self, rows: Tensor) -> Tensor:
        return rows - (rows @ self.basis.T) @ self.basis


def _deflate(operator: Operator, sketch: Tensor) -> _Deflation:
    """The span of the rows of the sketch. The split of H is exact for any basis, so that rounding in it does no harm."""
    if len(sketch) == 0:
        return _Deflation(sketch, sketch, sketch.sum(0))
    basis = torch.linalg.qr(sketch.double().T).Q.T.to(sketch.dtype)
    images = operator(basis)
    diagonal = ((2 * images - (images @ basis.T) @ basis) * basis).sum(0)
    return _Deflation(basis, images, diagonal)


def _samples(operator: Operator, deflation: _Deflation, probes: int, generator: torch.Generator) -> Tensor:
    """Independent samples D_k of the operator's diagonal, of shape (probes, P)."""
    signs = _rademacher(probes, deflation.diagonal, generator)
    return deflation.remove(operator(deflation.remove(signs))).mul_(signs).add_(deflation.diagonal)


def _gram(samples: Tensor) -> Tensor:
    gram = torch.zeros(len(samples), len(samples), dtype=torch.float64, device=samples.device)
    for start in range(0, samples.shape[1], _COLUMNS):
        part = samples[:, start : start + _COLUMNS].double()
        gram += part @ part.T
    return gram


# ---- the norm of a mean, without the bias of its noise ----


def unbiased_squared_norm(gram: Tensor) -> SquaredNorm:
    """U and V for the squared norm of the mean of K ≥ 4 independent, identically distributed vectors. [derived]

    gram: their Gram matrix, of shape (K, K), in float64 by preference.
    Raises CurvactError for K < 4, where V does not exist.

    >>> samples = torch.tensor([[3.0, 4.0]] * 5, dtype=torch.float64)
    >>> unbiased_squared_norm(samples @ samples.T)
    SquaredNorm(value=25.0, variance=0.0)
    """
    k = len(gram)
    _check_probes(k, 4, "unbiased_squared_norm")
    products = gram.double().clone().fill_diagonal_(0.0)
    rows = products.sum(1)
    value = rows.sum() / (k * (k - 1))
    distinct = rows.sum() ** 2 - 4 * (rows**2).sum() + 2 * (products**2).sum()
    variance = value**2 - distinct / (k * (k - 1) * (k - 2) * (k - 3))
    return SquaredNorm(value.item(), variance.item())


def jackknife_variance(gram: Tensor) -> float:
    """The jackknife's estimate of Var U from a Gram matrix of K ≥ 3 vectors: never negative, on average too large. [derived]"""
    k = len(gram)
    _check_probes(k, 3, "jackknife_variance")
    products = gram.double().clone().fill_diagonal_(0.0)
    rows = products.sum(1)
    left_out = (rows.sum() - 2 * rows) / ((k - 1) * (k - 2))
    return (left_out.var(correction=0) * (k - 1)).item()


def norm_estimate(gram: Tensor) -> NormEstimate:
    """√U and its standard error, from the Gram matrix (K, K) of K ≥ 4 probes; K ≥ 16 for an error bar to be trusted.

    The delta method gives SE(√U) = s/(2√U) with s² = V [derived]; where V is negative, the jackknife takes its place. A
    negative U, where the noise is above the signal, gives the value 0. Near 0 the square root is no longer straight, and the
    error bar is held at √s, the norm that U = s would give: s/(2√max(U, s/4)) [ours]. √U is biased downward by a share of
    about (SE/√U)²/2.

    >>> norm_estimate(torch.full((4, 4), 9.0))
    NormEstimate(value=3.0, standard_error=0.0)
    """
    squared = unbiased_squared_norm(gram)
    variance = squared.variance if squared.variance > 0 else jackknife_variance(gram)
    error = math.sqrt(variance)
    if error == 0:
        return NormEstimate(math.sqrt(max(squared.value, 0.0)), 0.0)
    return NormEstimate(
        math.sqrt(max(squared.value, 0.0)), error / (2 * math.sqrt(max(squared.value, error / 4)))
    )


# ---- a model on a batch ----


def diagonal_norms(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    probes: int = 16,
    generator: torch.Generator | None = None,
    deflation: int = 8,
    exclude: Callable[[str], bool] | Collection[str] = (),
    exact: bool | None = None,
    batch_size: int | None = None,
) -> DiagonalNorms:
    """The three norms of diag H for the mean loss of a model over (x, y), in eval mode.

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
    """
    if len(x) != len(y) or len(x) == 0:
        raise CurvactError(
            f"{len(x)} inputs and {len(y)} targets in diagonal_norms: as many of each, at least 1"
        )
    if batch_size is not None and batch_size < 1:
        raise CurvactError(f"batch_size={batch_size} in diagonal_norms: it must be at least 1")
    if exact:
        probes = 0
    else:
        _check_probes(probes, 4, "diagonal_norms")
    if not exact and generator is None:
        raise CurvactError(
            "generator=None in diagonal_norms: the probes need a torch.Generator, unless exact=True"
        )

    _check_deflation(deflation, "diagonal_norms")

    fixed, free = _divide(model, exclude)
    params = list(free.values())
    total = sum(p.numel() for p in params)
    pieces = list(_pieces(x.detach(), y.detach(), batch_size))

    def differentiate(inputs: Tensor, targets: Tensor) -> _Graph:
        return _differentiate(
            lambda: loss(torch.func.functional_call(model, {**fixed, **free}, (inputs,)), targets), params
        )

    with _eval_mode(model):
        only = differentiate(*pieces[0]) if len(pieces) == 1 else None

        def graphs() -> Iterator[tuple[float, _Graph]]:
            for inputs, targets in pieces:
                yield len(inputs) / len(x), only or differentiate(inputs, targets)

        def hessian(rows: Tensor) -> Tensor:
            out = torch.zeros_like(rows)
            for weight, graph in graphs():
                for row, sum_ in zip(rows, out, strict=True):
                    sum_.add_(graph.product(row), alpha=weight)
            _check_finite(out, free, "Hessian")
            return out

        theta = _flatten(params)
        theta = theta.to(torch.promote_types(theta.dtype, torch.float32))
        _check_finite(theta[None], free, "value")
        gradient, mean_loss = torch.zeros_like(theta), 0.0
        for weight, graph in graphs():
            gradient = gradient + graph.gradient * weight
            mean_loss += graph.loss.item() * weight
        if not math.isfinite(mean_loss):
            raise CurvactError(f"the loss is {mean_loss} in diagonal_norms: it must be finite")
        _check_finite(gradient[None], free, "gradient")

        if exact or generator is None:
            diagonal = torch.zeros_like(gradient, dtype=torch.float64)
            for weight, graph in graphs():
                diagonal += graph.diagonal() * weight
            _check_finite(diagonal[None], free, "Hessian")
            plain = NormEstimate(diagonal.norm().item(), 0.0)
            scaled = NormEstimate((diagonal * theta.double() ** 2).norm().item(), 0.0)
        else:

            def scaled_hessian(rows: Tensor) -> Tensor:
                return hessian(rows * theta) * theta

            top = _deflate(hessian, _sketch(hessian, deflation, gradient, generator))
            plain = norm_estimate(_gram(_samples(hessian, top, probes, generator)))
            top = _deflate(scaled_hessian, top.images * theta)
            scaled = norm_estimate(_gram(_samples(scaled_hessian, top, probes, generator)))

    gradient_norm = gradient.double().norm().item()
    return DiagonalNorms(
        rms=_times(plain, 1 / math.sqrt(total)),
        gradient_relative=_times(plain, 1 / gradient_norm)
        if gradient_norm > 0
        else NormEstimate(math.inf, math.inf),
        scale_invariant=scaled,
        gradient_norm=gradient_norm,
        parameters=total,
        probes=probes,
        loss=mean_loss,
    )


def _times(norm: NormEstimate, factor: float) -> NormEstimate:
    return NormEstimate(norm.value * factor, norm.standard_error * factor)


def _divide(
    model: nn.Module, exclude: Callable[[str], bool] | Collection[str]
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Stand-ins for the model's state: what is held fixed (with copies of the buffers), and fresh leaves for what is measured."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        names.setdefault(param, []).append(name)
    if isinstance(exclude, str):
        raise CurvactError(
            f"exclude={exclude!r} in diagonal_norms: give a collection of names, or a test of a name"
        )
    if callable(exclude):
        excluded = exclude
    else:
        known = [name for same in names.values() for name in same]
        for name in exclude:
            if name not in known:
                raise CurvactError(
                    f"exclude names {name!r} in diagonal_norms, which is no parameter of the model"
                    + nearest(name, known)
                )
        excluded = frozenset(exclude).__contains__
    fixed = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    free: dict[str, Tensor] = {}
    for param, same in names.items():
        if any(excluded(name) for name in same):
            fixed[same[0]] = param.detach()
        else:
            free[same[0]] = param.detach().requires_grad_()
    if not free:
        raise CurvactError(
            "no parameters left to measure in diagonal_norms: the model has none, or all are excluded"
        )
    return fixed, free


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _pieces(x: Tensor, y: Tensor, batch_size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    size = len(x) if batch_size is None else batch_size
    yield from zip(torch.split(x, size), torch.split(y, size), strict=True)


def _check_finite(values: Tensor, params: Mapping[str, Tensor], what: str) -> None:
    """values: (K, P). Names the first parameter with a value that is not finite."""
    parts = torch.split(values.isfinite().all(0), [p.numel() for p in params.values()])
    for name, part in zip(params, parts, strict=True):
        if not part.all():
            raise CurvactError(f"the {what} of parameter {name!r} is not finite in diagonal_norms")


def _check_probes(probes: int, least: int, where: str) -> None:
    if probes < least:
        raise CurvactError(
            f"probes={probes} in {where}: at least {least} are needed, and 16 or more recommended"
        )


def _check_deflation(deflation: int, where: str) -> None:
    if deflation < 0:
        raise CurvactError(f"deflation={deflation} in {where}: it must be 0 or more")
