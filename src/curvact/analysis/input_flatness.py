"""Analysis room: how flat a loss is in the input: gradient norm, ends of the input Hessian's spectrum, local linearity error.

Per example, in eval mode. The linearity error max over the ball of |ℓ(x+δ) − ℓ(x) − δᵀ∇ℓ(x)| is that of local linearity
regularization (Qin et al. 2019, arXiv 1907.02610) [paper].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvact.analysis.loss import check_inputs, check_values
from curvact.analysis.records import OnProgress, finite
from curvact.attacks.losses import ce
from curvact.attacks.pgd import frozen, mode
from curvact.attacks.threat import ThreatModel, check_images
from curvact.errors import CurvactError
from curvact.random import generator

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) to N losses, one an example."""


@dataclass(frozen=True, eq=False)
class InputSpectrum:
    """The ends of the spectrum of each example's input Hessian, (N) each, in float64.

    top, bottom: largest and smallest eigenvalue. residual: ‖Hv − top·v‖: an eigenvalue lies within it of `top`.
    """

    top: Tensor
    bottom: Tensor
    residual: Tensor


@dataclass(frozen=True, eq=False)
class InputFlatness:
    """How flat the loss is around each example, (N) each, in float64 on the CPU.

    gradient_norm: ‖∇_x ℓ‖₂. gradient_l1: ‖∇_x ℓ‖₁, the slope against an L∞ attacker.
    top_eigenvalue, bottom_eigenvalue, residual: as `InputSpectrum`.
    linearity_error: by name of a threat model; a lower bound, found by ascent. radii: of these, as "l2 0.5".
    """

    gradient_norm: Tensor
    gradient_l1: Tensor
    top_eigenvalue: Tensor
    bottom_eigenvalue: Tensor
    residual: Tensor
    linearity_error: dict[str, Tensor]
    radii: dict[str, str]

    def means(self) -> dict[str, float]:
        """The mean over the examples of each measure; linearity errors as "linearity_error NAME"."""
        return {name: float(values.mean()) for name, values in self._measures().items()}

    def as_dict(self) -> dict[str, Any]:
        """For JSON: mean, median, highest and all values of each measure; what is not finite is None."""
        measures = {
            name: {
                "mean": finite(float(values.mean())),
                "median": finite(float(values.median())),
                "highest": finite(float(values.max())),
                "values": [finite(v) for v in values.tolist()],
            }
            for name, values in self._measures().items()
        }
        return {"inputs": len(self.gradient_norm), "radii": dict(self.radii), "measures": measures}

    def _measures(self) -> dict[str, Tensor]:
        names = ("gradient_norm", "gradient_l1", "top_eigenvalue", "bottom_eigenvalue", "residual")
        errors = {f"linearity_error {name}": values for name, values in self.linearity_error.items()}
        return {**{name: getattr(self, name) for name in names}, **errors}


def input_flatness(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat_models: dict[str, ThreatModel] | None = None,
    *,
    loss: Loss = ce,
    lanczos_steps: int = 20,
    ascent_steps: int = 20,
    restarts: int = 2,
    seed: int = 0,
    batch_size: int = 128,
    on_progress: OnProgress | None = None,
) -> InputFlatness:
    """Every measure of this module for each example of a batch; parameters, modes and gradients are left as they are.

    x: (N, …), in [0, 1] where there are threat models. y: (N, …). threat_models: balls for the linearity error, by name.
    loss: one number an example; cross-entropy. Other arguments as the functions below.
    Raises CurvactError as these, and for a model that holds NaN.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 2))
    >>> found = input_flatness(model, torch.rand(5, 3), torch.zeros(5, dtype=torch.int64), {"l2": ThreatModel("l2", 0.1)})
    >>> found.top_eigenvalue.shape, sorted(found.means())[-1]
    (torch.Size([5]), 'top_eigenvalue')
    """
    threat_models = threat_models or {}
    check_inputs(x, y, "input_flatness", batch_size)
    check_values(model, "input_flatness")
    if threat_models:
        check_images(x)
    gradients, spectra = [], []
    errors: dict[str, list[Tensor]] = {name: [] for name in threat_models}
    parts = list(zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True))
    for number, (images, labels) in enumerate(parts):
        gradients.append(input_gradient(model, images, labels, loss=loss).flatten(1).double())
        starts = generator(seed, "input flatness, spectrum", number, device=x.device)
        spectra.append(input_spectrum(model, images, labels, loss=loss, steps=lanczos_steps, random=starts))
        for name, threat in threat_models.items():
            starts = generator(seed, "input flatness, linearity", number, device=x.device)
            errors[name].append(
                linearity_error(
                    model,
                    images,
                    labels,
                    threat,
                    loss=loss,
                    steps=ascent_steps,
                    restarts=restarts,
                    random=starts,
                )
            )
        if on_progress is not None:
            on_progress(number + 1, len(parts))
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


def input_gradient(model: nn.Module, x: Tensor, y: Tensor, *, loss: Loss = ce) -> Tensor:
    """∇_x ℓ of each example, of the shape of x, in eval mode.

    Raises CurvactError for a loss that is not one number an example, and for inputs that do not fit or are not finite.

    >>> input_gradient(nn.Identity(), torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor([[-0.5000,  0.5000]])
    """
    check_inputs(x, y, "input_gradient")
    with mode(model, training=False), frozen(model), torch.enable_grad():
        point = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(_losses(model, point, y, loss).sum(), point)
    return _finite(slope.detach(), "gradient", "input_gradient")


