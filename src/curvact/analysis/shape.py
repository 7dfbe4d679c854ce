"""The shape of activations, and the robustness of networks with them, as one table.

The paper (PAF, arXiv 2110.05626) trains networks whose activations differ in one property of their
shape. It compares clean accuracy, average minimum PGD radius, Square success and the empirical
Lipschitz constant. [paper]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from curvact.activations import ActivationLike
from curvact.activations.describe import as_activation, describe
from curvact.analysis.calls import call_sites, identity_of
from curvact.analysis.matching import PGD_20
from curvact.analysis.records import OnProgress, plain
from curvact.attacks import PGD, ThreatModel, accuracy, ensemble, minimum_radius
from curvact.attacks.arguments import door
from curvact.attacks.batch import check_number, checked_images, first_outputs, wrong_shape
from curvact.attacks.pgd import Model, pgd
from curvact.attacks.threat import as_radius
from curvact.errors import CurvactError
from curvact.models.modes import mode
from curvact.random import generator

NEAR_ZERO = 0.5
"""Half the width of the interval around 0 over which curvature is averaged. [ours]"""
FAR_NEGATIVE = -5.0
"""Positive outputs are searched for from here to 0: pre-activations rarely lie lower. [ours]"""


@dataclass(frozen=True)
class ActivationShape:
    """The properties that the shape analysis of the paper names, as numbers. The choice of numbers
    is [ours].

    max_curvature, curvature_at: κ and its place.
    positive_on_negative: whether σ(x) > 0 for some x < 0. highest_on_negative: sup of σ over [−5,
    0).
    curvature_at_zero: σ″(0), 0 at a kink. curvature_near_zero: mean of |σ″| over [−0.5, 0.5], where
    a kink adds its change of slope.
    slope_low, slope_high: slopes in the tails, as x → −∞ and +∞. at_zero, slope_at_zero: σ(0),
    σ′(0).
    """

    name: str
    max_curvature: float
    curvature_at: float
    positive_on_negative: bool
    highest_on_negative: float
    curvature_at_zero: float
    curvature_near_zero: float
    slope_low: float
    slope_high: float
    at_zero: float
    slope_at_zero: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON; κ of a kink is None."""
        record: dict[str, Any] = plain(self)
        return record


@dataclass(frozen=True)
class ShapeRow:
    """One trained model: the shape of its activations and its robustness.

    shape: mean over the activations of its call sites (κ infinite if any is); None if they cannot
        be described.
    activations: their distinct names.
    clean_accuracy, robust_accuracy: fractions; robust against PGD.
    radius: mean over inputs of the smallest radius at which PGD succeeds, 0 where the model errs
        already and the largest radius tried where PGD fails. radius_unbroken: the fraction of the
        latter.
    lipschitz: mean over inputs of the empirical Lipschitz constant; lipschitz_max: the highest.
    square_success: the fraction of the correctly classified inputs that Square fooled; None without
        Square.
    """

    model: str
    activations: tuple[str, ...]
    shape: ActivationShape | None
    clean_accuracy: float
    robust_accuracy: float
    radius: float
    radius_unbroken: float
    lipschitz: float
    lipschitz_max: float
    square_success: float | None

    def as_dict(self) -> dict[str, Any]:
        """One flat row of plain values."""
        row: dict[str, Any] = plain(self)
        row["activation"] = "; ".join(row.pop("activations"))
        shape = row.pop("shape") or {}
        row |= {
            field.name: shape.get(field.name) for field in fields(ActivationShape) if field.name != "name"
        }
        row["kink"] = self.shape is not None and math.isinf(self.shape.max_curvature)
        return row


@dataclass(frozen=True)
class ShapeSettings:
    """How `shape_table` measures. All values are [ours].

    attack: for robust accuracy and for the minimum radius.
    largest_radius: the search for the minimum radius begins there; 4ε where None. halvings: of that
    search.
    lipschitz_radius: the L∞ radius; ε of an linf threat model, else 8/255, where None.
    lipschitz_steps: of the ascent.
    square_queries: 0 leaves Square out; linf and l2 only.
    """

    attack: PGD = PGD_20
    largest_radius: float | None = None
    halvings: int = 8
    lipschitz_radius: float | None = None
    lipschitz_steps: int = 10
    square_queries: int = 0


