"""The loss of a model as a function of its parameters: one object that every analysis takes.

    loss = Loss(model, x, y)
    diagonal_norms(loss, generator=g)
    average_flatness(loss, attack)

The object holds the model, the data, the loss function and the excluded parameters. It holds no
copy of the parameters: an analysis sees the model as it is when the analysis runs, and leaves it as
    it was.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvact.analysis.products import Graph, differentiate, flatten
from curvact.attacks.batch import (
    WRAP,
    alike,
    check_classes,
    check_number,
    checked_module,
    differentiable,
    first_outputs,
    normal,
)
from curvact.attacks.losses import ce
from curvact.attacks.pgd import Attack
from curvact.errors import CurvactError, nearest
from curvact.models.modes import frozen, mode

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) to the mean over the examples, a scalar, or to N losses, one for each
example.
"""
Batch = tuple[Tensor, Tensor]
Batches = Iterable[Sequence[Tensor]] | Callable[[], Iterable[Sequence[Tensor]]]
"""Pairs (x, y) that can be read many times: a list, a DataLoader, or a function that returns an
iterator.
"""
Exclude = Callable[[str], bool] | Collection[str]
"""Names of parameters, or a test of a name."""


class Loss:
    """The mean loss of a model over data, as a function of its P parameters.

    model: any module that maps x to the first argument of `loss`. Of one that `torch.compile`
        returned, the module behind it is taken, which can be differentiated twice.
    x, y: inputs (N, …) and targets (N, …). For cross-entropy targets are classes of any integer
        dtype, or probabilities in the shape of the outputs.
    batches: the data as pairs (x, y), instead of x and y. They are read many times and must hold
        the same examples each time, in any order. The losses are averaged over the examples.
    loss: a `LossFunction`. The analyses that attack the model (flatness, smoothness, landscape)
        need one loss for each example; for the default, cross-entropy, this is known.
    batch_size: examples at a time. None: all at once. The result is that of all the data at once,
        if the model treats the examples one by one.
    exclude: parameters that are held fixed and do not count in P: names as in
        `model.named_parameters()`, or a test of a name. Frozen parameters (`requires_grad=False`)
        count unless excluded. Tied parameters count once.
    training: the mode of the model while an analysis runs.

    Raises CurvactError for data that do not fit together, an unknown name in `exclude`, a model
    without values, and, with cross-entropy, labels that are no classes (torch would leave out
    those of −100). A model that fails on the inputs is one line too, when the first analysis runs.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.ones_(model.weight)
    >>> loss = Loss(model, torch.tensor([[1.0, 2.0], [1.0, 0.0]]), torch.zeros(2, 1), loss=F.mse_loss)
    >>> loss.size, loss.gradient()  # the mean of (w₁x₁ + w₂x₂)² and its gradient
    (2, (5.0, tensor([4., 6.])))
    >>> loss.hessian(torch.tensor([[1.0, 0.0]]))  # 2·mean of xxᵀ, times (1, 0)
    tensor([[2., 2.]])
    """

    @differentiable()
    def __init__(
        self,
        model: nn.Module,
        x: Tensor | None = None,
        y: Tensor | None = None,
        *,
        batches: Batches | None = None,
        loss: LossFunction = F.cross_entropy,
        batch_size: int | None = None,
        exclude: Exclude = (),
        training: bool = False,
    ) -> None:
        model = checked_module(model, "Loss")
        if batch_size is not None:
            check_number(batch_size, "batch_size", "Loss")
        if not callable(loss):
            raise CurvactError(f"loss={loss!r} in Loss: a function of outputs and targets")
        self.model = model
        self.function = loss
        self.training = training
        self._source = _source(x, y, batches, batch_size)
        self._excluded = excluder(model, exclude, "Loss")
        self._places = _places(model)
        self._highest = -1
        self._passed = False
        self.images = self._look_at_targets()
        if self.images == 0:
            raise CurvactError("no images in the batches of Loss: at least 1 is needed")
        self._single = x is not None and (batch_size is None or batch_size >= self.images)
        self._where = ""
        self._graphs: dict[bool, Graph] = {}
        self._divide()

    def excluding(self, also: Exclude) -> Loss:
        """The same loss with more parameters held fixed."""
        other, first, second = copy.copy(self), self._excluded, excluder(self.model, also, "Loss")
        other._excluded = lambda name: bool(first(name) or second(name))
        other._where, other._graphs = "", {}
        other._divide()
        return other

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The parameters that are measured, by name: tensors to differentiate by, with the memory
        of the model's own.
        """
        return self._free

    @property
    def params(self) -> list[Tensor]:
        """The same as a list. CurvactError where no parameter is left."""
        if not self._free:
            raise CurvactError(
                f"no parameters left to measure in {self.where}: the model has none, or all are excluded"
            )
        return list(self._free.values())

    @property
    def sizes(self) -> list[int]:
        """The number of elements of each parameter."""
        return [p.numel() for p in self._free.values()]

    @property
    def size(self) -> int:
        """P, the number of elements of all measured parameters."""
        return sum(self.sizes)

    @property
    def where(self) -> str:
        """The analysis that runs, for messages."""
        return self._where or "Loss"

    def by_parameter(self, vector: Tensor) -> dict[str, Tensor]:
        """The parts of a vector (P,), by the name of the parameter and in its shape."""
        parts = torch.split(vector, self.sizes)
        return {n: part.view(p.shape) for (n, p), part in zip(self._free.items(), parts, strict=True)}

    # ---- while an analysis runs ----

    @contextmanager
    def running(self, where: str, *, twice: bool = True) -> Iterator[None]:
        """The model in its mode, for as long as the analysis `where` runs. The modes are put back
        after.

        twice: the analysis differentiates twice, which fused attention cannot: attention then takes
        torch's plain form. A second `running` inside changes nothing.
        """
        if self._where:
            yield
            return
        self._where = where
        self._divide()
        try:
            with (
                differentiable(),
                mode(self.model, self.training),
                sdpa_kernel(SDPBackend.MATH) if twice else nullcontext(),
            ):
                yield
        finally:
            self._where = ""
            self._graphs.clear()

    def _divide(self) -> None:
        """What is held fixed (with copies of the buffers), and fresh leaves for the measured
        parameters.
        """
        fixed = {name: buffer.detach().clone() for name, buffer in self.model.named_buffers()}
        free: dict[str, Tensor] = {}
        for param, same in names_of(self.model).items():
            if not param.is_floating_point() or any(self._excluded(name) for name in same):
                fixed[same[0]] = param.detach()
            else:
                free[same[0]] = param.detach().requires_grad_()
        self._fixed, self._free = fixed, free

    def forward(self, x: Tensor, free: Mapping[str, Tensor] | None = None) -> Tensor:
        """The model's outputs, as a function of `free` (the measured parameters where None)."""
        state = {**self._fixed, **(self._free if free is None else free)}
        everywhere = {place: value for name, value in state.items() for place in self._places[name]}
        # Without tie_weights, which leaves its tensors behind in a module that the model holds
        # under two names (torch 2.13).
        return self._first(
            lambda x: torch.func.functional_call(self.model, everywhere, (x,), tie_weights=False), x
        )

    def outputs(self, x: Tensor) -> Tensor:
        """The model's outputs, with its own parameters."""
        return self._first(self.model, x)

    def _first(self, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """call(x). The first time, every fault of model and inputs is one line."""
        if self._passed:
            return call(x)
        out = first_outputs(call, x, self.where, self.model)
        if self.function is F.cross_entropy:
            if not isinstance(out, Tensor) or out.dim() < 2:
                got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise CurvactError(f"the outputs in {self.where} are {got}: N×classes logits ({WRAP})")
            check_classes(self._highest, out.shape[1], self.where)
        self._passed = True
        return out

    def _look_at_targets(self) -> int:
        """The number of examples. CurvactError for targets that cross-entropy cannot take. Waits for
        the device.
        """
        count, ends = 0, []
        for x, y in self._source():
            count += len(x)
            if self.function is F.cross_entropy and not y.is_floating_point() and y.numel():
                ends.append(torch.stack(torch.aminmax(y.long())).cpu())
        if ends:
            low, high = (int(v) for v in (torch.stack(ends)[:, 0].min(), torch.stack(ends)[:, 1].max()))
            if low < 0:
                raise CurvactError(
                    f"labels in Loss lie in {low} … {high}: classes are numbered from 0 (leave such examples out, "
                    "or give a loss function of your own)"
                )
            self._highest = high
        return count

    def batches(self) -> Iterator[tuple[float, Tensor, Tensor]]:
        """(share of all examples, x, y), on the device of the parameters."""
        device = next((p.device for p in self.model.parameters()), None)
        seen = 0
        for x, y in self._source():
            seen += len(x)
            if self.function is F.cross_entropy and not y.is_floating_point():
                y = y.long()
            yield len(x) / self.images, x.to(device), y.to(device)
        if seen != self.images:
            raise CurvactError(
                f"batches in {self.where} gave {self.images} images at first and {seen} later: "
                "every pass must give the same data"
            )

    def inputs(self) -> list[Batch]:
        """All batches (x, y). CurvactError for inputs that are not floating point or not finite.
        Waits for the device.
        """
        found = [(x, y) for _, x, y in self.batches()]
        for x, _ in found:
            if not x.is_floating_point():
                raise CurvactError(
                    f"inputs of {x.dtype} in {self.where}: they must be floating point, in [0, 1]"
                )
            if not bool(x.isfinite().all()):
                raise CurvactError(f"the inputs in {self.where} hold NaN or infinity")
        return found

    def attacked(self, attack: Attack | None) -> Loss:
        """The same loss at attacked inputs; the perturbations are held fixed from then on. None:
        the loss itself.

        >>> from curvact.attacks import PGD, ThreatModel
        >>> loss = Loss(nn.Linear(4, 2), torch.rand(8, 4), torch.zeros(8, dtype=torch.int64))
        >>> loss.attacked(PGD(5).on(ThreatModel("linf", 0.1))).gradient()[0] > loss.gradient()[0]
        True
        """
        if attack is None:
            return self
        with self.running("Loss.attacked", twice=False):
            pairs = [(self.attack(attack, x, y), y) for _, x, y in self.batches()]
        other = copy.copy(self)
        other._source, other._graphs = lambda: iter(pairs), {}
        return other

    def of(self, x: Tensor, y: Tensor) -> Loss:
        """The same loss on other data, all at once."""
        return Loss(self.model, x, y, loss=self.function, exclude=self._excluded, training=self.training)

    def attack(self, attack: Attack | None, x: Tensor, y: Tensor) -> Tensor:
        """The attacked inputs of one batch, detached; no parameter asks for a gradient
        meanwhile.
        """
        if attack is None:
            return x
        with frozen(self.model):
            points = attack(self.model, x, y)
        return alike(points, x, self.where)

    def check_values(self) -> None:
        """CurvactError for NaN in a parameter or buffer of the model; the message names it. Waits
        for the device.
        """
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        if tensors:
            flags = torch.stack([tensor.detach().isnan().any() for _, tensor in tensors]).tolist()
            for (name, _), flag in zip(tensors, flags, strict=True):
                if flag:
                    raise CurvactError(f"{name!r} of the model holds NaN in {self.where}")

    def value(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar."""
        self._check_targets(outputs, y)
        losses = self.function(outputs, y)
        return losses.mean() if losses.shape == (len(y),) else losses

    def each(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The loss of each example, (N,). CurvactError for a loss function that gives only their
        mean.
        """
        self._check_targets(outputs, y)
        losses = (ce if self.function is F.cross_entropy else self.function)(outputs, y)
        if not isinstance(losses, Tensor):
            raise CurvactError(f"the loss is a {type(losses).__name__} in {self.where}: a tensor")
        if losses.shape != (len(y),):
            raise CurvactError(
                f"the loss has shape {tuple(losses.shape)} for {len(y)} examples in {self.where}: "
                f"it must be one number for each example, shape ({len(y)},)"
            )
        return losses

    def _check_targets(self, outputs: Tensor, y: Tensor) -> None:
        """CurvactError for targets that do not fit the outputs. Looks at shapes only."""
        if self.function is not F.cross_entropy:
            return
        wanted = outputs.shape if y.is_floating_point() else (len(outputs), *outputs.shape[2:])
        if y.shape != wanted:
            kind = "probabilities" if y.is_floating_point() else "classes"
            raise CurvactError(
                f"targets in {self.where} are {y.dtype} of shape {tuple(y.shape)}, the outputs {tuple(outputs.shape)}: "
                f"{kind} have shape {tuple(wanted)}"
            )

    def graphs(self, *, residual: bool = False) -> Iterator[tuple[float, Graph]]:
        """(share of all examples, graph of the loss) by batch. The graph of a single batch is kept
        while an analysis runs.

        residual: of ⟨outputs, ∂L/∂outputs held fixed⟩ instead, which has the same gradient and the
        Hessian H − GGN.
        """
        for weight, x, y in self.batches():
            graph = self._graphs.get(residual)
            if graph is None:
                graph = differentiate(lambda x=x, y=y: self._scalar(x, y, residual), self.params)  # type: ignore[misc]
            if self._single and self._where:
                self._graphs[residual] = graph
            yield weight, graph
            del graph

    def forget(self) -> None:
        """Frees the kept graphs."""
        self._graphs.clear()

    def _scalar(self, x: Tensor, y: Tensor, residual: bool) -> Tensor:
        out = self.forward(x)
        if not residual:
            return self.value(out, y)
        fixed = out.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.value(fixed, y), fixed)
        return (out * slope).sum()

    # ---- what it is for ----

    def gradient(self) -> tuple[float, Tensor]:
        """L and ∇L, of shape (P,). CurvactError where they are not finite; the message names the
        parameter.
        """
        with self.running("gradient"):
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
            self.check_finite(total, "gradient")
            return mean, total

    def hessian(self, rows: Tensor, *, residual: bool = False) -> Tensor:
        """H times each row, or H − GGN with `residual`: (K, P) to (K, P). Errors as `gradient`."""
        if rows.dim() != 2 or rows.shape[1] != self.size:
            raise CurvactError(
                f"rows of shape {tuple(rows.shape)} in Loss.hessian: it must be (K, {self.size})"
            )
        with self.running("hessian"):
            out = torch.zeros_like(rows)
            for weight, graph in self.graphs(residual=residual):
                for row, sum_ in zip(rows, out, strict=True):
                    sum_.add_(graph.product(row), alpha=weight)
            self.check_finite(out, "Hessian")
            return out

    def theta(self) -> Tensor:
        """The parameters as one vector (P,), in float32 or float64."""
        theta = flatten(self.params)
        theta = theta.to(torch.promote_types(theta.dtype, torch.float32))
        self.check_finite(theta, "value")
        return theta

    def check_finite(self, values: Tensor, what: str) -> None:
        """values: (P,) or (K, P). Names the first parameter with a value that is not finite."""
        flags = values.isfinite() if values.dim() == 1 else values.isfinite().all(0)
        for name, part in self.by_parameter(flags).items():
            if not part.all():
                raise CurvactError(f"the {what} of parameter {name!r} is not finite in {self.where}")


def layer_of(name: str) -> str:
    """The module that owns a parameter.

    >>> layer_of("layer1.0.conv1.weight"), layer_of("scale")
    ('layer1.0.conv1', '(the model itself)')
    """
    return name.rpartition(".")[0] or "(the model itself)"


def names_of(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """All names of each parameter; tied parameters have several."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        names.setdefault(param, []).append(name)
    return names


def excluder(model: nn.Module, exclude: Exclude, where: str) -> Callable[[str], bool]:
    """`exclude` as a test of a name. CurvactError for a name that is no parameter of the model."""
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
    """From the first name of each parameter and buffer to the names of all attributes that hold
    it.
    """
    by_tensor: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                by_tensor.setdefault(id(tensor), []).append(f"{path}.{name}" if path else name)
    return {names[0]: names for names in by_tensor.values()}


def _source(
    x: Tensor | None, y: Tensor | None, batches: Batches | None, batch_size: int | None
) -> Callable[[], Iterator[Batch]]:
    if batches is None:
        if x is None or y is None:
            raise CurvactError("no data in Loss: give x and y, or batches")
        check_examples(x, y, "Loss")
        size = len(x) if batch_size is None else batch_size
        pieces = list(zip(torch.split(normal(x), size), torch.split(normal(y), size), strict=True))
        return lambda: iter(pieces)
    if x is not None or y is not None or batch_size is not None:
        raise CurvactError("batches together with x, y or batch_size in Loss: give the one or the other")
    if not callable(batches) and iter(batches) is batches:
        raise CurvactError(
            "batches in Loss is an iterator, which can be read once: give a list, a DataLoader or a function"
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
                    "a batch in Loss is no pair of tensors (x, y) of the same length, at least 1"
                )
            for part in batch:
                check_dense(part, "a batch in Loss")
            yield normal(batch[0]), normal(batch[1])

    return pairs


# ---- checks ----


def check_examples(x: Tensor, y: Tensor, where: str) -> None:
    """CurvactError unless x (N, …) and y (N, …) are tensors with as many rows, at least 1."""
    for value, name in ((x, "x"), (y, "y")):
        if not isinstance(value, Tensor) or value.dim() == 0:
            got = "one number" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise CurvactError(f"{name} in {where} is {got}: a tensor with one row for each example")
        check_dense(value, f"{name} in {where}")
    if len(x) != len(y) or len(x) == 0:
        raise CurvactError(f"{len(x)} inputs and {len(y)} targets in {where}: as many of each, at least 1")


def check_dense(value: Tensor, name: str) -> None:
    """CurvactError for tensors without values, sparse ones, and complex ones."""
    if value.is_meta or value.layout != torch.strided or value.is_complex():
        raise CurvactError(
            f"{name} is {value.dtype}, {value.layout}, on {value.device}: a dense tensor of real numbers with values"
        )
