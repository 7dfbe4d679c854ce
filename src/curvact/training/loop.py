"""One training loop for every objective and method, resumed bit for bit.

Every random number comes from an explicit generator. Gradients are averaged over processes in one
reduction, when they are complete: neither the attack nor a second pass waits for another process.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curvact.activations import current_curvature, current_parameters
from curvact.attacks import ThreatModel
from curvact.attacks.arguments import check_kind
from curvact.data import ExtraImages, Splits
from curvact.errors import CurvactError
from curvact.models.hashing import model_hash
from curvact.models.layers import Dropout
from curvact.random import generator
from curvact.training.batches import Batches, check_fit
from curvact.training.evaluation import evaluated_weights, recalibration_cost, stronger_accuracy, validate
from curvact.training.guard import overfitting
from curvact.training.objectives import objective
from curvact.training.processes import (
    ONE_PROCESS,
    Compute,
    copy_weights,
    first_decides,
    gather,
    precision,
    process_sum,
    rank_key,
)
from curvact.training.progress import SILENT, Diverged, Epoch, Step, Watch
from curvact.training.recipe import Recipe
from curvact.training.schedule import (
    averages_epoch,
    extension_problem,
    learning_rate,
    perturbs_weights,
    pulls_weights,
)
from curvact.training.state import difference, latest_state, replace_state
from curvact.training.step import Trainer, step_cost

CHECK_EVERY = 20
"""Steps between two looks at the losses: the only waits for the device within an epoch."""

SAVE_EVERY = 300.0
"""Seconds between two saves of the state within an epoch."""


def fit(
    model: nn.Module,
    data: Splits,
    recipe: Recipe,
    threat_model: ThreatModel,
    *,
    seed: int = 0,
    extra: ExtraImages | None = None,
    helper: nn.Module | None = None,
    compute: Compute = ONE_PROCESS,
    state: str | Path | None = None,
    watch: Watch = SILENT,
) -> list[Epoch]:
    """Train the model in place. Returns what happened, epoch by epoch.

    data: only the training and the validation split are used. extra: synthetic images, with their
    fraction of each batch; an epoch is one pass over the real images.
    helper: the trained network that the objective "hat" asks. It does not change, but for its device.
    compute: device, precision, processes. watch: functions that are called on the way.
    state: a file that keeps the whole state, saved at the end of each epoch and every five minutes.
        If it exists, training goes on from it, to bit-identical weights on a CPU. A damaged one gives
        way to the one before it, with a warning, or to a new start. The state of a run with other
        epochs is extended where `curvact.training.extension_problem` finds nothing against it.

    After training the model holds the weights that were evaluated last. Where training ended because they
    had overfitted catastrophically, it holds those of the epoch before. A last batch with less than two
    images for each process is left out.

    Raises Diverged, within a few steps, when the loss is not finite or a thousand times that of
    guessing. Raises CurvactError, before training, for a model that does not take the images or lacks
    an output for a label; for a helper that is missing or that the objective does not ask; for a state
    of another run, and for a run that cannot be extended.

    >>> from curvact.data import load
    >>> from curvact.models import MiniResNet
    >>> model = MiniResNet("rctaf(curvature=6)", channels=1, width=2)
    >>> recipe = Recipe(epochs=1, attack="pgd-1")
    >>> [epoch.epoch for epoch in fit(model, load("digits"), recipe, ThreatModel("linf", 0.2))]
    [1]
    """
    for name, value, kind in (
        ("data", data, "Splits"),
        ("recipe", recipe, "Recipe"),
        ("threat_model", threat_model, "ThreatModel"),
        ("seed", seed, "int"),
    ):
        check_kind("fit", name, value, kind)
    state = None if state is None else Path(state)
    with torch.enable_grad():
        run = _Run(model, data, recipe, threat_model, seed, extra, helper, compute)
        before = None if state is None else latest_state(state)
        if state is not None and before is not None:
            run.load(before, state)
        return run.train(state, watch)


class _Run:
    """A training and its place: epoch, batch, step, costs, losses of the epoch, history.

    guarded: PGD accuracies after each epoch of a single-step objective; None for other objectives.
    weights_before: those that were evaluated after the last epoch that did not collapse, where guarded.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Splits,
        recipe: Recipe,
        threat_model: ThreatModel,
        seed: int,
        extra: ExtraImages | None,
        helper: nn.Module | None,
        compute: Compute,
    ) -> None:
        self.recipe, self.threat_model, self.seed, self.compute = recipe, threat_model, seed, compute
        _check_helper(helper, model, recipe)
        self.fabric = compute.fabric_for(model)
        self.model = self.fabric.to_device(model)
        device = self.fabric.device
        self.data = data if data.train.images.device == device else data.to(device)
        check_fit(self.model, self.data, extra, None if helper is None else self.fabric.to_device(helper))
        self.batches = Batches(self.data.train, extra, recipe, seed, self.fabric)
        self.trainer = Trainer(
            self.model,
            recipe,
            threat_model,
            compute,
            self.fabric,
            random=generator(seed, "langevin", device=device),
            example=self.data.train.inputs(slice(0, 2)),
            helper=helper,
        )
        self.helper = None if helper is None else _fingerprint(helper)
        self.guarded: list[float] | None = [] if self.trainer.objective.entry.single_step else None
        copy_weights(self.fabric, self.model)

        self.epoch, self.batch, self.step, self.evaluations = 1, 0, 0, 0
        self.attack_random = self._attack_generator()
        self.losses: list[Tensor] = []
        self.right: list[Tensor] = []
        self.images = 0
        self.checked = 0
        self.rate = recipe.learning_rate
        self.history: list[Epoch] = []
        self.weights_before: dict[str, Tensor] | None = None
        self.total = recipe.epochs * self.batches.per_epoch
        if recipe.budget is not None:
            left = recipe.budget - recalibration_cost(self.trainer, self.batches)
            self.total = max(1, left // step_cost(recipe))
        self.epochs = math.ceil(self.total / self.batches.per_epoch)

    def train(self, state: Path | None, watch: Watch) -> list[Epoch]:
        saved = time.monotonic()
        while self.epoch <= self.epochs and not (self.history and self.history[-1].note):
            started = time.perf_counter()
            self.model.train()
            for x, y in islice(self.batches.of(self.epoch), self.batch, None):
                if self.step == self.total or self.batch == self.batches.per_epoch:
                    break
                self._train_batch(x, y)
                if len(self.losses) % CHECK_EVERY == 0:
                    watch.on_step(self._check())
                    due = time.monotonic() - saved > SAVE_EVERY
                    if state is not None and first_decides(self.fabric, due):
                        self.save(state)
                        saved = time.monotonic()
            watch.on_step(self._check())
            enters = averages_epoch(self.recipe, self.step, self.total)
            with evaluated_weights(self.trainer, self.batches, self.epoch, enter_average=enters):
                epoch = self._evaluate(started)
                if not epoch.note:
                    self._keep(epoch, watch)
            self._next_epoch(epoch)
            if state is not None:
                self.save(state)
                saved = time.monotonic()
            watch.on_epoch(epoch)
        self._keep_evaluated()
        return self.history

    def _train_batch(self, x: Tensor, y: Tensor) -> None:
        self.rate = learning_rate(self.recipe, self.step, self.total)
        outcome = self.trainer.step(
            x,
            y,
            whole=self.batches.size(self.batch),
            rate=self.rate,
            perturbed=perturbs_weights(self.recipe, self.step, self.total),
            pulled=pulls_weights(self.recipe, self.step, self.total),
            random=self.attack_random,
        )
        self.batch, self.step = self.batch + 1, self.step + 1
        self.evaluations += outcome.gradient_evaluations
        self.losses.append(outcome.loss)
        self.right.append(outcome.right)
        self.images += len(y)

    def _check(self) -> Step:
        """Look at the losses since the last look. Raises Diverged for a large or infinite one."""
        start, self.checked = self.checked, len(self.losses)
        values = torch.stack(self.losses[start:]) if self.losses[start:] else torch.zeros(0)
        bound = 1000 * math.log(max(2, len(self.data.train.classes)))
        wrong = (~values.isfinite() | (values.abs() > bound)).nonzero()
        if len(wrong):
            back = len(values) - int(wrong[0])
            step, batch = self.step - back, self.batch - back
            rate = learning_rate(self.recipe, step, self.total)
            first = ", ".join(map(str, self.batches.first_images(self.epoch, batch)))
            images = f", training images {first}, …" if first else ""
            raise Diverged(
                f"the loss became {float(values[int(wrong[0])])} at step {step} of {self.total} "
                f"(epoch {self.epoch}, learning rate {rate:.3g}, batch {batch} of the epoch{images})"
            )
        loss = float(values[-1]) if len(values) else math.nan
        return Step(self.step, self.total, self.epoch, loss, self.evaluations)

    def _evaluate(self, started: float) -> Epoch:
        zero = torch.zeros((), device=self.fabric.device)
        sums = [torch.stack(kept or [zero]).double().sum() for kept in (self.losses, self.right)]
        counts = torch.tensor([len(self.losses), self.images], dtype=torch.float64, device=self.fabric.device)
        totals, counts = process_sum(self.fabric, torch.stack(sums)), process_sum(self.fabric, counts)
        loss, right = (totals / counts.clamp_min(1)).tolist()
        clean, robust = validate(self.trainer, self.data.validation, self.seed, self.epoch)
        note = ""
        if self.guarded is not None:
            self.guarded.append(stronger_accuracy(self.trainer, self.data.train, self.seed, self.epoch))
            note = overfitting(self.guarded)
        return Epoch(
            epoch=self.epoch,
            loss=loss,
            train_accuracy=right,
            validation_accuracy=clean,
            validation_robust_accuracy=robust,
            learning_rate=self.rate,
            gradient_evaluations=self.evaluations + recalibration_cost(self.trainer, self.batches),
            parameters=_learned(self.model),
            note=note,
            seconds=round(time.perf_counter() - started, 3),
        )

    def _keep(self, epoch: Epoch, watch: Watch) -> None:
        """Hand on the weights of an epoch, which the model holds now."""
        if self.guarded is not None:
            self.weights_before = _copied(self.model)
        best = epoch.validation_robust_accuracy > max(
            (e.validation_robust_accuracy for e in self.history), default=-1.0
        )
        if self.fabric.is_global_zero:
            watch.on_evaluated(self.model, epoch, best)

    def _next_epoch(self, epoch: Epoch) -> None:
        self.history.append(epoch)
        self.epoch, self.batch = self.epoch + 1, 0
        self.losses, self.right, self.images, self.checked = [], [], 0, 0
        self.attack_random = self._attack_generator()

    def _keep_evaluated(self) -> None:
        """Leave in the model the weights that were evaluated last, and did not collapse."""
        if self.history and self.history[-1].note and self.weights_before is not None:
            self.model.load_state_dict(self.weights_before)
            return
        if self.trainer.average is None and self.trainer.entropy_sgd is None:
            return
        with evaluated_weights(self.trainer, self.batches, self.epoch - 1):
            final = _copied(self.model)
        self.model.load_state_dict(final)

    def _attack_generator(self) -> torch.Generator:
        key = rank_key(self.fabric)
        return generator(self.seed, "attack", self.epoch, *key, device=self.fabric.device)

    def _identity(self) -> dict[str, Any]:
        """Settings that a run shares with the state that it goes on from, but for the epochs."""
        extra = self.batches.extra
        return {
            "recipe": self.recipe.as_dict(),
            "threat_model": [self.threat_model.norm, self.threat_model.epsilon],
            "seed": self.seed,
            "data": [self.data.train.sha256, self.data.validation.sha256],
            "extra": None if extra is None else [extra.sha256, extra.fraction],
            "helper": self.helper,
            "parameters": [[name, list(p.shape)] for name, p in self.model.named_parameters()],
            "processes": self.fabric.world_size,
            "accumulate": self.compute.accumulate,
            "precision": precision(self.fabric),
        }

    def save(self, path: Path) -> None:
        """Write the whole state; of several processes the first one writes."""
        randoms = [self.attack_random, *self._dropout_generators()]
        by_process = gather(self.fabric, [random.get_state() for random in randoms])
        if not self.fabric.is_global_zero:
            return
        average = self.trainer.average
        tree = {
            "schema": 2,
            "identity": self._identity(),
            "model": dict(self.model.state_dict()),
            "optimizer": self.trainer.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "average": None if average is None else average.state_dict(),
            "guarded": self.guarded,
            "weights_before": self.weights_before,
            "randoms": by_process,
            "place": [self.epoch, self.batch, self.step, self.evaluations, self.images, self.rate],
            "losses": torch.stack(self.losses) if self.losses else None,
            "right": torch.stack(self.right) if self.right else None,
            "history": [epoch.as_dict() for epoch in self.history],
        }
        replace_state(path, tree)

    def load(self, tree: Any, path: Path) -> None:
        """Go on from a state. Raises CurvactError for the state of another run."""
        problem = self._problem(tree)
        if problem:
            raise CurvactError(f"the run in {path} cannot go on with these settings: {problem}")
        self.model.load_state_dict(tree["model"])
        self.trainer.optimizer.load_state_dict(tree["optimizer"])
        self.fabric.strategy.precision.load_state_dict(tree["precision"])
        if self.trainer.average is not None:
            self.trainer.average.load_state_dict(tree["average"])
        self.guarded, self.weights_before = tree["guarded"], tree["weights_before"]
        self.epoch, self.batch, self.step, self.evaluations, self.images, self.rate = tree["place"]
        device = self.fabric.device
        self.losses = list(tree["losses"].to(device)) if tree["losses"] is not None else []
        self.right = list(tree["right"].to(device)) if tree["right"] is not None else []
        self.checked = len(self.losses)
        self.history = [Epoch(**epoch) for epoch in tree["history"]]
        randoms = [self.attack_random, *self._dropout_generators()]
        for random, value in zip(randoms, tree["randoms"][self.fabric.global_rank], strict=True):
            random.set_state(value)

    def _problem(self, tree: Any) -> str:
        theirs, ours = tree.get("identity", {}), self._identity()
        for key, value in ours.items():
            if key != "recipe" and theirs.get(key) != value:
                return f"another {key}{difference(theirs.get(key), value)}; use another folder"
        try:
            before = Recipe(**theirs["recipe"])
        except (KeyError, TypeError, CurvactError):
            return "its recipe cannot be read; use another folder"
        return extension_problem(before, self.recipe, tree["place"][2], self.batches.per_epoch)

    def _dropout_generators(self) -> list[torch.Generator]:
        return [m.masks(self.fabric.device) for m in self.model.modules() if isinstance(m, Dropout)]


def _check_helper(helper: nn.Module | None, model: nn.Module, recipe: Recipe) -> None:
    """CurvactError for a helper that the objective cannot ask."""
    objective(recipe.objective, recipe.label_smoothing).asking(helper)
    if helper is None:
        return
    theirs = [*helper.parameters(), *helper.buffers()]
    if any(value.is_meta for value in theirs):
        raise CurvactError("helper: its weights are on the meta device, which holds no values")
    ours = {id(value) for value in (*model.parameters(), *model.buffers())}
    if any(id(value) in ours for value in theirs):
        raise CurvactError("helper: it shares weights with the network that is trained; give another one")


def _fingerprint(helper: nn.Module) -> str:
    """What tells helpers apart: their weights, and their modules in words."""
    modules = re.sub(r" at 0x[0-9a-f]+", "", repr(helper))
    return f"{model_hash(helper)} {hashlib.sha256(modules.encode()).hexdigest()}"


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _learned(model: nn.Module) -> dict[str, float]:
    """Parameters of learnable activations, and the κ they give, where it is finite."""
    known = {name: value for name, value in current_curvature(model).items() if math.isfinite(value)}
    curvature = {f"{name}.curvature": value for name, value in known.items()}
    return {**current_parameters(model), **curvature}
