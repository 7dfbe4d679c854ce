"""A model, its loss and its data as one function of the parameters: data in batches, losses averaged by image."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvact.analysis.products import Graph, differentiate, flatten
from curvact.errors import CurvactError, nearest

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) to a scalar, the mean over examples."""
Batch = tuple[Tensor, Tensor]
Batches = Iterable[Sequence[Tensor]] | Callable[[], Iterable[Sequence[Tensor]]]
"""Pairs (x, y), to be gone through many times: a list, a DataLoader, or a function that returns an iterator."""
Exclude = Callable[[str], bool] | Collection[str]


@dataclass(frozen=True, eq=False)
class Problem:
    """The mean loss of a model over data, as a function of its parameters. Made by `problem`.

    fixed, free: stand-ins for the model's state: what is held fixed (with copies of the buffers), and leaves to differentiate by.
    source: gives the batches, as often as it is called. images: how many they hold in all.
    places: all names under which modules hold a tensor, each module once. kept: the graph of the only batch, where there is one.
    """

    model: nn.Module
    loss: Loss
    fixed: Mapping[str, Tensor]
    free: Mapping[str, Tensor]
    source: Callable[[], Iterator[Batch]]
    images: int
    where: str
    single: bool
    places: Mapping[str, list[str]]
    kept: dict[str, Graph] = field(default_factory=dict)

    @property
    def params(self) -> list[Tensor]:
        return list(self.free.values())

    @property
    def size(self) -> int:
        """P, the number of parameters that are measured."""
        return sum(p.numel() for p in self.free.values())

    def slices(self, by: str = "parameter") -> dict[str, list[slice]]:
        """Where the elements of each parameter tensor, or of each layer (a module's own parameters), are in a flat vector."""
        places: dict[str, list[slice]] = {}
        start = 0
        for name, param in self.free.items():
            key = name if by == "parameter" else layer_of(name)
            places.setdefault(key, []).append(slice(start, start + param.numel()))
            start += param.numel()
        return places

    def forward(self, x: Tensor, free: Mapping[str, Tensor] | None = None) -> Tensor:
        """The model's outputs, as a function of `free`."""
        state = {**self.fixed, **(self.free if free is None else free)}
        everywhere = {place: value for name, value in state.items() for place in self.places[name]}
        # Without tie_weights, which leaves its tensors behind in a module that the model holds under two names (torch 2.13).
        out: Tensor = torch.func.functional_call(self.model, everywhere, (x,), tie_weights=False)
        return out

    def batches(self) -> Iterator[tuple[float, Tensor, Tensor]]:
        """(share of all images, x, y)."""
        seen = 0
        for x, y in self.source():
            seen += len(x)
            yield len(x) / self.images, x, y
        if seen != self.images:
            raise CurvactError(
                f"batches in {self.where} gave {self.images} images at first and {seen} later: every pass must give the same data"
            )

    def graphs(self, *, residual: bool = False) -> Iterator[tuple[float, Graph]]:
        """(share of all images, graph of the loss) by batch.

        residual: of ⟨outputs, ∂L/∂outputs held fixed⟩ instead, which has the same gradient and the Hessian H − GGN.
        """
        key = "residual" if residual else "loss"
        for weight, x, y in self.batches():
            graph = self.kept.get(key)
            if graph is None:
                graph = differentiate(lambda x=x, y=y: self._scalar(x, y, residual), self.params)  # type: ignore[misc]
            if self.single:
                self.kept[key] = graph
            yield weight, graph
            del graph

    def _scalar(self, x: Tensor, y: Tensor, residual: bool) -> Tensor:
        out = self.forward(x)
        if not residual:
            return self.loss(out, y)
        fixed = out.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.loss(fixed, y), fixed)
        return (out * slope).sum()

    def hessian(self, rows: Tensor, *, residual: bool = False) -> Tensor:
        """H times each row, or H − GGN with `residual`: (K, P) to (K, P)."""
        out = torch.zeros_like(rows)
        for weight, graph in self.graphs(residual=residual):
            for row, sum_ in zip(rows, out, strict=True):
                sum_.add_(graph.product(row), alpha=weight)
        check_finite(out, self.free, "Hessian", self.where)
        return out

    def diagonal(self) -> Tensor:
        """diag H exactly, of shape (P,), in float64, by P backward passes a batch."""
        total = torch.zeros(self.size, dtype=torch.float64, device=self.params[0].device)
        for weight, graph in self.graphs():
            total += graph.diagonal() * weight
        return total

    def theta(self) -> Tensor:
        """The parameters as one vector, in float32 or float64."""
        theta = flatten(self.params)
        theta = theta.to(torch.promote_types(theta.dtype, torch.float32))
        check_finite(theta[None], self.free, "value", self.where)
        return theta

    def gradient(self) -> tuple[float, Tensor]:
        """L and ∇L, of shape (P,)."""
        like = self.params[0]
        total = torch.zeros(
            self.size, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device
        )
        mean = 0.0
        for weight, graph in self.graphs():
            total = total + graph.gradient * weight
            mean += graph.loss.item() * weight
        if not math.isfinite(mean):
            raise CurvactError(f"the loss is {mean} in {self.where}: it must be finite")
        check_finite(total[None], self.free, "gradient", self.where)
        return mean, total


