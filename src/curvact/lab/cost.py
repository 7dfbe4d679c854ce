"""What a sweep costs, before it runs: gradient evaluations, and floating point operations by part."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from itertools import islice
from typing import TYPE_CHECKING

import torch

from curvact.activations import activation_parameters
from curvact.attacks import PGD
from curvact.attacks.autoattack.ensemble import QUERIES, STEPS, Step, chosen_steps
from curvact.data import DATASETS
from curvact.errors import CurvactError
from curvact.lab.flops import Flops, count_flops
from curvact.lab.run import architecture_of, launched, prepare
from curvact.lab.spec import DataSpec, RunSpec
from curvact.models import build
from curvact.models.registry import skeleton
from curvact.random import generator
from curvact.training import Compute, Recipe, most_evaluations, objective
from curvact.training.batches import Batches
from curvact.training.evaluation import GUARD_IMAGES, RECALIBRATION_IMAGES
from curvact.training.schedule import perturbs_weights
from curvact.training.step import Trainer, step_cost

if TYPE_CHECKING:
    from lightning_fabric import Fabric

TRIED = 3
"""Batches of a trial. The fastest counts, but not the first."""


@dataclass(frozen=True)
class Cost:
    """Operations by part; a multiplication and an addition are two.

    training: the gradients of the weights. attack: the attack before each of them. validation:
    after each epoch. evaluation: the PGD on the trained network. autoattack: at most, see
    `AssumedAccuracy`. hessian: its products.
    gradient_evaluations: of training, at most: forward and backward passes of a batch.
    """

    training: float = 0.0
    attack: float = 0.0
    validation: float = 0.0
    evaluation: float = 0.0
    autoattack: float = 0.0
    hessian: float = 0.0
    gradient_evaluations: int = 0

    @property
    def total(self) -> float:
        """All operations."""
        return math.fsum(getattr(self, part) for part in PARTS)

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


PARTS = {
    "training": "training: gradients of weights",
    "attack": "training: attack",
    "validation": "validation",
    "evaluation": "PGD on the trained network",
    "autoattack": "AutoAttack",
    "hessian": "Hessian diagonal",
}
"""The parts of a `Cost`, in words."""

assert [*PARTS, "gradient_evaluations"] == [field.name for field in fields(Cost)]


@dataclass(frozen=True)
class AssumedAccuracy:
    """Of the trained network, in [0, 1]. AutoAttack's first attack meets the clean images that are
    classified correctly, the others meet those that are robust in the end.
    """

    clean: float = 0.85
    robust: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.robust <= self.clean <= 1:
            raise CurvactError(
                f"--clean {self.clean} --robust {self.robust}: fractions with 0 <= robust <= clean <= 1"
            )


TYPICAL = AssumedAccuracy()
"""About that of a ResNet-18 with PGD training on CIFAR-10, which has 0.83 and 0.49."""


def costs_of(specs: Iterable[RunSpec], accuracy: AssumedAccuracy = TYPICAL) -> list[Cost]:
    """The cost of each run. Runs that differ in other settings than network, images, objective and
    attack share one count.

    Images that are not here have the numbers of the catalog. Analyses (`spec.analyses`) are not counted.
    Raises CurvactError for data of a path that are not there.

    >>> from curvact.lab.spec import read_spec
    >>> (cost,) = costs_of([read_spec("digits")])
    >>> cost.gradient_evaluations, f"{cost.total:.2g}"
    (1620, '6.5e+10')
    """
    counted: dict[str, Flops] = {}
    images: dict[str, _Images] = {}
    found = []
    for spec in specs:
        name = spec.data.model_dump_json()
        if name not in images:
            images[name] = _images_of(spec.data)
        key = _shape(spec, images[name])
        if key not in counted:
            counted[key] = _flops_of(spec, images[name])
        found.append(_cost(spec, counted[key], images[name], accuracy))
    return found


@dataclass(frozen=True)
class _Images:
    """shape: C×H×W. Numbers of images."""

    shape: tuple[int, ...]
    classes: int
    train: int
    validation: int
    test: int


def _images_of(data: DataSpec) -> _Images:
    entry = DATASETS.get(data.name)
    try:
        splits = data.load()
    except CurvactError:
        if entry is None:
            raise
    else:
        sizes = [len(split) for split in (splits.train, splits.validation, splits.test)]
        return _Images(tuple(splits.train.images.shape[1:]), len(splits.train.classes), *sizes)
    channels, height, width = entry.shape
    size = data.size or entry.default_size
    validation = round(0.1 * entry.train)
    counts = [(entry.train - validation, data.train), (validation, data.validation), (entry.test, data.test)]
    sizes = [there if wanted is None else min(there, wanted) for there, wanted in counts]
    shape = (channels, size or height, size or width)
    return _Images(shape, len(entry.classes), *sizes)


_FLOAT = re.compile(r"(?<![\w.])-?\d+\.\d+(e-?\d+)?")


def _shape(spec: RunSpec, images: _Images) -> str:
    """What the operations for one image depend on. A number with a point in the name of an
    activation is no size.
    """
    named = spec.activation_from is not None
    return json.dumps(
        [
            spec.model.model_dump(mode="json"),
            _FLOAT.sub("", spec.activation),
            named,
            astuple(images)[:2],
            [spec.training.objective, spec.training.attack.steps, spec.training.label_smoothing],
            spec.threat_model.norm,
            spec.hessian is None,
        ]
    )


def _flops_of(spec: RunSpec, images: _Images) -> Flops:
    channels, _, width = images.shape
    normalization = ((0.5,) * channels, (0.25,) * channels)
    architecture = architecture_of(spec, (channels, width), images.classes, *normalization)
    model = skeleton(architecture)
    if model is None:
        model = build(**architecture, generator=generator(0, "initialization"))
    own = {id(p) for p in activation_parameters(model)}
    return count_flops(
        model,
        images.shape,
        spec.training,
        spec.threat_model,
        hessian=spec.hessian is not None,
        exclude=[name for name, p in model.named_parameters() if id(p) in own],
    )


def _cost(spec: RunSpec, flops: Flops, images: _Images, accuracy: AssumedAccuracy) -> Cost:
    recipe, asked = spec.training, spec.evaluation
    plan = _Plan.of(recipe, spec.data, images)
    validation = images.validation * _pgd(flops, recipe.validation or recipe.attack)
    if objective(recipe.objective).entry.single_step:
        validation += GUARD_IMAGES * _pgd(flops, PGD(max(10, recipe.attack.steps)))
    if recipe.method_of("averaging")[0] != "none" or recipe.method_of("optimizer")[0] == "entropy-sgd":
        validation += min(RECALIBRATION_IMAGES, plan.trained / plan.epochs) * (flops.attack + flops.training)
    attacked = images.test if asked.split == "test" else images.validation
    attacked = attacked if asked.images is None else min(attacked, asked.images)
    times = 2 if asked.weights == "both" else 1
    evaluated = attacked * times + min(asked.train_images, images.train)
    hessian = 0.0
    if spec.hessian is not None:
        products = 2 * spec.hessian.probes + 3 * spec.hessian.deflation
        count = min(spec.hessian.images, asked.train_images, images.train)
        hessian = 2 * count * (flops.second_order + products * flops.product)
    return Cost(
        training=(plan.trained + plan.perturbed) * flops.training,
        attack=plan.trained * flops.attack,
        validation=plan.epochs * validation,
        evaluation=evaluated * _pgd(flops, asked.attack),
        autoattack=_autoattack(spec, flops, images, min(attacked, asked.autoattack_images), accuracy),
        hessian=hessian,
        gradient_evaluations=plan.gradient_evaluations,
    )


def _pgd(flops: Flops, attack: PGD) -> float:
    """Clean and robust accuracy on one image, where all restarts run."""
    return 2 * flops.forward + attack.restarts * attack.steps * flops.gradient


@dataclass(frozen=True)
class _Plan:
    """epochs: begun ones. trained: images that pass a training step; perturbed: a second time, at
    perturbed weights. Synthetic images are among them.
    """

    epochs: int
    trained: float
    perturbed: float
    gradient_evaluations: int

    @classmethod
    def of(cls, recipe: Recipe, data: DataSpec, images: _Images) -> _Plan:
        share = 0.0 if data.extra is None else data.extra_fraction
        real = recipe.batch_size - round(recipe.batch_size * share)
        per_epoch = math.ceil(images.train / real)
        if images.train - (per_epoch - 1) * real < 2:
            per_epoch -= 1
        steps = recipe.epochs * per_epoch
        if recipe.budget is not None:
            steps = max(1, recipe.budget // step_cost(recipe))
        perturbed = 0
        if recipe.method_of("perturbation")[0] != "none":
            perturbed = sum(perturbs_weights(recipe, step, steps) for step in range(steps))
        batch = min(images.train, per_epoch * real) / per_epoch * recipe.batch_size / real
        most = most_evaluations(recipe, per_epoch)
        return cls(math.ceil(steps / per_epoch), steps * batch, perturbed * batch, most)


def _autoattack(spec: RunSpec, flops: Flops, images: _Images, count: int, accuracy: AssumedAccuracy) -> float:
    if count == 0:
        return 0.0
    parts = spec.evaluation.autoattack_parts
    steps = chosen_steps(parts, spec.threat_model.norm, images.classes, steps=STEPS, queries=QUERIES)
    standing = [accuracy.clean, *[accuracy.robust] * (len(steps) - 1)]
    work = (
        part * _withstood(step, flops, images.classes) for part, step in zip(standing, steps, strict=True)
    )
    return count * (flops.forward + math.fsum(work))


def _withstood(step: Step, flops: Flops, classes: int) -> float:
    """Operations for a point that withstands the attack, with the reference's passes."""
    runs = max(step.targets, 1) * step.restarts
    ranking = flops.forward if step.targets else 0.0
    if step.attack == "square":
        return (step.budget + 1) * flops.forward
    if step.attack == "fab":
        return runs * step.budget * (classes * flops.gradient + flops.forward)
    if step.attack == "fab-t":
        return ranking + runs * step.budget * (flops.gradient + flops.forward)
    return ranking + runs * (step.budget + 1) * step.averaged * flops.gradient


