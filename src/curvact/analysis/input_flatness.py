"""Flatness of a loss in the input: gradient norm, ends of the input Hessian's spectrum, local
linearity error.

For each example. The linearity error, the maximum over the ball of |ℓ(x+δ) − ℓ(x) − δᵀ∇ℓ(x)|, is
that of local linearity regularization (Qin et al. 2019, arXiv 1907.02610) [paper].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvact.analysis.loss import Loss
from curvact.analysis.records import OnProgress, finite, plain
from curvact.attacks.arguments import door
from curvact.attacks.batch import checked_images
from curvact.attacks.threat import ThreatModel
from curvact.errors import CurvactError
from curvact.models.modes import frozen
from curvact.random import generator


@dataclass(frozen=True, eq=False)
class InputSpectrum:
    """The ends of the spectrum of each example's input Hessian, (N,) each, in float64.

    top, bottom: largest and smallest eigenvalue. residual: ‖Hv − top·v‖; some eigenvalue is at most
    that far from `top`.
    """

    top: Tensor
    bottom: Tensor
    residual: Tensor


@dataclass(frozen=True, eq=False)
class InputFlatness:
    """Flatness of the loss around each example, (N,) each, in float64 on the CPU.

    gradient_norm: ‖∇_x ℓ‖₂. gradient_l1: ‖∇_x ℓ‖₁, the slope against an L∞ attacker.
    top_eigenvalue, bottom_eigenvalue, residual: as `InputSpectrum`.
    linearity_error: by name of a threat model; a lower bound, found by ascent. radii: of these, as
    "l2 0.5".
    """

    gradient_norm: Tensor
    gradient_l1: Tensor
    top_eigenvalue: Tensor
    bottom_eigenvalue: Tensor
    residual: Tensor
    linearity_error: dict[str, Tensor]
    radii: dict[str, str]

    def means(self) -> dict[str, float]:
        """The mean over the examples of each measure; linearity errors as "linearity_error
        NAME".
        """
        return {name: float(values.mean()) for name, values in self._measures().items()}

    def as_dict(self) -> dict[str, Any]:
        """For JSON: mean, median, highest and all values of each measure; what is not finite is
        None.
        """
        measures = {
            name: {
                "mean": finite(float(values.mean())),
                "median": finite(float(values.median())),
                "highest": finite(float(values.max())),
                "values": plain(values),
            }
            for name, values in self._measures().items()
        }
        return {"inputs": len(self.gradient_norm), "radii": dict(self.radii), "measures": measures}

    def _measures(self) -> dict[str, Tensor]:
        names = ("gradient_norm", "gradient_l1", "top_eigenvalue", "bottom_eigenvalue", "residual")
        errors = {f"linearity_error {name}": values for name, values in self.linearity_error.items()}
        return {**{name: getattr(self, name) for name in names}, **errors}


@door
def input_flatness(
    loss: Loss,
    threat_models: Mapping[str, ThreatModel] | None = None,
    *,
    lanczos_steps: int = 20,
    ascent_steps: int = 20,
    restarts: int = 2,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> InputFlatness:
    """Every measure of this module, for each example. The model is left as it was.

    loss: with one number for each example; inputs (N, …), in [0, 1] where there are threat models.
    threat_models: balls for the linearity error, by name. Other arguments as the functions below.
    Raises CurvactError as these, and for a model that holds NaN.

    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Softplus(), torch.nn.Linear(4, 2))
    >>> loss = Loss(model, torch.rand(5, 3), torch.zeros(5, dtype=torch.int64))
    >>> found = input_flatness(loss, {"l2": ThreatModel("l2", 0.1)})
    >>> found.top_eigenvalue.shape, sorted(found.means())[-1]
    (torch.Size([5]), 'top_eigenvalue')
    """
    threat_models = threat_models or {}
    gradients, spectra = [], []
    errors: dict[str, list[Tensor]] = {name: [] for name in threat_models}
    with loss.running("input_flatness", twice=False):
        batches = loss.inputs()
        loss.check_values()
    for number, (x, y) in enumerate(batches):
        part = loss.of(x, y)
        gradients.append(input_gradient(part).flatten(1).double())
        starts = generator(seed, "input flatness, spectrum", number, device=x.device)
        spectra.append(input_spectrum(part, steps=lanczos_steps, random=starts))
        for name, threat in threat_models.items():
            starts = generator(seed, "input flatness, linearity", number, device=x.device)
            found = linearity_error(part, threat, steps=ascent_steps, restarts=restarts, random=starts)
            errors[name].append(found)
        if on_progress is not None:
            on_progress(number + 1, len(batches))
    slopes = torch.cat(gradients)
    return InputFlatness(
        gradient_norm=torch.linalg.vector_norm(slopes, dim=1).cpu(),
        gradient_l1=slopes.abs().sum(1).cpu(),
        top_eigenvalue=torch.cat([s.top for s in spectra]).cpu(),
        bottom_eigenvalue=torch.cat([s.bottom for s in spectra]).cpu(),
        residual=torch.cat([s.residual for s in spectra]).cpu(),
        linearity_error={name: torch.cat(values).cpu() for name, values in errors.items()},
        radii={name: f"{threat.norm} {threat.epsilon:g}" for name, threat in threat_models.items()},
    )


@door
def input_gradient(loss: Loss) -> Tensor:
    """∇_x ℓ of each example, of the shape of x.

    Raises CurvactError for a loss that is not one number for each example, and for inputs that are
    not finite.

    >>> loss = Loss(torch.nn.Identity(), torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    >>> input_gradient(loss)
    tensor([[-0.5000,  0.5000]])
    """
    slopes = []
    with loss.running("input_gradient", twice=False), frozen(loss.model), torch.enable_grad():
        for x, y in loss.inputs():
            point = x.detach().requires_grad_()
            slope = _slope(loss.each(loss.outputs(point), y), point, loss.where)
            slopes.append(slope.detach())
    return _finite(torch.cat(slopes), "gradient", "input_gradient")


@door
def input_spectrum(loss: Loss, *, steps: int = 20, random: torch.Generator | None = None) -> InputSpectrum:
    """Largest and smallest eigenvalue of each example's input Hessian, by Lanczos on all examples
    of a batch at once.

    The Krylov space is that of power iteration with as many products. The ends found in it lie
    inside the true ones, and at least as far out as those of power iteration. Exact once `steps`
    reaches the number of inputs, or the rank. A kink has no
    second derivative: for a ReLU network this is the Hessian between the kinks.

    steps: products with the Hessian; each costs about 2 gradients. random: of the start, on the
    device of x. Raises CurvactError for steps < 1, and as `input_gradient`.

    >>> loss = Loss(torch.nn.Identity(), torch.tensor([[0.0, 0.0]]), torch.tensor([0]))  # H = ¼(1, −1)ᵀ(1, −1)
    >>> spectrum = input_spectrum(loss)
    >>> spectrum.top, spectrum.bottom.abs() < 1e-6
    (tensor([0.5000], dtype=torch.float64), tensor([True]))
    """
    where = "input_spectrum"
    if steps < 1:
        raise CurvactError(f"steps={steps} of Lanczos in {where}: at least 1")
    found = []
    with loss.running(where), frozen(loss.model), torch.enable_grad():
        for x, y in loss.inputs():
            random = generator(0, "input spectrum", device=x.device) if random is None else random
            point = x.detach().requires_grad_()
            slope = _slope(loss.each(loss.outputs(point), y), point, where, again=True)

            def product(v: Tensor, slope: Tensor = slope, point: Tensor = point) -> Tensor:
                if not slope.requires_grad:
                    return torch.zeros_like(v)
                (row,) = torch.autograd.grad(
                    slope,
                    point,
                    v.view_as(point),
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
                return row.flatten(1)

            _finite(slope.detach(), "gradient", where)
            found.append(_lanczos(product, x.flatten(1), steps, random))
    return InputSpectrum(*(torch.cat([getattr(f, n) for f in found]) for n in ("top", "bottom", "residual")))


@door
def linearity_error(
    loss: Loss,
    threat_model: ThreatModel,
    *,
    steps: int = 20,
    restarts: int = 2,
    random: torch.Generator | None = None,
) -> Tensor:
    """max over allowed δ of |ℓ(x+δ) − ℓ(x) − δᵀ∇ℓ(x)|, (N,), float64: the highest value that
    projected ascent visits.

    The ascent starts at random (at δ = 0 value and slope are 0) and takes steps of 2.5ε/steps in
    the norm of the threat model. A lower bound of the maximum. Inputs in [0, 1]; x + δ stays there.
    Raises CurvactError for steps or restarts < 1, for inputs outside [0, 1], and as
    `input_gradient`.

    >>> square = lambda outputs, targets: ((outputs - targets) ** 2).sum(1)
    >>> loss = Loss(torch.nn.Identity(), torch.full((1, 2), 0.5), torch.zeros(1, 2), loss=square)
    >>> linearity_error(loss, ThreatModel("l2", 0.1))  # ‖δ‖²
    tensor([0.0100], dtype=torch.float64)
    """
    where = "linearity_error"
    if steps < 1 or restarts < 1:
        raise CurvactError(f"steps={steps}, restarts={restarts} in {where}: at least 1 of each")
    found = []
    with loss.running(where, twice=False), frozen(loss.model), torch.enable_grad():
        for x, y in loss.inputs():
            checked_images(x, where)
            random = generator(0, "linearity error", device=x.device) if random is None else random
            found.append(_furthest(loss, x.detach(), y, threat_model, steps, restarts, random))
    return _finite(torch.cat(found), "linearity error", where)


def _furthest(
    loss: Loss,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    steps: int,
    restarts: int,
    random: torch.Generator,
) -> Tensor:
    """`linearity_error` of one batch."""
    length = 2.5 * threat_model.epsilon / steps
    start = x.clone().requires_grad_()
    here = loss.each(loss.outputs(start), y)
    slope = _slope(here, start, loss.where)
    here, flat = here.detach().double(), slope.flatten(1).double()
    worst = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for _ in range(restarts):
        point = threat_model.random_start(x, random)
        for step in range(steps + 1):
            point = point.detach().requires_grad_()
            there = loss.each(loss.outputs(point), y)
            moved = (point.detach() - x).flatten(1).double()
            error = there.detach().double() - here - (moved * flat).sum(1)
            worst = torch.maximum(worst, error.abs())
            if step == steps:
                break
            (uphill,) = torch.autograd.grad(there.sum(), point)
            side = torch.where(error < 0, -1.0, 1.0).to(x.dtype).view(-1, *[1] * (x.dim() - 1))
            ahead = threat_model.ascend(point.detach(), side * (uphill - slope), length)
            point = threat_model.project(ahead, x)
    return worst


def _lanczos(
    product: Callable[[Tensor], Tensor], like: Tensor, steps: int, random: torch.Generator
) -> InputSpectrum:
    """Ends of the spectra of N symmetric matrices at once; like: (N, d). Full reorthogonalization,
    twice; no waits.
    """
    count, size = like.shape
    steps = min(steps, size)
    tiny = 64 * torch.finfo(like.dtype).eps
    v = torch.randn(count, size, generator=random, dtype=like.dtype, device=like.device)
    v = v / torch.linalg.vector_norm(v, dim=1, keepdim=True)
    basis = v[:, None]
    alive = torch.ones(count, dtype=torch.bool, device=like.device)
    t = torch.zeros(count, steps, steps, dtype=torch.float64, device=like.device)
    scale = torch.zeros(count, dtype=like.dtype, device=like.device)
    last = scale
    for step in range(steps):
        w = product(v)
        scale = torch.maximum(scale, torch.linalg.vector_norm(w, dim=1))
        alpha = (w * v).sum(1).double()
        # A space that is closed under H ends early: what follows repeats α₁, which lies between the
        # two ends.
        t[:, step, step] = torch.where(alive, alpha, t[:, 0, 0]) if step else alpha
        for _ in range(2):
            w = w - torch.einsum("nk,nkd->nd", torch.einsum("nkd,nd->nk", basis, w), basis)
        last = torch.linalg.vector_norm(w, dim=1)
        alive = alive & (last > tiny * scale * math.sqrt(size))
        last = torch.where(alive, last, torch.zeros_like(last))
        if step + 1 < steps:
            t[:, step, step + 1] = t[:, step + 1, step] = last.double()
            v = torch.where(alive[:, None], w / last.clamp_min(torch.finfo(w.dtype).tiny)[:, None], 0.0)
            basis = torch.cat([basis, v[:, None]], 1)
    values, vectors = torch.linalg.eigh(t)
    return InputSpectrum(values[:, -1], values[:, 0], last.double() * vectors[:, -1, -1].abs())


def _slope(losses: Tensor, point: Tensor, where: str, *, again: bool = False) -> Tensor:
    """The gradient of the losses in the inputs. again: to be differentiated once more. CurvactError
    where autograd finds no way.
    """
    found = None
    if losses.requires_grad:
        (found,) = torch.autograd.grad(losses.sum(), point, allow_unused=True, create_graph=again)
    if found is None:
        raise CurvactError(f"the loss does not depend on the inputs by a differentiable way in {where}")
    return found


def _finite(values: Tensor, what: str, where: str) -> Tensor:
    """values: (N, …). Names the first example with one that is not finite."""
    flags = values.flatten(1).isfinite().all(1) if values.dim() > 1 else values.isfinite()
    if not bool(flags.all()):
        raise CurvactError(f"the {what} of example {int((~flags).nonzero()[0])} is not finite in {where}")
    return values
