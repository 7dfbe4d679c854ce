"""The spectrum of the loss Hessian: its trace, its ends and its density, from products with H
alone.

- Trace: vᵀHv for random signs v has the mean tr H (Hutchinson 1989). The span of a sketch is taken
  out first and its part is computed exactly (Hutch++, Meyer et al. 2021): tr H = tr QᵀHQ + E
  vᵀ(I−P)H(I−P)v, P = QQᵀ.
- Ends: Lanczos with full reorthogonalisation and thick restarts (Wu and Simon 2000), from one
  random vector. The residual ‖Hu − λu‖ bounds the error of an eigenvalue. The eigenvalue is
  accepted when its residual is small against the largest |λ|.
- Density: stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017; Ghorbani et al. 2019). k steps
  from v give nodes and weights with Σ w_i θ_i^j = vᵀH^j v/‖v‖² for every j < 2k. Their mean over
  random v estimates the density of eigenvalues.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from curvact.analysis.hessian.diagonal import exact_diagonal
from curvact.analysis.hessian.probes import (
    NormEstimate,
    check_deflation,
    check_probes,
    check_stopping,
    deflate,
    rademacher,
    sketch,
    within,
)
from curvact.analysis.loss import Loss
from curvact.analysis.products import Operator
from curvact.attacks.arguments import door
from curvact.errors import CurvactError

Ends = Literal["largest", "smallest", "both"]


@dataclass(frozen=True)
class Trace:
    """tr H and its standard error over the probes (0 where exact). mean_eigenvalue is tr H/P.

    by_parameter: the trace of each parameter tensor's own block, with its standard error.
    """

    value: float
    standard_error: float
    parameters: int
    probes: int
    by_parameter: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def mean_eigenvalue(self) -> float:
        return self.value / self.parameters


@dataclass(frozen=True, eq=False)
class Eigenvalues:
    """Eigenvalues at one or both ends of the spectrum.

    largest: from the largest down. smallest: from the smallest up. The tuple of an end that is not
    computed is empty.
    largest_residuals, smallest_residuals: ‖Hu − λu‖ of each, a bound on its error.
    vectors: the eigenvectors in the order largest, smallest, as rows (n, P).
    products: the number of products with H. converged: whether every residual met the tolerance.
    """

    largest: tuple[float, ...]
    smallest: tuple[float, ...]
    largest_residuals: tuple[float, ...]
    smallest_residuals: tuple[float, ...]
    vectors: Tensor = field(repr=False)
    products: int
    converged: bool


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    """Nodes θ and weights w, (probes, steps) each: the density is the mean over the rows of Σ w δ(λ
    − θ). Each row sums to 1.
    """

    nodes: Tensor
    weights: Tensor
    parameters: int

    def density(self, at: Tensor, width: float) -> Tensor:
        """The density at these points. Each δ becomes a normal density of standard deviation
        `width`.
        """
        at = at.to(self.nodes)
        gaps = (at[..., None] - self.nodes.reshape(-1)) / width
        bells = torch.exp(-(gaps**2) / 2) / (width * math.sqrt(2 * math.pi))
        return bells @ self.weights.reshape(-1) / len(self.nodes)

    def below(self, at: Tensor) -> Tensor:
        """The share of eigenvalues ≤ each of these points."""
        hit = (self.nodes.reshape(-1) <= at.to(self.nodes)[..., None]).to(self.weights.dtype)
        return hit @ self.weights.reshape(-1) / len(self.nodes)

    def mean(self, function: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """The mean of f(λ) over the eigenvalues, and its standard error over the probes (NaN for
        one probe).
        """
        each = (self.weights * function(self.nodes)).sum(1)
        error = each.std() / math.sqrt(len(each)) if len(each) > 1 else torch.tensor(math.nan)
        return each.mean().item(), error.item()


@door
def trace(
    loss: Loss,
    *,
    probes: int = 32,
    relative_error: float | None = None,
    max_probes: int = 1024,
    generator: torch.Generator | None = None,
    deflation: int = 8,
    exact: bool = False,
) -> Trace:
    """tr H, of the whole and of the block of every parameter tensor.

    probes: K ≥ 2. relative_error, max_probes: instead, draw probes until the standard error is at
        most this part of |tr H|, or until so many are used.
    exact: the sum of the exact diagonal, by P backward passes.
    Other arguments and errors as `diagonal_norms`.

    >>> from torch import nn
    >>> x, y = torch.tensor([[1.0, 2.0], [1.0, 0.0]]), torch.zeros(2, 1)
    >>> trace(Loss(nn.Linear(2, 1, bias=False), x, y, loss=nn.functional.mse_loss), exact=True).value  # 2·mean of ‖x‖²
    6.0
    """
    where = "trace"
    check_deflation(deflation, where)
    check_stopping(relative_error, max_probes, where, least=2)
    if relative_error is None:
        check_probes(probes, 2, where)
    if generator is None and not exact:
        raise CurvactError(f"generator=None in {where}: the probes need a torch.Generator, unless exact=True")
    with loss.running(where):
        _, gradient = loss.gradient()
        if exact or generator is None:
            diagonal = exact_diagonal(loss)
            blocks = {n: (part.sum().item(), 0.0) for n, part in loss.by_parameter(diagonal).items()}
            return Trace(diagonal.sum().item(), 0.0, loss.size, 0, blocks)
        top = deflate(loss.hessian, sketch(loss.hessian, deflation, gradient, generator))
        known = _block_sums(top.diagonal, loss)
        limit = probes if relative_error is None else max_probes
        rows: list[Tensor] = []
        while len(rows) < limit:
            signs = rademacher(min(8, limit - len(rows)), gradient, generator)
            drawn = top.remove(loss.hessian(top.remove(signs))) * signs
            rows += [_block_sums(row, loss) + known for row in drawn]
            found = _mean([row.sum() for row in rows])
            if relative_error is not None and within(NormEstimate(abs(found[0]), found[1]), relative_error):
                break
        by = {name: _mean([row[i] for row in rows]) for i, name in enumerate(loss.parameters)}
        return Trace(*found, loss.size, len(rows), by)


def _block_sums(diagonal: Tensor, loss: Loss) -> Tensor:
    return torch.stack([part.double().sum() for part in torch.split(diagonal, loss.sizes)])


def _mean(values: list[Tensor]) -> tuple[float, float]:
    each = torch.stack(values)
    return each.mean().item(), (each.std() / math.sqrt(len(each))).item()


@door
def top_eigenvalues(
    loss: Loss,
    *,
    count: int = 1,
    ends: Ends = "largest",
    tolerance: float = 1e-4,
    max_products: int = 500,
    basis: int | None = None,
    generator: torch.Generator,
) -> Eigenvalues:
    """The `count` largest (most positive) or smallest (most negative) eigenvalues of H, or both,
    with eigenvectors.

    tolerance: a residual counts as small at this part of the largest |λ| seen; in float32 about
        1e-6 is the least.
    max_products: with H, at most. basis: vectors of P numbers that are held, at least
        2·(eigenvalues wanted) + 4 where P admits it; None: 20 more than that. generator: of the
    first vector. Raises CurvactError for arguments out of range and for what is not finite.

    >>> from torch import nn
    >>> x, y = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1)
    >>> loss = Loss(nn.Linear(2, 1, bias=False), x, y, loss=nn.functional.mse_loss)
    >>> found = top_eigenvalues(loss, ends="both", generator=torch.Generator().manual_seed(0))
    >>> [round(value, 4) for value in found.largest + found.smallest]
    [9.0, 1.0]
    """
    with loss.running("top_eigenvalues"):
        _, gradient = loss.gradient()
        start = torch.randn(loss.size, generator=generator, device=generator.device).to(gradient)
        return extreme_eigenvalues(
            loss.hessian,
            start,
            count=count,
            ends=ends,
            tolerance=tolerance,
            max_products=max_products,
            basis=basis,
            generator=generator,
        )


@door
def spectral_density(
    loss: Loss, *, probes: int = 4, steps: int = 64, generator: torch.Generator
) -> SpectralDensity:
    """The density of H's eigenvalues by stochastic Lanczos quadrature.

    probes: random vectors. steps: products with H for each, and vectors of P numbers that are held.
    The ends of the spectrum are sharp after few steps; the bulk has a resolution of about (largest
    − smallest)/steps. Raises CurvactError for arguments out of range and for what is not finite.

    >>> from torch import nn
    >>> x, y = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1)
    >>> loss = Loss(nn.Linear(2, 1, bias=False), x, y, loss=nn.functional.mse_loss)
    >>> found = spectral_density(loss, steps=2, generator=torch.Generator().manual_seed(0))
    >>> [round(share, 4) for share in found.below(torch.tensor([0.0, 5.0, 9.5])).tolist()]  # eigenvalues 1 and 9
    [0.0, 0.5, 1.0]
    """
    for value, name in ((probes, "probes"), (steps, "steps")):
        if value < 1:
            raise CurvactError(f"{name}={value} in spectral_density: it must be at least 1")
    with loss.running("spectral_density"):
        _, gradient = loss.gradient()
        signs = rademacher(probes, gradient, generator)
        found = [lanczos_quadrature(loss.hessian, sign, steps) for sign in signs]
        # A vector that spans an invariant subspace ends early: its row is filled up with weights of
        # 0.
        most = max(len(nodes) for nodes, _ in found)
        nodes, weights = torch.zeros(2, probes, most, dtype=torch.float64, device=gradient.device)
        for i, (theta, weight) in enumerate(found):
            nodes[i], weights[i] = theta[-1], 0
            nodes[i, : len(theta)], weights[i, : len(theta)] = theta, weight
        return SpectralDensity(nodes, weights, loss.size)


# ---- any symmetric operator ----


def lanczos_quadrature(operator: Operator, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The quadrature of a symmetric operator and a vector (P,): nodes, ascending, and weights,
    whose sum is 1.

    At most `steps` of each, in float64; fewer where the vector spans an invariant subspace.

    >>> h = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    >>> nodes, weights = lanczos_quadrature(lambda rows: rows @ h, torch.ones(3, dtype=torch.float64), 3)
    >>> nodes.round(decimals=6).tolist(), weights.round(decimals=6).tolist()
    ([1.0, 2.0, 4.0], [0.333333, 0.333333, 0.333333])
    """
    basis = start.new_zeros(min(steps, len(start)), len(start))
    basis[0] = start / start.norm()
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    count = len(basis)
    for j in range(count):
        image = operator(basis[j : j + 1])[0]
        coefficients, image = _orthogonalise(image, basis[: j + 1])
        diagonal.append(coefficients[j])
        if j + 1 == count:
            break
        size = image.norm().double()
        if size <= _negligible(start, diagonal, beside):
            break
        beside.append(size)
        basis[j + 1] = image / size.to(image.dtype)
    matrix = torch.stack(diagonal).diag()
    if beside:
        sides = torch.stack(beside[: len(diagonal) - 1])
        matrix = matrix + sides.diag(1) + sides.diag(-1)
    nodes, vectors = torch.linalg.eigh(matrix)
    return nodes, vectors[0] ** 2


