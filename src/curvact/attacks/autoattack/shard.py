"""One shard: a fixed slice of the points. Each attack of the ensemble gets the points that the
attacks before it left.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from curvact.attacks.autoattack.apgd import apgd
from curvact.attacks.autoattack.ensemble import MALT, Mode, Precision, Step
from curvact.attacks.autoattack.fab import fab
from curvact.attacks.autoattack.reference import ZeroGradients, reference_attack
from curvact.attacks.autoattack.search import Counted, Twin, adaptive_batch, search_twin
from curvact.attacks.autoattack.square import square
from curvact.attacks.autoattack.windows import Windowed, windowed
from curvact.attacks.batch import connected
from curvact.attacks.losses import ce, classes
from curvact.attacks.malt import malt_order
from curvact.attacks.pgd import Model
from curvact.attacks.threat import ThreatModel
from curvact.errors import CurvactError
from curvact.models.modes import frozen
from curvact.random import generator

CLEAN = "clean"
BLOCK = 50
"""Points a call where fast mode runs an attack of the reference that draws its randomness by batch:
fixed, so that the batch size does not change the result.
"""


@dataclass(frozen=True)
class Job:
    """Model, points and settings of a run, as each worker process gets them. cut: whether the model
    cuts the graph.
    """

    model: Model
    x: Tensor
    y: Tensor
    threat_model: ThreatModel
    steps: tuple[Step, ...]
    mode: Mode
    seed: int
    shard_size: int
    batch_size: int | None
    precision: Precision = "fp32"
    compiled: bool = False
    randomized: bool = False
    cut: bool = False

    @property
    def shards(self) -> int:
        return math.ceil(len(self.x) / self.shard_size)

    def slice(self, shard: int) -> slice:
        return slice(shard * self.shard_size, min((shard + 1) * self.shard_size, len(self.x)))

    @property
    def keys(self) -> tuple[str, ...]:
        """The units of a shard, in order."""
        return (CLEAN, *(step.key for step in self.steps))


@dataclass(frozen=True)
class Unit:
    """The outcome of one attack on one shard.

    index: the points that it broke, int64, counted from the shard's first. x_adv: their adversarial
    examples. y_adv: the predicted classes at x_adv (−1: NaN). The unit "clean" has the classes of
        all points of the shard, and no x_adv.
    standing: points attacked. outside: misclassified points outside the threat model, which are not
        counted.
    """

    shard: int
    key: str
    index: Tensor
    x_adv: Tensor
    y_adv: Tensor
    standing: int = 0
    forward: int = 0
    gradient: int = 0
    seconds: float = 0.0
    outside: int = 0
    zero_gradients: int = 0
    notes: tuple[str, ...] = field(default=())


def shard_seed(seed: int, shard: int) -> int:
    """The reference's seed for a shard: the first has the seed itself, the others one derived from
    seed and number.
    """
    return seed if shard == 0 else generator(seed, "autoattack shard", shard).initial_seed()


def allowed(x_adv: Tensor, x: Tensor, threat_model: ThreatModel) -> Tensor:
    """Which x_adv are finite, in [0, 1], and in the ball, measured in float64 with the room for
    rounding of `ThreatModel.excess`. Bool, N.
    """
    flat = x_adv.flatten(1)
    inside: Tensor = (threat_model.excess(x_adv, x) <= 0) & ((flat >= 0) & (flat <= 1)).all(1)
    return inside


class Runner:
    """Runs shards of a job on one device. Twins of the model are made once."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self.job = job
        self.device = device
        self.model = on_device(job.model, device)
        if job.cut:
            self.model = connected(self.model)
        self._twins: dict[Precision, tuple[Model, tuple[str, ...]]] = {}
        self._small: dict[Twin, Windowed | None] = {}
        self._batch_size = job.batch_size

    def run(self, shard: int, done: Sequence[Unit], emit: Callable[[Unit], None]) -> None:
        """Every unit of the shard that is not in `done` (its first units, in order), each one
        handed to `emit`.

        torch's global generators, which the reference seeds, are left as they were.
        """
        job = self.job
        part = job.slice(shard)
        x, y = job.x[part], job.y[part]
        with global_randomness_kept(self.device), frozen(self.model), torch.no_grad():
            units = list(done)
            self._seed(shard, CLEAN)
            if not units:
                with _memory_named(CLEAN, self.device, self._plain_batch(len(x))):
                    units.append(self._clean(shard, x, y))
                emit(units[-1])
            standing = standing_points(len(x), units)
            for step in job.steps[len(units) - 1 :]:
                self._seed(shard, step.key)
                unit = self._attack(shard, step, x, y, standing)
                emit(unit)
                standing = standing[~torch.isin(standing, unit.index)]

    def _seed(self, shard: int, key: str) -> None:
        """Make the draws of a randomized model depend on the unit alone. The reference's attacks
        seed again themselves.
        """
        torch.manual_seed(generator(self.job.seed, f"autoattack {key}", shard).initial_seed())

    def _clean(self, shard: int, x: Tensor, y: Tensor) -> Unit:
        started = time.perf_counter()
        model = Counted(self.model)
        predicted = torch.cat(
            [
                classes(model(part.to(self.device))).to(y.device)
                for part in torch.split(x, self._plain_batch(len(x)))
            ]
        )
        wrong = (predicted != y).nonzero().squeeze(1)
        return Unit(
            shard,
            CLEAN,
            wrong.cpu(),
            x[:0].cpu(),
            predicted.cpu(),
            standing=len(x),
            forward=model.forward,
            seconds=time.perf_counter() - started,
        )

    def _plain_batch(self, count: int) -> int:
        if self.job.mode == "plain":
            return self.job.batch_size or count
        return min(count, 256)

    def _attack(self, shard: int, step: Step, x: Tensor, y: Tensor, standing: Tensor) -> Unit:
        started = time.perf_counter()
        plain = Counted(self.model)
        claims = _Claims(plain, x, y, standing, self.job.threat_model, self.device)
        searched, zero = plain, 0
        notes: tuple[str, ...] = ()
        if len(standing) and self.job.mode == "plain":
            batch_size = self._plain_batch(len(x))
            with _memory_named(step.key, self.device, batch_size):
                if step.attack == MALT:  # the reference has none: our loop, on the model itself
                    left = claims.left()
                    zero = self._ours(shard, step, plain, x, y, standing, left, claims, batch_size)
                else:
                    zero = self._reference(shard, step, plain, x, y, standing, claims, batch_size)
        elif len(standing):
            twin, notes = self._twin(step)
            searched = Counted(twin)
            zero, more = self._search(shard, step, searched, x, y, standing, claims)
            notes += more
        index, x_adv, y_adv = claims.result()
        both = {plain, searched}
        return Unit(
            shard,
            step.key,
            index,
            x_adv,
            y_adv,
            standing=len(standing),
            forward=sum(model.forward for model in both),
            gradient=sum(model.gradient for model in both),
            seconds=time.perf_counter() - started,
            outside=claims.outside,
            zero_gradients=zero,
            notes=notes,
        )

    def _reference(
        self,
        shard: int,
        step: Step,
        model: Model,
        x: Tensor,
        y: Tensor,
        standing: Tensor,
        claims: _Claims,
        batch_size: int,
    ) -> int:
        """The reference's attack on batches of the standing points, as its run_standard_evaluation
        makes them.
        """
        log = ZeroGradients()
        seed = shard_seed(self.job.seed, shard)
        attack = reference_attack(step, model, self.job.threat_model, seed, self.device, log)
        for rows in torch.split(torch.arange(len(standing)), batch_size):
            points = standing[rows].to(x.device)
            images, labels = x[points].clone().to(self.device), y[points].clone().to(self.device)
            if step.attack == "apgd-ce":
                log.points += zero_gradients(self.model, images, labels)
            claims.judge(rows, attack(images, labels), images, labels)
        return log.points

    def _search(
        self, shard: int, step: Step, model: Counted, x: Tensor, y: Tensor, standing: Tensor, claims: _Claims
    ) -> tuple[int, tuple[str, ...]]:
        """Fast mode: our loops where they exist, else the reference's on the twin. Out of memory
        halves the batch.
        """
        job, halved = self.job, False
        batch_size = self._fast_batch(x, step)
        ours = job.threat_model.norm != "l1" and step.averaged == 1 and not job.randomized
        while True:
            left = claims.left()
            try:
                if ours and step.attack != "fab":
                    zero = self._ours(shard, step, model, x, y, standing, left, claims, batch_size)
                else:
                    by_batch = step.attack == "fab-t"  # deterministic: its batches may be of any size
                    block = batch_size if by_batch else BLOCK
                    zero = self._reference(shard, step, model, x, y, standing, claims, block)
                notes: tuple[str, ...] = (
                    (f"batch size halved to {batch_size}: out of memory",) if halved else ()
                )
                if step.attack == "square" and any(self._small.values()):
                    notes += ("Square computes only what its squares reach",)
                return zero, notes
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                by_block = not (ours or step.attack == "fab-t")
                if batch_size == 1 or by_block:
                    raise _memory_error(step.key, self.device, BLOCK if by_block else batch_size) from None
                batch_size, halved = batch_size // 2, True
                self._batch_size = batch_size

    def _ours(
        self,
        shard: int,
        step: Step,
        model: Counted,
        x: Tensor,
        y: Tensor,
        standing: Tensor,
        left: Tensor,
        claims: _Claims,
        batch_size: int,
    ) -> int:
        job = self.job
        points = standing[left].to(x.device)
        images, labels = x[points].to(self.device), y[points].to(self.device)
        index = standing[left] + job.slice(shard).start

        def confirm(rows: Tensor, x_adv: Tensor) -> Tensor:
            return claims.judge(left[rows.cpu()], x_adv, images[rows], labels[rows])

        if step.attack == "fab-t":
            fab(step, model, confirm, images, labels, job.threat_model, batch_size=batch_size)
            return 0
        if step.attack == "square":
            small = self._windows(model.model)
            model.forward += square(
                model,
                confirm,
                images,
                labels,
                index,
                job.threat_model,
                queries=step.budget,
                seed=job.seed,
                batch_size=batch_size,
                windows=small,
            )
            return 0
        targets = None
        if step.attack == MALT:
            found = malt_order(model, images, labels, job.threat_model, batch_size=batch_size, check=False)
            targets = found.classes[:, : step.targets]
            model.gradient += (found.classes.shape[1] - 1) * len(images)  # one a class; the first is counted
        return apgd(
            step,
            model,
            confirm,
            images,
            labels,
            index,
            job.threat_model,
            seed=job.seed,
            batch_size=batch_size,
            targets=targets,
        )

    def _twin(self, step: Step) -> tuple[Model, tuple[str, ...]]:
        job = self.job
        precision: Precision = "fp32" if step.second_look else job.precision
        if precision not in self._twins:
            example = job.x[: min(4, len(job.x))].to(self.device)
            twin, notes = search_twin(self.model, example, compiled=job.compiled, precision=precision)
            self._twins[precision] = (twin, (f"{precision} search: {', '.join(notes)}",))
        return self._twins[precision]

    def _windows(self, twin: Model) -> Windowed | None:
        """The twin for small changes, if it exists: on a CPU, in fp32, not compiled."""
        if not isinstance(twin, Twin) or twin.padded or twin.bf16 or self.job.threat_model.norm != "linf":
            return None
        if twin not in self._small:
            example = self.job.x[: min(4, len(self.job.x))].to(self.device)
            self._small[twin] = windowed(twin.module, example, twin)
        return self._small[twin]

    def _fast_batch(self, x: Tensor, step: Step) -> int:
        if self._batch_size is None:
            with _memory_named(step.key, self.device, 1):
                self._batch_size = adaptive_batch(self.model, x[:1].to(self.device), self.job.shard_size)
        return self._batch_size


