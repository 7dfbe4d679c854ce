"""One short training loop on lightning-fabric: any objective, any weight-space method, resumed exactly.

Every random number comes from an explicit generator. Gradients are averaged over processes once they are complete, by one
reduction of all of them: neither the attack nor a second pass waits for another process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from curvact.activations import (
    activation_parameters,
    clip_beta_gradient,
    constrain_,
    current_curvature,
    current_parameters,
    penalty,
)
from curvact.attacks import PGD, Attack, ThreatModel, accuracy
from curvact.attacks.folding import FollowingTwin
from curvact.data import (
    Augmentation,
    ExtraImages,
    Splits,
    batches_per_epoch,
    epoch_batches,
    epoch_order,
    whole_batch,
)
from curvact.errors import CurvactError
from curvact.models.layers import Dropout
from curvact.random import generator
from curvact.training import batch_norm
from curvact.training.averaging import Average
from curvact.training.entropy_sgd import EntropySGD
from curvact.training.guard import OverfittingGuard
from curvact.training.inner_attack import InnerAttack, fixed
from curvact.training.objectives import Loss, objective
from curvact.training.perturbation import add, awp, restore, sam
from curvact.training.recipe import AVERAGES, OPTIMIZERS, PERTURBATIONS, Recipe, learning_rate, method
from curvact.training.state import load_state, save_state

CHECK_EVERY = 20
"""Steps between two looks at the losses: the only waits for the device within an epoch."""

RECALIBRATION_IMAGES = 512
"""Training images, attacked, from which batch norm gets its statistics for weights that were not trained on directly."""

GUARD_IMAGES = 512
"""Training images on which single-step training is watched."""

FOLD_FROM = 16
"""Side of the images from which the attack runs on a twin without batch norm: below, folding costs what it saves."""

FP16_SCALE = 1024.0
"""What the attack's loss is multiplied by in fp16, whose least positive number is 6e-8."""


class Diverged(RuntimeError):
    """Training was stopped because of the loss; the message names the step, the learning rate and the batch."""


@dataclass(frozen=True)
class Epoch:
    """Means over one epoch's training batches, as they were trained on, and accuracies on the validation split after it.

    train_accuracy: on the (attacked) training batches. gradient_evaluations: forward-backward passes of a batch since the
    start, attacks included, validation not, and of the recalibrations of batch norm one, as the last is all that counts.
    parameters: of learnable activations, and their κ.
    seconds: of this epoch, validation included. note: why training ended early, if it did.
    """

    epoch: int
    loss: float
    train_accuracy: float
    validation_accuracy: float
    validation_robust_accuracy: float
    learning_rate: float
    gradient_evaluations: int
    parameters: dict[str, float] = field(default_factory=dict)
    note: str = ""
    seconds: float = field(default=0.0, compare=False)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Step:
    """Where training is: `step` of `total`, in `epoch`, with the latest loss."""

    step: int
    total: int
    epoch: int
    loss: float
    gradient_evaluations: int


