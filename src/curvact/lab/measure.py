"""What is measured of a trained network: accuracies, the Hessian diagonal, activations, analyses."""

from __future__ import annotations

from torch import nn

from curvact.activations import Activation, activation_parameters, known_curvature
from curvact.analysis import Loss, diagonal_norms
from curvact.analysis.effective_curvature import effective_curvature
from curvact.attacks import Accuracy, accuracy, ensemble
from curvact.data import Dataset, Splits
from curvact.errors import CurvactError
from curvact.lab.analyses import run_analyses
from curvact.lab.spec import RunSpec
from curvact.models.modes import mode
from curvact.random import generator
from curvact.training import Diverged

Numbers = dict[str, float]


def attacked(model: nn.Module, images: Dataset, spec: RunSpec, split: str) -> Accuracy:
    """Accuracy of the model on the images of a split, clean and under the attack of the spec."""
    device = images.images.device
    random = generator(spec.seed, f"evaluation/{split}", device=device)
    attack = spec.evaluation.attack.on(spec.threat_model, generator=random)
    return accuracy(model, images.inputs(), images.labels, attack)


def evaluated_images(data: Splits, spec: RunSpec) -> Dataset:
    """The images of the split that the spec attacks."""
    split = data.test if spec.evaluation.split == "test" else data.validation
    return split.first(spec.evaluation.images)


def accuracies(model: nn.Module, data: Splits, spec: RunSpec) -> Numbers:
    """Clean and robust accuracy on the split that the spec attacks."""
    return _named(attacked(model, evaluated_images(data, spec), spec, spec.evaluation.split), spec)


def _named(found: Accuracy, spec: RunSpec) -> Numbers:
    name = spec.evaluation.metric
    return {name("clean_accuracy"): found.clean, name("robust_accuracy"): found.robust}


def measure(model: nn.Module, data: Splits, spec: RunSpec) -> Numbers:
    """Everything that the spec asks of the trained network, by name. Accuracies are fractions.

    Raises Diverged where a number of the trained network is not finite: that ends this run, not a
    sweep.
    """
    images = evaluated_images(data, spec)
    found = attacked(model, images, spec, spec.evaluation.split)
    train = attacked(model, data.train.first(spec.evaluation.train_images), spec, "train")
    numbers = {
        **_named(found, spec),
        "train_clean_accuracy": train.clean,
        "train_robust_accuracy": train.robust,
    }
    if spec.evaluation.autoattack_images:
        numbers |= _part_of_autoattack(model, images, found, spec)
    if spec.hessian is not None:
        numbers |= _hessian(model, data, train, spec)
    if spec.analyses is not None:
        try:
            numbers |= run_analyses(model, data, spec.threat_model, spec.analyses, seed=spec.seed)
        except CurvactError as error:
            raise Diverged(f"an analysis of the trained network: {error}") from None
    return numbers


def _part_of_autoattack(model: nn.Module, images: Dataset, pgd: Accuracy, spec: RunSpec) -> Numbers:
    """Parts of AutoAttack on the first images of the split, and PGD's accuracy on the same images."""
    some = images.first(spec.evaluation.autoattack_images)
    with mode(model, training=False):
        result = ensemble(
            model,
            some.inputs(),
            some.labels,
            spec.threat_model,
            attacks=spec.evaluation.autoattack_parts,
            mode=spec.evaluation.autoattack_mode,
            seed=spec.seed,
        )
    name = spec.evaluation.metric
    return {
        name("subset_robust_accuracy"): result.robust_accuracy,
        name("subset_pgd_accuracy"): pgd.robust_correct[: len(some)].double().mean().item(),
    }


def _hessian(model: nn.Module, data: Splits, train: Accuracy, spec: RunSpec) -> Numbers:
    """Norms of diag H of the clean loss and of the adversarial loss, the perturbation held fixed."""
    assert spec.hessian is not None
    count = min(spec.hessian.images, len(train.x_adv))
    clean = data.train.first(count)
    own = {id(p) for p in activation_parameters(model)}
    exclude = [name for name, p in model.named_parameters() if id(p) in own]
    numbers: Numbers = {}
    for label, x in (("clean", clean.inputs()), ("adversarial", train.x_adv[:count])):
        random = generator(spec.seed, f"hessian/{label}", device=x.device)
        try:
            norms = diagonal_norms(
                Loss(model, x, clean.labels, exclude=exclude),
                probes=spec.hessian.probes,
                deflation=spec.hessian.deflation,
                generator=random,
            )
        except CurvactError as error:
            raise Diverged(f"the Hessian of the {label} loss: {error}") from None
        for name in ("rms", "gradient_relative", "scale_invariant"):
            estimate = getattr(norms, name)
            numbers[f"{label}_hessian_{name}"] = estimate.value
            numbers[f"{label}_hessian_{name}_se"] = estimate.standard_error
    return numbers


def of_activations(model: nn.Module, data: Splits, spec: RunSpec, when: str) -> Numbers:
    """κ (the largest in the network), effective curvature (the mean over call sites), and
    parameters.

    when: "start" (before training: batch norm with the statistics of the batch) or "end".
    """
    kappas = [known_curvature(m) for m in model.modules() if isinstance(m, Activation)]
    known = [k for k in kappas if k is not None]
    numbers: Numbers = {"extra_parameters": sum(p.numel() for p in activation_parameters(model))}
    if known:
        numbers[f"curvature_{when}"] = max(known)
    images = data.train.first(spec.evaluation.train_images).inputs()
    try:
        mean = effective_curvature(model, images, batch_statistics=when == "start").mean
    except CurvactError:  # no activation is a function of one number, such as with Sparta's gates
        mean = None
    if mean is not None:
        numbers[f"effective_curvature_{when}"] = mean
    return numbers


__all__ = ["accuracies", "attacked", "evaluated_images", "measure", "of_activations"]