def zero_gradients(model: Model, x: Tensor, y: Tensor) -> int:
    """How many images have no gradient of the cross-entropy (or NaN). The reference looks only under
    its other losses. This pass is not counted as work of the attack. Waits for the device.

    >>> zero_gradients(lambda x: 1e5 * x, torch.eye(3), torch.arange(3))
    3
    """
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(ce(model(leaf), y).sum(), leaf)
    return int((~(gradient.flatten(1).abs().amax(1) > 0)).sum())


class _Claims:
    """Claimed successes of an attack. Only those that the plain fp32 model confirms are kept."""

    def __init__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        standing: Tensor,
        threat_model: ThreatModel,
        device: torch.device,
    ) -> None:
        self.model = model
        self.standing = standing
        self.threat_model = threat_model
        self.broken = torch.zeros(len(standing), dtype=torch.bool)
        self.x_adv = torch.zeros(len(standing), *x.shape[1:])
        self.y_adv = torch.zeros(len(standing), dtype=torch.int64)
        self.outside = 0

    def judge(self, rows: Tensor, x_adv: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Which x_adv, of the standing points `rows`, are misclassified inside the threat model.
        Bool, on x's device.
        """
        with torch.no_grad():
            predicted = classes(self.model(x_adv))
            wrong = predicted != y
            confirmed = wrong & allowed(x_adv, x, self.threat_model)
        rows, kept = rows.cpu(), confirmed.cpu()
        self.outside += int((wrong & ~confirmed).sum())
        self.broken[rows] |= kept
        self.x_adv[rows[kept]] = x_adv[confirmed].cpu()
        self.y_adv[rows[kept]] = predicted[confirmed].cpu()
        return confirmed

    def left(self) -> Tensor:
        """Rows not yet broken."""
        return (~self.broken).nonzero().squeeze(1)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        rows = self.broken.nonzero().squeeze(1)
        return self.standing[rows], self.x_adv[rows], self.y_adv[rows]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: CUDA's error, the CPU allocator's RuntimeError, or Python's
    MemoryError.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _memory_error(what: str, device: torch.device, batch_size: int) -> CurvactError:
    return CurvactError(
        f"{what} on {device}: out of memory at batch size {batch_size}; set a smaller batch_size or free memory"
    )


@contextmanager
def _memory_named(what: str, device: torch.device, batch_size: int) -> Iterator[None]:
    """Turn out of memory into a CurvactError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _memory_error(what, device, batch_size) from None


def on_device(model: Model, device: torch.device) -> Model:
    """The model on that device: itself if it is there or no nn.Module, else a copy."""
    if not isinstance(model, nn.Module) or model_device(model) == device:
        return model
    return copy.deepcopy(model).to(device)


def model_device(model: Model) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU if it has none."""
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return torch.device("cpu")


def standing_points(count: int, units: Sequence[Unit]) -> Tensor:
    """The points of a shard of `count` that none of the units broke, int64, on the CPU."""
    stands = torch.ones(count, dtype=torch.bool)
    for unit in units:
        stands[unit.index] = False
    return stands.nonzero().squeeze(1)


def global_randomness_kept(device: torch.device) -> AbstractContextManager[None]:
    """Restore the state of torch's global generators after the block."""
    cuda = device.type == "cuda" or torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if cuda else []
    return torch.random.fork_rng(devices=devices)
