"""Products with the Hessian of a scalar, by differentiating its gradient once more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvact.errors import CurvactError

Operator = Callable[[Tensor], Tensor]
"""Rows (K, P) to rows (K, P), each multiplied by the same symmetric matrix."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A scalar and its gradient with the graph behind it, so that each product with H is one more
    backward pass.
    """

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
        return flatten(rows)

    def block(self, index: int, vector: Tensor) -> Tensor:
        """H_pp v for the block of one parameter tensor p, number `index`; v and the result have its
        shape.
        """
        gradient, param = self.gradients[index], self.params[index]
        if gradient is None:
            return torch.zeros_like(param)
        (row,) = torch.autograd.grad(
            gradient,
            param,
            vector.to(gradient.dtype),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return row.detach()

    def block_diagonal(self, index: int) -> Tensor:
        """The diagonal of that block, flat. One backward pass for each element, in the part of the
        graph from p to itself.
        """
        gradient, param = self.gradients[index], self.params[index]
        diagonal = torch.zeros_like(param).reshape(-1)
        if gradient is None:
            return diagonal
        for i in range(param.numel()):
            unit = torch.zeros_like(gradient).reshape(-1)
            unit[i] = 1
            diagonal[i] = self.block(index, unit.view(gradient.shape)).reshape(-1)[i]
        return diagonal

    def diagonal(self) -> Tensor:
        """diag H, of shape (P,), by P backward passes."""
        return torch.cat([self.block_diagonal(index) for index in range(len(self.params))])


def differentiate(loss_fn: Callable[[], Tensor], params: Sequence[Tensor]) -> Graph:
    """The gradient of `loss_fn()` in `params`, ready to be differentiated again.

    loss_fn: returns a scalar computed from `params`.
    params: tensors that require a gradient; P is their total number of elements. One that the loss
        does not depend on has a zero row in H.
    Raises CurvactError when the loss is no scalar, or does not depend on any of the parameters.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> graph = differentiate(lambda: w[0] ** 2 * w[1], [w])  # H = [[2w₁, 2w₀], [2w₀, 0]]
    >>> graph.product(torch.tensor([1.0, 0.0])), graph.diagonal()
    (tensor([4., 2.]), tensor([4., 0.]))
    """
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
    return Graph(params, differentiable, loss.detach().reshape(()), flatten(gradients))


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """One detached vector (P,) of all elements."""
    return torch.cat([t.detach().reshape(-1) for t in tensors])