def layer_of(name: str) -> str:
    """The module that owns a parameter.

    >>> layer_of("layer1.0.conv1.weight"), layer_of("scale")
    ('layer1.0.conv1', '(the model itself)')
    """
    return name.rpartition(".")[0] or "(the model itself)"


@contextmanager
def problem(
    model: nn.Module,
    x: Tensor | None,
    y: Tensor | None,
    *,
    where: str,
    loss: Loss,
    batches: Batches | None = None,
    batch_size: int | None = None,
    exclude: Exclude = (),
    training: bool = False,
) -> Iterator[Problem]:
    """The problem, with the model in eval mode (train mode with `training`) as long as it lasts.

    The model is left as it was: modes, gradients, `requires_grad`, buffers. Arguments and errors as in `diagonal_norms`, whose
    messages name `where`.
    """
    if not isinstance(model, nn.Module):
        raise CurvactError(f"{where} got a {type(model).__name__} as its model: it takes an nn.Module")
    if batch_size is not None and batch_size < 1:
        raise CurvactError(f"batch_size={batch_size} in {where}: it must be at least 1")
    source = _source(x, y, batches, batch_size, where)
    fixed, free = divide(model, exclude, where)
    device = next(iter(free.values())).device

    def moved() -> Iterator[Batch]:
        for inputs, targets in source():
            yield inputs.to(device), targets.to(device)

    if batches is None:
        assert x is not None
        images = len(x)
        single = batch_size is None or batch_size >= images
    else:
        images, single = sum(len(inputs) for inputs, _ in source()), False
        if images == 0:
            raise CurvactError(f"no images in the batches of {where}: at least 1 is needed")
    # Fused attention has no second derivative.
    with modes(model, training), sdpa_kernel(SDPBackend.MATH):
        yield Problem(model, loss, fixed, free, moved, images, where, single, _places(model))


def _source(
    x: Tensor | None, y: Tensor | None, batches: Batches | None, batch_size: int | None, where: str
) -> Callable[[], Iterator[Batch]]:
    if batches is None:
        if x is None or y is None:
            raise CurvactError(f"no data in {where}: give x and y, or batches")
        check_examples(x, y, where)
        size = len(x) if batch_size is None else batch_size
        pieces = list(zip(torch.split(x.detach(), size), torch.split(y.detach(), size), strict=True))
        return lambda: iter(pieces)
    if x is not None or y is not None or batch_size is not None:
        raise CurvactError(f"batches together with x, y or batch_size in {where}: give the one or the other")
    if not callable(batches) and iter(batches) is batches:
        raise CurvactError(
            f"batches in {where} is an iterator, which can be gone through once: give a list, a DataLoader or a function"
        )

    def pairs() -> Iterator[Batch]:
        for batch in batches() if callable(batches) else batches:
            if not (
                isinstance(batch, (tuple, list))
                and len(batch) == 2
                and all(isinstance(part, Tensor) for part in batch)
                and len(batch[0]) == len(batch[1]) > 0
            ):
                raise CurvactError(
                    f"a batch in {where} is no pair of tensors (x, y) of the same length, at least 1"
                )
            yield batch[0].detach(), batch[1].detach()

    return pairs