def input_spectrum(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: Loss = ce,
    steps: int = 20,
    random: torch.Generator | None = None,
) -> InputSpectrum:
    """Largest and smallest eigenvalue of each example's input Hessian, by Lanczos on all examples at once, in eval mode.

    The Krylov space is that of power iteration with as many products, and the ends found in it are never farther out than the
    true ones nor farther in than power iteration's. Exact once `steps` reaches the number of inputs, or the rank. A kink has no
    second derivative: for a ReLU network this is the Hessian between the kinks.

    steps: products with the Hessian; each costs about 2 gradients. random: of the start, on the device of x.
    Raises CurvactError for steps < 1, and as `input_gradient`.

    >>> spectrum = input_spectrum(nn.Identity(), torch.tensor([[0.0, 0.0]]), torch.tensor([0]))  # H = ¼(1, −1)ᵀ(1, −1)
    >>> spectrum.top, spectrum.bottom.abs() < 1e-6
    (tensor([0.5000], dtype=torch.float64), tensor([True]))
    """
    if steps < 1:
        raise CurvactError(f"steps={steps} of Lanczos in input_spectrum: at least 1")
    check_inputs(x, y, "input_spectrum")
    random = generator(0, "input spectrum", device=x.device) if random is None else random
    # Fused attention has no second derivative.
    with mode(model, training=False), frozen(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        point = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(_losses(model, point, y, loss).sum(), point, create_graph=True)

        def product(v: Tensor) -> Tensor:
            if not slope.requires_grad:
                return torch.zeros_like(v)
            (row,) = torch.autograd.grad(
                slope, point, v.view_as(x), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            return row.flatten(1)

        _finite(slope.detach(), "gradient", "input_spectrum")
        return _lanczos(product, x.flatten(1), steps, random)


def linearity_error(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    *,
    loss: Loss = ce,
    steps: int = 20,
    restarts: int = 2,
    random: torch.Generator | None = None,
) -> Tensor:
    """max over allowed δ of |ℓ(x+δ) − ℓ(x) − δᵀ∇ℓ(x)|, (N), float64: the highest value that projected ascent visits.

    The ascent starts at random (at δ = 0 value and slope are 0) and takes steps of 2.5ε/steps in the norm of the threat model, in
    eval mode. A lower bound of the maximum. x: (N, …), in [0, 1]; x + δ stays there.
    Raises CurvactError for steps or restarts < 1, for inputs outside [0, 1], and as `input_gradient`.

    >>> x, y = torch.full((1, 2), 0.5), torch.zeros(1, 2)
    >>> square = lambda outputs, targets: ((outputs - targets) ** 2).sum(1)
    >>> linearity_error(nn.Identity(), x, y, ThreatModel("l2", 0.1), loss=square)  # ‖δ‖²
    tensor([0.0100], dtype=torch.float64)
    """
    if steps < 1 or restarts < 1:
        raise CurvactError(f"steps={steps}, restarts={restarts} in linearity_error: at least 1 of each")
    check_inputs(x, y, "linearity_error")
    check_images(x)
    random = generator(0, "linearity error", device=x.device) if random is None else random
    x = x.detach()
    length = 2.5 * threat_model.epsilon / steps
    with mode(model, training=False), frozen(model), torch.enable_grad():
        start = x.clone().requires_grad_()
        here = _losses(model, start, y, loss)
        (slope,) = torch.autograd.grad(here.sum(), start)
        here, flat = here.detach().double(), slope.flatten(1).double()
        worst = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for _ in range(restarts):
            point = threat_model.random_start(x, random)
            for step in range(steps + 1):
                point = point.detach().requires_grad_()
                there = _losses(model, point, y, loss)
                moved = (point.detach() - x).flatten(1).double()
                error = there.detach().double() - here - (moved * flat).sum(1)
                worst = torch.maximum(worst, error.abs())
                if step == steps:
                    break
                (uphill,) = torch.autograd.grad(there.sum(), point)
                side = torch.where(error < 0, -1.0, 1.0).to(x.dtype).view(-1, *[1] * (x.dim() - 1))
                ahead = threat_model.ascend(point.detach(), side * (uphill - slope), length)
                point = threat_model.project(ahead, x)
    return _finite(worst, "linearity error", "linearity_error")


def _lanczos(
    product: Callable[[Tensor], Tensor], like: Tensor, steps: int, random: torch.Generator
) -> InputSpectrum:
    """Ends of the spectra of N symmetric matrices at once; like: (N, d). Full reorthogonalization, twice; no waits."""
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
        # A space that is closed under H ends early: what follows repeats α₁, which lies between the two ends.
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


def _finite(values: Tensor, what: str, where: str) -> Tensor:
    """values: (N, …). Names the first example with one that is not finite."""
    flags = values.flatten(1).isfinite().all(1) if values.dim() > 1 else values.isfinite()
    if not bool(flags.all()):
        raise CurvactError(f"the {what} of example {int((~flags).nonzero()[0])} is not finite in {where}")
    return values


def _losses(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    losses = loss(model(x), y)
    if losses.shape != (len(x),):
        raise CurvactError(
            f"the loss has shape {tuple(losses.shape)} for {len(x)} examples: one number an example, shape ({len(x)},)"
        )
    return losses
