"""Analysis room: the diagonal of the loss Hessian in the parameters, exactly and by Rademacher probes with error bars.

With `v_k` a vector of independent random signs, `D_k = v_k ⊙ H v_k` has mean diag H [derived] (Hutchinson's idea, in the form
of Bekas, Kokiopoulou and Saad 2007). The squared norm of an average of D_k is biased upward by its own noise; products of
*different* probes are not [derived]:

    U = (‖ΣD_k‖² − Σ‖D_k‖²) / (K(K−1)),                                 E U = ‖diag H‖²
    V = U² − ((ΣA)² − 4Σr_k² + 2ΣA²) / (K(K−1)(K−2)(K−3)),              E V = Var U

A is the Gram matrix of the D_k with a zero diagonal, r its row sums. Works on any `nn.Module` whose forward pass can be
differentiated twice, and knows nothing of the activations in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.errors import CurvactError, nearest

_COLUMNS = 1 << 16
"""Parameters whose probe products are held in float64 at a time."""


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
    loss_fn: Callable[[], Tensor], params: Sequence[Tensor], *, probes: int = 32, generator: torch.Generator
) -> DiagonalEstimate:
    """diag H of `loss_fn()` in `params` as the mean of `probes` ≥ 2 Rademacher probes, with its elementwise standard error.

    Unbiased, with variance Σ_{j≠i} H_ij² / probes for element i: exact for a diagonal H. Costs one gradient and `probes` backward
    passes through its graph. `loss_fn`, `params` and errors as for `hvp`.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> estimate = hutchinson_diagonal(lambda: (w**3).sum(), [w], probes=4, generator=torch.Generator().manual_seed(0))
    >>> estimate.mean, estimate.standard_error
    (tensor([ 6., 12.]), tensor([0., 0.]))
    """
    _check_probes(probes, 2, "hutchinson_diagonal")
    graph = _differentiate(loss_fn, params)
    signs = _rademacher(probes, len(graph.gradient), generator).to(graph.gradient.device)
    samples = torch.stack([sign * graph.product(sign) for sign in signs])
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
                    gradient, param, unit.view(gradient.shape), retain_graph=True, allow_unused=True
                )
                if row is None:
                    break
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


def _rademacher(probes: int, size: int, generator: torch.Generator) -> Tensor:
    """Random signs of shape (probes, size), as int8, on the generator's device."""
    bits = torch.randint(2, (probes, size), generator=generator, dtype=torch.int8, device=generator.device)
    return bits.mul_(2).sub_(1)


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
    probes: int = 32,
    generator: torch.Generator | None = None,
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
    probes: K ≥ 4; 16 or more for an error bar to be trusted. Each costs about 2.5 gradients of time and P numbers of memory.
    generator: source of the probes, on any device; needed unless `exact`. The same seed gives the same probes.
    exclude: parameters to hold fixed and leave out of P: their names as in `model.named_parameters()`, or a test of a name.
        Frozen parameters (`requires_grad=False`) count unless excluded; tied ones count once.
    exact: P backward passes and no probes, with standard errors of 0: for small models.
    batch_size: go through the data in pieces of this size, with the memory of one; the result is that of all the data at once.
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

    fixed, free = _divide(model, exclude)
    params = list(free.values())
    total = sum(p.numel() for p in params)
    device = params[0].device
    dtype = reduce(torch.promote_types, (p.dtype for p in params), torch.float32)
    if generator is None or exact:
        signs, samples = None, torch.zeros(1, total, dtype=dtype, device=device)
    else:
        signs = _rademacher(probes, total, generator).to(device)
        samples = torch.zeros(probes, total, dtype=dtype, device=device)
    gradient = torch.zeros(total, dtype=dtype, device=device)
    mean_loss = 0.0

    with _eval_mode(model):
        for inputs, targets in _pieces(x.detach(), y.detach(), batch_size):
            weight = len(inputs) / len(x)

            def value(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
                return loss(torch.func.functional_call(model, {**fixed, **free}, (inputs,)), targets)

            graph = _differentiate(value, params)
            mean_loss += weight * graph.loss.item()
            gradient.add_(graph.gradient, alpha=weight)
            if signs is None:
                samples[0].add_(graph.diagonal(), alpha=weight)
            else:
                for sign, sample in zip(signs, samples, strict=True):
                    sample.add_(sign * graph.product(sign), alpha=weight)

    if not math.isfinite(mean_loss):
        raise CurvactError(f"the loss is {mean_loss} in diagonal_norms: it must be finite")
    _check_finite(gradient[None], free, "gradient")
    _check_finite(samples, free, "Hessian diagonal")
    plain, scaled = _norms(samples, _flatten(params), exact=signs is None)
    gradient_norm = gradient.double().norm().item()
    return DiagonalNorms(
        rms=NormEstimate(plain.value / math.sqrt(total), plain.standard_error / math.sqrt(total)),
        gradient_relative=NormEstimate(plain.value / gradient_norm, plain.standard_error / gradient_norm)
        if gradient_norm > 0
        else NormEstimate(math.inf, math.inf),
        scale_invariant=scaled,
        gradient_norm=gradient_norm,
        parameters=total,
        probes=probes,
        loss=mean_loss,
    )


def _norms(samples: Tensor, theta: Tensor, *, exact: bool) -> tuple[NormEstimate, NormEstimate]:
    """‖diag H‖ and ‖θ²⊙diag H‖ from samples (K, P) of diag H, or from the one row that is diag H."""
    k = len(samples)
    plain, scaled = torch.zeros(2, k, k, dtype=torch.float64, device=samples.device)
    for part, parameters in zip(samples.split(_COLUMNS, 1), theta.split(_COLUMNS), strict=True):
        part = part.double()
        plain += part @ part.T
        part = part * parameters.double() ** 2
        scaled += part @ part.T
    if exact:
        return NormEstimate(plain.sqrt().item(), 0.0), NormEstimate(scaled.sqrt().item(), 0.0)
    return norm_estimate(plain), norm_estimate(scaled)


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
    yield from zip(x.split(size), y.split(size), strict=True)


def _check_finite(values: Tensor, params: Mapping[str, Tensor], what: str) -> None:
    """values: (K, P). Names the first parameter with a value that is not finite."""
    parts = torch.split(values, [p.numel() for p in params.values()], 1)
    for name, part in zip(params, parts, strict=True):
        if not part.isfinite().all():
            raise CurvactError(f"the {what} of parameter {name!r} is not finite in diagonal_norms")


def _check_probes(probes: int, least: int, where: str) -> None:
    if probes < least:
        raise CurvactError(
            f"probes={probes} in {where}: at least {least} are needed, and 16 or more recommended"
        )
