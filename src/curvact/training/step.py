"""One training step: attack, gradient, weight perturbation, optimizer, moving average."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from curvact.activations import activation_parameters, clip_beta_gradient, constrain_, penalty
from curvact.attacks import ThreatModel
from curvact.models.folding import FollowingTwin
from curvact.training.inner_attack import BatchNorm, Fixed, InnerAttack, TrainingAttack
from curvact.training.methods import batch_norm
from curvact.training.methods.averaging import Average
from curvact.training.methods.entropy_sgd import EntropySGD
from curvact.training.methods.moreau import MoreauEnvelope
from curvact.training.methods.perturbation import add, awp, restore, sam
from curvact.training.objectives import ObjectiveValue, objective
from curvact.training.processes import Compute, average_gradients, precision
from curvact.training.recipe import Recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

FOLD_FROM = 16
"""Side in pixels of the images from which the attack runs on a twin without batch norm. On smaller
ones folding costs more than it saves.
"""

FP16_SCALE = 1024.0
"""Factor of the attack's loss in fp16, whose least positive number is 6e-8."""


@dataclass(frozen=True)
class Outcome:
    """One step.

    loss: mean over this process's part of the batch, on the device.
    right: number of images classified correctly, as they were trained on.
    gradient_evaluations: of the step.
    """

    loss: Tensor
    right: Tensor
    gradient_evaluations: int


def step_cost(recipe: Recipe) -> int:
    """Gradient evaluations of one step: the most, where weights are perturbed from some step on.

    >>> step_cost(Recipe(attack="pgd-5")), step_cost(Recipe(attack="pgd-5", perturbation="awp"))
    (6, 7)
    """
    entry = objective(recipe.objective, recipe.label_smoothing).entry
    again = 0 if recipe.method_of("perturbation")[0] == "none" else entry.passes
    return entry.cost(recipe.attack.steps) + again


class Trainer:
    """A model with its objective, optimizer and average: everything that one training step changes.

    random: of Entropy-SGD's noise. example: two training images, N×C×H×W, to find what can be
        folded for the attack. helper: what the objective asks, on the model's device.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        threat_model: ThreatModel,
        compute: Compute,
        fabric: Fabric,
        *,
        random: torch.Generator,
        example: Tensor,
        helper: nn.Module | None = None,
    ) -> None:
        self.model, self.recipe, self.threat_model, self.fabric = model, recipe, threat_model, fabric
        self.accumulate = compute.accumulate
        self.forward: Any = torch.compile(model) if compute.compiled else model
        self.objective = objective(recipe.objective, recipe.label_smoothing).asking(helper)
        self.perturbation, self.settings = recipe.method_of("perturbation")
        self.optimizer = make_optimizer(model, recipe, random)
        self.fabric_optimizer: Any = fabric.setup_optimizers(self.optimizer)
        self.average = _average(model, recipe)
        folds = not compute.compiled and example.shape[-1] >= FOLD_FROM and batch_norm.has_batch_norm(model)
        self.twin = _twin(model, example) if folds else None

    @property
    def entropy_sgd(self) -> EntropySGD | None:
        """The optimizer, if it is Entropy-SGD."""
        return self.optimizer if isinstance(self.optimizer, EntropySGD) else None

    @property
    def envelope(self) -> MoreauEnvelope | None:
        """The average, if it is that of ME-A and has begun."""
        average = self.average
        return average if isinstance(average, MoreauEnvelope) and average.begun else None

    @property
    def needs_recalibration(self) -> bool:
        """Whether others than the trained weights are evaluated, in a model with batch norm."""
        others = self.entropy_sgd is not None or self.average is not None
        return others and batch_norm.has_batch_norm(self.model)

    def step(
        self,
        x: Tensor,
        y: Tensor,
        *,
        whole: int,
        rate: float,
        perturbed: bool,
        random: torch.Generator,
        pulled: bool = False,
    ) -> Outcome:
        """Train on this process's part of a batch.

        whole: number of images of the batch over all processes. rate: the learning rate.
        perturbed: whether the second gradient of AWP or SAM is taken.
        random: of the attack's starts. pulled: whether the slow copy of ME-A pulls the weights.
        """
        if pulled and isinstance(self.average, MoreauEnvelope):
            self.average.begin()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        use_awp, use_sam = (perturbed and self.perturbation == name for name in ("awp", "sam"))
        # Batch norm's statistics count one pass: AWP's second, whose gradient makes the step, and
        # SAM's first, at w itself.
        values = self._gradient(x, y, whole, [self.attack(random)] * self.accumulate, frozen=use_awp)
        evaluations = values[0].gradient_evaluations
        pairs = []
        if perturbed:
            if use_sam:
                pairs = sam(self.model.parameters(), self.settings["rho"])
            else:
                pairs = awp(self.model.named_parameters(), self.settings["gamma"])
            add(pairs)
            same_images = [Fixed(value.x_adv, value.random_point) for value in values]
            second = self._gradient(x, y, whole, same_images, frozen=use_sam)
            evaluations += second[0].gradient_evaluations
        if use_sam:
            restore(pairs)
        self._limit_gradients()
        self.fabric_optimizer.step()
        if use_awp:
            add(pairs, -1)
        constrain_(self.model)
        if self.entropy_sgd is not None and self.entropy_sgd.outer_step_ended:
            self.entropy_sgd.follow(activation_parameters(self.model))
        if (
            self.average is not None
            and self.average.kind == "ema"
            and (self.envelope is not None or not isinstance(self.average, MoreauEnvelope))
            and (self.entropy_sgd is None or self.entropy_sgd.outer_step_ended)
        ):
            self.average.update()
        losses = [value.value.detach() * len(value.x_adv) for value in values]
        right = torch.cat([value.logits for value in values]).argmax(1) == y
        return Outcome(torch.stack(losses).sum() / len(y), right.sum(), evaluations)

    def attack(self, random: torch.Generator, mode: BatchNorm | None = None) -> InnerAttack:
        """The attack of the recipe. mode: of batch norm in it; None: the objective's own."""
        return InnerAttack(
            self.threat_model,
            self.recipe.attack,
            generator=random,
            batch_norm=mode,
            view=self._view,
            gradient_scale=FP16_SCALE if precision(self.fabric).startswith("16") else 1.0,
            check=False,
        )

    def _view(self, model: Any) -> Any:
        """The function that is attacked: in eval mode the twin without batch norm, if there is one."""
        return model if self.twin is None or self.model.training else self.twin.refresh()

    def _gradient(
        self, x: Tensor, y: Tensor, whole: int, attacks: Sequence[TrainingAttack], *, frozen: bool
    ) -> list[ObjectiveValue]:
        """Leave the gradient of the mean loss over the whole batch in the parameters.

        Returns a value for each part. frozen: batch norm's running statistics do not move.
        """
        self.fabric_optimizer.zero_grad(set_to_none=True)
        values = []
        with batch_norm.statistics_frozen(self.model) if frozen else nullcontext():
            parts = zip(x.chunk(self.accumulate), y.chunk(self.accumulate), attacks, strict=False)
            for images, labels, attack in parts:
                with self.fabric.autocast():
                    result = self.objective(self.forward, images, labels, attack)
                    loss = result.value
                    if self.recipe.beta_penalty:
                        loss = loss + penalty(self.model, self.recipe.beta_penalty)
                    if self.envelope is not None:
                        loss = loss + self.envelope.penalty()
                self.fabric.backward(loss * (len(labels) * self.fabric.world_size / whole))
                values.append(result)
        average_gradients(self.fabric, self.model)
        return values

    def _limit_gradients(self) -> None:
        if self.recipe.clip_norm is None and self.recipe.beta_clip is None:
            return
        self.fabric.strategy.precision.unscale_gradients(self.optimizer)
        if self.recipe.beta_clip is not None:
            clip_beta_gradient(self.model, self.recipe.beta_clip)
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)


