"""The door of every public function: images, labels and model are as they must be, or one line says
what is wrong.

Values are read here, once a call. Nothing behind the door waits for the device to look at them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from curvact.attacks.threat import ThreatModel, radius_text
from curvact.errors import CurvactError
from curvact.names import shortened

WRAP = "wrap it with curvact.models.foreign.logits_of"
ROUNDING = 1e-6
"""How far float32 rounding may take an image out of [0, 1]. Such values are clamped."""


class SuspectModelWarning(UserWarning):
    """The model runs, but robust accuracy is not well defined on its outputs, or ε is implausible."""


class Batch(NamedTuple):
    """Images and labels that passed the door. highest: the highest label; −1 where labels are free."""

    x: Tensor
    y: Tensor
    highest: int


def checked(
    x: Tensor,
    y: Tensor,
    where: str,
    *,
    threat_model: ThreatModel | None = None,
    labelled: bool = True,
) -> Batch:
    """Images and labels as attacks take them. Reads the values: call it once, outside loops.

    x: N×…, floating point, in [0, 1]. y: N, of any integer dtype; it becomes int64 on the device
        of x. where: the function, for messages. labelled: False where y need not be classes.
    threat_model: a `SuspectModelWarning` where its ball is wider than the box of images.
    Raises CurvactError for everything else. Values that float rounding took out of [0, 1] are
    clamped. Tensors of torch's inference mode are copied, so that they can be differentiated.
    """
    x = checked_images(x, where)
    if threat_model is not None and (doubt := radius_doubt(threat_model, x)):
        warnings.warn(doubt, SuspectModelWarning, stacklevel=4)
    if not labelled:
        return Batch(x, normal(y) if isinstance(y, Tensor) else y, -1)
    return Batch(x, *checked_labels(y, x, where))


def checked_images(x: Tensor, where: str) -> Tensor:
    """The images of `checked`, detached."""
    if not isinstance(x, Tensor):
        raise CurvactError(
            f"images of {where} are a {type(x).__name__}: a tensor (torch.as_tensor makes one)"
        )
    if x.layout != torch.strided:
        raise CurvactError(f"images of {where} are {x.layout}: a dense tensor (x.to_dense())")
    if x.dim() < 2:
        raise CurvactError(f"images of {where} have shape {tuple(x.shape)}: N×…, one row an image")
    if not x.is_floating_point():
        raise CurvactError(
            f"images of {where} are {x.dtype}: floating-point numbers in [0, 1] (divide bytes by 255)"
        )
    if x.is_meta:
        raise CurvactError(f"images of {where} are on the meta device, which holds no values")
    x = normal(x)
    if x.numel() == 0:
        return x
    low, high = torch.stack(torch.aminmax(x)).tolist()
    room = max(ROUNDING, torch.finfo(x.dtype).eps)
    if not (low >= -room and high <= 1 + room):
        if math.isnan(low):
            raise CurvactError(f"images of {where} hold NaN: numbers in [0, 1]")
        remedy = "divide bytes by 255" if low >= 0 and high > 2 else "normalize in the model"
        raise CurvactError(
            f"images of {where} lie in [{low:.4g}, {high:.4g}]: attacks take inputs in [0, 1] ({remedy})"
        )
    return x if low >= 0 and high <= 1 else x.clamp(0, 1)


def checked_labels(y: Tensor, x: Tensor, where: str, name: str = "labels") -> tuple[Tensor, int]:
    """The labels of `checked` as int64, N, on the device of x, and the highest of them."""
    if not isinstance(y, Tensor):
        raise CurvactError(
            f"{name} of {where} are a {type(y).__name__}: a tensor (torch.as_tensor makes one)"
        )
    if y.shape != (len(x),):
        remedy = ""
        if y.dim() == 2 and len(y) == len(x):
            remedy = " (y.squeeze(1))" if y.shape[1] == 1 else " (one-hot: y.argmax(1))"
        raise CurvactError(
            f"{name} of {where} have shape {tuple(y.shape)}: one class an image, shape ({len(x)},){remedy}"
        )
    if y.is_floating_point() or y.is_complex():
        raise CurvactError(f"{name} of {where} are {y.dtype}: whole numbers, one class an image (y.long())")
    if y.is_meta:
        raise CurvactError(f"{name} of {where} are on the meta device, which holds no values")
    y = normal(y).to(x.device, torch.int64)
    if len(y) == 0:
        return y, -1
    low, high = torch.stack(torch.aminmax(y)).tolist()
    if low < 0:
        raise CurvactError(f"{name} of {where} lie in {low} … {high}: classes are numbered from 0")
    return y, high


def normal(x: Tensor) -> Tensor:
    """The tensor detached; a copy where it was made in torch's inference mode."""
    return x.detach().clone() if x.is_inference() else x.detach()