def fit(
    model: nn.Module,
    data: Splits,
    recipe: Recipe,
    threat_model: ThreatModel,
    *,
    seed: int,
    extra: ExtraImages | None = None,
    fabric: Fabric | None = None,
    accumulate: int = 1,
    compiled: bool = False,
    state: Path | None = None,
    save_every: float = 300.0,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_step: Callable[[Step], None] = lambda step: None,
    on_evaluated: Callable[[nn.Module, Epoch, bool], None] = lambda model, epoch, best: None,
) -> list[Epoch]:
    """Train the model in place and return what happened, epoch by epoch.

    extra: synthetic images, with their fraction of each batch. An epoch is one pass over the real images.
    fabric: device, precision and processes, launched; one process on the model's device and in its precision if None.
        Who launches processes also takes their group down (torch.distributed.destroy_process_group).
    accumulate: parts in which a batch goes through the network, to save memory. compiled: run the network by `torch.compile`.
    state: a file that the whole state is kept in, at the end of every epoch and every `save_every` seconds. If it is there,
    training goes on from it, to bit-identical weights on a CPU.
    on_step: called every few steps. on_evaluated: called as `on_evaluated(model, epoch, best)` while the model holds the weights
    that were evaluated (the average, if there is one); best: this epoch's validation robust accuracy is the highest so far.

    The trained model holds the weights that the last epoch evaluated. A last batch too small for each process to have two images
    is left out. Only the training and the validation split are looked at, never the test split.

    Raises Diverged, within a few steps, when the loss is not finite or a thousand times that of guessing; CurvactError for
    a state of another run.

    >>> from curvact.data import load
    >>> from curvact.models import MiniResNet
    >>> model = MiniResNet("rctaf(curvature=6)", channels=1, width=2)
    >>> recipe = Recipe(epochs=1, attack_steps=1)
    >>> [epoch.epoch for epoch in fit(model, load("digits"), recipe, ThreatModel("linf", 0.2), seed=0)]
    [1]
    """
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise CurvactError(f"accumulate={accumulate!r}: a whole number of parts >= 1")
    if fabric is None:
        fabric = _fabric_of(model)
    training = _Training(model, data, recipe, threat_model, seed, extra, fabric, accumulate, compiled)
    if state is not None and state.exists():
        training.load_state_dict(load_state(state), state)
    return training.run(state, save_every, on_epoch, on_step, on_evaluated)


def _fabric_of(model: nn.Module) -> Fabric:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return Fabric(accelerator=device.type, devices=1 if device.type == "cpu" else [device.index or 0])