def make_optimizer(model: nn.Module, recipe: Recipe, random: torch.Generator) -> torch.optim.Optimizer:
    """The optimizer of the recipe, on the trained parameters. random: of Entropy-SGD's noise."""
    name, settings = recipe.method_of("optimizer")
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": trained}]
    left_out = _not_decayed(model, recipe)
    if left_out:
        groups = [
            {"params": [p for p in trained if id(p) not in left_out]},
            {"params": [p for p in trained if id(p) in left_out], "weight_decay": 0.0},
        ]
    if name == "adamw":
        betas = (settings["beta1"], settings["beta2"])
        return torch.optim.AdamW(
            groups,
            lr=recipe.learning_rate,
            betas=betas,
            eps=settings["eps"],
            weight_decay=recipe.weight_decay,
        )
    shared: dict[str, Any] = {
        "lr": recipe.learning_rate,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
    }
    if name == "entropy-sgd":
        return EntropySGD(groups, **shared, **settings, generator=random)
    return torch.optim.SGD(groups, **shared, nesterov=recipe.nesterov and recipe.momentum > 0)


def _average(model: nn.Module, recipe: Recipe) -> Average | None:
    kind, settings = recipe.method_of("averaging")
    if kind == "none":
        return None
    own = {name: value for name, value in settings.items() if name != "start"}
    return MoreauEnvelope(model, **own) if kind == "me-a" else Average(model, kind=kind, **own)


NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def _not_decayed(model: nn.Module, recipe: Recipe) -> set[int]:
    """The ids of the parameters on which weight decay does not act."""
    found = set()
    if recipe.weight_decay_on == "weights":
        norms = [p for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)]
        found = {id(p) for p in (*norms, *(p for p in model.parameters() if p.dim() < 2))}
    if recipe.weight_decay_on == "weights" or not recipe.decay_activations:
        found |= {id(p) for p in activation_parameters(model)}
    return found


def _twin(model: nn.Module, example: Tensor) -> FollowingTwin | None:
    try:
        return FollowingTwin(model, example)
    except Exception:  # the network may be of any kind: one that cannot be folded is attacked as it is
        return None