@dataclass(frozen=True)
class ShapeTable:
    """The rows, in the order of the models, and the settings that they share."""

    rows: tuple[ShapeRow, ...]
    settings: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: `rows` as plain dicts, and `settings`."""
        return {"settings": dict(self.settings), "rows": [row.as_dict() for row in self.rows]}


def activation_shape(module: ActivationLike) -> ActivationShape:
    """The shape of any activation: a name, a module, a class or a function of one tensor, measured
    in float64.

    Raises CurvactError for what is not elementwise.

    >>> shape = activation_shape("relu")
    >>> shape.max_curvature, shape.positive_on_negative, round(shape.curvature_near_zero, 9), shape.slope_high
    (inf, False, 1.0, 1.0)
    """
    act = as_activation(module)
    known = describe(act)
    grid = torch.linspace(
        -NEAR_ZERO, NEAR_ZERO, 200_002, dtype=torch.float64
    )  # an even number: 0, often a kink, is not on it
    slopes = act.slope(grid)
    below = torch.linspace(FAR_NEGATIVE, 0.0, 50_001, dtype=torch.float64)
    return ActivationShape(
        name=known.name,
        max_curvature=known.max_curvature.value,
        curvature_at=known.max_curvature.at,
        positive_on_negative=known.positive_on_negative,
        highest_on_negative=float(act(below).max()),
        curvature_at_zero=float(act.curvature(torch.zeros(1, dtype=torch.float64))),
        curvature_near_zero=float(slopes.diff().abs().sum()) / (2 * NEAR_ZERO),
        slope_low=known.slope_low,
        slope_high=known.slope_high,
        at_zero=known.at_zero,
        slope_at_zero=known.slope_at_zero,
    )


@door
def empirical_lipschitz(
    model: Model,
    x: Tensor,
    *,
    radius: float | str,
    steps: int = 10,
    step: float | None = None,
    seed: int = 0,
    batch_size: int = 512,
) -> Tensor:
    """The empirical Lipschitz constant of each input: a lower bound on the true one. [paper; the
    steps: ours]

    The highest ‖f(x′) − f(x)‖₁/‖x′ − x‖∞ on the way of an ascent on the numerator within ‖x′ − x‖∞
    ≤ radius.
    model: maps inputs (N, …) in [0, 1] to N×classes logits; its mode is left as it is. radius: in
    input units, > 0.
    step: in units of radius, as in `PGD`. Points nearer than radius/1000 are rounding and left out.
    Returns N ratios, detached.

    >>> model = lambda x: torch.stack([x.sum(1), -2 * x.sum(1)], 1)  # (1 + 2)·4 at the corners of the cube
    >>> empirical_lipschitz(model, torch.full((2, 4), 0.5), radius=0.1)
    tensor([12., 12.])
    """
    where = "empirical_lipschitz"
    radius = as_radius(radius, f"radius={radius!r} of {where}", above_zero=True)
    check_number(steps, "steps", where)
    check_number(batch_size, "batch_size", where)
    x = checked_images(x, where)
    ratios = []
    for number, images in enumerate(torch.split(x, batch_size)):
        with torch.no_grad():
            clean = first_outputs(model, images, where)
        if wrong := wrong_shape(clean, len(images)):
            raise CurvactError(wrong)
        if not bool(clean.isfinite().all()):
            raise CurvactError(f"the model's logits are not finite in {where}")
        best = torch.zeros(len(images), dtype=clean.dtype, device=clean.device)

        def apart(logits: Tensor, _y: Tensor, _targets: Tensor | None, clean: Tensor = clean) -> Tensor:
            return (logits - clean).abs().sum(1)

        def note(
            _step: int, x_adv: Tensor, change: Tensor, images: Tensor = images, best: Tensor = best
        ) -> None:
            length = (x_adv - images).abs().flatten(1).amax(1)
            ratio = torch.where(length > radius / 1000, change / length, 0.0)
            torch.maximum(best, ratio.to(best.dtype), out=best)

        last = pgd(
            model,
            images,
            torch.zeros(len(images), dtype=torch.int64, device=images.device),
            ThreatModel("linf", radius),
            steps=steps,
            step=step,
            generator=generator(seed, "empirical lipschitz", number, device=images.device),
            loss=apart,
            on_step=note,
            check=False,
        )
        with torch.no_grad():
            note(steps, last, apart(model(last), torch.empty(0), None))
        ratios.append(best)
    return torch.cat(ratios) if ratios else x.new_zeros(0)


def shape_table(
    models: Mapping[str, nn.Module],
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    settings: ShapeSettings = ShapeSettings(),
    *,
    seed: int = 0,
    batch_size: int = 512,
    on_progress: OnProgress | None = None,
) -> ShapeTable:
    """One row for each model: shape of its activations, accuracy, minimum radius, Lipschitz
    constant, Square. [paper]

    Every model is measured in eval mode with the same seeds, and left as it was.

    models: by their names in the table. x: inputs (N, C, H, W) in [0, 1]. y: N.
    on_progress: called after each of the measures of each model.
    Raises CurvactError for no models, no images, ε = 0 and what the attacks raise.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2))
    >>> table = shape_table({"silu": net}, torch.rand(6, 1, 2, 2), torch.tensor([0, 1] * 3), ThreatModel("linf", 0.1))
    >>> table.rows[0].activations, table.as_dict()["rows"][0]["max_curvature"]
    (('SiLU()',), 0.5...)
    """
    if not models or len(x) == 0 or len(x) != len(y):
        raise CurvactError(
            f"{len(models)} models, {len(x)} images, {len(y)} labels in shape_table: "
            "at least 1 model, and a label for each image"
        )
    if settings.attack.steps < 1 or batch_size < 1:
        raise CurvactError(
            f"attack={settings.attack}, batch_size={batch_size} in shape_table: at least 1 step and 1 image"
        )
    if threat_model.epsilon == 0:
        raise CurvactError("a threat model with epsilon=0 in shape_table: it must be > 0")
    high = settings.largest_radius
    near = settings.lipschitz_radius
    settings = replace(
        settings,
        largest_radius=4 * threat_model.epsilon if high is None else high,
        lipschitz_radius=(threat_model.epsilon if threat_model.norm == "linf" else 8 / 255)
        if near is None
        else near,
    )
    steps = (4 if settings.square_queries else 3) * len(models)
    rows: list[ShapeRow] = []
    done = 0

    def measured() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, steps)

    for name, model in models.items():
        with mode(model, training=False):
            rows.append(_row(name, model, x, y, threat_model, settings, seed, batch_size, measured))
    record = {
        "norm": threat_model.norm,
        "epsilon": threat_model.epsilon,
        "attack": str(settings.attack),
        "largest_radius": settings.largest_radius,
        "lipschitz_radius": settings.lipschitz_radius,
        "square_queries": settings.square_queries,
        "seed": seed,
        "inputs": len(x),
    }
    return ShapeTable(tuple(rows), record)


def _row(
    name: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    settings: ShapeSettings,
    seed: int,
    batch_size: int,
    measured: Callable[[], None],
) -> ShapeRow:
    high, near = settings.largest_radius, settings.lipschitz_radius
    assert high is not None
    assert near is not None
    names, shape = _shape_of(model, x)
    attack = settings.attack.on(threat_model, generator(seed, "shape, pgd", device=x.device))
    found = accuracy(model, x, y, attack, batch_size=batch_size)
    measured()
    parts = zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True)
    radii = torch.cat(
        [
            minimum_radius(
                model,
                images,
                labels,
                norm=threat_model.norm,
                high=high,
                halvings=settings.halvings,
                attack=settings.attack,
                generator=generator(seed, "minimum radius", number, device=x.device),
            )
            for number, (images, labels) in enumerate(parts)
        ]
    )
    measured()
    slopes = empirical_lipschitz(
        model, x, radius=near, steps=settings.lipschitz_steps, seed=seed, batch_size=batch_size
    ).double()
    measured()
    fooled = None
    if settings.square_queries:
        verdict = ensemble(
            model, x, y, threat_model, attacks=["square"], queries=settings.square_queries, seed=seed
        )
        if verdict.clean_accuracy > 0:
            fooled = 1 - verdict.robust_accuracy / max(verdict.clean_accuracy, 1e-12)
        measured()
    unbroken = radii.isinf()
    return ShapeRow(
        model=name,
        activations=names,
        shape=shape,
        clean_accuracy=found.clean,
        robust_accuracy=found.robust,
        radius=torch.where(unbroken, high, radii).double().mean().item(),
        radius_unbroken=unbroken.double().mean().item(),
        lipschitz=slopes.mean().item(),
        lipschitz_max=slopes.max().item(),
        square_success=fooled,
    )


def _shape_of(model: nn.Module, x: Tensor) -> tuple[tuple[str, ...], ActivationShape | None]:
    """Names of the distinct activations, and the mean of their shapes over the call sites."""
    try:
        sites = call_sites(model, x[:1])
    except CurvactError:
        return (), None
    known: dict[object, ActivationShape | None] = {}
    for site in sites:
        if identity_of(site.function) not in known:
            try:
                known[identity_of(site.function)] = activation_shape(site.function)
            except CurvactError:
                known[identity_of(site.function)] = None
    names = tuple(dict.fromkeys(site.activation for site in sites))
    shapes = [known[identity_of(site.function)] for site in sites]
    found = [shape for shape in shapes if shape is not None]
    if len(found) < len(shapes):
        return names, None

    def mean(field: str) -> float:
        return sum(float(getattr(shape, field)) for shape in found) / len(found)

    numbers = {
        f: mean(f) for f in ActivationShape.__dataclass_fields__ if f not in ("name", "positive_on_negative")
    }
    return names, ActivationShape(
        name=found[0].name, positive_on_negative=any(shape.positive_on_negative for shape in found), **numbers
    )