def _negligible(like: Tensor, diagonal: list[Tensor], beside: list[Tensor]) -> Tensor:
    """A Lanczos vector of at most this size is rounding."""
    scale = torch.stack([value.abs() for value in (*diagonal, *beside)]).amax()
    return 10 * torch.finfo(like.dtype).eps * scale


def _orthogonalise(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients, in float64, and the part of a vector outside the span of orthonormal rows.
    Twice is enough (Kahan).
    """
    coefficients = torch.zeros(len(basis), dtype=torch.float64, device=vector.device)
    for _ in range(2):
        step = basis @ vector
        vector = vector - step @ basis
        coefficients += step.double()
    return coefficients, vector


def extreme_eigenvalues(
    operator: Operator,
    start: Tensor,
    *,
    count: int = 1,
    ends: Ends = "largest",
    tolerance: float = 1e-4,
    max_products: int = 500,
    basis: int | None = None,
    generator: torch.Generator,
) -> Eigenvalues:
    """`top_eigenvalues` of any symmetric operator, from a first vector (P,) that is not 0.

    A multiple eigenvalue may be found once only, unless Lanczos exhausts an invariant subspace on
    its way. It then goes on with a random vector of `generator`.
    """
    where = "top_eigenvalues"
    size = len(start)
    if ends not in get_args(Ends):
        raise CurvactError(f"ends={ends!r} in {where}: allowed are {', '.join(get_args(Ends))}")
    wanted = count * (2 if ends == "both" else 1)
    if count < 1 or wanted > size:
        raise CurvactError(f"count={count} in {where}: it must be from 1 to the number of parameters, {size}")
    if not 0 < tolerance < 1:
        raise CurvactError(f"tolerance={tolerance} in {where}: it must be between 0 and 1")
    least = min(size, 2 * wanted + 4)
    room = min(size, least + 20 if basis is None else basis)
    if room < least:
        raise CurvactError(f"basis={basis} in {where}: at least {least} for {wanted} eigenvalues")
    if max_products < least:
        raise CurvactError(
            f"max_products={max_products} in {where}: at least {least} for {wanted} eigenvalues"
        )

    rows = start.new_zeros(room + 1, size)
    matrix = torch.zeros(room, room, dtype=torch.float64, device=start.device)
    rows[0] = start / start.norm()
    used, products = 0, 0
    while True:
        rest = start.new_zeros(())
        while used < room and products < max_products:
            image = operator(rows[used : used + 1])[0]
            products += 1
            coefficients, image = _orthogonalise(image, rows[: used + 1])
            matrix[: used + 1, used] = matrix[used, : used + 1] = coefficients
            used += 1
            rest = image.norm()
            scale = matrix[:used, :used].abs().amax()
            if rest <= 10 * torch.finfo(start.dtype).eps * scale:
                # An invariant subspace: go on outside it, in a random direction.
                rest = torch.zeros_like(rest)
                if used == size:
                    break
                image = torch.randn(size, generator=generator, device=generator.device).to(start)
                _, image = _orthogonalise(image, rows[:used])
                _, image = _orthogonalise(image / image.norm(), rows[:used])
            rows[used] = image / image.norm()
            if (
                used >= least
                and used % 4 == 0
                and _settled(matrix[:used, :used], rest, count, ends, tolerance)
            ):
                break
        values, vectors = torch.linalg.eigh(matrix[:used, :used])
        residuals = rest.double() * vectors[-1].abs()
        chosen = _chosen(used, count, ends)
        good = bool((residuals[chosen] <= tolerance * values.abs().amax()).all())
        if good or products >= max_products or used == size:
            break
        # Thick restart: the wanted Ritz vectors, some more of each end, and the last direction.
        keep = _chosen(used, min(count + (room - wanted) // 4, used // 2 - 1), ends)
        kept = len(keep)
        rows[:kept] = (vectors[:, keep].T.to(start.dtype)) @ rows[:used]
        rows[kept] = rows[used]
        matrix.zero_()
        matrix[:kept, :kept] = values[keep].diag()
        used = kept
    ritz = (vectors[:, chosen].T.to(start.dtype)) @ rows[:used]
    found, errors = values[chosen].tolist(), residuals[chosen].tolist()
    high = count if ends != "smallest" else 0
    return Eigenvalues(
        largest=tuple(found[:high]),
        smallest=tuple(found[high:]),
        largest_residuals=tuple(errors[:high]),
        smallest_residuals=tuple(errors[high:]),
        vectors=ritz,
        products=products,
        converged=good,
    )


def _chosen(size: int, count: int, ends: Ends) -> list[int]:
    """Places among `size` ascending eigenvalues: from the largest down, then from the smallest
    up.
    """
    largest = list(range(size - 1, max(size - 1 - count, -1), -1)) if ends != "smallest" else []
    smallest = list(range(min(count, size))) if ends != "largest" else []
    return largest + smallest


def _settled(matrix: Tensor, rest: Tensor, count: int, ends: Ends, tolerance: float) -> bool:
    values, vectors = torch.linalg.eigh(matrix)
    residuals = rest.double() * vectors[-1].abs()
    return bool((residuals[_chosen(len(values), count, ends)] <= tolerance * values.abs().amax()).all())
