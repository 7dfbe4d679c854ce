"""The generalized Gauss-Newton matrix of a loss: its diagonal, exactly, from gradients of single
examples.

With J_n the Jacobian of example n's outputs and H_n = Σ_c s_c u_c u_cᵀ (s_c = ±1) the Hessian of
the loss in them [derived],

    GGN = Σ_n J_nᵀ H_n J_n,    diag GGN = Σ_n Σ_c s_c (J_nᵀ u_c)².

For softmax cross-entropy s = 1 and C − 1 terms are enough (J of a constant shift of the logits does
not matter).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from curvact.analysis.loss import Loss, LossFunction
from curvact.analysis.products import flatten
from curvact.attacks.arguments import door
from curvact.errors import CurvactError

OUTPUTS = 128
"""Outputs an example at most."""
CHUNK = 1 << 24
"""Numbers in the gradients of the examples that are differentiated at a time, at most (but one
example at least).
"""


class NotByExample(CurvactError):
    """The outputs or the loss of an example depend on other examples, or there are too many
    outputs.
    """


def output_hessian(loss: LossFunction, outputs: Tensor, y: Tensor) -> Tensor:
    """The Hessian of the loss in the outputs of each example: (N, C, C) for outputs (N, …) with C
    elements each.

    Raises NotByExample where the loss couples examples, or C > `OUTPUTS`.

    >>> output_hessian(lambda out, y: ((out - y) ** 2).mean(), torch.zeros(2, 1), torch.ones(2, 1))
    tensor([[[1.]],
    <BLANKLINE>
            [[1.]]], dtype=torch.float64)
    """
    n, c = len(outputs), outputs[0].numel()
    if c > OUTPUTS:
        raise NotByExample(f"{c} outputs an example: diag GGN is computed exactly for at most {OUTPUTS}")
    try:
        # Of a confident network the Hessian is a small difference of large numbers.
        return _output_hessian(loss, outputs.double(), y.double() if y.is_floating_point() else y, n, c)
    except RuntimeError:
        # A loss with tensors of its own in another dtype.
        return _output_hessian(loss, outputs, y, n, c)


def _output_hessian(loss: LossFunction, outputs: Tensor, y: Tensor, n: int, c: int) -> Tensor:
    out = outputs.detach().requires_grad_()
    hessian = out.new_zeros(n, c, c)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(loss(out, y), out, create_graph=True)
    if not slope.requires_grad:
        return hessian

    def product(cotangent: Tensor) -> Tensor:
        (row,) = torch.autograd.grad(
            slope,
            out,
            cotangent.view(out.shape),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return row.detach().reshape(n, c)

    # Any two examples differ in some bit of their numbers. Nothing may go from examples with that
    # bit to those without.
    numbers = torch.arange(n, device=out.device)
    steps = torch.arange(1, c + 1, device=out.device, dtype=out.dtype)
    mixes = torch.zeros((), dtype=torch.bool, device=out.device)
    for bit in range((n - 1).bit_length()):
        sender = ((numbers >> bit) & 1).bool()
        got = product(sender[:, None] * steps).abs()
        others = torch.where(sender[:, None], 0.0, got)
        mixes |= others.amax() > 1e3 * torch.finfo(out.dtype).eps * got.amax()
    if bool(mixes):
        raise NotByExample("the loss of an example depends on others: diag GGN is not a sum over examples")
    for i in range(c):
        unit = torch.zeros(n, c, dtype=out.dtype, device=out.device)
        unit[:, i] = 1
        hessian[:, i] = product(unit)
    return hessian


@door
def ggn_diagonal(loss: Loss) -> Tensor:
    """diag GGN, exactly, of shape (P,): C gradients of each example, or fewer where H_n has a null
    space.

    Costs about 5·C batch gradients.
    Raises NotByExample where the model or the loss mixes examples, as batch norm in train mode
    does.

    >>> loss = Loss(torch.nn.Linear(2, 1, bias=False), torch.ones(3, 2), torch.zeros(3, 1), loss=torch.nn.functional.mse_loss)
    >>> ggn_diagonal(loss)
    tensor([2., 2.])
    """
    with loss.running("ggn_diagonal"):
        total = torch.zeros_like(flatten(loss.params))
        for weight, x, y in loss.batches():
            with torch.no_grad():
                outputs = loss.forward(x)
            with torch.enable_grad():
                some = loss.forward(x[:2])
            if isinstance(some, Tensor) and not some.requires_grad:
                raise CurvactError("the outputs do not depend on any of the parameters in ggn_diagonal")
            if not isinstance(outputs, Tensor) or len(outputs) != len(x):
                raise NotByExample("the model's output is no tensor with one row for each example")
            curved = output_hessian(loss.value, outputs, y).double()
            if not bool(curved.isfinite().all()):
                raise CurvactError("the loss or its Hessian in the outputs is not finite in ggn_diagonal")
            values, vectors = torch.linalg.eigh(curved)
            largest = values.abs().amax()
            # Eigenvalues ascend in every example: an index that is negligible in all of them is
            # left out.
            used = (values.abs() > 1e3 * torch.finfo(outputs.dtype).eps * largest).any(0)
            roots = (vectors * values.abs().sqrt()[:, None, :])[:, :, used].to(outputs.dtype)
            signs = values.sign()[:, used].to(outputs.dtype)
            size = max(1, CHUNK // loss.size)
            for start in range(0, len(x), size):
                part = slice(start, start + size)
                total.add_(_squares(loss, x[part], roots[part], signs[part], outputs[part]), alpha=weight)
        loss.check_finite(total, "GGN")
        return total


def _squares(loss: Loss, x: Tensor, roots: Tensor, signs: Tensor, outputs: Tensor) -> Tensor:
    """Σ_n Σ_c s_nc (J_nᵀ u_nc)² over some examples, flat."""
    if roots.shape[2] == 0:
        return torch.zeros_like(flatten(loss.params))
    try:
        squares, outs = _together(loss, x, roots, signs)
    except (RuntimeError, NotImplementedError, ValueError):
        # An operation without rules for torch.func.
        try:
            squares, outs = _one_by_one(loss, x, roots, signs)
        except ValueError as error:
            # Such as batch norm in train mode, which wants more than one example.
            raise NotByExample(f"the model does not take examples one by one: {error}") from None
    tolerance = 1e4 * torch.finfo(outputs.dtype).eps * outputs.abs().amax()
    if (outs - outputs).abs().amax() > tolerance:
        raise NotByExample(
            "the outputs of an example depend on the others in its batch: diag GGN is not a sum over examples"
        )
    return squares


def _together(loss: Loss, x: Tensor, roots: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Those squares, and the outputs of every example by itself, for all examples at once."""
    free = {name: param.detach() for name, param in loss.parameters.items()}

    def one(example: Tensor, factors: Tensor, sign: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        vjp: Any = torch.func.vjp(lambda p: loss.forward(example[None], p)[0], free)
        out, pull = vjp
        sums: dict[str, Tensor] = {}
        for c in range(factors.shape[1]):
            for name, row in pull(factors[:, c].reshape(out.shape))[0].items():
                term = row.square() * sign[c]
                sums[name] = sums[name] + term if name in sums else term
        return sums, out

    sums, outs = torch.func.vmap(one)(x, roots, signs)
    return torch.cat([sums[name].sum(0).reshape(-1) for name in free]), outs


def _one_by_one(loss: Loss, x: Tensor, roots: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    squares, outs = [torch.zeros_like(p).detach() for p in loss.params], []
    for example, factors, sign in zip(x, roots, signs, strict=True):
        with torch.enable_grad():
            out = loss.forward(example[None])
        for c in range(factors.shape[1]):
            rows = torch.autograd.grad(
                out,
                loss.params,
                factors[:, c].reshape(out.shape),
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            for total, row in zip(squares, rows, strict=True):
                total.add_(row.square() * sign[c])
        outs.append(out.detach()[0])
    return flatten(squares), torch.stack(outs)