class _Training:
    """What changes while a model is trained."""

    def __init__(
        self,
        model: nn.Module,
        data: Splits,
        recipe: Recipe,
        threat_model: ThreatModel,
        seed: int,
        extra: ExtraImages | None,
        fabric: Fabric,
        accumulate: int,
        compiled: bool,
    ) -> None:
        self.fabric, self.accumulate, self.seed = fabric, accumulate, seed
        self.recipe, self.threat_model = recipe, threat_model
        self.extra = extra
        self.model = fabric.to_device(model)
        self.data = data if data.train.images.device == fabric.device else data.to(fabric.device)
        self.forward: Any = torch.compile(self.model) if compiled else self.model
        self.objective = objective(recipe.objective, recipe.label_smoothing)
        self.guard = OverfittingGuard() if self.objective.single_step else None
        self.augmentation = Augmentation(crop=recipe.crop, flip=recipe.flip, cutout=recipe.cutout)
        self.perturbation, self.perturbing = method("perturbation", recipe.perturbation, PERTURBATIONS)
        self.inner_optimizer = _optimizer(
            self.model, recipe, generator(seed, "langevin", device=fabric.device)
        )
        self.optimizer: Any = fabric.setup_optimizers(self.inner_optimizer)
        kind, settings = method("averaging", recipe.averaging, AVERAGES)
        self.average = None if kind == "none" else Average(self.model, kind=kind, **_only(settings, "decay"))
        self.average_from = float(settings.get("start", 0.0))
        self.twin = self._twin() if not compiled and self._folds() else None
        self._same_start()

        self.epoch, self.batch, self.step, self.evaluations = 1, 0, 0, 0
        self.attack_random = generator(seed, "attack", 1, *self._rank(), device=fabric.device)
        self.losses: list[Tensor] = []
        self.right: list[Tensor] = []
        self.seen = 0
        self.checked = 0
        self.rate = recipe.learning_rate
        self.history: list[Epoch] = []
        self.before: dict[str, Tensor] | None = None
        self.steps_per_epoch = batches_per_epoch(self.data.train, recipe.batch_size, extra)
        if not self._is_large_enough(self.steps_per_epoch - 1):
            self.steps_per_epoch -= 1
        if self.steps_per_epoch < 1:
            raise CurvactError(
                f"{len(self.data.train)} training images: at least two for each of {fabric.world_size} processes"
            )
        self.total = recipe.epochs * self.steps_per_epoch
        if recipe.budget is not None:
            self.total = max(1, (recipe.budget - self.recalibration_cost()) // self.cost())
        self.epochs = math.ceil(self.total / self.steps_per_epoch)

    # -- the steps --------------------------------------------------------------------------------------------------------

    def run(
        self,
        state: Path | None,
        save_every: float,
        on_epoch: Callable[[Epoch], None],
        on_step: Callable[[Step], None],
        on_evaluated: Callable[[nn.Module, Epoch, bool], None],
    ) -> list[Epoch]:
        saved = time.monotonic()
        while self.epoch <= self.epochs and not (self.history and self.history[-1].note):
            started = time.perf_counter()
            self.model.train()
            for x, y in islice(self._batches(), self.batch, None):
                if self.step == self.total or self.batch == self.steps_per_epoch:
                    break
                self._train_batch(x, y)
                self.batch += 1
                if len(self.losses) % CHECK_EVERY == 0:
                    on_step(self._check())
                    if state is not None and self._all_agree(time.monotonic() - saved > save_every):
                        self._save(state)
                        saved = time.monotonic()
            on_step(self._check())
            with self._evaluated():
                epoch = self._epoch(started)
                best = epoch.validation_robust_accuracy > max(
                    (e.validation_robust_accuracy for e in self.history), default=-1.0
                )
                if self.fabric.is_global_zero:
                    on_evaluated(self.model, epoch, best)
            self._next_epoch(epoch)
            if state is not None:
                self._save(state)
                saved = time.monotonic()
            on_epoch(epoch)
        self._settle()
        return self.history

    def _train_batch(self, x: Tensor, y: Tensor) -> None:
        whole = self._whole(self.batch)
        self.rate = learning_rate(self.recipe, self.step, self.total)
        for group in self.inner_optimizer.param_groups:
            group["lr"] = self.rate
        losses = self._gradient(x, y, whole, [self._attack()] * self.accumulate, self._frozen_in_first())
        again = [fixed(loss.x_adv, loss.random_point) for loss in losses]
        pairs = None
        if self.perturbation == "sam":
            pairs = sam(self.model.parameters(), self.perturbing["rho"])
            add(pairs)
            second = self._gradient(x, y, whole, again, batch_norm.statistics_frozen(self.model))
            restore(pairs)
            self.evaluations += second[0].gradient_evaluations
        elif self._awp_acts():
            pairs = awp(self.model.named_parameters(), self.perturbing["gamma"])
            add(pairs)
            second = self._gradient(x, y, whole, again)
            self.evaluations += second[0].gradient_evaluations
        self._limit_gradients()
        self.optimizer.step()
        if pairs is not None and self.perturbation == "awp":
            add(pairs, -1)
        constrain_(self.model)
        ended = not isinstance(self.inner_optimizer, EntropySGD) or self.inner_optimizer.outer_step_ended
        if self.average is not None and self.average.kind == "ema" and ended:
            self.average.update()
        self.step += 1
        self.evaluations += losses[0].gradient_evaluations
        self.losses.append(
            torch.stack([loss.value.detach() * len(loss.x_adv) for loss in losses]).sum() / len(y)
        )
        self.right.append((torch.cat([loss.logits for loss in losses]).argmax(1) == y).sum())
        self.seen += len(y)

    def _whole(self, batch: int) -> int:
        return whole_batch(self.data.train, self.recipe.batch_size, batch, self.extra)

    def _is_large_enough(self, batch: int) -> bool:
        """Whether each process has two images of it: batch norm has no variance of one value."""
        return self._whole(batch) >= 2 * self.fabric.world_size

    def _gradient(
        self, x: Tensor, y: Tensor, whole: int, attacks: list[Any], context: Any = None
    ) -> list[Loss]:
        """Leave the gradient of the whole batch's mean loss in the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        with context or nullcontext():
            for part, labels, attack in zip(
                x.chunk(self.accumulate), y.chunk(self.accumulate), attacks, strict=False
            ):
                with self.fabric.autocast():
                    loss = self.objective(self.forward, part, labels, attack)
                    value = loss.value
                    if self.recipe.beta_penalty:
                        value = value + penalty(self.model, self.recipe.beta_penalty)
                self.fabric.backward(value * (len(labels) * self.fabric.world_size / whole))
                losses.append(loss)
        if self.fabric.world_size > 1:
            self._average_gradients()
        return losses

    def _average_gradients(self) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = self._mean(torch.cat([g.flatten() for g in gradients]))
        place = 0
        for g in gradients:
            g.copy_(flat[place : place + g.numel()].view_as(g))
            place += g.numel()

    def _limit_gradients(self) -> None:
        if self.recipe.clip_norm is None and self.recipe.beta_clip is None:
            return
        self.fabric.strategy.precision.unscale_gradients(self.inner_optimizer)
        if self.recipe.beta_clip is not None:
            clip_beta_gradient(self.model, self.recipe.beta_clip)
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)

    def _awp_acts(self) -> bool:
        return self.perturbation == "awp" and self.step >= self.perturbing["start"] * self.total

    def _frozen_in_first(self) -> Any:
        """AWP's first pass only finds the perturbation: batch norm counts the second."""
        return batch_norm.statistics_frozen(self.model) if self._awp_acts() else None

    # -- attacks and data -------------------------------------------------------------------------------------------------

    def _attack(self, random: torch.Generator | None = None, batch_norm: Any = None) -> InnerAttack:
        return InnerAttack(
            self.threat_model,
            steps=self.recipe.attack_steps,
            step_size=self.recipe.attack_step_size,
            generator=self.attack_random if random is None else random,
            start=self.recipe.attack_start,
            batch_norm=batch_norm or self.recipe.attack_batch_norm,
            view=self._view,
            gradient_scale=FP16_SCALE if self._precision().startswith("16") else 1.0,
        )

    def _view(self, model: Any) -> Any:
        """What the attack sees of the network: without batch norm, where it is in eval mode."""
        if self.twin is None or self.model.training:
            return model
        return self.twin.refresh()

    def _folds(self) -> bool:
        return self.data.train.images.shape[-1] >= FOLD_FROM and batch_norm.has_batch_norm(self.model)

    def _twin(self) -> FollowingTwin | None:
        try:
            return FollowingTwin(self.model, self.data.train.inputs(slice(0, 2)))
        except Exception:  # a network of any kind: what cannot be folded is attacked as it is
            return None

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return epoch_batches(
            self.data.train,
            self.recipe.batch_size,
            seed=self.seed,
            epoch=self.epoch,
            augmentation=self.augmentation,
            extra=self.extra,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
        )

    def _rank(self) -> tuple[int, ...]:
        return (self.fabric.global_rank,) if self.fabric.world_size > 1 else ()

    def _precision(self) -> str:
        return str(self.fabric.strategy.precision.precision)

    def cost(self) -> int:
        """Gradient evaluations of one step."""
        again = self.objective.entry.passes if self.perturbation != "none" else 0
        return self.objective.cost(self.recipe.attack_steps) + again

    def recalibration_cost(self) -> int:
        """Gradient evaluations of one recalibration of batch norm, where the weights that count need one."""
        entropy = isinstance(self.inner_optimizer, EntropySGD)
        if (entropy or self.average is not None) and batch_norm.has_batch_norm(self.model):
            return self.objective.cost(self.recipe.attack_steps) * self._recalibration_batches()
        return 0

    def _recalibration_batches(self) -> int:
        return max(1, min(RECALIBRATION_IMAGES // self.recipe.batch_size, self.steps_per_epoch))

    # -- looking ----------------------------------------------------------------------------------------------------------

    def _check(self) -> Step:
        """Look at the losses since the last look."""
        start, self.checked = self.checked, len(self.losses)
        values = torch.stack(self.losses[start:]) if self.losses[start:] else torch.zeros(0)
        bound = 1000 * math.log(max(2, len(self.data.train.classes)))
        wrong = (~values.isfinite() | (values.abs() > bound)).nonzero()
        if len(wrong):
            first = int(wrong[0])
            at = self.step - len(values) + first
            batch = self.batch - len(values) + first
            rate = learning_rate(self.recipe, at, self.total)
            order = epoch_order(self.data.train, self.seed, self.epoch)
            some = order[batch * self.recipe.batch_size :][:4].tolist() if self.extra is None else []
            images = f", training images {', '.join(map(str, some))}, …" if some else ""
            raise Diverged(
                f"the loss became {float(values[first])} at step {at} of {self.total} (epoch {self.epoch}, learning rate "
                f"{rate:.3g}, batch {batch} of the epoch{images})"
            )
        loss = float(values[-1]) if len(values) else math.nan
        return Step(self.step, self.total, self.epoch, loss, self.evaluations)

    @contextmanager
    def _evaluated(self) -> Iterator[None]:
        """Inside, the model holds the weights that count, with their own batch norm statistics."""
        with ExitStack() as stack:
            if self.fabric.world_size > 1:
                self._average_buffers()
            entropy = isinstance(self.inner_optimizer, EntropySGD)
            if isinstance(self.inner_optimizer, EntropySGD):
                stack.enter_context(self.inner_optimizer.outer_weights())
            if self.average is not None:
                if self.average.kind == "swa" and self.step > self.average_from * self.total:
                    self.average.update()
                stack.enter_context(self.average.weights())
            if (entropy or self.average is not None) and batch_norm.has_batch_norm(self.model):
                stack.enter_context(batch_norm.saved_statistics(self.model))
                images = self._attacked_images()
                batch_norm.recalibrate(self.model, images, reduce=self._mean)
            yield

    def _attacked_images(self) -> list[Tensor]:
        """Some training images, as the objective trains on them."""
        random = generator(self.seed, "recalibration", self.epoch, *self._rank(), device=self.fabric.device)
        attack = self._attack(random, batch_norm="train")
        images = []
        was = self.model.training
        self.model.train()
        with batch_norm.statistics_frozen(self.model), self.fabric.autocast():
            for x, y in islice(self._batches(), self._recalibration_batches()):
                if len(y) > 1:
                    loss = self.objective(self.forward, x, y, attack)
                    images.append(loss.x_adv.detach())
        self.model.train(was)
        return images

    def _epoch(self, started: float) -> Epoch:
        sums = torch.stack(
            [torch.stack(self.losses).double().sum(), torch.stack(self.right).double().sum()]
            if self.losses
            else [torch.zeros((), dtype=torch.float64, device=self.fabric.device)] * 2
        )
        counts = torch.tensor([len(self.losses), self.seen], dtype=torch.float64, device=sums.device)
        if self.fabric.world_size > 1:
            sums, counts = self._sum(sums), self._sum(counts)
        loss, right = (sums / counts.clamp_min(1)).tolist()
        clean, robust = self._validate()
        return Epoch(
            epoch=self.epoch,
            loss=loss,
            train_accuracy=right,
            validation_accuracy=clean,
            validation_robust_accuracy=robust,
            learning_rate=self.rate,
            gradient_evaluations=self.evaluations + self.recalibration_cost(),
            parameters=_learned(self.model),
            note=self._overfitting(),
            seconds=round(time.perf_counter() - started, 3),
        )

    def _validate(self) -> tuple[float, float]:
        """Clean and robust accuracy on the validation split; each process takes its part."""
        rank, size = self.fabric.global_rank, self.fabric.world_size
        part = slice(rank, None, size)
        images, labels = self.data.validation.inputs(part), self.data.validation.labels[part]
        random = generator(self.seed, "validation", self.epoch, *self._rank(), device=self.fabric.device)
        with self.fabric.autocast():
            result = accuracy(self.model, images, labels, self._validation_attack(random))
        right = torch.tensor(
            [int(result.clean_correct.sum()), int(result.robust_correct.sum()), len(labels)],
            dtype=torch.float64,
            device=self.fabric.device,
        )
        if size > 1:
            right = self._sum(right)
        clean, robust, count = right.tolist()
        return clean / count, robust / count

    def _validation_attack(self, random: torch.Generator) -> Attack:
        steps = self.recipe.validation_steps
        return training_attack(self.recipe, self.threat_model, random, steps=steps)

    def _overfitting(self) -> str:
        """For single-step objectives: what the guard says of PGD on a training batch."""
        if self.guard is None:
            return ""
        some = slice(self.fabric.global_rank, GUARD_IMAGES, self.fabric.world_size)
        x, y = self.data.train.inputs(some), self.data.train.labels[some]
        random = generator(self.seed, "guard", self.epoch, device=self.fabric.device)
        attack = training_attack(
            self.recipe, self.threat_model, random, steps=max(10, self.recipe.attack_steps)
        )
        with self.fabric.autocast():
            robust = accuracy(self.model, x, y, attack).robust
        if self.fabric.world_size > 1:
            robust = float(self._mean(torch.tensor(robust, device=self.fabric.device)))
        return self.guard.message if self.guard.update(robust) else ""

    def _next_epoch(self, epoch: Epoch) -> None:
        self.history.append(epoch)
        if self.guard is not None:
            if epoch.note and self.before is not None:
                self.model.load_state_dict(self.before)
            self.before = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.epoch, self.batch = self.epoch + 1, 0
        self.losses, self.right, self.seen, self.checked = [], [], 0, 0
        self.attack_random = generator(
            self.seed, "attack", self.epoch, *self._rank(), device=self.fabric.device
        )

    def _settle(self) -> None:
        """Leave in the model what was evaluated last."""
        if self.average is None and not isinstance(self.inner_optimizer, EntropySGD):
            return
        self.epoch -= 1
        update, self.average_from = self.average_from, math.inf
        with self._evaluated():
            final = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(final)
        self.epoch, self.average_from = self.epoch + 1, update

    # -- processes --------------------------------------------------------------------------------------------------------

    def _sum(self, values: Tensor) -> Tensor:
        return torch.as_tensor(self.fabric.all_reduce(values, reduce_op="sum"))

    def _mean(self, values: Tensor) -> Tensor:
        if self.fabric.world_size == 1:
            return values
        return torch.as_tensor(self.fabric.all_reduce(values, reduce_op="mean"))

    def _all_agree(self, decision: bool) -> bool:
        return bool(self.fabric.broadcast(decision)) if self.fabric.world_size > 1 else decision

    def _same_start(self) -> None:
        if self.fabric.world_size > 1:
            for tensor in self.model.state_dict().values():
                tensor.copy_(self.fabric.broadcast(tensor))

    def _average_buffers(self) -> None:
        for buffer in self.model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self._mean(buffer))

    # -- state ------------------------------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """What a run must share with the state it goes on from."""
        return {
            "recipe": self.recipe.as_dict(),
            "threat_model": [self.threat_model.norm, self.threat_model.epsilon],
            "seed": self.seed,
            "data": [self.data.train.sha256, self.data.validation.sha256],
            "extra": None if self.extra is None else [self.extra.sha256, self.extra.fraction],
            "parameters": [[name, list(p.shape)] for name, p in self.model.named_parameters()],
            "processes": self.fabric.world_size,
            "accumulate": self.accumulate,
            "precision": self._precision(),
        }

    def _save(self, path: Path) -> None:
        randoms = [self.attack_random.get_state(), *[g.get_state() for g in self._masks()]]
        if self.fabric.world_size > 1:
            gathered = [
                torch.as_tensor(self.fabric.all_gather(r.to(self.fabric.device))).cpu() for r in randoms
            ]
            randoms_by_rank = [[g[rank] for g in gathered] for rank in range(self.fabric.world_size)]
        else:
            randoms_by_rank = [randoms]
        if self.fabric.is_global_zero:
            save_state(path, self._state(randoms_by_rank))

    def _masks(self) -> list[torch.Generator]:
        return [m.masks(self.fabric.device) for m in self.model.modules() if isinstance(m, Dropout)]

    def _state(self, randoms: list[list[Tensor]]) -> dict[str, Any]:
        return {
            "schema": 1,
            "identity": self._identity(),
            "model": dict(self.model.state_dict()),
            "optimizer": self.inner_optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "guard": None if self.guard is None else self.guard.state_dict(),
            "before": self.before,
            "randoms": randoms,
            "place": [self.epoch, self.batch, self.step, self.evaluations, self.seen, self.total, self.rate],
            "losses": torch.stack(self.losses) if self.losses else None,
            "right": torch.stack(self.right) if self.right else None,
            "history": [epoch.as_dict() for epoch in self.history],
        }

    def load_state_dict(self, state: Any, where: Path) -> None:
        known, own = state.get("identity", {}), self._identity()
        for key, value in own.items():
            if known.get(key) != value:
                raise CurvactError(
                    f"{where} is the state of another run: its {key} differs"
                    f"{_difference(known.get(key), value)}; use another folder"
                )
        self.model.load_state_dict(state["model"])
        self.inner_optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.guard is not None:
            self.guard.load_state_dict(state["guard"])
            self.before = state["before"]
        self.epoch, self.batch, self.step, self.evaluations, self.seen, self.total, self.rate = state["place"]
        device = self.fabric.device
        self.losses = list(state["losses"].to(device)) if state["losses"] is not None else []
        self.right = list(state["right"].to(device)) if state["right"] is not None else []
        self.checked = len(self.losses)
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        randoms = state["randoms"][self.fabric.global_rank]
        self.attack_random.set_state(randoms[0])
        for random, value in zip(self._masks(), randoms[1:], strict=True):
            random.set_state(value)


def _learned(model: nn.Module) -> dict[str, float]:
    """Parameters of learnable activations, and the κ they give, where it is finite."""
    known = {name: value for name, value in current_curvature(model).items() if math.isfinite(value)}
    curvature = {f"{name}.curvature": value for name, value in known.items()}
    return {**current_parameters(model), **curvature}


def _difference(theirs: Any, ours: Any) -> str:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = [key for key in ours if theirs.get(key) != ours[key]]
        return f" ({', '.join(f'{k}: {theirs.get(k)!r} there, {ours[k]!r} here' for k in keys[:3])})"
    short = not isinstance(ours, list) or len(ours) < 4
    return f" ({theirs!r} there, {ours!r} here)" if short else ""


def _optimizer(model: nn.Module, recipe: Recipe, random: torch.Generator) -> torch.optim.Optimizer:
    name, settings = method("optimizer", recipe.optimizer, OPTIMIZERS)
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    own = {id(p) for p in activation_parameters(model)}
    if not recipe.decay_activations and own:
        rest = [p for p in groups[0]["params"] if id(p) not in own]
        kept = [p for p in groups[0]["params"] if id(p) in own]
        groups = [{"params": rest}, {"params": kept, "weight_decay": 0.0}]
    shared: dict[str, Any] = {
        "lr": recipe.learning_rate,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
    }
    if name == "entropy-sgd":
        return EntropySGD(groups, **shared, **settings, generator=random)
    return torch.optim.SGD(groups, **shared, nesterov=recipe.nesterov and recipe.momentum > 0)


def _only(settings: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: settings[key] for key in keys if key in settings}


def training_attack(
    recipe: Recipe, threat_model: ThreatModel, random: torch.Generator, *, steps: int | None = None
) -> Attack:
    """The PGD of the recipe as an attack `(model, x, y) -> x_adv`, in as many steps as training has if None."""
    count = recipe.attack_steps if steps is None else steps
    step = recipe.attack_step_size / threat_model.epsilon if threat_model.epsilon else None
    return PGD(count, step).on(threat_model, random)