# ---- rates ----

_UNITS = {"GFLOPS": 1e9, "TFLOPS": 1e12, "PFLOPS": 1e15}


def parse_rate(text: str) -> float:
    """Operations a second.

    >>> parse_rate("40TFLOPS")
    40000000000000.0
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    unit = match[2].upper() if match else ""
    if match is None or unit not in _UNITS or float(match[1]) == 0:
        raise CurvactError(
            f"--rate {text}: a number > 0 with GFLOPS, TFLOPS or PFLOPS, such as 40TFLOPS, or measure"
        )
    return float(match[1]) * _UNITS[unit]


def rate_text(rate: float) -> str:
    """
    >>> rate_text(2.94e9), rate_text(4e13)
    ('2.94 GFLOPS', '40 TFLOPS')
    """
    unit = "GFLOPS" if rate < 1e12 else "TFLOPS"
    return f"{rate / _UNITS[unit]:.3g} {unit}"


def measured_rate(spec: RunSpec) -> float:
    """Counted operations a second of this machine, in the first batches of a run's training.

    On a CPU it computes with the threads that the spec says, or one, as a worker of a sweep does.
    Raises CurvactError where the run cannot begin.
    """
    images = _images_of(spec.data)
    flops = _flops_of(spec.model_copy(update={"hessian": None}), images)
    threads = torch.get_num_threads()
    torch.set_num_threads(spec.hardware.threads or 1)
    try:
        with launched(spec.hardware) as fabric:
            seconds = _seconds_an_image(spec, fabric)
    finally:
        torch.set_num_threads(threads)
    return (flops.training + flops.attack) / seconds


def _seconds_an_image(spec: RunSpec, fabric: Fabric) -> float:
    start = prepare(spec)
    data = start.data.to(fabric.device)
    trainer = Trainer(
        fabric.to_device(start.model),
        spec.training,
        spec.threat_model,
        Compute(fabric, spec.hardware.accumulate, spec.hardware.compile),
        fabric,
        random=generator(spec.seed, "langevin", device=fabric.device),
        example=data.train.inputs(slice(0, 2)),
        helper=None if start.helper is None else fabric.to_device(start.helper),
    )
    start.model.train()
    batches = Batches(data.train, start.extra, spec.training, spec.seed, fabric)
    random = generator(spec.seed, "attack", 1, device=fabric.device)
    each = []
    for x, y in islice(batches.of(1), TRIED):
        began = time.perf_counter()
        outcome = trainer.step(x, y, whole=len(y), rate=1e-6, perturbed=False, random=random)
        outcome.loss.item()  # waits for the device
        each.append((time.perf_counter() - began) / len(y))
    return min(each[1:] or each)