def divide(
    model: nn.Module, exclude: Exclude, where: str
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """What is held fixed (with copies of the buffers), and fresh leaves for what is measured. Tied parameters come once."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        names.setdefault(param, []).append(name)
    excluded = excluder(model, exclude, where)
    fixed = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    free: dict[str, Tensor] = {}
    for param, same in names.items():
        if any(excluded(name) for name in same):
            fixed[same[0]] = param.detach()
        else:
            free[same[0]] = param.detach().requires_grad_()
    if not free:
        raise CurvactError(
            f"no parameters left to measure in {where}: the model has none, or all are excluded"
        )
    return fixed, free


def excluder(model: nn.Module, exclude: Exclude, where: str) -> Callable[[str], bool]:
    """`exclude` as a test of a name. Raises CurvactError for a name that is no parameter of the model."""
    if isinstance(exclude, str):
        raise CurvactError(f"exclude={exclude!r} in {where}: give a collection of names, or a test of a name")
    if callable(exclude):
        return exclude
    known = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for name in exclude:
        if name not in known:
            raise CurvactError(
                f"exclude names {name!r} in {where}, which is no parameter of the model{nearest(name, known)}"
            )
    return frozenset(exclude).__contains__


def _places(model: nn.Module) -> dict[str, list[str]]:
    """From the first name of each parameter and buffer to the names of all attributes that hold it."""
    by_tensor: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                by_tensor.setdefault(id(tensor), []).append(f"{path}.{name}" if path else name)
    return {names[0]: names for names in by_tensor.values()}


@contextmanager
def modes(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in that mode; every module's own mode is put back after."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


def check_examples(x: Tensor, y: Tensor, where: str) -> None:
    """CurvactError unless x (N, …) and y (N, …) are tensors with as many rows, at least 1."""
    for value, name in ((x, "x"), (y, "y")):
        if not isinstance(value, Tensor) or value.dim() == 0:
            got = "one number" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise CurvactError(f"{name} in {where} is {got}: a tensor with one row an example")
    if len(x) != len(y) or len(x) == 0:
        raise CurvactError(f"{len(x)} inputs and {len(y)} targets in {where}: as many of each, at least 1")


def check_inputs(x: Tensor, y: Tensor, where: str, batch_size: int = 1) -> None:
    """`check_examples`, and that x can be differentiated by: floating point, finite. Reads the values: call it outside loops."""
    check_examples(x, y, where)
    if batch_size < 1:
        raise CurvactError(f"batch_size={batch_size} in {where}: it must be at least 1")
    if not x.is_floating_point():
        raise CurvactError(f"inputs of {x.dtype} in {where}: they must be floating point, images in [0, 1]")
    if not bool(x.isfinite().all()):
        raise CurvactError(f"the inputs in {where} hold NaN or infinity")


def check_model(model: nn.Module, where: str) -> None:
    """CurvactError for what is no module, or for NaN in a parameter or buffer, which it names. Reads the values."""
    if not isinstance(model, nn.Module):
        raise CurvactError(f"{where} got a {type(model).__name__} as its model: it takes an nn.Module")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if tensors:
        flags = torch.stack([tensor.detach().isnan().any() for _, tensor in tensors]).tolist()
        for (name, _), flag in zip(tensors, flags, strict=True):
            if flag:
                raise CurvactError(f"{name!r} of the model holds NaN in {where}")


def check_finite(values: Tensor, params: Mapping[str, Tensor], what: str, where: str) -> None:
    """values: (K, P). Names the first parameter with a value that is not finite."""
    parts = torch.split(values.isfinite().all(0), [p.numel() for p in params.values()])
    for name, part in zip(params, parts, strict=True):
        if not part.all():
            raise CurvactError(f"the {what} of parameter {name!r} is not finite in {where}")