@contextmanager
def differentiable() -> Iterator[None]:
    """Torch's inference mode switched off inside, so that gradients can be taken."""
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            yield
    else:
        yield


def radius_doubt(threat_model: ThreatModel, x: Tensor) -> str:
    """A line where ε is larger than the distance of any two images, else "". Looks at shapes only."""
    size = x[0].numel() if len(x) else 0
    widest = {"linf": math.inf, "l2": math.sqrt(size), "l1": float(size)}[threat_model.norm]
    if not size or threat_model.epsilon <= widest:
        return ""
    return (
        f"{threat_model} allows every image: two images of {size} numbers are at most {widest:.4g} apart "
        f"(ε is in units of [0, 1], such as {radius_text(threat_model.epsilon / 255)})"
    )


def checked_module(model: object, where: str) -> nn.Module:
    """The module; of one that `torch.compile` returned, the module behind it. CurvactError for
    anything else, and for one whose tensors have no values or were made in inference mode.
    """
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, nn.Module):
        raise CurvactError(f"a model of type {type(model).__name__} in {where}: it must be an nn.Module")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise CurvactError(
                f"{name!r} of the model in {where} is on the meta device, which holds no values"
            )
        if tensor.is_inference():
            raise CurvactError(
                f"{name!r} of the model in {where} was made in inference mode: make it outside"
            )
    return model


class Guarded:
    """A model whose first outputs are looked at: every fault of model and images is one line.

    Shapes only, so that nothing waits for the device.
    highest: the highest label; the model must have more classes. logits: whether the outputs must
        be N×classes.
    """

    def __init__(
        self, model: Callable[[Tensor], Tensor], where: str, highest: int = -1, *, logits: bool = True
    ) -> None:
        self.model, self.where, self.highest, self.logits = model, where, highest, logits
        self.passed = False

    def __call__(self, x: Tensor) -> Tensor:
        if self.passed:
            return self.model(x)
        outputs = first_outputs(self.model, x, self.where)
        if self.logits:
            wrong = wrong_shape(outputs, len(x))
            if wrong:
                raise CurvactError(wrong)
            check_classes(self.highest, outputs.shape[1], self.where)
        self.passed = True
        return outputs


def first_outputs(model: Callable[[Tensor], Tensor], x: Tensor, where: str, owner: object = None) -> Tensor:
    """model(x), or a CurvactError that says what about x the model may not take.

    owner: the module whose parameters are used; the model itself where None.
    """
    weight, owner = None, model if owner is None else owner
    if isinstance(owner, nn.Module):
        weight = next((p for p in owner.parameters() if p.is_floating_point()), None)
    hint = ""
    if weight is not None and weight.is_meta:
        hint = " (its weights are on the meta device, which holds no values)"
    elif weight is not None and weight.device != x.device:
        hint = f" (its weights are on {weight.device}: move x or the model)"
    elif weight is not None and weight.dtype != x.dtype:
        hint = f" (its weights are {weight.dtype}: convert x or the model, or {WRAP})"
    fault = f"the model of {where} fails on images {tuple(x.shape)}, {x.dtype}, {x.device}{hint}"
    try:
        outputs = model(x)
    except (CurvactError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "not enough memory" in str(error) or "out of memory" in str(error):
            raise
        first = str(error).strip().partition("\n")[0]
        raise CurvactError(f"{fault}: {type(error).__name__}: {first}") from error
    if isinstance(outputs, Tensor) and outputs.is_meta and not x.is_meta:
        raise CurvactError(fault)
    return outputs


def alike(x_adv: object, x: Tensor, where: str) -> Tensor:
    """What an attack returned, detached. CurvactError unless it is a tensor of the shape, dtype and
    device of the images. Reads no values.
    """
    if not isinstance(x_adv, Tensor):
        raise CurvactError(f"the attack of {where} returned a {type(x_adv).__name__}: a tensor of images")
    for what in ("shape", "dtype", "device"):
        got, wanted = getattr(x_adv, what), getattr(x, what)
        if got != wanted:
            got, wanted = (tuple(v) if what == "shape" else v for v in (got, wanted))
            raise CurvactError(
                f"the attack of {where} returned images of {what} {got} for {wanted}: one for each, alike"
            )
    return x_adv.detach()


def check_classes(highest: int, count: int, where: str) -> None:
    """CurvactError for a label beyond the classes of the model."""
    if highest >= count:
        raise CurvactError(
            f"labels of {where} go up to {highest}, the model has {count} classes: labels 0 … {count - 1}"
        )


def check_number(value: object, name: str, where: str, least: int = 1) -> None:
    """CurvactError unless the value is a whole number ≥ least."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise CurvactError(f"{name}={shortened(value)} of {where}: a whole number >= {least}")


def check_images(x: Tensor) -> None:
    """CurvactError unless x is floating point in [0, 1], up to float rounding. Reads the values:
    call it once, outside loops.
    """
    checked_images(x, "an attack")


def cuts_graph(model: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether no gradient leads from the outputs to the inputs, as after a comparison. One pass, on
    x.

    >>> cuts_graph(lambda x: (x > 0.5).float(), torch.rand(1, 4)), cuts_graph(lambda x: 2 * x, torch.rand(1, 4))
    (True, False)
    """
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        outputs = model(leaf)
        return (
            not outputs.requires_grad
            or torch.autograd.grad(outputs.sum(), leaf, allow_unused=True)[0] is None
        )


def connected(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same outputs, with a gradient of zero where the model cuts the graph."""

    def joined(x: Tensor) -> Tensor:
        outputs = model(x)
        if wrong_shape(outputs, len(x)):
            return outputs
        return outputs + 0 * x.flatten(1).sum(1, keepdim=True)

    return joined


def check_model(model: Callable[[Tensor], Tensor], x: Tensor) -> list[str]:
    """Reasons to doubt attacks on the model, one line each; empty if there is none. One forward
    pass.

    Checked: parts in training mode, outputs that are not N×classes, not finite, or already
    probabilities.

    >>> check_model(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Softmax(1)).eval(), torch.rand(8, 1, 2, 2))
    ['the outputs are probabilities (each row lies in [0, 1] and sums to 1): attacks need the logits
    before the softmax']"""
    with torch.no_grad():
        outputs = model(x)
    wrong = wrong_shape(outputs, len(x))
    return training_parts(model) + ([wrong] if wrong else suspect_logits(outputs))


def warn_of(model: Callable[[Tensor], Tensor], logits: Tensor, where: str) -> None:
    """Warns of training mode and of logits that no accuracy is defined on. Reads the values."""
    for line in training_parts(model) + suspect_logits(logits):
        warnings.warn(f"{line} ({where})", SuspectModelWarning, stacklevel=4)


def training_parts(model: Callable[[Tensor], Tensor]) -> list[str]:
    """A line if any module of the model is in training mode."""
    if not isinstance(model, nn.Module):
        return []
    names = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [
        f"'{names[0]}'{more} in training mode: dropout and batch norm make the outputs depend on chance and batch"
    ]


def wrong_shape(outputs: object, count: int) -> str:
    """A line if the outputs are not a tensor of count×classes logits with classes ≥ 2, else an
    empty string.
    """
    if not isinstance(outputs, Tensor):
        return f"the model returns {type(outputs).__name__}: attacks need one tensor of logits ({WRAP})"
    if outputs.dim() != 2 or len(outputs) != count or outputs.shape[1] < 2:
        one = outputs.shape in ((count,), (count, 1))
        remedy = " (for one logit wrap the model with curvact.attacks.two_logits)" if one else ""
        return (
            f"the outputs have shape {tuple(outputs.shape)}: attacks need {count}×classes, at least 2 "
            f"classes{remedy}"
        )
    return ""


def suspect_logits(logits: Tensor) -> list[str]:
    """A line for logits that are not finite, one for logits that are already probabilities. Reads
    the values.
    """
    if len(logits) == 0:
        return []
    finite = logits.isfinite().all(1)
    # A softmax in float32 sums to 1 within 1e-6; in half precision within 1e-2.
    near = 1e-4 if logits.dtype in (torch.float32, torch.float64) else 2e-2
    rows = logits.detach().double()
    stochastic = ((rows >= 0) & (rows <= 1)).all() & ((rows.sum(1) - 1).abs() < near).all()
    lines = []
    if not bool(finite.all()):
        lines.append(f"{int((~finite).sum())} of {len(logits)} rows of logits hold NaN or infinity")
    elif bool(stochastic):
        lines.append(
            "the outputs are probabilities (each row lies in [0, 1] and sums to 1): attacks need the logits before the softmax"
        )
    return lines


def differ(logits: Tensor, again: Tensor) -> bool:
    """Whether the outputs for the same images differ by more than rounding. Reads the values."""
    return float((logits - again).abs().max()) > 1e-4 * float(logits.abs().max())


class _TwoLogits(nn.Module):
    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        if not isinstance(z, Tensor) or z.shape not in ((len(x),), (len(x), 1)):
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise CurvactError(f"two_logits got outputs {got} for {len(x)} images: one number each")
        z = z.reshape(-1, 1)
        return torch.cat([torch.zeros_like(z), z], 1)


def two_logits(model: Callable[[Tensor], Tensor]) -> nn.Module:
    """A model of one logit z (N or N×1, before the sigmoid) as one of two classes, with the logits
    [0, z].

    Its softmax is [1 − σ(z), σ(z)], so cross-entropy and predictions are those of the one logit.

    >>> two_logits(lambda x: x.sum(1))(torch.tensor([[1.0, 2.0]]))
    tensor([[0., 3.]])
    """
    return _TwoLogits(model)
